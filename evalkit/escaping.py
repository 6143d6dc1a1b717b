"""One rule for names, and one way to write foreign text into each kind of output.

terminal    ``for_terminal``, a message ``one_line``      no control characters: they could move or recolour it
CSV         ``csv_cell``                                  nothing that a spreadsheet would compute
LaTeX, Markdown   ``report/render.py``                    no markup
figures     ``text.parse_math`` is off (``report/style.py``)
HTML        the template's own escaping (``report/page.py``)
"""

import re
import unicodedata
from typing import Any

from evalkit.errors import BadInput

MAX_NAME = 200
"""Characters of a name: more fit no table, no legend and no file name."""
_STYLE = re.compile(r"(\x1b\[[012]m)")
_LONG_WORD = re.compile(r"\S{301,}")


def require_name(text: str, what: str) -> str:
    """Return a name as it was given.

    Args:
        text: a name of an arm, a run, a curve or a tag, or one that a folder gives.
        what: whose name it is, for the message.

    Raises:
        BadInput: it is empty, too long, or has characters that are no text: control characters, line breaks, marks that
            turn the direction of writing, halves of surrogate pairs.
    """
    if not text.strip():
        raise BadInput(f"{what} has an empty name; give it one.")
    if len(text) > MAX_NAME:
        raise BadInput(f"{what} has a name of {len(text):,} characters; give it one of {MAX_NAME} at most.")
    if odd := next((c for c in text if not _is_printable(c)), None):
        raise BadInput(
            f"{what} has the name {one_line(text)!r} with the character {odd!r}, which cannot be printed; leave it out."
        )
    return text


def for_terminal(text: str) -> str:
    """Return a text of several lines with every character that is no text as Python writes it, such as \\x1b.

    Bold, dim and plain, which tables are set in, pass: they move no cursor and hide nothing.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    parts = _STYLE.split(text)  # text, style, text, ...
    parts[::2] = ("".join(c if _is_printable(c) or c in "\n\t" else _written(c) for c in part) for part in parts[::2])
    return "".join(parts)


def one_line(text: str, most: int | None = None) -> str:
    """Return the same in one line, and words of more than 300 characters cut in their middle: a path of thousands.

    Args:
        text: a message.
        most: characters above which the whole is cut in its middle.
    """
    plain = "".join(c if _is_printable(c) else _written(c) for c in text)
    line = _LONG_WORD.sub(lambda word: f"{word[0][:100]}[...]{word[0][-60:]}", plain)
    return line if most is None or len(line) <= most else f"{line[: most // 2]}[...]{line[-most // 2 :]}"


def csv_cell(value: Any) -> Any:
    """Return the value of a cell of a CSV table: text that begins like a formula has an apostrophe in front.

    Spreadsheets compute what begins with = + - or @ (``=cmd|' /C calc'!A0`` starts a program); a number is one.
    """
    if not isinstance(value, str):
        return value
    text = "".join(c if _is_printable(c) or c in "\n\t" else _written(c) for c in value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", text) is not None


def _is_printable(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
