"""Where a killed training goes on: the Trainer's checkpoints, of which only whole ones count.

The Trainer writes a checkpoint file by file, so a kill can leave half of one under the newest name. Each is marked when
all its files are there, and only then is the one before it removed: there is always a whole one, once there was one.
"""

import shutil
from pathlib import Path

_WHOLE = "whole"


def keep_only(folder: Path, step: int) -> None:
    """Mark the checkpoint of a step as whole, and remove all others."""
    (folder / f"checkpoint-{step}" / _WHOLE).touch()
    for other, path in _checkpoints(folder).items():
        if other != step:
            _remove(path)


def last_whole(folder: Path) -> Path | None:
    """Return the latest checkpoint that is whole; None where there is none."""
    return next((path for _, path in sorted(_checkpoints(folder).items(), reverse=True) if _is_whole(path)), None)


def clear_torn(folder: Path) -> list[str]:
    """Remove checkpoints that a kill cut off while they were written, and return their names."""
    torn = [path for _, path in sorted(_checkpoints(folder).items()) if not _is_whole(path)]
    for path in torn:
        _remove(path)
    return [path.name for path in torn]


def _checkpoints(folder: Path) -> dict[int, Path]:
    names = {path.name.rpartition("-")[2]: path for path in folder.glob("checkpoint-*")}
    return {int(step): path for step, path in names.items() if step.isdecimal()}


def _is_whole(path: Path) -> bool:
    return (path / _WHOLE).is_file()


def _remove(path: Path) -> None:
    (path / _WHOLE).unlink(missing_ok=True)  # first: what is removed in part is not whole
    shutil.rmtree(path)
