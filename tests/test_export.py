"""Runs in the layouts of other tools, read back with what reads them: by the tool itself where there is one."""

import csv
import json
import os
import subprocess
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.records.folder import RunFolder
from evalkit.records.scoring import scored
from evalkit.runs.export import LAYOUTS, _load
from evalkit.types import Key
from tests.report_runs import holds_to, write_run

HALF = "\ud83d"  # of a surrogate pair, as a model may reply it


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory) -> Path:
    """Twelve samples on two subsets and two lengths; four have failed."""
    out = tmp_path_factory.mktemp("results") / "r"
    words = f"run --model {checkpoint} --task babilong --subsets qa1,qa7 --lengths 1k,2k --samples 3 --arm my/arm"
    words += f" --backend scripted --script failing --chat-template --out {out}"
    assert CliRunner().invoke(main, words.split()).exit_code == 1
    return out


def exported(run: Path, to: str, out: Path) -> list[Path]:
    shown = CliRunner().invoke(main, ["export", str(run), "--to", to, str(out)])
    assert shown.exit_code == 0, shown.output
    paths = [Path(line) for line in shown.stdout.splitlines()]
    assert sorted(paths) == sorted(path for path in out.rglob("*") if path.is_file())
    return paths


def means(run: Path, subset: str, length: str) -> dict[str, float]:
    frame = scored(RunFolder.open(run)).table.to_pandas()
    cell = frame[(frame["subset"] == subset) & (frame["length"] == length)]
    return cell.groupby("scorer", observed=True)["value"].mean().to_dict()


def test_a_csv_has_a_row_per_answer_and_scorer_and_no_score_for_a_failure(run, tmp_path):
    (path,) = exported(run, "csv", tmp_path)
    rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    recorded = RunFolder.open(run).recorded()
    assert len(rows) == 2 * len(recorded) == 24
    for row in rows:
        key = next(key for key in recorded if list(key) == [row[n] for n in ("task", "subset", "length", "sample_id")])
        assert row["arm"] == "my/arm"
        assert row["output"] == (recorded[key].output or "")
        assert (row["value"] == "") == (recorded[key].error is not None)
    assert sum(row["value"] == "" for row in rows) == 8


def test_babilongs_layout_is_imported_again_as_the_same_answers(run, tmp_path):
    paths = exported(run, "babilong", tmp_path / "evals")
    names = {path.relative_to(tmp_path / "evals").as_posix() for path in paths}
    assert "my_arm/qa1_1k_instruction_yes_examples_yes_post_prompt_yes_chat_template_yes.csv" in names
    shown = CliRunner().invoke(main, ["import", str(tmp_path / "evals"), "--out", str(tmp_path / "again")])
    assert shown.exit_code == 0, shown.output
    (folder,) = [path.parent for path in (tmp_path / "again").rglob("run.json")]

    def answers(path: Path) -> list[tuple[str, ...]]:
        recorded = RunFolder.open(path).recorded().values()
        return sorted((p.subset, p.length, p.question, p.target, p.output) for p in recorded if p.error is None)

    assert answers(folder) == answers(run)
    assert len(answers(folder)) == 8
    assert means(folder, "qa1", "1k") == means(run, "qa1", "1k")


def test_the_harness_layout_has_means_errors_and_a_line_per_answered_sample(run, tmp_path):
    paths = exported(run, "lm-eval", tmp_path)
    (results,) = [path for path in paths if path.name.startswith("results_")]
    assert results.parent == tmp_path / "my__arm"
    found = json.loads(results.read_text())
    cell = found["results"]["babilong_qa7_2k"]
    expected = means(run, "qa7", "2k")
    assert cell["official,none"] == pytest.approx(expected["official"])
    assert cell["corrected,none"] == pytest.approx(expected["corrected"])
    assert found["n-samples"]["babilong_qa7_2k"] == {"original": 3, "effective": 2}
    (samples,) = [path for path in paths if "_babilong_qa7_2k_" in path.name]
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(lines) == 2
    assert all(line["resps"] == [[line["target"]]] for line in lines)
    assert [line["official"] for line in lines] == [line[line["metrics"][0]] for line in lines]


def read_by(layout: str, folder: Path) -> Any:
    """What the package of a layout sees in a folder; see export_readers.py."""
    python = os.environ.get("EVALKIT_READERS_PYTHON")
    if not python:
        pytest.skip("EVALKIT_READERS_PYTHON names no Python with inspect-ai and lm-eval; .ci/run makes one")
    script = Path(__file__).with_name("export_readers.py")
    done = subprocess.run(
        [python, "-I", str(script), layout, str(folder)], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ours(run: Path) -> dict[Key, dict[str, Any]]:
    """Target, reply and scores of each answered sample."""
    values: dict[Key, dict[str, float]] = {}
    for row in scored(RunFolder.open(run)).table.to_pylist():
        if row["value"] is not None:
            key = Key(row["task"], row["subset"], row["length"], row["sample_id"])
            values.setdefault(key, {})[row["scorer"]] = row["value"]
    return {
        key: {"target": p.target, "output": p.output.replace(HALF, "?"), "scores": values[key]}
        for key, p in RunFolder.open(run).recorded().items()
        if p.error is None
    }


@pytest.fixture(params=["failures", "another task and halves of characters"])
def readable(request, run, tmp_path) -> Path:
    if request.param == "failures":
        return run
    common = {"task": "mrcr", "subsets": ("2needle", "4needle"), "lengths": ("4k", "8k"), "samples": 3}
    return write_run(tmp_path / "r", arm="my/arm", accuracy=holds_to(4096), reply=lambda p: p.target + HALF, **common)


def test_the_harness_itself_sees_our_samples_and_scores_and_prints_their_table(readable, tmp_path):
    exported(readable, "lm-eval", tmp_path / "out")
    read = read_by("lm-eval", tmp_path / "out")
    expected = ours(readable)
    assert read["model"] == "my/arm"
    assert read["samples"] == {f"{k.task}_{k.subset}_{k.length}/{k.sample_id}": one for k, one in expected.items()}
    cells = {f"{k.task}_{k.subset}_{k.length}": (k.subset, k.length) for k in RunFolder.open(readable).recorded()}
    assert set(read["results"]) == set(read["counted"]) == set(cells)
    for name, (subset, length) in cells.items():
        asked = [k for k in RunFolder.open(readable).recorded() if (k.subset, k.length) == (subset, length)]
        answered = [k for k in asked if k in expected]
        assert read["counted"][name] == {"original": len(asked), "effective": len(answered)}
        assert read["results"][name]["sample_len"] == len(answered)
        for scorer, mean in means(readable, subset, length).items():
            assert read["results"][name][f"{scorer},none"] == pytest.approx(mean)
        assert name in read["table"]


def test_inspect_itself_sees_our_samples_and_scores(readable, tmp_path):
    exported(readable, "inspect", tmp_path / "out")
    read = read_by("inspect", tmp_path / "out")
    recorded = RunFolder.open(readable).recorded()
    expected = {f"{k.subset}/{k.length}/{k.sample_id}": one for k, one in ours(readable).items()}
    assert (read["task"], read["status"], read["model"]) == (next(iter(recorded)).task, "success", "evalkit/my/arm")
    assert read["samples"] == expected
    assert read["table"] == {name: one["scores"] for name, one in expected.items()}
    assert read["failed"] == sorted(
        f"{k.subset}/{k.length}/{k.sample_id}" for k, p in recorded.items() if p.error is not None
    )
    assert read["counted"] == [len(recorded), len(expected)]
    for scorer, mean in read["means"].items():
        assert mean == pytest.approx(fmean(one["scores"][scorer] for one in expected.values()))
    assert set(read["scored"]) == set(read["means"])
    assert all(counts == [len(expected), len(recorded) - len(expected)] for counts in read["scored"].values())


@pytest.mark.parametrize("to", ["lm-eval", "inspect", "babilong", "csv"])
@pytest.mark.parametrize("arm", [".", "..", "../b"])
def test_no_name_of_an_arm_or_a_subset_leads_out_of_the_folder_that_was_given(tmp_path, to, arm):
    task, subset = ("babilong", "qa1") if to == "babilong" else ("mrcr", "../../2needle")
    write_run(
        tmp_path / "r", arm=arm, accuracy=holds_to(1024), task=task, subsets=(subset,), lengths=("1k",), samples=2,
        config={"setting": "../../x"},
    )  # fmt: skip
    files = LAYOUTS[to](_load(tmp_path / "r"))
    assert files
    for name in files:
        assert not {".", ".."} & set(name.split("/")), name
        assert name.count("/") <= 1


@pytest.mark.parametrize("to", ["lm-eval", "inspect", "babilong", "csv"])
def test_a_reply_that_is_no_sound_text_can_be_exported(tmp_path, to):
    write_run(tmp_path / "r", arm="a", accuracy=holds_to(8192), lengths=("4k",), samples=2, reply=lambda p: HALF)
    for path in exported(tmp_path / "r", to, tmp_path / "out"):
        path.read_text(encoding="utf-8")


def test_what_a_layout_has_no_place_for_is_refused(tmp_path):
    common = {"task": "mrcr", "subsets": ("2needle",), "lengths": ("4k",), "samples": 2}
    write_run(tmp_path / "r", arm="a", accuracy=holds_to(8192), **common)
    for to, message in (("babilong", "is of mrcr"), ("xls", "the layouts are lm-eval, inspect, babilong, csv")):
        shown = CliRunner().invoke(main, ["export", str(tmp_path / "r"), "--to", to, str(tmp_path / "out")])
        assert shown.exit_code == 2
        assert message in shown.output
    assert len(exported(tmp_path / "r", "lm-eval", tmp_path / "out")) == 2
