"""A new benchmark is a card, a file and a line; a new backend a file and a line: every command knows them then."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit.benchmarks import TASKS, Task, cards
from evalkit.cli.commands import main
from evalkit.models.backends import BACKENDS, BackendKind
from evalkit.study.experiment import load_experiment
from evalkit.study.steps import plan_steps
from evalkit.study.study import Study

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def _plugged_in(tmp_path, monkeypatch):
    """The card in a folder of cards, and the two lines."""
    folder = tmp_path / "cards"
    shutil.copytree(Path(__file__).parents[1] / "tasks", folder)
    shutil.copy(PLUGINS / "echo.toml", folder)
    monkeypatch.setattr(cards, "_folder", lambda: folder)
    cards.load_card.cache_clear()
    monkeypatch.setitem(TASKS, "echo", Task("tests.plugins.echo_benchmark"))
    monkeypatch.setitem(BACKENDS, "parrot", BackendKind("tests.plugins.parrot_backend"))
    yield
    cards.load_card.cache_clear()


def evalkit(*arguments):
    shown = CliRunner().invoke(main, [str(a) for a in arguments])
    assert shown.exit_code == 0, shown.output
    return shown.output


@pytest.mark.usefixtures("_plugged_in")
def test_a_benchmark_and_a_backend_of_somebody_elses_go_through_every_command(checkpoint, tmp_path):
    results = tmp_path / "results"
    common = ("run", "--model", checkpoint, "--task", "echo", "--backend", "parrot", "--lengths", "256,512")
    assert "echo" in evalkit("tasks")
    assert "--filler" in evalkit("run", "--help")
    assert "--mood" in evalkit("run", "--help")

    good = (*common, "--filler", "so", "--arm", "good", "--out", results / "good")
    assert "In all 6 samples" in evalkit(*good, "--dry-run")
    assert "6 samples recorded, 6 asked now" in evalkit(*good)
    assert "6 samples recorded, 0 asked now" in evalkit(*good), "resumed"
    assert "12 samples recorded, 6 asked now" in evalkit(*good, "--subsets", "small,large"), "grown"
    evalkit(*common, "--filler", "so", "--mood", "bad", "--arm", "bad", "--out", results / "bad")
    stored = json.loads((results / "bad" / "run.json").read_text())
    assert stored["config"]["filler"] == "so"
    assert stored["fingerprint"]["parts"]["engine.mood"] == "bad"

    (results / "good" / "scores.parquet").unlink()
    evalkit("score", results / "good")
    assert (results / "good" / "scores.parquet").is_file()
    shown = evalkit("show", results / "good", "small/256/00001")
    assert "(rebuilt: the same)" in shown
    assert "so so so" in shown
    assert "good" in evalkit("report", results, "--out", tmp_path / "plots")
    assert "official" in (tmp_path / "plots" / "summary.csv").read_text()
    assert "+100" in evalkit("compare", results / "good", results / "bad")


@pytest.mark.usefixtures("_plugged_in")
def test_options_of_other_tasks_and_backends_are_refused_by_name(checkpoint, tmp_path):
    def refused(*arguments):
        shown = CliRunner().invoke(main, ["run", "--model", str(checkpoint), "--lengths", "256", *arguments])
        assert shown.exit_code == 2, shown.output
        return shown.output

    said = refused("--task", "echo", "--backend", "parrot", "--depth", "0.5")
    assert "--depth is an option of the task babilong, and this run uses the task echo" in said
    said = refused("--task", "babilong", "--backend", "hf", "--mood", "bad")
    assert "--mood is an option of the backend parrot, and this run uses the backend hf" in said


@pytest.mark.usefixtures("_plugged_in")
def test_a_benchmark_of_somebody_elses_can_be_trained_on(checkpoint, tmp_path):
    common = ("--task", "echo", "--subsets", "small", "--filler", "so", "--samples", 4, "--longest", 128)
    training = ("--recipe", "plain", "--epochs", 1, "--accumulation", 1, "--batch-size", 4)
    evalkit("train", "--base", checkpoint, "--out", tmp_path / "trained", *common, *training)
    record = json.loads((tmp_path / "trained" / "evalkit_training.json").read_text())
    assert record["data"]["task"] == "echo"


STUDY = """
about = "Somebody else's benchmark, answered by somebody else's backend."
base = "{base}"
seeds = [0]
[training]
task = "echo"
subsets = ["small"]
filler = "so"
samples = 4
longest = 128
epochs = 1
batch_size = 4
accumulation = 1
[arms]
plain = {{ recipe = "plain" }}
[evaluation]
task = "echo"
subsets = ["large"]
filler = "so"
lengths = "256"
samples = 2
seed = 7
backend = "parrot"
mood = "bad"
[[curves]]
arm = "plain"
rope = "none"
"""


@pytest.mark.usefixtures("_plugged_in")
def test_a_study_of_somebody_elses_benchmark_is_reproduced(checkpoint, tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY.format(base=checkpoint))
    folders = ("--out", tmp_path / "r", "--plots", tmp_path / "p")
    planned = evalkit("reproduce", tmp_path / "mine.toml", *folders, "--dry-run")
    assert "--filler so" in planned
    assert "--mood bad" in planned
    study = Study(experiment=load_experiment(str(tmp_path / "mine.toml")), root=tmp_path / "r", plots=tmp_path / "p")
    for step in plan_steps(study, (0,)):  # in this process, which knows them; 'reproduce' starts others
        step.carry_out(lambda done, total: None)
    assert "plain" in (tmp_path / "p" / "summary.csv").read_text()
