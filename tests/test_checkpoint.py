"""A checkpoint folder is understood before its weights are loaded; what is wrong with it is said in one sentence."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from evalkit.errors import BadInput
from evalkit.models.checkpoint import Checkpoint, layer_caches
from evalkit.models.rope.formulas import RopeScaling
from tests.variants import variant, with_layers, with_record


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return variant(checkpoint, tmp_path / "copy")


def shard(folder: Path) -> None:
    """Split the weights into two files with an index, as large checkpoints have them."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def change_weight(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] + np.float32(1e-3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_adapter(folder: Path, *, inputs: int = 64, module: str = "q_proj", **config: Any) -> Path:
    """Write a LoRA adapter of rank 4 in peft's layout."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    at = f"base_model.model.model.layers.0.self_attn.{module}"
    matrices = {
        f"{at}.lora_A.weight": np.ones((4, inputs), dtype=np.float32),
        f"{at}.lora_B.weight": np.ones((64, 4), dtype=np.float32),
    }
    save_file(matrices, folder / "adapter_model.safetensors")
    return folder


def test_a_checkpoint_is_described_by_its_files(checkpoint: Path):
    opened = Checkpoint.open(checkpoint)
    assert (opened.name, opened.model_type, opened.dtype) == ("tiny", "qwen2", "float32")
    assert (opened.window, opened.original_length, opened.max_position_embeddings) == (2048, 2048, 2048)
    assert (opened.hidden_size, opened.head_dim, opened.num_heads, opened.num_kv_heads) == (64, 32, 2, 1)
    assert opened.rope is not None
    assert (opened.rope.theta, opened.rope.rotary_dim) == (1e6, 32)
    assert opened.has_chat_template
    assert opened.training is None
    assert opened.trained_rope is None
    assert opened.num_parameters == sum(value.size for value in load_file(checkpoint / "model.safetensors").values())
    assert opened.weight_bytes == 4 * opened.num_parameters


def test_the_cache_of_a_request_is_counted_as_vllm_counts_it(checkpoint: Path):
    opened = Checkpoint.open(checkpoint)
    assert opened.kv_bytes(1000) == 2 * 2 * 1 * 32 * 4 * 1000  # key and value, layers, key heads, dimensions, bytes
    assert opened.kv_bytes(1000, "bfloat16") == opened.kv_bytes(1000) // 2


def test_the_dtype_of_quantized_weights_is_that_of_the_rest(copy: Path):
    tensors = load_file(copy / "model.safetensors")
    tensors = {name: value.astype(np.int8) if "proj.weight" in name else value for name, value in tensors.items()}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert Checkpoint.open(copy).dtype == "float32"


def test_qwen_7b_needs_7_gib_for_a_128k_request(checkpoint: Path, tmp_path: Path):
    shape = {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584}
    opened = Checkpoint.open(with_layers(variant(checkpoint, tmp_path / "c", **shape), 28))
    assert opened.kv_bytes(131072, "bfloat16") == 7 * 2**30


def test_layers_with_a_sliding_window_stop_growing(checkpoint: Path, tmp_path: Path):
    from transformers import Olmo3Config

    from tests.variants import family

    config = Olmo3Config(
        hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, vocab_size=4096,
        num_hidden_layers=4, max_position_embeddings=2048, sliding_window=256, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    opened = Checkpoint.open(family(checkpoint, tmp_path / "c", config))
    per_layer = 2 * 1 * 32 * 4
    assert opened.kv_bytes(2048) == per_layer * (2048 + 3 * 256)
    assert opened.kv_bytes(100) == per_layer * 400


PUBLIC_SIZES = {  # model: config, bytes of a request in bfloat16 by tokens; as the models' reports and vLLM have them
    "DeepSeek-V3, latent": ("deepseek_v3", {}, {1: 61 * 576 * 2, 131072: 61 * 576 * 2 * 131072}),
    "Falcon-7B, one key head": ("falcon", {"multi_query": True}, {1: 32 * 2 * 64 * 2}),
    "Falcon-40B": (
        "falcon",
        {"hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 60, "new_decoder_architecture": True,
         "num_kv_heads": 8},
        {1: 60 * 2 * 8 * 64 * 2},
    ),
    "Mistral-7B v0.1, sliding": (
        "mistral", {"sliding_window": 4096, "num_key_value_heads": 8},
        {1: 32 * 2 * 8 * 128 * 2, 32768: 32 * 2 * 8 * 128 * 2 * 4096},
    ),
    "Llama 4, chunked in 3 of 4 layers": (
        "llama4_text",
        {"num_hidden_layers": 48, "num_key_value_heads": 8, "head_dim": 128, "attention_chunk_size": 8192},
        {100000: 2 * 8 * 128 * 2 * (12 * 100000 + 36 * 8192)},
    ),
    "gpt-oss-20b": (
        "gpt_oss", {"num_hidden_layers": 24, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128},
        {1000: 2 * 8 * 64 * 2 * (12 * 1000 + 12 * 128)},
    ),
    "Qwen3-Next, keys in 12 of 48 layers": (
        "qwen3_next", {"num_hidden_layers": 48, "num_key_value_heads": 2, "head_dim": 256},
        {1000: 2 * (12 * 2 * 2 * 256 * 1000 + 36 * (32 * 128 * 128 + 8192 * 4))},
    ),
    "Gemma 4, head sizes by layer": (
        "gemma4_text",
        {"num_hidden_layers": 6, "num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512,
         "sliding_window": 512},
        {1000: 2 * (5 * 2 * 256 * 512 + 2 * 512 * 1000)},
    ),
    "Gemma 3n, 15 of 35 layers share another's": (
        "gemma3n_text",
        {"num_hidden_layers": 35, "num_kv_shared_layers": 15, "num_key_value_heads": 2, "head_dim": 256,
         "sliding_window": 512},
        {100: 2 * 20 * 2 * 2 * 256 * 100},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC_SIZES)
def test_the_cache_is_counted_layer_by_layer(name: str):
    from transformers import AutoConfig

    kind, values, expected = PUBLIC_SIZES[name]
    layers = layer_caches(AutoConfig.for_model(kind, **values))
    assert {n: 2 * sum(layer.num_values(n) for layer in layers) for n in expected} == expected


@pytest.mark.parametrize(("kind", "lacks"), [("mamba2", "max_position_embeddings"), ("rwkv", "num_attention_heads")])
def test_a_model_without_a_window_or_heads_is_refused(copy: Path, kind: str, lacks: str):
    (copy / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(BadInput, match=lacks):
        Checkpoint.open(copy)


def test_sharded_weights_are_the_same_checkpoint(checkpoint: Path, copy: Path):
    shard(copy)
    whole, split = Checkpoint.open(checkpoint), Checkpoint.open(copy)
    assert whole.identity() == split.identity()
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadInput, match=r"lacks 1 of its 2 weight files \(model-00002-of-00002"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight"])
def test_identity_sees_a_change_in_any_tensor(checkpoint: Path, copy: Path, name: str):
    # Fine-tuning may leave a file's first and last tensors (embeddings, norms) as they were.
    change_weight(copy, name)
    before, after = Checkpoint.open(checkpoint), Checkpoint.open(copy)
    assert before.identity()["weights"] != after.identity()["weights"]
    assert before.identity()["config"] == after.identity()["config"]


def test_identity_sees_what_changes_answers_and_nothing_else(checkpoint: Path, tmp_path: Path):
    before = Checkpoint.open(checkpoint)
    other = Checkpoint.open(variant(checkpoint, tmp_path / "a", rms_norm_eps=1e-5))
    assert other.identity() != before.identity()
    same = Checkpoint.open(
        variant(checkpoint, tmp_path / "b", transformers_version="5.0.0", _name_or_path="/elsewhere")
    )
    assert same.identity() == before.identity()
    stops = variant(checkpoint, tmp_path / "c", eos_token_id=1)
    assert Checkpoint.open(stops).identity() == before.identity(), "the backend names its stop ids"


def test_the_tokenizers_limit_is_known_where_it_is_one(copy: Path):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    for written, known in ((512, 512), (1e30, None)):
        (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": written}))
        assert Checkpoint.open(copy).tokenizer_limit == known


def test_the_training_record_gives_rule_and_length(copy: Path):
    trained = RopeScaling(rule="yarn", theta=1e6, rotary_dim=32, original_length=2048, factor=2)
    opened = Checkpoint.open(with_record(copy, trained, trained_length=1000))
    assert (opened.trained_rope, opened.trained_length) == (trained, 1000)


def test_an_adapter_of_this_base_is_taken_with_its_record_and_becomes_part_of_the_identity(copy: Path, tmp_path: Path):
    adapter = write_adapter(tmp_path / "adapter")
    trained = RopeScaling(rule="yarn", theta=1e6, rotary_dim=32, original_length=2048, factor=2)
    with_record(adapter, trained)
    opened = Checkpoint.open(copy, adapter=adapter)
    assert opened.adapter is not None
    assert (opened.adapter.rank, opened.adapter.base) == (4, "org/base")
    assert opened.trained_rope == trained
    before = opened.identity()
    assert set(before) == {"weights", "config", "adapter"}
    save_file(
        {name: value * 2 for name, value in load_file(adapter / "adapter_model.safetensors").items()},
        adapter / "adapter_model.safetensors",
    )
    assert Checkpoint.open(copy, adapter=adapter).identity()["adapter"] != before["adapter"]


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"inputs": 96}, r"made for another model: its model.layers.0.self_attn.q_proj takes 96 values, that of .* 64"),
        ({"module": "qkv_proj"}, r"changes model\.layers\.0\.self_attn\.qkv_proj, which .* does not have"),
        ({"peft_type": "PREFIX_TUNING"}, "only LoRA adapters"),
        ({"r": "four"}, "is not the config of a LoRA adapter"),
    ],
)
def test_an_adapter_of_another_base_or_kind_is_refused(copy: Path, tmp_path: Path, adapter: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        Checkpoint.open(copy, adapter=write_adapter(tmp_path / "adapter", **adapter))


def test_an_adapter_of_a_deeper_model_is_refused_though_its_first_layers_fit(copy: Path, tmp_path: Path):
    weights = write_adapter(tmp_path / "adapter") / "adapter_model.safetensors"
    matrices = load_file(weights)
    matrices |= {name.replace("layers.0", "layers.40"): matrix for name, matrix in matrices.items()}
    save_file(matrices, weights)
    with pytest.raises(BadInput, match=r"it changes model\.layers\.40\.self_attn\.q_proj, which .* does not have"):
        Checkpoint.open(copy, adapter=tmp_path / "adapter")


def test_a_folder_that_is_only_an_adapter_says_how_it_is_used(tmp_path: Path):
    with pytest.raises(BadInput, match="give its base as the model and this folder as --adapter"):
        Checkpoint.open(write_adapter(tmp_path / "adapter"))


def test_an_adapter_beside_the_weights_is_warned_about(copy: Path, tmp_path: Path):
    adapter = write_adapter(tmp_path / "adapter")
    shutil.copy(adapter / "adapter_config.json", copy)
    assert "transformers puts on unasked" in Checkpoint.open(copy).warnings[0]


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(BadInput, match="no checkpoint folder"):
        Checkpoint.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_a_missing_file_is_named(copy: Path, missing: str, said: str):
    (copy / missing).unlink()
    with pytest.raises(BadInput, match=said):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", b'{"model_type": "qwen2",', "not JSON: line 1"),
        ("config.json", b"[]", "should be a JSON object"),
        ("config.json", b"\xff\xfe", "not text in UTF-8"),
        ("chat_template.jinja", b"\xff\xfe", "not text in UTF-8"),
        ("config.json", b'{"model_type": "quux"}', "transformers cannot use"),
        ("config.json", b"{}", "transformers cannot use"),
        ("evalkit_training.json", b"{", "evalkit_training.json is not JSON"),
        (
            "evalkit_training.json",
            b'{"rope": {"rule": "yarn"}}',
            "evalkit_training.json is no training record: recipe is missing",
        ),
        ("model.safetensors", b"", "not a safetensors file"),
        ("model.safetensors", b"\x00" * 64, r"not a safetensors file \(it begins with a header of 0 bytes, and has 64"),
        (
            "model.safetensors",
            b"\x02" + b"\x00" * 7 + b"[]",
            r"file \(its header holds list; it should be a JSON object",
        ),
        (
            "model.safetensors",
            b"\x02" + b"\x00" * 7 + b"\xff\xff",
            r"file \(its header is not text in UTF-8 \(byte 0\)\)",
        ),
        ("model.safetensors", b"PK\x03\x04pickled tensors", "not a safetensors file"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": 3}',
            "index.json: weight_map is 3; input should be an object",
        ),
    ],
)
def test_a_damaged_file_is_named(copy: Path, file: str, content: bytes, said: str):
    (copy / file).write_bytes(content)
    with pytest.raises(BadInput, match=said):
        Checkpoint.open(copy).trained_rope  # noqa: B018


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"id2label": "x"}, "'items'; put its id2label right, which is 'x', or copy the file again"),
        ({"num_labels": "x"}, "integer; put its num_labels right"),
        ({"dtype": "float33"}, "'float33'; put its dtype right"),
        ({"eos_token_id": -5}, r"config\.json: eos_token_id is -5; input should be greater than or equal to 0"),
        ({"eos_token_id": [1, -5]}, r"config\.json: eos_token_id\.1 is -5; input should be greater"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(checkpoint: Path, tmp_path: Path, values: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said) as refused:
        Checkpoint.open(variant(checkpoint, tmp_path / "c", **values))
    assert str(refused.value).count("config.json") == 1


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_chat_template_that_is_no_file_is_not_taken_for_none(copy: Path, kind: str):
    (copy / "chat_template.jinja").unlink()
    if kind == "pipe":
        os.mkfifo(copy / "chat_template.jinja")
    else:
        (copy / "chat_template.jinja").mkdir()
    with pytest.raises(BadInput, match=r"chat_template\.jinja is no regular file"):
        Checkpoint.open(copy)


LAYERS = [  # names of the layers' tensors, the config's number and what it is called there; whether that can be
    (["model.layers.{}.w"], 2, {"num_hidden_layers": 2}, True),
    (["model.layers.{}.w"], 3, {"num_hidden_layers": 2}, True),  # DeepSeek-V3 has one that predicts further tokens
    (["model.layers.{}.w"], 2, {"num_hidden_layers": 3}, False),
    (["transformer.h.{}.w"], 2, {"n_layer": 3}, False),
    (["transformer.blocks.{}.w"], 2, {"n_layers": 2}, True),
    (["model.layers.0.mlp.experts.{}.w"], 64, {"num_hidden_layers": 2}, False),
    (["lm_head.weight{}"], 1, {"num_hidden_layers": 1}, False),
    (["language_model.layers.{}.w"], 2, {"text_config": {"num_hidden_layers": 3}}, False),
    (["language_model.layers.{}.w", "vision.blocks.{}.w"], 3, {"text_config": {"num_hidden_layers": 2}}, True),
    (["model.layers.{}.a", "model.layers.{}.b"], 2, {"vision_config": {"depth": 4}}, True),  # its tower was left out
    (["model.layers.{}.a", "model.layers.{}.b"], 2, {"vision_config": {"depth": 5}}, False),
]


@pytest.mark.parametrize(("names", "count", "config", "can_be"), LAYERS)
def test_a_config_of_more_layers_than_are_stored_is_refused_before_any_is_built(
    copy: Path, names: list[str], count: int, config: dict[str, Any], can_be: bool
):
    tensors = {name.format(i): np.ones(1, np.float32) for name in names for i in range(count)}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    (copy / "config.json").write_text(json.dumps({"model_type": "quux", **config}))
    said = "transformers cannot use" if can_be else "has weights of . layers, and its config says .; copy both again"
    with pytest.raises(BadInput, match=said):
        Checkpoint.open(copy)


def test_weights_that_were_cut_short_are_seen_before_they_are_loaded(copy: Path):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(BadInput, match="bytes where its header says"):
        Checkpoint.open(copy)


def test_pickled_weights_are_refused_with_the_way_out(copy: Path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pytorch_model.bin.*save_pretrained"):
        Checkpoint.open(copy)


def test_a_config_that_brings_its_own_code_is_refused(checkpoint: Path, tmp_path: Path):
    folder = variant(
        checkpoint, tmp_path / "c", model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"}
    )
    (folder / "configuration_own.py").write_text("raise SystemExit('ran code of the checkpoint')")
    with pytest.raises(BadInput, match="transformers cannot use"):
        Checkpoint.open(folder)
