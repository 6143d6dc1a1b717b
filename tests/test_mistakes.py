"""Kinds of errors: which labels stand in for the right one, and which text of a conversation came back."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit import options
from evalkit.benchmarks import open_benchmark
from evalkit.benchmarks.cards import load_card
from evalkit.cli.commands import main
from evalkit.records.folder import RunFolder
from evalkit.report.arms import make_arms
from evalkit.report.load import load_runs
from evalkit.report.mistakes import Mistakes, mistakes
from evalkit.runs.config import RunConfig, run_config
from tests.report_runs import holds_to, write_run


def rewritten(folder: Path, change, config=None, **settings) -> Path:
    """A run folder whose records are those of ``write_run``, each changed by its index."""
    source = RunFolder.open(write_run(folder / "before", accuracy=holds_to(8192), **settings))
    made = [change(p, int(p.sample_id)) for p in source.predictions()]
    with RunFolder.start(
        folder / "run", arm=source.arm, config={**source.config, **(config or {})}, fingerprint=source.fingerprint,
        provenance={"command": "x"},
    ) as run:  # fmt: skip
        run.extend(made)
    return folder / "run"


def counted(run: Path) -> list[Mistakes]:
    return mistakes(make_arms(load_runs([run]).runs, baseline=None, trained_length=None))


FACTS = ["Mary went to the garden.", "John went to the office.", "Mary moved to the kitchen."]


def test_wrong_labels_are_counted_with_how_often_they_are_the_last_place_mentioned(tmp_path):
    replies = ["garden", "kitchen", "kitchen", "kitchen", "bathroom", "I do not know", "garden or office or hallway"]

    def change(p, index):
        return replace(p, target="garden", question="Where is Mary?", output=replies[index], metadata={"facts": FACTS})

    (cell,) = counted(rewritten(tmp_path, change, arm="a", subsets=("qa1",), lengths=("4k",), samples=7))
    assert (cell.answers, cell.wrong, cell.no_label, cell.several_labels) == (7, 6, 1, 1)
    assert cell.labels == Counter(kitchen=3, bathroom=1)
    assert (cell.last, cell.could_be_last) == (3, 4)
    assert cell.evenness == pytest.approx(0.5623 / 1.7918, abs=1e-4)  # entropy of 3:1 over that of six labels


def test_where_the_last_place_is_the_right_one_a_wrong_answer_cannot_be_it(tmp_path):
    def change(p, index):
        return replace(p, target="kitchen", question="Where is Mary?", output="garden", metadata={"facts": FACTS})

    (cell,) = counted(rewritten(tmp_path, change, arm="a", subsets=("qa1",), lengths=("4k",), samples=3))
    assert (cell.wrong, cell.could_be_last, cell.last, cell.evenness) == (3, 0, 0, 0.0)


def test_labels_named_evenly_have_an_evenness_of_one():
    labels = load_card("babilong").subsets["qa1"].labels
    cell = Mistakes(arm="a", task="babilong", subset="qa1", length="4k", num_labels=len(labels))
    assert cell.evenness is None
    cell.labels.update(labels)
    assert cell.evenness == pytest.approx(1)


def test_a_failed_sample_is_no_answer(tmp_path):
    def change(p, index):
        return p if index else replace(p, output=None, error="engine: it died", finish_reason="error")

    (cell,) = counted(rewritten(tmp_path, change, arm="a", subsets=("qa1",), lengths=("4k",), samples=5))
    assert cell.answers == 4


def mrcr_config(tmp_path: Path) -> RunConfig:
    return run_config(
        {
            "model": str(tmp_path),
            "backend": "hf",
            "task": "mrcr",
            "lengths": ("8k",),
            "subsets": ("4needle",),
            "samples": 6,
            "seed": 3,
        }
    )


def test_the_text_that_came_back_is_named_though_the_record_holds_only_the_asked_one(tmp_path):
    config = mrcr_config(tmp_path)
    benchmark = open_benchmark("mrcr", config.data, seed=config.seed, count_tokens=None)
    samples = list(benchmark.samples("4needle", "8k", 6))

    def change(p, index):
        sample = samples[index]
        prefix, wanted = sample.metadata["prefix"], sample.supporting[0]
        another = sample.facts[(wanted + 1) % 4]
        distractor = next(benchmark.distractor_texts(sample))
        replies = [
            sample.target,
            prefix + another,
            another,
            "Sorry, I cannot find it anywhere.",
            prefix,
            prefix + distractor,
        ]
        return replace(p, target=sample.target, output=replies[index], metadata=dict(sample.metadata))

    run = rewritten(
        tmp_path,
        change,
        config=options.write(config),
        arm="a",
        task="mrcr",
        subsets=("4needle",),
        lengths=("8k",),
        samples=6,
    )
    (cell,) = counted(run)
    assert (cell.answers, cell.wrong, cell.prefix_hit) == (6, 5, 4)
    assert (cell.another_needle, cell.distractor, cell.other_text, cell.unknown_texts) == (2, 1, 2, 0)


def test_without_the_other_needles_a_wrong_text_is_only_another_text(tmp_path):
    run = rewritten(tmp_path, lambda p, i: p, arm="a", task="mrcr", subsets=("2needle",), lengths=("32k",), samples=10)
    (cell,) = counted(run)
    assert cell.unknown_texts == 10
    assert cell.another_needle == 0
    assert cell.wrong == cell.other_text > 0


def test_the_full_report_has_a_table_and_errors_csv_and_the_plain_one_has_none(tmp_path):
    write_run(tmp_path / "runs" / "a", arm="a", accuracy=holds_to(8192), subsets=("qa1",), lengths=("64k",), samples=20)
    for flags, there in (([], False), (["--full"], True)):
        out = tmp_path / f"plots{len(flags)}"
        result = CliRunner().invoke(main, ["report", str(tmp_path / "runs"), "--out", str(out), *flags])
        assert result.exit_code == 0, result.output
        assert (out / "errors.csv").exists() == there
        assert ("kinds of errors" in (out / "report.md").read_text()) == there
    (row,) = csv.DictReader((out / "errors.csv").open())
    assert int(row["answers"]) == 20
    assert int(row["wrong"]) == int(row["one_label"]) > 0
    assert int(row["first_count"]) >= int(row["second_count"])
