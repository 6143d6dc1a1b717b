"""Tables and findings for a terminal: as wide as it is, and never wider."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from evalkit.escaping import one_line
from evalkit.report.analysis import Analysis
from evalkit.report.cells import Row, Table
from evalkit.report.curves import prominent
from evalkit.report.group_tables import group_tables
from evalkit.report.main_table import main_table
from evalkit.report.naming import short_names
from evalkit.report.words import findings

_BOLD, _DIM, _END = "\x1b[1m", "\x1b[2m", "\x1b[0m"
_GAP = "  "
_NARROWEST = 40
_NAME_LIMITS = (200, 48, 40, 32, 28, 24, 20, 16)
"""Characters of a label; the first at which a table fits is taken."""
_NAME_LIMIT_IN_PARTS = 28
_MOST_NOTES = 5
MOST_LINES = 60
"""Of a short report, with its notes and the list of its files."""
_NAMED = (6, 3, 1)
"""Arms that its sentences name; the first is taken with which they have half of the lines at most."""
_MOST_SENTENCES = 8
_FEWEST = 3
"""Arms of its table."""
_HAVE_ALL = "--full and the CSV files have all"
_INTERVAL = re.compile(r"\[[^\]\s]+, [^\]\s]+\]")


def terminal_width() -> int:
    """Return the columns of the terminal; where there is none what COLUMNS says, or else 100."""
    return max(_NARROWEST, shutil.get_terminal_size((100, 24)).columns)


def terminal_report(
    analysis: Analysis, width: int, arms: Sequence[str] = (), lengths: Sequence[str] = (), room: int = MOST_LINES
) -> str:
    """Return the short report: for each task what was found, and one table.

    Args:
        analysis: of all runs.
        width: columns of the terminal.
        arms: those of the table, in this order; none for all, or for as many as there is room for.
        lengths: those of the table; none for all.
        room: lines in all, but for what is asked for: arms by name, groups by a tag.
    """
    for most in _NAMED:
        found = findings(analysis, most)
        said = [_said(one.title, _few((*one.verdicts, *one.caveats), most), width) for one in found]
        if _lines_of(said) <= room // 2:
            break
    left = room - _lines_of(said)
    parts = []
    for number, task in enumerate(analysis.tasks):
        table = _that_fits(analysis, task, width, arms, lengths, left // (len(said) - number) - 1)
        parts += [said[number], *([table] if table else [])]
        left -= _lines_of([table])
        if analysis.groups:  # they were asked for
            parts += [terminal(one, width) for one in group_tables(analysis, task)]
    return "\n\n".join(parts)


def _few(sentences: Sequence[str], most: int) -> Sequence[str]:
    """Return the first sentences, and how many more there are: of arms that nothing compares, each has one."""
    few = max(most, _MOST_SENTENCES)
    return sentences if len(sentences) <= few else (*sentences[:few], f"{len(sentences) - few} more: {_HAVE_ALL}")


def _lines_of(parts: Iterable[str]) -> int:
    """Count the lines of parts, with an empty one behind each."""
    return sum(part.count("\n") + 2 for part in parts)


def terminal_full(analysis: Analysis, tables: Iterable[Table], width: int) -> str:
    """Return everything in words and in tables; what was explained once is not explained again."""
    said: set[str] = set()
    parts = [_said(found.title, (*found.verdicts, *found.each, *found.caveats), width) for found in findings(analysis)]
    return "\n\n".join([*parts, *(terminal(table, width, said) for table in tables)])


def _that_fits(
    analysis: Analysis, task: str, width: int, arms: Sequence[str], lengths: Sequence[str], room: int
) -> str:
    """The main table with intervals where they fit beside each other, else with those of differences, else without.

    Many arms have none: a second line for each would make the table long. Where even so there are too many for the
    room, the baseline and those with the highest means are shown, unless arms were named.
    """
    for intervals in ("all", "differences", "none"):
        table = main_table(analysis, task, arms=arms, lengths=lengths, intervals=intervals)
        text = terminal(table, width)
        if _limit(table, width) is not None and text.count("\n") < room:
            break
    number = most = sum(row.kind != "chance" for row in table.rows)
    while text.count("\n") >= room and most > _FEWEST and not arms:
        most = max(_FEWEST, most - 1 - (text.count("\n") - room) // 8)
        few = prominent(analysis, task, most)
        table = main_table(analysis, task, arms=few, lengths=lengths, intervals="none")
        shown = sum(row.kind != "chance" for row in table.rows)
        left_out = (
            f"{number - shown} of {number} arms are left out; the {shown} are {few[0]} and those with the highest "
            f"means. {_HAVE_ALL}."
        )
        text = "\n".join([terminal(table, width), "", *wrapped(left_out, width, "", "")])
    return text if table.rows else ""


def _said(title: str, sentences: Iterable[str], width: int) -> str:
    return "\n".join([*bold(title, width), *(line for s in sentences for line in wrapped(s, width))])


def wrapped(text: str, width: int, first: str = "  ", later: str = "    ") -> list[str]:
    """Return text in lines of at most ``width`` characters."""
    whole = _INTERVAL.sub(lambda interval: interval[0].replace(" ", "\xa0"), one_line(text))
    lines = textwrap.wrap(whole, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
    return [line.replace("\xa0", " ") for line in lines]


def bold(text: str, width: int) -> list[str]:
    """Return a title."""
    return [f"{_BOLD}{line}{_END}" for line in wrapped(text, width, "", "")]


def notes_text(notes: Sequence[str], *, full: bool = True) -> str:
    """Return what should be known, a paragraph each, for a terminal; in a short report the first few."""
    shown = notes if full else notes[:_MOST_NOTES]
    more = [f"{len(notes) - len(shown)} more: --full, or report.md"] if len(notes) > len(shown) else []
    return "".join(f"{line}\n" for note in (*shown, *more) for line in wrapped(f"note: {note}", terminal_width(), ""))


def files_text(folder: Path, files: Sequence[Path]) -> str:
    """Return what was written, figures once for all their formats."""
    kinds: dict[str, list[str]] = {}
    for file in files:
        kinds.setdefault(file.stem, []).append(file.suffix.removeprefix("."))
    figures = [stem for stem, suffixes in kinds.items() if len(suffixes) > 1 and "png" in suffixes]
    others = [file.name for file in files if file.stem not in figures]
    drawn = [f"figures (png, svg, pdf): {', '.join(figures)}"] if figures else []
    return "\n".join(
        wrapped(f"{folder}/: {'; '.join([*filter(None, [', '.join(others)]), *drawn])}", terminal_width(), "", "  ")
    )


def terminal(table: Table, width: int, said: set[str] | None = None) -> str:
    """Return the table in aligned columns, intervals in a second line; bold and dim by escape codes.

    Labels are shortened and free of control characters: a checkpoint may be called anything. Columns that do not fit
    beside each other stand below each other, each part with its labels.

    Args:
        width: columns of the terminal, which no line exceeds.
        said: sentences of captions that were printed before, which are left out; those of this one are added.
    """
    limit = _limit(table, width)
    parts = [[*range(table.num_labels, len(table.columns))]]
    room = (width - max(_sizes(table), default=0)) // table.num_labels - len(_GAP)
    labels = _labels(table, limit or min(_NAME_LIMIT_IN_PARTS, room))
    if limit is None:
        sizes = [max(map(len, column)) for column in labels]
        parts = list(_parts(table, width - sum(sizes) - len(_GAP) * len(sizes)))
    out = [*bold(table.title, width), *(_DIM + line + _END for line in _caption(table, width, said))]
    for numbers in parts:
        out += ["", *_lines(table, labels, numbers)]
    return "\n".join(out)


def _caption(table: Table, width: int, said: set[str] | None) -> list[str]:
    sentences = re.split(r"(?<=[.:]) (?=[A-Z0-9*])", table.caption)
    if said is not None:
        sentences = [sentence for sentence in sentences if sentence not in said]
        said.update(sentences)
    return wrapped(" ".join(sentences), width, "", "")


def _labels(table: Table, limit: int) -> list[list[str]]:
    """The label columns, with their headings, no name longer than the limit."""
    columns = []
    for i in range(table.num_labels):
        short = short_names((row.entries[i].text for row in table.rows), limit)
        columns.append([table.columns[i], *(short[row.entries[i].text] for row in table.rows)])
    return columns


def _sizes(table: Table) -> list[int]:
    """Widths of the number columns."""
    return [
        max([len(table.columns[i]), *(max(len(row.entries[i].text), len(row.entries[i].below)) for row in table.rows)])
        for i in range(table.num_labels, len(table.columns))
    ]


def _limit(table: Table, width: int) -> int | None:
    """Return how long labels may be for all columns to fit beside each other; None where they never do."""
    numbers = sum(size + len(_GAP) for size in _sizes(table))
    others = sum(max(map(len, column)) + len(_GAP) for column in _labels(table, _NAME_LIMITS[0])[:-1])
    exact = width - numbers - others  # for the last label column, where the others are short
    for limit in sorted({*_NAME_LIMITS, max(exact, _NAME_LIMITS[-1])}, reverse=True):
        labels = [max(map(len, column)) for column in _labels(table, limit)]
        if sum(labels) + len(_GAP) * (len(labels) - 1) + numbers <= width:
            return limit
    return None


def _parts(table: Table, room: int) -> Iterator[list[int]]:
    """Yield the number columns that fit beside each other; one at least."""
    part: list[int] = []
    left = room
    for i, size in enumerate(_sizes(table), start=table.num_labels):
        if part and size > left:
            yield part
            part, left = [], room
        part.append(i)
        left -= size + len(_GAP)
    yield part


def _lines(table: Table, labels: Sequence[Sequence[str]], numbers: Sequence[int]) -> list[str]:
    all_sizes = _sizes(table)
    sizes = [max(map(len, column)) for column in labels] + [all_sizes[i - table.num_labels] for i in numbers]
    first = len(labels)

    def line(texts: Sequence[str], styles: Sequence[str] = ()) -> str:
        cells = []
        for i, (text, size) in enumerate(zip(texts, sizes, strict=True)):
            padding = " " * (size - len(text))
            styled = f"{styles[i]}{text}{_END}" if styles and styles[i] and text else text
            cells.append(styled + padding if i < first else padding + styled)
        return _GAP.join(cells).rstrip()

    out = [line([*(column[0] for column in labels), *(table.columns[i] for i in numbers)])]
    out.append(line(["-" * size for size in sizes]))
    above: Row | None = None
    for number, row in enumerate(table.rows, start=1):
        names = [column[number] for column in labels]
        if above is not None and above.group != row.group:
            out.append("")
        elif above is not None and first > 1:
            names[0] = ""
        if not any(row.entries[i].text for i in numbers):
            continue  # the chance level beside differences
        dim = _DIM if row.kind in ("chance", "detail") else ""
        entries = [*row.entries[:first], *(row.entries[i] for i in numbers)]
        out.append(line([*names, *(e.text for e in entries[first:])], [_BOLD if e.best else dim for e in entries]))
        if any(below := [e.below for e in entries]):
            out.append(line(below, [_DIM] * len(below)))
        above = row
    return out
