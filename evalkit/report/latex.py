"""Tables for LaTeX (booktabs): one that fits a column of text for each task, and all others for an appendix.

Widths are reckoned from Computer Modern's, which is wider than Times and its like, so that what fits by them fits.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from evalkit.escaping import one_line
from evalkit.report.analysis import Analysis
from evalkit.report.cells import Entry, Row, Table
from evalkit.report.main_table import EXTRAS, Extra, Intervals, main_table
from evalkit.report.naming import short_names

Width: TypeAlias = Literal["column", "text"]
POINTS: Mapping[Width, float] = {"column": 219.0, "text": 345.0}
"""The narrowest in use: a column of ACL's style, and a page of LaTeX's own article class."""
MOST_LINES = 44
"""Of a table that stands on one page; an arm takes two where it has intervals or a long name."""

_CHARS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_\allowbreak{}",
    "/": r"/\allowbreak{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "…": r"\ldots{}",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    ">": "$>$",
    "<": "$<$",
    "|": "$|$",
    '"': "''",
}
_WIDTHS = {
    "!',.:;[]`iljf- ": 2.5,
    "I()rts": 3.2,
    "SbdhnpuJkqvxy": 4.5,
    "ZLFEPBCTw_": 5.7,
    "m#%": 6.6,
    "M": 7.2,
    "&+=@<>−": 6.2,
    "W|": 8.1,
    "…": 9.5,
}
"""Of cmr7, points; digits and other small letters have 4.1, all else 6.2."""
_OF_CHAR = {char: width for chars, width in _WIDTHS.items() for char in chars}
_SIZES = {"footnotesize": 1.08, "scriptsize": 1.0}
"""How wide each size sets what ``_WIDTHS`` has."""
_TINY = 0.86
_BOLD = 1.17
_SEPARATION = 2.0
_LEAST_LABEL = 52.0
_LEAST_LABEL_IN_APPENDIX = {1: 110.0, 2: 60.0, 3: 40.0}
"""By the number of label columns."""
_INDENT = 4.0


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a table is set so that it fits."""

    size: str
    labels: tuple[Mapping[str, tuple[str, ...]], ...]
    """For each label column, the lines of each text; one or two."""


_VARIANTS: Mapping[Width, Sequence[tuple[Intervals, tuple[Extra, ...]]]] = {
    "column": (
        ("all", EXTRAS),
        ("differences", EXTRAS),
        ("differences", ("difference",)),
        ("none", EXTRAS),
        ("none", ("difference",)),
        ("none", ()),
    ),
    "text": (
        ("all", EXTRAS),
        ("all", ("difference",)),
        ("all", ()),
        ("differences", EXTRAS),
        ("none", EXTRAS),
        ("none", ()),
    ),
}
"""What of the main table is shown: the first that fits."""


def paper_table(
    analysis: Analysis, task: str, width: Width, *, arms: Sequence[str] = (), lengths: Sequence[str] = ()
) -> str:
    """Return the main table of a task, with as much in it as fits; "" where it has none of these arms or lengths.

    Lengths that do not fit beside each other even as bare scores stand below each other.
    """
    for intervals, extras in _VARIANTS[width]:
        table = main_table(analysis, task, arms=arms, lengths=lengths, intervals=intervals, extras=extras)
        parts = list(_parts(table, POINTS[width], _LEAST_LABEL))
        kept = _rows_of_a_page(table, parts)
        if len(parts) <= 1 and kept == len(table.rows):
            break
    if not table.rows:
        return ""
    more = f" {len(table.rows) - kept} more rows are left out." if kept < len(table.rows) else ""
    table = replace(table, rows=table.rows[:kept])
    out = [
        r"\begin{table}",
        r"\centering\sloppy",
        rf"\caption{{{text(table.title)}. {text(table.caption)}{more}}}\par\smallskip",
    ]
    out.append(rf"\label{{tab:{table.name}{'-wide' * (width == 'text')}}}")
    for numbers, layout in parts:
        out += [
            rf"\{layout.size}\setlength{{\tabcolsep}}{{{_SEPARATION}pt}}",
            rf"\begin{{tabular}}{{{_columns(table, numbers)}}}",
            *_body(table, layout, numbers),
            r"\end{tabular}\par\smallskip",
        ]
    return "\n".join([*out, r"\end{table}"])


def _rows_of_a_page(table: Table, parts: Sequence[tuple[Sequence[int], _Layout]]) -> int:
    """Return how many rows fit a page, all parts below each other."""
    lines = 0
    for kept, row in enumerate(table.rows):
        for numbers, layout in parts:
            label = layout.labels[0][row.entries[0].text]
            lines += 2 if len(label) > 1 or any(row.entries[i].below for i in numbers) else 1
        if lines > MOST_LINES:
            return kept
    return len(table.rows)


def paper_tables(
    analysis: Analysis, width: Width, origin: str, *, arms: Sequence[str] = (), lengths: Sequence[str] = ()
) -> str:
    r"""Return a file to \input: the main table of each task, as wide as a column or a page of text.

    Args:
        analysis: of all runs.
        width: what it must fit.
        origin: where it comes from, on one line.
        arms: those to show, in this order; none for all.
        lengths: those to show; none for all.
    """
    tables = [paper_table(analysis, task, width, arms=arms, lengths=lengths) for task in analysis.tasks]
    return "\n\n".join([f"% {origin}\n% \\usepackage{{booktabs}}", *filter(None, tables)]) + "\n"


def appendix(tables: Sequence[Table], origin: str) -> str:
    r"""Return a file to \input with every table."""
    head = f"% {origin}\n% \\usepackage{{booktabs,longtable}}, in one column (\\onecolumn)"
    return "\n\n".join([head, *map(appendix_table, tables)]) + "\n"


def appendix_table(table: Table) -> str:
    """Return a table that breaks over pages, and over its columns where they do not fit beside each other."""
    out = []
    for i, (numbers, layout) in enumerate(_parts(table, POINTS["text"], _LEAST_LABEL_IN_APPENDIX[table.num_labels])):
        head = rf"\caption{{{text(table.title)}. {text(table.caption)}}}\label{{tab:{table.name}}}\\"
        if i > 0:
            out.append(r"\addtocounter{table}{-1}")
            head = rf"\caption[]{{{text(table.title)} (continued)}}\\"
        out += [
            rf"{{\{layout.size}\setlength{{\tabcolsep}}{{{_SEPARATION}pt}}\sloppy",
            rf"\begin{{longtable}}{{{_columns(table, numbers)}}}",
            head,
            *_body(table, layout, numbers, repeats=True),
            r"\end{longtable}}",
        ]
    return "\n".join(out)


def _parts(table: Table, room: float, least_label: float) -> Iterator[tuple[Sequence[int], _Layout]]:
    """Yield the number columns that fit beside each other, one at least, and how they are set."""
    left = list(range(table.num_labels, len(table.columns)))
    while left:
        fitting = ((n, _layout(table, left[:n], room, least_label)) for n in range(len(left), 0, -1))
        size, layout = next(((n, found) for n, found in fitting if found), (1, None))
        yield left[:size], layout or _Layout("scriptsize", _labels(table, least_label))
        left = left[size:]


def _layout(table: Table, numbers: Sequence[int], room: float, least_label: float) -> _Layout | None:
    """Return how a part of a table fits ``room`` points; None where it does not."""
    for size, scale in _SIZES.items():
        taken = sum(_column_width(table, i, scale) + 2 * _SEPARATION for i in numbers)
        for_labels = (room - taken) / table.num_labels - 2 * _SEPARATION
        if for_labels >= least_label:
            return _Layout(size, _labels(table, for_labels / scale))
    return None


def _column_width(table: Table, i: int, scale: float) -> float:
    """Points that the widest entry of a column takes."""
    texts = [scale * _width(table.columns[i])]
    for row in table.rows:
        entry = row.entries[i]
        texts += [scale * _width(entry.text) * (_BOLD if entry.best else 1.0), _TINY * _width(entry.below)]
    return max(texts)


def _width(string: str) -> float:
    shown = _typeset(string)
    return sum(_OF_CHAR.get(char, 4.1 if char.isascii() and not char.isupper() else 6.2) for char in shown)


def _labels(table: Table, room: float) -> tuple[Mapping[str, tuple[str, ...]], ...]:
    """Each label column's texts in one line or two, shortened where they do not fit."""
    columns = []
    for i in range(table.num_labels):
        whole = list(dict.fromkeys(row.entries[i].text for row in table.rows))
        for limit in (200, 80, 60, 50, 40, 32, 28, 24, 20, 16, 12, 8):
            short = short_names(whole, limit)
            folded = {name: _folded(short[name], room) for name in whole}
            if all(folded.values()):
                break
        columns.append({name: lines or (short[name],) for name, lines in folded.items()})
    return tuple(columns)


def _folded(name: str, room: float) -> tuple[str, ...]:
    """Return a name in one line or two, broken after a space, a slash or a hyphen; nothing where it does not fit."""
    if _width(name) <= room:
        return (name,)
    for place in reversed([found.end() for found in re.finditer(r"(?<!−)[\s/-]|…", name)]):
        lines = name[:place].strip(), name[place:].strip()
        if _width(lines[0]) <= room and len(lines[1]) > 1:
            return lines if _width(lines[1]) + _INDENT <= room else ()
    return ()


def _columns(table: Table, numbers: Sequence[int]) -> str:
    return rf"@{{}}{'l' * table.num_labels}{'r' * len(numbers)}@{{}}"


def _body(table: Table, layout: _Layout, numbers: Sequence[int], *, repeats: bool = False) -> list[str]:
    """Heading and rows; in a table that breaks over pages the heading is ``repeats``."""
    heading = [text(table.columns[i]) for i in [*range(table.num_labels), *numbers]]
    head = [r"\toprule", " & ".join(heading) + r" \\", r"\midrule"]
    lines = [*head, r"\endfirsthead", *head, r"\endhead"] if repeats else head
    above: Row | None = None
    for row in table.rows:
        if not any(row.entries[i].text for i in numbers):
            continue  # the chance level beside differences
        if above is not None and above.group != row.group:
            lines.append(r"\midrule")
        labels = [layout.labels[i][row.entries[i].text] for i in range(table.num_labels)]
        if above is not None and above.group == row.group and table.num_labels > 1:
            labels[0] = ("",)
        entries = [row.entries[i] for i in numbers]
        first = [text(label[0]) for label in labels]
        if first[0].startswith(("[", "*")):
            first[0] = "{}" + first[0]  # else an argument of the line break before it
        lines.append(" & ".join([*first, *map(_cell, entries)]) + r" \\")
        if any(e.below for e in entries) or any(len(label) > 1 for label in labels):
            second = [rf"\hspace{{{_INDENT}pt}}{text(label[1])}" if len(label) > 1 else "" for label in labels]
            below = [rf"{{\tiny {text(e.below)}}}" if e.below else "" for e in entries]
            lines[-1] = lines[-1] + ("*" if repeats else "")  # no page ends between the two
            lines.append(" & ".join([*second, *below]) + r" \\")
        above = row
    return [*lines, r"\bottomrule"]


def _cell(entry: Entry) -> str:
    return rf"\textbf{{{text(entry.text)}}}" if entry.best else text(entry.text)


def text(string: str) -> str:
    """Return text that LaTeX prints as it stands, with real minus signs before numbers."""
    escaped = "".join(_CHARS.get(c, c if ord(c) < 0x180 else _ascii(c)) for c in _typeset(string))
    return re.sub(r"(?<=\d) (?=\\%)|(?<=\b[np]) (?=[=$])|(?<=\b[np] =) |(?<=\b[np] \$<\$) ", "~", escaped)


def _typeset(string: str) -> str:
    """Return text with the signs that are printed: a minus before a number is no hyphen."""
    return re.sub(r"(?<![\w.)])-(?=\d)", "−", one_line(string).replace(">=", "≥"))


def _ascii(char: str) -> str:
    """Return what LaTeX has in place of a sign that it does not know without further packages."""
    return "".join(c for c in unicodedata.normalize("NFKD", char) if c.isascii()) or "?"
