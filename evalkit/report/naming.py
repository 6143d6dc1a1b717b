"""Names as they are shown: free of control characters, short where there is little room, and never two the same."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from evalkit.escaping import one_line

_MINUS = " − "
_ELLIPSIS = "…"
_WORDS = re.compile(r"\w+\W*|\W+")
"""Words with what parts them from the next."""


def short_names(names: Iterable[str], limit: int) -> dict[str, str]:
    """Return each name in at most ``limit`` characters (4 or more), no two of them the same.

    What a name shares with most others is cut out first, so that what tells it apart stays. Names of two sides
    ("a − b") are cut on both. A number is added where nothing else would keep two apart.
    """
    ordered = list(dict.fromkeys(names))
    sides = list(dict.fromkeys(side for name in ordered for side in name.split(_MINUS)))
    shown = {side: one_line(side) for side in sides}
    shares = Counter(word for text in shown.values() for word in set(_WORDS.findall(text)))
    pairs = max((name.count(_MINUS) for name in ordered), default=0)
    least = (limit - pairs * len(_MINUS)) // (pairs + 1)
    for room in range(limit, least - 1, -1):  # of two sides one may be long where the other is short
        short = _distinct({side: _cut(text, room, shares) for side, text in shown.items()}, room)
        found = {name: _MINUS.join(short[side] for side in name.split(_MINUS)) for name in ordered}
        if room == least or all(len(text) <= limit for text in found.values()):
            break
    return found


def _cut(text: str, limit: int, shares: Counter[str]) -> str:
    """Drop words, those that most names have before others, and the first one last, until the text fits."""
    if len(text) <= limit:
        return text
    words: list[str | None] = list(_WORDS.findall(text))
    by_share = sorted(range(len(words)), key=lambda i: (i == 0, -shares[words[i] or ""], i))
    for i in by_share[:-1]:
        words[i] = None
        if len(kept := _joined(words)) <= limit:
            return kept
    kept = _joined(words).strip(_ELLIPSIS)
    return f"{kept[: limit - 1 - limit // 3]}{_ELLIPSIS}{kept[-(limit // 3) :]}"


def _joined(words: Sequence[str | None]) -> str:
    parts = [
        _ELLIPSIS if gap else "".join(word or "" for word in run)
        for gap, run in itertools.groupby(words, key=lambda word: word is None)
    ]
    return re.sub(rf"\s*{_ELLIPSIS}\s*", _ELLIPSIS, "".join(parts)).strip()


def _distinct(shown: dict[str, str], limit: int) -> dict[str, str]:
    """Number those that are shown alike."""
    taken: set[str] = set()
    found = {}
    for name, text in shown.items():
        number, own = 2, text
        while own in taken:
            mark = f" {number}"
            own, number = (
                f"{text[: limit - len(mark) - 1]}{_ELLIPSIS}{mark}" if len(text) + len(mark) > limit else (text + mark),
                number + 1,
            )
        taken.add(own)
        found[name] = own
    return found
