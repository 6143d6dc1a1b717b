"""Scores of samples grouped by a tag of theirs, such as qa3's entries: is an arm ahead on the hard ones only?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalkit.errors import BadInput
from evalkit.report.arms import Arm
from evalkit.report.cells import percent
from evalkit.report.comparison import Comparison, compare_arms
from evalkit.report.estimates import AVERAGE, CellScore, cell_scores
from evalkit.report.load import Loaded
from evalkit.report.panel import Measure, Panel

MOST_GROUPS = 8
"""A number with more values than that is cut into four groups of about equal size."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """What the arms score on the samples whose tag has one value, or lies in one range of values."""

    task: str
    tag: str
    value: str
    """ "2", or "3–7"."""
    cells: tuple[CellScore, ...]
    """One per arm and length, averaged over the subsets that have such samples."""
    comparisons: tuple[Comparison, ...]
    """Every other arm against the baseline."""


def tag_groups(panels: Sequence[Panel], arms: Sequence[Arm], tag: str) -> tuple[Group, ...]:
    """Return the groups of each task, under its official score, values from low to high.

    Samples without the tag are in no group.
    """
    found = []
    for panel in (p for p in panels if p.scorer == "official" and p.tags is not None):
        assert panel.tags is not None
        for value, members in _values([str(text) for text in panel.tags]):
            part = panel.only(np.isin(panel.tags.astype(str), members))
            found.append(group_of(part, arms, tag, value))
    return tuple(found)


def group_of(part: Panel, arms: Sequence[Arm], tag: str, value: str) -> Group:
    """Return scores and differences of some samples; the first arm that was asked them is the baseline."""
    present = [arm for arm in arms if any(part.asked_cells(rows) for rows in part.rows(arm.name).values())]
    compared = [compare_arms(part, arm, present[0], arms) for arm in present[1:] if not arm.control]
    return Group(
        task=part.task,
        tag=tag,
        value=value,
        cells=tuple(c for arm in present for c in _whole(part, arm)),
        comparisons=tuple(c for c in compared if c is not None),
    )


def refuse_unknown_tag(loaded: Loaded, tag: str) -> None:
    """Refuse a tag that no answer has.

    Raises:
        BadInput: with the tags that there are.
    """
    if not (loaded.frame["tag"] != "").any():
        there = ", ".join(loaded.tags) or "none; answers recorded before tags were have none either"
        raise BadInput(f"--by {tag}: no answer of these runs has such a tag; the tags are {there}.")


def _whole(part: Panel, arm: Arm) -> Iterable[CellScore]:
    models = part.rows(arm.name)
    cells = cell_scores(part, arm.name, models, Measure(part, models))
    whole = AVERAGE if any(c.subset == AVERAGE for c in cells) else None
    return [c for c in cells if whole is None or c.subset == whole]


def _values(texts: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the groups' names with the values in each."""
    counts: dict[str, int] = {}
    for text in texts:
        if text:
            counts[text] = counts.get(text, 0) + 1
    numbers = {text: number for text in counts if (number := _number(text)) is not None}
    if len(numbers) < len(counts) or len(counts) <= MOST_GROUPS:
        ordered = sorted(counts, key=lambda text: (numbers.get(text, 0.0), text))
        return [(text, [text]) for text in ordered]
    ordered = sorted(counts, key=lambda text: numbers[text])
    middles = np.cumsum([counts[t] for t in ordered]) - np.array([counts[t] for t in ordered]) / 2
    quarter = np.minimum(4 * middles // sum(counts.values()), 3)
    parts = [[t for t, q in zip(ordered, quarter, strict=True) if q == k] for k in range(4)]
    return [("–".join(dict.fromkeys((part[0], part[-1]))), part) for part in parts if part]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


GROUP_COLUMNS = ("task", "tag", "value", "arm", "baseline", "subset", "length", "n", "score", "ci_low", "ci_high", "p",
                 "p_holm")  # fmt: skip


def group_rows(groups: Iterable[Group]) -> Iterable[dict[str, Any]]:
    """Return the rows of by.csv: the score of each arm, and points above the baseline with their p-value."""
    for group in groups:
        common = {"task": group.task, "tag": group.tag, "value": group.value}
        for c in group.cells:
            mean, low, high = (percent(getattr(c.interval, end)) for end in ("mean", "low", "high"))
            found = {"score": mean, "ci_low": low, "ci_high": high}
            yield common | found | {"arm": c.arm, "subset": c.subset, "length": c.length, "n": c.n}
        for compared in group.comparisons:
            for length, d in compared.by_length.items():
                yield common | {
                    "arm": compared.arm,
                    "baseline": compared.baseline,
                    "subset": AVERAGE if len(compared.subsets) > 1 else compared.subsets[0],
                    "length": length,
                    "n": d.n,
                    "score": percent(d.mean),
                    "ci_low": percent(d.low),
                    "ci_high": percent(d.high),
                    "p": d.p,
                    "p_holm": compared.by_length_p_holm[length],
                }
