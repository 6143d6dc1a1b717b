"""The questions of bAbI, generated without end for all 20 tasks (``files.py`` reads the published ones).

    facts     John travelled to the hallway. Mary got the milk there. Mary journeyed to the bathroom.
    question  Where is the milk?        answer  bathroom        supporting  (1, 2)

Paper: "Towards AI-Complete Question Answering: A Set of Prerequisite Toy Tasks", arXiv 1502.05698. The generator is our
own; surface and statistics follow the v1.2 text files, which BABILong uses. Answers are written as there: one word, for
qa8 the objects in the order of taking ("milk,apple"), for qa19 two directions ("n,e").
"""

import hashlib

import numpy as np

from evalkit.benchmarks.babilong.puzzles import PUZZLES
from evalkit.benchmarks.babilong.structure import tags
from evalkit.benchmarks.babilong.worlds import WORLDS
from evalkit.errors import BadInput
from evalkit.types import Sample

SUBSETS = tuple(f"qa{number}" for number in range(1, 21))

VERSION = "2"
"""Raised with every change after which a seed gives other stories."""

_STORY = 0xBAB1  # the story's own stream of random numbers: what others draw from Sample.seed does not repeat it


def generate(subset: str, seed: int, index: int) -> Sample:
    """Return one generated question, a story of its own; the same one whatever else is generated.

    Args:
        subset: "qa1" to "qa20".
        seed: of the whole set, 0 or more.
        index: place in the endless list of questions, from 0.

    Raises:
        BadInput: there is no such subset.
    """
    make = WORLDS.get(subset) or PUZZLES.get(subset)
    if make is None:
        raise BadInput(f"bAbI has no task {subset!r}; its tasks are qa1 to qa20.")
    sample_seed = seed_of(subset, seed, index)
    story = make(np.random.default_rng([sample_seed, _STORY]))
    return Sample(
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


def seed_of(subset: str, seed: int, index: int) -> int:
    """Derive a seed below 2**48, which JSON keeps exactly, from all that names a sample."""
    return int.from_bytes(hashlib.sha256(f"babilong {subset} {seed} {index}".encode()).digest()[:6], "big")
