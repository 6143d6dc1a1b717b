"""Run folders to one long table: a row per prediction and scorer, and what is known of each run."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalkit.errors import BadInput, EvalkitError
from evalkit.lengths import parse_length
from evalkit.models.training_record import TrainingRecord
from evalkit.records.folder import RunFolder, find_run_folders
from evalkit.records.scoring import scored
from evalkit.report.apart import Asked, tell_apart
from evalkit.report.run import Run
from evalkit.report.shards import Shard, join_shards

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# In JSON text a quotation mark inside a string follows a backslash, so no fact can be taken for a name.
_NEEDED = re.compile(r'(?<!\\)"(wanted|supporting)": (\d+|\[[\d, ]*\])')
_TAGS = re.compile(r'(?<!\\)"tags": (\{[^{}]*\})')
_COLUMNS = (
    "task",
    "subset",
    "length",
    "sample_id",
    "story_id",
    "prompt_tokens",
    "output_tokens",
    "finish_reason",
    "error",
    "scorer",
    "value",
)


class _Part(NamedTuple):
    run: Run
    table: "pa.Table"


class Loaded(NamedTuple):
    """What ``load_runs`` returns."""

    frame: "pd.DataFrame"
    """Columns run arm task subset length sample_id story_id finish_reason error scorer (categories), length_tokens
    prompt_tokens output_tokens (int32), value (0..1, NaN where unscored), depth (0 top, 1 end, NaN where unknown)."""
    runs: tuple[Run, ...]
    left_out: tuple[str, ...]
    """What was not used, or is not complete, and why: one sentence each."""
    tags: tuple[str, ...] = ()
    """Names of the tags that some answer has, where they were asked for."""


def load_runs(paths: Iterable[Path | str], *, tag: str | None = None) -> Loaded:
    """Load every sound run folder at or below ``paths``; the result does not depend on their order.

    Args:
        paths: run folders, or folders that contain some.
        tag: name of a tag, whose values become the column ``tag``, as text ("" where a sample has none).

    Raises:
        BadInput: there is no run folder, or none with a single answer; the message says what was wrong with each.
    """
    import pyarrow as pa

    given = [Path(path) for path in paths]
    folders = sorted({folder.resolve(): folder for path in given for folder in find_run_folders(path)}.values())
    if not folders:
        where = ", ".join(map(str, given)) or "the paths given"
        raise BadInput(f"There is no run folder (one with a run.json) at or below {where}; make one with evalkit run.")
    for path in given:
        if not any(folder.resolve().is_relative_to(path.resolve()) for folder in folders):
            raise BadInput(f"There is no run folder (one with a run.json) at or below {path}; leave it out.")
    names = _short_names(folders)
    parts: list[_Part] = []
    left_out: list[str] = []
    tags: set[str] = set()
    for folder in folders:
        try:
            parts.append(_load(folder, names[folder], left_out, tag, tags))
        except EvalkitError as error:
            left_out.append(f"{names[folder]} is left out: {error}")
    if not parts:
        raise BadInput(f"No run folder can be used. {' '.join(left_out)}")
    parts = _told_apart(_whole_runs(parts, left_out), left_out)
    frame = (
        pa.concat_tables(part.table for part in parts)
        .unify_dictionaries()
        .to_pandas(self_destruct=True, split_blocks=True)
    )
    frame["length_tokens"] = _by_category(frame["length"], parse_length).astype(np.int32)
    return Loaded(frame, tuple(part.run for part in parts), tuple(left_out), tuple(sorted(tags)))


def _load(path: Path, name: str, left_out: list[str], tag: str | None, tags: set[str]) -> _Part:
    import pyarrow as pa

    folder = RunFolder.open(path)
    training = folder.config.get("training")
    run = Run(
        name=name,
        path=path,
        arm=_arm(folder),
        config=folder.config,
        fingerprint=folder.fingerprint,
        provenance=folder.provenance,
        training=TrainingRecord.from_json(training, f"{path}/run.json, training,") if training else None,
    )
    table, outdated = scored(folder)
    again = "the stored scores do not fit its predictions or the rules of today, and were computed again."
    rescored = [again] if outdated else []
    if not table.num_rows:
        raise BadInput("it has no answers yet.")
    table, wrong = _only_sound(table)
    left_out.extend(f"{name}: {notice}" for notice in [*rescored, *folder.notices, *wrong, *_unfinished(folder, table)])
    fixed = {"run": name, "arm": run.arm}
    columns = {label: _constant(text, table.num_rows) for label, text in fixed.items()}
    columns |= {label: table[label].combine_chunks() for label in _COLUMNS}
    columns["depth"] = pa.array(_depths(table), pa.float32())
    if tag is not None:
        columns["tag"] = _tag_values(table, tag, tags)
    return _Part(run, pa.table(columns))


def _whole_runs(parts: Sequence[_Part], left_out: list[str]) -> list[_Part]:
    """Join what was asked in shards; see ``shards.join_shards``."""
    by_name = {part.run.name: part for part in parts}
    shards = [
        Shard(
            name=run.name,
            shard=run.config["shard"],
            run=(run.arm, run.sha256),
            asked={name: run.config["scope"][name] for name in ("lengths", "subsets", "samples")},
            num_rows=table.num_rows,
        )
        for run, table in parts
        if run.config.get("shard")
    ]
    whole = [part for part in parts if not part.run.config.get("shard")]
    return whole + [_as_one([by_name[name] for name in names]) for names in join_shards(shards, left_out)]


def _told_apart(parts: Sequence[_Part], left_out: list[str]) -> list[_Part]:
    """Give runs a name of their own whose arm's name stands for several; see ``apart.tell_apart``."""
    names = tell_apart([Asked(run, _cells(table)) for run, table in parts], left_out)
    return [
        _Part(
            replace(run, arm=names[run.name]),
            table.set_column(table.column_names.index("arm"), "arm", _constant(names[run.name], table.num_rows)),
        )
        if run.name in names
        else _Part(run, table)
        for run, table in parts
    ]


def _cells(table: "pa.Table") -> set[tuple[str, str]]:
    pairs = table.select(["subset", "length"]).group_by(["subset", "length"]).aggregate([]).to_pylist()
    return {(pair["subset"], pair["length"]) for pair in pairs}


def _as_one(shards: Sequence[_Part]) -> _Part:
    import pyarrow as pa

    first = shards[0].run
    run = replace(
        first,
        name=first.name if len(shards) == 1 else f"{first.name} and {len(shards) - 1} more shards",
        more_paths=tuple(part.run.path for part in shards[1:]),
        provenance=[entry for part in shards for entry in part.run.provenance],
    )
    table = pa.concat_tables(part.table for part in shards).unify_dictionaries().combine_chunks()
    return _Part(run, table.set_column(table.column_names.index("run"), "run", _constant(run.name, table.num_rows)))


def _constant(text: str, num_rows: int) -> "pa.DictionaryArray":
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), [text])


def _arm(folder: RunFolder) -> str:
    """The arm's name; a control bounds the arm it was made of, and must not be averaged with it."""
    control = folder.config.get("control")
    name = f"{control}".replace("-", " ")
    return folder.arm if not control or name in folder.arm.replace("-", " ") else f"{folder.arm}, {name}"


def _only_sound(table: "pa.Table") -> "tuple[pa.Table, list[str]]":
    """Turn values that are no score (NaN, or outside 0 to 1) into missing ones, and say so."""
    import pyarrow.compute as pc

    value = table["value"]
    sound = pc.and_(pc.greater_equal(value, 0.0), pc.less_equal(value, 1.0))  # False for NaN, null for null
    wrong = pc.sum(pc.invert(sound)).as_py() or 0
    if not wrong:
        return table, []
    fixed = pc.if_else(pc.fill_null(sound, False), value, None)
    place = table.column_names.index("value")
    table = table.set_column(place, "value", fixed)
    return table, [f"{wrong} scores that are not a number from 0 to 1 count as unscored."]


def _unfinished(folder: RunFolder, table: "pa.Table") -> list[str]:
    """Say how much of what was asked for is there, where the folder knows how much that is."""
    import pyarrow.compute as pc

    first = table["scorer"].combine_chunks().dictionary[0].as_py()  # one row a sample; reading all lines takes longer
    there = int(pc.sum(pc.equal(table["scorer"].cast("string"), first)).as_py())
    expected = folder.expected or _expected_by_scope(folder.config)
    return [f"{there} of {expected} samples are recorded so far."] if expected and there < expected else []


def _expected_by_scope(config: Mapping[str, Any]) -> int | None:
    """Return how many samples an older folder should have, which has no count of each cell; None where it cannot say.

    It says how many samples were asked for, of which published rows may have fewer.
    """
    scope = config.get("scope", {})
    if config.get("published") or config.get("source", "generated") != "generated" or "samples" not in scope:
        return None
    num_cells = len(scope.get("lengths", [])) * len(scope.get("subsets", []))
    return num_cells * int(scope["samples"]) * max(1, len(config.get("depths") or []))


def _depths(table: "pa.Table") -> NDArray[np.float32]:
    """Depth of each prompt's earliest fact that the answer needs (of its earliest fact, where that is not known)."""
    metadata = table["metadata"].combine_chunks()
    needed = [needed_facts(_small_part(text)) for text in metadata.dictionary.to_pylist()]
    positions = table["fact_positions"].combine_chunks()
    starts, flat = positions.offsets.to_numpy(), positions.values.to_numpy()
    counts = np.diff(starts)
    tokens = table["prompt_tokens"].to_numpy().astype(float)
    # Facts stand in story order, so the smallest index is the earliest.
    index = np.array([min(which, default=0) for which in needed], dtype=np.int64)[metadata.indices.to_numpy()]
    known = (index < counts) & (tokens > 0)
    depths = np.full(len(tokens), np.nan, dtype=np.float32)
    depths[known] = flat[starts[:-1][known] + index[known]] / tokens[known]
    return depths


def _tag_values(table: "pa.Table", tag: str, names: set[str]) -> "pa.DictionaryArray":
    """Each sample's value of a tag, as text; ``names`` takes the tags that there are."""
    import pyarrow as pa

    metadata = table["metadata"].combine_chunks()
    values = []
    for text in metadata.dictionary.to_pylist():
        match = _TAGS.search(text)
        found = json.loads(match[1]) if match else {}
        names.update(found)
        values.append(str(found.get(tag, "")))
    return pa.array([values[i] for i in metadata.indices.to_pylist()]).dictionary_encode()


def _small_part(metadata: str) -> dict[str, Any]:
    """What ``needed_facts`` looks at; a million records with all their facts would take long to parse."""
    return {name: json.loads(value) for name, value in _NEEDED.findall(metadata)}


def needed_facts(metadata: Mapping[str, Any]) -> list[int]:
    """Return the indices of the facts that the answer needs; empty where the record does not say."""
    if "wanted" in metadata:  # MRCR counts from 1
        return [int(metadata["wanted"]) - 1]
    return [int(index) for index in metadata.get("supporting", [])]


def _short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Name each folder by the shortest end of its path that no other one shares."""
    parts = {folder: folder.resolve().parts for folder in folders}
    names: dict[Path, str] = {}
    for folder, own in parts.items():
        size = next(n for n in range(1, len(own) + 1) if sum(other[-n:] == own[-n:] for other in parts.values()) == 1)
        names[folder] = "/".join(own[-size:])
    return names


def _by_category(column: "pd.Series[Any]", function: Any) -> NDArray[Any]:
    """Apply a function once per category."""
    return np.array([function(category) for category in column.cat.categories])[column.cat.codes.to_numpy()]
