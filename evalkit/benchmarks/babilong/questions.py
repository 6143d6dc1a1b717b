"""The questions of bAbI, generated without end for all 20 tasks (``files.py`` reads the published ones).

    facts     John travelled to the hallway. Mary got the milk there. Mary journeyed to the bathroom.
    question  Where is the milk?        answer  bathroom        supporting  (1, 2)

Paper: "Towards AI-Complete Question Answering: A Set of Prerequisite Toy Tasks", arXiv 1502.05698. The generator is our
own; surface and statistics follow the v1.2 text files, which BABILong uses. Answers are written as there: one word, for
qa8 the objects in the order of taking ("milk,apple"), for qa19 two directions ("n,e").
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from evalkit.benchmarks.babilong.puzzles import PUZZLES
from evalkit.benchmarks.babilong.structure import tags
from evalkit.benchmarks.babilong.worlds import WORLDS, Question
from evalkit.errors import BadInput
from evalkit.types import Sample

SUBSETS = tuple(f"qa{number}" for number in range(1, 21))

VERSION = "2"
"""Raised with every change after which a seed gives other stories."""

MOST_QUESTIONS = {
    "qa1": 4,  # persons
    "qa2": 3,  # objects
    "qa4": 4,  # statements, in two forms
    "qa5": 5,  # forms, about the latest gift
    "qa7": 4,  # persons
    "qa8": 4,  # persons
    "qa11": 4,  # persons
    "qa12": 4,  # persons
    "qa13": 4,  # persons
    "qa15": 4,  # animals
    "qa16": 1,  # the animal without a color
    "qa17": 8,  # two orders, four sides
    "qa19": 1,  # the way that is told
}
"""How many questions a generated story can be asked at most, where that is a matter of the task; else 8 or more in one
story of a thousand."""

_STORY = 0xBAB1  # the story's own stream of random numbers: what others draw from Sample.seed does not repeat it
_TOGETHER = 0xBAB2  # that of the further questions
_MAX_MISSES = 40  # draws in a row: a question as likely as one in six is missed in one story of a thousand


def generate(subset: str, seed: int, index: int) -> Sample:
    """Return one generated question, a story of its own; the same one whatever else is generated.

    Args:
        subset: "qa1" to "qa20".
        seed: of the whole set, 0 or more.
        index: place in the endless list of questions, from 0.

    Raises:
        BadInput: there is no such subset.
    """
    return _generate(subset, seed, index)[0]


def generate_together(subset: str, seed: int, index: int) -> Iterator[Sample]:
    """Yield different questions about one story, that of ``generate`` first, until hardly another one is found.

    The further ones are drawn by the task's own rule, but about all that was told: only the first is sure to be about
    one of the last statements.

    Raises:
        BadInput: there is no such subset.
    """
    sample, draw = _generate(subset, seed, index)
    yield replace(sample, sample_id=f"{index:05d}-q1")
    if draw is None:
        return
    rng, known, misses = np.random.default_rng([sample.seed, _TOGETHER]), {sample.question}, 0
    while misses < _MAX_MISSES:
        text, answer, supporting = draw(rng)
        misses = misses + 1 if text in known else 0
        if not misses:
            known.add(text)
            yield replace(
                sample,
                sample_id=f"{index:05d}-q{len(known)}",
                question=text,
                target=answer,
                supporting=supporting,
                metadata={"tags": tags(subset, sample.facts, text, supporting)},
            )


def _generate(subset: str, seed: int, index: int) -> tuple[Sample, Callable[[Generator], Question] | None]:
    """Return a question, and how to draw others about the same story."""
    make = WORLDS.get(subset) or PUZZLES.get(subset)
    if make is None:
        raise BadInput(f"bAbI has no task {subset!r}; its tasks are qa1 to qa20.")
    sample_seed = seed_of(subset, seed, index)
    story = make(np.random.default_rng([sample_seed, _STORY]))
    sample = Sample(
        task="babilong",
        subset=subset,
        sample_id=f"{index:05d}",
        story_id=f"{subset}-{index:05d}",
        question=story.question,
        target=story.answer,
        facts=story.facts,
        supporting=story.supporting,
        seed=sample_seed,
        metadata={"tags": tags(subset, story.facts, story.question, story.supporting)},
    )
    return sample, story.draw


def seed_of(subset: str, seed: int, index: int) -> int:
    """Derive a seed below 2**48, which JSON keeps exactly, from all that names a sample."""
    return int.from_bytes(hashlib.sha256(f"babilong {subset} {seed} {index}".encode()).digest()[:6], "big")
