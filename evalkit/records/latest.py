"""What was recorded last at each key: in memory only what deciding needs, some 9 bytes an answer beside names."""

from array import array
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from evalkit.errors import RunFolderError
from evalkit.records import lines
from evalkit.types import Key, Prediction

MAX_ATTEMPTS = 5
"""How often a sample with a retryable error is tried, over all invocations together."""


class State(NamedTuple):
    """What is known of an attempt without reading it."""

    attempt: int
    error: str | None
    retryable: bool
    unfinished: bool
    """It ended inside of its reasoning."""

    @classmethod
    def of(cls, prediction: Prediction) -> "State":
        """Return the state of an attempt."""
        unfinished = prediction.finish_reason == "unfinished_reasoning"
        return cls(prediction.attempt, prediction.error, prediction.retryable, unfinished)

    def may_be_asked(self, max_attempts: int = MAX_ATTEMPTS) -> bool:
        """Return whether it failed for a reason that may have passed."""
        return self.error is not None and self.retryable and self.attempt < max_attempts


_ANSWERED = State(1, None, False, False)
"""Of nearly all: kept once."""
_PAGE = 256


class Latest(Mapping[Key, Prediction]):
    """The latest attempt at every key; keys come sorted.

    A prediction is read from its line whenever it is asked for; its state is at hand. The cells of a run ask samples of
    the same names, so that names are kept once and numbered, and a cell keeps where the line of each number begins.
    """

    def __init__(self, path: Path) -> None:
        """Begin with nothing.

        Args:
            path: ``predictions.jsonl``.
        """
        self._path = path
        self._numbers: dict[str, int] = {}
        self._pages: dict[tuple[str, str, str], dict[int, array[int]]] = {}
        """Of each cell, ``_PAGE`` numbers each: bytes of the file, -1 where nothing is recorded."""
        self._others: dict[Key, State] = {}
        self._len = 0

    def remember(self, prediction: Prediction, start: int) -> None:
        """Note an attempt, whose line begins at a byte of the file."""
        key, state = prediction.key, State.of(prediction)
        number, place = divmod(self._numbers.setdefault(key.sample_id, len(self._numbers)), _PAGE)
        pages = self._pages.setdefault(key[:3], {})
        if number not in pages:
            pages[number] = array("q", [-1]) * _PAGE
        page = pages[number]
        self._len += page[place] < 0
        page[place] = start
        if state != _ANSWERED:
            self._others[key] = state
        else:
            self._others.pop(key, None)

    def state(self, key: Key) -> State | None:
        """Return the state of the latest attempt, None where there is none."""
        return self._others.get(key, _ANSWERED) if key in self else None

    def states(self) -> Iterator[tuple[Key, State]]:
        """Yield every key with its state."""
        return ((key, self._others.get(key, _ANSWERED)) for key in self)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, Key) and self._start(key) >= 0

    def __getitem__(self, key: Key) -> Prediction:
        if (start := self._start(key)) < 0:
            raise KeyError(key)
        self._file.seek(start)
        prediction = lines.decode(self._file.readline())
        if prediction is None:
            raise RunFolderError(f"{self._path} was changed while it was being read; repeat the command.")
        return prediction

    def __iter__(self) -> Iterator[Key]:
        names = list(self._numbers)
        for cell, pages in sorted(self._pages.items()):
            places = ((number * _PAGE + n, start) for number, page in pages.items() for n, start in enumerate(page))
            yield from (Key(*cell, name) for name in sorted(names[place] for place, start in places if start >= 0))

    def __len__(self) -> int:
        return self._len

    def _start(self, key: Key) -> int:
        number, place = divmod(self._numbers.get(key.sample_id, -1), _PAGE)
        page = self._pages.get(key[:3], {}).get(number)
        return -1 if page is None else page[place]

    @cached_property
    def _file(self) -> BinaryIO:
        return self._path.open("rb")
