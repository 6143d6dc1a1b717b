"""The identity of a run: everything that decides its answers, as flat named parts and one hash over them.

Which parts there are is decided by whoever starts the run; this file only compares and hashes them.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

ABSENT = "absent"


def as_json(value: Any) -> Any:
    """Return ``value`` as it reads back from JSON: tuples become lists, mappings plain dictionaries, keys strings.

    Raises:
        ValueError: a NaN or an infinity, which JSON does not have.
        TypeError: something else that JSON does not have.
    """
    return json.loads(json.dumps(value, allow_nan=False, default=plain))


def fingerprint_sha(parts: Mapping[str, Any]) -> str:
    """Return the sha256 of the parts; the order in which they are given does not matter."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False, default=plain)
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return one phrase per part that differs, with both values; an empty list means the same run."""
    return [
        f"{name} is {_show(recorded, name)} there and {_show(asked, name)} now"
        for name in sorted({*recorded, *asked})
        if name not in recorded or name not in asked or recorded[name] != asked[name]
    ]


def _show(parts: Mapping[str, Any], name: str) -> str:
    return json.dumps(parts[name], ensure_ascii=False) if name in parts else ABSENT


def plain(value: Any) -> Any:
    """Return a numpy scalar or array, or a read-only mapping, as plain Python: the ``default`` of ``json.dumps``.

    Raises:
        TypeError: something else that JSON does not have.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON.")
