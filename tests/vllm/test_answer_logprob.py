"""Log-probabilities of given texts from a real engine: those of transformers, whatever its prefix cache holds."""

from dataclasses import replace

import numpy as np
import pytest

from evalkit.models.rope.served import RopeRequest, served_rope
from evalkit.types import Prompt
from tests.vllm.asking import random_prompt
from tests.vllm.conftest import LONGEST, YARN

pytestmark = pytest.mark.vllm


def with_candidates(prompt: Prompt, *sizes: int) -> Prompt:
    rng = np.random.default_rng([len(prompt.token_ids), 1])
    drawn = [rng.integers(3, 500, size).astype(np.int32) for size in sizes]
    return replace(prompt, candidates={str(n): ids for n, ids in enumerate(drawn)})


def asked() -> list[Prompt]:
    """Prompts within and beyond the blocks of 128 that are cached; 128 and 512 end with one."""
    sizes = {40: (1, 2), 127: (3,), 128: (1, 2, 5), 300: (1, 1, 2, 4), 512: (2, 200), 700: (3, 1)}
    return [with_candidates(random_prompt(n, n, max_new_tokens=8), *own) for n, own in sizes.items()]


@pytest.mark.parametrize("request_", [RopeRequest(rule="none"), YARN], ids=["plain", "yarn"])
def test_they_equal_those_of_transformers_to_a_thousandth(backend, hf, tiny, request_):
    start, served = served_rope(tiny, YARN, LONGEST), served_rope(tiny, request_, LONGEST)
    backend.switch_to(served)
    hf.serve(served, (), LONGEST)
    try:
        ours, theirs = ({p.key: c for p, c in one.generate(asked())} for one in (backend, hf))
    finally:
        backend.switch_to(start)
        hf.serve(start, (), LONGEST)
    gaps = [
        abs(a - b)
        for p in asked()
        for a, b in zip(ours[p.key].candidate_logprobs, theirs[p.key].candidate_logprobs, strict=True)
    ]
    assert len(gaps) == 14
    assert max(gaps) <= 1e-3


@pytest.fixture
def sent(backend, monkeypatch):
    """What the engine was asked: tokens of the prompt, and how many of them the cache served."""
    found = []
    ask = type(backend._engine)._ask

    async def noting(engine, ids, **more):
        output = await ask(engine, ids, **more)
        found.append((len(ids), output.num_cached_tokens))
        return output

    monkeypatch.setattr(type(backend._engine), "_ask", noting)
    return found


def test_a_candidate_that_is_in_the_prefix_cache_already_has_the_same(backend, sent):
    prompt = random_prompt(77, 230, max_new_tokens=60)
    [(_, answer)] = backend.generate([prompt])
    assert len(answer.token_ids) > 30, "long enough to fill a block of the cache"
    itself = {"its own answer": np.asarray(answer.token_ids[:30], dtype=np.int32)}
    [(_, cached)] = backend.generate([replace(prompt, candidates=itself)])
    assert sent[2:] == [(260, 256), (260, 0)], "asked again without the cache"
    assert cached.candidate_logprobs[0] == pytest.approx(sum(answer.logprobs[:30]), abs=1e-3)


def test_the_prompt_is_not_computed_again_for_each_candidate(backend, sent):
    list(backend.generate([with_candidates(random_prompt(88, 900, max_new_tokens=4), 1, 2, 3)]))
    assert sorted(sent) == [(900, 0), (901, 896), (902, 896), (903, 896)]
