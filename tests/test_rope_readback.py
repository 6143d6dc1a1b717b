"""What a loaded model computes is read back and compared: right rules pass, each wrong one is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.errors import EngineError
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.formulas import Frequencies, RopeScaling, frequencies
from evalkit.models.rope.modules import EffectiveRope, read_back_transformers
from evalkit.models.rope.readback import (
    compare_frequencies,
    compare_model,
    expected_frequencies,
    rope_from_table,
)
from evalkit.models.rope.served import RopeRequest, config_for, served_rope
from tests.backends import hf
from tests.variants import family, family_as_published, variant

YARN4 = RopeScaling(rule="yarn", theta=1e4, rotary_dim=32, original_length=512, factor=4)
TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 4096,
}


def load(checkpoint: Checkpoint, mapping: Any) -> Any:
    """Load a model under a mapping, the way a backend does."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint.path, config=config_for(checkpoint.path, mapping))


def read_back(checkpoint: Checkpoint, request: RopeRequest, length: int) -> list[float]:
    """Load, read back and compare; return the differences."""
    served = served_rope(checkpoint, request, length)
    model = load(checkpoint, served.mapping)
    readings = compare_model(expected_frequencies(checkpoint, served), read_back_transformers(model))
    assert readings
    return [reading.max_difference for reading in readings]


@pytest.mark.parametrize("rule", ["none", "linear", "ntk", "ntk-by-parts", "yarn"])
def test_every_named_rule_is_what_a_loaded_model_computes(checkpoint: Path, rule: Any):
    request = RopeRequest(rule=rule, factor=None if rule == "none" else 4)
    assert max(read_back(Checkpoint.open(checkpoint), request, 8192)) < 1e-6


@pytest.mark.parametrize(
    "stored",
    [
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 4.0},
        {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512, "mscale": 2.0,
         "mscale_all_dim": 0.5},
        {"rope_type": "llama3", "rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 256,
         "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
)  # fmt: skip
def test_every_stored_rule_is_what_a_loaded_model_computes(checkpoint: Path, tmp_path: Path, stored: dict[str, Any]):
    opened = Checkpoint.open(variant(checkpoint, tmp_path / "c", rope_parameters=stored))
    assert max(read_back(opened, RopeRequest(), 2048)) < 1e-6


def test_layer_types_with_rules_of_their_own_are_read_back_one_by_one(checkpoint: Path, tmp_path: Path):
    from transformers import Olmo3Config

    config = Olmo3Config(
        **TINY, num_hidden_layers=4, max_position_embeddings=2048, sliding_window=256, pad_token_id=0, eos_token_id=2
    )
    opened = Checkpoint.open(family(checkpoint, tmp_path / "olmo3", config))
    assert [layer.window for layer in opened.cache] == [256, 256, 256, None]
    served = served_rope(opened, RopeRequest(rule="yarn", factor=4), 8192)
    assert served.mapping is not None
    assert served.mapping["rope_parameters"]["full_attention"]["rope_type"] == "yarn"
    assert served.mapping["rope_parameters"]["sliding_attention"]["rope_type"] == "default"
    assert len(read_back(opened, RopeRequest(rule="yarn", factor=4), 8192)) == 2
    assert len(read_back(opened, RopeRequest(), 2048)) == 2
    plain = load(opened, None)
    with pytest.raises(EngineError, match="attention factor"):
        compare_model(expected_frequencies(opened, served), read_back_transformers(plain))


def test_a_config_with_linear_full_layers_and_another_theta_in_sliding_ones_is_read_back(
    checkpoint: Path, tmp_path: Path
):
    from transformers import Gemma3TextConfig

    layers = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = Gemma3TextConfig(
        **TINY, num_hidden_layers=6, head_dim=32, max_position_embeddings=4096, rope_parameters=layers
    )
    opened = Checkpoint.open(family(checkpoint, tmp_path / "gemma3", config))
    assert (opened.original_length, opened.window) == (512, 4096)
    assert len(read_back(opened, RopeRequest(), 4096)) == 2
    assert len(read_back(opened, RopeRequest(rule="linear", factor=16), 8192)) == 2


def test_a_model_that_rotates_a_part_of_each_head_is_read_back(checkpoint: Path, tmp_path: Path):
    from transformers import PhiConfig

    config = PhiConfig(**TINY, num_hidden_layers=1, max_position_embeddings=1024)
    opened = Checkpoint.open(family(checkpoint, tmp_path / "phi", config))
    assert opened.rope is not None
    assert opened.rope.rotary_dim == 16
    assert max(read_back(opened, RopeRequest(rule="yarn", factor=2), 2048)) < 1e-6


PHI3 = {
    "original_max_position_embeddings": 4096,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1 + 0.05 * j for j in range(16)],
        "long_factor": [1 + 1.5 * j for j in range(16)],
    },
}


@pytest.mark.parametrize(("length", "which"), [(4096, "short_factor"), (4097, "long_factor")])
def test_both_halves_of_a_longrope_are_read_back_each_at_its_lengths(
    checkpoint: Path, tmp_path: Path, length: int, which: str
):
    values = {"model_type": "phi3", **TINY, "num_hidden_layers": 1, "max_position_embeddings": 131072, **PHI3}
    opened = Checkpoint.open(family_as_published(checkpoint, tmp_path / "phi3", values | {"pad_token_id": 0}))
    backend = hf(opened.path, RopeRequest(), length)
    (seen,) = read_back_transformers(backend.model, positions=length)
    divisors = np.array(PHI3["rope_scaling"][which])
    np.testing.assert_allclose(seen.inv_freq, 1e4 ** -(np.arange(16) / 16) / divisors, rtol=1e-6)
    assert seen.attention_factor == pytest.approx(1.1902380714238083)  # sqrt(1 + ln 32 / ln 4096): Phi-3's public one

    other = 4097 if length == 4096 else 4096
    with pytest.raises(EngineError, match=r"turns pair 15 by .* where the rope rule says"):
        compare_model(
            expected_frequencies(opened, served_rope(opened, RopeRequest(), other)),
            read_back_transformers(backend.model, positions=length),
        )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"factor": 4.001}, "attention factor|radians"),
        ({"rule": "ntk-by-parts"}, "attention factor 1 where the rope rule says 1.138629"),
        ({"original_length": 2048}, "radians"),
        ({"theta": 1e6}, "turns pair .* radians a position where the rope rule says"),
        ({"truncate": False}, "radians"),
        ({"rotary_dim": 64}, "rotates 64 dimensions where the rope rule has 32"),
    ],
)
def test_a_model_under_another_rule_is_stopped_with_both_values(wrong: dict[str, Any], said: str):
    actual = frequencies(replace(YARN4, **wrong))
    with pytest.raises(EngineError, match=said):
        compare_frequencies(frequencies(YARN4), actual.inv_freq, actual.attention_factor, "the model")


def test_a_value_that_is_not_a_number_is_stopped():
    expected = frequencies(YARN4)
    broken = expected.inv_freq.copy()
    broken[3] = np.nan
    with pytest.raises(EngineError, match="pair 3"):
        compare_frequencies(expected, broken, expected.attention_factor, "the model")
    with pytest.raises(EngineError, match="attention factor nan"):
        compare_frequencies(expected, expected.inv_freq, float("nan"), "the model")


def test_a_difference_within_float32_passes_and_is_reported():
    expected = frequencies(YARN4)
    reading = compare_frequencies(expected, expected.inv_freq.astype(np.float32), expected.attention_factor, "model")
    assert 0 < reading.max_difference < 1e-6
    assert reading.to_json()["attention_factor"] == expected.attention_factor
    assert reading.slowest < reading.fastest


def test_frequencies_and_attention_factor_come_back_from_a_cos_sin_table():
    expected = frequencies(YARN4)
    angles = np.outer(np.arange(4, dtype=np.float32), expected.inv_freq.astype(np.float32))
    table = (np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * expected.attention_factor).astype(np.float32)
    read = rope_from_table(table[1])
    compare_frequencies(expected, read.inv_freq, read.attention_factor, "table")


def test_a_model_without_the_rotary_module_that_matters_is_stopped(checkpoint: Path):
    opened = Checkpoint.open(checkpoint)
    served = served_rope(opened, RopeRequest(), 1024)
    with pytest.raises(EngineError, match="no rotary module"):
        compare_model(expected_frequencies(opened, served), [])


def test_a_module_that_does_not_name_its_layers_is_matched_to_a_rule():
    plain = frequencies(RopeScaling(rule="none", theta=1e4, rotary_dim=32, original_length=512))
    expected = {"full_attention": frequencies(YARN4), "sliding_attention": plain}

    def module(rule: Frequencies) -> EffectiveRope:
        return EffectiveRope(where="m", layer_type="", inv_freq=rule.inv_freq, attention_factor=rule.attention_factor)

    assert len(compare_model(expected, [module(plain), module(frequencies(YARN4))])) == 2
    with pytest.raises(EngineError, match="full-attention"):
        compare_model(expected, [module(plain)])


def test_pairs_that_a_rule_does_not_turn_are_compared_as_they_are():
    still = Frequencies(np.array([1.0, 0.1, 0.0, 0.0]), 1.0)
    assert compare_frequencies(still, [1.0, 0.1, 0.0, 0.0], 1.0, "the model").max_difference == 0
    with pytest.raises(EngineError, match=r"pair 3 by 0\.001 radians a position where the rope rule says 0;"):
        compare_frequencies(still, [1.0, 0.1, 0.0, 0.001], 1.0, "the model")


def test_a_rewritten_entry_is_compared_with_what_the_class_makes_of_the_file_not_with_itself(
    checkpoint: Path, tmp_path: Path
):
    from transformers import Gemma3TextConfig

    layers = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = Gemma3TextConfig(**TINY, num_hidden_layers=6, head_dim=32, rope_parameters=layers)
    opened = Checkpoint.open(family(checkpoint, tmp_path / "gemma3", config))
    served = served_rope(opened, RopeRequest(rule="yarn", factor=4), 8192)
    assert served.mapping is not None
    served.mapping["rope_parameters"]["sliding_attention"]["rope_theta"] = 2e4
    with pytest.raises(EngineError, match="radians a position"):
        compare_model(expected_frequencies(opened, served), read_back_transformers(load(opened, served.mapping)))
