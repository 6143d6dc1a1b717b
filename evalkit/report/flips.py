"""The same story with its facts at several depths: where is it right, and does each depth hold as the context grows?"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalkit.report.arms import Arm
from evalkit.report.cells import percent
from evalkit.report.estimates import octaves, split_lengths, study_length
from evalkit.report.groups import Group, group_of, group_rows
from evalkit.report.panel import Measure, Models, Panel
from evalkit.report.resampling import Floats
from evalkit.report.stats import Estimate, Interval, holm

TAG = "depth"


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Runs that were asked at fixed depths, in one task, under its official score."""

    task: str
    depths: tuple[float, ...]
    """0 the top, 1 the end."""
    patterns: tuple[Group, ...]
    """Share of stories that are right at all depths, at the end only, at the beginning only, at none."""
    zones: tuple[Group, ...]
    """Scores at each depth."""
    retention: tuple[tuple[str, float, Interval], ...]
    """Arm, depth, score beyond the trained length over that up to it; none where no trained length is known."""
    retention_differences: tuple["RetentionDifference", ...]
    """Of every other arm from the first, on the same stories."""


@dataclass(frozen=True, kw_only=True)
class RetentionDifference:
    """How much more of its score one arm keeps beyond the trained length than another, with facts at one depth."""

    arm: str
    baseline: str
    depth: float
    estimate: Estimate
    """Of the difference of the two ratios."""
    p_holm: float | None
    """Over the depths."""


def position_flips(panels: Sequence[Panel], arms: Sequence[Arm]) -> tuple[Flips, ...]:
    """Return the flips of each task with samples at two depths or more."""
    found = []
    for panel in (p for p in panels if p.scorer == "official"):
        depth = _depths(panel)
        depths = tuple(sorted(set(depth[~np.isnan(depth)].tolist())))
        if len(depths) < 2:
            continue
        stories, values = _by_story(panel, depth, depths)
        right = values == 1.0
        lost = np.isnan(values).any(axis=2)
        only = [right[:, :, i] & (right.sum(axis=2) == 1) for i in (len(depths) - 1, 0)]
        both_ends = {"right at both ends": right[:, :, 0] & right[:, :, -1]} if len(depths) > 2 else {}
        named = {
            "right at all depths": right.all(axis=2),
            **both_ends,
            f"at the end only ({depths[-1]:g})": only[0],
            f"at the beginning only ({depths[0]:g})": only[1],
            "at none": ~right.any(axis=2),
        }
        patterns = [
            group_of(_with_scores(panel, stories, np.where(lost, np.nan, held)), arms, TAG, name)
            for name, held in named.items()
        ]
        zones = {d: panel.only(depth == d) for d in depths}
        flips = Flips(
            task=panel.task,
            depths=depths,
            patterns=tuple(patterns),
            zones=tuple(group_of(part, arms, TAG, f"{d:g}") for d, part in zones.items()),
            retention=tuple(
                (arm.name, d, _retention(part, arm, arms))
                for arm in arms
                if panel.rows(arm.name)
                for d, part in zones.items()
            ),
            retention_differences=tuple(_retention_differences(zones, panel, arms)),
        )
        found.append(flips)
    return tuple(found)


def _depths(panel: Panel) -> Floats:
    """The depth that each sample was asked at, from its name (``00017@0.5``); NaN where it has none."""
    names = [str(name).partition("@")[2] for name in panel.sample_ids]
    return np.array([float(name) if name else np.nan for name in names])


def _by_story(panel: Panel, depth: Floats, depths: Sequence[float]) -> tuple[NDArray[np.int64], Floats]:
    """Return one sample of each story that stands at every depth, and its scores, shape (runs, stories, depths)."""
    places: dict[tuple[int, int, str], dict[float, int]] = defaultdict(dict)
    for i in np.flatnonzero(~np.isnan(depth)):
        story = str(panel.sample_ids[i]).partition("@")[0]
        places[int(panel.cell[i]), int(panel.data[i]), story][float(depth[i])] = int(i)
    whole = [[own[d] for d in depths] for own in places.values() if len(own) == len(depths)]
    grid = np.array(whole, dtype=np.int64).reshape(len(whole), len(depths))
    order = np.argsort(grid[:, 0])  # a panel's samples are sorted by cell
    return grid[order, 0], panel.values[:, grid[order]]


def _with_scores(panel: Panel, stories: NDArray[np.int64], values: Floats) -> Panel:
    """Return the panel of some samples with other scores, shape (runs, stories)."""
    chosen = np.zeros(len(panel.cell), dtype=bool)
    chosen[stories] = True
    return replace(panel.only(chosen), values=values.astype(float))


def _retention(part: Panel, arm: Arm, arms: Sequence[Arm]) -> Interval:
    models = part.rows(arm.name)
    weights = _beyond_and_within(part, [models], study_length(arm, arms))
    return Measure(part, models).ratio(*weights) if weights else Interval(None, None, None, "none")


def _retention_differences(
    zones: Mapping[float, Panel], panel: Panel, arms: Sequence[Arm]
) -> Iterator[RetentionDifference]:
    compared = [arm for arm in arms if panel.rows(arm.name) and not arm.control]
    for arm in compared[1:]:
        baseline = compared[0]
        trained = max((n for one in (arm, baseline) if (n := study_length(one, arms))), default=None)
        found: dict[float, Estimate] = {}
        for depth, part in zones.items():
            sides = [part.rows(one.name) for one in (arm, baseline)]
            weights = _beyond_and_within(part, sides, trained)
            estimate = Measure(part, *sides).ratio_difference(*weights) if weights else None
            if estimate is not None:
                found[depth] = estimate
        tested = {depth: one.p for depth, one in found.items() if one.p is not None}
        corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
        for depth, estimate in found.items():
            yield RetentionDifference(
                arm=arm.name, baseline=baseline.name, depth=depth, estimate=estimate, p_holm=corrected.get(depth)
            )


def _beyond_and_within(part: Panel, sides: Sequence[Models], trained: int | None) -> list[Floats]:
    """Return the weights of the lengths beyond the trained one, and of those up to it; empty where one has none."""
    asked = set.intersection(*(part.asked_cells(row for rows in side.values() for row in rows) for side in sides))
    subsets = [s for s in part.subsets if any(s == subset for subset, _ in asked)]
    lengths = [n for n in part.lengths if all((s, n) in asked for s in subsets)]
    inside, outside = split_lengths(lengths, trained)
    if not inside or not outside:
        return []
    return [part.weights(octaves(chosen), subsets) for chosen in (outside, inside)]


def flip_rows(found: Iterable[Flips]) -> Iterator[dict[str, Any]]:
    """Yield the rows of depths.csv: those of ``groups.group_rows``, then retention, in percent, over all lengths."""
    for flips in found:
        yield from group_rows([*flips.patterns, *flips.zones])
        for arm, depth, interval in flips.retention:
            if interval.mean is not None:
                yield _retention_row(flips, depth, interval) | {"arm": arm}
        for one in flips.retention_differences:
            row = _retention_row(flips, one.depth, one.estimate) | {"arm": one.arm, "baseline": one.baseline}
            yield row | {"n": one.estimate.n, "p": one.estimate.p, "p_holm": one.p_holm}


def _retention_row(flips: Flips, depth: float, found: Interval | Estimate) -> dict[str, Any]:
    ends = {"score": percent(found.mean), "ci_low": percent(found.low), "ci_high": percent(found.high)}
    return {"task": flips.task, "tag": TAG, "value": f"retention at {depth:g}", **ends}
