"""An experiment: which arms are trained, what they are asked, and what the comparison draws. One TOML file each.

Where nothing is trained, see ``evaluation``.

Settings stand flat and under the names that the command line has: ``learning_rate`` is ``--learning-rate``.

    about = "..."  base = "Qwen2.5-7B-Instruct"  seeds = [0, 1, 2]
    [training]      of 'evalkit train', shared by all arms
    [arms]          "Randomized YaRN" = { recipe = "randomized-yarn" }: what is an arm's own
    [evaluation]    of 'evalkit run', shared by all curves
    [[curves]]      arm, name, and any rope setting of 'evalkit run'; factor = [2, 4, 8] draws one curve for each
    [budget]        for the estimate of costs: parameters
    [[budget.rates]]    one kind of device each: device, source, train_tokens_per_second, eval_tokens_per_second
    [scales.cpu]    the same study at another size: what it has of the above takes the place of that
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evalkit import options
from evalkit.errors import BadInput
from evalkit.escaping import require_name
from evalkit.files import slug
from evalkit.lengths import parse_length
from evalkit.models.rope.served import Factor, RopeRequest
from evalkit.options import option
from evalkit.reading import read_toml
from evalkit.runs.config import RunConfig, run_config
from evalkit.train.config import TrainConfig, train_config

BASE = "base"
"""The arm that was not trained."""
RUNS = "runs"
"""The folder of runs, beside those of the arms."""
_FOLDER = Path(__file__).parent / "experiments"
_OF_THE_STUDY = ("base", "revision", "out", "seed", "against", "model", "arm")
"""Settings that ``Study`` gives: they differ from seed to seed."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of the figure: an arm under a rope rule."""

    arm: str = option("--arm", "a name of [arms], or base.")
    name: str = option("--name", "in tables and figures; without it the arm's.", default="")
    rope: RopeRequest = field(default_factory=RopeRequest)

    @property
    def label(self) -> str:
        """The name in tables and figures."""
        return self.name or self.arm


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one kind of device achieves, for the estimate of costs; what is left out stays unknown."""

    device: str = option("--device", "such as 1 H200.")
    source: str = option("--source", "who measured it, or that it is an estimate.")
    train_tokens_per_second: float | None = option("--train-tokens-per-second", "in training.", default=None)
    eval_tokens_per_second: float | None = option("--eval-tokens-per-second", "of prompts.", default=None)
    eval_length: int | None = option(
        "--eval-length", "tokens of the prompts at which that was seen.", default=None, parse=parse_length
    )
    """Shorter prompts go faster: where it is given, time follows the operations of a prompt and not its tokens."""

    def __post_init__(self) -> None:
        _refuse_what_is_not_positive(self)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """For the estimate of costs; what is left out stays unknown."""

    parameters: float | None = option("--parameters", "weights of the base.", default=None)
    rates: tuple[Rate, ...] = option("--rates", "one kind of device each.", default=())

    def __post_init__(self) -> None:
        _refuse_what_is_not_positive(self)


def _refuse_what_is_not_positive(estimates: Rate | Budget) -> None:
    for setting in options.settings(type(estimates)).values():
        value = getattr(estimates, setting.name)
        if isinstance(value, (int, float)) and value <= 0:
            raise BadInput(
                f"{setting.option.key} is {value:g}; an estimate is positive, and an unknown one is left out."
            )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One file of ``evalkit/study/experiments``, or a person's own.

    Raises:
        BadInput: settings that no training or run could have; names the file and the table.
    """

    file: str
    """For messages."""
    name: str
    about: str = option("--about", "a sentence for the list of experiments.")
    base: str = option(
        "--base", "a name of train.tiny.BASES, to be trained from scratch, a checkpoint folder or a hub name."
    )
    revision: str | None = option("--revision", "branch, tag or commit of a hub name.", default=None)
    seeds: tuple[int, ...] = option("--seeds", "of the trainings.")
    training: Mapping[str, Any] = option("--training", "settings of 'evalkit train' that all arms share.")
    arms: Mapping[str, Mapping[str, Any]] = option("--arms", "name -> the settings that are the arm's own.")
    evaluation: Mapping[str, Any] = option("--evaluation", "settings of 'evalkit run' that all curves share.")
    curves: tuple[Curve, ...] = option("--curves", "what is asked and drawn.")
    published: tuple[str, ...] = option(
        "--published", "others' figures to show beside, as 'evalkit report --published' takes them.", default=()
    )
    budget: Budget = option("--budget", "for the estimate of costs.", default=Budget())

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0:
            raise BadInput(f"{self.file}: seeds is {list(self.seeds)}; name at least one, from 0 up.")
        for table, there in (("[arms]", self.arms), ("[[curves]]", self.curves)):
            if not there:
                raise BadInput(
                    f"{self.file} has nothing under {table}, so there is nothing to compare; what needs no training is "
                    "asked by 'evalkit run FILE'."
                )
        refuse(self.training, _OF_THE_STUDY, f"{self.file} [training]", "the study gives it")
        refuse(self.evaluation, ("out", "model", "revision", "arm"), f"{self.file} [evaluation]", "the study gives it")
        refuse(self.evaluation, options.settings(RopeRequest), f"{self.file} [evaluation]", "each of [[curves]] has it")
        for name, own in self.arms.items():
            refuse(own, _OF_THE_STUDY, f"{self.file}, arm {name!r}", "the study gives it")
        for curve in self.curves:
            if curve.arm != BASE and curve.arm not in self.arms:
                raise BadInput(f"{self.file}: curve {curve.label!r} is of no arm: {curve.arm!r} is not in [arms].")
        refuse_one_folder_for_two(self.file, "arms", [BASE, RUNS, *self.arms])
        refuse_one_folder_for_two(self.file, "curves", [curve.label for curve in self.curves])
        for name in self.arms:
            self.train_config(name, base=BASE, out=name)
        for curve in self.curves:
            self.run_config(curve, model=BASE)

    def train_config(self, arm: str, **given: Any) -> TrainConfig:
        """Return the training of an arm; ``given`` holds what the file leaves to the study."""
        with named(f"{self.file} [training]"):
            train_config({"recipe": "plain", **given, **self.training}, f"{self.file} [training]")
        with named(f"{self.file}, arm {arm!r}"):
            return train_config({**given, **self.training, **self.arms[arm]}, f"{self.file}, arm {arm!r}")

    def run_config(self, curve: Curve | None, **given: Any) -> RunConfig:
        """Return the run of a curve, or, of none, what all curves are asked; ``given`` as in ``train_config``."""
        where = f"{self.file} [evaluation]"
        with named(where):
            config = run_config({**given, **self.evaluation}, where)
        if curve is None:
            return config
        rope = options.write(curve.rope)
        return run_config({**given, **self.evaluation, **rope}, f"{self.file}, curve {curve.label!r}")


def experiment_names() -> tuple[str, ...]:
    """Return the names of the experiments that come with evalkit."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_experiment(
    name: str, *, base: str | None = None, revision: str | None = None, scale: str | None = None
) -> Experiment:
    """Return an experiment by its name, or from a TOML file.

    Args:
        name: one of ``experiment_names``, or a path that ends in .toml.
        base: checkpoint folder or hub name that takes the place of the experiment's base.
        revision: of a hub name; that of the experiment belongs to its own base.
        scale: a name of the file's [scales]; None: its full size.

    Raises:
        BadInput: there is no such experiment or scale, or a setting that is missing, unknown or of another type; names
            the file and the setting.
    """
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise BadInput(
            f"There is no experiment {name!r}; there are {', '.join(experiment_names())}, or give a .toml file."
        )
    where = str(path)
    values = _at_scale(read_toml(path), scale, where)
    if base:
        values = {key: value for key, value in values.items() if key != "revision"} | {"base": str(base)}
    if revision:
        values |= {"revision": revision}
    if not {"training", "curves"} & values.keys():
        raise BadInput(f"{where} trains nothing that could be reproduced; to ask what it says: evalkit run {where}")
    options.refuse_unknown(values, where, Experiment)
    chosen: dict[str, Any] = {}
    if "curves" in values:
        chosen["curves"] = tuple(_curves(values["curves"], where))
    if "budget" in values:
        _check_table(values["budget"], where, "[budget]")
        options.refuse_unknown(values["budget"], f"{where} [budget]", Budget)
        with named(f"{where} [budget]"):
            rates = tuple(_rates(values["budget"].get("rates", []), f"{where} [budget]"))
            chosen["budget"] = options.read(Budget, values["budget"], f"{where} [budget]", rates=rates)
    return options.read(
        Experiment, values, where, file=where, name=f"{path.stem}-{scale}" if scale else path.stem, **chosen
    )


def _at_scale(values: dict[str, Any], scale: str | None, where: str) -> dict[str, Any]:
    """Return an experiment's values with those of a scale in their place: tables setting by setting, all else whole."""
    scales = values.pop("scales", {})
    _check_table(scales, where, "[scales.NAME]")
    if scale is None:
        return values
    if scale not in scales:
        known = f"it has {', '.join(scales)}" if scales else "it has none"
        raise BadInput(f"{where}: there is no scale {scale!r}; {known}, or leave --scale out for its full size.")
    own = scales[scale]
    _check_table(own, where, f"[scales.{scale}]")
    whole = ("arms", "curves")
    for key, value in own.items():
        if isinstance(value, dict):
            _check_table(values.get(key, {}), where, f"[{key}]")
    return values | {
        key: {**values.get(key, {}), **value} if isinstance(value, dict) and key not in whole else value
        for key, value in own.items()
    }


def _curves(tables: Any, where: str) -> Iterator[Curve]:
    """Yield the curves, one for each factor of a sweep."""
    if not isinstance(tables, list):
        raise BadInput(f"{where}: curves is {tables!r}; write each curve under a heading [[curves]].")
    for number, values in enumerate(tables, 1):
        _check_table(values, where, "[[curves]]")
        place = f"{where}, curve {values.get('name') or values.get('arm') or number!r}"
        options.refuse_unknown(values, place, Curve)
        with named(place):
            factors = values.get("factor")
            for factor in factors if isinstance(factors, list) else []:
                curve = options.read(Curve, {**values, "factor": factor}, place)
                yield replace(curve, name=f"{curve.label} {_factor_label(curve.rope.factor)}")
            if not isinstance(factors, list):
                yield options.read(Curve, values, place)


def _rates(tables: Any, where: str) -> Iterator[Rate]:
    if not isinstance(tables, list):
        raise BadInput(f"{where}: rates is {tables!r}; write each under a heading [[budget.rates]].")
    for values in tables:
        _check_table(values, where, "[[budget.rates]]")
        options.refuse_unknown(values, where, Rate)
        yield options.read(Rate, values, where)


def _factor_label(factor: Factor) -> str:
    return f"x{factor:g}" if isinstance(factor, (int, float)) else "auto"


@contextmanager
def named(where: str) -> Iterator[None]:
    """Let every refusal name the file and the table that it is about."""
    try:
        yield
    except BadInput as error:
        if str(error).startswith(where):
            raise
        raise BadInput(f"{where}: {error}") from error


def _check_table(values: Any, where: str, heading: str) -> None:
    if not isinstance(values, dict):
        raise BadInput(f"{where}: {values!r} stands where settings under a heading {heading} belong.")


def refuse(values: Mapping[str, Any], keys: Sequence[str] | Mapping[str, Any], where: str, because: str) -> None:
    """Refuse a setting that has no place in a table. Raises BadInput."""
    if key := next((key for key in values if key in keys), None):
        raise BadInput(f"{where} has the setting {key}, but {because}; leave it out.")


def refuse_one_folder_for_two(where: str, what: str, names: Sequence[str]) -> None:
    """Refuse names that would share a folder, or that none can be made of. Raises BadInput."""
    folders: dict[str, str] = {}
    for name in names:
        require_name(name, f"{where}: one of {what}")
        if not slug(name):
            raise BadInput(f"{where}: {what} have the name {name!r}, of which no folder's name can be made.")
        if slug(name) in folders:
            raise BadInput(
                f"{where}: {folders[slug(name)]!r} and {name!r} of its {what} would share the folder {slug(name)}; "
                "rename one."
            )
        folders[slug(name)] = name
