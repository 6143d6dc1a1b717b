"""What others wrote, read within bounds: text, JSON, TOML, and records of known types.

Every JSON and TOML file of anybody's is opened here, so that one rule holds for all: UTF-8, not nested deeper and no
number longer than anything that was meant, and every refusal one sentence with the file and the field.
"""

import json
import os
import stat
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from evalkit.errors import BadInput

T = TypeVar("T")

MAX_DEPTH = 100
"""Lists and objects in one another; the deepest config known has 8. Python itself gives up at about 1,000, and what
walks through the values later on (a hash, a copy) before that."""
MAX_DIGITS = 60
"""Of a whole number; 2^128 has 39, and 1e30, as tokenizers write for "no limit", 31. Longer ones overflow a float."""
MAX_BYTES = 2**28
"""The largest tokenizers have 35 MB. Not of weights, and not of answers, which are read in parts."""
_SHOWN = 80


def read_text(file: Path) -> str:
    """Return a text file, every line's end as "\\n".

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        BadInput: it is not UTF-8, or cannot be read; see ``require_readable``.
    """
    try:
        require_readable(file)
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not text in UTF-8; copy it again.") from error
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}).") from error


def require_readable(file: Path) -> None:
    """Refuse to read what has no end (a device), waits for ever (a pipe), or fills the memory.

    Raises:
        OSError: there is no such file.
        BadInput: it is none, or a larger one than any of its kind, or a link to nothing.
    """
    if file.is_symlink() and not file.exists():  # taken for no file, a run would go on without it
        raise BadInput(f"{file} is a link to {os.readlink(file)}, which is not there; put a copy of the file there.")
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"{file} is no regular file; put a copy of the file there.")
    if found.st_size > MAX_BYTES:
        raise BadInput(f"{file} has {found.st_size:,} bytes; no file of its kind has more than {MAX_BYTES:,}.")


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the JSON value in a text.

    Args:
        text: in UTF-8, where it is bytes.
        where: the file, for messages.

    Raises:
        BadInput: it is not JSON, or beyond the bounds of this module.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        values = json.loads(text, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where} is not JSON: line {error.lineno}, {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{where} is not text in UTF-8 (byte {error.start:,}); copy it again.") from error
    except _TooLong as error:
        raise BadInput(f"{where} has {error}.") from error
    except RecursionError:
        raise BadInput(_too_deep(where)) from None
    if max(text.count("["), text.count("{")) > MAX_DEPTH // 2 and _is_deeper(values, MAX_DEPTH):
        raise BadInput(_too_deep(where))
    return values


def read_json(file: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is no such file.

    Raises:
        BadInput: as ``read_text`` and ``parse_json``, or the file holds something else than an object.
    """
    try:
        values = parse_json(read_text(file), str(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(values, dict):
        raise BadInput(f"{file} holds {type(values).__name__}; it should be a JSON object.")
    return values


def read_toml(file: Path) -> dict[str, Any]:
    """Return the values of a TOML file.

    Raises:
        BadInput: there is no such file, it is not TOML, or beyond the bounds of this module.
    """
    import tomllib

    try:
        values = tomllib.loads(read_text(file))
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # also of a number with more digits than Python reads
        raise BadInput(f"{file} is not a TOML file: {error}.") from error
    except RecursionError:
        raise BadInput(_too_deep(str(file))) from None
    if _is_deeper(values, MAX_DEPTH):
        raise BadInput(_too_deep(str(file)))
    if number := _longest_number(values):
        raise BadInput(f"{file} has a whole number of {number} digits; at most {MAX_DIGITS} are read.")
    return values


def read_as(kind: type[T], values: Any, name: str = "") -> T:
    """Return JSON values as an instance of a dataclass or pydantic model; strictly, but a list may be a tuple.

    Args:
        kind: whose fields say what is known. What it does with others is its own affair.
        values: of JSON.
        name: of the field in which the values stand; "" where they are the whole file.

    Raises:
        BadInput: the first field that is missing or of another type; whoever knows the file puts its name in front.
    """
    from pydantic import ValidationError

    hint: Any = kind
    text = json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")  # halves of surrogate pairs: no JSON
    try:
        found: T = _adapter(hint).validate_json(text, strict=True)
        return found
    except ValidationError as error:
        errors = error.errors(include_url=False)
        field = errors[0]["loc"][:1]
        first = max((one for one in errors if one["loc"][:1] == field), key=lambda one: len(_path(one, values)))
        place = ".".join([*([name] if name else []), *_path(first, values)]) or "it"
        if first["type"] == "missing":
            raise BadInput(f"{place} is missing.") from error
        said = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise BadInput(f"{place} is {shown(first['input'])}; {said}.") from error


def _path(error: Mapping[str, Any], values: Any) -> list[str]:
    """Return where an error of pydantic's is, without the names of its own that it puts in (constrained-int)."""
    path = []
    for step in error["loc"]:
        if step in (values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()):
            path.append(str(step))
            values = values[step]
    return [*path, str(error["loc"][-1])] if error["type"] == "missing" else path


def shown(value: Any) -> str:
    """Return a value as a message shows it: as Python writes it, cut to a width."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


class _TooLong(Exception):
    """A whole number of more digits than ``MAX_DIGITS``."""


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _TooLong(f"a whole number of {len(digits):,} digits ({digits[:10]}...); at most {MAX_DIGITS} are read")
    return int(digits)


def _too_deep(where: str) -> str:
    return f"{where} has lists or objects nested deeper than {MAX_DEPTH} levels; no file of its kind needs that."


def _is_deeper(values: Any, levels: int) -> bool:
    """Whether lists and objects are nested deeper; level by level, since a walk down would itself go as deep."""
    layer = [values]
    for _ in range(levels + 1):
        holders = [one for one in layer if isinstance(one, (dict, list))]
        if not holders:
            return False
        layer = [inner for one in holders for inner in (one.values() if isinstance(one, dict) else one)]
    return True


def _longest_number(values: Any) -> int:
    """Return how many digits the longest whole number has where that is more than ``MAX_DIGITS``; else 0."""
    if isinstance(values, (dict, list)):
        return max(map(_longest_number, values.values() if isinstance(values, dict) else values), default=0)
    if isinstance(values, int) and abs(values) >= 10**MAX_DIGITS:
        return int(values.bit_length() * 0.30103) + 1
    return 0
