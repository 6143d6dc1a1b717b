"""A file of arms and tables of questions becomes runs, which one command asks, goes on with, and lets grow."""

import re
import shutil

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.records.folder import RunFolder, find_run_folders
from evalkit.runs.config import run_config
from evalkit.study.evaluation import load_evaluation

STUDY = """
[arms]
plain = {{ model = "{model}" }}
"yarn, right" = {{ model = "{model}", rope = "yarn", factor = 2, script = "oracle" }}

[[evaluation]]
task = "babilong"
subsets = ["qa1"]
lengths = "512,1k"
samples = 2
backend = "scripted"
script = "wrong"

[[evaluation]]
task = "mrcr"
needles = [2]
lengths = "1k"
samples = 1
backend = "scripted"
script = "wrong"
"""


@pytest.fixture
def study(checkpoint, tmp_path, monkeypatch):
    """A function that writes the study, with some of its text replaced, into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(*changes, text=STUDY):
        text = text.format(model=checkpoint)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "study.toml").write_text(text)
        return tmp_path / "study.toml"

    return write


def evalkit(*arguments):
    return CliRunner().invoke(main, [str(one) for one in arguments])


def asked():
    """How many answers each arm has in each task, and the rope rule it was served under."""
    folders = map(RunFolder.open, find_run_folders("results"))
    return {(one.arm, one.config["task"], one.config["rope"]): len(list(one.recorded())) for one in folders}


def test_one_command_asks_every_arm_every_table_and_repeated_asks_nothing_again(study):
    study()
    done = evalkit("run", "study.toml")
    assert done.exit_code == 0, done.output
    assert asked() == {
        ("plain", "babilong", "checkpoint"): 4,
        ("yarn, right", "babilong", "yarn"): 4,
        ("plain", "mrcr", "checkpoint"): 1,
        ("yarn, right", "mrcr", "yarn"): 1,
    }
    assert {path.parent.name for path in find_run_folders("results")} == {"study"}
    tables = done.stdout
    assert tables.index("BABILong: official score") < tables.index("MRCR: official score")
    assert "4 samples recorded, 4 asked now" in done.stderr
    again = evalkit("run", "study.toml")
    assert "0 asked now" in again.stderr
    assert again.stderr.count(" 0 asked now") == 4
    assert again.stdout == tables


def test_what_is_recorded_stays_when_the_file_asks_for_more(study):
    study()
    assert evalkit("run", "study.toml").exit_code == 0
    arm = '"third" = {{ model = "{model}", script = "empty" }}\n\n[[evaluation]]'
    study(text=STUDY.replace("samples = 2", "samples = 3").replace("[[evaluation]]", arm, 1))
    grown = evalkit("run", "study.toml", "--quiet")
    assert (grown.exit_code, grown.output) == (0, "")
    assert [number for (arm, task, _), number in asked().items() if task == "babilong"] == [6, 6, 6]
    lines = evalkit("run", "study.toml").stderr
    assert lines.count(" 0 asked now") == 6


def test_what_is_typed_takes_the_place_of_what_the_file_says(study, tmp_path):
    study()
    done = evalkit("run", "study.toml", "--lengths", "512", "--samples", "1", "--script", "empty", "--out", "elsewhere")
    assert done.exit_code == 0, done.output
    folders = [RunFolder.open(path) for path in find_run_folders("elsewhere")]
    assert len(folders) == 4
    assert all(len(list(one.recorded())) == 1 and one.config["script"] == "empty" for one in folders)
    assert not (tmp_path / "results").exists()


def test_the_same_arms_can_be_reported_from_the_folder_of_the_study(study):
    study()
    evalkit("run", "study.toml", "--quiet")
    report = evalkit("report", "results/study", "--baseline", "plain")
    assert report.exit_code == 0, report.output
    assert "yarn, right" in report.output


def test_a_printed_run_is_such_a_file(study, checkpoint, tmp_path):
    typed = ("--model", checkpoint, "--task", "babilong", "--lengths", "1k,512", "--depth", "0,0.5", "--samples", 2)
    backend = ("--backend", "scripted", "--script", "oracle", "--rope", "yarn", "--factor", 2)
    study(text=evalkit("run", *typed, *backend, "--print-config").stdout)
    (read,) = load_evaluation(tmp_path / "study.toml", {}).runs
    assert read == run_config(
        {
            "model": str(checkpoint), "task": "babilong", "lengths": "512,1k", "depth": [0, 0.5], "samples": 2,
            "backend": "scripted", "script": "oracle", "rope": "yarn", "factor": 2,
        }
    )  # fmt: skip
    once = evalkit("run", *typed, *backend)
    again = evalkit("run", "study.toml")
    assert again.exit_code == 0, again.output
    assert "0 asked now" in again.stderr
    assert once.stderr.splitlines()[0] == again.stderr.splitlines()[0], "the same run folder"


def test_an_arm_that_cannot_answer_is_named_at_the_end_and_the_others_are_asked(study, checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    save_file({name: one * float("nan") for name, one in weights.items()}, tmp_path / "nan" / "model.safetensors")
    text = STUDY.replace('"scripted"\nscript = "wrong"', '"hf"').replace(', script = "oracle"', "")
    study(text=text.replace('"{model}"', '"nan"', 1))
    done = evalkit("run", "study.toml")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("evalkit: 2 of 4 runs ended early (results/study/plain-")
    assert re.search(r"^results/study/plain-mrcr-\w+: nan gives no finite logits", done.stderr, re.MULTILINE)
    assert {key[:2]: number for key, number in asked().items() if number} == {
        ("yarn, right", "babilong"): 4,
        ("yarn, right", "mrcr"): 1,
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[arms]", "[arms", r"study\.toml is not a TOML file"),
        ("[arms]", "[arm]", r"study\.toml has the unknown setting arm; did you mean arms\?"),
        ('plain = { model = "', 'plain = { mdel = "', r"study\.toml, arm 'plain' has no model; name its checkpoint"),
        ('plain = { model = "', 'plain = { task = "mrcr", model = "', r"arm 'plain' has the setting task, but the"),
        ("factor = 2", 'factor = "two"', r"study\.toml, arm 'yarn, right': factor is 'two'"),
        ("factor = 2", "facto = 2", r"arm 'yarn, right' has the unknown setting facto; did you mean factor\?"),
        ('rope = "yarn"', 'rope = "none"', r"arm 'yarn, right': Rope rule none .* no factor"),
        ('"yarn, right"', "PLAIN", r"study\.toml: 'plain' and 'PLAIN' of its arms would share the folder plain"),
        ('"yarn, right" = {', '"yarn, right" = 3 # {', r"study\.toml: arms is "),
        ("samples = 2", 'samples = "2"', r"study\.toml \[\[evaluation\]\] 1: samples is '2'"),
        ("samples = 1", "samples = 0", r"study\.toml \[\[evaluation\]\] 2: --samples is 0; ask at least 1"),
        ("samples = 1", "depth = [0]", r"\[\[evaluation\]\] 2: --depth is an option of the task babilong"),
        ("samples = 1", 'out = "x"', r"\[\[evaluation\]\] 2 has the setting out, but each of \[arms\] has its own"),
        ('task = "mrcr"', "", r"study\.toml \[\[evaluation\]\] 2 has no task; name one of babilong, mrcr"),
        ("[arms]", "seeds = [0]\n[arms]", r"study\.toml has seeds, .*: evalkit reproduce \S*study\.toml"),
        ("[arms]", "[training]\n[arms]", r"study\.toml has training, .*: evalkit reproduce \S*study\.toml"),
    ],
)  # fmt: skip
def test_what_the_file_cannot_say_is_refused_in_one_sentence_with_file_and_table(study, old, new, message):
    with pytest.raises(BadInput, match=message) as refusal:
        load_evaluation(study((old, new)), {})
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "typed", "message"),
    [
        ("[arms]\na = {{ model = 'x' }}", (), "has no evaluation"),
        ("evaluation = []\n[arms]\na = {{ model = 'x' }}", (), r"has no \[evaluation\], so there is nothing to ask"),
        ("[arms]\n[evaluation]\ntask = 'mrcr'", (), r"has no arm in \[arms\], so there is nothing to ask"),
        ("task = 'babilong'\nlengths = '1k'", (), "study.toml has no model"),
        (STUDY, ("--model", "other"), "The command line has the setting model, but study.toml names them itself"),
        (STUDY, ("--needles", "2"), r"\[\[evaluation\]\] 1: --needles is an option of the task mrcr"),
        (STUDY, ("--lengths", "8k"), "8k = 8,192 tokens are not covered"),
        (STUDY, ("--json",), "--json prints a plan; add --dry-run"),
        (STUDY, ("--print-config",), "study.toml is a file of 4"),
        (STUDY.replace('"mrcr"\nneedles = [2]', '"babilong"\nsubsets = ["qa2"]'), (), "would share the run folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_changes_nothing_on_disk(study, tmp_path, text, typed, message):
    study(text=text)
    refused = evalkit("run", "study.toml", *typed)
    assert refused.exit_code == 2
    assert message.replace("\\", "") in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def test_a_checkpoint_in_the_place_of_a_file_and_a_file_that_is_not_there_are_refused(study, checkpoint):
    study()
    assert f"a checkpoint is named by --model {checkpoint}" in evalkit("run", checkpoint).stderr
    assert "lost.toml cannot be read (No such file or directory)" in evalkit("run", "lost.toml").stderr
    assert "to ask what it says: evalkit run study.toml" in evalkit("reproduce", "study.toml").stderr


def test_the_cost_of_every_run_is_told(study):
    import json

    study()
    text = evalkit("run", "study.toml", "--dry-run").stdout
    assert text.count("Engine loads, at most one per rope rule: 1") == 4
    told = json.loads(evalkit("run", "study.toml", "--dry-run", "--json").stdout)
    assert [one["arm"] for one in told] == ["plain", "yarn, right"] * 2
