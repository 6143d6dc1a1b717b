"""One prediction, one line: how ``predictions.jsonl`` is written, checked and read.

A line is a JSON object on ASCII whose last field is the CRC-32 of all bytes in front of it, so a flipped bit or a line
that was edited by hand is noticed, and a line that a killed process left unfinished is told from a finished one:

    {"task":"babilong","subset":"qa1", ... ,"metadata":{},"checksum":"5f0c1b2a"}
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.errors import RunFolderError
from evalkit.records.fingerprint import plain
from evalkit.types import AnswerLogprob, Prediction

FIELDS = tuple(field.name for field in fields(Prediction))
_CHECKSUM = b',"checksum":"%08x"}\n'
_CHECKSUM_LENGTH = len(_CHECKSUM % 0)
_MARK = _CHECKSUM.partition(b"%")[0]


class Line(NamedTuple):
    """One line of the file and where it ends."""

    prediction: Prediction | None
    """None where the line is bad; only the last one can be."""
    end: int
    """Offset in bytes just behind it."""


def encode(prediction: Prediction) -> bytes:
    """Return the line of a prediction, newline included.

    Raises:
        ValueError: it has both an output and an error, or neither, or a NaN somewhere.
    """
    if (prediction.output is None) != (prediction.error is not None):
        raise ValueError(f"A prediction has either an output or an error, and {prediction.key} has both or neither.")
    record = {name: getattr(prediction, name) for name in FIELDS}
    if prediction.answer_logprob is not None:
        record["answer_logprob"] = asdict(prediction.answer_logprob)
    body = json.dumps(record, separators=(",", ":"), allow_nan=False, default=plain).encode("ascii")[:-1]
    return body + _CHECKSUM % zlib.crc32(body)


def decode(line: bytes) -> Prediction | None:
    """Return the prediction of a line, or None when the line is damaged or unfinished."""
    body = line[:-_CHECKSUM_LENGTH]
    if line[len(body) :] != _CHECKSUM % zlib.crc32(body):
        return None
    record: dict[str, Any] = json.loads(body + b"}")
    record["fact_positions"] = tuple(record["fact_positions"])
    if "passing" in record:  # its name in run folders of schema 1
        record["retryable"] = record.pop("passing")
    if record.get("answer_logprob") is not None:
        record["answer_logprob"] = AnswerLogprob(**record["answer_logprob"])
    return Prediction(**record)


def read(path: Path) -> Iterator[Line]:
    """Yield the lines of a file. The last one may be bad: a writer that was killed, or is still writing, leaves that.

    Raises:
        RunFolderError: a bad line with others after it, which is damage, and nothing here may guess what it said; or
            no such file.
    """
    end = 0
    try:
        file = path.open("rb")
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror}); restore it from a backup.") from error
    with file:
        for number, line in enumerate(file, start=1):
            prediction = decode(line)
            # A tail that a killed writer left has no checksum before its end; one that has holds another line, whose
            # newline was damaged. (In JSON, a quotation mark inside a text has a backslash in front.)
            swallowed = _MARK in line[:-_CHECKSUM_LENGTH]
            if prediction is None and (swallowed or (line.endswith(b"\n") and file.read(1))):
                raise RunFolderError(
                    f"Line {number} of {path} is damaged (it does not fit its checksum) and others follow it; restore "
                    f"the file from a backup, or delete that line and repeat the run, which asks that sample again."
                )
            end += len(line)
            yield Line(prediction, end)
