"""Models that vLLM has no code of its own for, and runs through transformers': read back all the same."""

from pathlib import Path

import pytest

from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.served import RopeRequest, served_rope
from evalkit.runs.crosscheck import crosscheck
from tests.backends import hf, vllm
from tests.variants import family
from tests.vllm.asking import random_prompt

pytestmark = pytest.mark.vllm


def test_olmo3_keeps_plain_rope_in_its_sliding_layers_and_is_read_back_there_too(tiny, tmp_path):
    from transformers import Olmo3Config

    config = Olmo3Config(
        vocab_size=tiny.vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        sliding_window=128,
        pad_token_id=0,
        eos_token_id=2,
    )
    olmo = Checkpoint.open(family(Path(tiny.path), tmp_path / "olmo3", config))
    yarn = RopeRequest(rule="yarn", factor=4)
    backend = vllm(olmo, yarn, 1024, max_num_seqs=4)
    try:
        assert sorted(entry["attention_factor"] for entry in backend.read_back) == pytest.approx([1.0, 1.1386294])
        assert not backend.can_switch_to(served_rope(olmo, yarn, 1024), 1024), "there is no table to rewrite"
        assert backend.identity()["attention"] == ["CPU_ATTN"]
        prompts = [random_prompt(n, length) for n, length in enumerate([60, 300, 900])]
        report = crosscheck(backend, hf(olmo.path, yarn, 1024), prompts)
    finally:
        backend.close()
    assert report.agreeing >= 2, report.to_text()
