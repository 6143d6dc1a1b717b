"""Several questions about one context (``--questions-per-context``): which samples share one, and how many can."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, groupby, islice
from pathlib import Path

from evalkit.benchmarks.babilong.files import read_babi
from evalkit.benchmarks.babilong.questions import MOST_QUESTIONS, generate_together
from evalkit.benchmarks.babilong.structure import MAX_MISSES, Condition
from evalkit.benchmarks.options import Part, too_few_questions
from evalkit.benchmarks.rows import row_number
from evalkit.types import Sample


def generated_contexts(subset: str, seed: int, size: int, conditions: Sequence[Condition] = ()) -> Iterator[Sample]:
    """Yield ``size`` questions about each generated story that has so many, without end; others are passed over.

    Args:
        subset: "qa1" to "qa20".
        seed: of the whole set.
        size: questions to a context, 2 or more.
        conditions: a question meets all of them.

    Raises:
        BadInput: stories of this task have fewer questions, or MAX_MISSES of them in a row.
    """
    most = MOST_QUESTIONS.get(subset, size)
    if most < size:
        raise too_few_questions(size, f"a story of {subset}", most)
    stories = (list(islice(_chosen(generate_together(subset, seed, index), conditions), size)) for index in count())
    return _contexts(stories, size, f"a story of {subset}{_where(conditions)} (of {MAX_MISSES:,} in a row)")


def contexts_of_file(
    path: Path, subset: str, size: int, conditions: Sequence[Condition] = (), *, part: Part = "test"
) -> Iterator[Sample]:
    """Yield the questions of a bAbI file that are about the same statements, ``size`` of them together.

    In most tasks the files go on telling between two questions, so that each has statements of its own.

    Raises:
        BadInput: nowhere in the file are there so many; or ``read_babi`` raises it.
    """
    told = groupby(read_babi(path, subset, part=part), key=lambda sample: (sample.story_id, sample.facts))
    stories = (list(_chosen(questions, conditions)) for _, questions in told)
    return _contexts(stories, size, f"a story of {subset} in {path}, as far as it is told{_where(conditions)},")


def _chosen(questions: Iterable[Sample], conditions: Sequence[Condition]) -> Iterator[Sample]:
    return (sample for sample in questions if all(condition.holds(sample) for condition in conditions))


def _where(conditions: Sequence[Condition]) -> str:
    return f" with {' and '.join(map(str, conditions))}" if conditions else ""


def _contexts(stories: Iterable[Sequence[Sample]], size: int, what: str) -> Iterator[Sample]:
    """Yield whole groups of ``size``, each of one story, and raise BadInput where none comes."""
    most = passed_over = 0
    found = False
    for story in stories:
        for start in range(0, len(story) - size + 1, size):
            yield from _share(story[start : start + size])
        most, passed_over = max(most, len(story)), 0 if len(story) >= size else passed_over + 1
        found |= passed_over == 0
        if passed_over == MAX_MISSES:
            found = False
            break
    if not found:
        raise too_few_questions(size, what, most)


def _share(questions: Sequence[Sample]) -> Iterator[Sample]:
    first = questions[0].sample_id
    name = row_number(first).removesuffix("-q1")  # that of the story: its background is the one of a single question
    together = tuple((sample.question, sample.target) for sample in questions)
    for sample in questions:
        yield replace(sample, context_id=name, asked_together=together)
