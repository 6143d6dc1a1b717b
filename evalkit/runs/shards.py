"""A run in parts, each a command and a run folder of its own, for machines that share nothing (``--shard 3/8``)."""

import re
from collections.abc import Iterable, Iterator

from evalkit.errors import BadInput
from evalkit.types import Sample

_SHARD = re.compile(r"(\d+)/(\d+)")


def parse_shard(text: str) -> str:
    """Return a part as it is written: "3/8", the third of eight.

    Raises:
        BadInput: it is no such part.
    """
    match = _SHARD.fullmatch(text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise BadInput(f"--shard is {text!r}; write it like 3/8, the third of eight parts.")
    return f"{int(match[1])}/{int(match[2])}"


def shard_numbers(shard: str) -> tuple[int, int]:
    """Return which part, from 1, and of how many."""
    number, _, total = shard.partition("/")
    return int(number), int(total)


def part_of(samples: Iterable[Sample], shard: str | None) -> Iterator[Sample]:
    """Yield the samples of a part: of each cell every n-th story, in the order in which stories first occur.

    Samples of one story stay together, as they share a context. Which part a sample falls into hangs on those in front
    of it alone, so a part of fewer samples is the beginning of the same part of more.
    """
    if shard is None:
        yield from samples
        return
    number, total = shard_numbers(shard)
    stories: dict[str, int] = {}
    for sample in samples:
        if stories.setdefault(sample.story_id, len(stories)) % total == number - 1:
            yield sample
