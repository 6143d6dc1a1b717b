"""One prediction, one line: how ``predictions.jsonl`` is written, checked and read.

A line is a JSON object on ASCII whose last field is the CRC-32 of all bytes in front of it, so a flipped bit or a line
that was edited by hand is noticed, and a line that a killed process left unfinished is told from a finished one:

    {"task":"babilong","subset":"qa1", ... ,"metadata":{},"checksum":"5f0c1b2a"}
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from evalkit.errors import BadInput, RunFolderError
from evalkit.files import first_line
from evalkit.lengths import parse_length
from evalkit.reading import parse_json, shown
from evalkit.records.fingerprint import plain
from evalkit.types import AnswerLogprob, Prediction

FIELDS = tuple(field.name for field in fields(Prediction))
_CHECKSUM = b',"checksum":"%08x"}\n'
_CHECKSUM_LENGTH = len(_CHECKSUM % 0)
_MARK = _CHECKSUM.partition(b"%")[0]
_MOST = 2**31 - 1
_LARGEST = 3e38  # that float32 holds; nothing compares with NaN
_MANY = 50  # brackets, above which a line may be nested deeper than the bound
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", list: "a list", dict: "an object"}
_WORDS |= {type(None): "null"}
_METADATA = {"facts": list, "supporting": list, "tags": dict, "wanted": int, "prefix": str, "rule": str}


def _kinds(hint: Any) -> tuple[type, ...]:
    """Return what JSON may hold for the type of a field."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for one in get_args(hint) for kind in _kinds(one))
    written: dict[Any, tuple[type, ...]] = {float: (int, float), tuple: (list,), Mapping: (dict,), Literal: (str,)}
    written |= {AnswerLogprob: (dict,)}
    origin = get_origin(hint) or hint
    return written.get(origin, (origin,))


_KINDS = {name: _kinds(hint) for name, hint in get_type_hints(Prediction).items()}
_COUNTS = tuple(name for name, kinds in _KINDS.items() if kinds == (int,))


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
    """Return the prediction of a line, or None when the line is damaged or unfinished.

    Raises:
        BadInput: the line fits its checksum, so that somebody wrote it on purpose, and is no prediction; names the
            field. Fields that are not known, as a later version may write, are passed over.
    """
    body = line[:-_CHECKSUM_LENGTH]
    if line[len(body) :] != _CHECKSUM % zlib.crc32(body):
        return None
    try:
        record: Any = _JSON.decode((body + b"}").decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        parse_json(body + b"}", "it")  # slower, and says what is wrong
        raise BadInput(f"{first_line(error)}.") from error
    if body.count(b"[") > _MANY or body.count(b"{") > _MANY:
        parse_json(body + b"}", "it")  # looks at how deep it goes
    if not isinstance(record, dict):
        raise BadInput("it is no JSON object.")
    if "passing" in record:  # its name in run folders of schema 1
        record["retryable"] = record.pop("passing")
    values: dict[str, Any] = {name: record[name] if name in record else _default(name) for name in _KINDS}
    if name := _first_wrong(tuple(map(type, values.values()))):
        wanted = " or ".join(_WORDS[kind] for kind in _KINDS[name])
        raise BadInput(f"{name} is {shown(values[name])}; it should be {wanted}.")
    _require_usable(values)
    values["seconds"] = float(values["seconds"])  # JSON may say 2147483648, which no float32 is made of
    values["fact_positions"] = tuple(values["fact_positions"])
    if values["answer_logprob"] is not None:
        values["answer_logprob"] = _answer_logprob(values["answer_logprob"])
    return Prediction(**values)


@lru_cache
def _first_wrong(kinds: tuple[type, ...]) -> str | None:
    """Return the first field that has a type it may not have. Nearly all lines have the same types."""
    return next((name for name, kind in zip(_KINDS, kinds, strict=True) if kind not in _KINDS[name]), None)


def _require_usable(values: Mapping[str, Any]) -> None:
    """Refuse what a table, a scorer or a report could not hold or use, though it is of the right type.

    Raises:
        BadInput: the first such field.
    """
    if (values["output"] is None) != (values["error"] is not None):
        raise BadInput("of output and error exactly one should be null.")
    if values["error"] is not None and not values["error"].partition(":")[0].strip():
        raise BadInput(f"error is {shown(values['error'])}; it should begin with its kind, such as 'engine: ...'.")
    _tokens(values["length"])
    metadata = values["metadata"]
    for name, kind in _METADATA.items():
        if (value := metadata.get(name)) is not None and type(value) is not kind:
            raise BadInput(f"metadata.{name} is {shown(value)}; it should be {_WORDS[kind]}.")
    numbers = [*map(values.__getitem__, _COUNTS), *values["fact_positions"], *(metadata.get("supporting") or ())]
    numbers.append(metadata.get("wanted") or 0)
    if set(map(type, numbers)) != {int} or min(numbers) < 0 or max(numbers) > _MOST:
        wrong = (pair for pair in _whole_numbers(values) if type(pair[1]) is not int or not 0 <= pair[1] <= _MOST)
        name, number = next(wrong)
        raise BadInput(f"{name} is {shown(number)}; it should be a whole number from 0 to {_MOST:,}.")
    if not 0 <= values["seconds"] <= _LARGEST:
        raise BadInput(f"seconds is {shown(values['seconds'])}; it should be a number from 0 up.")
    if not {str}.issuperset(map(type, metadata.get("facts") or ())):
        raise BadInput("metadata.facts should be a list of texts.")


def _answer_logprob(record: Mapping[str, Any]) -> AnswerLogprob:
    target, tokens, wrong = record.get("target"), record.get("tokens"), record.get("wrong")
    if type(tokens) is not int or not 0 < tokens <= _MOST:
        raise BadInput(f"answer_logprob.tokens is {shown(tokens)}; it should be a whole number from 1 to {_MOST:,}.")
    if not isinstance(wrong, dict):
        raise BadInput(f"answer_logprob.wrong is {shown(wrong)}; it should be an object.")
    for name, value in (("target", target), *((f"wrong.{label}", value) for label, value in wrong.items())):
        if type(value) not in (int, float) or not abs(value) <= _LARGEST:
            raise BadInput(f"answer_logprob.{name} is {shown(value)}; it should be a number.")
    return AnswerLogprob(target=float(record["target"]), tokens=tokens, wrong=wrong)


def _whole_numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each number of a record that a table keeps as int32, with the name of its field."""
    metadata = values["metadata"]
    yield from ((name, values[name]) for name in _COUNTS)
    yield from (("fact_positions", one) for one in values["fact_positions"])
    yield from (("metadata.supporting", one) for one in metadata.get("supporting") or ())
    yield "metadata.wanted", metadata.get("wanted") or 0


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


_JSON = json.JSONDecoder(parse_constant=_no_number)
_tokens = lru_cache(parse_length)


def _default(name: str) -> Any:
    field = Prediction.__dataclass_fields__[name]
    if field.default is MISSING and field.default_factory is MISSING:
        raise BadInput(f"{name} is missing.")
    return field.default if field.default_factory is MISSING else field.default_factory()


def read(path: Path) -> Iterator[Line]:
    """Yield the lines of a file. The last one may be bad: a writer that was killed, or is still writing, leaves that.

    Raises:
        RunFolderError: a bad line with others after it, which is damage, and nothing here may guess what it said; a
            line whose fields are no prediction's; or no such file.
    """
    end = 0
    try:
        if not path.is_file():  # a pipe would be waited for
            path.stat()
            raise RunFolderError(f"{path} is no regular file; restore it from a backup.")
        file = path.open("rb")
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror}); restore it from a backup.") from error
    with file:
        for number, line in enumerate(file, start=1):
            try:
                prediction = decode(line)
            except BadInput as error:
                raise RunFolderError(
                    f"Line {number} of {path} is no prediction, though it fits its checksum: {error} Restore the file "
                    "from a backup, or delete that line."
                ) from error
            # A tail that a killed writer left has no checksum before its end; one that has holds another line, whose
            # newline was damaged. (In JSON, a quotation mark inside a text has a backslash in front.)
            if prediction is None and (_MARK in line[:-_CHECKSUM_LENGTH] or (line.endswith(b"\n") and file.read(1))):
                raise RunFolderError(
                    f"Line {number} of {path} is damaged (it does not fit its checksum) and others follow it; restore "
                    f"the file from a backup, or delete that line and repeat the run, which asks that sample again."
                )
            end += len(line)
            yield Line(prediction, end)
