"""The rope rule in a config, in every layout, becomes the same rule; contradictions are refused in words."""

from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import BadInput
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.formulas import RopeScaling
from evalkit.models.rope.stored import StoredRope
from tests.variants import variant

YARN = {"factor": 4.0, "original_max_position_embeddings": 512}
EXPECTED = RopeScaling(rule="yarn", theta=1e6, rotary_dim=32, original_length=512, factor=4)


@pytest.fixture
def stored(checkpoint: Path, tmp_path: Path) -> Any:
    def read(*, drop: tuple[str, ...] = (), **config: Any) -> StoredRope:
        rope = Checkpoint.open(variant(checkpoint, tmp_path / "c", drop=drop, **config)).rope
        assert rope is not None
        return rope

    return read


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN}},
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", **YARN}, "rope_parameters": None},
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN}, "rope_parameters": None},
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "rope_type": "yarn", **YARN}, "rope_parameters": None},
    ],
)
def test_all_layouts_of_transformers_4_and_5_give_the_same_rule(stored: Any, config: dict[str, Any]):
    rope = stored(drop=() if config["rope_parameters"] else ("rope_parameters",), **config)
    assert (rope.scaling, rope.original_length, rope.window) == (EXPECTED, 512, 2048)
    assert rope.warnings == ()


def test_a_plain_theta_beside_nothing_is_the_plain_rule(stored: Any):
    rope = stored(drop=("rope_parameters",), rope_theta=5e5)
    assert rope.scaling == RopeScaling(rule="none", theta=5e5, rotary_dim=32, original_length=2048)


def test_qwens_recipe_covers_factor_times_the_original_length(stored: Any):
    # max_position_embeddings stays at the original length there; transformers before 4.56 read that as factor 1.
    parameters = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 2048}
    rope = stored(rope_parameters=parameters)
    assert (rope.window, rope.original_length, rope.warnings) == (8192, 2048, ())


def test_yarn_without_original_length_is_read_as_transformers_reads_it_and_said_so(stored: Any):
    rope = stored(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0})
    assert (rope.original_length, rope.window) == (2048, 8192)
    assert "without original_max_position_embeddings" in rope.warnings[0]
    assert "8,192 positions are covered" in rope.warnings[0]


def test_yarn_whose_window_is_neither_original_nor_scaled_is_served_as_the_table_is_and_said_so(stored: Any):
    rope = stored(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **YARN, "factor": 3.0})
    assert rope.window == 1536
    assert "neither the original length 512 nor factor 3 x 512 = 1,536" in rope.warnings[0]


@pytest.mark.parametrize(
    ("extra", "rule", "attention_factor"),
    [
        ({}, "yarn", None),
        ({"attention_factor": 1.1386294361119891}, "yarn", None),  # the rule's own, written out
        ({"attention_factor": 1.0}, "ntk-by-parts", None),
        ({"attention_factor": 1.2}, "yarn", 1.2),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, "ntk-by-parts", None),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, "yarn", 1.2772588722239782 / 1.1386294361119891),
    ],
)
def test_attention_factors_and_mscales_become_rule_and_number(
    stored: Any, extra: dict[str, float], rule: str, attention_factor: float | None
):
    scaling = stored(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **YARN, **extra}).scaling
    assert scaling.rule == rule
    assert scaling.attention_factor == (None if attention_factor is None else pytest.approx(attention_factor))


def test_linear_scaling_covers_what_vllm_makes_of_it(stored: Any):
    rope = stored(rope_parameters={"rope_type": "linear", "rope_theta": 1e6, "factor": 4})
    assert (rope.scaling.rule, rope.scaling.factor, rope.original_length, rope.window) == ("linear", 4, 2048, 8192)
    assert "length before scaling" in rope.warnings[0]


def test_rules_with_formulas_of_their_own_are_carried_as_they_are(stored: Any):
    parameters = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    rope = stored(rope_parameters=parameters)
    assert (rope.type, rope.scaling, rope.original_length, rope.window) == ("llama3", None, 256, 2048)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "both rope_scaling and rope_parameters"),
        (
            {"rope_parameters": {"type": "yarn", "rope_type": "linear", "factor": 2.0}},
            "type 'yarn' and rope_type 'linear'",
        ),
        ({"rope_theta": 1e4}, "gives rope_theta twice, 1e.06 in its rope settings and 10000 beside"),
        ({"rope_parameters": "yarn"}, "it should be an object"),
        ({"rope_parameters": {"factor": 4.0, "rope_theta": 1e6}}, "no rope_type"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": "4x"}}, "'4x'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN, "factor": 0.5}}, "from 1 up"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": "1e6", **YARN}}, "rope_theta .* is '1e6'.* a number"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": None, **YARN}}, "without a rope_theta"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN, "attention_factor": "x"}},
            "attention_factor .* is 'x'",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN, "mscale": "1"}}, "mscale .* is '1'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": "x"}}, "is 'x'"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 2.0}},
            "64 of the 32",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN, "truncate": "no"}}, "true or false"),
        (
            {"num_attention_heads": 0, "head_dim": None},
            "num_attention_heads is 0; input should be greater than or equal to 1",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN, "beta_slow": 64}}, "beta_slow"),
        ({"head_dim": 33}, "even"),
    ],
)
def test_contradictions_and_impossible_values_are_refused(stored: Any, config: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        stored(**config)
