"""Answers bAbI questions from their text alone: grammar and common sense, nothing of the generator or the task number.

Written against the published v1.2 files, so that a wrong grammar or world rule of the generator shows.
"""

import re
from collections.abc import Callable, Sequence

MOVE = r"(?:moved|went|went back|journeyed|travelled) to the (?P<place>\w+)"
TIMES = ("yesterday", "this morning", "this afternoon", "this evening")
STEPS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
SIDES = {"above": (0, 1), "below": (0, -1), "to the right of": (1, 0), "to the left of": (-1, 0)}
INVERSE = {"north": "south", "south": "north", "east": "west", "west": "east"}
SINGULAR = {"mice": "mouse", "sheep": "sheep", "wolves": "wolf", "cats": "cat"}
CURES = {"hungry": "kitchen", "thirsty": "kitchen", "bored": "garden", "tired": "bedroom"}
NUMBERS = ("none", "one", "two", "three")


class World:
    """What a reader knows after some statements about persons, places and objects."""

    def __init__(self, facts: Sequence[str]):
        self.options: dict[str, set[str]] = {}  # person -> places where they may be
        self.unsure: set[str] = set()  # persons of whom the latest statement leaves the place open
        self.holder: dict[str, str] = {}
        self.held: dict[str, list[str]] = {}  # person -> objects, in the order of taking
        self.history: dict[str, list[str]] = {}  # object -> places, equal neighbours merged
        self.gifts: list[tuple[str, str, str]] = []
        self.subjects: list[str] = []
        for fact in facts:
            self._read(fact)

    def _read(self, fact: str) -> None:
        for pattern, apply in (
            (rf"(?P<who>.+?) {MOVE}\.", self._move),
            (r"(?P<who>\w+) (?:picked up|got|grabbed|took) the (?P<what>\w+)(?: there)?\.", self._get),
            (r"(?P<who>\w+) (?:put down|discarded|dropped|left) the (?P<what>\w+)(?: there)?\.", self._drop),
            (r"(?P<who>\w+) (?:passed|gave|handed) the (?P<what>\w+) to (?P<to>\w+)\.", self._give),
            (r"(?P<who>\w+) is in the (?P<place>\w+)\.", self._move),
            (r"(?P<who>\w+) is (?:not|no longer) in the (?P<place>\w+)\.", self._leave),
            (r"(?P<who>\w+) is either in the (?P<place>\w+) or the (?P<other>\w+)\.", self._either),
        ):
            if match := re.fullmatch(pattern, fact):
                apply(**match.groupdict())
                return
        raise ValueError(f"not a statement of the grammar: {fact}")

    def _move(self, who: str, place: str) -> None:
        if re.fullmatch(r"(After that|Following that|Afterwards|Then) (he|she|they)", who):
            persons = self.subjects
        else:
            persons = self.subjects = who.split(" and ")
        for person in persons:
            self.options[person] = {place}
            self.unsure.discard(person)
            for thing in self.held.get(person, []):
                self._visit(thing, place)

    def _visit(self, thing: str, place: str) -> None:
        history = self.history.setdefault(thing, [])
        if not history or history[-1] != place:
            history.append(place)

    def _get(self, who: str, what: str) -> None:
        assert what not in self.holder, f"{what} is already held"
        self.holder[what] = who
        self.held.setdefault(who, []).append(what)
        for place in self.options.get(who, ()):
            assert not self.history.get(what) or self.history[what][-1] == place, f"{what} is elsewhere"
            self._visit(what, place)

    def _drop(self, who: str, what: str) -> None:
        assert self.holder.pop(what) == who
        self.held[who].remove(what)

    def _give(self, who: str, what: str, to: str) -> None:
        assert self.holder[what] == who
        assert self.options.get(who) == self.options.get(to) or who not in self.options or to not in self.options
        self.holder[what] = to
        self.held[who].remove(what)
        self.held.setdefault(to, []).append(what)
        self.gifts.append((who, what, to))

    def _leave(self, who: str, place: str) -> None:
        self.options.pop(who, None)

    def _either(self, who: str, place: str, other: str) -> None:
        self.options[who] = {place, other}
        self.unsure.add(who)


def where_is(facts, subject):
    world = World(facts)
    if subject.startswith("the "):
        return world.history[subject.removeprefix("the ")][-1]
    (place,) = world.options[subject]
    return place


def where_was_thing(facts, thing, place):
    history = World(facts).history[thing]
    last = len(history) - 1 - history[::-1].index(place)
    return history[last - 1]


def where_was_person(facts, person, place):
    day = {}
    for fact in facts:
        (time,) = (time for time in TIMES if time in fact.lower())
        match = re.search(rf"(\w+) {MOVE}", re.sub(time, "", fact, flags=re.IGNORECASE))
        if match[1] == person:
            assert TIMES.index(time) not in day
            day[TIMES.index(time)] = match["place"]
    places = [day[time] for time in sorted(day)]
    return places[len(places) - 1 - places[::-1].index(place) - 1]


def whether_in(facts, person, place):
    world = World(facts)
    if place not in world.options.get(person, ()):
        return "no"
    return "maybe" if person in world.unsure else "yes"


def how_many(facts, person):
    return NUMBERS[len(World(facts).held.get(person, []))]


def what_carried(facts, person):
    return ",".join(World(facts).held.get(person, [])) or "nothing"


def gift(facts, giver=None, thing=None, receiver=None):
    """Complete the latest gift that matches what is given: return its one unknown part."""
    asked = (giver, thing, receiver)
    for found in reversed(World(facts).gifts):
        if all(part in (None, "?", have) for part, have in zip(asked, found, strict=True)):
            return found[asked.index("?")]
    raise ValueError("no such gift")


def neighbour(facts, toward, reference):
    for fact in facts:
        subject, direction, other = re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", fact).groups()
        if (direction, other) == (toward, reference):
            return subject
        if (INVERSE[direction], subject) == (toward, reference):
            return other
    raise ValueError("no such neighbour")


def fear(facts, name):
    kind = next(m[2] for fact in facts if (m := re.fullmatch(r"(\w+) is a (\w+)\.", fact)) and m[1].lower() == name)
    return next(
        SINGULAR[m[2]]
        for fact in facts
        if (m := re.fullmatch(r"(\w+) are afraid of (\w+)\.", fact)) and SINGULAR[m[1].lower()] == kind
    )


def color(facts, name):
    kind, colored = {}, {}
    for fact in facts:
        if match := re.fullmatch(r"(\w+) is a (\w+)\.", fact):
            kind[match[1]] = match[2]
        else:
            match = re.fullmatch(r"(\w+) is (\w+)\.", fact)
            colored[match[1]] = match[2]
    return colored[[other for other in kind if kind[other] == kind[name] and other in colored][-1]]


def _coordinates(relations, steps):
    """Place things on a grid from (subject, direction, reference) triples."""
    at = {relations[0][2]: (0, 0)}
    for _ in relations:
        for subject, direction, reference in relations:
            x, y = steps[direction]
            if reference in at and subject not in at:
                at[subject] = (at[reference][0] + x, at[reference][1] + y)
            elif subject in at and reference not in at:
                at[reference] = (at[subject][0] - x, at[subject][1] - y)
    return at


def whether_beside(facts, subject, side, reference):
    sides = "|".join(SIDES)
    at = _coordinates([re.fullmatch(rf"The (.+) is ({sides}) the (.+)\.", fact).groups() for fact in facts], SIDES)
    x, y = (a - b for a, b in zip(at[subject], at[reference], strict=True))
    return "yes" if x * SIDES[side][0] + y * SIDES[side][1] > 0 else "no"


def whether_smaller(facts, small, large):
    smaller = set()
    for fact in facts:
        if match := re.fullmatch(r"The (.+) fits inside the (.+)\.", fact):
            smaller.add((match[1], match[2]))
        else:
            match = re.fullmatch(r"The (.+) is bigger than the (.+)\.", fact)
            smaller.add((match[2], match[1]))
    while more := {(a, d) for a, b in smaller for c, d in smaller if b == c} - smaller:
        smaller |= more
    assert ((small, large) in smaller) != ((large, small) in smaller), "undecided"
    return "yes" if (small, large) in smaller else "no"


def path(facts, start, goal):
    relations = [re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", fact).groups() for fact in facts]
    steps = {}  # place -> {neighbour: direction to it}, as far as told
    for subject, direction, reference in relations:
        steps.setdefault(reference, {})[subject] = direction
        steps.setdefault(subject, {})[reference] = INVERSE[direction]
    (middle,) = (place for place in steps[start] if goal in steps[place])
    return f"{steps[start][middle][0]},{steps[middle][goal][0]}"


def feeling(facts, name):
    return next(m[2] for fact in facts if (m := re.fullmatch(r"(\w+) is (\w+)\.", fact)) and m[1].lower() == name)


QUESTIONS: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"Where is (the \w+|\w+)\?", where_is),
    (r"Where was the (\w+) before the (\w+)\?", where_was_thing),
    (r"Where was (\w+) before the (\w+)\?", where_was_person),
    (r"Is (\w+) in the (\w+)\?", whether_in),
    (r"How many objects is (\w+) carrying\?", how_many),
    (r"What is (\w+) carrying\?", what_carried),
    (r"What did (\w+) give to (\w+)\?", lambda facts, giver, to: gift(facts, giver, "?", to)),
    (r"Who gave the (\w+)\?", lambda facts, thing: gift(facts, "?", thing)),
    (r"Who gave the (\w+) to (\w+)\?", lambda facts, thing, to: gift(facts, "?", thing, to)),
    (r"Who received the (\w+)\?", lambda facts, thing: gift(facts, None, thing, "?")),
    (r"Who did (\w+) give the (\w+) to\?", lambda facts, giver, thing: gift(facts, giver, thing, "?")),
    (r"What is (\w+) of the (\w+)\?", neighbour),
    (r"What is the (\w+) (\w+) of\?", lambda facts, place, toward: neighbour(facts, INVERSE[toward], place)),
    (r"What is (\w+) afraid of\?", fear),
    (r"What color is (\w+)\?", color),
    (rf"Is the (.+) ({'|'.join(SIDES)}) the (.+)\?", whether_beside),
    (r"Does the (.+) fit in the (.+)\?", whether_smaller),
    (r"Is the (.+) bigger than the (.+)\?", lambda facts, large, small: whether_smaller(facts, small, large)),
    (r"How do you go from the (\w+) to the (\w+)\?", path),
    (r"Where will (\w+) go\?", lambda facts, name: CURES[feeling(facts, name)]),
    (r"Why did (\w+) (?:go to|get) the \w+\?", feeling),
)


def solve(facts: Sequence[str], question: str) -> str:
    """Return the answer. Raises ValueError, KeyError or AssertionError where text or world make no sense."""
    for pattern, answer in QUESTIONS:
        if match := re.fullmatch(pattern, question):
            return answer(facts, *match.groups())
    raise ValueError(f"not a question of the grammar: {question}")
