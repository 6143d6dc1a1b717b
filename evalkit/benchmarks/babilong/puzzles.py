"""The closed worlds of bAbI: task 4 and tasks 14 to 20, a few statements made for one question.

Statements and statistics are those of the bAbI v1.2 text files (Weston et al., arXiv 1502.05698); the program is our
own. Where the files leave a question open to two readings (task 19 with a second way on the map), ours do not.
"""

from collections.abc import Callable

from numpy.random import Generator

from evalkit.benchmarks.babilong.worlds import (
    GET,
    HOUSE,
    MOVE,
    QUESTIONS_PER_STORY,
    TOWN,
    TOWN_PEOPLE,
    WINDOW,
    Question,
    Story,
    last_visits,
    pick,
    shuffled,
)

TIMES = ("yesterday", "this morning", "this afternoon", "this evening")

DIRECTIONS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
OPPOSITE = {"north": "south", "east": "west", "south": "north", "west": "east"}

SHAPES = ("red square", "blue square", "red sphere", "pink rectangle", "yellow square", "triangle")
SIDES = {"above": (0, 1), "to the right of": (1, 0), "below": (0, -1), "to the left of": (-1, 0)}

CHASED = {"mouse": "mice", "sheep": "sheep", "wolf": "wolves", "cat": "cats"}
CHASED_NAMES = ("Gertrude", "Winona", "Jessica", "Emily")
COLORED_NAMES = ("Lily", "Bernhard", "Greg", "Julius", "Brian")
COLORED_ANIMALS = ("swan", "lion", "frog", "rhino")
COLORS = ("gray", "white", "yellow", "green")
KIND_SIZES = (
    ((2, 2, 1), 0.6),
    ((2, 1, 1, 1), 0.2),
    ((4, 1), 0.1),
    ((2, 3), 0.09),
    ((5,), 0.01),
)
"""Animals of each kind, the kind of the one that is asked about first, and the share of such stories in the files."""

WAY_AT = (
    ((3, 4), 0.18),
    ((2, 4), 0.15),
    ((1, 4), 0.13),
    ((0, 4), 0.13),
    ((2, 3), 0.08),
    ((1, 3), 0.08),
    ((0, 3), 0.07),
    ((1, 2), 0.06),
    ((0, 2), 0.06),
    ((0, 1), 0.06),
)
"""Places of the two needed ones among the five statements of task 19, and the share of such stories in the files."""

LARGE_BOXES = ("box", "chest", "container", "suitcase")
MOTIVES = {
    "hungry": ("kitchen", "apple"),
    "thirsty": ("kitchen", "milk"),
    "bored": ("garden", "football"),
    "tired": ("bedroom", "pajamas"),
}
MOTIVATED_NAMES = ("Sumit", "Yann", "Antoine", "Jason")


def two_arguments(rng: Generator) -> Story:
    """Task 4: three places on a line; each end is told relative to the middle (two times in three) or the reverse."""
    first, middle, last = shuffled(rng, HOUSE)[:3]
    direction = pick(rng, tuple(DIRECTIONS))
    pairs = []  # (place, direction, place): the first lies in that direction of the second
    for end, toward in ((first, direction), (last, OPPOSITE[direction])):
        relative_to_middle = rng.integers(3) < 2
        pairs.append((end, toward, middle) if relative_to_middle else (middle, OPPOSITE[toward], end))
    pairs = shuffled(rng, pairs)
    facts = tuple(f"The {subject} is {toward} of the {reference}." for subject, toward, reference in pairs)

    def ask(rng: Generator) -> Question:
        fact = int(rng.integers(2))
        subject, toward, reference = pairs[fact]
        forms = (f"What is {toward} of the {reference}?", f"What is the {reference} {OPPOSITE[toward]} of?")
        return Question(pick(rng, forms), subject, (fact,))

    return Story(facts, *ask(rng), ask)


def times_of_day(rng: Generator) -> Story:
    """Task 14: a person moves at most once in each of four times; what is told between two questions is shuffled."""
    questions_left = 1 + int(rng.integers(QUESTIONS_PER_STORY))
    days: dict[str, list[tuple[str, int]]] = {person: [] for person in TOWN_PEOPLE}  # (place, event), yesterday first
    events: list[str] = []
    told: list[int] = []  # the events in the order in which a reader meets them

    def options(since: int) -> list[tuple[str, tuple[str, int], tuple[str, int]]]:
        return [
            (person, before_visit, visit)
            for person, day in days.items()
            for before_visit, visit in last_visits(day)
            if visit[1] >= since
        ]

    def ask(rng: Generator, since: int = 0) -> Question:
        person, (place_before, event_before), (place, event) = pick(rng, options(since))
        supporting = (told.index(event), told.index(event_before))
        return Question(f"Where was {person} before the {place}?", place_before, supporting)

    while questions_left:
        person = pick(rng, [person for person, day in days.items() if len(day) < len(TIMES)])
        time, before = TIMES[len(days[person])], days[person][-1:]
        place = pick(rng, [place for place in TOWN if not before or place != before[0][0]])
        days[person].append((place, len(events)))
        move = f"{person} {pick(rng, MOVE)} the {place}"
        events.append(f"{time.capitalize()} {move}." if rng.random() < 0.5 else f"{move} {time}.")
        if len(events) % 2 == 0 and options(len(events) - WINDOW):
            told += [len(told) + i for i in rng.permutation(len(events) - len(told)).tolist()]
            questions_left -= 1
    return Story(tuple(events[i] for i in told), *ask(rng, len(events) - WINDOW), ask)


def fears(rng: Generator) -> Story:
    """Task 15: an animal fears what its kind fears; of its kind that is told before the animal."""
    kinds = tuple(CHASED)
    facts: list[str] = []
    rule_fact: dict[str, int] = {}
    member_fact: dict[str, int] = {}
    kind_of: dict[str, str] = {}
    feared: dict[str, str] = {}
    while len(facts) < len(kinds) + len(CHASED_NAMES):
        kind = pick(rng, kinds)
        if kind not in feared:
            feared[kind] = pick(rng, [other for other in kinds if other != kind])
            rule_fact[kind] = len(facts)
            facts.append(f"{CHASED[kind].capitalize()} are afraid of {CHASED[feared[kind]]}.")
        elif (name := pick(rng, CHASED_NAMES)) not in kind_of:
            kind_of[name] = kind
            member_fact[name] = len(facts)
            facts.append(f"{name} is a {kind}.")

    def ask(rng: Generator) -> Question:
        name = pick(rng, CHASED_NAMES)
        kind = kind_of[name]
        return Question(f"What is {name.lower()} afraid of?", feared[kind], (member_fact[name], rule_fact[kind]))

    return Story(tuple(facts), *ask(rng), ask)


def colors(rng: Generator) -> Story:
    """Task 16: the one animal without a color has that of its kind; of two colors, of the animal that was named last.

    Each animal is named, and later given a color, in an order that is drawn; the last of these ten statements is the
    question. An animal that waits for its color takes that of its kind; one that is named afterwards gets a new one.
    """
    turns: list[str] = []
    while len(turns) < 2 * len(COLORED_NAMES):
        name = pick(rng, COLORED_NAMES)
        if turns.count(name) < 2:
            turns.append(name)
    asked = turns.pop()
    kind_of = _kinds(rng, asked)
    facts: list[str] = []
    member_fact: dict[str, int] = {}
    color_fact: dict[str, int] = {}
    color_of: dict[str, str] = {}
    for name in turns:
        if name not in member_fact:
            member_fact[name] = len(facts)
            facts.append(f"{name} is a {kind_of[name]}.")
            continue
        known = [other for other in color_of if kind_of[other] == kind_of[name]]
        waited = bool(known) and color_fact[known[-1]] > member_fact[name]
        color_of[name] = color_of[known[-1]] if waited else pick(rng, COLORS)
        color_fact[name] = len(facts)
        facts.append(f"{name} is {color_of[name]}.")
    twin = [name for name in member_fact if name != asked and kind_of[name] == kind_of[asked]][-1]
    supporting = (member_fact[asked], member_fact[twin], color_fact[twin])
    return Story(tuple(facts), f"What color is {asked}?", color_of[twin], supporting)


def _kinds(rng: Generator, asked: str) -> dict[str, str]:
    """Draw the kinds of the five animals: how many are of one kind, that of the asked one first, is as in the files."""
    sizes = KIND_SIZES[int(rng.choice(len(KIND_SIZES), p=[share for _, share in KIND_SIZES]))][0]
    names = [asked, *shuffled(rng, [name for name in COLORED_NAMES if name != asked])]
    kinds = [kind for kind, size in zip(shuffled(rng, COLORED_ANIMALS), sizes, strict=False) for _ in range(size)]
    return dict(zip(names, kinds, strict=True))


def positions(rng: Generator) -> Story:
    """Task 17: two shapes a step each from a third; the question is about those two, never in the same place."""
    sides = tuple(SIDES)
    while True:
        ends = (pick(rng, sides), pick(rng, sides))
        across, up = (SIDES[ends[0]][axis] - SIDES[ends[1]][axis] for axis in range(2))
        if (across, up) != (0, 0):
            break
    shapes = shuffled(rng, SHAPES)[:3]
    first, last, middle = shapes
    opposite = dict(zip(sides, sides[2:] + sides[:2], strict=True))
    pairs = []
    for shape, side in zip((first, last), ends, strict=True):
        pairs.append((shape, side, middle) if rng.random() < 0.5 else (middle, opposite[side], shape))
    facts = tuple(f"The {subject} is {side} the {reference}." for subject, side, reference in pairs)

    def ask(rng: Generator) -> Question:
        asked, other, sign, order = first, last, 1, (0, 1)
        if rng.random() < 0.5:  # ask about the last shape relative to the first
            asked, other, sign, order = last, first, -1, (1, 0)
        truth = [side for side, (x, y) in SIDES.items() if sign * (x * across + y * up) > 0]
        is_true = rng.random() < 0.5
        side = pick(rng, truth if is_true else [side for side in sides if side not in truth])
        return Question(f"Is the {asked} {side} the {other}?", "yes" if is_true else "no", order)

    return Story(facts, *ask(rng), ask)


def sizes(rng: Generator) -> Story:
    """Task 18: random comparisons, five at a time, until two of them chain."""
    by_size = ("chocolate", "box of chocolates", *shuffled(rng, LARGE_BOXES))
    facts: list[str] = []
    told: dict[tuple[str, str], int] = {}  # (smaller, larger): the statement
    chains: list[tuple[str, str, int, int]] = []
    while not chains:
        for _ in range(5):
            low, high = sorted(int(i) for i in rng.choice(len(by_size), size=2, replace=False))
            small, large = by_size[low], by_size[high]
            told.setdefault((small, large), len(facts))
            facts.append(
                pick(rng, (f"The {small} fits inside the {large}.", f"The {large} is bigger than the {small}."))
            )
        chains = [
            (small, large, first, second)
            for (small, middle), first in told.items()
            for (other, large), second in told.items()
            if middle == other
        ]

    def ask(rng: Generator) -> Question:
        small, large, first, second = pick(rng, chains)
        forms = (
            (f"Does the {small} fit in the {large}?", "yes"),
            (f"Is the {large} bigger than the {small}?", "yes"),
            (f"Does the {large} fit in the {small}?", "no"),
            (f"Is the {small} bigger than the {large}?", "no"),
        )
        return Question(*pick(rng, forms), (first, second))

    return Story(tuple(facts), *ask(rng), ask)


def paths(rng: Generator) -> Story:
    """Task 19: two steps over a map of six places, told by five pairs of neighbours.

    The three other places lie beside those of the way, each at a free side that is drawn.
    """
    names = shuffled(rng, HOUSE)
    first = pick(rng, tuple(DIRECTIONS))
    second = pick(rng, [direction for direction in DIRECTIONS if direction != OPPOSITE[first]])
    way = [(0, 0), DIRECTIONS[first], _neighbour(DIRECTIONS[first], second)]
    sides = [(place, direction) for place in range(3) for direction in DIRECTIONS]
    # The other corner stays empty, so that no second way of two steps can be read off the map.
    taken = {*way, DIRECTIONS[second]}
    others: list[tuple[int, str, int]] = []  # (place, direction, place): go that way from the first to the second
    for place, direction in shuffled(rng, sides):
        spot = _neighbour(way[place], direction)
        if spot not in taken and len(others) < 3:
            others.append((place, direction, 3 + len(others)))
            taken.add(spot)
    at = WAY_AT[int(rng.choice(len(WAY_AT), p=[share for _, share in WAY_AT]))][0]
    steps = dict(zip(shuffled(rng, at), ((0, first, 1), (1, second, 2)), strict=True))
    facts = []
    for i in range(5):
        place, direction, other = steps[i] if i in steps else others.pop()
        forward = f"The {names[other]} is {direction} of the {names[place]}."
        backward = f"The {names[place]} is {OPPOSITE[direction]} of the {names[other]}."
        facts.append(pick(rng, (forward, backward)))
    question = f"How do you go from the {names[0]} to the {names[2]}?"
    return Story(tuple(facts), question, f"{first[0]},{second[0]}", (next(iter(steps)), next(reversed(steps))))


def _neighbour(at: tuple[int, int], direction: str) -> tuple[int, int]:
    across, up = DIRECTIONS[direction]
    return at[0] + across, at[1] + up


def motives(rng: Generator) -> Story:
    """Task 20: four persons feel something, go where it is mended and get what mends it, if nobody got it before."""
    feeling = {name: pick(rng, tuple(MOTIVES)) for name in MOTIVATED_NAMES}
    felt: dict[str, int] = {}  # the statement of each person's feeling
    gone: set[str] = set()
    got: set[str] = set()
    facts: list[str] = []
    questions: list[Question] = []  # one after each statement
    until: dict[Question, int] = {}  # the statement that answers it, where it is about what is to come
    waiting = list(MOTIVATED_NAMES)
    while waiting:
        name = pick(rng, waiting)
        place, thing = MOTIVES[feeling[name]]
        if name not in felt:
            felt[name] = len(facts)
            facts.append(f"{name} is {feeling[name]}.")
            questions.append(Question(f"Where will {name.lower()} go?", place, (felt[name],)))
        elif name not in gone:
            gone.add(name)
            until[questions[felt[name]]] = len(facts)
            facts.append(f"{name} {pick(rng, MOVE)} the {place}.")
            questions.append(Question(f"Why did {name.lower()} go to the {place}?", feeling[name], (felt[name],)))
        else:
            waiting.remove(name)
            if thing not in got:
                got.add(thing)
                facts.append(f"{name} {pick(rng, GET)} the {thing} there.")
                questions.append(Question(f"Why did {name.lower()} get the {thing}?", feeling[name], (felt[name],)))
    asked = int(rng.integers(len(questions)))
    decided = [one for one in questions[: asked + 1] if until.get(one, len(facts)) > asked]
    return Story(tuple(facts[: asked + 1]), *questions[asked], lambda rng: pick(rng, decided))


PUZZLES: dict[str, Callable[[Generator], Story]] = {
    "qa4": two_arguments,
    "qa14": times_of_day,
    "qa15": fears,
    "qa16": colors,
    "qa17": positions,
    "qa18": sizes,
    "qa19": paths,
    "qa20": motives,
}
