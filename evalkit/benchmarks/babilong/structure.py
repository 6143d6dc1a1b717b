"""What a bAbI story is like, as numbers that are recorded with each answer, and the choice of stories by them.

    facts        statements in front of the question
    hops         statements that the answer needs
    distance     statements from the first needed one to the last
    distractors  statements behind the last needed one
    entries      qa3 only: how often somebody who holds the object walks into the room that the question names

More than one entry into the asked room is what makes qa3 hard: the question means the last one.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from evalkit.benchmarks.babilong.worlds import (
    DROP,
    GET,
    GIVE,
    GIVING_PEOPLE,
    HOUSE,
    HOUSE_PEOPLE,
    MOVE,
    OBJECTS,
)
from evalkit.errors import BadInput
from evalkit.types import Sample

TAGS = ("facts", "hops", "distance", "distractors", "entries")
MAX_MISSES = 20_000
"""Generated stories that are passed over in a row before a selection counts as empty."""

_OPERATORS = {
    ">=": int.__ge__,
    "<=": int.__le__,
    "!=": int.__ne__,
    "=": int.__eq__,
    ">": int.__gt__,
    "<": int.__lt__,
}
_CONDITION = re.compile(r"\s*(\w+)\s*([^\w\s]+)\s*(\d+)\s*")
_BEFORE = re.compile(r"Where was the (\w+) before the (\w+)\?")
_ERRANDS = {
    subset: GIVING_PEOPLE if subset == "qa5" else HOUSE_PEOPLE
    for subset in ("qa1", "qa2", "qa3", "qa5", "qa6", "qa7", "qa8")
}
"""Tasks whose statements are all of somebody who walks, or takes, leaves or gives something."""


def tags(subset: str, facts: Sequence[str], question: str, supporting: Sequence[int]) -> dict[str, int]:
    """Return the structure of a story whose statements are known.

    Args:
        subset: "qa1" to "qa20".
        facts: the statements in front of the question.
        question: it may end in a space.
        supporting: indices into ``facts``.
    """
    found = {
        "facts": len(facts),
        "hops": len(supporting),
        "distance": max(supporting) - min(supporting),
        "distractors": len(facts) - 1 - max(supporting),
    }
    return found | ({"entries": _entries(facts, question)} if subset == "qa3" else {})


def tags_of_text(subset: str, context: str, question: str) -> dict[str, int]:
    """Return what can be told of a published row, whose statements lie in a text about something else.

    Which of them the answer needs is not told, so there are only facts and entries; nothing where ``told_in`` is None.
    """
    facts = told_in(subset, context)
    if facts is None:
        return {}
    return {"facts": len(facts)} | ({"entries": _entries(facts, question)} if subset == "qa3" else {})


def told_in(subset: str, context: str) -> list[str] | None:
    """Return the sentences of a text that are statements of the task, in order; None where they cannot be told.

    The statements of qa1 to qa8 are of so few words that a novel hardly has such a sentence; those of other tasks are
    not looked for.
    """
    form = _form(subset)
    return None if form is None else re.findall(rf"\b{form}\.", context)


def _form(subset: str) -> str | None:
    """A regular expression, without groups that capture, for a statement of the task."""
    rooms = "|".join(HOUSE)
    if subset == "qa4":
        return rf"The (?:{rooms}) is (?:north|south|east|west) of the (?:{rooms})"
    if subset not in _ERRANDS:
        return None
    people = "|".join(_ERRANDS[subset])
    thing = f"the (?:{'|'.join(OBJECTS)})"
    forms = (
        f"(?:{'|'.join(MOVE)}) the (?:{rooms})",
        f"(?:{'|'.join((*GET, *DROP))}) {thing}(?: there)?",
        f"(?:{'|'.join(GIVE)}) {thing} to (?:{people})",
    )
    return rf"(?:{people}) (?:{'|'.join(forms)})"


def _entries(facts: Sequence[str], question: str) -> int:
    asked = _BEFORE.fullmatch(question.strip())
    if asked is None:
        raise BadInput(f"{question!r} is no question of qa3; it should be like: Where was the milk before the garden?")
    thing, room = asked.groups()
    holder, count = "", 0
    for fact in facts:
        person, *words = fact.rstrip(".").split()
        if f"the {thing}" in fact:
            holder = person if any(f" {verb} the " in fact for verb in GET) else ""
        elif person == holder and words[-1] == room:  # a walk: in qa3 nothing else ends in a room
            count += 1
    return count


class Condition(NamedTuple):
    """One part of a selection, such as entries>=2."""

    tag: str
    operator: str
    number: int

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read what ``--only`` was given.

        Raises:
            BadInput: it has another form, or names a tag or an operator that there is not.
        """
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise BadInput(f"--only {text!r} is no condition; write a tag, an operator and a number, like entries>=2.")
        tag, operator, number = match.groups()
        if tag not in TAGS:
            raise BadInput(f"--only {text!r}: there is no tag {tag!r}; the tags of a story are {', '.join(TAGS)}.")
        if operator not in _OPERATORS:
            raise BadInput(f"--only {text!r}: there is no operator {operator!r}; choose of {' '.join(_OPERATORS)}.")
        return cls(tag, operator, int(number))

    def __str__(self) -> str:
        return f"{self.tag}{self.operator}{self.number}"

    def holds(self, sample: Sample) -> bool:
        """Tell whether a sample is one of those meant.

        Raises:
            BadInput: its structure lacks the tag.
        """
        known: Mapping[str, int] = sample.metadata.get("tags", {})
        if self.tag not in known:
            which = f"these {sample.subset} samples have {', '.join(known) or 'no tags'}"
            raise BadInput(f"--only {self}: there is no {self.tag} here; {which}.")
        return bool(_OPERATORS[self.operator](known[self.tag], self.number))


def select(samples: Iterable[Sample], conditions: Sequence[Condition]) -> Iterator[Sample]:
    """Yield the samples for which all conditions hold.

    Raises:
        BadInput: none is left, or none of MAX_MISSES in a row; or ``Condition.holds`` raises it.
    """
    if not conditions:
        yield from samples
        return
    found = passed_over = 0
    for sample in samples:
        if all(condition.holds(sample) for condition in conditions):
            found, passed_over = found + 1, 0
            yield sample
        else:
            passed_over += 1
            if passed_over == MAX_MISSES:
                break
    if not found or passed_over == MAX_MISSES:
        raise BadInput(
            f"--only {' '.join(map(str, conditions))} leaves no samples: {passed_over:,} in a row are others; "
            "ask for something less rare."
        )
