"""The Python interface, used as in a notebook."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evalkit
from evalkit.errors import BadInput
from tests.report_runs import holds_to, training, write_run

SCRIPTED = {"backend": "scripted", "script": "oracle", "samples": 2}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> "evalkit.Results":
    root = tmp_path_factory.mktemp("results")
    common = {"lengths": ("4k", "8k", "16k"), "samples": 30}
    write_run(root / "plain", arm="plain", accuracy=holds_to(8192), training=training("plain"), **common)
    write_run(root / "ryarn", arm="ryarn", accuracy=holds_to(65536), training=training("randomized-yarn"), **common)
    write_run(root / "base", arm="base", accuracy=holds_to(2048), **common)
    return evalkit.load(root)


def test_a_run_is_planned_carried_out_and_loaded(checkpoint, tmp_path):
    out = tmp_path / "results" / "r"
    plan = evalkit.plan(model=checkpoint, task="babilong", lengths=["1k", 2048], subsets="qa1,qa2", out=out, **SCRIPTED)
    assert "qa1, qa2 at 1k, 2k, 2 samples a cell" in repr(plan)
    assert not out.exists()
    done = evalkit.run(plan, quiet=True)
    assert (done.asked, done.recorded, done.failed) == (8, 8, 0)
    assert evalkit.run(plan, quiet=True).asked == 0
    loaded = evalkit.load(tmp_path / "results")
    per_scorer = loaded.frame.groupby("scorer", observed=True).size()
    assert dict(per_scorer) == {"official": 8, "corrected": 8}
    assert set(loaded.frame["value"]) == {1.0}
    assert repr(loaded) == f"<Results: 1 run, arms {loaded.arms[0]!r}, 8 answers>"


@pytest.mark.parametrize(
    "lengths",
    ["1k,2k", ("1k", "2k"), [1024, 2048], {"2k", 1024}, np.array([1024, 2048])],
    ids=["text", "tuple", "numbers", "set", "numpy"],
)
def test_lengths_are_texts_or_numbers_in_any_collection(checkpoint, lengths):
    plan = evalkit.plan(model=str(checkpoint), task="babilong", lengths=lengths, subsets=("qa1",), **SCRIPTED)
    assert plan.config.lengths == ("1k", "2k")


def test_one_value_stands_for_a_list_of_one_and_none_for_the_default(checkpoint):
    given = {"depth": 0.5, "original_length": "1k", "rope": "yarn", "factor": 2, "seed": np.int64(3)}
    plan = evalkit.plan(model=checkpoint, task="babilong", lengths=2048, subsets=None, **given, **SCRIPTED)
    config = plan.config
    assert (config.lengths, config.data.depths, config.seed) == (("2k",), (0.5,), 3)
    assert (config.rope.original_length, config.rope.factor) == (1024, 2)
    assert plan.subsets == ("qa1", "qa2", "qa3", "qa4", "qa5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample": 3}, "unknown setting sample; did you mean samples"),
        ({"samples": 2.5}, "samples is 2.5"),
        ({"lengths": "1q"}, "Length '1q' is not a number of tokens"),
        ({"needles": 2}, "is an option of the task mrcr"),
        ({"lengths": None}, "has no lengths"),
    ],
)
def test_a_setting_that_is_wrong_is_refused_by_name(checkpoint, settings, message):
    right = {"model": checkpoint, "task": "babilong", "lengths": "1k", "backend": "scripted"}
    with pytest.raises(BadInput, match=message):
        evalkit.plan(**{**right, **settings})


def test_settings_beside_a_plan_are_refused(checkpoint, tmp_path):
    plan = evalkit.plan(model=checkpoint, task="babilong", lengths="1k", out=tmp_path / "r", **SCRIPTED)
    with pytest.raises(BadInput, match=r"give samples to evalkit\.plan"):
        evalkit.run(plan, samples=3)


def test_an_arm_is_compared_with_another_in_points(results):
    found = results.compare("ryarn", "plain").set_index(["scorer", "endpoint"])
    primary = found.loc[("official", "primary")]
    frame = results.frame[(results.frame["scorer"] == "official") & (results.frame["length"] == "16k")]
    means = 100 * frame.groupby("arm", observed=True)["value"].mean()
    assert primary["difference"] == pytest.approx(means["ryarn"] - means["plain"])
    assert primary["ci_low"] < primary["difference"] < primary["ci_high"]
    assert primary["verdict"] == "better"
    assert list(found.loc["official"].index) == ["primary", "4k", "8k", "16k"]
    back = results.compare("plain", "ryarn").set_index(["scorer", "endpoint"]).loc[("official", "primary")]
    assert (back["difference"], back["verdict"]) == (pytest.approx(-primary["difference"]), "worse")


def test_what_cannot_be_compared_is_refused(results):
    with pytest.raises(BadInput, match=r"There is no arm 'yarn'; there are 'base', 'plain', 'ryarn'"):
        results.compare("yarn", "plain")
    with pytest.raises(BadInput, match="is one arm"):
        results.compare("plain", "plain")


def test_the_curve_is_a_figure_of_the_arms(results):
    from matplotlib.figure import Figure

    figure = results.curve()
    assert isinstance(figure, Figure)
    assert {text.get_text() for text in figure.axes[0].texts} >= {"plain", "ryarn", "base"}
    with pytest.raises(BadInput, match="There is no task 'mrcr' in these runs; there are babilong"):
        results.curve("mrcr")


def test_the_report_is_the_one_that_the_command_writes(results, tmp_path):
    from click.testing import CliRunner

    from evalkit.cli.commands import main

    results.report(tmp_path / "a")
    CliRunner().invoke(main, ["report", str(results.paths[0]), "--out", str(tmp_path / "b")], catch_exceptions=False)
    for name in ("summary.csv", "comparisons.csv", "arms.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_no_name_is_hidden_by_a_package_once_everything_is_imported():
    code = (
        "import evalkit, pkgutil, importlib; assert callable(evalkit.run); "
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(evalkit.__path__, 'evalkit.') "
        " if m.name not in ('evalkit.__main__', 'evalkit.models.backends.vllm.worker')]; "
        "print(*[type(getattr(evalkit, name)).__name__ for name in ('plan', 'run', 'load', 'Results')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert shown.stdout.split() == ["function", "function", "function", "type"]


def test_a_name_that_is_none_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="has no attribute 'runn'"):
        evalkit.runn  # noqa: B018
    assert {"plan", "run", "load"} <= set(dir(evalkit))
