"""``scores.parquet``: one row per prediction and scorer, with all that a report counts by; derived, never the truth.

The file says which bytes of ``predictions.jsonl`` and which scorer version it was made from. As long as both still
hold, a report reads only this file: a million predictions load in seconds, and no reply is parsed.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from evalkit.errors import BadInput
from evalkit.files import drafted
from evalkit.reading import parse_json
from evalkit.records.fingerprint import plain
from evalkit.types import Prediction, Score

if TYPE_CHECKING:
    import pyarrow as pa

_SOURCE = b"evalkit.source"
_CHUNK = 1 << 20
_PART = 20_000  # predictions that are made into columns at a time

Scoring: TypeAlias = Callable[[Prediction], Sequence[Score]]
"""Gives one score per scorer, empty ones included."""


class Source(NamedTuple):
    """What a table of scores was made from."""

    scorer_version: str
    size: int
    """Bytes at the start of ``predictions.jsonl`` that were read."""
    sha256: str
    """Hash of those bytes."""

    def to_json(self) -> bytes:
        """Return the form that is kept in the metadata of the table."""
        return json.dumps(self._asdict()).encode()


def digest(path: Path, size: int) -> str:
    """Return the sha256 of the first ``size`` bytes of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(size, _CHUNK))):
            sha.update(chunk)
            size -= len(chunk)
    return sha.hexdigest()


def table(predictions: Iterable[Prediction], score: Scoring, source: Source) -> "pa.Table":
    """Return the long table in the order of the predictions, which are held in memory a part at a time.

    Columns: task subset length sample_id story_id (dictionary-encoded text), prompt_tokens output_tokens attempt
    (int32), finish_reason, error (the kind, its first word; null where there is none), seconds (float32), scorer, value
    (float64 from 0 to 1, null where unscored), detail, fact_positions (list of int32), metadata (JSON text).

    Raises:
        ValueError: a prediction without any score, which would vanish from every count.
    """
    import pyarrow as pa

    rest = iter(predictions)
    parts = [_part(next_ones, score) for next_ones in iter(lambda: list(islice(rest, _PART)), [])]
    whole = pa.concat_tables(parts or [_part([], score)]).unify_dictionaries().combine_chunks()
    return whole.replace_schema_metadata({_SOURCE: source.to_json()})


def _part(predictions: Sequence[Prediction], score: Scoring) -> "pa.Table":
    import pyarrow as pa

    scored = [(prediction, score(prediction)) for prediction in predictions]
    if unscored := [prediction.key for prediction, rows in scored if not rows]:
        raise ValueError(f"{len(unscored)} predictions have no score, not even an empty one, such as {min(unscored)}.")
    answers = [prediction for prediction, rows in scored for _ in rows]
    rows = [row for _, rows in scored for row in rows]

    def text(values: Iterable[str | None]) -> "pa.Array":
        # Replies may hold halves of surrogate pairs, and a scorer's detail may quote them: Arrow takes only real text.
        clean = [v if v is None or v.isascii() else v.encode("utf-8", "replace").decode() for v in values]
        return pa.array(clean, pa.string()).dictionary_encode()

    def number(values: Iterable[float | None], kind: "pa.DataType") -> "pa.Array":
        return pa.array(list(values), kind)

    columns = {
        "task": text(p.task for p in answers),
        "subset": text(p.subset for p in answers),
        "length": text(p.length for p in answers),
        "sample_id": text(p.sample_id for p in answers),
        "story_id": text(p.story_id for p in answers),
        "prompt_tokens": number((p.prompt_tokens for p in answers), pa.int32()),
        "output_tokens": number((p.output_tokens for p in answers), pa.int32()),
        "attempt": number((p.attempt for p in answers), pa.int32()),
        "finish_reason": text(p.finish_reason for p in answers),
        "error": text(None if p.error is None else p.error.split(":")[0].split()[0] for p in answers),
        "seconds": number((p.seconds for p in answers), pa.float32()),
        "scorer": text(row.scorer for row in rows),
        "value": number((row.value for row in rows), pa.float64()),
        "detail": text(row.detail for row in rows),
        "fact_positions": pa.array([p.fact_positions for p in answers], pa.list_(pa.int32())),
        "metadata": text(json.dumps(p.metadata, default=plain, sort_keys=True) for p in answers),
    }
    return pa.table(columns)


def write(scores: "pa.Table", path: Path) -> None:
    """Write a table of scores, with a checksum on every page; ``path`` is replaced only by a complete file.

    Raises:
        OSError: the file cannot be written.
    """
    import pyarrow.parquet as pq

    with drafted(path) as draft:  # reports may score the same folder at the same time
        pq.write_table(scores, draft, compression="zstd", write_page_checksum=True)


def are_of(path: Path, scores: "pa.Table") -> bool:
    """Return whether stored scores were made from the same predictions, by the same rules, as a table of ``table``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bool(pq.read_schema(path).metadata[_SOURCE] == scores.schema.metadata[_SOURCE])
    except (OSError, pa.ArrowException, KeyError, TypeError):
        return False


def read(path: Path, predictions: Path, scorer_version: str, columns: Sequence[str] | None = None) -> "pa.Table | None":
    """Return the stored scores, or None when they have to be computed (again).

    That is when the file is missing or damaged, was made by another scorer version, or from other predictions than
    ``predictions`` holds now.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        made_from = Source(**parse_json(pq.read_schema(path).metadata[_SOURCE], str(path)))
        if made_from.scorer_version != scorer_version or made_from.size != predictions.stat().st_size:
            return None
        if made_from.sha256 != digest(predictions, made_from.size):
            return None
        # Not read_table, which imports Arrow's machinery for data sets: a quarter of a second.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=columns)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, BadInput):
        return None
