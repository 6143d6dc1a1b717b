"""BABILong answers that others have published: their files, checked and made into predictions.

BABILong's authors publish what models replied (booydar/babilong, folder ``babilong_evals``; RMT-team/babilong_evals):

    microsoft/Phi-3-mini-128k-instruct/qa1_16k_instruction_yes_examples_yes_post_prompt_yes.csv   target,output,question
    microsoft/Phi-3-mini-128k-instruct/qa1_16k_instruction_yes_examples_yes_post_prompt_yes.json  prompt, decoding

Whatever follows task and length in a name is the prompt setting. Others write a folder per length ("step500_16k") and
the rows i, i + N, ... of a file into N files ("..._shard0of4"): these are put together again.

What was not published stays unknown: ``prompt_tokens``, ``output_tokens`` and ``max_new_tokens`` are 0 then,
``prompt_sha256`` is "", and every prediction's metadata holds ``{"published": true}``.
"""

import csv
import hashlib
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.benchmarks.babilong.stories import stories_of_rows
from evalkit.benchmarks.imported import ImportedRun
from evalkit.errors import BadInput
from evalkit.lengths import format_length, parse_length
from evalkit.reading import parse_json
from evalkit.types import Prediction

_NAME = re.compile(r"(qa(?:[1-9]|1\d|20))_(\d+(?:\.\d+)?[km]?)(?:_(.+?))??(?:_shard(\d+)of(\d+))?", re.IGNORECASE)
_LENGTH_OF_FOLDER = re.compile(r"(.+?)[_-](\d+(?:\.\d+)?[km])", re.IGNORECASE)
_SWITCH = re.compile(r"(.+?)_(yes|no)(?:_|$)")
_COLUMNS = ("target", "output", "question")
_COLLECTION = re.compile(r"(.*[_.-])?(results?|predictions?|evals?|evaluations?|outputs?|runs|models)", re.IGNORECASE)
"""Names of folders that hold models, and are no organisation."""


class _File(NamedTuple):
    """One published CSV, as its name says."""

    path: Path
    subset: str
    length: str
    setting: str
    shard: int
    shards: int
    """1 where the rows are in one file."""


@dataclass(frozen=True, slots=True)
class _Table:
    """The rows of one subset at one length, with what is known of them."""

    subset: str
    length: str
    rows: list[dict[str, str]]
    files: Mapping[str, str]
    recipes: Mapping[str, dict[str, Any]]


def imported_runs(folder: Path) -> Iterator[ImportedRun | BadInput]:
    """Yield every model under each of its settings, and what is wrong with each file that cannot be used.

    Args:
        folder: of one model, or of many at any depth.

    Yields:
        Runs in the order of their folders; a file that is not what its name says, as the error that names it.
    """
    found: list[_File] = []
    for path in sorted(folder.rglob("*.csv")):
        try:
            found += [file] if (file := _file(path)) else []
        except BadInput as error:
            yield error
    models = _models(found)
    groups: defaultdict[tuple[str, str], list[_File]] = defaultdict(list)
    for file in found:
        groups[models[file.path.parent], file.setting].append(file)
    for (model, setting), files in groups.items():
        tables = []
        for table in _tables(files):
            if isinstance(table, BadInput):
                yield table
            else:
                tables.append(table)
        if tables:
            yield _run(model, setting, files, tables)


def _file(path: Path) -> _File | None:
    """Return what a file name says; None for other tables, such as a summary, that lie beside."""
    match = _NAME.fullmatch(path.stem)
    if match is None:
        if re.match(r"qa\d+_", path.stem, re.IGNORECASE):
            raise BadInput(
                f"{path}: the name does not start with a task from qa1 to qa20 and a length such as 0k, 16k or 1M, "
                f"as in qa1_16k_instruction_yes_examples_yes_post_prompt_yes.csv; rename or remove the file."
            )
        return None
    try:
        length = format_length(parse_length(match[2]))
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    return _File(path, match[1].lower(), length, match[3] or "", int(match[4] or 0), int(match[5] or 1))


def _models(files: Sequence[_File]) -> dict[Path, str]:
    """Name the model of each folder; folders of one model that hold a length each have the same name.

    A folder is taken for one of these where all of its files have the length that ends its name, and another folder
    beside it differs from it in nothing else: "Yarn-Mistral-7b-128k" is a model of its own.
    """
    lengths: defaultdict[Path, set[str]] = defaultdict(set)
    for file in files:
        lengths[file.path.parent].add(file.length)
    stems: dict[Path, str] = {}
    for folder, held in lengths.items():
        match = _LENGTH_OF_FOLDER.fullmatch(folder.name)
        if match and held == {format_length(parse_length(match[2]))}:
            stems[folder] = match[1]
    together = [(folder.parent, stem) for folder, stem in stems.items()]
    names = {}
    for folder in lengths:
        stem = stems.get(folder, folder.name)
        name = stem if together.count((folder.parent, stem)) > 1 else folder.name
        organisation = "" if _COLLECTION.fullmatch(folder.parent.name) else folder.parent.name
        names[folder] = f"{organisation}/{name}".strip("/")  # as the authors' collector names it
    return names


def _tables(files: Sequence[_File]) -> Iterator[_Table | BadInput]:
    """Yield the rows of each subset and length, or what is wrong with them."""
    cells: defaultdict[tuple[str, str], list[_File]] = defaultdict(list)
    for file in files:
        cells[file.subset, file.length].append(file)
    for (subset, length), parts in sorted(cells.items(), key=lambda item: _order(*item[0])):
        try:
            _check_parts(parts)
            texts = {file.path: _text(file.path) for file in parts}
            yield _Table(
                subset=subset,
                length=length,
                rows=_in_turn([_rows(path, text) for path, text in texts.items()], parts),
                files={path.name: hashlib.sha256(text.encode()).hexdigest() for path, text in texts.items()},
                recipes={path.stem: _recipe(path.with_suffix(".json")) for path in texts},
            )
        except BadInput as error:
            yield error


def _order(subset: str, length: str) -> tuple[int, int]:
    return int(subset.removeprefix("qa")), parse_length(length)


def _check_parts(parts: list[_File]) -> None:
    """Put the files of one subset and length in order.

    Raises:
        BadInput: two of them hold the same rows, or a shard is missing.
    """
    parts.sort(key=lambda file: (file.shards, file.shard))
    first = parts[0]
    for one, other in pairwise(parts):
        if (one.shards, one.shard) == (other.shards, other.shard) or one.shards != other.shards:
            raise BadInput(
                f"{one.path} and {other.path} both hold {one.subset} at {one.length} of the same model and setting, so "
                "their rows would count twice; remove one of them."
            )
    present = [file.shard for file in parts]
    if present != list(range(first.shards)):
        missing = sorted(set(range(first.shards)) - set(present))
        raise BadInput(
            f"{first.path}: of the {first.shards} files that its rows were parted into, "
            f"{f'number {missing[0]}' if missing else 'not one more'} is missing; import them together."
        )


def _in_turn(shards: Sequence[list[dict[str, str]]], parts: Sequence[_File]) -> list[dict[str, str]]:
    """Return the rows as they were before row i went into file i modulo the number of files.

    Raises:
        BadInput: the files are not as long as that makes them.
    """
    total = sum(map(len, shards))
    if any(len(rows) != len(range(i, total, len(shards))) for i, rows in enumerate(shards)):
        sizes = ", ".join(str(len(rows)) for rows in shards)
        raise BadInput(f"{parts[0].path}: its {len(shards)} parts have {sizes} rows, and should differ by 1 at most.")
    return [shards[number % len(shards)][number // len(shards)] for number in range(total)]


def _run(model: str, setting: str, files: Sequence[_File], tables: Sequence[_Table]) -> ImportedRun:
    folders = sorted({file.path.parent for file in files})
    sharded = sum(file.shards > 1 for file in files)
    notices = []
    if len(folders) > 1:
        notices.append(f"{model}: the folders {', '.join(folder.name for folder in folders)} are one model's.")
    if sharded:
        notices.append(f"{model}: {sharded} files with parts of the rows were put together.")
    predictions: list[Prediction] = []
    for subset in dict.fromkeys(table.subset for table in tables):
        own = [table for table in tables if table.subset == subset]
        asked = [[(row["question"].strip(), row["target"].strip()) for row in table.rows] for table in own]
        for table, stories in zip(own, stories_of_rows(subset, asked), strict=True):
            predictions += _predictions(table, stories)
    return ImportedRun(
        task="babilong",
        model=model,
        setting=setting,
        setting_in_words=_in_words(setting),
        source=folders[0],
        files={name: digest for table in tables for name, digest in table.files.items()},
        recipes={name: recipe for table in tables for name, recipe in table.recipes.items()},
        predictions=tuple(predictions),
        notices=tuple(notices),
    )


def _in_words(setting: str) -> str:
    """Return a setting shorter: "instruction+examples, no chat_template"; one that has another form as it is.

    >>> _in_words("instruction_yes_examples_yes_post_prompt_no")
    'instruction+examples, no post_prompt'
    """
    switches = _SWITCH.findall(setting)
    if "_".join(f"{name}_{state}" for name, state in switches) != setting:
        return setting
    on = "+".join(name for name, state in switches if state == "yes")
    off = "+".join(name for name, state in switches if state == "no")
    return ", ".join(part for part in (on, off and f"no {off}") if part)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}, line {line}: byte {content[error.start]:#04x} is not UTF-8 text.") from error


def _rows(path: Path, text: str) -> list[dict[str, str]]:
    """Return target, output and question of each row; what stands in further columns, such as an index, is left out.

    An empty output stays an empty answer (which is wrong), not a missing one.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a reply may be longer than 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if missing := [name for name in _COLUMNS if name not in header]:
            raise BadInput(
                f"{path}, line 1: no column {missing[0]!r} among {', '.join(map(repr, header)) or 'none'}; "
                f"a file of predictions has the columns target, output and question."
            )
        at = {name: header.index(name) for name in _COLUMNS}
        rows = []
        for row in reader:
            if not row:
                continue  # a blank line
            if len(row) != len(header):
                raise BadInput(
                    f"{path}, line {reader.line_num}: {len(row)} fields where the header names {len(header)}."
                )
            rows.append({name: row[at[name]] for name in _COLUMNS})
        if not rows:
            raise BadInput(f"{path} has a header and no rows.")
        return rows
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: {error}.") from error


def _recipe(path: Path) -> dict[str, Any]:
    """Return what the publisher says of prompt and decoding; empty where the file is absent."""
    if not path.exists():
        return {}
    recipe = parse_json(_text(path), str(path))
    if not isinstance(recipe, dict):
        raise BadInput(f"{path}, line 1: a JSON object with prompt and generate_kwargs is expected.")
    plain: dict[str, Any] = _without_nan(recipe)
    return plain


def _without_nan(value: Any) -> Any:
    """Return JSON values with null for what JSON does not have: run.json keeps them."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _max_new_tokens(recipe: dict[str, Any]) -> int:
    decoding = recipe.get("generate_kwargs")
    decoding = decoding if isinstance(decoding, dict) else {}
    limit = decoding.get("max_new_tokens", decoding.get("max_output_tokens"))
    return limit if isinstance(limit, int) and not isinstance(limit, bool) and 0 <= limit < 2**31 else 0


def _predictions(table: _Table, stories: Sequence[str | None]) -> list[Prediction]:
    """Return the rows as predictions.

    The published sets differ: rows of the 1k-sample set are the bAbI test questions in file order (without those whose
    facts do not fit 1k or 2k), rows of the 100-sample set are others, and no file says which set it is. A sample is
    therefore named by its row, and by a hash of its own question and target and those of the first ten rows: rows pair
    between models exactly where they ask the same question of the same set.
    """
    asked = [f"{row['question'].strip()}\t{row['target'].strip()}\n".encode() for row in table.rows]
    same_set = hashlib.sha256(b"".join(asked[:10]))
    max_new_tokens = next((n for recipe in table.recipes.values() if (n := _max_new_tokens(recipe))), 0)
    predictions = []
    for number, (row, story) in enumerate(zip(table.rows, stories, strict=True)):
        name = same_set.copy()
        name.update(asked[number])
        sample_id = f"{number:05d}-{name.hexdigest()[:8]}"
        prediction = Prediction(
            task="babilong",
            subset=table.subset,
            length=table.length,
            sample_id=sample_id,
            story_id=story or sample_id,
            question=row["question"],
            target=row["target"],
            prompt_tokens=0,
            prompt_sha256="",
            max_new_tokens=max_new_tokens,
            fact_positions=(),
            output=row["output"],
            output_tokens=0,
            finish_reason="stop",
            metadata={"published": True},
        )
        predictions.append(prediction)
    return predictions
