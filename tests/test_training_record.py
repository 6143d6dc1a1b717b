"""``evalkit_training.json``: one reader, which names file and field, and reads what earlier versions wrote."""

import json
from dataclasses import replace

import pytest

from evalkit.errors import BadInput
from evalkit.models.rope.formulas import RopeScaling
from evalkit.models.rope.stored import KeptRule
from evalkit.models.training_record import TrainedPositions, TrainingRecord

ROPE = RopeScaling(rule="yarn", theta=1e4, rotary_dim=32, original_length=128, factor=4)
RECORD = TrainingRecord(
    recipe="randomized-yarn",
    trained_length=128,
    rope=ROPE,
    seed=0,
    positions=TrainedPositions(kind="randomized", stages=(1.0, 2.0), range_length=128),
    optimization={"adam_beta2": 0.999, "epochs": 1, "precision": "float32"},
    environments=({"processor": {"model": "a"}},),
)

# Of the committed study (results/reference/tiny), shortened.
SCHEMA_1 = """{"schema": 1, "recipe": "randomized-yarn", "trained_length": 128, "positions": {"kind": "randomized",
"stages": [16], "mixed": true, "per_batch": false}, "largest_position": 2047, "rope": {"rule": "yarn", "theta": 10000.0,
"rotary_dim": 32, "original_length": 128, "factor": 4, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": true,
"attention_factor": null}, "base": {"name": "base", "weights": "d8b3", "config": "1fb6"}, "data": {"task": "babilong",
"subsets": ["qa1"], "samples": 4800, "shortest": 128, "longest": 128, "seed": 1000000007, "rows": [], "options":
{"without": ["instruction"], "max_new_tokens": "2"}, "examples": 4800, "sha256": "5c55", "leakage": {"trained": 4800,
"evaluated": 100, "shared": 0, "dropped": 0, "found": "0 of 100 evaluation items recur among 4,800 training items."}},
"optimization": {"epochs": 1, "precision": "auto"}, "lora": null, "seed": 0, "steps": 300, "final_loss": 0.33,
"versions": {"torch": "2.13.0+cpu"}}"""


def test_what_is_written_is_read_back(tmp_path):
    RECORD.write(tmp_path / "record.json")
    assert TrainingRecord.read(tmp_path / "record.json") == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    assert TrainingRecord.read(tmp_path / "none.json") is None


def test_a_record_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / "record.json").write_text(SCHEMA_1)
    record = TrainingRecord.read(tmp_path / "record.json")
    assert record is not None
    assert (record.schema, record.rope, record.final_loss, record.tokens) == (1, ROPE, 0.33, None)
    assert record.positions == TrainedPositions(kind="randomized", stages=(16.0,), mixed=True)
    assert record.data is not None
    assert record.data.leakage is not None
    assert record.data.leakage.found.startswith("0 of 100")


def test_a_rule_that_is_not_ours_is_read_back(tmp_path):
    kept = KeptRule(type="llama3", parameters={"rope_type": "llama3", "factor": 4.0}, original_length=64)
    record = replace(RECORD, rope=kept, rope_warnings=("Replaced.",))
    record.write(tmp_path / "record.json")
    assert TrainingRecord.read(tmp_path / "record.json") == record
    assert json.loads((tmp_path / "record.json").read_text())["rope"]["rule"] == "as stored"


def test_two_trainings_differ_in_what_decides_the_weights_alone():
    finished = replace(RECORD, steps=9, tokens=99, final_loss=0.5, environments=())
    assert finished.difference(RECORD) is None
    assert replace(RECORD, seed=1).difference(RECORD) == "its seed is 1, not 0"
    other = replace(RECORD, optimization={**RECORD.optimization, "precision": "bfloat16"})
    assert other.difference(RECORD) == "its optimization.precision is 'bfloat16', not 'float32'"
    assert replace(RECORD, lora={"rank": 4}).difference(RECORD) is not None
    assert RECORD.difference(replace(RECORD, optimization={**RECORD.optimization, "seed": 0})) == (
        "its optimization.seed is None, not 0"
    )


def changed(**values):
    return json.dumps(RECORD.to_json() | values)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "record.json is not JSON: line 1, "),
        ("[]", "record.json holds list; it should be a JSON object"),
        ("{}", "record.json is no training record: recipe is missing"),
        (changed(trained_length="128"), "trained_length is '128'; input should be a valid integer"),
        (changed(trained_length=int("9" * 50)), "trained_length is no number of tokens from 1 up"),
        (changed(trained_length=int("9" * 4000)), "has a whole number of 4,000 digits"),
        (changed(trained_length=0), "trained_length is no number of tokens from 1 up"),
        (changed(seed=[1]), r"seed is \[1\]; input should be a valid integer"),
        (changed(rope={"rule": "yarn"}), "rope.theta is missing"),
        (changed(rope=ROPE.to_json() | {"rule": "spin"}), "rope.rule is 'spin'; input should be 'none', 'linear'"),
        (changed(rope=ROPE.to_json() | {"factor": 0.5}), "A rope factor is a number from 1 up, or auto; got 0.5"),
        (changed(rope={"rule": "as stored", "type": "llama3"}), "rope.parameters is missing"),
        (changed(rope="yarn"), "rope is 'yarn'; input should be an object"),
        (changed(positions={"stages": "all"}), "positions.stages is 'all'"),
        (changed(data={"task": "mrcr"}), "data.subsets is missing"),
        (changed(environments={"a": 1}), "environments is "),
        (changed(schema=3), "record.json has schema 3; this evalkit reads up to 2"),
        ("[" * 100_000, "record.json has lists or objects nested deeper than 100 levels"),
        ("9" * 5000, "record.json has a whole number of 5,000 digits"),
    ],
)
def test_what_is_no_record_is_refused_with_file_and_field(tmp_path, content, says):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(BadInput, match=says) as refused:
        TrainingRecord.read(tmp_path / "record.json")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(tmp_path))
