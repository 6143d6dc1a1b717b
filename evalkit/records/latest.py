"""What was recorded last at each key: in memory only what deciding needs, a million answers in 300 MB."""

from collections.abc import Hashable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import BinaryIO, NamedTuple, TypeVar

from evalkit.errors import RunFolderError
from evalkit.records import lines
from evalkit.types import Key, Prediction

K = TypeVar("K", bound=Hashable)

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


class Latest(Mapping[K, Prediction]):
    """The latest attempt at every key, in the order in which keys were first recorded.

    A prediction is read from its line whenever it is asked for; its state is at hand.
    """

    def __init__(self, path: Path) -> None:
        """Begin with nothing.

        Args:
            path: ``predictions.jsonl``.
        """
        self._path = path
        self._starts: dict[K, int] = {}
        self._others: dict[K, State] = {}

    def remember(self, key: K, prediction: Prediction, start: int) -> None:
        """Note an attempt, whose line begins at a byte of the file."""
        self._starts[key] = start
        state = State.of(prediction)
        if state != _ANSWERED:
            self._others[key] = state
        else:
            self._others.pop(key, None)

    def state(self, key: K) -> State | None:
        """Return the state of the latest attempt, None where there is none."""
        return self._others.get(key, _ANSWERED) if key in self._starts else None

    def states(self) -> Iterator[tuple[K, State]]:
        """Yield every key with its state."""
        return ((key, self._others.get(key, _ANSWERED)) for key in self._starts)

    def __contains__(self, key: object) -> bool:
        return key in self._starts

    def __getitem__(self, key: K) -> Prediction:
        self._file.seek(self._starts[key])
        prediction = lines.decode(self._file.readline())
        if prediction is None:
            raise RunFolderError(f"{self._path} was changed while it was being read; repeat the command.")
        return prediction

    def __iter__(self) -> Iterator[K]:
        return iter(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    @cached_property
    def _file(self) -> BinaryIO:
        return self._path.open("rb")


def slim(key: Key) -> Key:
    """Return a key whose texts are shared with those of other keys."""
    return Key(*map(intern, key))
