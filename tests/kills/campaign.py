"""Tries: a fresh folder, a command in it, kills, the same command again, and what must hold then."""

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tests.kills import checks
from tests.kills.scenarios import SCENARIOS, Scenario, server, write_shared
from tests.kills.tracing import Call, Kill, Life, live

ROOT = Path(__file__).parents[2]
_AGAIN, _EVERYTHING, _MOMENTS = 0.3, 0.5, 0.1
"""Shares: of tries that are killed a second time, of kills of all processes, of kills at a random moment."""
_IMPORTED = (
    "evalkit.report.build", "evalkit.report.plot", "evalkit.train.finetune", "matplotlib.pyplot", "pandas", "peft",
    "pyarrow.parquet", "scipy.stats", "transformers.models.qwen2.modeling_qwen2", "transformers.trainer",
)  # fmt: skip
"""Once, by the process from which commands are forked: half a minute's work on a busy machine."""
_PATIENCE_SECONDS = 900.0
"""Of a study on a machine that is busy."""
_TRACEBACK = "Traceback (most recent call last)"


@dataclass
class Outcome:
    """What came of a command's tries."""

    kills: int = 0
    how: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def told(self) -> str:
        return ", ".join(f"{number} {how}" for how, number in sorted(self.how.items()))


@dataclass(frozen=True)
class Whole:
    """A command that nobody killed."""

    folder: Path
    calls: tuple[Call, ...]
    seconds: float


class Campaign:
    """All tries of a seed, below a folder."""

    def __init__(self, scratch: Path, seed: int, until: float = float("inf")) -> None:
        self.scratch, self.seed, self.until = scratch, seed, until
        self._wholes: dict[str, Whole] = {}

    @cached_property
    def shared(self) -> Path:
        """The checkpoints and answers that commands find."""
        for module in _IMPORTED:
            if find_spec(module.partition(".")[0]):
                import_module(module)
        folder = self.scratch / "shared"
        folder.mkdir()
        write_shared(folder)
        return folder

    def carry_out(self, name: str, kills: int) -> Outcome:
        """Try a command until it was killed so often, or the time is up."""
        outcome = Outcome()
        number = 0
        while outcome.kills < kills and number < 10 * kills and time.monotonic() < self.until:
            one = self.once(name, number)
            outcome.kills += one.kills
            outcome.how += one.how
            outcome.faults += one.faults
            number += 1
        return outcome

    def once(self, name: str, number: int, show: bool = False) -> Outcome:
        """Make one try, and print its faults."""
        outcome, story = Outcome(), list[str]()
        with ExitStack() as stack:
            fake = stack.enter_context(server(self.shared)) if "{url}" in SCENARIOS[name].words else None
            if name not in self._wholes or fake is not None:  # whose address is another each time
                self._wholes[name] = self._whole(name, fake)
            folder = self._fresh(f"{name}-{number}", SCENARIOS[name])
            faults = list(self._lives(name, number, folder, fake, outcome, story))
        if show:
            print(*story, sep="\n")
            print((folder.parent / f"{folder.name}.txt").read_text())
        for fault in faults:
            outcome.faults.append(fault)
            print(f"FAULT --seed {self.seed} --only {name}:{number}: {fault} [{'; '.join(story)}]", flush=True)
        shutil.rmtree(folder)
        return outcome

    def _lives(self, name: str, number: int, folder: Path, fake: Any, outcome: Outcome, story: list[str]) -> Any:
        whole, draw = self._wholes[name], random.Random(f"{self.seed} {name} {number}")
        before = checks.recorded(folder)
        for _ in range(2 if draw.random() < _AGAIN else 1):
            kill, how = self._kill(name, number + len(story) * 31, whole, draw)
            life = self._live(name, folder, fake, kill)
            at = life.calls[kill.number] if life.killed and kill.number < len(life.calls) else None
            story.append(
                f"killed {how}{f': {at.name} {at.path}' if at else ''}" if life.killed else f"not reached: {how}"
            )
            outcome.kills += life.killed
            outcome.how[how.partition(" ")[0]] += life.killed
            now = checks.recorded(folder)
            yield from checks.lost(before, now)
            yield from self._of_life(folder, life, fake, before)
            before = now
        is_done = SCENARIOS[name].is_once and not list(checks.differences(folder, whole.folder))
        life = self._live(name, folder, fake)
        yield from self._of_life(folder, life, fake, before)
        yield from checks.lost(before, checks.recorded(folder))
        if life.code and not is_done:
            output = (folder.parent / f"{folder.name}.txt").read_text().strip()
            yield f"the command that was repeated ended with code {life.code}: {output[-300:]}"
        else:
            yield from checks.differences(folder, whole.folder)

    def _kill(self, name: str, number: int, whole: Whole, draw: random.Random) -> tuple[Kill, str]:
        """Draw a kill: kinds of calls take turns, so that rare ones are met as often as those of every answer."""
        everything = draw.random() < _EVERYTHING
        who = "all processes" if everything else "its process"
        if draw.random() < _MOMENTS:
            seconds = draw.uniform(0, whole.seconds)
            return Kill(seconds=seconds, everything=True), f"moment {seconds:.2f} s"
        kinds = sorted({(call, mode) for call in whole.calls for mode in ("before", "half", "after")})
        random.Random(f"{self.seed} {name}").shuffle(kinds)
        call, mode = kinds[number % len(kinds)]
        place = draw.choice([place for place, one in enumerate(whole.calls) if one == call])
        return Kill(place, mode, everything), f"{mode} call {place}, {who}"

    def _of_life(self, folder: Path, life: Life, fake: Any, before: checks.Recorded) -> Any:
        """Yield the faults of one life: what it left running, said, or asked though it was answered."""
        if life.hung:
            yield "a process was still there after minutes"
        output = (folder.parent / f"{folder.name}.txt").read_text(errors="replace")
        if life.code >= 0 and _TRACEBACK in output:  # engines may mourn a process that was killed
            yield f"it printed a traceback: {output[-300:]}"
        if fake is not None:
            asked = [sha256(np.array(body["prompt"], "<i4").tobytes()).hexdigest() for body in fake.bodies]
            if again := checks.hashes(before) & set(asked):
                yield f"{len(again)} answers that were recorded were asked again"

    def _whole(self, name: str, fake: Any) -> Whole:
        shutil.rmtree(self.scratch / "whole" / name, ignore_errors=True)
        folder, started = self._fresh(f"whole/{name}", SCENARIOS[name]), time.monotonic()
        life = self._live(name, folder, fake)
        if life.code or life.hung:
            raise SystemExit(f"{name} fails undisturbed: {(folder.parent / f'{folder.name}.txt').read_text()}")
        return Whole(folder, life.calls, time.monotonic() - started)

    def _fresh(self, name: str, scenario: Scenario) -> Path:
        folder = self.scratch / name
        folder.mkdir(parents=True)
        scenario.prepare(folder, self.shared)
        return folder

    def _live(self, name: str, folder: Path, fake: Any, kill: Kill | None = None) -> Life:
        url = fake.url if fake else ""
        if fake:
            fake.bodies.clear()
        return self.live(name, folder, folder.parent / f"{folder.name}.txt", {}, kill, url)

    def live(
        self, name: str, folder: Path, said: Path, variables: Mapping[str, str], kill: Kill | None = None, url: str = ""
    ) -> Life:
        """Carry out a command once, in a folder, with some variables of the environment."""
        words = SCENARIOS[name].words.format(url=url).split()
        variables = {**self._variables(folder), **variables}

        def act() -> None:
            os.environ |= variables
            if SCENARIOS[name].is_new:
                os.execv(sys.executable, [sys.executable, "-m", "evalkit", *words])
            from evalkit.cli.commands import main

            tempfile.tempdir = None
            main(words)

        return live(act, folder, said, kill, _PATIENCE_SECONDS)

    def _variables(self, folder: Path) -> dict[str, str]:
        ours = {"EVALKIT_CACHE": str(folder / "cache"), "TMPDIR": str(self.shared), "PYTHONPATH": str(ROOT)}
        ours |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        return ours
