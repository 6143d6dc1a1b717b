"""The small files of a checkpoint folder, read so that a message names the one that is at fault."""

import json
from pathlib import Path
from typing import Any

from evalkit.errors import BadInput


def read_json(file: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is no such file.

    Raises:
        BadInput: the file is not text, not JSON, or holds something else than an object.
    """
    try:
        values = json.loads(read_text(file))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise BadInput(f"{file} is not JSON: line {error.lineno}, {error.msg}.") from error
    if not isinstance(values, dict):
        raise BadInput(f"{file} holds {type(values).__name__}; it should be a JSON object.")
    return values


def read_text(file: Path) -> str:
    """Return a text file. Raises BadInput when it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not text in UTF-8; copy it again.") from error
