"""The one table that a terminal and a paper show: every arm's score at each length, and what it is worth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from evalkit.lengths import parse_length
from evalkit.report.analysis import Analysis
from evalkit.report.arms import length_name
from evalkit.report.cells import (
    NOT_RUN,
    Entry,
    Row,
    Table,
    chance_note,
    chance_row,
    counts_text,
    difference_entry,
    effective_entry,
    row_kind,
    score_entry,
    task_title,
)
from evalkit.report.estimates import AVERAGE, CellScore
from evalkit.report.tables import endpoint

Intervals: TypeAlias = Literal["all", "differences", "none"]


def main_table(
    analysis: Analysis,
    task: str,
    *,
    arms: Sequence[str] = (),
    lengths: Sequence[str] = (),
    intervals: Intervals = "all",
) -> Table:
    """Return scores over lengths, averaged over subsets, the difference from the baseline and the effective length.

    Args:
        analysis: of all runs.
        task: which of its tasks.
        arms: those to show, in this order; none for all.
        lengths: those to show; none for all.
        intervals: those to show in a second line.
    """
    scorer = analysis.scorers(task)[0]
    cells = whole_cells(analysis, task, scorer)
    shown = [n for n in analysis.panel(task, scorer).lengths if not lengths or n in lengths]
    present = {arm.name: arm for arm in analysis.arms if any(c.arm == arm.name for c in cells)}
    compared = {c.arm: c for c in analysis.comparisons if (c.task, c.scorer) == (task, scorer)}
    effective = {s.arm: s.effective for s in analysis.summaries if (s.task, s.scorer) == (task, scorer)}
    names = [name for name in arms if name in present] or list(present)
    own = {name: {c.length: c for c in cells if c.arm == name} for name in names}
    averaged = {s.arm: s.subsets for s in analysis.summaries if (s.task, s.scorer) == (task, scorer)}
    ranked = [name for name in names if present[name].runs and not present[name].control]
    if len({averaged.get(name) for name in ranked}) > 1:
        ranked = []  # means over other subsets do not compare
    best = {n: max((_mean(own[name].get(n)) for name in ranked), default=-1.0) for n in shown}
    is_failing = any(c.n_unscored for c in cells)
    rows = []
    for name in names:
        found = [own[name].get(n) for n in shown]
        entries = [Entry(present[name].label)]
        for n, cell in zip(shown, found, strict=True):
            is_best = len(ranked) > 1 and name in ranked and _mean(cell) == best[n] >= 0
            entries.append(score_entry(cell, is_best, with_interval=intervals == "all"))
        if compared:
            c = compared.get(name)
            difference = difference_entry(c.primary, c.primary_p_holm) if c else Entry(NOT_RUN)
            entries.append(difference if intervals != "none" else replace(difference, below=""))
        entries.append(effective_entry(effective.get(name)))
        if is_failing:
            number = sum(c.n_unscored for c in own[name].values())
            entries.append(Entry(str(number), number=number))
        rows.append(Row(group="", entries=tuple(entries), kind=row_kind(present[name])))
    columns = (
        "Arm",
        *(length_name(parse_length(n)) for n in shown),
        *(["Difference"] if compared else []),
        "Effective",
        *(["Unscored"] if is_failing else []),
    )
    return Table(
        name=f"main-{task}",
        title=f"{task_title(task)}: {scorer} score, {over_subsets(analysis, task, cells)}",
        caption=_caption(analysis, task, cells, intervals == "all"),
        columns=columns,
        num_labels=1,
        rows=(*rows, *chance_row(cells, "", ["chance"], len(columns), fill=len(shown))),
    )


def whole_cells(analysis: Analysis, task: str, scorer: str) -> list[CellScore]:
    """Return each arm's cells averaged over its subsets, or those of the only subset that there is."""
    cells = analysis.select(task, scorer)
    whole = AVERAGE if any(c.subset == AVERAGE for c in cells) else cells[0].subset
    return [c for c in cells if c.subset == whole]


def over_subsets(analysis: Analysis, task: str, cells: Sequence[CellScore]) -> str:
    """Return "qa1", "averaged over 5 subsets", or over how many each arm is averaged where they differ."""
    if cells[0].subset != AVERAGE:
        return cells[0].subset
    arms: dict[int, list[str]] = {}
    scorer = cells[0].scorer
    for s in analysis.summaries:
        if (s.task, s.scorer) == (task, scorer) and any(c.arm == s.arm for c in cells):
            arms.setdefault(len(s.subsets), []).append(s.arm)
    if len(arms) == 1:
        return f"averaged over {next(iter(arms))} subsets"
    most, *others = sorted(arms, key=lambda n: -len(arms[n]))
    named = [f"over {n} for {', '.join(arms[n][:3])}{' and more' if len(arms[n]) > 3 else ''}" for n in others]
    return f"averaged over {most} subsets ({'; '.join(named)})"


def _caption(analysis: Analysis, task: str, cells: Sequence[CellScore], intervals: bool) -> str:
    compared = [c for c in analysis.comparisons if (c.task, c.scorer) == (task, cells[0].scorer)]
    parts = [f"0 to 100{', with 95 % intervals' if intervals else ''}; n = {counts_text(c.n for c in cells)} a length."]
    if compared:
        parts.append(
            f"Difference: from {compared[0].baseline}, paired, {endpoint(compared)}; * p < 0.05 after Holm's "
            "correction."
        )
    parts.append("Effective: the longest length whose interval stays above 0.85 of the in-distribution score.")
    if any(row for row in chance_row(cells, "", [], 0, fill=0)):
        parts.append(chance_note(task))
    return " ".join(filter(None, parts))


def _mean(cell: CellScore | None) -> float:
    return -1.0 if cell is None or cell.interval.mean is None else cell.interval.mean
