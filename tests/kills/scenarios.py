"""The commands that are killed, and what each of them finds in its folder."""

import csv
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_RUN = "run --task babilong --lengths 1k --subsets qa1,qa6 --quiet"
_BARE = "--instruction=false --examples=false --post-prompt=false"
_EXPERIMENT = """
about = "Two arms on a random base."
base = "base"
seeds = [0]

[training]
subsets = ["qa1"]
samples = 8
longest = 128
epochs = 1
batch_size = 4
accumulation = 1
save_every = 1
instruction = false
examples = false
post_prompt = false
control = "facts-only"
on_leak = "drop"

[arms]
plain = { recipe = "plain" }
"Randomized YaRN" = { recipe = "randomized-yarn", factor = 4 }

[evaluation]
task = "babilong"
subsets = ["qa1"]
lengths = "256,512"
samples = 3
instruction = false
examples = false
post_prompt = false
max_new_tokens = 2
backend = "hf"

[[curves]]
arm = "plain"
rope = "none"

[[curves]]
arm = "Randomized YaRN"
rope = "yarn"
"""


@dataclass(frozen=True)
class Scenario:
    """A command."""

    share: int
    """Of 200 kills."""
    words: str
    """What follows "evalkit", in a folder that ``prepare`` has filled; {url} is the server's."""
    prepare: Callable[[Path, Path], None]
    """Fills an empty folder; takes it and the folder of the checkpoints that all commands share."""
    needs: str = "torch"
    """A module without which there is nothing to try."""
    is_once: bool = False
    """What is done already is refused, not done again: nothing is overwritten."""
    is_new: bool = False
    """It begins as a new program, for it starts others; else it is forked from one that has imported all libraries."""

    @property
    def is_possible(self) -> bool:
        return find_spec(self.needs) is not None


def _checkpoint(folder: Path, shared: Path) -> None:
    shutil.copytree(shared / "tiny", folder / "tiny")


def _base(folder: Path, shared: Path) -> None:
    shutil.copytree(shared / "base", folder / "base")


def _experiment(folder: Path, shared: Path) -> None:
    _base(folder, shared)
    (folder / "small.toml").write_text(_EXPERIMENT)


def _answers(folder: Path, shared: Path) -> None:
    """Two runs without scores, and one with a torn tail."""
    for name in ("one", "two", "torn"):
        shutil.copytree(shared / "answers" / name, folder / "results" / name)
        (folder / "results" / name / "scores.parquet").unlink()
    with (folder / "results" / "torn" / "predictions.jsonl").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 20)


def _published(folder: Path, _: Path) -> None:
    """Answers of two models, as BABILong's authors publish them."""
    rows = [("garden", "In the garden.", "Where is Mary? "), ("office", "", "Where is John? ")] * 20
    for model in ("first-7b", "second-7b"):
        (folder / "evals" / "org" / model).mkdir(parents=True)
        for subset in ("qa1", "qa2"):
            name = f"{subset}_16k_instruction_yes_examples_yes_post_prompt_yes.csv"
            with (folder / "evals" / "org" / model / name).open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["", "target", "output", "question"])
                table.writerows([number, *row] for number, row in enumerate(rows))


def _nothing(folder: Path, _: Path) -> None:
    """Find nothing there."""


SCENARIOS = {
    "run-scripted": Scenario(
        36, f"{_RUN} --model tiny --backend scripted --script slow --samples 8 --out out", _checkpoint
    ),
    "run-hf": Scenario(
        16, f"{_RUN} --model tiny --backend hf --samples 4 --max-new-tokens 2 --answer-logprob --out out", _checkpoint
    ),
    "run-server": Scenario(
        20,
        f"{_RUN} --model tiny --backend server --base-url {{url}} --concurrency 4 --samples 8 --out out",
        _checkpoint,
    ),
    "run-vllm": Scenario(
        4,
        f"{_RUN} --model tiny --backend vllm --samples 6 --max-new-tokens 4 --out out",
        _checkpoint,
        needs="vllm",
        is_new=True,
    ),
    "score": Scenario(20, "score results", _answers),
    "report": Scenario(20, "report results --out plots", _answers),
    "import": Scenario(24, "import evals --out results", _published),
    "export": Scenario(6, "export results/one exported --to csv", _answers),
    "plot": Scenario(4, "plot results --out plots", _answers),
    "new-checkpoint": Scenario(6, "new-checkpoint new --window 512", _nothing, is_once=True),
    "train": Scenario(
        14,
        "train --base base --out arm --recipe randomized-yarn --samples 8 --longest 240 --subsets qa1 --epochs 3 "
        "--batch-size 2 --accumulation 2 --save-every 2 --no-instruction --no-examples --no-post-prompt "
        "--control facts-only --quiet",
        _base,
    ),
    "reproduce": Scenario(10, "reproduce small.toml --out study --plots plots --quiet", _experiment, is_new=True),
}
RAY_SHARE = 20
"""Of 200 kills, those of actors, nodes and the driver of a run on a Ray cluster; see ``on_ray``."""


def write_shared(folder: Path) -> None:
    """Write the checkpoints and answers that commands find."""
    from evalkit.files import environment
    from evalkit.models.new_checkpoint import write_checkpoint
    from evalkit.runs.config import run_config
    from evalkit.runs.plan import make_plan
    from evalkit.runs.run import run

    write_checkpoint(folder / "tiny", window=2048, seed=0)
    write_checkpoint(folder / "base", window=512, vocab_size=600, num_layers=1)
    asked = {"task": "babilong", "lengths": ("1k",), "subsets": ("qa1", "qa6"), "samples": 10, "backend": "scripted"}
    for name, script in (("one", "oracle"), ("two", "wrong"), ("torn", "empty")):
        given = {"model": str(folder / "tiny"), "arm": name, "script": script, "out": str(folder / "answers" / name)}
        with environment({"EVALKIT_CACHE": str(folder / "cache")}):
            run(make_plan(run_config(asked | given)))


@contextmanager
def server(shared: Path) -> Iterator[Any]:
    """Run a server that counts what it is asked."""
    from evalkit.models.encoder import Encoder
    from tests.misbehaving_server import serving

    with serving(Encoder.open(shared / "tiny").tokenizer) as fake:
        fake.models[0]["max_model_len"] = 4096
        fake.seconds = 0.05
        yield fake
