"""A run on a real engine, killed where it writes; ``python -m tests.kills --commands run-vllm`` does so more often."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kills.tracing import missing

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def test_a_run_that_is_killed_where_it_writes_ends_as_if_nothing_had_been() -> None:
    if why := missing():
        pytest.skip(why)
    command = [sys.executable, "-m", "tests.kills", "--commands", "run-vllm", "--kills", "1", "--seed", "1"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.endswith("0 faults\n")
