"""A real engine behind ``VLLMBackend``: the same answers as transformers, nothing shortened, nothing held back."""

import math
import shutil
from collections.abc import Iterator

import pytest

from evalkit.errors import EngineError
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.readback import TOLERANCE
from evalkit.models.rope.served import RopeRequest, served_rope
from evalkit.types import Prompt
from tests.backends import crosscheck, vllm
from tests.vllm.asking import random_prompt
from tests.vllm.conftest import LONGEST, WINDOW, YARN

pytestmark = pytest.mark.vllm


def one_answer(backend, prompt):
    [(_, completion)] = backend.generate([prompt])
    return completion


def test_what_the_engine_computes_is_read_back_after_loading(backend):
    [table] = backend.read_back
    assert table["max_difference"] <= TOLERANCE
    assert (table["rows"], table["dtype"]) == (LONGEST, "float32")
    assert table["attention_factor"] == pytest.approx(1.1386294, abs=1e-6), "0.1 ln 4 + 1"


def test_answers_equal_those_of_transformers_up_to_four_times_the_trained_length(backend, hf):
    report = crosscheck(backend, hf, [random_prompt(n, length) for n, length in enumerate([40, 250, 500, 700, 1000])])
    assert report.agreeing >= report.compared - 1 == 4, report.to_text()


@pytest.mark.parametrize(
    ("request_", "length"),
    [
        (RopeRequest(rule="none"), 512),
        (RopeRequest(rule="linear"), 1024),
        (RopeRequest(rule="ntk"), 700),
        (RopeRequest(rule="ntk-by-parts"), 1024),
        (RopeRequest(rule="yarn"), 512),
        (RopeRequest(rule="yarn"), WINDOW),
        (RopeRequest(rule="yarn", factor=4.0, beta_fast=16, beta_slow=2, truncate=False), 1024),
    ],
    ids=lambda value: value.rule if isinstance(value, RopeRequest) else str(value),
)
def test_one_engine_serves_every_rule_in_turn_as_transformers_does(backend, hf, tiny, request_, length):
    start, served = served_rope(tiny, YARN, LONGEST), served_rope(tiny, request_, length)
    assert backend.can_switch_to(served, length)
    backend.switch_to(served)
    hf.serve(served, (), length)
    try:
        assert backend.read_back[0]["max_difference"] <= TOLERANCE
        lengths = [length - 16, length // 2, 40]
        report = crosscheck(backend, hf, [random_prompt(n, tokens) for n, tokens in enumerate(lengths)])
    finally:
        backend.switch_to(start)
        hf.serve(start, (), LONGEST)
    assert report.agreeing >= report.compared - 1 == 2, report.to_text()


def test_a_switched_rule_never_meets_keys_that_were_cached_under_another(backend, tiny):
    prompt = random_prompt(1, 500)
    before = one_answer(backend, prompt)
    backend.switch_to(served_rope(tiny, YARN, 512))
    switched = one_answer(backend, prompt)
    backend.switch_to(served_rope(tiny, YARN, LONGEST))
    after = one_answer(backend, prompt)
    assert switched.num_cached_tokens == after.num_cached_tokens == 0
    assert before.token_ids == after.token_ids != switched.token_ids


def test_an_engine_is_not_switched_to_more_positions_than_it_has(backend, tiny):
    assert not backend.can_switch_to(served_rope(tiny, YARN, 2048), 2048)


def test_a_prompt_whose_answer_would_be_shortened_is_not_sent(backend):
    completion = one_answer(backend, random_prompt(1, LONGEST - 8, max_new_tokens=9))
    assert completion.finish_reason == "error"
    assert completion.error.startswith("context_overflow: 1016 prompt tokens and 9 for the answer exceed the 1024")
    assert len(one_answer(backend, random_prompt(1, LONGEST - 8, max_new_tokens=8)).token_ids) == 8


def test_prompts_are_pulled_as_the_engine_takes_them_and_answers_come_one_by_one(backend):
    pulled = 0

    def prompts() -> Iterator[Prompt]:
        nonlocal pulled
        for number in range(60):
            pulled += 1
            yield random_prompt(number, 30, max_new_tokens=2 + number % 5)

    waiting = [pulled - answered for answered, _ in enumerate(backend.generate(prompts()), start=1)]
    assert len(waiting) == 60
    assert max(waiting) <= 16, "twice max_num_seqs are in flight, no more"


def test_prompts_that_share_a_document_are_served_from_the_prefix_cache(backend):
    document = tuple(random_prompt(99, 400).token_ids.tolist())
    first, second = (one_answer(backend, random_prompt(n, 420, start=document)) for n in (1, 2))
    assert first.num_cached_tokens < second.num_cached_tokens
    assert second.num_cached_tokens >= 256


def test_a_prompt_that_the_engine_refuses_fails_alone(backend):
    bad = random_prompt(2, 30)
    bad.token_ids[5] = 100_000
    answers = {p.sample.sample_id: c for p, c in backend.generate([random_prompt(1, 30), bad, random_prompt(3, 30)])}
    assert answers["2"].error.startswith("engine: ")
    assert not answers["2"].retryable
    assert answers["1"].error is None
    assert answers["3"].error is None


def test_an_abandoned_run_leaves_the_engine_free(backend):
    reference = one_answer(backend, random_prompt(1, 40))
    for _ in backend.generate(random_prompt(n, 300, max_new_tokens=200) for n in range(16)):
        break
    assert one_answer(backend, random_prompt(1, 40)).token_ids == reference.token_ids


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(backend, monkeypatch):
    prompt = random_prompt(7, 60)
    answer = one_answer(backend, prompt).token_ids
    assert len(answer) == 16, "this test needs an answer that runs to its limit"
    monkeypatch.setattr(backend, "_stops", (answer[3],))
    stopped = one_answer(backend, prompt)
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == answer[: answer.index(answer[3])]
    assert len(stopped.logprobs) == len(stopped.token_ids)


def test_log_probabilities_are_those_of_transformers(backend, hf):
    import torch

    prompt = random_prompt(5, 300)
    completion = one_answer(backend, prompt)
    ids = torch.tensor([[*prompt.token_ids.tolist(), *completion.token_ids]])
    with torch.inference_mode():
        logits = hf.model(ids).logits[0, len(prompt.token_ids) - 1 : -1].float()
    reference = logits.log_softmax(-1).gather(1, torch.tensor([completion.token_ids]).T)[:, 0]
    assert completion.logprobs == pytest.approx(reference.tolist(), abs=5e-3)


def test_numbers_that_are_not_finite_for_one_prompt_end_the_run_at_it(tiny, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny.path, tmp_path / "spoilt")
    tensors = load_file(tmp_path / "spoilt" / "model.safetensors")
    tensors["model.embed_tokens.weight"][555] = math.nan  # a token that random prompts and the probe do not have
    save_file(tensors, tmp_path / "spoilt" / "model.safetensors", metadata={"format": "pt"})
    spoilt, sound = random_prompt(1, 60), random_prompt(2, 60)
    spoilt.token_ids[-1] = 555
    backend = vllm(Checkpoint.open(tmp_path / "spoilt"), attention="CPU_ATTN", kv_cache_dtype="fp8")
    try:
        assert one_answer(backend, sound).error is None
        assert backend.identity()["kv_cache_dtype"] == "fp8"
        with pytest.raises(EngineError, match=r"no finite logits in float32 \(asked with 60 tokens\)"):
            one_answer(backend, spoilt)
    finally:
        backend.close()


def test_identity_says_what_can_change_an_answer_and_settings_what_cannot(backend):
    identity, settings = backend.identity(), backend.settings()
    found = {name: identity[name] for name in ("name", "device", "dtype", "kv_cache_dtype", "deterministic")}
    assert found == dict(name="vllm", device="cpu", dtype="float32", kv_cache_dtype="float32", deterministic=False)
    assert (identity["attention"], identity["versions"]) == (["CPU_ATTN"], {"vllm": "0.32.0"})
    assert (settings["max_num_seqs"], settings["prefix_cache"]) == (8, True)
