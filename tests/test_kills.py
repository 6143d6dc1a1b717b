"""Short campaigns of kills; ``python -m tests.kills`` is the long one. And the campaign sees faults."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kills import checks
from tests.kills.tracing import Call, Kill, live, missing

ROOT = Path(__file__).parents[1]


def campaign(commands: str, kills: int) -> int:
    """Return how often commands were killed; any fault is an error."""
    if why := missing():
        pytest.skip(why)
    command = [sys.executable, "-m", "tests.kills", "--commands", commands, "--kills", str(kills), "--seed", "20261128"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return int(shown.stdout.splitlines()[-1].split()[2])


def test_commands_that_are_killed_where_they_write_end_as_if_nothing_had_been() -> None:
    assert campaign("run-scripted,score,report,import", 6) >= 6


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("commands", "kills"), [("run-hf,run-server,train", 9), ("export,plot,new-checkpoint", 6), ("reproduce", 2)]
)
def test_trainings_studies_and_runs_on_models_and_servers_end_as_if_nothing_had_been(commands: str, kills: int) -> None:
    assert campaign(commands, kills) >= kills


# What the campaign is made of


def _write_two_files() -> None:
    with open("a", "wb", buffering=0) as file:
        file.write(b"x" * 100)
        os.fsync(file.fileno())
    os.replace("a", "b")
    os.execv("/bin/sh", ["sh", "-c", "echo more > c"])


@pytest.mark.parametrize(
    ("number", "mode", "left"),
    [
        (1, "before", {"a": 0}),
        (1, "half", {"a": 50}),
        (1, "after", {"a": 100}),
        (3, "before", {"a": 100}),
        (3, "after", {"b": 100}),
        (5, "half", {"b": 100, "c": 2}),
        (99, "before", {"b": 100, "c": 5}),
    ],
)
def test_a_process_is_killed_before_half_way_through_and_after_a_call(
    tmp_path: Path, number: int, mode: str, left: dict[str, int]
) -> None:
    if why := missing():
        pytest.skip(why)
    (tmp_path / "in").mkdir()
    life = live(_write_two_files, tmp_path / "in", tmp_path / "said", Kill(number, mode))  # type: ignore[arg-type]
    assert {path.name: path.stat().st_size for path in (tmp_path / "in").iterdir()} == left
    assert life.killed == (number != 99)
    assert life.code == (-9 if life.killed else 0)
    expected = ["openat a", "write a", "fsync a", "rename a", "openat c", "write c"]
    assert [f"{call.name} {call.path}" for call in life.calls] == expected[: len(life.calls)]
    assert len(life.calls) == min(number + 1, len(expected))


def test_what_a_process_says_and_its_exit_code_are_kept_and_one_that_hangs_is_ended(tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)

    def fail() -> None:
        print("so it goes")
        sys.exit(3)

    life = live(fail, tmp_path, tmp_path / "said.txt")
    assert (life.code, life.killed, life.hung) == (3, False, False)
    assert (tmp_path / "said.txt").read_text() == "so it goes\n"
    wait = live(lambda: os.execv("/bin/sleep", ["sleep", "60"]), tmp_path, tmp_path / "said.txt", patience=0.2)
    assert (wait.code, wait.hung) == (-9, True)
    assert Call("openat", "x#") not in wait.calls


@pytest.fixture
def whole(tmp_path: Path, checkpoint: Path) -> Path:
    """A run folder as a command leaves it."""
    from evalkit.runs.config import run_config
    from evalkit.runs.plan import make_plan
    from evalkit.runs.run import run

    asked = {"task": "babilong", "lengths": ("1k",), "subsets": ("qa1",), "samples": 3, "backend": "scripted"}
    run(make_plan(run_config(asked | {"model": str(checkpoint), "out": str(tmp_path / "whole" / "run")})))
    return tmp_path / "whole"


def test_a_campaign_sees_what_is_lost_asked_twice_left_behind_or_other_than_it_was(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed" / "run"

    def faults() -> list[str]:
        found = list(checks.differences(tmp_path / "killed", whole))
        shutil.rmtree(tmp_path / "killed")
        shutil.copytree(whole, tmp_path / "killed")
        return found

    shutil.copytree(whole, tmp_path / "killed")
    assert faults() == []
    lines = (run / "predictions.jsonl").read_bytes().splitlines(True)

    (run / "scores.parquet.17.tmp").touch()
    assert faults() == ["litter: run/scores.parquet.17.tmp"]
    (run / "run.json").unlink()
    assert faults() == ["missing: run/run.json"]
    (run / "predictions.jsonl").write_bytes(b"".join([*lines, lines[0]]))
    assert faults() == ["run/predictions.jsonl: 1 samples are recorded twice"]
    (run / "predictions.jsonl").write_bytes(b"".join(lines[1:]))
    assert faults()[0] == "run/predictions.jsonl: 1 samples are lost"
    other = json.dumps(json.loads(lines[0]) | {"output": "elsewhere"}).encode() + b"\n"
    (run / "predictions.jsonl").write_bytes(b"".join([other, *lines[1:]]))
    assert faults() == ["run/predictions.jsonl: other answers"]
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"provenance": []}))
    assert faults() == []  # when and where it was is another matter
    (run / "run.json").write_text(json.dumps(record | {"arm": "another"}))
    assert "another" in faults()[0]

    before = checks.recorded(tmp_path / "killed")
    assert checks.lost(before, before) == []
    (run / "predictions.jsonl").write_bytes(b"".join(lines[:2]))
    assert checks.lost(before, checks.recorded(tmp_path / "killed")) == [
        "run/predictions.jsonl: recorded lines are lost"
    ]
