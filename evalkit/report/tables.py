"""The tables of a report, once, for every form they are printed in (see ``render.py``)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evalkit.benchmarks.cards import load_card
from evalkit.errors import BadInput
from evalkit.lengths import parse_length
from evalkit.report.analysis import Analysis
from evalkit.report.arms import length_name, span
from evalkit.report.comparison import Comparison
from evalkit.report.estimates import AVERAGE, CellScore, effective
from evalkit.report.flips import Flips, RetentionDifference
from evalkit.report.groups import Group
from evalkit.report.stats import SIGNIFICANT, Contrast, EffectiveLength, Interval

NOT_RUN = "-"


@dataclass(frozen=True, slots=True)
class Entry:
    """One cell of a table."""

    text: str
    below: str = ""
    """A second, smaller line: the interval."""
    best: bool = False
    number: float | None = None
    """What the column sorts by."""
    explanation: str = ""
    """n, unscored, method: shown on demand."""
    samples: tuple[str, str, str, str] | None = None
    """Task, subset, length and arm of the samples behind it, where the page can show them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line; rows of the same group stand together."""

    group: str
    entries: tuple[Entry, ...]
    kind: Literal["arm", "published", "control", "chance", "detail"] = "arm"
    """A detail adds to the row above it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A titled table; the first ``num_labels`` columns are words, the others numbers."""

    name: str
    """For file names and links."""
    title: str
    caption: str
    columns: tuple[str, ...]
    num_labels: int
    rows: tuple[Row, ...]


def all_tables(analysis: Analysis) -> list[Table]:
    """Return every table, in reading order: for each task the comparison, the summary, then scores by scorer."""
    tables = []
    for task in analysis.tasks:
        scorers = analysis.scorers(task)
        for scorer in scorers:
            if any((c.task, c.scorer) == (task, scorer) for c in analysis.comparisons):
                tables.append(comparison_table(analysis, task, scorer))
        tables.append(summary_table(analysis, task, scorers[0]))
        tables += [score_table(analysis, task, scorer) for scorer in scorers]
        tables += group_tables(analysis, task)
        if {"official", "corrected"} <= set(scorers):
            tables += scorer_differences(analysis, task)
    return tables


def score_table(analysis: Analysis, task: str, scorer: str) -> Table:
    """Scores of every arm: lengths from left to right, the average over subsets first."""
    cells = analysis.select(task, scorer)
    lengths = analysis.panel(task, scorer).lengths
    subsets = (AVERAGE, *analysis.panel(task, scorer).subsets)
    by_subset = [[cell for cell in cells if cell.subset == subset] for subset in subsets]
    intervals = "; ".join(sorted({cell.interval.method for cell in cells} - {"none"}))
    return Table(
        name=f"scores-{task}-{scorer}",
        title=f"{task_title(task)}: {scorer.replace('_', ' ')} score",
        caption=(
            f"0 to 100, with 95 % intervals{f' ({intervals})' if intervals else ''} and the best arm in bold. "
            f"{_tokens_note(analysis, task)} n: scored samples per cell; in "
            "reasoning: answers that were cut off inside of it. Avg: mean over the lengths. Effective: the "
            "longest length up to which the interval stays above 0.85 of the in-distribution score (of the shortest "
            f"length, where no trained length is known): few samples prove only short ones. {NOT_RUN}: not run."
        ),
        columns=(
            "Subset",
            "Arm",
            "n",
            "Unscored",
            *(length_name(parse_length(n)) for n in lengths),
            "Avg",
            "Effective",
        ),
        num_labels=2,
        rows=tuple(row for own in by_subset if own for row in _score_rows(analysis, own, lengths)),
    )


def _score_rows(analysis: Analysis, cells: Sequence[CellScore], lengths: Sequence[str]) -> list[Row]:
    """The lines of one subset: every arm that was asked it, the best one of each column marked, then chance."""
    found = {(cell.arm, cell.length): cell for cell in cells}
    arms = [arm for arm in analysis.arms if any(cell.arm == arm.name for cell in cells)]
    lines = {arm.name: [found.get((arm.name, n)) for n in lengths] for arm in arms}
    ranked = [arm.name for arm in arms if arm.runs and not arm.control]
    best: list[float | None] = [None] * len(lengths)
    best_mean: float | None = None
    if len(ranked) > 1:
        best = [_highest(_mean(lines[arm][i]) for arm in ranked) for i in range(len(lengths))]
        best_mean = _highest(_plain_mean(lines[arm]) for arm in ranked)
    rows = []
    for arm in arms:
        line, mean = lines[arm.name], _plain_mean(lines[arm.name])
        known = [cell for cell in line if cell]
        unscored = sum(cell.n_unscored for cell in known)
        is_ranked = arm.name in ranked
        entries = [
            Entry(_group_name(analysis, known[0])),
            Entry(arm.name + (" (published)" if arm.published else "")),
            Entry(_range(cell.n for cell in known), number=max(cell.n for cell in known)),
            _unscored(unscored, _cut_off_thoughts(analysis, known[0])),
            *(_score(cell, is_ranked and _mean(cell) == top is not None) for cell, top in zip(line, best, strict=True)),
            Entry(_points(mean), best=is_ranked and mean == best_mean is not None, number=_percent(mean)),
            _effective(effective(known, analysis.study_length(arm.name))),
        ]
        kind: Any = "published" if arm.published else "control" if arm.control else "arm"
        rows.append(Row(group=cells[0].subset, entries=tuple(entries), kind=kind))
    return rows + _chance_row(cells[0].subset, lines.values(), len(lengths))


def comparison_table(analysis: Analysis, task: str, scorer: str) -> Table:
    """Every arm minus the baseline at each length, and the primary endpoint; then other pairs of arms."""
    compared = [c for c in analysis.comparisons if (c.task, c.scorer) == (task, scorer)]
    pairs = [c for c in analysis.pairs if (c.task, c.scorer) == (task, scorer)]
    lengths = [n for n in analysis.panel(task, scorer).lengths if any(n in c.by_length for c in (*compared, *pairs))]
    rows = []
    for c in (*compared, *pairs):
        cells = [_difference(c.by_length.get(n), c.by_length_p_holm.get(n)) for n in lengths]
        smallest = [_detectable(c.by_length.get(n)) for n in lengths]
        label = f"{c.arm} − {c.baseline}"
        primary = _difference(c.primary, c.primary_p_holm)
        p, n = _p_value(c.primary_p_holm), c.primary.n if c.primary else 0
        num_pairs = Entry(str(n) if n else NOT_RUN, number=n), Entry(str(c.num_unpaired), number=c.num_unpaired)
        words = Entry(c.verdict or NOT_RUN), Entry(c.order.word if c.order else NOT_RUN)
        rows.append(Row(group=label, entries=(Entry(label), *cells, primary, p, *words, *num_pairs)))
        quiet = (Entry("smallest detectable"), *smallest, _detectable(c.primary), *[Entry("")] * 5)
        rows.append(Row(group=label, entries=quiet, kind="detail"))
    return Table(
        name=f"differences-{task}-{scorer}",
        title=f"{task_title(task)}: differences between arms, {scorer.replace('_', ' ')} score",
        caption=(
            "Points of the first arm above the second on the samples that both answered, averaged over subsets, with "
            f"95 % intervals. Primary endpoint: {endpoint(compared)}. * marks p < 0.05 after Holm's correction, over "
            "the lengths of a row and over the primary endpoints of this table. Verdict: better or worse (p < 0.05), "
            f"equivalent (shown to lie within {analysis.margin:g} points of each other: two one-sided tests, Holm's "
            "correction), else undecided. Order: holds where the first arm is above, or below, at every length and at "
            "one of them significantly; changes where it is both, significantly. Smallest detectable: the true "
            "difference that these samples would show with 80 % power. Unpaired: samples of the primary endpoint that "
            "were asked of both, and have no score on one side."
        ),
        columns=(
            "Arms",
            *(length_name(parse_length(n)) for n in lengths),
            "Primary",
            "p (Holm)",
            "Verdict",
            "Order",
            "Pairs",
            "Unpaired",
        ),
        num_labels=1,
        rows=tuple(rows),
    )


def summary_table(analysis: Analysis, task: str, scorer: str) -> Table:
    """How each arm holds over lengths, in a few numbers; then what others published."""
    rows = []
    for s in (s for s in analysis.summaries if (s.task, s.scorer) == (task, scorer)):
        arm = next(arm for arm in analysis.arms if arm.name == s.arm)
        entries = (
            Entry(s.arm + (" (published)" if arm.published else "")),
            Entry(length_name(arm.trained_length) if arm.trained_length else NOT_RUN, number=arm.trained_length),
            Entry(str(arm.num_models), number=arm.num_models),
            _interval(s.in_distribution),
            _interval(s.out_of_distribution),
            _interval(s.retention),
            _interval(s.area),
            _signed(s.slope),
            _effective(s.effective),
            _effective(s.effective_ruler),
        )
        rows.append(Row(group="", entries=entries, kind="published" if arm.published else "arm"))
    asked = set(analysis.panel(task, scorer).lengths)
    for mean in analysis.published_means:
        if mean.task != task or not asked & set(mean.lengths):
            continue  # a report on other lengths has nothing to compare it with
        name = f"{', '.join(filter(None, (mean.arm, mean.model)))} (published, {mean.source})"
        dash = Entry(NOT_RUN)
        score = Entry(_points(mean.mean), span(parse_length(n) for n in mean.lengths), number=100 * mean.mean)
        trained = Entry(length_name(mean.trained_length) if mean.trained_length else NOT_RUN)
        rows.append(
            Row(group="published", entries=(Entry(name), trained, dash, dash, score, *[dash] * 5), kind="published")
        )
    return Table(
        name=f"summary-{task}",
        title=f"{task_title(task)}: how the arms hold over lengths, {scorer.replace('_', ' ')} score",
        caption=(
            "Mean over subsets; every octave of length weighs the same. Beyond: at lengths beyond the trained one. "
            "Retention: beyond / in distribution, in percent. Area: under the score over log2 length. Slope: points "
            "per doubling, from the longest trained length outwards. Effective: by 0.85 of the in-distribution score, "
            "and by RULER's 85.6. Published rows are other people's checkpoints and samples: for orientation only."
        ),
        columns=(
            "Arm",
            "Trained to",
            "Models",
            "In distribution",
            "Beyond",
            "Retention",
            "Area",
            "Slope",
            "Effective",
            "Effective (85.6)",
        ),
        num_labels=1,
        rows=tuple(rows),
    )


def group_tables(analysis: Analysis, task: str) -> list[Table]:
    """Scores by the value of a tag, where one was asked for; flips between depths, where runs were asked at several."""
    tables = []
    groups = [group for group in analysis.groups if group.task == task]
    if groups:
        tag = groups[0].tag
        tables.append(
            _group_table(
                groups,
                name=f"by-{tag}-{task}",
                title=f"{task_title(task)}: official score by {tag}",
                what=f"0 to 100 on the samples with each value of their tag {tag}; samples without it are left out",
            )
        )
    for flips in (f for f in analysis.flips if f.task == task):
        depths = ", ".join(f"{d:g}" for d in flips.depths)
        tables.append(
            _group_table(
                flips.patterns,
                name=f"flips-{task}",
                title=f"{task_title(task)}: the same story at all depths",
                what=f"Percent of the stories asked at each depth ({depths}; 0 top, 1 end), by where they are right",
            )
        )
        tables.append(
            _group_table(
                flips.zones,
                name=f"depths-{task}",
                title=f"{task_title(task)}: official score by depth",
                what="0 to 100 by the depth that the facts stand at (0 the top, 1 the end)",
            )
        )
        tables += _retention_table(flips)
    return tables


def _group_table(groups: Sequence[Group], *, name: str, title: str, what: str) -> Table:
    """Scores of each arm in each group, then points above the baseline."""
    lengths = sorted({c.length for group in groups for c in group.cells}, key=parse_length)
    tag = groups[0].tag
    rows = []
    for group in groups:
        label = Entry(group.value if " " in group.value else f"{tag} {group.value}")
        for arm in dict.fromkeys(c.arm for c in group.cells):
            own = {c.length: c for c in group.cells if c.arm == arm}
            n = Entry(_range(c.n for c in own.values()), number=max(c.n for c in own.values()))
            scores = [_score(own.get(length), best=False, is_listed=False) for length in lengths]
            rows.append(Row(group=group.value, entries=(label, Entry(arm), n, *scores)))
        for c in group.comparisons:
            cells = [_difference(c.by_length.get(length), c.by_length_p_holm.get(length)) for length in lengths]
            n = Entry(_range(d.n for d in c.by_length.values()))
            entries = (label, Entry(f"{c.arm} − {c.baseline}"), n, *cells)
            rows.append(Row(group=group.value, entries=entries, kind="detail"))
    return Table(
        name=name,
        title=title,
        caption=(
            f"{what}. Averaged over the subsets that have such samples, with 95 % intervals; below, paired differences "
            "in points, * marks p < 0.05 after Holm's correction over the lengths of a row. n: scored samples, or "
            "pairs, of a length."
        ),
        columns=("Samples", "Arm", "n", *(length_name(parse_length(n)) for n in lengths)),
        num_labels=2,
        rows=tuple(rows),
    )


def _retention_table(flips: Flips) -> list[Table]:
    if all(interval.mean is None for _, _, interval in flips.retention):
        return []
    found = {(arm, depth): interval for arm, depth, interval in flips.retention}
    rows = [
        Row(group="", entries=(Entry(arm), *(_interval(found[arm, d]) for d in flips.depths)))
        for arm in dict.fromkeys(arm for arm, _, _ in flips.retention)
    ]
    differences = {(one.arm, one.baseline, one.depth): one for one in flips.retention_differences}
    for arm, baseline in dict.fromkeys((arm, baseline) for arm, baseline, _ in differences):
        cells = [_retention_difference(differences.get((arm, baseline, d))) for d in flips.depths]
        rows.append(Row(group="", entries=(Entry(f"{arm} − {baseline}"), *cells), kind="detail"))
    return [
        Table(
            name=f"depth-retention-{flips.task}",
            title=f"{task_title(flips.task)}: retention by depth",
            caption=(
                "Score at lengths beyond the trained one, in percent of that up to it, by the depth that the facts "
                "stand at, with Fieller's 95 % intervals; below, the difference of two arms' retentions in points, on "
                "the same stories (t over stories of the linearised ratios), * marks p < 0.05 after Holm's correction "
                "over the depths of a row."
            ),
            columns=("Arm", *(f"Depth {d:g}" for d in flips.depths)),
            num_labels=1,
            rows=tuple(rows),
        )
    ]


def _retention_difference(found: RetentionDifference | None) -> Entry:
    if found is None:
        return Entry(NOT_RUN)
    one, mark = found.estimate, "*" if found.p_holm is not None and found.p_holm < SIGNIFICANT else ""
    below = "" if one.low is None or one.high is None else f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
    explanation = f"{one.n} pairs in {one.num_clusters} stories"
    return Entry(f"{100 * one.mean:+.1f}{mark}", below, number=100 * one.mean, explanation=explanation)


def scorer_differences(analysis: Analysis, task: str) -> list[Table]:
    """On how many samples official and corrected score differ, by arm; empty where they never do."""
    official, corrected = (analysis.panel(task, name) for name in ("official", "corrected"))
    if official.values.shape != corrected.values.shape:
        return []
    differ = abs(official.values - corrected.values) > 1e-12
    rows = []
    for arm in analysis.arms:
        own = [row for models in official.rows(arm.name).values() for row in models]
        for place, subset in enumerate(official.subsets):
            inside = [i for i, cell in enumerate(official.cells) if cell[0] == subset]
            members = (official.cell >= inside[0]) & (official.cell <= inside[-1])
            count, asked = int(differ[own][:, members].sum()), int(official.asked[own][:, members].sum())
            if count:
                entries = (
                    Entry(arm.name),
                    Entry(subset, number=place),
                    Entry(str(count), number=count),
                    Entry(str(asked), number=asked),
                )
                rows.append(Row(group=arm.name, entries=entries))
    if not rows:
        return []
    return [
        Table(
            name=f"scorers-{task}",
            title=f"{task_title(task)}: samples on which the official and the corrected score differ",
            caption="The official rule keeps its known defects, the corrected one mends them; the page shows which.",
            columns=("Arm", "Subset", "Differ", "Of"),
            num_labels=2,
            rows=tuple(rows),
        )
    ]


def endpoint(compared: Sequence[Comparison]) -> str:
    """Say over which lengths the primary endpoint is the mean."""
    found = sorted({(c.trained_length or 0, c.lengths) for c in compared if c.lengths})
    if not found:
        return "none, as no length beyond the trained one was asked of both arms"
    trained, lengths = found[-1]
    where = f"mean over {span(parse_length(n) for n in lengths)}, every octave weighing the same"
    return where + (f" (trained length {length_name(trained)})" if trained else " (no trained length is recorded)")


def effective_text(length: EffectiveLength | None) -> str:
    """Return "32K", ">=128K", "<4K", or "undecided" where too few samples tell."""
    if length is None:
        return NOT_RUN
    return "undecided" if length.censored == "?" else f"{length.censored}{length_name(length.tokens)}"


def interval_text(interval: Interval | Contrast, *, signed: bool = False) -> str:
    """Return "[8.1, 16.6]" in points."""
    if interval.low is None:
        return ""
    high = "∞" if interval.high is None else f"{100 * interval.high:{'+' if signed else ''}.1f}"
    return f"[{100 * interval.low:{'+' if signed else ''}.1f}, {high}]"


def _unscored(number: int, in_reasoning: int) -> Entry:
    return Entry(f"{number} ({in_reasoning} in reasoning)" if in_reasoning else str(number), number=number)


def _cut_off_thoughts(analysis: Analysis, cell: CellScore) -> int:
    """Return how many answers of a cell's arm and subset, at all lengths, were cut off inside their reasoning."""
    frame = analysis.loaded.frame
    wanted = {"finish_reason": "unfinished_reasoning", "task": cell.task, "scorer": cell.scorer, "arm": cell.arm}
    wanted |= {} if cell.subset == AVERAGE else {"subset": cell.subset}
    return int(frame[[*wanted]].eq(list(wanted.values())).all(axis=1).sum())


def _score(cell: CellScore | None, best: bool, *, is_listed: bool = True) -> Entry:
    """Entry of a score; ``is_listed``: the page has its samples under subset and length."""
    if cell is None:
        return Entry(NOT_RUN)
    if cell.interval.mean is None:
        return Entry("unscored", explanation=f"{cell.n_unscored} unscored")
    return Entry(
        _points(cell.interval.mean),
        interval_text(cell.interval),
        best,
        100 * cell.interval.mean,
        explanation=f"n = {cell.n}, {cell.source or f'{cell.n_unscored} unscored'}, {cell.interval.method}",
        samples=None
        if not is_listed or cell.source or cell.subset == AVERAGE
        else (cell.task, cell.subset, cell.length, cell.arm),
    )


def _interval(interval: Interval) -> Entry:
    if interval.mean is None:
        return Entry(NOT_RUN)
    return Entry(
        _points(interval.mean), interval_text(interval), number=100 * interval.mean, explanation=interval.method
    )


def _signed(contrast: Contrast | None) -> Entry:
    if contrast is None:
        return Entry(NOT_RUN)
    return Entry(f"{100 * contrast.mean:+.1f}", interval_text(contrast, signed=True), number=100 * contrast.mean)


def _difference(contrast: Contrast | None, p_holm: float | None) -> Entry:
    if contrast is None:
        return Entry(NOT_RUN)
    mark = "*" if p_holm is not None and p_holm < SIGNIFICANT else ""
    explanation = f"{contrast.n} pairs in {contrast.num_clusters} stories, p = {contrast.p:.3g}, {contrast.method}"
    return Entry(
        f"{100 * contrast.mean:+.1f}{mark}",
        interval_text(contrast, signed=True),
        number=100 * contrast.mean,
        explanation=explanation,
    )


def _detectable(contrast: Contrast | None) -> Entry:
    return Entry(f"{100 * contrast.detectable:.1f}", number=100 * contrast.detectable) if contrast else Entry("")


def _p_value(p: float | None) -> Entry:
    return Entry(NOT_RUN) if p is None else Entry("<0.001" if p < 0.001 else f"{p:.3f}", number=p)


def _effective(length: EffectiveLength | None) -> Entry:
    order = 0.0 if length is None else length.tokens + {"<": -0.5, "?": -0.25, "": 0.0, ">=": 0.5}[length.censored]
    return Entry(effective_text(length), number=order)


def _chance_row(subset: str, lines: Iterable[Sequence[CellScore | None]], num_lengths: int) -> list[Row]:
    guesses = {cell.chance for line in lines for cell in line if cell and cell.chance is not None}
    if len(guesses) != 1:
        return []
    guess = guesses.pop()
    label = AVERAGE if subset == AVERAGE else subset
    entry = Entry(_points(guess), number=100 * guess)
    return [
        Row(
            group=subset,
            entries=(Entry(label), Entry("chance"), Entry(""), Entry(""), *[entry] * num_lengths, entry, Entry("")),
            kind="chance",
        )
    ]


def _mean(cell: CellScore | None) -> float | None:
    return cell.interval.mean if cell else None


def _highest(means: Iterable[float | None]) -> float | None:
    return max((mean for mean in means if mean is not None), default=None)


def _plain_mean(line: Sequence[CellScore | None]) -> float | None:
    """Mean over all lengths of the table; None where one of them is missing: it would not compare."""
    means = [_mean(cell) for cell in line]
    known = [mean for mean in means if mean is not None]
    return sum(known) / len(known) if known and len(known) == len(means) else None


def _group_name(analysis: Analysis, cell: CellScore) -> str:
    """The subset, or what an average is made of."""
    if cell.subset != AVERAGE:
        return cell.subset
    own = (s for s in analysis.summaries if (s.arm, s.task, s.scorer) == (cell.arm, cell.task, cell.scorer))
    return f"{AVERAGE} of {len(next(own).subsets)}"


def _tokens_note(analysis: Analysis, task: str) -> str:
    lengths = analysis.panel(task, analysis.scorers(task)[0]).lengths
    longest = parse_length(lengths[-1])
    example = f" ({length_name(longest)} = {longest:,})" if length_name(longest) != str(longest) else ""
    published = "; published samples keep their published label" if any(a.published for a in analysis.arms) else ""
    return f"Lengths are tokens{example}{published}."


def task_title(task: str) -> str:
    """Return the name that readers know, such as "BABILong"."""
    try:
        return load_card(task).title.split(":")[0]
    except BadInput:
        return task


def _range(counts: Iterable[int]) -> str:
    ordered = sorted(set(counts))
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]}–{ordered[-1]}"


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _points(value: float | None) -> str:
    return NOT_RUN if value is None else f"{100 * value:.1f}"
