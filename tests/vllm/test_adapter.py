"""A LoRA adapter on a real engine, with the deterministic settings."""

from pathlib import Path

import pytest

from evalkit.errors import BadInput
from evalkit.models.backends.vllm.engine import VLLMOptions, engine_config, usable_vllm
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.served import RopeRequest
from evalkit.runs.crosscheck import crosscheck
from tests.backends import hf, vllm
from tests.vllm.asking import random_prompt
from tests.vllm.conftest import WINDOW

pytestmark = pytest.mark.vllm


def write_adapter(folder: Path, base: Path, *, rank: int) -> Path:
    """Save a LoRA adapter with random factors, large enough to change answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder)
    return folder


def test_an_adapter_answers_as_its_merged_weights_do_and_repeats_itself(tiny, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", tiny.path, rank=4)
    adapted = Checkpoint.open(tiny.path, adapter=adapter)
    prompts = [random_prompt(n, length) for n, length in enumerate([200, 120, 40])]
    backend = vllm(adapted, RopeRequest(), WINDOW, max_num_seqs=2, deterministic=True)
    try:
        report = crosscheck(backend, hf(tiny.path, adapter=adapter), prompts)
        without = crosscheck(backend, hf(tiny.path), prompts)
        repeated = crosscheck(backend, backend, prompts)
        identity, settings = backend.identity(), backend.settings()
    finally:
        backend.close()
    assert report.agreeing >= 2, report.to_text()
    assert without.agreeing == 0, "the adapter changes every answer"
    assert repeated.agreement == 1
    assert identity["deterministic"]
    assert not settings["prefix_cache"]


def test_a_rank_beyond_what_vllm_takes_is_refused_before_an_engine_starts(tiny, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", tiny.path, rank=513)
    adapted = Checkpoint.open(tiny.path, adapter=adapter)
    with pytest.raises(BadInput, match="has rank 513; vLLM takes up to 512"):
        engine_config(adapted, overrides={}, max_model_len=256, options=VLLMOptions(), device=usable_vllm().device)


def test_what_vllm_refuses_is_said_in_one_sentence(tiny):
    with pytest.raises(BadInput, match=r"vLLM refuses tiny with these options: .*nonsense"):
        engine_config(
            tiny,
            overrides={},
            max_model_len=256,
            options=VLLMOptions(quantization="nonsense"),
            device=usable_vllm().device,
        )
