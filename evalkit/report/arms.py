"""The arms of a report: which runs belong together, in which order they stand, and what length they were trained to."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evalkit.errors import BadInput
from evalkit.lengths import format_length
from evalkit.report.panel import natural
from evalkit.report.run import Run
from evalkit.train.recipes import RECIPES

_RECIPES = ("", *RECIPES)
"""In the order in which arms stand; those without training first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Runs that are compared under one name; none where others published counts."""

    name: str
    runs: tuple[Run, ...]
    trained_length: int | None
    """Tokens; None where no checkpoint of the arm says."""
    published_recipe: str = ""
    """Of published counts: the recipe, where the table names it."""

    @property
    def recipe(self) -> str:
        """Name of the training recipe; "" without training, or where runs disagree."""
        recipes = {run.recipe for run in self.runs} or {self.published_recipe}
        return recipes.pop() if len(recipes) == 1 else ""

    @property
    def published(self) -> bool:
        """Answers, or counts of them, made by others."""
        return all(run.published for run in self.runs)

    @property
    def window(self) -> int | None:
        """Tokens that the base covers by itself; None where no run says, or where they disagree."""
        windows = {run.window for run in self.runs if run.window}
        return windows.pop() if len(windows) == 1 else None

    @property
    def label(self) -> str:
        """The name as tables and figures show it."""
        return f"{self.name} (published)" if self.published else self.name

    @property
    def control(self) -> str:
        """ "no-context" or "facts-only" where the arm only bounds the others."""
        return self.runs[0].control if self.runs else ""

    @property
    def num_models(self) -> int:
        """Trained models: seeds, where the arm was trained more than once."""
        return len({run.replicate for run in self.runs})


def make_arms(runs: Sequence[Run], *, baseline: str | None, trained_length: int | None) -> tuple[Arm, ...]:
    """Return the arms: the baseline, then by recipe and name, then controls, then published ones.

    Args:
        runs: all runs of the report.
        baseline: the arm that others are compared with; None takes plain training, or else the first arm.
        trained_length: overrides what the checkpoints say.

    Raises:
        BadInput: no arm has the name of the baseline.
    """
    arms = []
    for name in {run.arm for run in runs}:
        own = tuple(run for run in runs if run.arm == name)
        lengths = {run.trained_length for run in own if run.trained_length}
        arms.append(Arm(name=name, runs=own, trained_length=trained_length or (max(lengths) if lengths else None)))
    arms.sort(key=_place)
    if baseline is not None and baseline not in {arm.name for arm in arms}:
        raise BadInput(f"No arm is named {baseline!r}; the arms are {', '.join(repr(arm.name) for arm in arms)}.")
    if baseline is None:
        baseline = next((arm.name for arm in arms if arm.recipe == "plain" or arm.name == "plain"), arms[0].name)
    return tuple(sorted(arms, key=lambda arm: arm.name != baseline))


def _place(arm: Arm) -> tuple[object, ...]:
    recipe = _RECIPES.index(arm.recipe) if arm.recipe in _RECIPES else len(_RECIPES)
    return arm.published, bool(arm.control), recipe, natural(arm.name)


def chosen_arms(texts: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the arms that were named, in that order; "a,b" names two, unless an arm has that name.

    Raises:
        BadInput: an arm that there is not.
    """
    found = []
    for text in texts:
        words = text.split(",")
        while words:
            ends = [n for n in range(len(words), 0, -1) if ",".join(words[:n]).strip() in known]
            if not ends:
                raise BadInput(
                    f"No arm is named {','.join(words).strip()!r}; the arms are {', '.join(map(repr, known))}."
                )
            found.append(",".join(words[: ends[0]]).strip())
            words = words[ends[0] :]
    return tuple(dict.fromkeys(found))


def chosen_lengths(lengths: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the lengths that were named.

    Raises:
        BadInput: a length that was not asked.
    """
    for length in lengths:
        if length not in known:
            raise BadInput(f"No run was asked at {length}; the lengths are {', '.join(known)}.")
    return tuple(lengths)


def disagreements(arm: Arm) -> list[str]:
    """Name what differs between the runs of an arm besides seed and task: a reader takes it for one method.

    Weights differ between seeds and between the trainings for two tasks; under one seed and task they should not.
    """
    found: dict[str, str] = {}
    for first, run in itertools.combinations(arm.runs, 2):
        same_task = first.config.get("task") == run.config.get("task")
        same_model = same_task and first.replicate == run.replicate
        for name in sorted({*first.fingerprint, *run.fingerprint}):
            if not same_model and name.startswith("checkpoint."):
                continue
            if not same_task and (name.startswith("data.") or name == "card"):
                continue
            a, b = first.fingerprint.get(name), run.fingerprint.get(name)
            if a != b:
                found.setdefault(name, f"{name} is {phrase(a)} in {first.name} and {phrase(b)} in {run.name}")
    return list(found.values())


def phrase(value: object) -> str:
    """Return a value of a fingerprint as a sentence names it."""
    if value is None:
        return "absent"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def length_name(tokens: int) -> str:
    """Return the way lengths are written in reports: 16384 is "16K"."""
    return format_length(tokens).upper()


def span(lengths: Iterable[int]) -> str:
    """Return "16K to 128K", or "16K" for one length."""
    ordered = sorted(lengths)
    names = [length_name(n) for n in (ordered[:1] + ordered[1:][-1:])]
    return " to ".join(names)
