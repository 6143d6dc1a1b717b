"""The positions that a training sample is shown at.

A rotary model sees a token's position only as an angle, so a short sample can stand at the positions of a long one.
Let n be the tokens of a sample, and L_t the range of stage t, or n where that is more. Token i is shown at

    contiguous   i
    randomized   the i-th smallest of n distinct integers drawn from [0, L_t)      arXiv 2305.16843, arXiv 2606.23687
    pose         i plus the offset of its chunk: n tokens in 2 chunks, the second
                 pushed back by a random skip, all below L_t; cut anywhere, where
                 PoSE's authors cut in the first half                              arXiv 2309.10400

The range grows by stages, ``L_t = ratio_t * R``, where the range length R is the trained length unless it is set apart;
the samples stay as they are. Sorting is essential: order is what the model still has to read off.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from evalkit.errors import BadInput

PositionKind: TypeAlias = Literal["contiguous", "randomized", "pose"]
POSITION_KINDS: tuple[PositionKind, ...] = get_args(PositionKind)

PAPER_STAGES = (1.0, 1.25, 1.5, 2.0, 2.0)
"""Ranges of the five epochs of MRCR in multiples of 8K: 8K, 10K, 12K, 16K, 16K (arXiv 2606.23687)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionRule:
    """How positions are drawn over the course of a training.

    Raises:
        BadInput: an unknown kind, or a stage below 1.
    """

    kind: PositionKind = "contiguous"
    stages: tuple[float, ...] = (1.0,)
    """Ratio L_t / R of each stage. Stages are equal parts of the training: epochs, when there are as many of them."""
    mixed: bool = False
    """Every draw takes its own ratio, log-uniform from 1 to the stage's: keeps short gaps in the mixture."""
    per_batch: bool = False
    """The samples of one batch share their draw, as in arXiv 2305.16843; otherwise each sample has its own."""

    def __post_init__(self) -> None:
        if self.kind not in POSITION_KINDS:
            raise BadInput(f"Positions {self.kind!r} are unknown; choose one of {', '.join(POSITION_KINDS)}.")
        if not self.stages:
            raise BadInput("A range schedule needs at least one stage, such as 1,1.25,1.5,2,2.")
        for ratio in self.stages:
            if not (math.isfinite(ratio) and ratio >= 1):
                raise BadInput(
                    f"A stage of {ratio:g} x the range length is below it; every stage is 1 or more (--range-length is "
                    "what the stages are multiples of)."
                )

    def ratio(self, progress: float) -> float:
        """Return the stage's ratio L_t / R after a part ``progress`` (0 to 1) of the training."""
        return self.stages[min(int(progress * len(self.stages)), len(self.stages) - 1)]

    def largest_range(self, range_length: int, longest: int) -> int:
        """Return how many positions training can reach with samples of up to ``longest`` tokens."""
        return longest if self.kind == "contiguous" else max(int(max(self.stages) * range_length), longest)


def draw_positions(
    rule: PositionRule, num_tokens: int, *, range_length: int, progress: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the positions of one sample, shape (num_tokens,), rising.

    Args:
        rule: how to draw.
        num_tokens: n, the sample's tokens.
        range_length: R, tokens; stages are multiples of it.
        progress: part of the training that is done, 0 to 1; picks the stage.
        rng: decides the draw.
    """
    if rule.kind == "contiguous":
        return np.arange(num_tokens, dtype=np.int64)
    ratio = rule.ratio(progress)
    if rule.mixed:
        ratio **= rng.random()  # 1 to ratio, log-uniform
    reach = max(int(ratio * range_length), num_tokens)
    return _randomized(num_tokens, reach, rng) if rule.kind == "randomized" else _pose(num_tokens, reach, rng)


def _randomized(num_tokens: int, reach: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Every set of ``num_tokens`` integers below ``reach`` is as likely as every other."""
    return np.sort(rng.choice(reach, num_tokens, replace=False, shuffle=False))


def _pose(num_tokens: int, reach: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The first chunk starts at 0, the second is pushed back by 0 to all of the free range.

    The cut is drawn from the whole sample, which is a choice of ours: PoSE's authors draw it from the first half.
    """
    cut = int(rng.integers(1, max(num_tokens, 2)))
    skip = int(rng.integers(0, reach - num_tokens + 1))
    positions = np.arange(num_tokens, dtype=np.int64)
    positions[cut:] += skip
    return positions
