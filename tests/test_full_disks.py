"""Commands on real disks, full or read-only, end in one sentence, lose nothing and leave nothing half made.

The disks are in memory (tmpfs), in a namespace of their own; see ``tests.kills.disks``.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kills import checks
from tests.kills.disks import READ_ONLY, cases
from tests.kills.tracing import missing

ROOT = Path(__file__).parents[1]


def tried(folder: Path, commands: str) -> dict[str, dict[str, list[int]]]:
    """Return exit codes, of the command and of its repetition with room, by command and case."""
    private = ["unshare", "--map-root-user", "--mount"]
    mount = [*private, "mount", "-t", "tmpfs", "none", str(folder)]
    try:
        allowed = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no disk can be mounted: {error}")
    if why := missing() or (allowed.stderr if allowed.returncode else ""):
        pytest.skip(f"no disk can be mounted: {why}")
    command = [*private, sys.executable, "-m", "tests.kills.disks", str(folder), commands]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes: dict[str, dict[str, list[int]]] = json.loads((folder / "codes.json").read_text())
    return codes


@pytest.mark.parametrize(
    "commands",
    [
        "new-checkpoint,run-scripted,import,export",
        pytest.param("report,plot,train", marks=pytest.mark.slow),
        pytest.param("reproduce", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_a_disk_that_is_full_or_read_only_is_one_sentence_and_nothing_is_lost(tmp_path: Path, commands: str) -> None:
    for name, codes in tried(tmp_path, commands).items():
        ends = {case: code for case, (code, _) in codes.items()}
        assert [*ends] == [*map(str, cases(name))]
        assert list(ends.values())[:2] == [2, 2], ends
        for case, (code, again) in codes.items():
            folder = tmp_path / name / case
            said = (folder / "said.txt").read_text()
            assert code in (0, 2), said  # 0: the drafts of several small files need less room than all of them
            assert "Traceback" not in said
            refusals = [line for line in said.splitlines() if line.startswith("evalkit: ")]
            assert len(refusals) == (code == 2), said
            assert all("cannot be written" in line or "cannot be extended" in line for line in refusals), said
            assert not list((folder / "left").rglob("*.tmp*"))
            if name == "new-checkpoint" or case == READ_ONLY:
                assert not (folder / "left" / "new").exists()
            assert again == 0, (folder / "again.txt").read_text()
            assert checks.lost(checks.recorded(folder / "left"), checks.recorded(folder / "again")) == []
            assert list(checks.differences(folder / "again", tmp_path / name / "whole")) == []
