"""How far a run is: while it runs, after it was killed, and when it is done."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.cli.progress import Progress, StudyProgress, TrainProgress, _Bar
from evalkit.records.folder import RunFolder, this_process
from evalkit.runs import provenance as of_runs
from evalkit.runs import status as of_status
from evalkit.runs.status import duration, run_status
from tests.report_runs import holds_to, write_run


def command(checkpoint: Path, out: Path, script: str = "oracle", *more: str) -> list[str]:
    words = f"run --model {checkpoint} --task babilong --subsets qa1 --lengths 1k --backend scripted --script {script}"
    return [*words.split(), "--out", str(out), *more]


def asked(checkpoint: Path, out: Path, script: str = "oracle", *more: str):
    return CliRunner().invoke(main, command(checkpoint, out, script, *more), catch_exceptions=False)


def status(*arguments: object) -> str:
    shown = CliRunner().invoke(main, ["status", *map(str, arguments)])
    assert shown.exit_code == 0, shown.output
    return shown.output


def test_a_run_is_seen_running_then_killed_then_resumed(checkpoint, tmp_path):
    out = tmp_path / "r"
    words = command(checkpoint, out, "slow", "--samples", "400")
    process = subprocess.Popen([sys.executable, "-m", "evalkit", *words], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (out / "predictions.jsonl").exists() or run_status(out).done < 5:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        seen = run_status(out)
        assert (seen.state, seen.expected, seen.failed) == ("running", 400, 0)
        assert seen.writer.startswith(f"process {process.pid} on ")
        assert 0 < seen.rate <= 20.5  # the script takes a twentieth of a second for each
        assert seen.seconds_left == pytest.approx((400 - seen.done) / seen.rate, rel=0.2)
        line = status(tmp_path)
        assert line.startswith("r  running  ")
        assert "samples/s" in line
        assert " left" in line
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    seen = run_status(out)
    assert (seen.state, seen.writer, seen.rate, seen.seconds_left) == ("stopped", None, None, None)
    assert 5 <= seen.done < 400
    assert status(out) == f"r  stopped  {seen.done}/400\n"


def test_a_resumed_run_begins_with_what_is_recorded_and_what_is_to_ask(checkpoint, tmp_path):
    first = asked(checkpoint, tmp_path / "r", "oracle", "--samples", "3")
    assert "to ask" not in first.stderr
    again = asked(checkpoint, tmp_path / "r", "oracle", "--samples", "5")
    assert "3 recorded, 2 to ask\n" in again.stderr
    assert status(tmp_path) == "r  finished  5/5\n"


def test_failures_are_counted_and_samples_that_may_still_be_answered_are_not_done(checkpoint, tmp_path):
    asked(checkpoint, tmp_path / "r", "failing", "--samples", "6")
    assert status(tmp_path) == "r  stopped  4/6  2 failed\n"


def test_every_folder_has_a_line_also_a_damaged_one_and_watching_ends_when_nothing_runs(checkpoint, tmp_path):
    asked(checkpoint, tmp_path / "good", "oracle", "--samples", "2")
    write_run(tmp_path / "other", arm="other", accuracy=holds_to(8192), lengths=("4k",), samples=3)
    asked(checkpoint, tmp_path / "torn", "oracle", "--samples", "2")
    (tmp_path / "torn" / "run.json").write_text("{}")
    lines = status(tmp_path, "--watch").splitlines()
    assert lines[:2] == ["good   finished  2/2", "other  idle      6"]
    assert lines[2].startswith("torn   damaged   ")
    assert "restore it from a backup" in lines[2]


def test_a_folder_without_runs_is_refused(tmp_path):
    shown = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert shown.exit_code == 2
    assert f"no run folder (one with a run.json) at or below {tmp_path}" in shown.output


def test_a_quiet_run_prints_nothing_but_what_failed(checkpoint, tmp_path):
    assert asked(checkpoint, tmp_path / "r", "oracle", "--samples", "2", "--quiet").output == ""
    failing = asked(checkpoint, tmp_path / "f", "failing", "--samples", "3", "--quiet")
    assert failing.exit_code == 1
    assert failing.output.startswith("1 samples failed")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def prediction(tmp_path):
    from evalkit.records.folder import RunFolder

    folder = write_run(tmp_path / "r", arm="a", accuracy=holds_to(8192), lengths=("4k",), samples=1)
    return next(RunFolder.open(folder).predictions())


def next_line(log: io.StringIO, begin: str) -> str:
    """Wait until a log has a line that begins so."""
    for _ in range(500):
        if found := [line for line in log.getvalue().splitlines() if line.startswith(begin)]:
            return found[-1]
        time.sleep(0.01)
    raise AssertionError(f"no line begins with {begin!r}: {log.getvalue()}")


def log_with_a_line_each(seconds: float, monkeypatch) -> io.StringIO:
    """What stderr gets from here on, which is no terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(_Bar, "every", seconds)
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)  # not by a fixture: pytest puts its own in between
    return log


def test_a_log_gets_a_plain_line_of_a_run_at_intervals(monkeypatch, prediction):
    log = log_with_a_line_each(0.02, monkeypatch)
    with Progress() as progress:
        progress.phase("loading the model")
        assert next_line(log, "loading the model, ") == "loading the model, 0 s so far"
        progress.starts(["4k"] * 4)
        progress.phase("answering")
        for _ in range(3):
            progress.sent()
        assert next_line(log, "answering, 3") == "answering, 3 in flight, 0 s so far"
        progress.answered(prediction)
        assert re.fullmatch(r"4k 1/4, 2 in flight, \d+\.\d\d samples/s, \d+ s left", next_line(log, "4k 1/4"))
        progress.phase("loading the model")  # for other lengths, under another rule
        time.sleep(0.1)
    assert log.getvalue().splitlines()[-1] == "loading the model, 0 s so far"
    written = log.getvalue()
    time.sleep(0.1)
    assert log.getvalue() == written, "nothing is told after the end"


def test_between_two_intervals_a_log_gets_the_phases_alone(monkeypatch, prediction):
    log = log_with_a_line_each(60, monkeypatch)
    with Progress() as progress:
        progress.phase("loading the model")
        progress.starts(["4k"] * 4)
        progress.phase("answering")
        progress.answered(prediction)
    assert log.getvalue() == "loading the model\n"


def test_a_log_gets_a_plain_line_of_a_training_at_intervals(monkeypatch):
    log = log_with_a_line_each(0.02, monkeypatch)
    with TrainProgress() as progress:
        progress.phase("preparing data")
        assert next_line(log, "preparing data, ") == "preparing data, 0 s so far"
        progress.phase("training")
        progress.step(41, 50)  # it goes on after step 40
        progress.loss(0.25)
        line = next_line(log, "step 41/50, loss")
        assert re.fullmatch(r"step 41/50, loss 0\.25, \d+\.\d steps/s, \d+ s left", line)
    with TrainProgress(quiet=True) as progress:
        before = log.getvalue()
        progress.phase("training")
        time.sleep(0.1)
        assert log.getvalue() == before


def test_a_log_gets_a_plain_line_of_a_study_at_intervals(monkeypatch, tmp_path):
    log = log_with_a_line_each(0.02, monkeypatch)
    from evalkit.study.experiment import load_experiment
    from evalkit.study.steps import plan_steps
    from evalkit.study.study import Study

    noise, base, *others = plan_steps(Study(experiment=load_experiment("tiny"), root=tmp_path, plots=tmp_path), [0])
    with StudyProgress([noise, base, *others]) as progress:
        progress.is_finished(noise, "written")
        progress.goes_on(base, 0.0)
        number = len(others) + 2
        assert next_line(log, "1/") == f"1/{number} steps done; base base, seed 0 (0%)", "no pace is known yet"
        progress.goes_on(base, 0.25)
        progress.goes_on(base, 0.5)
        line = next_line(log, f"1/{number} steps done; base base, seed 0 (50%); ")
        assert re.fullmatch(r".*; \d+ (s|min) left", line)
        for step in others[1:6]:
            progress.goes_on(step, 0.0)
        assert "; 3 more; " in next_line(log, f"1/{number} steps done; base base, seed 0 (50%); {others[1]} (0%)")


def test_a_training_by_command_tells_its_phases_and_steps_in_a_log(monkeypatch, tmp_path):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(_Bar, "every", 0.02)
    from evalkit.models.new_checkpoint import write_checkpoint

    write_checkpoint(tmp_path / "base", window=256, vocab_size=600, num_layers=1)
    words = f"train --base {tmp_path / 'base'} --out {tmp_path / 'arm'} --recipe plain --subsets qa1 --samples 40"
    words += " --longest 240 --epochs 1 --accumulation 1 --no-instruction --no-examples"
    words += " --no-post-prompt --control facts-only"
    done = CliRunner().invoke(main, words.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    phases = ["preparing data", "loading the model", "training", "writing the checkpoint"]
    assert [line for line in lines if line in phases] == phases
    assert any(re.fullmatch(r"step \d+/\d+, loss \S+, \d+\.\d (steps/s|s a step), .* left", line) for line in lines)
    quiet = CliRunner().invoke(main, [*words.split(), "--quiet"], catch_exceptions=False)
    assert (quiet.exit_code, quiet.stderr) == (0, "")


def test_a_terminal_names_the_phase_and_never_an_unknown_time(monkeypatch, prediction):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress() as progress:
        progress.phase("building prompts")
        progress.resumes(2, 4)
        progress.starts(["4k"] * 4)
        progress.phase("loading the model")
        progress.phase("answering")
        progress._bar.mininterval = 0
        for _ in range(3):
            progress.sent()
        assert "answering, 3 in flight" in screen.getvalue()
        progress.answered(prediction)
    text = screen.getvalue()
    order = [text.index(part) for part in ("building prompts", "2 recorded, 4 to ask", "loading the model", "4k 1/4")]
    assert order == sorted(order)
    assert "?" not in text


def test_times_are_told_in_two_parts_at_most():
    assert [duration(s) for s in (0, 45, 60, 59 * 60, 3600, 11100)] == [
        "0 s", "45 s", "1 min", "59 min", "1 h 00 min", "3 h 05 min"
    ]  # fmt: skip


class FallingClock(datetime):
    """Is an hour earlier every time that it is read."""

    reads = 0

    @classmethod
    def now(cls, tz=None):
        cls.reads += 1
        return datetime(2026, 3, 29, tzinfo=tz) - timedelta(hours=cls.reads)


def test_a_clock_that_is_set_back_again_and_again_breaks_no_run(checkpoint, tmp_path, monkeypatch):
    for module in (of_runs, of_status):
        monkeypatch.setattr(module, "datetime", FallingClock)
    monkeypatch.setattr(time, "time", lambda: FallingClock.now(UTC).timestamp())
    seen, extend = [], RunFolder.extend

    def look_after_each(folder, predictions):
        extend(folder, predictions)
        seen.append((run_status(tmp_path / "r"), status(tmp_path / "r")))

    monkeypatch.setattr(RunFolder, "extend", look_after_each)
    assert asked(checkpoint, tmp_path / "r", "oracle", "--samples", "2").exit_code == 0
    assert asked(checkpoint, tmp_path / "r", "oracle", "--samples", "4").exit_code == 0
    assert [(one.state, one.done, one.expected) for one, _ in seen] == [
        ("running", 1, 2), ("running", 2, 2), ("running", 3, 4), ("running", 4, 4)
    ]  # fmt: skip
    assert all(one.rate > 0 and one.seconds_left >= 0 and "-" not in line for one, line in seen)
    assert status(tmp_path) == "r  finished  4/4\n"
    folder = RunFolder.open(tmp_path / "r")
    first, second = (datetime.fromisoformat(one["started"]) for one in folder.provenance)
    assert second < first - timedelta(hours=4)
    assert all(pace["seconds"] >= 0 for one in folder.provenance for pace in one["pace"]["by_length"].values())
    assert len(folder.recorded()) == 4
    for words in (["report", "--out", tmp_path / "plots"], ["score"], ["export", tmp_path / "log", "--to", "inspect"]):
        command, *more = map(str, words)
        shown = CliRunner().invoke(main, [command, str(tmp_path / "r"), *more])
        assert shown.exit_code == 0, shown.output
    plan = ["--samples", "8", "--dry-run"]
    assert asked(checkpoint, tmp_path / "r", "oracle", *plan).exit_code == 0


def test_a_clock_that_was_set_back_since_makes_no_rate_of_less_than_nothing(tmp_path):
    write_run(tmp_path / "r", arm="a", accuracy=holds_to(1024), lengths=("1k",), subsets=("qa1",), samples=3)
    before = RunFolder.open(tmp_path / "r")
    answering = {"since": "2999-01-01T00:00:00+00:00", "after": 0, "writer": this_process()}
    config = before.config | {"scope": before.config["scope"] | {"cells": {"qa1/1k": 5}}}
    parts = {name: value for name, value in before.fingerprint.items() if not name.startswith("engine.")}
    with RunFolder.start(
        tmp_path / "r", arm="a", config=config, fingerprint=parts, provenance={"answering": answering}
    ):
        seen = run_status(tmp_path / "r")
        assert (seen.state, seen.done, seen.expected) == ("running", 3, 5)
        assert seen.rate is not None
        assert seen.rate > 0
        assert seen.seconds_left is not None
        assert seen.seconds_left > 0
    assert status(tmp_path / "r").startswith("r  stopped  3/5")
