"""Files that a stranger left where a training or a run goes on: nothing of them is executed."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from evalkit.errors import EvalkitError
from evalkit.models.new_checkpoint import write_checkpoint
from tests.test_finetune_kills import train


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, and a training that was stopped behind its first checkpoint."""
    folder = tmp_path_factory.mktemp("evil")
    write_checkpoint(folder / "base", window=256, vocab_size=600, num_layers=1)

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder, "out", on_step=stop)
    return folder


def evil_files(checkpoint: Path) -> list[str]:
    return sorted(path.name for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin", ".pkl"))


@pytest.mark.parametrize("layout", ["pickle", "zip"])
def test_a_pickle_in_a_training_that_goes_on_is_not_executed(stopped: Path, tmp_path: Path, layout: str) -> None:
    shutil.copytree(stopped, tmp_path / "t")
    checkpoint = tmp_path / "t" / "out" / "checkpoints" / "checkpoint-2"
    names, mark = evil_files(checkpoint), tmp_path / "executed"
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(names)
    for name in names:
        if layout == "zip":
            torch.save(Evil(mark), checkpoint / name)
        else:
            (checkpoint / name).write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(EvalkitError, match=r"checkpoint-2 cannot be gone on with .* delete it") as refused:
        train(tmp_path / "t", "out")
    assert not mark.exists()
    assert "\n" not in str(refused.value)


def test_two_trainings_do_not_write_one_folder(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "t")
    with (
        FileLock(tmp_path / "t" / "out" / "train.lock"),
        pytest.raises(EvalkitError, match="Another 'evalkit train' is at work"),
    ):
        train(tmp_path / "t", "out")
    assert (tmp_path / "t" / "out" / "checkpoints" / "checkpoint-2" / "whole").exists()
    train(tmp_path / "t", "out")
    assert not (tmp_path / "t" / "out" / "train.lock").exists()
