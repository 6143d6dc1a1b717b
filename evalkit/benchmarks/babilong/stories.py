"""Which rows of the published 1k-sample set ask about the same story, told from the questions alone.

Its rows are the bAbI test questions in file order, a few questions to a story. At short lengths those are left out
whose statements do not fit (at 1k more than 86, at 2k more than 211): of each story the last ones, since statements add
up. So the whole list, which longer lengths have, says where each row of a shorter list belongs.
"""

from collections import Counter
from collections.abc import Sequence

Asked = tuple[str, str]
"""Question and answer."""

_QUESTIONS_PER_STORY = {"qa4": 1, "qa15": 4, "qa16": 1, "qa17": 8, "qa18": None, "qa19": 1, "qa20": None}
"""In the bAbI v1.2 test files; 5 unless said here, None where stories differ."""
WHOLE = (999, 1000)
"""Rows of a list without gaps: the test file has 1,000 questions, and most published lists lack the last row."""
_UNKNOWN = ("", "")
"""Stands for that last question, which a list with a gap may have."""
FEWEST = 500
"""A list with fewer rows is of another set."""


def stories_of_rows(subset: str, lists: Sequence[Sequence[Asked]]) -> list[list[str | None]]:
    """Return the name of each row's story, for each list of rows of one subset; None where it cannot be told.

    Args:
        subset: "qa1" to "qa20".
        lists: the rows at each length, in published order.
    """
    size = _QUESTIONS_PER_STORY.get(subset, 5)
    complete = Counter(tuple(rows) for rows in lists if len(rows) in WHOLE)
    if size is None or not complete:
        return [[None] * len(rows) for rows in lists]
    whole = complete.most_common(1)[0][0]
    whole += (_UNKNOWN,) * (-len(whole) % size)
    stories = [whole[start : start + size] for start in range(0, len(whole), size)]
    return [
        [None if story is None else f"{subset}-story-{story:04d}" for story in _place(stories, rows)] for rows in lists
    ]


def _place(stories: Sequence[tuple[Asked, ...]], rows: Sequence[Asked]) -> list[int | None]:
    """Return the number of each row's story, where all ways to lay the rows onto beginnings of the stories agree."""
    told: list[int | None] = [None] * len(rows)
    if len(rows) < FEWEST:
        return told
    # reached[i] holds the rows at which story i may begin; left[i] those of them from which the rest fits as well.
    reached = [{0}]
    for story in stories:
        reached.append({row + n for row in reached[-1] for n in _prefixes(story, rows, row)})
    left = [{len(rows)}]
    for i in range(len(stories) - 1, -1, -1):
        left.append({row for row in reached[i] if any(row + n in left[-1] for n in _prefixes(stories[i], rows, row))})
    left.reverse()
    possible: list[set[int]] = [set() for _ in rows]
    for i, story in enumerate(stories):
        for row in left[i]:
            for n in _prefixes(story, rows, row):
                if row + n in left[i + 1]:
                    for used in range(row, row + n):
                        possible[used].add(i)
    return [next(iter(numbers)) if len(numbers) == 1 else None for numbers in possible]


def _prefixes(story: Sequence[Asked], rows: Sequence[Asked], start: int) -> list[int]:
    """Return every number of a story's first questions that the rows from ``start`` on begin with."""
    numbers = [0]
    for asked, row in zip(story, rows[start : start + len(story)], strict=False):
        if asked not in (row, _UNKNOWN):
            break
        numbers.append(numbers[-1] + 1)
    return numbers
