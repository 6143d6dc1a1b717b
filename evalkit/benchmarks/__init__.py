"""What is asked, and what counts as right. A new benchmark is a card in ``tasks/``, a folder here, a line in TASKS."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from evalkit.benchmarks.cards import load_card
from evalkit.benchmarks.imported import ImportedRun
from evalkit.benchmarks.options import Part, TaskOptions
from evalkit.errors import BadInput
from evalkit.types import Benchmark, Prediction, Sample, Score, TokenCounter

Scorer: TypeAlias = Callable[[Prediction], Score]


@dataclass(frozen=True, slots=True)
class Task:
    """The module of one benchmark, imported when it is first used.

    It has ``OPTIONS``, its subclass of TaskOptions; ``open_benchmark(card, options, *, seed, part, count_tokens)``;
    ``SCORERS`` by name, the official rule first, each a function of a Prediction alone; and ``SCORER_VERSION``. Where
    others publish answers as files, ``imported_runs(folder)`` reads them; where answers come from a closed set,
    ``labels(sample)`` returns it.
    """

    module: str

    @property
    def options(self) -> type[TaskOptions]:
        """The class of its options."""
        options: type[TaskOptions] = self._module.OPTIONS
        return options

    @property
    def scorers(self) -> Mapping[str, Scorer]:
        """The scoring rules by name, the official one first."""
        scorers: Mapping[str, Scorer] = self._module.SCORERS
        return scorers

    @property
    def scorer_version(self) -> str:
        """Changes whenever a stored score has to be computed again."""
        return str(self._module.SCORER_VERSION)

    def imported_runs(self, folder: Path) -> Iterator[ImportedRun | BadInput]:
        """Yield answers of others at or below a folder, and what is wrong with each file that cannot be used."""
        if hasattr(self._module, "imported_runs"):
            yield from self._module.imported_runs(folder)

    def labels(self, sample: Sample) -> tuple[str, ...]:
        """Return all answers that a question can have, the right one among them; empty where no list has them."""
        labels: tuple[str, ...] = self._module.labels(sample) if hasattr(self._module, "labels") else ()
        return labels

    @property
    def _module(self) -> Any:
        return import_module(self.module)

    def open(self, name: str, options: TaskOptions, seed: int, part: Part, count_tokens: Any) -> Benchmark:
        """Return the benchmark; see ``open_benchmark``."""
        opened: Benchmark = self._module.open_benchmark(
            load_card(name), options, seed=seed, part=part, count_tokens=count_tokens
        )
        return opened


TASKS: dict[str, Task] = {
    "babilong": Task("evalkit.benchmarks.babilong.task"),
    "mrcr": Task("evalkit.benchmarks.mrcr.task"),
}
"""Every benchmark by its name, which is that of its card."""


def task(name: str) -> Task:
    """Return a benchmark's entry in ``TASKS``.

    Raises:
        BadInput: there is none.
    """
    if not isinstance(name, str) or name not in TASKS:  # of a file, where it may be anything
        raise BadInput(f"There is no task {name!r}; the tasks are {', '.join(TASKS)}.")
    return TASKS[name]


def open_benchmark(
    name: str,
    options: TaskOptions,
    *,
    seed: int,
    part: Part = "test",
    count_tokens: TokenCounter | None = None,
) -> Benchmark:
    """Return a benchmark, set up for a run or a training.

    Args:
        name: a key of ``TASKS``.
        options: of the class that is registered there.
        seed: draws the questions and all that surrounds them.
        part: of data that come in two parts, the one to read.
        count_tokens: the checkpoint's own count, for published rows that cannot be counted otherwise.

    Raises:
        BadInput: there is no such task, or its data cannot be used.
    """
    return task(name).open(name, options, seed, part, count_tokens)


def imported_runs(folder: Path) -> Iterator[ImportedRun | BadInput]:
    """Yield answers that others have published, of any benchmark; for a file that cannot be used, the error."""
    for one in TASKS.values():
        yield from one.imported_runs(folder)


def score(prediction: Prediction) -> list[Score]:
    """Return one score per scorer of the prediction's task; a failed prediction gets scores without a value.

    Raises:
        BadInput: the task is unknown.
    """
    return [scorer(prediction) for scorer in task(prediction.task).scorers.values()]


def scorer_version(name: str) -> str:
    """Return the version of a task's scoring rules, as ``scores.parquet`` holds it."""
    return f"{name} {task(name).scorer_version}"
