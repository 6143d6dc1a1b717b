"""Published BABILong predictions as run folders, so that a report shows them beside our own runs.

BABILong's authors publish what models replied (booydar/babilong, folder ``babilong_evals``; RMT-team/babilong_evals):

    microsoft/Phi-3-mini-128k-instruct/qa1_16k_instruction_yes_examples_yes_post_prompt_yes.csv   target,output,question
    microsoft/Phi-3-mini-128k-instruct/qa1_16k_instruction_yes_examples_yes_post_prompt_yes.json  prompt, decoding

Whatever follows task and length in a name is the prompt setting. One model under one setting becomes one run folder.
What was not published stays unknown: ``prompt_tokens``, ``output_tokens`` and ``max_new_tokens`` are 0 then,
``prompt_sha256`` is "", and every prediction's metadata holds ``{"published": true}``.
"""

import csv
import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.errors import BadInput
from evalkit.lengths import format_length, parse_length
from evalkit.records.folder import RunFolder
from evalkit.types import Prediction

_NAME = re.compile(r"(qa(?:[1-9]|1\d|20))_(\d+(?:\.\d+)?[km]?)(?:_(.+))?", re.IGNORECASE)
_SWITCH = re.compile(r"(.+?)_(yes|no)(?:_|$)")
_COLUMNS = ("target", "output", "question")

# Questions to a story in the bAbI v1.2 test files, 5 unless said here; None where stories differ.
_QUESTIONS_PER_STORY = {"qa4": 1, "qa15": 4, "qa16": 1, "qa17": 8, "qa18": None, "qa19": 1, "qa20": None}


class _Cell(NamedTuple):
    """One published CSV."""

    path: Path
    subset: str
    length: str
    setting: str


def import_babilong(folder: Path | str, out: Path | str, provenance: Mapping[str, Any] | None = None) -> list[Path]:
    """Turn every published model at or below ``folder`` into run folders below ``out``, and return those, sorted.

    Importing again continues what was interrupted, adds files that are new, and leaves what is complete untouched.

    Raises:
        BadInput: no predictions there, or a file that is not what its name says (with file and line), or one that has
            other content than when it was imported.
        RunFolderError: a run folder that cannot be written.
    """
    folder, out = Path(folder).resolve(), Path(out)
    runs: defaultdict[tuple[Path, str], list[_Cell]] = defaultdict(list)
    for path in sorted(folder.rglob("*.csv")):
        if cell := _cell(path):
            runs[path.parent, cell.setting].append(cell)
    if not runs:
        raise BadInput(
            f"No published predictions in {folder}: they are CSV files with names like "
            f"qa1_16k_instruction_yes_examples_yes_post_prompt_yes.csv, in a folder per model."
        )
    return sorted(
        {_import_run(source, setting, cells, out, provenance or {}) for (source, setting), cells in runs.items()}
    )


def _cell(path: Path) -> _Cell | None:
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
    return _Cell(path, match[1].lower(), length, match[3] or "")


def _import_run(source: Path, setting: str, cells: list[_Cell], out: Path, provenance: Mapping[str, Any]) -> Path:
    model = f"{source.parent.name}/{source.name}".strip("/")  # as the authors' collector names it
    path = out / re.sub(r"[^\w.@+-]", "_", "--".join(part for part in (*model.split("/"), setting) if part))
    texts = {cell: _text(cell.path) for cell in cells}
    files = {cell.path.name: hashlib.sha256(text.encode()).hexdigest() for cell, text in texts.items()}
    recipes = {cell.path.stem: _recipe(cell.path.with_suffix(".json")) for cell in cells}
    predictions = {
        cell: _predictions(cell, _rows(cell.path, text), _max_new_tokens(recipes[cell.path.stem]))
        for cell, text in texts.items()
    }
    if (path / "run.json").exists():
        before = RunFolder.open(path)
        known = before.config.get("files", {})
        if changed := sorted(name for name in files if known.get(name, files[name]) != files[name]):
            raise BadInput(
                f"{source / changed[0]} has other content than when it was imported into {path}; "
                f"import into another folder, or delete that one first."
            )
        if files.keys() <= known.keys() and all(p.key in before.recorded() for p in chain(*predictions.values())):
            return path
        files, recipes = {**known, **files}, {**before.config["recipes"], **recipes}
    config = {
        "task": "babilong",
        "model": model,
        "published": True,
        "setting": setting,
        "scope": {
            "lengths": sorted({cell.length for cell in cells}, key=parse_length),
            "subsets": sorted({cell.subset for cell in cells}, key=lambda subset: int(subset[2:])),
            "samples": max(map(len, predictions.values())),
        },
        "files": files,
        "recipes": recipes,
    }
    with RunFolder.start(
        path,
        arm=f"{model} ({_in_words(setting)})" if setting else model,
        config=config,
        fingerprint={"published": "babilong", "model": model, "setting": setting},
        provenance={**provenance, "source": str(source)},
    ) as run:
        for rows in predictions.values():
            run.extend([prediction for prediction in rows if run.needs_asking(prediction.key)])
    return path


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
        return rows
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: {error}.") from error


def _recipe(path: Path) -> dict[str, Any]:
    """Return what the publisher says of prompt and decoding; empty where the file is absent."""
    if not path.exists():
        return {}
    try:
        recipe = json.loads(_text(path), parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}, line {error.lineno}: {error.msg}; this is not JSON.") from error
    if not isinstance(recipe, dict):
        raise BadInput(f"{path}, line 1: a JSON object with prompt and generate_kwargs is expected.")
    return recipe


def _max_new_tokens(recipe: dict[str, Any]) -> int:
    decoding = recipe.get("generate_kwargs")
    decoding = decoding if isinstance(decoding, dict) else {}
    limit = decoding.get("max_new_tokens", decoding.get("max_output_tokens"))
    return limit if isinstance(limit, int) else 0


def _predictions(cell: _Cell, rows: list[dict[str, str]], max_new_tokens: int) -> list[Prediction]:
    """Return the rows as predictions.

    The published sets differ: rows of the 1k-sample set are the bAbI test questions in file order (without those whose
    facts do not fit 1k or 2k), rows of the 100-sample set are others, and no file says which set it is. A sample is
    therefore named by its row, and by a hash of its own question and target and those of the first ten rows: rows pair
    between models exactly where they ask the same question of the same set.
    """
    asked = [f"{row['question'].strip()}\t{row['target'].strip()}\n".encode() for row in rows]
    same_set = hashlib.sha256(b"".join(asked[:10]))
    complete = len(rows) > 990  # the 1k-sample set, with hardly a row left out: stories can be told from row numbers
    per_story = _QUESTIONS_PER_STORY.get(cell.subset, 5)
    predictions = []
    for number, row in enumerate(rows):
        name = same_set.copy()
        name.update(asked[number])
        sample_id = f"{number:05d}-{name.hexdigest()[:8]}"
        prediction = Prediction(
            task="babilong",
            subset=cell.subset,
            length=cell.length,
            sample_id=sample_id,
            story_id=f"{cell.subset}-story-{number // per_story:04d}" if complete and per_story else sample_id,
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
