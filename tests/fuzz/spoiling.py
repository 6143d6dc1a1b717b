"""How a sound file is spoilt: a value in its JSON, or bytes of its text."""

import json
import random
from collections.abc import Iterator
from typing import Any

DEEP = 200_000
RAW = "\x00raw:"
"""Marks a text that stands in JSON as it is: what Python's writer would not write."""


def odd_value(rng: random.Random, value: Any = None) -> Any:
    """Return something that may stand where another type or range is meant; often close to the value that was there."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.3:
        return rng.choice([-value, value + 1, value * 2, value / 2, 0, value * 10**12, str(value), [value]])
    if isinstance(value, str) and rng.random() < 0.3:
        return rng.choice(
            [value.upper(), f"{value}x", value[:-1], [value], {value: value}, f"{value}\n", f"\x1b[31m{value}"]
        )
    return rng.choice(
        [
            None,
            True,
            False,
            0,
            1,
            -1,
            3,
            2**31,
            2**40,
            2**63,
            10**59,
            0.5,
            -0.0,
            1e-300,
            1e300,
            f"{RAW}NaN",
            f"{RAW}Infinity",
            f"{RAW}-Infinity",
            f"{RAW}1e999",
            f"{RAW}{'9' * 400}",
            f"{RAW}{'9' * 5000}",
            f"{RAW}{'[' * 90}{']' * 90}",
            f"{RAW}{'[' * 950}{']' * 950}",
            f"{RAW}{'[' * DEEP}{']' * DEEP}",
            "",
            " ",
            "x",
            "yarn",
            "nan",
            "16k",
            "-1",
            "../../etc/passwd",
            "/",
            "a/b",
            "x" * 5000,
            "\ud800",
            "\x00",
            "\x1b[2J\x1b]0;title\x07",
            "=cmd|'/c calc'!A1",
            "$x^{$",
            "a\rb\nc",
            "\u202eevil\u2066",
            "<script>alert(1)</script>",
            "{{ 1/0 }}",
            [],
            [[]],
            [None],
            [1, "a"],
            [0] * 3000,
            {},
            {"a": 1},
            {"": None},
        ]
    )


def spoil_json(rng: random.Random, values: Any) -> bytes:
    """Return a JSON document with one to three values changed, left out, renamed or added."""
    values = json.loads(json.dumps(values))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(values))
        if not places:
            break
        holder, key = rng.choice(places)
        how = rng.random()
        if how < 0.7:
            holder[key] = odd_value(rng, holder[key])
        elif how < 0.82:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice(["", "x" * 300, "\ud800", "\x1b[31m", "type", "a.b", f"{key} "])] = holder.pop(key)
        else:
            holder.append(odd_value(rng))
    return to_json(values)


def to_json(values: Any) -> bytes:
    """Return JSON text in which the marked texts stand raw."""
    text = json.dumps(values)
    mark = json.dumps(RAW)[:-1]
    while (start := text.find(mark)) >= 0:
        end = text.index('"', start + len(mark))
        text = text[:start] + text[start + len(mark) : end] + text[end + 1 :]
    return text.encode()


def spoil_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return a file cut, doubled, with bytes flipped or put in, or another one altogether."""
    at = rng.randrange(len(content) + 1)
    odd = [
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b'"',
        b"{",
        b"[" * 1000,
        b"\x1b[31m",
        b"\xed\xa0\x80",
        b",",
        b"=1+1",
    ]
    return rng.choice(
        [
            lambda: content[:at],
            lambda: content[at:],
            lambda: content + content,
            lambda: content[:at] + rng.choice(odd) + content[at:],
            lambda: content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
            lambda: rng.choice(odd) + content,
            lambda: content.replace(b"\n", b"\r\n"),
            lambda: content.replace(b"\n", b"\r"),
            lambda: content[:at] + rng.randbytes(rng.randrange(1, 40)) + content[at:],
            lambda: b"",
            lambda: b"null",
            lambda: b"[" * DEEP,
            lambda: b'{"a":' * DEEP,
            lambda: rng.randbytes(200),
        ]
    )()


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each place of a value: what holds it, and its key there."""
    for key in values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        yield values, key
        yield from _places(values[key])
