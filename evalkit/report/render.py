"""One table as Markdown, as LaTeX (booktabs); rows of figures as CSV, records as JSON."""

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from evalkit.report.cells import Entry, Row, Table
from evalkit.report.naming import printable

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
    writer.writerows({name: _twelve_digits(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _twelve_digits(value: Any) -> Any:
    return float(f"{value:.12g}") if isinstance(value, float) else value


def json_text(record: Mapping[str, Any]) -> str:
    """Return a record as the text of a JSON file."""
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def markdown_text(text: str) -> str:
    """Return text that is not read as markup, whatever it holds."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(text)) if not _is_number(text) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d[\d.,–*]*", text) is not None


def _latex_cell(entry: Entry) -> str:
    text = _latex(entry.text)
    return rf"\textbf{{{text}}}" if entry.best else text


def _latex(text: str) -> str:
    """Return text that LaTeX prints as it stands, with real minus signs before numbers."""
    typeset = re.sub(r"(?<![\w.)])-(?=\d)", "−", printable(text).replace(">=", "≥"))
    return "".join(_LATEX.get(c, c) for c in typeset)
