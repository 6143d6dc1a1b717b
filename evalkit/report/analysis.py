"""What the scores say: estimates by cell, summaries of each arm, and the comparison of arms."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evalkit.benchmarks.cards import load_card
from evalkit.errors import BadInput
from evalkit.lengths import parse_length
from evalkit.report import stats
from evalkit.report.arms import Arm, disagreements, make_arms, said
from evalkit.report.load import Loaded, Run
from evalkit.report.measure import Measure
from evalkit.report.panel import Models, Panel, make_panels
from evalkit.report.stats import Contrast, EffectiveLength, Interval

AVERAGE = "avg"
"""Name of the plain mean over an arm's subsets."""
RELATIVE_THRESHOLD = 0.85
RULER_THRESHOLD = 0.856
_NOTHING = Interval(None, None, None, "none")
_MAX_ARMS_FOR_ALL_PAIRS = 8


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
    num_models: int
    interval: Interval
    """0 to 1."""
    chance: float | None


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
    num_unpaired: int
    """Samples of the primary endpoint that both were asked and one has no score for."""
    by_length: Mapping[str, Contrast]
    """Averaged over subsets."""
    by_length_p_holm: Mapping[str, float]
    by_cell: Mapping[tuple[str, str], Contrast]
    by_cell_p_holm: Mapping[tuple[str, str], float]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that tables, figures and the page show."""

    loaded: Loaded
    arms: tuple[Arm, ...]
    panels: tuple[Panel, ...]
    cells: tuple[CellScore, ...]
    """By arm."""
    run_cells: tuple[CellScore, ...]
    summaries: tuple[ArmSummary, ...]
    comparisons: tuple[Comparison, ...]
    """Every arm against the baseline, with its cells."""
    pairs: tuple[Comparison, ...]
    """Other pairs of arms: the primary endpoint alone."""
    notes: tuple[str, ...]
    """What was left out, or should be known, one sentence each."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in order."""
        return tuple(dict.fromkeys(panel.task for panel in self.panels))

    def scorers(self, task: str) -> tuple[str, ...]:
        """Return the scorers of a task, the one that the report speaks of first."""
        return tuple(panel.scorer for panel in self.panels if panel.task == task)

    def panel(self, task: str, scorer: str) -> Panel:
        """Return one panel."""
        return next(panel for panel in self.panels if (panel.task, panel.scorer) == (task, scorer))

    def study_length(self, arm: str) -> int | None:
        """Return an arm's trained length; for one that was not trained, that of the others, if they agree."""
        return _study_length(next(a for a in self.arms if a.name == arm), self.arms)

    def select(self, task: str, scorer: str) -> list[CellScore]:
        """Return the estimates by arm of one task under one scorer."""
        return [cell for cell in self.cells if (cell.task, cell.scorer) == (task, scorer)]


def analyse(
    loaded: Loaded, *, baseline: str | None = None, trained_length: int | None = None, seed: int = 0
) -> Analysis:
    """Estimate, summarise and compare.

    Args:
        loaded: from ``load_runs``.
        baseline: the arm that others are compared with; see ``make_arms``.
        trained_length: tokens; overrides what the checkpoints say.
        seed: of the resampling; the same seed gives the same numbers.

    Raises:
        BadInput: no arm has the name of the baseline.
    """
    arms = make_arms(loaded.runs, baseline=baseline, trained_length=trained_length)
    panels = tuple(make_panels(loaded.frame, loaded.runs))
    notes = list(loaded.left_out)
    for arm in arms:
        notes += [f"Arm {arm.name!r} joins runs that differ: {what}." for what in disagreements(arm)[:1]]
    notes += _leakage(arms)
    cells: list[CellScore] = []
    run_cells: list[CellScore] = []
    summaries: list[ArmSummary] = []
    comparisons: list[Comparison] = []
    pairs: list[Comparison] = []
    for panel in panels:
        present = [arm for arm in arms if panel.rows(arm.name)]
        for arm in present:
            models = panel.rows(arm.name)
            measure = Measure(panel, models, seed=seed)
            own = _cell_scores(panel, arm.name, models, measure)
            cells += own
            run_cells += _run_scores(panel, arm, own, seed)
            summaries.append(_summary(panel, arm, _study_length(arm, arms), own, measure))
        if panel.scorer in ("official", "corrected"):
            compared, others, why_not = _compare_all(panel, [arm for arm in present if not arm.control], arms, seed)
            comparisons += compared
            pairs += others
            if panel.scorer == "official":
                notes += why_not + [floor for arm in present for floor in _repeat_floor(panel, arm)]
    return Analysis(
        loaded=loaded,
        arms=arms,
        panels=panels,
        cells=tuple(cells),
        run_cells=tuple(run_cells),
        summaries=tuple(summaries),
        comparisons=tuple(comparisons),
        pairs=tuple(pairs),
        notes=tuple(dict.fromkeys(notes)),
    )


def chance(task: str, subset: str, scorer: str) -> float | None:
    """Return the score of a guess; None where the card does not know it."""
    if scorer not in ("official", "corrected"):
        return None
    try:
        return load_card(task).subsets[subset].chance
    except (BadInput, KeyError):
        return None


def _leakage(arms: Sequence[Arm]) -> list[str]:
    """Say what of the evaluation was found in training data, each finding once; a control has its arm's training."""
    found: dict[str, list[str]] = {}
    for arm in (arm for arm in arms if not arm.control):
        for leak in sorted({run.training.get("data", {}).get("leakage", {}).get("found") or "" for run in arm.runs}):
            found.setdefault(leak.rstrip("."), []).append(repr(arm.name))
    found.pop("", None)
    return [f"Training data of {', '.join(names)} against the evaluation: {leak}." for leak, names in found.items()]


# -- estimates -----------------------------------------------------------------------------------------------------


def _cell_scores(panel: Panel, arm: str, models: Models, measure: Measure, run: str = "") -> list[CellScore]:
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
            num_models=mean.num_models,
            interval=mean.interval,
            chance=float(np.mean([g for g in guesses if g is not None])) if None not in guesses else None,
        )
        found.append(cell)
    return found


def _run_scores(panel: Panel, arm: Arm, of_arm: list[CellScore], seed: int) -> list[CellScore]:
    """The same by run; an arm that is one run is not computed twice."""
    rows = [row for own in panel.rows(arm.name).values() for row in own]
    if len(rows) == 1:
        return [replace(cell, run=panel.runs[rows[0]].name) for cell in of_arm]
    found = []
    for row in rows:
        models = {panel.runs[row].name: [row]}
        found += _cell_scores(panel, arm.name, models, Measure(panel, models, seed=seed), panel.runs[row].name)
    return found


# -- summaries over lengths ----------------------------------------------------------------------------------------


def _summary(
    panel: Panel, arm: Arm, trained_length: int | None, cells: Sequence[CellScore], measure: Measure
) -> ArmSummary:
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
    return stats.effective_length(tokens(list(known)), [i.low or 0.0 for i in known.values()], threshold)


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


def _study_length(arm: Arm, arms: Sequence[Arm]) -> int | None:
    """An arm's trained length; for one that was not trained, that of the arms it stands beside, if they agree."""
    others = {other.trained_length for other in arms if other.trained_length}
    return arm.trained_length or (others.pop() if len(others) == 1 else None)


# -- comparisons ---------------------------------------------------------------------------------------------------


def _compare_all(
    panel: Panel, present: Sequence[Arm], arms: Sequence[Arm], seed: int
) -> tuple[list[Comparison], list[Comparison], list[str]]:
    """Each arm against the baseline; other pairs; and why some do not compare."""
    if len(present) < 2:
        return [], [], []
    baseline, *rest = present
    why_not: list[str] = []
    compared, pairs = [], []
    for arm in rest:
        comparison = compare_arms(panel, arm, baseline, arms, seed=seed)
        if comparison is None:
            why_not.append(
                f"{arm.name} and {baseline.name} are not compared on {panel.task}: {_why(panel, arm, baseline)}."
            )
        else:
            compared.append(comparison)
    if len(present) <= _MAX_ARMS_FOR_ALL_PAIRS:
        for i, second in enumerate(rest):
            for first in rest[i + 1 :]:
                comparison = compare_arms(panel, first, second, arms, seed=seed, primary_only=True)
                if comparison is not None:
                    pairs.append(comparison)
    known = [c for c in (*compared, *pairs) if c.primary is not None]
    adjusted = dict(zip(map(id, known), stats.holm([c.primary.p for c in known if c.primary]), strict=True))
    compared, pairs = ([replace(c, primary_p_holm=adjusted.get(id(c))) for c in group] for group in (compared, pairs))
    return compared, pairs, why_not


def compare_arms(
    panel: Panel, arm: Arm, baseline: Arm, arms: Sequence[Arm], *, seed: int = 0, primary_only: bool = False
) -> Comparison | None:
    """Return ``arm`` minus ``baseline`` on their common samples; None where there are none."""
    sides = panel.rows(arm.name), panel.rows(baseline.name)
    measure = Measure(panel, *sides, seed=seed)

    def contrast(by_length: Mapping[str, float], subsets: Sequence[str]) -> Contrast | None:
        return measure.contrast(panel.weights(by_length, subsets)) if by_length else None

    asked = [panel.asked_cells(row for own in side.values() for row in own) for side in sides]
    common = [cell for cell in panel.cells if cell in asked[0] and cell in asked[1]]
    shared = [(s, n) for s, n in common if measure.is_known(panel.weights({n: 1.0}, [s]))]
    if not shared:
        return None
    subsets = tuple(s for s in panel.subsets if any(subset == s for subset, _ in shared))
    lengths = [length for length in panel.lengths if all((s, length) in shared for s in subsets)]
    trained = max((n for n in (_study_length(arm, arms), _study_length(baseline, arms)) if n), default=None)
    beyond = split_lengths(lengths, trained)[1]
    by_length, by_cell = {}, {}
    if not primary_only:
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


def _repeat_floor(panel: Panel, arm: Arm) -> list[str]:
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
        f"{name} is {said(a.get(name))} in {first.name} and {said(b.get(name))} in {second.name}"
        for name in sorted({*a, *b})
        if a.get(name) != b.get(name)
    ]
