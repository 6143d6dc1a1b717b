"""One table, printed for a terminal, as Markdown, as LaTeX (booktabs); rows of figures as CSV, records as JSON."""

import csv
import io
import itertools
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from evalkit.escaping import csv_cell
from evalkit.report.tables import Entry, Row, Table

_BOLD, _DIM, _END = "\x1b[1m", "\x1b[2m", "\x1b[0m"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    ">": "$>$",
    "<": "$<$",
}


def terminal(table: Table, width: int = 120) -> str:
    """Return the table in aligned columns, intervals in a second line; bold and dim by escape codes.

    Names are shortened, and free of control characters: a checkpoint may be called anything.
    """
    lines = _terminal_lines(table)
    below = [[entry.below for entry in row.entries] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(table.columns, *lines, *below, strict=True)]

    def line(texts: Sequence[str], styles: Sequence[str] = ()) -> str:
        cells = []
        for i, (text, size) in enumerate(zip(texts, widths, strict=True)):
            padding = " " * (size - len(text))
            styled = f"{styles[i]}{text}{_END}" if styles and styles[i] and text else text
            cells.append(styled + padding if i < table.num_labels else padding + styled)
        return "  ".join(cells).rstrip()

    out = [f"{_BOLD}{table.title}{_END}", *(_DIM + part + _END for part in textwrap.wrap(table.caption, width)), ""]
    out += [line(table.columns), line(["-" * size for size in widths])]
    above: Row | None = None
    for row, texts, intervals in zip(table.rows, lines, below, strict=True):
        if above is not None and above.group != row.group:
            out.append("")
        if table.num_labels > 1 and above is not None and above.group == row.group:
            texts = ["", *texts[1:]]
        dim = _DIM if row.kind in ("chance", "detail") else ""
        out.append(line(texts, [_BOLD if entry.best else dim for entry in row.entries]))
        if any(intervals):
            out.append(line(intervals, [_DIM] * len(intervals)))
        above = row
    return "\n".join(out)


def _terminal_lines(table: Table) -> list[list[str]]:
    """The texts of all rows, names cut as short as leaves them different from each other."""
    names = {_plain(e.text) for row in table.rows for e in row.entries[: table.num_labels]}
    limit = next(n for n in (30, 40, 60, 100, 10**6) if len({_shortened(name, n) for name in names}) == len(names))
    return [
        [_shortened(_plain(e.text), limit) if i < table.num_labels else e.text for i, e in enumerate(row.entries)]
        for row in table.rows
    ]


def _shortened(name: str, limit: int) -> str:
    """Cut the middle out of long names, on both sides of a minus."""
    parts = name.split(" − ")
    return " − ".join(p if len(p) <= limit else f"{p[: limit // 2]}…{p[-(limit // 2) + 1 :]}" for p in parts)


def markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown, with the caption below it."""

    def cell(entry: Entry) -> str:
        text = f"**{markdown_text(entry.text)}**" if entry.best else markdown_text(entry.text)
        return f"{text} {entry.below}".strip()

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = ["---" if i < table.num_labels else "---:" for i in range(len(table.columns))]
    rows = [line([cell(entry) for entry in row.entries]) for row in table.rows]
    return "\n".join([f"### {table.title}", "", line(table.columns), line(rule), *rows, "", table.caption])


def latex(table: Table) -> str:
    """Return the table as a ``table`` environment in booktabs style; intervals stand in a smaller second line."""
    columns = "l" * table.num_labels + "r" * (len(table.columns) - table.num_labels)
    body: list[str] = []
    for group, rows in _groups(table):
        if group != table.rows[0].group:
            body.append(r"\midrule")
        for row in rows:
            body.append(" & ".join(_latex_cell(e) for e in row.entries) + r" \\")
            if any(e.below for e in row.entries):
                small = [rf"{{\scriptsize {_latex(e.below)}}}" if e.below else "" for e in row.entries]
                body.append(" & ".join(small) + r" \\")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(table.title)}. {_latex(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(_latex(name) for name in table.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _groups(table: Table) -> Iterator[tuple[str, list[Row]]]:
    for group, rows in itertools.groupby(table.rows, key=lambda row: row.group):
        yield group, list(rows)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a CSV table; twelve digits, since further ones hang on the order in which a processor sums."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(_twelve_digits(value)) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _twelve_digits(value: Any) -> Any:
    return float(f"{value:.12g}") if isinstance(value, float) else value


def percent(value: float | None) -> float | None:
    """Return a share in percent, as CSV files hold it: a difference of 1e-17 is none, and -0.0 is 0.0."""
    return None if value is None else round(100 * value, 10) + 0.0


def json_text(record: Mapping[str, Any]) -> str:
    """Return a record as the text of a JSON file."""
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def _plain(text: str) -> str:
    """Without control characters, which could move a terminal's cursor or recolour it."""
    return "".join(c if c.isprintable() else "�" for c in text)


def markdown_text(text: str) -> str:
    """Return text that is not read as markup, whatever it holds."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _plain(text)) if not _is_number(text) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d[\d.,–*]*", text) is not None


def _latex_cell(entry: Entry) -> str:
    text = _latex(entry.text)
    return rf"\textbf{{{text}}}" if entry.best else text


def _latex(text: str) -> str:
    """Return text that LaTeX prints as it stands, with real minus signs before numbers."""
    typeset = re.sub(r"(?<![\w.)])-(?=\d)", "−", _plain(text).replace(">=", "≥"))
    return "".join(_LATEX.get(c, c) for c in typeset)
