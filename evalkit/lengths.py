"""Lengths as people write them ("16k") and as models count them (16384 tokens)."""

import re

from evalkit.errors import BadInput

_UNITS = {"": 1, "k": 1024, "m": 1024**2}
_LENGTH = re.compile(r"([0-9]+(?:\.[0-9]+)?)([km]?)", re.IGNORECASE)
_MAX_CHARS = 40
MOST = 2**31
"""No length reaches this: token counts are kept as 32-bit numbers."""


def parse_length(text: str) -> int:
    """Return the number of tokens that a length label stands for.

    >>> parse_length("16k"), parse_length("1M"), parse_length("1536")
    (16384, 1048576, 1536)

    Raises:
        BadInput: the text is not a whole number of tokens, or of k (1,024) or M (1,048,576) tokens.
    """
    match = _LENGTH.fullmatch(text.strip()) if len(text) <= _MAX_CHARS else None
    tokens = float(match[1]) * _UNITS[match[2].lower()] if match else 0.5
    if tokens != int(tokens) or tokens >= MOST:
        shown = repr(text) if len(text) <= _MAX_CHARS else f"of {len(text):,} characters"
        raise BadInput(f"Length {shown} is not a number of tokens; write it like 1536, 16k (16,384) or 1M.")
    return int(tokens)


def format_length(tokens: int) -> str:
    """Return the shortest label that ``parse_length`` reads back as ``tokens``.

    >>> format_length(131072), format_length(1536), format_length(1000), format_length(0)
    ('128k', '1.5k', '1000', '0k')
    """
    if tokens == 0:
        return "0k"  # the name that BABILong's readers know for "facts only"
    for unit in ("m", "k"):
        size = _UNITS[unit]
        if tokens >= size and tokens * 2 % size == 0:
            return f"{tokens / size:g}{unit.upper() if unit == 'm' else unit}"
    return str(tokens)


def parse_lengths(text: str) -> tuple[str, ...]:
    """Return the labels of a comma-separated list, shortest first, each once, in the form of ``format_length``."""
    return tuple(format_length(n) for n in sorted({parse_length(part) for part in text.split(",") if part.strip()}))
