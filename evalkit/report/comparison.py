"""One arm against another: the difference at every length, the primary endpoint, and what differs besides the arm."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from evalkit.report import stats
from evalkit.report.arms import Arm, phrase
from evalkit.report.estimates import octaves, split_lengths, study_length
from evalkit.report.panel import Measure, Panel
from evalkit.report.run import Run
from evalkit.report.stats import SIGNIFICANT, Contrast

MARGIN = 3.0
"""Points: arms that are shown to differ by less count as equivalent, where nothing else is asked."""
_MAX_ARMS_FOR_ALL_PAIRS = 8

Verdict: TypeAlias = Literal["better", "worse", "equivalent", "undecided"]
"""better, worse: shown to be above or below; equivalent: not, and shown to differ by less than the margin; undecided:
none of these. Shown: p < 0.05 after Holm's correction."""


class Order(NamedTuple):
    """Whether one arm stays above, or below, another over the lengths."""

    word: Literal["holds", "changes", "undecided"]
    above: tuple[str, ...]
    """Lengths at which the first arm's mean is higher."""
    below: tuple[str, ...]
    shown: tuple[str, ...]
    """Those of both at which it is shown, after Holm's correction over the lengths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One arm against another on the samples that both have a score for."""

    arm: str
    baseline: str
    task: str
    scorer: str
    subsets: tuple[str, ...]
    lengths: tuple[str, ...]
    """Those of the primary endpoint: beyond the trained length, or all where no arm says what that is."""
    trained_length: int | None
    num_models: tuple[int, int]
    primary: Contrast | None
    primary_p_holm: float | None = None
    """Over all pairs of this task and scorer."""
    verdict: Verdict | None = None
    """On the primary endpoint; None without one."""
    num_unpaired: int
    """Samples of the primary endpoint that both were asked and one has no score for."""
    by_length: Mapping[str, Contrast]
    """Averaged over subsets."""
    by_length_p_holm: Mapping[str, float]
    by_cell: Mapping[tuple[str, str], Contrast]
    by_cell_p_holm: Mapping[tuple[str, str], float]

    @property
    def order(self) -> Order | None:
        """Whether the order of the two holds over the lengths; None where fewer than two can be compared.

        It holds where all means lie on one side and one of them is shown to; it changes where both sides are shown.
        """
        if len(self.by_length) < 2:
            return None
        above = tuple(n for n, found in self.by_length.items() if found.mean > 0)
        below = tuple(n for n, found in self.by_length.items() if found.mean < 0)
        shown = tuple(n for n, p in self.by_length_p_holm.items() if p < SIGNIFICANT)
        if set(shown) & set(above) and set(shown) & set(below):
            return Order("changes", above, below, shown)
        one_side = len(self.by_length) in (len(above), len(below))
        return Order("holds" if one_side and shown else "undecided", above, below, shown)


def compare_all(
    panel: Panel, present: Sequence[Arm], arms: Sequence[Arm], margin: float
) -> tuple[list[Comparison], list[Comparison], list[str]]:
    """Return each arm against the baseline, other pairs, and why some do not compare; ``margin`` in points."""
    if len(present) < 2:
        return [], [], []
    baseline, *rest = present
    why_not: list[str] = []
    compared, pairs = [], []
    for arm in rest:
        comparison = compare_arms(panel, arm, baseline, arms)
        if comparison is None:
            why_not.append(
                f"{arm.name} and {baseline.name} are not compared on {panel.task}: {_why(panel, arm, baseline)}."
            )
        else:
            compared.append(comparison)
    if len(present) <= _MAX_ARMS_FOR_ALL_PAIRS:
        for i, second in enumerate(rest):
            for first in rest[i + 1 :]:
                comparison = compare_arms(panel, first, second, arms)
                if comparison is not None:
                    pairs.append(comparison)
    judged = _with_verdicts([*compared, *pairs], margin)
    compared, pairs = judged[: len(compared)], judged[len(compared) :]
    return compared, pairs, why_not


def _with_verdicts(comparisons: Sequence[Comparison], margin: float) -> list[Comparison]:
    """Correct the primary endpoints, one family, for their number, and say what each comes to."""
    known = [c.primary for c in comparisons if c.primary is not None]
    differ = iter(stats.holm([found.p for found in known]))
    equivalent = iter(stats.holm([found.p_equivalent(margin / 100) for found in known]))
    judged = []
    for c in comparisons:
        if c.primary is not None:
            p, p_equivalent = next(differ), next(equivalent)
            word: Verdict = "equivalent" if p_equivalent < SIGNIFICANT else "undecided"
            if p < SIGNIFICANT:
                word = "better" if c.primary.mean > 0 else "worse"
            c = replace(c, primary_p_holm=p, verdict=word)
        judged.append(c)
    return judged


def compare_arms(panel: Panel, arm: Arm, baseline: Arm, arms: Sequence[Arm]) -> Comparison | None:
    """Return ``arm`` minus ``baseline`` on their common samples; None where there are none."""
    sides = panel.rows(arm.name), panel.rows(baseline.name)
    measure = Measure(panel, *sides)

    def contrast(by_length: Mapping[str, float], subsets: Sequence[str]) -> Contrast | None:
        return measure.contrast(panel.weights(by_length, subsets)) if by_length else None

    asked = [panel.asked_cells(row for own in side.values() for row in own) for side in sides]
    common = [cell for cell in panel.cells if cell in asked[0] and cell in asked[1]]
    shared = [(s, n) for s, n in common if measure.is_known(panel.weights({n: 1.0}, [s]))]
    if not shared:
        return None
    subsets = tuple(s for s in panel.subsets if any(subset == s for subset, _ in shared))
    lengths = [length for length in panel.lengths if all((s, length) in shared for s in subsets)]
    trained = max((n for n in (study_length(arm, arms), study_length(baseline, arms)) if n), default=None)
    beyond = split_lengths(lengths, trained)[1]
    by_length = {n: c for n in lengths if (c := contrast({n: 1.0}, subsets)) is not None}
    by_cell = {(s, n): c for s, n in shared if (c := contrast({n: 1.0}, [s])) is not None}
    return Comparison(
        arm=arm.name,
        baseline=baseline.name,
        task=panel.task,
        scorer=panel.scorer,
        subsets=subsets,
        lengths=tuple(octaves(beyond)),
        trained_length=trained,
        num_models=(len(sides[0]), len(sides[1])),
        primary=contrast(octaves(beyond), subsets),
        num_unpaired=measure.num_unscored(panel.weights(octaves(beyond), subsets)) if beyond else 0,
        by_length=by_length,
        by_length_p_holm=dict(zip(by_length, stats.holm([c.p for c in by_length.values()]), strict=True)),
        by_cell=by_cell,
        by_cell_p_holm=dict(zip(by_cell, stats.holm([c.p for c in by_cell.values()]), strict=True)),
    )


def repeat_floor(panel: Panel, arm: Arm) -> list[str]:
    """Say how often runs of the very same model disagree: no difference below that means anything."""
    found = []
    for rows in panel.rows(arm.name).values():
        for first, second in itertools.combinations(rows, 2):
            both = ~np.isnan(panel.values[first]) & ~np.isnan(panel.values[second])
            if both.any() and panel.runs[first].weights == panel.runs[second].weights:
                differ = np.count_nonzero(panel.values[first][both] != panel.values[second][both])
                found.append(
                    f"{panel.runs[first].name} and {panel.runs[second].name} asked the same model the same questions: "
                    f"{differ} of {both.sum()} {panel.task} scores differ; smaller differences between arms are noise."
                )
    return found


def _why(panel: Panel, arm: Arm, baseline: Arm) -> str:
    """Say why two arms share no sample."""
    own, theirs = ([run for run in a.runs if run in panel.runs] for a in (arm, baseline))
    differing = data_differences(own[0], theirs[0])
    return f"they were asked different data ({differing[0]})" if differing else "they have no samples in common"


def data_differences(first: Run, second: Run) -> list[str]:
    """Name the parts of the fingerprint in which the data of two runs differ, with both values."""
    a, b = first.data, second.data
    return [
        f"{name} is {phrase(a.get(name))} in {first.name} and {phrase(b.get(name))} in {second.name}"
        for name in sorted({*a, *b})
        if a.get(name) != b.get(name)
    ]


def setup_differences(arms: Sequence[Arm]) -> list[str]:
    """Name what differs between arms besides weights, rope and adapter, one sentence a part, with every value.

    Only runs of the same task and data are compared, so only those are looked at.
    """
    groups: dict[str, list[tuple[str, Run]]] = {}
    for arm in arms:
        for run in arm.runs:
            asked = json.dumps([run.config.get("task"), run.data], sort_keys=True)
            groups.setdefault(asked, []).append((arm.name, run))
    found = []
    for runs in groups.values():
        for part in sorted({name for _, run in runs for name in run.setup}):
            arms_by_value: dict[str, list[str]] = {}
            for arm_name, run in runs:
                arms_by_value.setdefault(_short(run.setup.get(part)), []).append(arm_name)
            if len(arms_by_value) > 1 and len({name for name, _ in runs}) > 1:
                values = [f"{value} for {', '.join(dict.fromkeys(names))}" for value, names in arms_by_value.items()]
                found.append(f"Besides weights and rope the arms differ in {part}: {'; '.join(values)}.")
    return list(dict.fromkeys(found))


def _short(value: object) -> str:
    """A value as a sentence names it, hashes cut; older folders lack parts that newer ones have."""
    text = "not recorded" if value is None else phrase(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{40,}", text) else text
