"""Real adapters of peft, compared with the base as it is loaded, and refused where they cannot be served."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from evalkit.errors import BadInput
from evalkit.models.adapter import Adapter
from evalkit.models.causal_lm import load_causal_lm, with_adapter
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.served import config_for
from evalkit.runs.check import check
from evalkit.runs.config import run_config
from tests.variants import family

MakeAdapter = Callable[..., Path]


@pytest.fixture
def make_adapter(checkpoint: Path, tmp_path: Path) -> MakeAdapter:
    def make(base: Path = checkpoint, *, resized_to: int | None = None, trained: bool = True, **config: Any) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if resized_to:
            model.resize_token_embeddings(resized_to)
        settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | config
        adapted = get_peft_model(model, LoraConfig(**settings))
        if trained:
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


@pytest.fixture(scope="module")
def gemma(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model inside a wrapper for pictures, whose names in its files are not those of the loaded model."""
    from transformers import Gemma3Config

    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "head_dim": 32, "vocab_size": 4096, "max_position_embeddings": 2048}
    vision = {"hidden_size": 32, "image_size": 28, "intermediate_size": 32, "num_attention_heads": 2, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision | {"num_hidden_layers": 1}, mm_tokens_per_image=4)
    return family(checkpoint, tmp_path_factory.mktemp("gemma") / "g", config)


def loaded(base: Path, adapter: Path | None) -> dict[str, Any]:
    """The weights that the hf backend computes with."""
    model = load_causal_lm(base, config_for(base, None), "float32")
    return dict((with_adapter(model, adapter) if adapter else model).state_dict())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_dora": True},
        {"bias": "all"},
        {"target_modules": ["embed_tokens", "lm_head", "down_proj"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [1, 2]},
    ],
)
def test_what_peft_saves_for_a_base_fits_it(checkpoint: Path, make_adapter: MakeAdapter, config: dict[str, Any]):
    adapter = make_adapter(**config)
    assert Checkpoint.open(checkpoint, adapter=adapter).adapter is not None
    before, after = loaded(checkpoint, None), loaded(checkpoint, adapter)
    assert any(not before[name].equal(tensor) for name, tensor in after.items()), "and the backend puts it on"


@pytest.mark.parametrize("old_names", [False, True])
def test_the_adapter_of_a_wrapped_model_is_taken_under_todays_names_and_older_ones(
    gemma: Path, make_adapter: MakeAdapter, old_names: bool
):
    assert any(name.startswith("language_model.model.layers.0") for name in Checkpoint.open(gemma).tensors)
    adapter = make_adapter(gemma)
    if old_names:
        file = adapter / "adapter_model.safetensors"
        renamed = {
            name.replace("model.model.language_model.", "model.language_model.model."): matrix
            for name, matrix in load_file(file).items()
        }
        save_file(renamed, file)
    assert Checkpoint.open(gemma, adapter=adapter).adapter is not None
    module = "model.language_model.layers.0.self_attn.q_proj.weight"
    plain, adapted = (loaded(gemma, path)[module] for path in (None, adapter))
    assert (plain - adapted).abs().max() > 0.1, "and the backend puts it on"


def test_the_adapter_of_a_wrapped_model_is_not_taken_for_another(
    checkpoint: Path, gemma: Path, make_adapter: MakeAdapter
):
    with pytest.raises(BadInput, match=r"it changes model\.language_model\.layers\.0\.self_attn\.q_proj, which .* not"):
        Adapter.open(make_adapter(gemma), checkpoint)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"resized_to": 4100, "modules_to_save": ["embed_tokens", "lm_head"]},
            r"The adapter .*adapter .* its lm_head.weight is 4100 x 64, that of .* \(the vocabulary was resized",
        ),
        ({"alora_invocation_tokens": [1, 2]}, r"The adapter .*adapter is an activated LoRA"),
        ({"trained": False}, "changes nothing: all its B matrices are zero"),
    ],
)
def test_an_adapter_that_cannot_be_put_on_is_named_before_weights_are_loaded(
    checkpoint: Path, make_adapter: MakeAdapter, config: dict[str, Any], said: str
):
    with pytest.raises(BadInput, match=said):
        Checkpoint.open(checkpoint, adapter=make_adapter(**config))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "has DoRA magnitudes"),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, r"has whole modules \(embed_tokens, lm_head"),
        ({"bias": "lora_only"}, "has biases"),
        ({"trainable_token_indices": [1, 2]}, "has trainable_token_indices"),
    ],
)
def test_what_vllm_does_not_serve_is_refused_with_the_way_out(
    checkpoint: Path, make_adapter: MakeAdapter, config: dict[str, Any], said: str
):
    adapter = Adapter.open(make_adapter(**config), checkpoint)
    with pytest.raises(BadInput, match=rf"{said}.*use --backend hf, or merge it"):
        adapter.require_vllm_serves()
    asked = {"task": "babilong", "lengths": "1k", "backend": "hf"}
    report = check(run_config({**asked, "model": str(checkpoint), "adapter": str(adapter.path)}))
    assert report.ok, "the hf backend serves it"
    assert any("which vLLM does not serve" in text for text in report.warnings)


def test_a_plain_adapter_and_one_whose_weights_need_no_base_of_their_own_are_served_by_vllm(
    checkpoint: Path, make_adapter: MakeAdapter
):
    plain = make_adapter(init_lora_weights="gaussian")
    Adapter.open(plain, checkpoint).require_vllm_serves()
    file = plain / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(BadInput, match="changes the base's weights"):
        Adapter.open(plain, checkpoint).require_vllm_serves()


def test_a_matrix_of_another_size_is_told_from_one_that_fits(checkpoint: Path, make_adapter: MakeAdapter):
    adapter = make_adapter(target_modules=["embed_tokens"])
    file = adapter / "adapter_model.safetensors"
    name = "base_model.model.model.embed_tokens.lora_embedding_A"
    save_file(load_file(file) | {name: np.ones((4, 5000), np.float32)}, file)
    with pytest.raises(BadInput, match=r"its model\.embed_tokens takes 5000 values, that of .* 4096"):
        Adapter.open(adapter, checkpoint)


def test_a_template_or_tokenizer_of_the_adapters_own_is_pointed_out(checkpoint: Path, make_adapter: MakeAdapter):
    adapter = make_adapter()
    for name in ("chat_template.jinja", "tokenizer.json"):
        (adapter / name).write_bytes((checkpoint / name).read_bytes())
    assert Checkpoint.open(checkpoint, adapter=adapter).warnings == ()
    (adapter / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    (adapter / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes() + b" ")
    said = Checkpoint.open(checkpoint, adapter=adapter).warnings
    assert len(said) == 2
    assert f"{adapter} has a chat template that is not that of {checkpoint}" in said[0]
    assert f"{adapter} has a tokenizer that is not that of {checkpoint}" in said[1]
