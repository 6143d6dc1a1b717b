"""Four questions about one context through a real engine: its prefix cache computes the context once."""

import pytest

from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.babilong.task import BABILong
from evalkit.benchmarks.cards import load_card
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from tests.backends import vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def test_four_questions_take_hardly_more_prefill_than_one_and_get_the_answers_of_each_alone(tmp_path):
    from evalkit.models.new_checkpoint import write_checkpoint

    write_checkpoint(tmp_path / "ckpt", window=4096)
    checkpoint, encoder = Checkpoint.open(tmp_path / "ckpt"), Encoder.open(tmp_path / "ckpt")
    benchmark = BABILong(load_card("babilong"), BABILongOptions(questions_per_context=4))
    prompts = [benchmark.prompt(s, "4k", encoder, 4096) for s in benchmark.samples("qa5", "4k", 12)]
    backend = vllm(checkpoint, length=4096, max_num_seqs=8, max_num_batched_tokens=1024)
    try:
        assert backend.settings()["prefix_cache"]
        together = {prompt.key: completion for prompt, completion in backend.generate(prompts)}
        backend._engine.reset_prefix_cache()
        one_each = list(backend.generate(prompts[::4]))
        alone = {}
        for prompt in prompts:
            backend._engine.reset_prefix_cache()
            alone |= {p.key: completion for p, completion in backend.generate([prompt])}
    finally:
        backend.close()
    assert all(completion.num_cached_tokens == 0 for completion in alone.values())
    assert {key: c.token_ids for key, c in together.items()} == {key: c.token_ids for key, c in alone.items()}
    prefilled = sum(len(p.token_ids) - together[p.key].num_cached_tokens for p in prompts)
    single = sum(len(p.token_ids) - completion.num_cached_tokens for p, completion in one_each)
    print(f"{prefilled:,} tokens were computed for 12 questions, {single:,} for 3: {prefilled / single:.3f} times")
    assert prefilled <= 1.15 * single
