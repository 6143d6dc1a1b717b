"""Commands on disks that are full or may only be read: real ones, in memory, that nobody else sees.

    unshare -rm python -m tests.kills.disks FOLDER new-checkpoint,train

For each command a disk that may only be read, and some that are full after a share of what the command writes. What it
said, what then lay on the disk, and what lies there when the same command was repeated with room, is kept below FOLDER:
``COMMAND/CASE/said.txt``, ``left`` and ``again``, beside ``COMMAND/whole``, of a disk with room from the start.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

from tests.kills.campaign import Campaign
from tests.kills.scenarios import SCENARIOS

READ_ONLY = "read-only"
SHARES = (0.02, 0.5, 0.9)
FEW = (0.5,)
"""For commands that begin as new programs, with all that they import."""
_PAGE, _ROOM = 4096, "1g"


def main() -> None:
    """Try the commands, and write exit codes by command and case to ``codes.json``."""
    folder, names = Path(sys.argv[1]).resolve(), sys.argv[2].split(",")
    campaign = Campaign(folder / "campaign", seed=0)
    campaign.scratch.mkdir(parents=True)
    disk = folder / "disk"
    disk.mkdir()
    codes: dict[str, dict[str, list[int]]] = {}
    for name in names:
        at = folder / name
        _mount(disk, f"size={_ROOM}")
        before = _filled(campaign, name, disk)
        if _live(campaign, name, disk, at / "whole.txt"):
            raise SystemExit((at / "whole.txt").read_text())
        size = _used(disk) - before
        _keep(disk, at / "whole")
        codes[name] = {}
        for case in cases(name):
            _mount(disk, f"size={_ROOM}")
            before = _filled(campaign, name, disk)
            bound = f"size={before + int(size * case) // _PAGE * _PAGE}" if isinstance(case, float) else "ro"
            _mount(disk, f"remount,{bound}")
            code = _live(campaign, name, disk, at / str(case) / "said.txt")
            shutil.copytree(disk, at / str(case) / "left")
            _mount(disk, f"remount,rw,size={_ROOM}")
            again = _live(campaign, name, disk, at / str(case) / "again.txt")
            _keep(disk, at / str(case) / "again")
            codes[name][str(case)] = [code, again]
    (folder / "codes.json").write_text(json.dumps(codes))


def cases(name: str) -> tuple[str | float, ...]:
    """Return the disks that a command is tried on."""
    return (READ_ONLY, *(FEW if SCENARIOS[name].is_new else SHARES))


def _mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(disk)], check=True)


def _filled(campaign: Campaign, name: str, disk: Path) -> int:
    """Put on the disk what a command finds, and return the bytes that this takes."""
    SCENARIOS[name].prepare(disk, campaign.shared)
    return _used(disk)


def _used(disk: Path) -> int:
    space = os.statvfs(disk)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def _live(campaign: Campaign, name: str, disk: Path, said: Path) -> int:
    said.parent.mkdir(parents=True, exist_ok=True)
    return campaign.live(name, disk, said, {"EVALKIT_CACHE": str(campaign.shared / "cache")}).code


def _keep(disk: Path, at: Path) -> None:
    shutil.copytree(disk, at)
    subprocess.run(["umount", str(disk)], check=True)


if __name__ == "__main__":
    main()
