"""Which positions an arm has seen in training, from its training record alone."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalkit.models.training_record import TrainedPositions
from evalkit.report.arms import Arm

Floats = NDArray[np.float64]


class Coverage(NamedTuple):
    """How likely a training sample of full length has a token at each position."""

    positions: Floats
    share: Floats


def coverage(arm: Arm) -> Coverage | None:
    """Return the coverage of an arm, averaged over the stages of its training; None where no record says.

    A sample of L tokens (the trained length) is shown at positions below R = ratio * range length, or below L where
    that is more:

        contiguous   every position below L, always
        randomized   each position below R with probability L / R
        pose         the first chunk in place, the second pushed back by a uniform skip, cut anywhere
        mixed        the ratio itself is log-uniform from 1 to the stage's
    """
    record = arm.runs[0].training if arm.runs else None
    if record is None or record.positions is None:
        return None
    rule, length = record.positions, record.trained_length
    stages = [_ratios(rule, ratio, length) for ratio in rule.stages]
    grid = np.linspace(0, max(float(ratios.max()) for ratios in stages), 2000)  # in multiples of the trained length
    share = np.mean([np.mean([_share(rule.kind, grid, r) for r in ratios], axis=0) for ratios in stages], axis=0)
    corner = np.ones(len(grid), dtype=bool)  # where the share does not change, two points make the line
    corner[1:-1] = (share[1:-1] != share[:-2]) | (share[1:-1] != share[2:])
    return Coverage(grid[corner] * length, share[corner])


def _ratios(rule: TrainedPositions, ratio: float, length: int) -> Floats:
    """The ranges of one stage in multiples of the trained length, each as likely as the others."""
    if rule.kind == "contiguous":
        return np.ones(1)
    drawn = ratio ** ((np.arange(64) + 0.5) / 64) if rule.mixed and ratio > 1 else np.array([ratio])
    return np.maximum(drawn * ((rule.range_length or length) / length), 1.0)


def _share(kind: str, grid: Floats, ratio: float) -> Floats:
    """Probability that a position (in multiples of L) is taken when the range is ``ratio`` times L."""
    if kind == "pose" and ratio > 1:
        # Cut c and skip s are uniform on [0, 1] and [0, ratio - 1]; x is taken if x < c, or if c <= x - s < 1.
        cut = (np.arange(200) + 0.5) / 200
        reach = ratio - 1
        second = np.clip(np.minimum(grid[:, None] - cut, reach), 0, None) - np.clip(grid[:, None] - 1, 0, reach)
        return np.mean((grid[:, None] < cut) + np.clip(second, 0, None) / reach, axis=1)  # type: ignore[no-any-return]
    return np.where(grid < ratio, 1 / ratio, 0.0)
