"""Families of models on real engines: served as stored and read back, or refused before work, with the reason.

Configs are those of tests/test_families.py. Where vLLM's CPU build knows certain sizes only, or serves with certain
options only, it is asked those (``SIZES``, ``OPTIONS``). What a GPU build does more is not seen here.
"""

from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import BadInput
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.served import RopeRequest, served_rope
from tests.backends import crosscheck, hf, vllm
from tests.test_families import FAMILIES, Family
from tests.variants import family, family_as_published
from tests.vllm.asking import random_prompt

pytestmark = pytest.mark.vllm

LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "head_dim": 64}
SIZES: dict[str, dict[str, Any]] = {
    "DeepSeek-V2-Lite": LATENT,
    "DeepSeek-V3": LATENT,
    "Qwen3-Next": {"linear_key_head_dim": 128, "linear_value_head_dim": 128},
    "Gemma 4": {"head_dim": 32, "global_head_dim": 64},
}
OPTIONS: dict[str, dict[str, Any]] = {"Qwen3-Next": {"dtype": "bfloat16"}, "Granite 4 H": {"deterministic": True}}
REFUSED = {"Qwen3.5": "failed to be inspected"}
"""By a build without torchvision, which its class imports."""
ELSEWHERE = {"Qwen2.5 with YaRN as its card says", "Phi-2", "Phi-4-mini", "StableLM 2"}
"""Whose class and rule are those of others in the list, or of other tests here."""
ASKED = [case for case in FAMILIES if case.name not in ELSEWHERE]


def published(tiny: Checkpoint, folder: Path, case: Family) -> Checkpoint:
    return Checkpoint.open(family_as_published(Path(tiny.path), folder, case.values() | SIZES.get(case.name, {})))


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case.name)
def test_a_family_is_served_as_stored_and_read_back_or_refused(tiny, tmp_path, case: Family):
    opened = published(tiny, tmp_path / "c", case)
    options = {"max_num_seqs": 4, "dtype": "float32", **OPTIONS.get(case.name, {})}
    if case.name in REFUSED:
        with pytest.raises(BadInput, match=REFUSED[case.name]):
            vllm(opened, RopeRequest(), 1024, **options)
        return
    backend = vllm(opened, RopeRequest(), 1024, **options)
    try:
        assert bool(backend.read_back) == case.read_back
        prompts = [random_prompt(n, length) for n, length in enumerate([60, 300, 900])]
        report = crosscheck(backend, hf(opened.path, RopeRequest(), 1024), prompts)
    finally:
        backend.close()
    assert report.compared == 3
    assert options["dtype"] == "bfloat16" or report.agreeing >= 2, report.to_text()  # random weights meet ties


def test_the_half_of_a_longrope_for_longer_requests_is_served_and_read_back(tiny, tmp_path):
    phi = published(tiny, tmp_path / "phi3", next(case for case in FAMILIES if case.name == "Phi-3 (128K)"))
    backend = vllm(phi, RopeRequest(), 4500, max_num_seqs=2, dtype="float32")
    try:
        [entry] = backend.read_back
        assert entry["slowest"] == pytest.approx(1e4 ** -(15 / 16) / (1 + 1.5 * 15), rel=1e-6), "the long list's"
        report = crosscheck(backend, hf(phi.path, RopeRequest(), 4500), [random_prompt(1, 4400)])
    finally:
        backend.close()
    assert report.agreeing == 1, report.to_text()


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
