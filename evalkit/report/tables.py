"""The tables of a report, once, for every form they are printed in (see ``render.py``)."""

from collections.abc import Iterable, Sequence

from evalkit.lengths import parse_length
from evalkit.report.analysis import Analysis
from evalkit.report.arms import length_name, span
from evalkit.report.cells import (
    NOT_RUN,
    Entry,
    Row,
    Table,
    chance_note,
    chance_row,
    counts_text,
    detectable_entry,
    difference_entry,
    effective_entry,
    interval_entry,
    p_entry,
    percent,
    points,
    row_kind,
    score_entry,
    signed_entry,
    task_title,
    unscored_entry,
)
from evalkit.report.comparison import Comparison
from evalkit.report.estimates import AVERAGE, CellScore, effective
from evalkit.report.group_tables import group_tables


def all_tables(analysis: Analysis) -> list[Table]:
    """Return every table, in reading order: for each task the comparison, the summary, then scores by scorer."""
    tables = []
    for task in analysis.tasks:
        scorers = analysis.scorers(task)
        for scorer in scorers:
            if any((c.task, c.scorer) == (task, scorer) for c in analysis.comparisons):
                tables += [comparison_table(analysis, task, scorer), detectable_table(analysis, task, scorer)]
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
            f"{_tokens_note(analysis, task)} n: scored samples of a cell, the fewest and the most of the lengths; in "
            "reasoning: answers that were cut off inside of it. Avg: mean over the lengths. Effective: the "
            "longest length up to which the interval stays above 0.85 of the in-distribution score (of the shortest "
            f"length, where no trained length is known): few samples prove only short ones. {chance_note(task)} "
            f"{NOT_RUN}: not run."
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
        is_ranked = arm.name in ranked
        entries = [
            Entry(_group_name(analysis, known[0])),
            Entry(arm.label),
            Entry(counts_text(cell.n for cell in known), number=max(cell.n for cell in known)),
            unscored_entry(known),
            *(
                score_entry(cell, is_ranked and _mean(cell) == top is not None)
                for cell, top in zip(line, best, strict=True)
            ),
            Entry(points(mean), best=is_ranked and mean == best_mean is not None, number=percent(mean)),
            effective_entry(effective(known, analysis.study_length(arm.name))),
        ]
        rows.append(Row(group=cells[0].subset, entries=tuple(entries), kind=row_kind(arm)))
    labels = [cells[0].subset, "chance", "", ""]
    return rows + chance_row(cells, cells[0].subset, labels, len(labels) + len(lengths) + 2, fill=len(lengths) + 1)


def comparison_table(analysis: Analysis, task: str, scorer: str) -> Table:
    """Every arm minus the baseline at each length, and the primary endpoint; then other pairs of arms."""
    compared = [c for c in analysis.comparisons if (c.task, c.scorer) == (task, scorer)]
    pairs = [c for c in analysis.pairs if (c.task, c.scorer) == (task, scorer)]
    lengths = [n for n in analysis.panel(task, scorer).lengths if any(n in c.by_length for c in (*compared, *pairs))]
    rows = []
    for c in (*compared, *pairs):
        cells = [difference_entry(c.by_length.get(n), c.by_length_p_holm.get(n)) for n in lengths]
        label = f"{c.arm} − {c.baseline}"
        primary = difference_entry(c.primary, c.primary_p_holm)
        p, n = p_entry(c.primary_p_holm), c.primary.n if c.primary else 0
        num_pairs = Entry(str(n) if n else NOT_RUN, number=n), Entry(str(c.num_unpaired), number=c.num_unpaired)
        words = Entry(c.verdict or NOT_RUN), Entry(c.order.word if c.order else NOT_RUN)
        group = "baseline" if c in compared else "pairs"
        rows.append(Row(group=group, entries=(Entry(label), *cells, primary, p, *words, *num_pairs)))
    return Table(
        name=f"differences-{task}-{scorer}",
        title=f"{task_title(task)}: differences between arms, {scorer.replace('_', ' ')} score",
        caption=(
            "Points of the first arm above the second on the samples that both answered, averaged over subsets, with "
            f"95 % intervals. Primary endpoint: {endpoint(compared)}. * marks p < 0.05 after Holm's correction, over "
            "the lengths of a row and over the primary endpoints of this table. Verdict: better or worse (p < 0.05), "
            f"equivalent (shown to lie within {analysis.margin:g} points of each other: two one-sided tests, Holm's "
            "correction), else undecided. Order: holds where the first arm is above, or below, at every length and at "
            "one of them significantly; changes where it is both, significantly. Unpaired: samples of the primary "
            "endpoint that were asked of both, and have no score on one side."
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


def detectable_table(analysis: Analysis, task: str, scorer: str) -> Table:
    """The smallest difference of each pair of arms that could have been seen."""
    compared = [c for c in (*analysis.comparisons, *analysis.pairs) if (c.task, c.scorer) == (task, scorer)]
    lengths = [n for n in analysis.panel(task, scorer).lengths if any(n in c.by_length for c in compared)]
    rows = [
        Row(
            group="",
            entries=(
                Entry(f"{c.arm} − {c.baseline}"),
                *(detectable_entry(c.by_length.get(n)) for n in lengths),
                detectable_entry(c.primary),
            ),
        )
        for c in compared
    ]
    return Table(
        name=f"detectable-{task}-{scorer}",
        title=f"{task_title(task)}: smallest detectable differences, {scorer.replace('_', ' ')} score",
        caption="Points: the true difference that these samples would show with 80 % power, uncorrected.",
        columns=("Arms", *(length_name(parse_length(n)) for n in lengths), "Primary"),
        num_labels=1,
        rows=tuple(rows),
    )


def summary_table(analysis: Analysis, task: str, scorer: str) -> Table:
    """How each arm holds over lengths, in a few numbers; then what others published."""
    rows = []
    for s in (s for s in analysis.summaries if (s.task, s.scorer) == (task, scorer)):
        arm = next(arm for arm in analysis.arms if arm.name == s.arm)
        entries = (
            Entry(arm.label),
            Entry(length_name(arm.trained_length) if arm.trained_length else NOT_RUN, number=arm.trained_length),
            Entry(length_name(arm.window) if arm.window else NOT_RUN, number=arm.window),
            Entry(str(arm.num_models), number=arm.num_models),
            interval_entry(s.in_distribution),
            interval_entry(s.out_of_distribution),
            interval_entry(s.retention),
            interval_entry(s.area),
            signed_entry(s.slope),
            effective_entry(s.effective),
            effective_entry(s.effective_ruler),
        )
        rows.append(Row(group="", entries=entries, kind=row_kind(arm)))
    asked = set(analysis.panel(task, scorer).lengths)
    for mean in analysis.published_means:
        if mean.task != task or not asked & set(mean.lengths):
            continue  # a report on other lengths has nothing to compare it with
        name = f"{', '.join(filter(None, (mean.arm, mean.model)))} (published, {mean.source})"
        dash = Entry(NOT_RUN)
        score = Entry(points(mean.mean), span(parse_length(n) for n in mean.lengths), number=100 * mean.mean)
        trained = Entry(length_name(mean.trained_length) if mean.trained_length else NOT_RUN)
        rows.append(
            Row(
                group="published",
                entries=(Entry(name), trained, dash, dash, dash, score, *[dash] * 5),
                kind="published",
            )
        )
    return Table(
        name=f"summary-{task}",
        title=f"{task_title(task)}: how the arms hold over lengths, {scorer.replace('_', ' ')} score",
        caption=(
            "Mean over subsets; every octave of length weighs the same. Window: what the base covers by itself. "
            "Beyond: at lengths beyond the trained one, be they within the window or not. Retention: beyond / in "
            "distribution, in percent. Area: under the score over log2 length. Slope: points per doubling, from the "
            "longest trained length outwards. Effective: by 0.85 of the in-distribution score, "
            "and by RULER's 85.6. Published rows are other people's checkpoints and samples: for orientation only."
        ),
        columns=(
            "Arm",
            "Trained to",
            "Window",
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
