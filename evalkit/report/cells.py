"""What tables are made of: titled rows of entries, and numbers with their intervals as entries."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from evalkit.benchmarks.cards import load_card
from evalkit.errors import BadInput
from evalkit.report.arms import Arm, length_name
from evalkit.report.estimates import AVERAGE, CellScore
from evalkit.report.stats import SIGNIFICANT, Contrast, EffectiveLength, Interval

NOT_RUN = "-"
RowKind: TypeAlias = Literal["arm", "published", "control", "chance", "detail"]


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
    kind: RowKind = "arm"
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


def score_entry(cell: CellScore | None, best: bool, *, is_listed: bool = True, with_interval: bool = True) -> Entry:
    """Return the entry of a score; ``is_listed``: the page has its samples under subset and length."""
    if cell is None:
        return Entry(NOT_RUN)
    if cell.interval.mean is None:
        return Entry("unscored", explanation=f"{cell.n_unscored} unscored")
    return Entry(
        points(cell.interval.mean),
        interval_text(cell.interval) if with_interval else "",
        best,
        100 * cell.interval.mean,
        explanation=f"n = {cell.n}, {cell.source or f'{cell.n_unscored} unscored'}, {cell.interval.method}",
        samples=None
        if not is_listed or cell.source or cell.subset == AVERAGE
        else (cell.task, cell.subset, cell.length, cell.arm),
    )


def interval_entry(interval: Interval) -> Entry:
    """Return the entry of a mean."""
    if interval.mean is None:
        return Entry(NOT_RUN)
    return Entry(
        points(interval.mean), interval_text(interval), number=100 * interval.mean, explanation=interval.method
    )


def signed_entry(contrast: Contrast | None) -> Entry:
    """Return the entry of a change, with its sign."""
    if contrast is None:
        return Entry(NOT_RUN)
    return Entry(f"{100 * contrast.mean:+.1f}", interval_text(contrast, signed=True), number=100 * contrast.mean)


def difference_entry(contrast: Contrast | None, p_holm: float | None) -> Entry:
    """Return the entry of a paired difference; * where it is significant after correction."""
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


def detectable_entry(contrast: Contrast | None) -> Entry:
    """Return the entry of the smallest difference that could be seen."""
    return Entry(f"{100 * contrast.detectable:.1f}", number=100 * contrast.detectable) if contrast else Entry(NOT_RUN)


def p_entry(p: float | None) -> Entry:
    """Return the entry of a p-value."""
    return Entry(NOT_RUN) if p is None else Entry("<0.001" if p < 0.001 else f"{p:.3f}", number=p)


def effective_entry(length: EffectiveLength | None) -> Entry:
    """Return the entry of an effective length."""
    order = 0.0 if length is None else length.tokens + {"<": -0.5, "?": -0.25, "": 0.0, ">=": 0.5}[length.censored]
    return Entry(effective_text(length), number=order)


def unscored_entry(cells: Iterable[CellScore]) -> Entry:
    """Return the entry of how many samples of cells have no score."""
    known = tuple(cells)
    number, in_reasoning = sum(cell.n_unscored for cell in known), sum(cell.n_unfinished for cell in known)
    return Entry(f"{number} ({in_reasoning} in reasoning)" if in_reasoning else str(number), number=number)


def counts_text(counts: Iterable[int]) -> str:
    """Return "100", or "5 to 100": the fewest and the most."""
    ordered = sorted(set(counts))
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def percent(value: float | None) -> float | None:
    """Return a share in percent, as files hold it: a difference of 1e-17 is none, and -0.0 is 0.0."""
    return None if value is None else round(100 * value, 10) + 0.0


def points(value: float | None) -> str:
    """Return a mean with one decimal, or a dash."""
    return NOT_RUN if value is None else f"{100 * value:.1f}"


def task_title(task: str) -> str:
    """Return the name that readers know, such as "BABILong"."""
    try:
        return load_card(task).title.split(":")[0]
    except BadInput:
        return task


def row_kind(arm: Arm) -> RowKind:
    """Return the kind of an arm's rows."""
    return "published" if arm.published else "control" if arm.control else "arm"


def chance_row(
    cells: Iterable[CellScore], group: str, labels: Sequence[str], num_columns: int, *, fill: int
) -> list[Row]:
    """Return the row of the chance level, where all cells have the same; else none.

    Args:
        cells: of one subset, or averages.
        group: the row's.
        labels: its first entries.
        num_columns: in all.
        fill: how many entries after the labels hold the level; the rest is empty.
    """
    levels = {cell.chance for cell in cells if cell.chance is not None}
    if len(levels) != 1:
        return []
    level = levels.pop()
    entries = [Entry(text) for text in labels] + [Entry(points(level), number=100 * level)] * fill
    entries += [Entry("")] * (num_columns - len(entries))
    return [Row(group=group, entries=tuple(entries), kind="chance")]


def chance_note(task: str) -> str:
    """Return the sentence that says what the chance level is; "" where the card does not."""
    try:
        guess = load_card(task).guess
    except BadInput:
        return ""
    return f"Chance: the score of {guess}." if guess else ""
