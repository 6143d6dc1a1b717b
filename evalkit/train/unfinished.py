"""What a killed training leaves, and where it goes on: its plan, and checkpoints, of which only whole ones count.

The plan is written before any other file: a folder with anything else and no plan is not a training's. The Trainer
writes a checkpoint file by file, so a kill can leave half of one under the newest name. Each is marked when all its
files are there, and only then is the one before it removed: there is always a whole one, once there was one.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from evalkit.errors import BadInput
from evalkit.files import first_line, is_draft_of, is_draft_of_weights
from evalkit.models.training_record import SCHEMA, TRAINING_RECORD, TrainingRecord
from evalkit.train.config import Asked

PLAN, CHECKPOINTS = "plan.json", "checkpoints"
_WHOLE, _LOCK = "whole", "train.lock"


def refuse_other_training(out: Path, asked: Asked) -> None:
    """Refuse a folder of another training by the settings alone, before base and data are opened, which takes a while.

    Raises:
        BadInput: the folder holds another training, or something else.
    """
    there = _training_in(out)
    if there is not None and there.data is not None:
        data, optimization = replace(there.data, **asked.data), {**there.optimization, **asked.optimization}
        _refuse_difference(out, there, replace(there, **asked.fields, data=data, optimization=optimization))


def continued(out: Path, plan: TrainingRecord, *, main: bool) -> TrainingRecord:
    """Return the finished record in a folder, or the plan with the environments of what was done so far.

    Args:
        out: the folder of the trained checkpoint.
        plan: the training that is wanted.
        main: this process writes; of a finished training it clears what a kill left.

    Raises:
        BadInput: the folder holds another training, or something else.
    """
    there = _training_in(out)
    if there is None:
        return plan
    _refuse_difference(out, there, plan)
    if there.steps is not None:
        if main:
            clear(out)
        return there
    more = tuple(one for one in plan.environments if one not in there.environments)
    return replace(plan, environments=there.environments + more)


def _training_in(out: Path) -> TrainingRecord | None:
    """Return the record of a finished training, or the plan of one that is not; None: there is nothing yet."""
    for name in (TRAINING_RECORD, PLAN):
        there = TrainingRecord.read(out / name)
        if there is None:
            continue
        if there.schema < SCHEMA:
            raise BadInput(
                f"{out} was trained by an earlier evalkit, which did not record all that decides the weights; it can "
                "be run and reported, and to train anew name another --out."
            )
        return there
    if out.is_dir() and any(not _is_litter(path) for path in out.iterdir()):
        raise BadInput(f"{out} is not empty and holds no training; name another --out.")
    return None


def _refuse_difference(out: Path, there: TrainingRecord, wanted: TrainingRecord) -> None:
    if difference := there.difference(wanted):
        raise BadInput(f"{out} holds another training: {difference}; name another --out.")


def clear(out: Path) -> None:
    """Remove what a resume needs, and drafts that a kill left."""
    (out / PLAN).unlink(missing_ok=True)
    if (out / CHECKPOINTS).is_dir():
        shutil.rmtree(out / CHECKPOINTS)
    for path in out.iterdir():
        if _is_litter(path):
            path.unlink()


@contextmanager
def only_one_at_work(out: Path) -> Iterator[None]:
    """Hold the lock of a training's folder, which is made where it is not there; the system frees it with the process.

    A folder in which nothing came to be, because the training was refused, is removed again.

    Raises:
        BadInput: another process trains into the folder.
    """
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput(f"Another 'evalkit train' is at work in {out}; wait for it, or name another --out.") from None
    try:
        yield
    finally:
        lock.release()
        if not any(path.name != _LOCK for path in out.iterdir()):
            shutil.rmtree(out)


def _is_litter(path: Path) -> bool:
    """Tell whether a kill left this before there was a plan, or beside it: a draft, or a folder with nothing in it."""
    if path.name == _LOCK:
        return True
    if path.name == CHECKPOINTS:
        return path.is_dir() and not any(path.iterdir())
    return any(is_draft_of(path, name) for name in (PLAN, TRAINING_RECORD)) or is_draft_of_weights(path)


@contextmanager
def explained(out: Path) -> Iterator[None]:
    """Say in a sentence why a folder cannot be written: a full or read-only disk.

    Raises:
        BadInput: the folder and the reason.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        if isinstance(error, RuntimeError):  # torch.save does not say what the system said
            if not any(writer in str(error) for writer in ("PytorchStreamWriter", "inline_container")):
                raise
            reason = "a checkpoint could not be written whole"
        raise BadInput(
            f"{out} cannot be written ({reason}); make room, or name another --out. The same command goes on from the "
            "last whole checkpoint."
        ) from error


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
