"""An experiment: which arms are trained, what they are asked, and what the comparison draws. One TOML file each."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from evalkit.errors import BadInput
from evalkit.train.recipes import RECIPES

BASE = "base"
"""The arm that was not trained."""
_FOLDER = Path(__file__).parent / "experiments"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of the figure: an arm under a rope rule."""

    arm: str
    """A name of ``Experiment.arms``, or "base"."""
    rope: Literal["none", "yarn"]
    name: str = ""
    """In tables and figures; empty: the arm's."""
    factor: float | Literal["auto"] = "auto"

    @property
    def label(self) -> str:
        """The name in tables and figures."""
        return self.name or self.arm


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One file of ``evalkit/experiments``."""

    name: str
    about: str
    base: str
    """A name of ``train.tiny.BASES``, to be trained from scratch, or a checkpoint folder."""
    seeds: tuple[int, ...]
    training: Mapping[str, Any]
    """Settings of ``TrainConfig`` and ``DataRecipe`` that all arms share."""
    arms: Mapping[str, Mapping[str, Any]]
    """Name -> the settings that are the arm's own: its recipe, and what belongs to it."""
    evaluation: Mapping[str, Any]
    """Settings of ``RunConfig`` that all curves share."""
    curves: tuple[Curve, ...]
    budget: Mapping[str, float]
    """For the estimate of costs: parameters, train_tokens_per_second and eval_tokens_per_second of one worker."""

    def __post_init__(self) -> None:
        for name, arm in self.arms.items():
            if arm.get("recipe") not in RECIPES:
                raise BadInput(f"Experiment {self.name}: arm {name!r} needs a recipe of {', '.join(RECIPES)}.")
        for curve in self.curves:
            if curve.arm != BASE and curve.arm not in self.arms:
                raise BadInput(f"Experiment {self.name}: curve {curve.label!r} is of no arm: {curve.arm!r}.")
        if missing := {"parameters", "train_tokens_per_second", "eval_tokens_per_second"} - set(self.budget):
            raise BadInput(f"Experiment {self.name}: its budget lacks {min(missing)}.")
        if len({curve.label for curve in self.curves}) < len(self.curves):
            raise BadInput(f"Experiment {self.name}: two curves have the same name.")


def experiment_names() -> tuple[str, ...]:
    """Return the names of the experiments that come with evalkit."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_experiment(name: str, *, base: str | None = None) -> Experiment:
    """Return an experiment by its name, or from a TOML file.

    Args:
        name: one of ``experiment_names``, or a path that ends in .toml.
        base: checkpoint folder or hub name that takes the place of the experiment's base.

    Raises:
        BadInput: there is no such experiment, or its file lacks something.
    """
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(
            f"There is no experiment {name!r}; there are {', '.join(experiment_names())}, or give a .toml file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not a TOML file: {error}.") from error
    try:
        values["curves"] = tuple(Curve(**curve) for curve in values["curves"])
        values["seeds"] = tuple(values["seeds"])
        experiment = Experiment(name=path.stem, **values)
    except (TypeError, KeyError) as error:
        raise BadInput(f"{path} lacks a field, or has one that is not known: {error}.") from error
    return replace(experiment, base=str(base)) if base else experiment
