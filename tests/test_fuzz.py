"""A short campaign of generated inputs; ``python -m tests.fuzz`` is the long one. And the campaign sees faults."""

import os
from pathlib import Path

import click
import pytest

from evalkit.cli import commands
from tests.fuzz.__main__ import campaign, grouped, planned
from tests.fuzz.inputs import KINDS
from tests.fuzz.worker import run_command


@pytest.mark.slow
def test_no_generated_input_ends_in_anything_but_an_answer_or_one_sentence(tmp_path: Path) -> None:
    tried, faults = campaign(planned(150, list(KINDS)), seed=20261128, keep=tmp_path, seconds=120)
    assert not faults, grouped(faults)
    assert len(tried) > len(KINDS)


@pytest.mark.parametrize(
    ("does", "fault"),
    [
        (lambda: 1 / 0, "ZeroDivisionError at"),
        (lambda: click.echo("\x1b]0;title\x07"), r"reaches the terminal"),
        (lambda: os.write(1, b"\x1b[31m"), r"reaches the terminal"),
        (lambda: click.get_current_context().exit(3), "exit code 3"),
        (lambda: click.get_current_context().exit(2), "exit 2 with 0 sentences"),
    ],
)
def test_a_campaign_sees_what_is_a_fault(monkeypatch: pytest.MonkeyPatch, does, fault: str) -> None:
    monkeypatch.setitem(commands.main.commands, "broken", click.Command("broken", callback=does))
    found, _ = run_command(["broken"])
    assert found is not None
    assert fault in found


def test_an_end_with_one_sentence_is_no_fault() -> None:
    assert run_command(["tasks", "nothing"])[0] is None
    assert run_command(["tasks"])[0] is None


def test_kinds_take_turns_by_their_shares() -> None:
    names = [name.partition(":")[0] for name in planned(1000, list(KINDS))]
    assert set(names) == set(KINDS)
    assert names.count("config") == pytest.approx(names.count("rows") * 1.6, rel=0.1)
