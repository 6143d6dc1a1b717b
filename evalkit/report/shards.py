"""Which run folders are shards of one run: what was asked in parts is reported as if it had been asked at once."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evalkit.runs.shards import shard_numbers


class Shard(NamedTuple):
    """A run folder that holds one part of a run."""

    name: str
    shard: str
    """Such as "3/8"."""
    run: tuple[str, str]
    """Arm and fingerprint: shards of one run share them."""
    asked: Mapping[str, Any]
    """Lengths, subsets and samples."""
    num_rows: int


def join_shards(shards: Iterable[Shard], notices: list[str]) -> list[list[str]]:
    """Return the names of the folders that make up each run, in the order of their parts.

    ``notices`` is told of shards that are missing, of those that hold the same samples as others and are left out, and
    of those that were asked other lengths, subsets or numbers of samples than the rest.
    """
    families = defaultdict[tuple[str, str], list[Shard]](list)
    for shard in shards:
        families[shard.run].append(shard)
    return [_of_one_run(family, notices) for family in families.values()]


def _of_one_run(family: Sequence[Shard], notices: list[str]) -> list[str]:
    totals = [shard_numbers(shard.shard)[1] for shard in family]
    total = max(set(totals), key=lambda n: (totals.count(n), n))
    taken: dict[int, Shard] = {}
    for shard in sorted(family, key=lambda shard: -shard.num_rows):  # of two copies the fuller one
        number, of = shard_numbers(shard.shard)
        if of != total:
            notices.append(
                f"{shard.name} is left out: it is shard {shard.shard} of a run whose other shards are of {total}, so "
                "they overlap; ask all shards with one number of parts."
            )
        elif number in taken:
            notices.append(f"{shard.name} is left out: it overlaps {taken[number].name}, both are shard {shard.shard}.")
        else:
            taken[number] = shard
    joined = [taken[number] for number in sorted(taken)]
    if missing := [f"{number}/{total}" for number in range(1, total + 1) if number not in taken]:
        notices.append(
            f"Shard {', '.join(missing)} of the run of {joined[0].name} is missing; its samples do not count."
        )
    for shard in joined[1:]:
        notices += _differences(joined[0], shard)
    return [shard.name for shard in joined]


def _differences(first: Shard, other: Shard) -> list[str]:
    return [
        f"{other.name} differs in its plan from {first.name}, shard of the same run: {name} {other.asked[name]}, "
        f"not {value}."
        for name, value in first.asked.items()
        if other.asked[name] != value
    ]
