"""A training that was killed, wherever it was, goes on with the same command and leaves nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.errors import BadInput
from evalkit.models.new_checkpoint import write_checkpoint
from evalkit.train.config import TrainConfig
from evalkit.train.data import DataRecipe
from evalkit.train.finetune import finetune
from evalkit.train.unfinished import clear_torn, last_whole

# One process imports torch and forks a child for each scenario. A child harms itself in one place, as a kill or a full
# disk would, and trains; what it said is written down beside its folder.
_CHILDREN = """
import os, resource, shutil, signal, sys
from pathlib import Path
import torch, transformers, peft, accelerate
import evalkit.train.trainer
from tests.test_finetune_kills import train

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def half_written(name, save=torch.save):
    def write(values, file, *more, **named):
        save(values, file, *more, **named)
        if name in str(file):
            os.truncate(file, os.path.getsize(file) // 2)
            die()
    torch.save = write

def dies_at(method, name):
    real = getattr(Path, method)
    setattr(Path, method, lambda path, *more, **named: die() if path.name == name or
            (method == "replace" and path.name.startswith(name)) else real(path, *more, **named))

def removed_in_part(name, rmtree=shutil.rmtree):
    def remove(path, *more, **named):
        if Path(path).name == name:
            next(iter(Path(path).iterdir())).unlink()
            die()
        rmtree(path, *more, **named)
    shutil.rmtree = remove

def full_disk(num_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

harm = {
    "first checkpoint": lambda: half_written("checkpoint-2"),
    "second checkpoint": lambda: half_written("checkpoint-4"),
    "old checkpoint": lambda: removed_in_part("checkpoint-2"),
    "plan": lambda: dies_at("replace", "plan.json"),
    "record": lambda: dies_at("replace", "evalkit_training.json"),
    "clearing": lambda: dies_at("unlink", "plan.json"),
    "disk full at weights": lambda: full_disk(100_000),
    "disk full at optimizer": lambda: full_disk(int(1.5 * os.path.getsize(f"{sys.argv[1]}/base/model.safetensors"))),
}
for name, how in harm.items():
    child = os.fork()
    if child == 0:
        how()
        try:
            train(Path(sys.argv[1]), name)
        except Exception as error:
            Path(sys.argv[1], f"{name}.txt").write_text(f"{type(error).__name__}: {error}")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(name, os.WIFSIGNALED(status) and os.WTERMSIG(status), sep="=")
"""
KILLED = ("first checkpoint", "second checkpoint", "old checkpoint", "plan", "record", "clearing")
FULL = ("disk full at weights", "disk full at optimizer")


def ignore(*_) -> None:
    """Be told, and do nothing."""


def train(root: Path, name: str, *, on_notice=ignore, on_step=ignore) -> Path:
    config = TrainConfig(
        base=root / "base", out=root / name, recipe="randomized-yarn", epochs=3, batch_size=2, accumulation=2,
        learning_rate=1e-3, save_every=2, data=DataRecipe(subsets=("qa1",), samples=8, longest=240),
        options=BABILongOptions(instruction=False, examples=False, post_prompt=False, control="facts-only"),
    )  # fmt: skip
    return finetune(config, on_notice=on_notice, on_step=on_step)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with the base, one whole training, and those that were harmed."""
    folder = tmp_path_factory.mktemp("kills")
    write_checkpoint(folder / "base", window=256, vocab_size=600, num_layers=1)
    words = [sys.executable, "-c", _CHILDREN, str(folder)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[1])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [f"{name}=9" for name in KILLED] + [f"{name}=False" for name in FULL]
    train(folder, "whole")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", [*KILLED, *FULL])
def test_a_harmed_training_ends_as_if_nothing_had_been(root, name):
    steps: list[int] = []
    said: list[str] = []
    out = train(root, name, on_notice=said.append, on_step=lambda done, total: steps.append(done))
    done = {"second checkpoint": 2, "old checkpoint": 4, "record": 6, "clearing": 6}.get(name, 0)
    assert steps == list(range(done + 1, 7))
    assert names(out) == names(root / "whole")
    whole, resumed = (load_file(root / folder / "model.safetensors") for folder in ("whole", name))
    for tensor in whole:
        torch.testing.assert_close(resumed[tensor], whole[tensor], atol=1e-6, rtol=1e-6)
    expected = {
        "first checkpoint": [
            "checkpoint-2 was cut off while it was written and is cleared; the training begins again."
        ],
        "second checkpoint": [
            "checkpoint-4 was cut off while it was written and is cleared; the training goes on after step 2."
        ],
        "record": ["The training goes on after step 6."],
    }
    if name in expected:
        assert said == expected[name]


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_ends_a_training_in_one_sentence(root, name):
    said = (root / f"{name}.txt").read_text()
    assert said.startswith(f"BadInput: {root / name} cannot be written (")
    assert said.endswith("make room, or name another --out. The same command goes on from the last whole checkpoint.")
    assert "\n" not in said


def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(root):
    (root / "file").write_text("")
    with pytest.raises(BadInput, match=r"file/arm cannot be written \(Not a directory\)"):
        train(root, "file/arm")


def test_of_torn_checkpoints_none_is_taken_and_all_are_cleared(tmp_path):
    for step, is_whole in ((2, True), (10, True), (12, False), (9, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
        if is_whole:
            (tmp_path / f"checkpoint-{step}" / "whole").touch()
    assert last_whole(tmp_path) == tmp_path / "checkpoint-10"
    assert clear_torn(tmp_path) == ["checkpoint-9", "checkpoint-12"]
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-10"}
    assert last_whole(tmp_path / "none") is None


def test_where_it_goes_on_elsewhere_both_processors_are_recorded(root, monkeypatch):
    from evalkit.train import trainer

    class Stopped(Exception):
        pass

    def stop(done, total):
        if done == 3:
            raise Stopped

    monkeypatch.setattr(trainer, "processor", lambda: {"model": "another", "instructions": ""})
    with pytest.raises(Stopped):
        train(root, "moved", on_step=stop)
    monkeypatch.undo()
    record = json.loads((train(root, "moved") / "evalkit_training.json").read_text())
    first, second = record["environments"]
    assert first["processor"] == {"model": "another", "instructions": ""} != second["processor"]
    assert first["versions"] == second["versions"]
    assert {"torch", "transformers", "evalkit"} <= set(second["versions"])
