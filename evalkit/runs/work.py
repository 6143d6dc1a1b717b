"""What is left to ask, and who gets what of it: the plan of a run on several engines, free of engines and of Ray.

Longest first within a rope rule. An engine holds a part of what is left of its rule that shrinks as the rule comes to
its end, so that all engines end together (guided self-scheduling: Polychronopoulos and Kuck, IEEE Transactions on
Computers C-36, 1987). What shares a context stays together, for the prefix cache.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from evalkit.runs.answers import Ask, Name

_MOST = 512
"""Keys that an engine may hold: twice the requests in flight of the vLLM backend, so that it never waits for more."""
FATAL = 2
"""A name that was the only one an engine held when it was lost, so often, is asked no more."""
_GROUPS = 8
"""In so many groups is asked again what a lost engine held, each with an engine to itself: the cause is found in few
losses, and what has no part in it is hardly held up."""


@dataclass
class Rule:
    """What is left of one rope rule."""

    fresh: Iterator[tuple[Name, ...]]
    """Keys that nobody holds, those of one context together; pulled when they are needed."""
    left: int
    """Keys without a final answer, with an engine or not."""
    waiting: int
    """Keys that nobody holds."""
    again: deque[tuple[Name, ...]] = field(default_factory=deque)
    """Those whose engine was lost without their doing."""
    suspects: deque[tuple[Name, ...]] = field(default_factory=deque)
    """Groups of what an engine held when it was lost: asked when all others are, each alone on its engine."""
    engines: int = 0
    """Engines that serve it."""


class Work:
    """All keys of a run, in the order in which they are asked. One thread uses it."""

    def __init__(self, rules: Sequence[tuple[Iterable[tuple[Name, ...]], int]]) -> None:
        """Take what is to be asked.

        Args:
            rules: of each rope rule the contexts, longest first, as the keys that share one; and the number of keys.
        """
        self.rules = [Rule(iter(contexts), number, number) for contexts, number in rules]
        self._suspected: dict[Name, int] = {}
        """How often an engine was lost that held nothing else."""

    @property
    def left(self) -> int:
        """Keys without a final answer."""
        return sum(rule.left for rule in self.rules)

    def rule_for(self, serving: int | None) -> int | None:
        """Return the rule that an engine which holds nothing should serve; None where nothing waits.

        Args:
            serving: the rule that it serves: it stays there while anything waits.
        """
        order = range(len(self.rules)) if serving is None else [serving, *range(len(self.rules))]
        return next((number for number in order if self.rules[number].waiting), None)

    def take(self, number: int, held: Collection[Name]) -> list[Name]:
        """Return keys of a rule for an engine, in order; none where it holds its part, or nothing waits.

        Args:
            number: of the rule that the engine serves.
            held: what it holds already.
        """
        rule = self.rules[number]
        if held and next(iter(held)) in self._suspected:  # with its group or alone
            return []
        part = min(max(-(-rule.left // (2 * max(rule.engines, 1))), 1), _MOST)
        taken: list[Name] = []
        while len(held) + len(taken) < part:
            context = rule.again.popleft() if rule.again else next(rule.fresh, None)
            if context is None:
                break
            taken += context
        if not held and not taken and rule.suspects:
            taken = list(rule.suspects.popleft())
        rule.waiting -= len(taken)
        return taken

    def done(self, number: int, key: Name) -> None:
        """A key of a rule has its final answer."""
        self.rules[number].left -= 1
        self._suspected.pop(key, None)

    def lost(self, number: int, held: Sequence[Name], *, blameless: bool) -> list[Name]:
        """Take back what an engine held when it was lost.

        Args:
            number: of the rule that it served.
            held: the keys; none where it was lost between two answers.
            blameless: its machine went with it, so that no prompt can have been the cause.

        Returns:
            Those that are asked no more (``FATAL``).
        """
        if not held:
            return []
        rule = self.rules[number]
        rule.waiting += len(held)
        if blameless:
            suspects = tuple(key for key in held if key in self._suspected)  # all, or none
            rule.suspects.extend([suspects] if suspects else [])
            rule.again.extend((key,) for key in held if key not in self._suspected)
            return []
        for key in held:
            self._suspected[key] = self._suspected.get(key, 0) + (len(held) == 1)
        if len(held) == 1 and self._suspected[held[0]] >= FATAL:
            rule.waiting -= 1
            self.done(number, held[0])
            return list(held)
        size = -(-len(held) // _GROUPS)
        rule.suspects.extend(tuple(held[first : first + size]) for first in range(0, len(held), size))
        return []


def contexts(asks: Iterable[Ask]) -> Iterator[tuple[Name, ...]]:
    """Yield the names of what is asked, those together that follow each other and share a context."""

    def context(ask: Ask) -> tuple[object, ...]:
        sample = ask.sample
        own = (sample.context_id,) if sample.context_id else ("", sample.sample_id)
        return sample.subset, ask.length, ask.repeat, *own

    for _, together in groupby(asks, key=context):
        yield tuple(ask.name for ask in together)
