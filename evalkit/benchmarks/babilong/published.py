"""Published BABILong rows: from the hub, or from the same files in a local folder.

Two layouts are published: one JSON list per task and length (``data/qa1/4k.json``, 100 rows) and one parquet file per
length and task (``4k/qa1-00000-of-00001.parquet``, about 1,000 rows). Both have the columns input, question, target.
A row has no facts of its own: context and facts come mixed, at the published length.
"""

import codecs
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.benchmarks.babilong.stories import FEWEST, WHOLE, Asked, stories_of_rows
from evalkit.benchmarks.babilong.structure import tags_of_text, told_in
from evalkit.benchmarks.cards import TaskCard
from evalkit.benchmarks.rows import row_id
from evalkit.errors import BadInput
from evalkit.lengths import parse_length
from evalkit.reading import parse_json, read_text, shown
from evalkit.types import Sample

COLUMNS = ("input", "question", "target")
_LAYOUTS = {
    "json": ("**/{subset}/{length}.json",),
    "parquet": ("**/{length}/{subset}-*.parquet", "**/{length}/{subset}.parquet"),
}
_LENGTH = re.compile(r"\d+[kM]?")


class _Table(NamedTuple):
    """Rows that are read together."""

    place: str
    """For messages."""
    rows: Any
    """A ``datasets.Dataset``."""


def published_samples(card: TaskCard, source: str, subset: str, length: str) -> Iterator[Sample]:
    """Yield the rows of one subset and length, in published order.

    Questions about one story share it as far as that can be told (``stories.py``); a row of which it cannot is a
    story of its own, named by what it states and asks, the same at every length.

    Args:
        card: the BABILong card, which pins the hub data sets by revision.
        source: the name of a data set in the card, or a local folder in one of the two layouts.
        subset: "qa1" ...
        length: the published label, "4k" ...

    Raises:
        BadInput: there are no such rows, or a row lacks a column.
    """
    tables = _tables(card, source, subset, length)
    stories = _stories(card, source, subset, tables)
    for number, (place, row) in enumerate(_rows(tables)):
        missing = [column for column in COLUMNS if not isinstance(row.get(column), str)]
        if missing:
            raise BadInput(f"{place}: no text in column {', '.join(missing)}.")
        yield Sample(
            task=card.task,
            subset=subset,
            sample_id=row_id(number, *(row[column] for column in COLUMNS)),
            story_id=stories[number] or _own_story(subset, row),
            question=row["question"].strip(),
            target=row["target"],
            context=row["input"],
            metadata={"published_length": length, **_tags(subset, row)},
        )


def _stories(card: TaskCard, source: str, subset: str, tables: Sequence[_Table]) -> tuple[str | None, ...]:
    """Return the story of each row, None where it cannot be told.

    A list with gaps (qa3 and qa5 at 1k, qa3 at 2k) takes the whole list of another length to tell.
    """
    asked = _asked(tables)
    lists = [asked]
    if FEWEST <= len(asked) < min(WHOLE):
        labels = ["0k"] if source in card.source else _local_labels(Path(source), subset)
        others = (_asked(_tables(card, source, subset, label)) for label in labels)
        lists += [next((other for other in others if len(other) in WHOLE), [])]
    return _stories_of_first(subset, tuple(map(tuple, lists)))


@lru_cache(maxsize=128)
def _stories_of_first(subset: str, lists: tuple[tuple[Asked, ...], ...]) -> tuple[str | None, ...]:
    """The same rows are read several times in a run, and laying them onto stories takes longer than reading them."""
    return tuple(stories_of_rows(subset, lists)[0])


def _asked(tables: Sequence[_Table]) -> list[Asked]:
    """Return question and answer of each row, "" where there is none."""
    columns = COLUMNS[1:]
    asked = []
    for place, rows in tables:
        known = rows.select_columns([column for column in columns if column in rows.column_names])
        for _, row in _rows([_Table(place, known)]):
            question, target = (str(row.get(column, "")).strip() for column in columns)
            asked.append((question, target))
    return asked


def _own_story(subset: str, row: dict[str, str]) -> str:
    told = " ".join(told_in(subset, row["input"]) or [row["input"]])
    identity = "\n".join((told, row["question"].strip(), row["target"].strip()))
    return f"{subset}-row-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _tags(subset: str, row: dict[str, str]) -> dict[str, Any]:
    tags = tags_of_text(subset, row["input"], row["question"])
    return {"tags": tags} if tags else {}


def _rows(tables: Sequence[_Table]) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place, for error messages."""
    for place, rows in tables:
        try:
            for number, row in enumerate(rows):
                yield f"{place}, row {number}", row
        except UnicodeDecodeError as error:  # parquet's texts are not looked at when a file is opened
            raise BadInput(f"{place} holds text that is not UTF-8 ({error.reason}); copy it again.") from error


def _tables(card: TaskCard, source: str, subset: str, length: str) -> list[_Table]:
    return (
        [_hub_table(card, source, subset, length)] if source in card.source else _local_tables(source, subset, length)
    )


def _hub_table(card: TaskCard, name: str, subset: str, length: str) -> _Table:
    from datasets import load_dataset

    data_set = card.source[name]
    try:
        rows = load_dataset(data_set["id"], length, split=subset, revision=data_set["revision"])
    except Exception as error:  # the hub client raises errors of several libraries
        raise BadInput(
            f"The hub data set {data_set['id']} (revision {data_set['revision']}) has no {subset} at {length}, or "
            f"cannot be reached ({type(error).__name__}: {str(error).splitlines()[0]}); a local copy is --source DIR."
        ) from error
    return _Table(f"{data_set['id']}, {subset} at {length}", rows)


def _local_tables(folder: str, subset: str, length: str) -> list[_Table]:
    from datasets import disable_progress_bars, load_dataset

    root = Path(folder)
    if not root.is_dir():
        raise BadInput(f"--source {folder!r} is neither 'generated', nor a data set of the task card, nor a folder.")
    for kind, patterns in _LAYOUTS.items():
        globs = [pattern.format(subset=subset, length=length) for pattern in patterns]
        files = sorted({str(path) for pattern in globs for path in root.glob(pattern)})
        disable_progress_bars()
        tables = []
        for file in files:
            if kind == "json":
                _refuse_no_rows(Path(file))
            try:
                tables.append(_Table(file, load_dataset(kind, data_files=file, split="train")))
            except Exception as error:  # datasets wraps pyarrow and JSON errors in its own
                cause = _json_problem(Path(file)) if kind == "json" else None
                cause = cause or str(error.__cause__ or error).splitlines()[0]
                raise BadInput(f"{file} is not a {kind} file of rows {', '.join(COLUMNS)}: {cause}") from error
        if tables:
            return tables
    raise BadInput(
        f"{root} has no rows for {subset} at {length}: expected {subset}/{length}.json or {length}/{subset}-*.parquet."
    )


def _local_labels(root: Path, subset: str) -> list[str]:
    """Return the lengths of which a folder has files for the subset, the shortest first."""
    labels = {
        path.stem if kind == "json" else path.parent.name
        for kind, patterns in _LAYOUTS.items()
        for pattern in patterns
        for path in root.glob(pattern.format(subset=subset, length="*"))
    }
    return sorted((label for label in labels if _LENGTH.fullmatch(label)), key=parse_length)


def _refuse_no_rows(path: Path) -> None:
    """Refuse what begins with no object, alone or in a list, and lines that do: pyarrow 26's reader crashes on null or
    NaN where one of its parts begins, process and all.

    Raises:
        BadInput: it does.
    """
    with path.open("rb") as file:
        begins = file.read(2**20).removeprefix(codecs.BOM_UTF8).lstrip()
        refused = None if re.match(rb"\{|\[\s*[\]{]", begins) else f"it begins with {shown(begins[:20])}"
        if begins.startswith(b"{"):
            file.seek(0)
            after_first = islice(file, 1, None)
            odd = next((line for line in after_first if not re.match(rb"\s*(\{|$)", line)), None)
            refused = f"a line begins with {shown(odd[:20])}" if odd else None
    if refused:
        raise BadInput(f"{path} is not a json file of rows {', '.join(COLUMNS)}: {refused}.")


def _json_problem(path: Path) -> str | None:
    """Say what is wrong with a JSON list of rows, with the line; None where that does not show here."""
    try:
        rows = parse_json(read_text(path), "it")
    except BadInput as error:
        return str(error)
    return "it holds no rows." if rows == [] else None
