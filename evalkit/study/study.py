"""An experiment and where it is carried out: its folders, the settings of each of its steps, and what they take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evalkit.errors import BadInput
from evalkit.files import slug
from evalkit.machine import processor
from evalkit.models.hub import local
from evalkit.runs.config import RunConfig
from evalkit.runs.plan import Cell, Plan, expected_stories, make_plan
from evalkit.study.calibration import calibrate_answers, calibrate_training, trained_tokens_per_second
from evalkit.study.experiment import BASE, RUNS, Curve, Experiment
from evalkit.train.config import TrainConfig
from evalkit.train.data import TRAINING_SEED
from evalkit.train.tiny import BASES

if TYPE_CHECKING:
    from evalkit.study.cost import RunCost

PORTABLE_KERNELS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2,STRICT"}
"""Let every x86-64 processor with AVX2 sum in the same order, so that a training seed names its weights.

The first is for torch's own kernels, the second for MKL's, which differ between makers of processors unless they are
STRICT. numpy's and oneDNN's have no part in a training.
"""
THIS_MACHINE = "this machine"
"""Names, among devices, the one whose pace earlier runs or a calibration recorded."""
_BUILDING_SECONDS = 20.0
"""For so long prompts are built to know what a run takes; of those left over the size is estimated."""


class Cost(NamedTuple):
    """What a step takes; None where that is not known."""

    tokens: int | None
    memory: float | None
    """Bytes of weights, gradients and optimizer, or of weights and the keys and values of one request; activations come
    on top."""
    seconds: Mapping[str, float]
    """By device, of one of it; those for which no rate is stated or measured are absent."""


class OneRun(NamedTuple):
    """How a study's first curve would ask its base."""

    plan: Plan
    cost: "RunCost"


@dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment and where it is carried out."""

    experiment: Experiment
    root: Path
    """Of checkpoints and runs."""
    plots: Path
    """Of the report."""

    @property
    def trains_base(self) -> bool:
        """Whether base and background text are made here."""
        return self.experiment.base in BASES

    def folder(self, seed: int) -> Path:
        """Return the folder of a training seed."""
        return self.root / f"seed-{seed}"

    def base(self, seed: int) -> Path:
        """Return the checkpoint that the arms start from."""
        return self.folder(seed) / BASE if self.trains_base else Path(self.experiment.base)

    @property
    def _revision(self) -> dict[str, str]:
        """The setting that goes with the base, where it is a hub name's revision."""
        return {"revision": self.experiment.revision} if self.experiment.revision else {}

    def trained(self, arm: str, seed: int) -> Path:
        """Return the checkpoint of an arm."""
        return self.base(seed) if arm == BASE else self.folder(seed) / slug(arm)

    def noise(self, part: str) -> Path:
        """Return the background text of "train" or "test"."""
        return self.root / "noise" / f"{part}.txt"

    @property
    def questions(self) -> Path:
        """The settings of what all runs ask."""
        return self.root / "evaluation.toml"

    def training(self, arm: str, seed: int) -> TrainConfig:
        """Return the training of an arm. Arms of one seed differ in their own settings alone."""
        return self.experiment.train_config(
            arm,
            base=str(self.base(seed)),
            out=str(self.trained(arm, seed)),
            seed=seed,
            data_seed=TRAINING_SEED + seed,
            against=[str(self.questions)],
            **self._revision,
            **self._background("train"),
        )

    def evaluation(self, seed: int) -> RunConfig:
        """Return what all curves of a seed are asked, which is the same for every seed."""
        base = str(self.base(seed))
        return self.experiment.run_config(None, model=base, **self._revision, **self._background("test"))

    def run(self, curve: Curve, seed: int) -> RunConfig:
        """Return the run of a curve."""
        return self.experiment.run_config(
            curve,
            model=str(self.trained(curve.arm, seed)),
            arm=curve.label,
            out=str(self.folder(seed) / RUNS / slug(curve.label)),
            **(self._revision if curve.arm == BASE else {}),
            **self._background("test"),
        )

    def calibrate(self) -> None:
        """Measure how fast this machine asks the base and trains the first arm, where that is not known yet.

        Raises:
            BadInput: the base is trained by this study, so it is not there; or it cannot be asked or trained.
            EngineError: the engine cannot be started.
        """
        if self.trains_base:
            raise BadInput(
                f"{self.experiment.name} trains its own base, which is not there to be measured; leave out --calibrate."
            )
        seed = self.experiment.seeds[0]
        calibrate_training(self.training(next(iter(self.experiment.arms)), seed))
        calibrate_answers(self._asking_the_base(self.experiment.curves[0]))

    def _asking_the_base(self, curve: Curve) -> Plan:
        seed = self.experiment.seeds[0]
        config = self.run(curve, seed)
        return make_plan(replace(config, model=str(self.base(seed)), revision=self.experiment.revision))

    @property
    def environment(self) -> dict[str, str]:
        """Variables for its processes, to be set before a library is loaded: small studies are made to be repeated."""
        return dict(PORTABLE_KERNELS) if self.trains_base and "avx2" in processor()["instructions"].split() else {}

    def asking_the_base(self, curve: Curve) -> Plan | None:
        """Return how a curve would ask the base; None where that is not on this machine.

        Raises:
            BadInput: the data are not there, or the base cannot be asked so.
        """
        base = local(str(self.base(self.experiment.seeds[0])), self.experiment.revision)
        return self._asking_the_base(curve) if base and (base / "config.json").is_file() else None

    @cached_property
    def one_run(self) -> "OneRun | None":
        """What a run takes, by the prompts as they are built for the base; None where that is not on this machine.

        It holds for every run: trained arms have the base's tokenizer and shape, and all curves are asked the same.

        Raises:
            BadInput: the data are not there, or the base cannot be asked.
        """
        from evalkit.study.cost import run_cost

        plan = self.asking_the_base(self.experiment.curves[0])
        return OneRun(plan, run_cost(plan, building_seconds=_BUILDING_SECONDS)) if plan else None

    @cached_property
    def cost_of_a_run(self) -> Cost | None:
        """The same as a step's cost, for every device with a rate."""
        from evalkit.study.cost import reading_seconds

        if self.one_run is None:
            return None
        plan, found = self.one_run
        rates = self.experiment.budget.rates
        seconds = {r.device: s for r in rates if (s := reading_seconds(found, plan.checkpoint, r)) is not None}
        seconds |= {THIS_MACHINE: found.seconds} if found.seconds is not None else {}
        memory = found.weight_bytes + max(cell.kv_bytes for cell in found.cells)
        return Cost(sum(cell.prompt_tokens for cell in found.cells), memory, seconds)

    @cached_property
    def trained_tokens_per_second(self) -> float | None:
        """What a calibration measured on this machine; None where none did. Arms differ too little to measure each."""
        if self.trains_base:
            return None
        return trained_tokens_per_second(self.training(next(iter(self.experiment.arms)), self.experiment.seeds[0]))

    @cached_property
    def num_samples(self) -> Mapping[Cell, int]:
        """How many samples each cell of every run has.

        Raises:
            BadInput: the data are not there, so that nobody knows yet.
        """
        return {cell: len(stories) for cell, stories in self.stories.items()}

    @cached_property
    def stories(self) -> Mapping[Cell, Sequence[str]]:
        """The story of each sample of every run, by cell; those about one story count as one.

        Raises:
            BadInput: the data are not there, so that nobody knows yet.
        """
        return expected_stories(self.evaluation(self.experiment.seeds[0]))

    def _background(self, part: str) -> dict[str, list[str]]:
        return {"noise": [str(self.noise(part))]} if self.trains_base else {}
