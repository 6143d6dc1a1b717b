"""A table as Markdown; rows of figures as CSV, records as JSON."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evalkit.escaping import csv_cell, one_line
from evalkit.report.cells import Entry, Table


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


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a CSV table; twelve digits, since further ones hang on the order in which a processor sums."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(_twelve_digits(value)) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _twelve_digits(value: Any) -> Any:
    return float(f"{value:.12g}") if isinstance(value, float) else value


def json_text(record: Mapping[str, Any]) -> str:
    """Return a record as the text of a JSON file."""
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def markdown_text(text: str) -> str:
    """Return text that is not read as markup, whatever it holds."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", one_line(text)) if not _is_number(text) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d[\d.,–*]*", text) is not None
