"""A LoRA adapter on a real engine, with the deterministic settings."""

import math
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from evalkit.errors import BadInput, EvalkitError
from evalkit.models.adapter import Adapter
from evalkit.models.backends.vllm import backend as vllm_backend
from evalkit.models.backends.vllm.engine import VLLMOptions, engine_config, usable_vllm
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.served import RopeRequest
from tests.backends import crosscheck, hf, vllm
from tests.vllm.asking import random_prompt
from tests.vllm.conftest import WINDOW

pytestmark = pytest.mark.vllm


def write_adapter(folder: Path, base: Path, *, rank: int, a: float | None = None, **more: Any) -> Path:
    """Save a LoRA adapter with random factors, large enough to change answers, or with matrices A of one value."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **more)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if a is not None and ".lora_A." in name:
            torch.nn.init.constant_(parameter, a)
    model.save_pretrained(folder)
    return folder


def refusal(checkpoint: Checkpoint, **options: Any) -> str:
    """Return why no engine serves a checkpoint; nothing of one is left."""
    children = set(psutil.Process().children(recursive=True))
    with pytest.raises(EvalkitError) as refused:
        vllm(checkpoint, RopeRequest(), WINDOW, max_num_seqs=2, **options)
    started = [child for child in psutil.Process().children(recursive=True) if child not in children]
    left = psutil.wait_procs(started, timeout=30)[1]
    assert not any("EngineCor" in child.name() for child in left)
    return str(refused.value)


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantization": "nonsense"}, "nonsense"),
        ({"kv_cache_dtype": "float31"}, "cache_dtype: Input should be 'auto', 'float16'"),
        ({"attention": "NONSENSE"}, "Unknown attention backend: 'NONSENSE'"),
    ],
)
def test_what_vllm_refuses_is_said_in_one_sentence(tiny, options, said):
    with pytest.raises(BadInput, match=f"vLLM refuses tiny with these options: .*{said}"):
        engine_config(
            tiny, overrides={}, max_model_len=256, options=VLLMOptions(**options), device=usable_vllm().device
        )


def test_what_vllm_does_not_serve_is_refused_before_an_engine_starts(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_backend, "usable_vllm", None)  # which imports vLLM
    dora = Checkpoint.open(tiny.path, adapter=write_adapter(tmp_path / "a", tiny.path, rank=4, use_dora=True))
    assert "has DoRA magnitudes (use_dora), which vLLM does not serve; use --backend hf" in refusal(dora)


def test_what_the_engine_says_before_its_first_answer_is_shown_and_it_is_started_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Adapter, "vllm_refusal", lambda adapter: None)  # a feature of which only vLLM knows
    dora = Checkpoint.open(tiny.path, adapter=write_adapter(tmp_path / "a", tiny.path, rank=4, use_dora=True))
    starts = []
    engine = vllm_backend.Engine
    monkeypatch.setattr(vllm_backend, "Engine", lambda *args, **more: starts.append(1) or engine(*args, **more))
    said = refusal(dora)
    assert "died of its first request; vLLM said: ValueError: " in said
    assert "DoRA" in said
    assert "memory" not in said
    assert len(starts) == 1


def test_an_adapter_that_changes_nothing_is_refused_before_the_first_answer(tiny, tmp_path):
    idle = Checkpoint.open(tiny.path, adapter=write_adapter(tmp_path / "a", tiny.path, rank=4, a=0.0))
    assert f"The adapter {tmp_path / 'a'} changes nothing: " in refusal(idle)


def test_an_adapter_of_no_numbers_is_refused_before_the_first_answer(tiny, tmp_path):
    broken = Checkpoint.open(tiny.path, adapter=write_adapter(tmp_path / "a", tiny.path, rank=4, a=math.nan))
    assert "gives no finite logits in float32" in refusal(broken)


def test_why_an_engine_does_not_start_is_said_in_its_own_words(tiny, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny.path, tmp_path / "torn")
    tensors = load_file(tmp_path / "torn" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "torn" / "model.safetensors", metadata={"format": "pt"})
    said = refusal(Checkpoint.open(tmp_path / "torn"))
    assert f"vLLM could not start on {tmp_path / 'torn'}: ValueError: " in said
    assert "model.norm.weight" in said
