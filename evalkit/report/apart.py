"""Runs of one name that are not one arm: averaged, they would be the score of nothing."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

from evalkit.report.arms import phrase
from evalkit.report.run import Run

Cells: TypeAlias = Collection[tuple[str, str]]
"""(subset, length)."""

_OF_MACHINE = {"precision", "device", "devices"}
_OF_DATA = ("task", "subsets", "samples", "shortest", "longest", "rows")


class Asked(NamedTuple):
    """A run, and where it has answers."""

    run: Run
    cells: Cells


def tell_apart(asked: Sequence[Asked], notices: list[str]) -> dict[str, str]:
    """Return a name of its own, by run, for each run whose arm's name stands for several models or ways to serve one.

    Runs of one arm and task are kept together where they are of one model, or of trainings that differ in their seed
    alone, and are not of the same cells under several rope rules. ``notices`` is told what is told apart, and why.
    """
    renamed: dict[str, str] = {}
    arms: dict[str, list[Asked]] = {}
    for one in asked:
        arms.setdefault(one.run.arm, []).append(one)
    for arm, own in arms.items():
        groups: list[list[Asked]] = []
        why = ""
        for one in own:
            reasons = [next(filter(None, (_conflict(one, other) for other in group)), "") for group in groups]
            if "" in reasons:
                groups[reasons.index("")].append(one)
            else:
                groups.append([one])
                why = why or next(iter(reasons), "")
        if len(groups) == 1:
            continue
        names = [f"{arm} ({group[0].run.name})" for group in groups]
        renamed |= {one.run.name: name for group, name in zip(groups, names, strict=True) for one in group}
        notices.append(
            f"{len(groups)} arms have the name {arm!r} and are shown as {', '.join(map(repr, names))}, since they are "
            f"not seeds of one training ({why}); run them with an --arm of their own."
        )
    return renamed


def _conflict(one: Asked, other: Asked) -> str:
    """Say why two runs of one name cannot be averaged; "" where they can."""
    a, b = one.run, other.run
    if a.published or b.published or a.config.get("task") != b.config.get("task"):
        return ""
    if a.replicate == b.replicate or not (a.training and b.training):
        found = _difference(_model(a), _model(b))
    else:
        found = _difference(_training(a), _training(b))
    if not found and set(one.cells) & set(other.cells):
        found = _difference(_rope(a), _rope(b))
    if not found:
        return ""
    name, mine, theirs = found
    return f"{name} is {_short(theirs)} in {b.name} and {_short(mine)} in {a.name}"


def _model(run: Run) -> dict[str, Any]:
    asked = {name: run.fingerprint.get(name) for name in ("model", "engine.model")}  # a server's own name for it
    return {**run.weights, **asked}


def _rope(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.fingerprint.items() if name.startswith("rope.")}


def _training(run: Run) -> dict[str, Any]:
    """What seeds of one training share, whatever machine each was trained on."""
    assert run.training is not None, "only trained runs are asked"
    record = run.training.to_json()
    parts = {f"training.{name}": record[name] for name in ("recipe", "trained_length", "positions", "rope", "lora")}
    parts |= {f"training.data.{name}": (record["data"] or {}).get(name) for name in _OF_DATA}
    parts |= {f"training.{n}": v for n, v in record["optimization"].items() if n not in _OF_MACHINE}
    return parts | {"training.base.config": (record["base"] or {}).get("config")}


def _difference(first: dict[str, Any], second: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first name with different values, and both."""
    for name in sorted({*first, *second}):
        if first.get(name) != second.get(name):
            return name, first.get(name), second.get(name)
    return None


def _short(value: Any) -> str:
    text = phrase(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
