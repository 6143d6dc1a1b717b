"""What can be chosen about the questions of MRCR."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from evalkit.benchmarks.options import GENERATED, Part, TaskOptions
from evalkit.errors import BadInput
from evalkit.options import option


class Split(NamedTuple):
    """Parts the rows of each bin into those that are trained on and those that are asked."""

    train: int
    """Percent."""
    seed: int

    def part(self, names: Sequence[str], part: Part) -> frozenset[str]:
        """Return the names that belong to a part; of the train part as many as its percent has whole ones."""
        order = np.random.default_rng(self.seed).permutation(len(names))
        cut = len(names) * self.train // 100
        return frozenset(names[i] for i in (order[:cut] if part == "train" else order[cut:]))


@dataclass(frozen=True, kw_only=True)
class MRCROptions(TaskOptions):
    """How many needles, and which part of published rows."""

    GROUP: ClassVar[str] = "Data of MRCR"

    needles: tuple[int, ...] = option("--needles", "2,4,8: the same as --subsets 2needle,4needle,8needle.", default=())
    bins: Literal["published", "prompt"] = option(
        "--bins",
        "Of openai/mrcr's rows: as published (o200k tokens of all texts), or by the tokens of the checkpoint's prompt, "
        "its template included [published].",
        default="published",
    )
    split: str | None = option(
        "--split",
        "Part published rows bin by bin, such as 70/30:42 (percent to train, percent to ask, seed); 'train' reads the "
        "first part, 'run' the second.",
        default=None,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split is not None and self.source == GENERATED:
            raise BadInput(f"--split {self.split} parts published rows; generated ones are parted by their seeds.")
        self.parts  # noqa: B018  # refuses what is none

    @property
    def parts(self) -> Split | None:
        """The split, read.

        Raises:
            BadInput: it is not written as percent/percent:seed.
        """
        if self.split is None:
            return None
        found = re.fullmatch(r"(\d{1,2})/(\d{1,2}):(\d{1,9})", self.split)
        if not found or int(found[1]) + int(found[2]) != 100:
            raise BadInput(f"--split is {self.split!r}; write two percents that make 100, and a seed, like 70/30:42.")
        return Split(train=int(found[1]), seed=int(found[3]))

    @property
    def subsets(self) -> tuple[str, ...]:
        """The subsets with these numbers of needles."""
        return tuple(f"{number}needle" for number in self.needles)
