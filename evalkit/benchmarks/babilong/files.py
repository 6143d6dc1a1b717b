"""The text files of bAbI v1.2: numbered statements, and questions with answer and the numbers of what they need.

1 Mary moved to the bathroom.
2 Where is Mary?\tbathroom\t1
"""

from collections.abc import Iterator
from pathlib import Path

from evalkit.benchmarks.babilong.questions import seed_of
from evalkit.benchmarks.babilong.structure import tags
from evalkit.benchmarks.options import Part
from evalkit.benchmarks.rows import row_id
from evalkit.errors import BadInput
from evalkit.types import Sample


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
            sample_id=row_id(index, *facts, question, answer),
            story_id=f"{subset}-story-{story:05d}",
            question=question,
            target=answer,
            facts=facts,
            supporting=supporting,
            seed=seed_of(subset, seed, index),
            metadata={"tags": tags(subset, facts, question, supporting)},
        )
        for index, (story, facts, question, answer, supporting) in enumerate(_questions(file))
    ]
    if not samples:
        raise BadInput(f"{file} holds no questions.")
    return samples


def _file_of(path: Path, subset: str, part: Part) -> Path:
    if path.is_file():
        if not path.name.startswith(f"{subset}_"):
            raise BadInput(f"{path} is not a file of {subset}: its name does not begin with {subset}_; name a folder.")
        return path
    found = sorted(path.glob(f"{subset}_*.txt"))
    files = [file for file in found if file.name.endswith(f"_{part}.txt")] or found
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise BadInput(f"{path} must hold one bAbI file {subset}_*_{part}.txt for {subset}; found {names}.")
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
