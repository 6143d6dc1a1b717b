"""Published BABILong rows: from the hub, or from the same files in a local folder.

Two layouts are published: one JSON list per task and length (``data/qa1/4k.json``, 100 rows) and one parquet file per
length and task (``4k/qa1-00000-of-00001.parquet``, about 1,000 rows). Both have the columns input, question, target.
A row has no facts of its own: context and facts come mixed, at the published length.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit.benchmarks.babilong.structure import tags_of_text
from evalkit.benchmarks.cards import TaskCard
from evalkit.benchmarks.rows import row_id
from evalkit.errors import BadInput
from evalkit.reading import parse_json, read_text, shown
from evalkit.types import Sample

COLUMNS = ("input", "question", "target")


def published_samples(card: TaskCard, source: str, subset: str, length: str) -> Iterator[Sample]:
    """Yield the rows of one subset and length, in published order.

    Args:
        card: the BABILong card, which pins the hub data sets by revision.
        source: the name of a data set in the card, or a local folder in one of the two layouts.
        subset: "qa1" ...
        length: the published label, "4k" ...

    Raises:
        BadInput: there are no such rows, or a row lacks a column.
    """
    rows = _hub_rows(card, source, subset, length) if source in card.source else _local_rows(source, subset, length)
    for number, (place, row) in enumerate(rows):
        missing = [column for column in COLUMNS if not isinstance(row.get(column), str)]
        if missing:
            raise BadInput(f"{place}: no text in column {', '.join(missing)}.")
        yield Sample(
            task=card.task,
            subset=subset,
            sample_id=row_id(number, *(row[column] for column in COLUMNS)),
            story_id=f"{subset}-{number:05d}",
            question=row["question"].strip(),
            target=row["target"],
            context=row["input"],
            metadata={"published_length": length, **_tags(subset, row)},
        )


def _tags(subset: str, row: dict[str, str]) -> dict[str, Any]:
    tags = tags_of_text(subset, row["input"], row["question"])
    return {"tags": tags} if tags else {}


def _hub_rows(card: TaskCard, name: str, subset: str, length: str) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place, for error messages."""
    from datasets import load_dataset

    data_set = card.source[name]
    try:
        rows = load_dataset(data_set["id"], length, split=subset, revision=data_set["revision"])
    except Exception as error:  # the hub client raises errors of several libraries
        raise BadInput(
            f"The hub data set {data_set['id']} (revision {data_set['revision']}) has no {subset} at {length}, or "
            f"cannot be reached ({type(error).__name__}: {str(error).splitlines()[0]}); a local copy is --source DIR."
        ) from error
    for number, row in enumerate(rows):
        yield f"{data_set['id']}, {subset} at {length}, row {number}", row


def _local_rows(folder: str, subset: str, length: str) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place, for error messages."""
    from datasets import disable_progress_bars, load_dataset

    root = Path(folder)
    if not root.is_dir():
        raise BadInput(f"--source {folder!r} is neither 'generated', nor a data set of the task card, nor a folder.")
    patterns = {
        "json": (f"**/{subset}/{length}.json",),
        "parquet": (f"**/{length}/{subset}-*.parquet", f"**/{length}/{subset}.parquet"),
    }
    for kind, globs in patterns.items():
        files = sorted({str(path) for pattern in globs for path in root.glob(pattern)})
        disable_progress_bars()
        for file in files:
            if kind == "json":
                _refuse_no_rows(Path(file))
            try:
                rows = load_dataset(kind, data_files=file, split="train")
            except Exception as error:  # datasets wraps pyarrow and JSON errors in its own
                cause = _json_problem(Path(file)) if kind == "json" else None
                cause = cause or str(error.__cause__ or error).splitlines()[0]
                raise BadInput(f"{file} is not a {kind} file of rows {', '.join(COLUMNS)}: {cause}") from error
            try:
                for number, row in enumerate(rows):
                    yield f"{file}, row {number}", row
            except UnicodeDecodeError as error:  # parquet's texts are not looked at when a file is opened
                raise BadInput(f"{file} holds text that is not UTF-8 ({error.reason}); copy it again.") from error
        if files:
            return
    raise BadInput(
        f"{root} has no rows for {subset} at {length}: expected {subset}/{length}.json or {length}/{subset}-*.parquet."
    )


def _refuse_no_rows(path: Path) -> None:
    """Refuse what begins with neither a list nor an object: null crashes pyarrow 26's reader, process and all.

    Raises:
        BadInput: it does.
    """
    with path.open("rb") as file:
        begins = file.read(2**20).removeprefix(codecs.BOM_UTF8).lstrip()
    if not begins.startswith((b"[", b"{")):
        raise BadInput(f"{path} is not a json file of rows {', '.join(COLUMNS)}: it begins with {shown(begins[:20])}.")


def _json_problem(path: Path) -> str | None:
    """Say what is wrong with a JSON list of rows, with the line; None where that does not show here."""
    try:
        rows = parse_json(read_text(path), "it")
    except BadInput as error:
        return str(error)
    return "it holds no rows." if rows == [] else None
