"""What each arm scores: in every cell, averaged over subsets, and summarised over the lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evalkit.benchmarks.cards import load_card
from evalkit.errors import BadInput
from evalkit.lengths import parse_length
from evalkit.report import stats
from evalkit.report.arms import Arm
from evalkit.report.panel import Measure, Models, Panel
from evalkit.report.stats import Contrast, EffectiveLength, Interval

AVERAGE = "avg"
"""Name of the plain mean over an arm's subsets."""
RELATIVE_THRESHOLD = 0.85
RULER_THRESHOLD = 0.856
_NOTHING = Interval(None, None, None, "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellScore:
    """The score of an arm (or of one of its runs) in one cell, or averaged over its subsets at one length."""

    run: str
    """"" for an arm as a whole."""
    arm: str
    task: str
    subset: str
    length: str
    scorer: str
    n: int
    n_unscored: int
    n_unfinished: int
    """Of the unscored: cut off inside their reasoning."""
    num_models: int
    interval: Interval
    """0 to 1."""
    chance: float | None
    source: str = ""
    """Of published counts: whose they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """How one arm holds over the lengths of a task. Means over lengths weigh every octave the same."""

    arm: str
    task: str
    scorer: str
    subsets: tuple[str, ...]
    lengths: tuple[str, ...]
    """Lengths at which all subsets were asked."""
    trained_length: int | None
    in_distribution: Interval
    out_of_distribution: Interval
    overall: Interval
    retention: Interval
    area: Interval
    slope: Contrast | None
    """Change per doubling, from the longest trained length outwards."""
    effective: EffectiveLength | None
    effective_ruler: EffectiveLength | None


def cell_scores(panel: Panel, arm: str, models: Models, measure: Measure, run: str = "") -> list[CellScore]:
    """Every cell that the models asked, then the averages over subsets, where all of them were asked."""
    asked = panel.asked_cells(row for own in models.values() for row in own)
    subsets = [s for s in panel.subsets if any(subset == s for subset, _ in asked)]
    places = [(s, length, [s]) for s in subsets for length in panel.lengths if (s, length) in asked]
    if len(subsets) > 1:
        complete = [length for length in panel.lengths if all((s, length) in asked for s in subsets)]
        places += [(AVERAGE, length, subsets) for length in complete]
    found = []
    for subset, length, members in places:
        mean = measure.mean(panel.weights({length: 1.0}, members))
        if mean is None:
            continue
        guesses = [chance(panel.task, member, panel.scorer) for member in members]
        cell = CellScore(
            run=run,
            arm=arm,
            task=panel.task,
            subset=subset,
            length=length,
            scorer=panel.scorer,
            n=mean.n,
            n_unscored=mean.n_unscored,
            n_unfinished=mean.n_unfinished,
            num_models=mean.num_models,
            interval=mean.interval,
            chance=float(np.mean([g for g in guesses if g is not None])) if None not in guesses else None,
        )
        found.append(cell)
    return found


def run_scores(panel: Panel, arm: Arm, of_arm: list[CellScore], seed: int) -> list[CellScore]:
    """The same by run; an arm that is one run is not computed twice."""
    rows = [row for own in panel.rows(arm.name).values() for row in own]
    if len(rows) == 1:
        return [replace(cell, run=panel.runs[rows[0]].name) for cell in of_arm]
    found = []
    for row in rows:
        models = {panel.runs[row].name: [row]}
        found += cell_scores(panel, arm.name, models, Measure(panel, models, seed=seed), panel.runs[row].name)
    return found


def chance(task: str, subset: str, scorer: str) -> float | None:
    """Return the score of a guess; None where the card does not know it."""
    if scorer not in ("official", "corrected"):
        return None
    try:
        return load_card(task).subsets[subset].chance
    except (BadInput, KeyError):
        return None


# -- summaries over lengths ----------------------------------------------------------------------------------------


def summary(
    panel: Panel, arm: Arm, trained_length: int | None, cells: Sequence[CellScore], measure: Measure
) -> ArmSummary:
    """Return how an arm holds over the lengths at which all of its subsets were scored; ``cells``: its own."""
    subsets = tuple(dict.fromkeys(cell.subset for cell in cells if cell.subset != AVERAGE))
    whole = AVERAGE if len(subsets) > 1 else subsets[0]
    lengths = tuple(cell.length for cell in cells if cell.subset == whole and cell.interval.mean is not None)
    inside, outside = split_lengths(lengths, trained_length)

    def mean(chosen: Mapping[str, float]) -> Interval:
        found = measure.mean(panel.weights(chosen, subsets)) if chosen else None
        return found.interval if found else _NOTHING

    retention = _NOTHING
    if inside and outside:
        retention = measure.ratio(*(panel.weights(octaves(part), subsets) for part in (outside, inside)))
    slope = None
    outward = [length for length in (*inside[-1:], *outside) if parse_length(length)]
    if len(outward) > 1:
        steps = dict(zip(outward, stats.slope_weights(tokens(outward)), strict=True))
        slope = measure.contrast(panel.weights(steps, subsets))
    measured = [length for length in lengths if parse_length(length)]  # "0k" has no place on a log axis
    area = dict(zip(measured, stats.area_weights(tokens(measured)), strict=True)) if len(measured) > 1 else {}
    whole_cells = [cell for cell in cells if cell.subset == whole]
    return ArmSummary(
        arm=arm.name,
        task=panel.task,
        scorer=panel.scorer,
        subsets=subsets,
        lengths=lengths,
        trained_length=trained_length,
        in_distribution=mean(octaves(inside)),
        out_of_distribution=mean(octaves(outside)) if trained_length else _NOTHING,
        overall=mean(dict.fromkeys(lengths, 1 / len(lengths))) if lengths else _NOTHING,
        retention=retention,
        area=mean(area),
        slope=slope,
        effective=effective(whole_cells, trained_length),
        effective_ruler=effective(whole_cells, trained_length, threshold=RULER_THRESHOLD),
    )


def effective(
    cells: Sequence[CellScore], trained_length: int | None, threshold: float | None = None
) -> EffectiveLength | None:
    """Return the effective length of one arm in one subset; None where nothing is scored, or nothing is right.

    Without ``threshold`` it is relative: 0.85 of the score up to the trained length, or at the shortest length where no
    trained length is known or none of its lengths was asked. "0k" is no length that a context could be held to.
    """
    known = {c.length: c.interval for c in cells if c.interval.mean is not None and parse_length(c.length)}
    if not known:
        return None
    if threshold is None:
        inside = split_lengths(list(known), trained_length)[0] or list(known)[:1]
        threshold = RELATIVE_THRESHOLD * sum(w * (known[length].mean or 0.0) for length, w in octaves(inside).items())
        if threshold <= 0:
            return None
    intervals = [(i.low or 0.0, 1.0 if i.high is None else i.high) for i in known.values()]
    return stats.effective_length(tokens(list(known)), intervals, threshold)


def tokens(lengths: Sequence[str]) -> list[int]:
    """Return the token counts of length labels."""
    return [parse_length(length) for length in lengths]


def octaves(lengths: Sequence[str]) -> dict[str, float]:
    """Return weights under which every octave counts the same; "0k", which has no octave, counts only if alone."""
    measured = [length for length in lengths if parse_length(length)]
    if not measured:
        return dict.fromkeys(lengths, 1.0)
    return dict(zip(measured, map(float, stats.octave_weights(tokens(measured))), strict=True))


def split_lengths(lengths: Sequence[str], trained_length: int | None) -> tuple[list[str], list[str]]:
    """Return the lengths up to the trained one, and those beyond; all are beyond where it is not known."""
    inside = [length for length in lengths if trained_length and parse_length(length) <= trained_length]
    return inside, [length for length in lengths if length not in inside]


def study_length(arm: Arm, arms: Sequence[Arm]) -> int | None:
    """An arm's trained length; for one that was not trained, that of the arms it stands beside, if they agree."""
    others = {other.trained_length for other in arms if other.trained_length}
    return arm.trained_length or (others.pop() if len(others) == 1 else None)
