"""The steps of a study: what each makes, whether that is there, the command that makes it, and what it costs.

Every step leaves something that says by itself whether it is finished, so a reproduction that was killed goes on where
it was when the same command is repeated. Steps of one class do not depend on each other.

    ROOT/noise/           background text of training and evaluation, where the experiment makes its own
    ROOT/evaluation.toml  what all runs ask: held out of every training
    ROOT/seed-0/base/     the base, where the experiment trains it
    ROOT/seed-0/ARM/      the trained checkpoints
    ROOT/seed-0/runs/     the run folders
    PLOTS/                the report
"""

import shlex
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

from evalkit import options
from evalkit.errors import BadInput
from evalkit.files import slug, write_whole
from evalkit.lengths import parse_length
from evalkit.models.training_record import TRAINING_RECORD
from evalkit.records.folder import RunFolder
from evalkit.runs.config import RunConfig
from evalkit.runs.plan import Cell, make_plan
from evalkit.study.experiment import RUNS, Curve
from evalkit.study.study import THIS_MACHINE, Cost, Study
from evalkit.train.config import TrainConfig
from evalkit.train.tiny import BASES, train_base, write_noise
from evalkit.types import Prediction

OnPart: TypeAlias = Callable[[int, int], None]
"""Called with (parts done, parts in all) while a step goes on."""
_NOISE = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """Something to be done, and where its result goes."""

    kind: ClassVar[str]
    study: Study

    @property
    @abstractmethod
    def title(self) -> str:
        """Tells it apart from the others of its kind."""

    @abstractmethod
    def done(self) -> bool:
        """Tell from what is there whether it is finished; carrying it out once more is cheap and changes nothing.

        Raises:
            BadInput: data that would tell are missing.
        """

    @abstractmethod
    def carry_out(self, on_part: OnPart) -> str:
        """Do it in this process, and return a line about it."""

    def command(self) -> str:
        """Return the command that does it by itself; empty where only ``evalkit reproduce`` can."""
        return ""

    def cost(self) -> Cost | None:
        """Return what it takes, as can be told at once; None where that is next to nothing."""
        return None

    def built_cost(self) -> Cost | None:
        """Return what it takes as precisely as half a minute allows.

        Raises:
            BadInput: data that would tell are missing.
        """
        return self.cost()

    def __str__(self) -> str:
        return f"{self.kind} {self.title}"


@dataclass(frozen=True, kw_only=True)
class Noise(Step):
    """Write the background text."""

    kind = "noise"
    title = "background text"

    def done(self) -> bool:
        """Tell whether both texts are there."""
        return all(self.study.noise(part).is_file() for part in _NOISE)

    def carry_out(self, on_part: OnPart) -> str:
        """Write them; see ``Step``."""
        for number, part in enumerate(_NOISE):
            write_noise(self.study.noise(part), seed=number)
        return "written"


@dataclass(frozen=True, kw_only=True)
class Questions(Step):
    """Write down what the runs will ask, for the trainings to hold out."""

    kind = "ask"
    title = "questions to hold out"

    @property
    def _text(self) -> str:
        return options.to_toml(self.study.evaluation(self.study.experiment.seeds[0]))

    def done(self) -> bool:
        """Tell whether they are written down as they are now."""
        file = self.study.questions
        return file.is_file() and file.read_text(encoding="utf-8") == self._text

    def carry_out(self, on_part: OnPart) -> str:
        """Write them; see ``Step``."""
        self.study.questions.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.study.questions, self._text)
        return "written"

    def command(self) -> str:
        """Return the command that prints them, into the file."""
        config = self.study.evaluation(self.study.experiment.seeds[0])
        file = shlex.quote(str(self.study.questions))
        return f"{_command('run', options.words(config))} --print-config > {file}"


@dataclass(frozen=True, kw_only=True)
class Base(Step):
    """Train the base from scratch."""

    kind = "base"
    seed: int

    @property
    def title(self) -> str:
        """Its seed."""
        return f"base, seed {self.seed}"

    def done(self) -> bool:
        """Tell whether it has its record, which is written last."""
        return (self.study.base(self.seed) / TRAINING_RECORD).is_file()

    def carry_out(self, on_part: OnPart) -> str:
        """Train; see ``Step``."""
        base, noise = BASES[self.study.experiment.base], self.study.noise("train")
        return f"in {train_base(self.study.base(self.seed), base, noise=noise, seed=self.seed, on_step=on_part)}"

    def cost(self) -> Cost | None:
        """Return what all stages of its training take."""
        stages = BASES[self.study.experiment.base].stages
        tokens = sum(s.steps * s.batch_size * (s.shortest + s.longest) // 2 for s in stages)
        return _training_cost(self.study, tokens, bytes_per_parameter=16)


@dataclass(frozen=True, kw_only=True)
class Train(Step):
    """Fine-tune one arm."""

    kind = "train"
    arm: str
    seed: int

    @property
    def title(self) -> str:
        """Its arm and seed."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def config(self) -> TrainConfig:
        """The training."""
        return self.study.training(self.arm, self.seed)

    def done(self) -> bool:
        """Tell whether it has its record, which is written last."""
        return (self.study.trained(self.arm, self.seed) / TRAINING_RECORD).is_file()

    def carry_out(self, on_part: OnPart) -> str:
        """Train, or go on; see ``Step``."""
        from evalkit.train.finetune import finetune

        return f"in {finetune(self.config, on_step=on_part)}"

    def command(self) -> str:
        """Return the command with all settings that are not the default."""
        return _command("train", options.words(self.config))

    def cost(self) -> Cost | None:
        """Return what all epochs take."""
        config = self.config
        ends = config.data.rows or (str(config.data.shortest), str(config.data.longest))  # of rows each as many
        tokens = round(config.epochs * config.data.samples * sum(map(parse_length, ends)) / len(ends))
        # Float32 weights, gradients and two moments; with LoRA a frozen bfloat16 base, and about a hundredth trained.
        return _training_cost(self.study, tokens, bytes_per_parameter=2 + 0.16 if config.lora_rank else 16)


@dataclass(frozen=True, kw_only=True)
class Run(Step):
    """Ask one checkpoint under one rope rule."""

    kind = "run"
    curve: Curve
    seed: int

    @property
    def title(self) -> str:
        """Its curve and seed."""
        return f"{self.curve.label}, seed {self.seed}"

    @property
    def config(self) -> RunConfig:
        """The run; its ``out`` is given."""
        return self.study.run(self.curve, self.seed)

    @property
    def out(self) -> Path:
        """The run folder."""
        return self.study.folder(self.seed) / RUNS / slug(self.curve.label)

    def done(self) -> bool:
        """Tell whether every sample of every cell has a final record; see ``Step``."""
        if not (self.out / "run.json").is_file():
            return False
        folder = RunFolder.open(self.out)
        final = Counter(Cell(key.subset, key.length) for key, state in folder.states() if not state.may_be_asked())
        return all(final[cell] >= number * self.config.repeat for cell, number in self.study.num_samples.items())

    def carry_out(self, on_part: OnPart) -> str:
        """Ask what is missing; see ``Step``."""
        from evalkit.runs.run import Observer, run

        class Parts(Observer):
            done = total = 0

            def starts(self, lengths: Sequence[str]) -> None:
                self.total = sum(map(_weight, lengths))

            def answered(self, prediction: Prediction) -> None:
                self.done += _weight(prediction.length)
                on_part(self.done, self.total)

        result = run(make_plan(self.config), Parts())
        unfitting = f", {result.unfitting} do not fit" if result.unfitting else ""
        return f"{result.recorded} samples, {result.asked} asked now, {result.failed} failed{unfitting}"

    def command(self) -> str:
        """Return the command with all settings that are not the default."""
        return _command("run", options.words(self.config))

    def cost(self) -> Cost | None:
        """Return what the prompts take, each as long as its length."""
        budget = self.study.experiment.budget
        tokens = sum(number * parse_length(cell.length) for cell, number in self.study.num_samples.items())
        tokens *= self.config.repeat
        memory = 2 * budget.parameters if budget.parameters else None
        rates = {rate.device: rate.eval_tokens_per_second for rate in budget.rates}
        return Cost(tokens, memory, {device: tokens / rate for device, rate in rates.items() if rate})

    def built_cost(self) -> Cost | None:
        """Return what the prompts take as they are built for the base, where that is on this machine; see ``Step``."""
        return self.study.cost_of_a_run or self.cost()


@dataclass(frozen=True, kw_only=True)
class Report(Step):
    """Compare the arms. It is made anew each time, of the seeds that are asked for and those that are there."""

    kind = "report"
    seeds: tuple[int, ...]

    @property
    def title(self) -> str:
        """Where it goes."""
        return f"into {self.study.plots}"

    def done(self) -> bool:
        """Tell that it has to be made."""
        return False

    def carry_out(self, on_part: OnPart) -> str:
        """Make it; see ``Step``."""
        from evalkit.report.build import build
        from evalkit.report.terminal import notes_text

        folders = self._folders()
        if not folders:
            raise BadInput(f"No run below {self.study.root} has an answer, so there is nothing to report.")
        report = build(folders, self.study.plots, published=self.study.experiment.published)
        return f"{report.text}\n{notes_text(report.notices, full=False)}".rstrip()

    def _folders(self) -> list[Path]:
        """Return the run folders: of other seeds than are asked for, those that are finished."""
        found = {int(p.name.removeprefix("seed-")) for p in self.study.root.glob("seed-*") if p.name[5:].isdigit()}
        curves = self.study.experiment.curves
        asked = [Run(study=self.study, curve=curve, seed=seed) for seed in self.seeds for curve in curves]
        others = [
            Run(study=self.study, curve=curve, seed=seed) for seed in sorted(found - {*self.seeds}) for curve in curves
        ]
        return [step.out for step in asked if (step.out / "run.json").is_file()] + [
            step.out for step in others if step.done()
        ]

    def command(self) -> str:
        """Return the command that reports the seeds asked for."""
        runs = [str(self.study.folder(seed) / RUNS) for seed in self.seeds]
        published = [word for name in self.study.experiment.published for word in ("--published", name)]
        return _command("report", [*runs, *published, "--out", str(self.study.plots)])


def plan_steps(study: Study, seeds: Sequence[int]) -> list[Step]:
    """Return all steps of a reproduction, finished or not, in an order in which they can be done."""
    steps: list[Step] = []
    if study.trains_base:
        steps.append(Noise(study=study))
        steps += [Base(study=study, seed=seed) for seed in seeds]
    steps.append(Questions(study=study))
    steps += [Train(study=study, arm=arm, seed=seed) for seed in seeds for arm in study.experiment.arms]
    steps += [Run(study=study, curve=curve, seed=seed) for seed in seeds for curve in study.experiment.curves]
    return [*steps, Report(study=study, seeds=tuple(seeds))]


def _training_cost(study: Study, tokens: int, *, bytes_per_parameter: float) -> Cost:
    budget = study.experiment.budget
    memory = bytes_per_parameter * budget.parameters if budget.parameters else None
    rates = {rate.device: rate.train_tokens_per_second for rate in budget.rates}
    rates[THIS_MACHINE] = study.trained_tokens_per_second
    return Cost(tokens, memory, {device: tokens / rate for device, rate in rates.items() if rate})


def _weight(length: str) -> int:
    return max(1, parse_length(length))


def _command(name: str, words: Sequence[str]) -> str:
    return shlex.join(["evalkit", name, *words])
