"""The questions of bAbI: generated without end for all 20 tasks, or read from the published text files.

    facts     John travelled to the hallway. Mary got the milk there. Mary journeyed to the bathroom.
    question  Where is the milk?        answer  bathroom        supporting  (1, 2)

Paper: "Towards AI-Complete Question Answering: A Set of Prerequisite Toy Tasks", arXiv 1502.05698. The generator is our
own; surface and statistics follow the v1.2 text files, which BABILong uses. Answers are written as there: one word, for
qa8 the objects in the order of taking ("milk,apple"), for qa19 two directions ("n,e").
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evalkit.benchmarks.babilong.puzzles import PUZZLES
from evalkit.benchmarks.babilong.worlds import WORLDS
from evalkit.benchmarks.options import Part
from evalkit.errors import BadInput
from evalkit.types import Sample

SUBSETS = tuple(f"qa{number}" for number in range(1, 21))

VERSION = "1"
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
    sample_seed = _sample_seed(subset, seed, index)
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
    )


def read_babi(path: Path, subset: str, seed: int = 0, part: Part = "test") -> list[Sample]:
    """Read the questions of a bAbI text file, in file order.

    The facts of a question are all statements of its story in front of it, without the earlier questions.

    Args:
        path: a file such as ``qa3_three-supporting-facts_test.txt``, or a folder with one such file for the subset.
        subset: "qa1" to "qa20".
        seed: for what is drawn around a question later (background, placement).
        part: of a test and a train file in the folder, which one is read.

    Raises:
        BadInput: no file or several for the subset, or a line that is not of the format; names file and line.
    """
    file = _file_of(path, subset, part)
    samples = [
        Sample(
            task="babilong",
            subset=subset,
            sample_id=f"{index:05d}",
            story_id=f"{subset}-story-{story:05d}",
            question=question,
            target=answer,
            facts=facts,
            supporting=supporting,
            seed=_sample_seed(subset, seed, index),
        )
        for index, (story, facts, question, answer, supporting) in enumerate(_questions(file))
    ]
    if not samples:
        raise BadInput(f"{file} holds no questions.")
    return samples


def files_hash(path: Path) -> str:
    """Return a hash of the bAbI file, or of all bAbI files of the folder, that ``read_babi`` would read from.

    Raises:
        BadInput: there is none, or one that cannot be read.
    """
    files = [path] if path.is_file() else sorted(path.glob("qa*_*.txt"))
    if not files:
        raise BadInput(f"{path} holds no bAbI files; expected names like qa1_single-supporting-fact_test.txt.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n{hashlib.sha256(_read(file)).hexdigest()}\n".encode())
    return digest.hexdigest()


def _sample_seed(subset: str, seed: int, index: int) -> int:
    """Derive a seed below 2**48, which JSON keeps exactly, from all that names a sample."""
    return int.from_bytes(hashlib.sha256(f"babilong {subset} {seed} {index}".encode()).digest()[:6], "big")


def _file_of(path: Path, subset: str, part: Part) -> Path:
    if path.is_file():
        if not path.name.startswith(f"{subset}_"):
            raise BadInput(f"{path} is not a file of {subset}: its name does not begin with {subset}_; name a folder.")
        return path
    found = sorted(path.glob(f"{subset}_*.txt"))
    files = [file for file in found if file.name.endswith(f"_{part}.txt")] or found
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise BadInput(f"{path} must hold one file {subset}_*_{part}.txt for {subset}; found {names}.")
    return files[0]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}); a bAbI file is a text file.") from error


def _questions(file: Path) -> Iterator[tuple[int, tuple[str, ...], str, str, tuple[int, ...]]]:
    """Yield story number, facts, question, answer and supporting indices; see ``read_babi``."""
    content = _read(file)
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number_of_line = content[: error.start].count(b"\n") + 1
        raise BadInput(f"{file}, line {number_of_line}: byte {content[error.start]:#04x} is not UTF-8 text.") from error
    story, previous = -1, 0
    facts: list[str] = []
    index_of: dict[int, int] = {}  # number of a statement's line within its story -> index into facts
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        number, _, text = line.strip().partition(" ")
        if not number.isdecimal() or not text or int(number) not in (1, previous + 1):
            raise BadInput(
                f"{file}, line {at}: expected a line numbered {previous + 1}, or 1 for a new story, and a text; "
                f"found {line[:60]!r}."
            )
        if int(number) == 1:
            story, facts, index_of = story + 1, [], {}
        previous = int(number)
        columns = [column.strip() for column in text.split("\t")]
        if len(columns) == 1:
            index_of[previous] = len(facts)
            facts.append(columns[0])
            continue
        supporting = columns[-1].split()
        known = all(number.isdecimal() and int(number) in index_of for number in supporting)
        if len(columns) != 3 or not all(columns) or not known:
            raise BadInput(
                f"{file}, line {at}: expected question, answer and the numbers of earlier statements, parted by tabs; "
                f"found {line[:60]!r}."
            )
        yield story, tuple(facts), columns[0], columns[1], tuple(index_of[int(number)] for number in supporting)
