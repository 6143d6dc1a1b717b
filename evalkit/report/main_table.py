"""The one table that a terminal and a paper show: every arm's score at each length, and what it is worth."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from evalkit.lengths import parse_length
from evalkit.report.analysis import Analysis
from evalkit.report.arms import Arm, length_name
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
    unscored_entry,
)
from evalkit.report.estimates import AVERAGE, CellScore
from evalkit.report.tables import endpoint

Intervals: TypeAlias = Literal["all", "differences", "none"]
Extra: TypeAlias = Literal["difference", "effective"]
EXTRAS: tuple[Extra, ...] = ("difference", "effective")
_Column: TypeAlias = tuple[str, Callable[[str], Entry]]
"""Heading, and each arm's entry."""


def main_table(
    analysis: Analysis,
    task: str,
    *,
    arms: Sequence[str] = (),
    lengths: Sequence[str] = (),
    intervals: Intervals = "all",
    extras: Sequence[Extra] = EXTRAS,
) -> Table:
    """Return scores over lengths, averaged over subsets, the difference from the baseline and the effective length.

    Args:
        analysis: of all runs.
        task: which of its tasks.
        arms: those to show, in this order; none for all.
        lengths: those to show; none for all.
        intervals: those to show in a second line.
        extras: columns beside the scores. Samples without a score are always counted where there are some.
    """
    scorer = analysis.scorers(task)[0]
    cells = whole_cells(analysis, task, scorer)
    present = {arm.name: arm for arm in analysis.arms if any(c.arm == arm.name for c in cells)}
    names = [name for name in arms if name in present] if arms else list(present)
    cells = [c for c in cells if c.arm in names and (not lengths or c.length in lengths)]
    shown = [n for n in analysis.panel(task, scorer).lengths if any(c.length == n for c in cells)]
    columns = _score_columns(
        analysis, cells, shown, [present[name] for name in names], with_interval=intervals == "all"
    )
    columns += _extra_columns(analysis, task, scorer, extras, with_interval=intervals != "none")
    if any(c.n_unscored for c in cells):
        columns.append(("Unscored", lambda name: unscored_entry(c for c in cells if c.arm == name)))
    labels = analysis.labels(task)
    rows = [
        Row(
            group="",
            entries=(Entry(labels[n]), *(entry(n) for _, entry in columns)),
            kind=row_kind(present[n]),
        )
        for n in names
    ]
    headings = [heading for heading, _ in columns]
    return Table(
        name=f"main-{task}",
        title=f"{task_title(task)}: {scorer} score{over_subsets(analysis, task, cells)}",
        caption=_caption(analysis, cells, headings, intervals == "all"),
        columns=("Arm", *headings),
        num_labels=1,
        rows=(*rows, *chance_row(cells, "", ["chance"], 1 + len(columns), fill=len(shown))),
    )


def _score_columns(
    analysis: Analysis, cells: Sequence[CellScore], lengths: Sequence[str], arms: Sequence[Arm], *, with_interval: bool
) -> list[_Column]:
    """A column for each length, the best arm of each in bold, where all average the same subsets."""
    found = {(c.arm, c.length): c for c in cells}
    averaged = {(s.arm, s.task, s.scorer): s.subsets for s in analysis.summaries}
    ranked = [arm.name for arm in arms if arm.runs and not arm.control]
    if len(ranked) < 2 or len({averaged.get((name, cells[0].task, cells[0].scorer)) for name in ranked}) > 1:
        ranked = []

    def column(length: str) -> _Column:
        best = max((_mean(found.get((name, length))) for name in ranked), default=-1.0)

        def entry(name: str) -> Entry:
            cell = found.get((name, length))
            return score_entry(cell, name in ranked and _mean(cell) == best >= 0, with_interval=with_interval)

        return length_name(parse_length(length)), entry

    return [column(length) for length in lengths]


def _extra_columns(
    analysis: Analysis, task: str, scorer: str, extras: Sequence[Extra], *, with_interval: bool
) -> list[_Column]:
    compared = {c.arm: c for c in analysis.comparisons if (c.task, c.scorer) == (task, scorer)}
    effective = {s.arm: s.effective for s in analysis.summaries if (s.task, s.scorer) == (task, scorer)}

    def difference(name: str) -> Entry:
        c = compared.get(name)
        entry = difference_entry(c.primary, c.primary_p_holm) if c else Entry(NOT_RUN)
        return entry if with_interval else replace(entry, below="")

    columns: list[_Column] = []
    if compared and "difference" in extras:
        columns.append(("Difference", difference))
    if "effective" in extras:
        columns.append(("Effective", lambda name: effective_entry(effective.get(name))))
    return columns


def whole_cells(analysis: Analysis, task: str, scorer: str) -> list[CellScore]:
    """Return each arm's cells averaged over its subsets, or those of the only subset that there is."""
    cells = analysis.select(task, scorer)
    whole = AVERAGE if any(c.subset == AVERAGE for c in cells) else cells[0].subset
    return [c for c in cells if c.subset == whole]


def over_subsets(analysis: Analysis, task: str, cells: Sequence[CellScore], *, by_arm: bool = True) -> str:
    """Return ", qa1", ", averaged over 5 subsets", or over how many each arm is averaged where they differ.

    ``by_arm``: else only the fewest and the most, as a title has no room for names.
    """
    if not cells or cells[0].subset != AVERAGE:
        return f", {cells[0].subset}" if cells else ""
    arms: dict[int, list[str]] = {}
    for s in analysis.summaries:
        if (s.task, s.scorer) == (task, cells[0].scorer) and any(c.arm == s.arm for c in cells):
            arms.setdefault(len(s.subsets), []).append(s.arm)
    most, *others = sorted(arms, key=lambda n: -len(arms[n]))
    if others and not by_arm:
        return f", averaged over {min(arms)} to {max(arms)} subsets"
    named = [f"over {n} for {', '.join(arms[n][:3])}{' and others' if len(arms[n]) > 3 else ''}" for n in others]
    more = f" ({'; '.join(named)})" if named else ""
    return f", averaged over {most} subsets{more}"


def _caption(analysis: Analysis, cells: Sequence[CellScore], headings: Sequence[str], intervals: bool) -> str:
    if not cells:
        return ""
    task, scorer = cells[0].task, cells[0].scorer
    parts = [f"0 to 100{', with 95 % intervals' if intervals else ''}; n = {counts_text(c.n for c in cells)} a length."]
    if "Difference" in headings:
        compared = [c for c in analysis.comparisons if (c.task, c.scorer) == (task, scorer)]
        parts.append(
            f"Difference: from {compared[0].baseline}, paired, {endpoint(compared)}; * p < 0.05 after Holm's "
            "correction."
        )
    if "Effective" in headings:
        parts.append("Effective: the longest length whose interval stays above 0.85 of the in-distribution score.")
    if chance_row(cells, "", [], 0, fill=0):
        parts.append(chance_note(task))
    parts.append(other_questions_note(analysis, task))
    return " ".join(filter(None, parts))


def other_questions_note(analysis: Analysis, task: str) -> str:
    """Return the sentence that explains the mark of arms that were asked other questions; "" where none were."""
    reasons = dict.fromkeys(analysis.other_questions(task).values())
    return f"† Asked other questions, which nothing pairs: {'; '.join(reasons)}." if reasons else ""


def _mean(cell: CellScore | None) -> float:
    return -1.0 if cell is None or cell.interval.mean is None else cell.interval.mean
