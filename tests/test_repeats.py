"""Asking the same again: recorded apart, never a score, and what it says about noise."""

import base64
import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.records.folder import RunFolder
from evalkit.report.analysis import analyse
from evalkit.report.build import build
from evalkit.report.load import load_runs
from evalkit.report.repeats import repeated
from evalkit.report.samples import collect_samples
from evalkit.runs.status import run_status
from tests.report_runs import holds_to, write_run


def evalkit(*arguments: object) -> str:
    shown = CliRunner().invoke(main, [str(a) for a in arguments])
    assert shown.exit_code == 0, shown.output
    return shown.output


def command(checkpoint: Path, out: Path, *more: object, script: str = "oracle") -> list[str]:
    words = ["run", "--model", checkpoint, "--task", "babilong", "--backend", "scripted", "--script", script]
    words += ["--lengths", "1k,2k", "--subsets", "qa1", "--samples", 4, "--out", out, *more]
    return [str(word) for word in words]


def asked(folder: Path) -> list[tuple[str, str, int]]:
    return [(p.length, p.sample_id, p.repeat) for p in RunFolder.open(folder).predictions()]


def test_every_sample_is_asked_again_behind_all_first_answers_in_another_order(checkpoint, tmp_path):
    shown = evalkit(*command(checkpoint, tmp_path / "r", "--repeat", 3))
    assert "8 samples recorded, 24 asked now" in shown
    order = asked(tmp_path / "r")
    first, second, third = order[:8], order[8:16], order[16:]
    assert [(n, s) for n, s, _ in first] == [(n, f"0000{i}") for n in ("2k", "1k") for i in range(4)]
    assert second == [(n, f"0000{i}", 2) for n in ("2k", "1k") for i in (3, 2, 1, 0)]
    assert [one[:2] for one in third] == [one[:2] for one in second]
    prompts = {}
    for p in RunFolder.open(tmp_path / "r").predictions():
        prompts.setdefault(p.key, set()).add(p.prompt_sha256)
    assert all(len(hashes) == 1 for hashes in prompts.values()), "the very same prompts"


def test_no_score_and_no_export_has_them(checkpoint, tmp_path):
    evalkit(*command(checkpoint, tmp_path / "r", "--repeat", 2))
    evalkit(*command(checkpoint, tmp_path / "once"))
    tables = []
    for name in ("r", "once"):
        folder = RunFolder.open(tmp_path / name)
        assert len(folder.recorded()) == 8
        assert len(folder.frame()) == 8
        loaded = load_runs([tmp_path / name])
        tables.append(loaded.frame.drop(columns=["run"]))
        assert loaded.left_out == ()
    assert tables[0].equals(tables[1])
    assert RunFolder.open(tmp_path / "r").fingerprint == RunFolder.open(tmp_path / "once").fingerprint
    evalkit("export", tmp_path / "r", tmp_path / "x", "--to", "csv")
    exported = next((tmp_path / "x").rglob("*.csv")).read_text()
    assert len(list(csv.reader(exported.splitlines()))) == 1 + 8 * 2, "a line for each scorer"


def test_a_finished_run_takes_repeats_later_and_asks_nothing_twice(checkpoint, tmp_path):
    evalkit(*command(checkpoint, tmp_path / "r"))
    assert "8 samples recorded, 8 asked now" in evalkit(*command(checkpoint, tmp_path / "r", "--repeat", 2))
    assert "8 samples recorded, 0 asked now" in evalkit(*command(checkpoint, tmp_path / "r", "--repeat", 2))
    assert (run_status(tmp_path / "r").done, run_status(tmp_path / "r").expected) == (16, 16)


def test_a_run_that_is_killed_in_its_repeats_goes_on_there(checkpoint, tmp_path):
    words = command(checkpoint, tmp_path / "r", "--repeat", 2, "--samples", 12, script="slow")
    file = tmp_path / "r" / "predictions.jsonl"
    with subprocess.Popen([sys.executable, "-m", "evalkit", *words], stderr=subprocess.DEVNULL) as process:
        while not (file.exists() and file.read_bytes().count(b'"repeat":2') >= 2):
            assert process.poll() is None, "killed before it was done"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    kept = asked(tmp_path / "r")
    assert 26 <= len(kept) < 48
    assert run_status(tmp_path / "r").state == "stopped"
    evalkit(*words)
    everything = asked(tmp_path / "r")
    assert everything[: len(kept)] == kept
    assert len(set(everything)) == len(everything) == 48
    assert run_status(tmp_path / "r").state == "finished"


def test_a_repeat_that_fails_is_asked_again_and_counts_as_failed_until_then(checkpoint, tmp_path):
    words = command(checkpoint, tmp_path / "r", "--repeat", 2, script="failing")
    shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 1
    assert "5 samples failed" in shown.output, "of 16, every third"
    for _ in range(2):
        shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 0, shown.output


def test_less_than_once_is_refused(checkpoint, tmp_path):
    shown = CliRunner().invoke(main, command(checkpoint, tmp_path / "r", "--repeat", 0))
    assert shown.exit_code == 2
    assert "--repeat is 0; each sample is asked at least once." in shown.output
    assert not (tmp_path / "r").exists()


def test_a_dry_run_counts_what_is_asked_again(checkpoint, tmp_path):
    once, thrice = (
        json.loads(evalkit(*command(checkpoint, tmp_path / "r", "--repeat", n, "--dry-run", "--json"))) for n in (1, 3)
    )
    for a, b in zip(once["cells"], thrice["cells"], strict=True):
        assert b["prompt_tokens"] == 3 * a["prompt_tokens"]
        assert b["samples"] == a["samples"]
        assert b["detectable_difference"] == a["detectable_difference"], "the same stories tell no more"


def with_repeats(root: Path, changes: int, failures: int = 0, samples: int = 40) -> Path:
    """A run of which so many repeats have another text; every second of these names another place."""
    source = RunFolder.open(
        write_run(root / "source", arm="a", accuracy=lambda *_: 2.0, subsets=("qa1",), lengths=("8k",), samples=samples)
    )
    first = list(source.predictions())
    again = []
    for number, p in enumerate(first):
        text = p.output
        if number < changes:
            text = "Nowhere." if number % 2 else f"{p.output} Surely."
        again.append(replace(p, repeat=2, output=text))
        if number >= samples - failures:
            again[-1] = replace(p, repeat=2, output=None, error="engine: it died", finish_reason="error")
    config = {**source.config, "scope": {**source.config["scope"], "repeat": 2}}
    with RunFolder.start(
        root / "runs" / "a", arm="a", config=config, fingerprint=source.fingerprint, provenance={"command": "x"}
    ) as run:
        run.extend([*first, *again])
    return root / "runs"


def test_the_noise_floor_is_the_share_of_answers_that_changed_with_its_n(tmp_path):
    (found,) = repeated(analyse(load_runs([with_repeats(tmp_path, changes=8, failures=4)])).arms)
    assert (found.arm, found.length, found.n, found.unanswered) == ("a", "8k", 36, 4)
    assert found.changed.mean == pytest.approx(8 / 36)
    assert found.score_changed.mean == pytest.approx(4 / 36)
    assert 0.11 < found.changed.low < 8 / 36 < found.changed.high < 0.40


def test_the_report_shows_it_and_nothing_where_nothing_was_repeated(tmp_path):
    build([with_repeats(tmp_path, changes=8)], tmp_path / "p")
    (row,) = csv.DictReader((tmp_path / "p" / "repeats.csv").open())
    assert (row["n"], row["changed"], row["score_changed"]) == ("40", "20.0", "10.0")
    text = (tmp_path / "p" / "report.md").read_text()
    assert "answers that changed when the same was asked again" in text
    assert "| a | 8K | 40 | 0 | 20.0 " in text

    write_run(tmp_path / "other" / "a", arm="a", accuracy=holds_to(8192), subsets=("qa1",), lengths=("8k",), samples=5)
    build([tmp_path / "other"], tmp_path / "q")
    assert not (tmp_path / "q" / "repeats.csv").exists()


def test_the_page_shows_the_answers_that_were_scored_and_not_their_repeats(tmp_path):
    folder = write_run(tmp_path / "a", arm="a", accuracy=holds_to(8192), subsets=("qa1",), lengths=("4k",), samples=5)
    before = RunFolder.open(folder)
    first = list(before.predictions())
    again = [replace(p, output="something else", repeat=2) for p in first]
    with RunFolder.start(
        folder, arm="a", config=before.config, fingerprint=before.fingerprint, provenance={"command": "x"}
    ) as run:
        run.extend(again)
    found = collect_samples(analyse(load_runs([folder])))
    content = json.loads(gzip.decompress(base64.b64decode(found.slices[0])))
    assert [row[0] for row in content["runs"]["0"]] == [p.output for p in first]
