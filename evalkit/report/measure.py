"""Statistics of one arm, or of the difference of two, over any cells of a panel, from one set of resamples."""

from typing import NamedTuple

import numpy as np

from evalkit.report import stats
from evalkit.report.panel import Models, Observed, Panel
from evalkit.report.resampling import Draws, Floats
from evalkit.report.stats import Contrast, Interval


class Mean(NamedTuple):
    """A mean with its interval and counts."""

    interval: Interval
    n: int
    n_unscored: int
    num_models: int


class Measure:
    """Measures one arm (``mean``, ``ratio``, ``contrast`` for slopes) or the difference of two (``contrast``).

    Resamples are drawn once for all cells and shared by every statistic: that is what makes a report of a million
    predictions quick, and two statistics of the same arm comparable.
    """

    def __init__(self, panel: Panel, *sides: Models, seed: int) -> None:
        self._panel = panel
        self._sides = sides
        self._seed = seed
        self._draws: dict[tuple[tuple[str, ...], ...], Draws] = {}

    def mean(self, weights: Floats) -> Mean | None:
        """Return the weighted mean of cell means; None where no model asked all these cells.

        Where a cell has no scored sample, the mean is not known.
        """
        observed = self._observe(weights)
        if observed is None:
            return None
        obs = observed.observations
        interval = Interval(None, None, None, "none")
        if _is_whole(observed, weights):
            interval = stats.mean_interval(obs, weights, draws=self._shared_draws(weights), seed=self._seed)
        return Mean(interval, len(obs.cell), observed.num_unscored, obs.num_seeds)

    def ratio(self, above: Floats, below: Floats) -> Interval:
        """Return the ratio of two weighted means."""
        observed = self._observe(above + below)
        if observed is None or not _is_whole(observed, above + below):
            return Interval(None, None, None, "none")
        draws = self._shared_draws(above + below)
        return stats.ratio_interval(observed.observations, above, below, draws=draws, seed=self._seed)

    def contrast(self, weights: Floats) -> Contrast | None:
        """Return the weighted sum of cell means; None where a cell has no sample that counts."""
        observed = self._observe(weights)
        if observed is None or not _is_whole(observed, weights):
            return None
        return stats.contrast(observed.observations, weights, draws=self._shared_draws(weights), seed=self._seed)

    def num_unscored(self, weights: Floats) -> int:
        """Return the samples of these cells that were asked and do not count."""
        observed = self._observe(weights)
        return observed.num_unscored if observed else 0

    def is_known(self, weights: Floats) -> bool:
        """Return whether every cell with a weight has a sample that counts."""
        observed = self._observe(weights)
        return observed is not None and _is_whole(observed, weights)

    def _observe(self, weights: Floats) -> Observed | None:
        if len(self._sides) == 1:
            return self._panel.observe(self._sides[0], weights)
        return self._panel.observe_pair(self._sides[0], self._sides[1], weights)

    def _shared_draws(self, weights: Floats) -> Draws:
        """Resamples of every cell that the models which asked these cells asked together."""
        able = [self._panel.able(side, weights) for side in self._sides]
        key = tuple(tuple(side) for side in able)
        if key not in self._draws:
            everywhere = np.prod([self._panel.covered(side) for side in able], axis=0)
            if len(able) == 1:
                observed = self._panel.observe(able[0], everywhere)
            else:
                observed = self._panel.observe_pair(able[0], able[1], everywhere)
            assert observed is not None, "models that asked some cells have cells in common"
            self._draws[key] = Draws(observed.observations, self._seed)
        return self._draws[key]


def _is_whole(observed: Observed, weights: Floats) -> bool:
    """Every cell with a weight has a sample: one without would drop out of the mean unseen."""
    return len(np.unique(observed.observations.cell)) == np.count_nonzero(weights)
