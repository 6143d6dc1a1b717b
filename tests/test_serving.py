"""Which rule serves which length: covered by arithmetic, or refused in words before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import BadInput
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.formulas import RopeScaling
from evalkit.models.rope.served import (
    RopeRequest,
    refuse_at_sight,
    rope_groups,
    rope_identity,
    served_rope,
    served_rule,
    training_rope,
)
from tests.refusals import refused_at_once
from tests.variants import family, variant, with_record

WINDOW = 2048  # of the session's checkpoint
YARN4 = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(checkpoint)


def test_the_checkpoints_own_rule_is_served_as_it_is_within_its_window(plain: Checkpoint):
    served = served_rope(plain, RopeRequest(), WINDOW)
    assert (served.mapping, served.window, served.warnings) == (None, WINDOW, ())
    assert served.scaling is not None
    assert served.scaling.rule == "none"


def test_a_length_beyond_the_window_is_refused_with_the_arithmetic_and_the_way_out(plain: Checkpoint):
    with pytest.raises(BadInput) as error:
        served_rope(plain, RopeRequest(), 16384)
    for part in ("16k = 16,384 tokens", "2,048 positions", "--rope yarn", "factor of 8", "--rope none"):
        assert part in str(error.value)


@pytest.mark.parametrize("config", [{"model_type": "llama"}, {"rope_parameters": None, "rope_theta": 1e4}])
def test_what_is_refused_at_sight_is_what_is_refused_anyway_in_the_same_words(checkpoint, tmp_path, config):
    folder = variant(checkpoint, tmp_path / "m", **config)
    refuse_at_sight(folder, RopeRequest(), ["1k", "2k"])
    refuse_at_sight(folder, RopeRequest(rule="none"), ["4k"])
    with pytest.raises(BadInput) as at_sight:
        refuse_at_sight(folder, RopeRequest(), ["2k", "8k", "4k"])
    with pytest.raises(BadInput) as anyway:
        rope_groups(Checkpoint.open(folder), RopeRequest(), ["2k", "8k", "4k"])
    assert str(anyway.value) == str(at_sight.value)


@pytest.mark.parametrize("config", [{"model_type": "gemma3_text"}, {"rope_parameters": YARN4}])
def test_what_needs_more_than_a_sight_is_left_to_whoever_looks_closer(checkpoint, tmp_path, config):
    refuse_at_sight(variant(checkpoint, tmp_path / "m", **config), RopeRequest(), ["8k"])


def test_a_short_window_is_refused_before_transformers_is_loaded(checkpoint: Path):
    words = ["run", "--model", str(checkpoint), "--task", "babilong", "--lengths", "16k", "--backend", "hf"]
    assert "16k = 16,384 tokens are not covered" in refused_at_once(words)


@pytest.mark.parametrize("rule", ["linear", "ntk", "ntk-by-parts", "yarn"])
def test_a_named_factor_covers_window_times_factor_and_nothing_beyond(plain: Checkpoint, rule: Any):
    request = RopeRequest(rule=rule, factor=2)
    served = served_rope(plain, request, 4096)
    assert served.window == 4096
    assert served.scaling == RopeScaling(rule=rule, theta=1e6, rotary_dim=32, original_length=WINDOW, factor=2)
    with pytest.raises(BadInput) as error:
        served_rope(plain, request, 4097)
    assert "original length 2,048 x factor 2 = 4,096" in str(error.value)
    assert "--factor 3 or more, or --factor auto" in str(error.value)


def test_no_scaling_extrapolates_only_because_it_was_named(plain: Checkpoint):
    served = served_rope(plain, RopeRequest(rule="none"), 8192)
    assert served.window == 8192
    assert served.mapping is not None
    assert served.mapping["max_position_embeddings"] == 8192  # sizes vLLM's table
    assert served.mapping["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e6}
    assert "without any scaling" in served.warnings[0]
    assert served_rope(plain, RopeRequest(rule="none"), WINDOW).warnings == ()


@pytest.mark.parametrize("rule", ["none", "yarn", "checkpoint"])
def test_a_length_whose_positions_float32_does_not_tell_apart_is_refused(plain: Checkpoint, rule: Any):
    request = RopeRequest(rule=rule)
    with pytest.raises(BadInput, match=r"300M = 314,572,800 tokens are beyond 16,777,216: .* float32"):
        served_rope(plain, request, 300 * 2**20)
    if rule != "checkpoint":
        assert served_rope(plain, request, 2**24).window >= 2**24


def test_auto_gives_each_bucket_its_factor_and_buckets_with_one_factor_share_a_group(plain: Checkpoint):
    groups = rope_groups(plain, RopeRequest(rule="yarn", factor="auto"), ["8k", "1k", "2k", "4k", "512"])
    assert [(labels, served.scaling.factor) for served, labels in groups if served.scaling] == [
        (["512", "1k", "2k"], 1.0),
        (["4k"], 2.0),
        (["8k"], 4.0),
    ]
    assert [served.window for served, _ in groups] == [2048, 4096, 8192]
    assert groups == rope_groups(plain, RopeRequest(rule="yarn"), ["8k", "1k", "2k", "4k", "512"])


def test_lengths_under_one_fixed_rule_share_one_group_sized_for_the_longest(plain: Checkpoint):
    ((served, labels),) = rope_groups(plain, RopeRequest(rule="none"), ["4k", "1k", "8k"])
    assert labels == ["1k", "4k", "8k"]
    assert served.window == 8192
    ((served, labels),) = rope_groups(plain, RopeRequest(rule="yarn", factor=4), ["4k", "1k", "8k"])
    assert served.window == 8192
    assert labels == ["1k", "4k", "8k"]


def test_a_stored_rule_is_spelled_out_in_full(checkpoint: Path, tmp_path: Path):
    folder = variant(checkpoint, tmp_path / "c", rope_parameters=YARN4)
    opened = Checkpoint.open(folder)
    served = served_rope(opened, RopeRequest(), 2048)
    assert served.window == 2048
    assert served.mapping is not None
    assert served.mapping["max_position_embeddings"] == 2048
    assert served.mapping["rope_parameters"]["original_max_position_embeddings"] == 512
    with pytest.raises(BadInput, match="its rule yarn, factor 4 over 512"):
        served_rope(opened, RopeRequest(), 2049)


def test_a_named_rule_starts_from_the_stored_original_length_and_ramp(checkpoint: Path, tmp_path: Path):
    stored = {**YARN4, "beta_fast": 16.0, "truncate": False, "attention_factor": 1.3}
    opened = Checkpoint.open(variant(checkpoint, tmp_path / "c", rope_parameters=stored))
    scaling = served_rope(opened, RopeRequest(rule="yarn", factor=8), 4096).scaling
    assert scaling is not None
    assert (scaling.original_length, scaling.beta_fast, scaling.truncate) == (512, 16.0, False)
    assert scaling.attention_factor is None  # the stored one belongs to the stored factor
    asked = served_rope(opened, RopeRequest(rule="yarn", factor=8, beta_fast=24, attention_factor=1.1), 4096).scaling
    assert asked is not None
    assert (asked.beta_fast, asked.attention_factor) == (24, 1.1)


def test_auto_never_goes_below_the_factor_of_training(checkpoint: Path, tmp_path: Path):
    folder = variant(checkpoint, tmp_path / "c", rope_parameters=YARN4)
    groups = rope_groups(Checkpoint.open(folder), RopeRequest(rule="yarn"), ["512", "2k", "4k"])
    assert [(labels, served.scaling.factor) for served, labels in groups if served.scaling] == [
        (["512", "2k"], 4.0),
        (["4k"], 8.0),
    ]
    trained = RopeScaling(rule="yarn", theta=1e6, rotary_dim=32, original_length=2048, factor=2)
    recorded = Checkpoint.open(with_record(variant(checkpoint, tmp_path / "d"), trained))
    assert [
        s.scaling.factor for s, _ in rope_groups(recorded, RopeRequest(rule="yarn"), ["1k", "8k"]) if s.scaling
    ] == [
        2.0,
        4.0,
    ]
    other = served_rope(recorded, RopeRequest(rule="ntk"), 1024)
    assert other.scaling is not None
    assert other.scaling.factor == 1.0
    assert "Trained under yarn, factor 2" in other.warnings[0]


def test_a_config_that_lost_the_rule_of_training_is_refused(checkpoint: Path, tmp_path: Path):
    trained = RopeScaling(rule="yarn", theta=1e6, rotary_dim=32, original_length=2048, factor=2)
    recorded = Checkpoint.open(with_record(variant(checkpoint, tmp_path / "c"), trained))
    with pytest.raises(BadInput, match=r"trained under yarn, factor 2 over 2,048 .* its config says none"):
        served_rope(recorded, RopeRequest(), 1024)
    below = served_rope(recorded, RopeRequest(rule="yarn", factor=1), 1024)
    assert "a lower one loses accuracy" in below.warnings[0]
    moved = served_rope(recorded, RopeRequest(rule="yarn", factor=4, original_length=1024), 1024)
    assert "original length of 1,024; it was trained over 2,048" in moved.warnings[0]
    deliberate = served_rope(recorded, RopeRequest(rule="none"), 1024)
    assert deliberate.scaling is not None


def test_a_config_that_kept_the_rule_of_training_is_served(checkpoint: Path, tmp_path: Path):
    trained = RopeScaling(rule="yarn", theta=1e6, rotary_dim=32, original_length=512, factor=4)
    folder = with_record(variant(checkpoint, tmp_path / "c", rope_parameters=YARN4), trained)
    assert served_rope(Checkpoint.open(folder), RopeRequest(), 2048).scaling == trained


def test_dynamic_scaling_is_plain_within_its_window_and_refused_beyond(checkpoint: Path, tmp_path: Path):
    stored = {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 4.0}
    opened = Checkpoint.open(variant(checkpoint, tmp_path / "c", rope_parameters=stored))
    served = served_rope(opened, RopeRequest(), WINDOW)
    assert served.mapping is not None
    assert served.mapping["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e6}
    with pytest.raises(BadInput, match="dynamic"):
        served_rope(opened, RopeRequest(), WINDOW + 1)
    assert served_rope(opened, RopeRequest(rule="ntk"), 4096).window == 4096


def test_longrope_serves_short_and_long_lengths_with_engines_of_their_own(checkpoint: Path, tmp_path: Path):
    stored = {
        "rope_type": "longrope",
        "rope_theta": 1e6,
        "short_factor": [1.0] * 16,
        "long_factor": [4.0] * 16,
        "original_max_position_embeddings": 512,
    }
    opened = Checkpoint.open(variant(checkpoint, tmp_path / "c", rope_parameters=stored))
    groups = rope_groups(opened, RopeRequest(), ["256", "512", "1k", "2k"])
    assert [(labels, served.window) for served, labels in groups] == [(["256", "512"], 512), (["1k", "2k"], 2048)]


def test_a_rule_that_nobody_can_check_is_refused_unless_replaced(checkpoint: Path, tmp_path: Path):
    stored = {"rope_type": "spiral", "rope_theta": 1e6, "factor": 2.0}
    opened = Checkpoint.open(variant(checkpoint, tmp_path / "c", rope_parameters=stored))
    with pytest.raises(BadInput, match="'spiral'"):
        served_rope(opened, RopeRequest(), 1024)
    replaced = served_rope(opened, RopeRequest(rule="yarn"), 4096)
    assert "own rule spiral is replaced" in replaced.warnings[0]


def test_partial_rotary_survives_the_replacement_of_a_rule(checkpoint: Path, tmp_path: Path):
    from transformers import PhiConfig

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = PhiConfig(**sizes, vocab_size=4096, max_position_embeddings=2048)
    opened = Checkpoint.open(family(checkpoint, tmp_path / "c", config))
    served = served_rope(opened, RopeRequest(rule="yarn", factor=2), 4096)
    assert served.scaling is not None
    assert served.scaling.rotary_dim == 16
    assert served.mapping is not None
    assert served.mapping["rope_parameters"]["partial_rotary_factor"] == 0.5


def test_a_key_that_the_models_class_reads_beside_the_rule_is_kept_under_every_rule(checkpoint: Path, tmp_path: Path):
    from transformers import Ministral3Config

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    stored = {**YARN4, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0}
    config = Ministral3Config(
        **sizes,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=4096,
        max_position_embeddings=2048,
        rope_parameters=stored,
    )
    opened = Checkpoint.open(family(checkpoint, tmp_path / "c", config))
    requests = [RopeRequest(), RopeRequest(rule="yarn", factor=8), RopeRequest(rule="none"), RopeRequest(rule="linear")]
    for request in requests:
        mapping = served_rope(opened, request, 512).mapping
        assert mapping is not None
        assert mapping["rope_parameters"]["llama_4_scaling_beta"] == 0.1
        assert mapping["rope_parameters"]["original_max_position_embeddings"] == 512
        assert not {"mscale", "mscale_all_dim", "type"} & mapping["rope_parameters"].keys()


def test_an_entry_whose_class_reads_more_than_its_rule_is_served_as_stored_and_said_so(
    checkpoint: Path, tmp_path: Path
):
    from transformers import HunYuanDenseV1Config

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    stored = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0, "alpha": 1000.0}
    config = HunYuanDenseV1Config(
        **sizes,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=4096,
        max_position_embeddings=2048,
        rope_parameters=stored,
    )
    opened = Checkpoint.open(family(checkpoint, tmp_path / "c", config))
    served = served_rope(opened, RopeRequest(), 2048)
    assert (served.scaling, served.mapping) == (None, None)
    assert "reads alpha in its own way" in opened.warnings[0]
    with pytest.raises(BadInput, match="alpha"):
        served_rope(opened, RopeRequest(rule="yarn", factor=4), 2048)
    with pytest.raises(BadInput, match="ask for less"):
        served_rope(opened, RopeRequest(), 2049)


def test_a_stored_rule_is_trained_as_it_is_or_gives_way_to_yarn_over_its_original_length(
    checkpoint: Path, tmp_path: Path
):
    opened = Checkpoint.open(variant(checkpoint, tmp_path / "c", rope_parameters={**YARN4, "beta_fast": 16.0}))
    kept, more, less = (training_rope(opened, 500, factor) for factor in (None, 8.0, 2.0))
    assert kept.scaling == opened.rope.scaling  # type: ignore[union-attr]
    for rope, factor in ((more, 8), (less, 2)):
        assert rope.scaling is not None
        assert (rope.scaling.factor, rope.scaling.original_length, rope.scaling.beta_fast) == (factor, 512, 16)
    assert more.warnings == ()
    assert "Trained at factor 4, served at 2: a lower one loses accuracy." in less.warnings
    with pytest.raises(BadInput, match=r"original length 512 x factor 2 = 1,024"):
        training_rope(opened, 1500, 2.0)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def test_a_rule_of_training_whose_formula_is_not_ours_must_still_be_in_the_config(checkpoint: Path, tmp_path: Path):
    opened = Checkpoint.open(variant(checkpoint, tmp_path / "base", rope_parameters=LLAMA3))
    rule = served_rule(opened, training_rope(opened, 512, None))
    assert rule.describe() == "llama3 as stored, over 256"
    kept = Checkpoint.open(with_record(variant(checkpoint, tmp_path / "kept", rope_parameters=LLAMA3), rule))
    assert kept.trained_rope == rule
    assert served_rope(kept, RopeRequest(), 2048).label == "llama3 as stored"
    replaced = served_rope(kept, RopeRequest(rule="yarn", factor=8), 2048)
    assert "own rule llama3 is replaced by yarn, factor 8 over 256" in replaced.warnings[0]
    changed = with_record(variant(checkpoint, tmp_path / "lost", rope_parameters=LLAMA3 | {"factor": 4.0}), rule)
    with pytest.raises(BadInput, match=r"trained under llama3 as stored.* put the base's rope settings back"):
        served_rope(Checkpoint.open(changed), RopeRequest(), 512)


def test_the_identity_of_a_rule_is_its_numbers_not_the_way_it_was_asked_for(
    plain: Checkpoint, checkpoint: Path, tmp_path: Path
):
    opened = Checkpoint.open(variant(checkpoint, tmp_path / "c", rope_parameters=YARN4))
    assert rope_identity(opened, RopeRequest()) == rope_identity(opened, RopeRequest(rule="yarn", factor=4))
    assert rope_identity(plain, RopeRequest()) == rope_identity(plain, RopeRequest(rule="none"))
    assert rope_identity(plain, RopeRequest(rule="yarn")) == rope_identity(
        plain, RopeRequest(rule="yarn", factor="auto")
    )
    assert rope_identity(opened, RopeRequest(rule="yarn"))["factor"] == "auto, at least 4"
    different = [RopeRequest(), RopeRequest(rule="yarn"), RopeRequest(rule="yarn", factor=2), RopeRequest(rule="ntk")]
    assert len({str(rope_identity(plain, request)) for request in different}) == 4


def test_another_original_length_than_the_configs_is_served_and_pointed_out(plain: Checkpoint):
    served = served_rope(plain, RopeRequest(rule="yarn", original_length=1024), 4096)
    assert served.scaling is not None
    assert (served.scaling.original_length, served.scaling.factor) == (1024, 4)
    assert "original length of 1,024; the config has 2,048" in served.warnings[0]


def test_labels_name_rule_and_factor():
    assert [r.label() for r in (RopeRequest(), RopeRequest(rule="yarn"), RopeRequest(rule="linear", factor=2.5))] == [
        "checkpoint",
        "yarn auto",
        "linear x2.5",
    ]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"rule": "cubic"}, "cubic"),
        ({"factor": 4.0}, "--rope yarn"),
        ({"original_length": 512}, "--rope yarn"),
        ({"rule": "none", "factor": 2.0}, "takes no factor"),
        ({"rule": "yarn", "factor": 0.5}, "from 1 up"),
        ({"rule": "yarn", "factor": float("nan")}, "from 1 up"),
        ({"rule": "yarn", "factor": "four"}, "from 1 up"),
        ({"rule": "linear", "factor": 2.0, "beta_fast": 16.0}, "takes no beta_fast"),
        ({"rule": "yarn", "original_length": 0}, "positive"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(request_: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        RopeRequest(**request_)


def test_a_model_without_rotary_positions_takes_no_rule_but_runs_within_its_window(checkpoint: Path, tmp_path: Path):
    from transformers import GPT2Config

    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=4096, n_positions=256)
    opened = Checkpoint.open(family(checkpoint, tmp_path / "gpt2", config))
    assert served_rope(opened, RopeRequest(), 256).mapping is None
    with pytest.raises(BadInput, match=r"gpt2.* has no rotary positions"):
        served_rope(opened, RopeRequest(rule="yarn", factor=4), 512)
    with pytest.raises(BadInput, match="ask for less"):
        served_rope(opened, RopeRequest(), 512)
