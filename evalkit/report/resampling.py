"""The machinery under ``stats.py``: what is observed, how it is resampled, and how far a weighted mean varies.

What varies is stories (clusters) and, where an arm was trained more than once, training seeds:

    variance = variance over clusters of the seed-averaged scores + variance between seeds / number of seeds

A cell is one subset at one length. Every statistic of the report is linear in the means of cells, so it is given by
one weight per cell. Sources: Efron 1987 (BCa); Rao and Wu 1988 (resampling few units); Bonett and Price 2012 (paired
proportions); Price and Bonett 2004 (sums of proportions); Satterthwaite 1946 (degrees of freedom).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CONFIDENCE = 0.95
RESAMPLES = 4000
MIN_INFORMATIVE = 10
"""Clusters off the commonest value, below which resampling cannot be trusted."""
MAX_ACCELERATION = 0.06
"""Skewness (as BCa's acceleration) beyond which BCa was seen to cover too little: a handful of samples decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Scores of the same samples under one arm, or the two sides of a paired comparison."""

    parts: tuple[Floats, ...]
    """Each of shape (seeds, samples). One arm: its scores. Two arms: (a - b,) where both have the same seeds, and
    (a, -b) where seeds do not pair; the statistic is the sum of the parts' seed averages."""
    cell: Integers
    """Shape (samples,): index of the cell."""
    cluster: Integers
    """Shape (samples,): index of the story, from 0. A story may reach into several cells."""
    lowest: float = 0.0
    """The lowest value a sample can have: 0 for scores, -1 for differences; the highest is 1."""

    @property
    def combined(self) -> Floats:
        """Seed-averaged scores or differences, shape (samples,)."""
        return np.sum([part.mean(axis=0) for part in self.parts], axis=0)  # type: ignore[no-any-return]

    @property
    def num_seeds(self) -> int:
        """The largest number of seeds on one side."""
        return max(len(part) for part in self.parts)

    @property
    def is_binary(self) -> bool:
        """True where every score is right or wrong (for differences: better, equal or worse)."""
        return all(bool((np.abs(part) * (np.abs(part) - 1) == 0).all()) for part in self.parts)

    def only(self, weights: Floats) -> "Observations":
        """Keep the samples of cells with a weight, and number their clusters from 0."""
        keep = weights[self.cell] != 0
        renumbered = np.cumsum(np.bincount(self.cluster[keep]) > 0) - 1
        parts = tuple(part[:, keep] for part in self.parts)
        return replace(self, parts=parts, cell=self.cell[keep], cluster=renumbered[self.cluster[keep]])


def single(
    values: Sequence[float] | Floats, clusters: Sequence[object] | None = None, lowest: float = 0.0
) -> Observations:
    """Return the observations of one arm in one cell; without ``clusters`` every sample is its own."""
    column = np.asarray(values, dtype=float)
    ids = np.arange(len(column)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    cell = np.zeros(len(column), dtype=np.int64)
    return Observations(parts=(column[None, :],), cell=cell, cluster=ids.astype(np.int64), lowest=lowest)


def difference(first: Observations, second: Observations, *, paired_seeds: bool) -> Observations:
    """Return ``first`` minus ``second``, both over the same samples in the same order.

    ``paired_seeds``: row i of both was trained with the same seed, so what that seed did to both cancels.
    """
    a, b = first.parts[0], second.parts[0]
    parts = (a - b,) if paired_seeds or len(a) == len(b) == 1 else (a, -b)
    return replace(first, parts=parts, lowest=-1.0)


class Linear(NamedTuple):
    """A weighted sum of cell means, and what it is made of."""

    point: float
    influence: Floats
    """Shape (clusters,): how far each cluster moves it; adds up to 0."""
    means: Floats
    counts: Integers
    """Both of shape (cells,)."""

    @property
    def acceleration(self) -> float:
        """BCa's measure of skewness."""
        squares = self.influence * self.influence
        spread = float(squares.sum()) ** 1.5
        return float((squares * self.influence).sum()) / (6 * spread) if spread > 0 else 0.0


def linear(values: Floats, obs: Observations, weights: Floats) -> Linear:
    """Return the weighted sum of the cell means of ``values``, shape (samples,)."""
    counts = np.bincount(obs.cell, minlength=len(weights))
    means = np.bincount(obs.cell, values, minlength=len(weights)) / np.maximum(counts, 1)
    share = weights[obs.cell] / counts[obs.cell]
    influence = np.bincount(obs.cluster, share * (values - means[obs.cell]))
    return Linear(float(weights @ means), influence.astype(float), means, counts.astype(np.int64))


class Variance(NamedTuple):
    """The variance of a statistic, and the degrees of freedom with which it is known."""

    value: float
    dof: float

    @property
    def stretch(self) -> float:
        """How much wider than the normal quantile the t quantile is."""
        from scipy.special import stdtrit

        level = 0.5 + CONFIDENCE / 2
        return float(stdtrit(max(self.dof, 1.0), level)) / normal(level) if np.isfinite(self.dof) else 1.0


def clustered_variance(influence: Floats, dof: float | None = None) -> Variance:
    """Return the variance that independent clusters give."""
    num_clusters = len(influence)
    value = float((influence**2).sum()) * num_clusters / max(num_clusters - 1, 1)
    return Variance(value, max(num_clusters - 1, 1) if dof is None else dof)


def with_seeds(over_clusters: Variance, obs: Observations, weights: Floats) -> Variance:
    """Add the variance between seeds, as far as a side has more than one."""
    variances = [over_clusters]
    for part in obs.parts:
        if (k := len(part)) > 1:
            points = [linear(row, obs, weights).point for row in part]
            variances.append(Variance(float(np.var(points, ddof=1)) / k, k - 1))
    return add_variances(variances)


def add_variances(variances: Sequence[Variance]) -> Variance:
    """Return the sum of independent variances, with Satterthwaite's degrees of freedom."""
    total = sum(v.value for v in variances)
    spread = sum(v.value**2 / max(v.dof, 1) for v in variances)
    return Variance(total, total**2 / spread if spread > 0 else min(v.dof for v in variances))


def adjusted(values: Floats, obs: Observations, weights: Floats) -> tuple[float, Variance]:
    """Return centre and variance after some imagined clusters have joined every cell, as many at either extreme.

    So identical arms, an arm that is right everywhere, or one sample still have a variance: it shrinks with the number
    of clusters, never to 0. Differences: one at +1 and one at -1 in each cell (Bonett and Price). Scores of an arm: two
    at 1 and two at 0, shared by the cells (Price and Bonett).
    """
    num_cells = len(weights)
    counts = np.bincount(obs.cell, minlength=num_cells)
    used = counts > 0
    at_each_end = 1.0 if obs.lowest < 0 else 2.0 / np.count_nonzero(used)  # imagined clusters of a cell
    size = at_each_end * counts / np.maximum(clusters_per_cell(obs, num_cells), 1)  # in samples
    share, means = np.zeros(num_cells), np.zeros(num_cells)
    sums = np.bincount(obs.cell, values, minlength=num_cells) + size * (1 + obs.lowest)
    share[used] = weights[used] / (counts + 2 * size)[used]
    means[used] = sums[used] / (counts + 2 * size)[used]
    influence = np.bincount(obs.cluster, share[obs.cell] * (values - means[obs.cell])).astype(float)
    spread = (1 - means) ** 2 + (obs.lowest - means) ** 2
    imagined = float(((share * size) ** 2 / at_each_end * spread).sum())
    return float(weights @ means), add_variances([clustered_variance(influence), Variance(imagined, np.inf)])


def clusters_per_cell(obs: Observations, num_cells: int, where: NDArray[np.bool_] | None = None) -> Integers:
    """Return the number of clusters in each cell, shape (cells,): those in which ``where`` holds for some sample."""
    size = (int(obs.cluster.max()) + 1) * num_cells
    places = obs.cluster * num_cells + obs.cell
    met = np.bincount(places if where is None else places[where], minlength=size).reshape(-1, num_cells) > 0
    counts: Integers = met.sum(axis=0)
    return counts


def num_clusters_with(mask: NDArray[np.bool_], obs: Observations) -> int:
    """Return in how many clusters ``mask`` holds for some sample."""
    return int(np.count_nonzero(np.bincount(obs.cluster[mask])))


def resampling_fails(values: Floats, obs: Observations, acceleration: float) -> bool:
    """Too few clusters tell anything beyond the commonest value, a cell has almost none, or a few decide it all."""
    kinds, counts = np.unique(values, return_counts=True)
    informative = num_clusters_with(values != kinds[counts.argmax()], obs)
    per_cell = clusters_per_cell(obs, int(obs.cell.max()) + 1)
    return (
        informative < MIN_INFORMATIVE
        or int(per_cell[per_cell > 0].min()) < MIN_INFORMATIVE // 2
        or abs(acceleration) > MAX_ACCELERATION
    )


@dataclass(frozen=True)
class Draws:
    """Resampled cell means, made once and then asked for any statistic over the cells.

    Clusters are drawn with replacement; with several seeds, seeds are drawn too, and their deviations are enlarged by
    sqrt(K / (K - 1)), without which K drawn seeds vary too little.
    """

    obs: Observations
    seed: int

    @functools.cached_property
    def _cell_means(self) -> Floats:
        """Shape (RESAMPLES, rows of all parts, cells), with as many cells as the largest index needs."""
        obs = self.obs
        num_cells, num_clusters = int(obs.cell.max()) + 1, int(obs.cluster.max()) + 1
        place, size = obs.cluster * num_cells + obs.cell, num_clusters * num_cells
        rows = [np.ones(len(obs.cell)), *(row for part in obs.parts for row in part)]
        sums = [np.bincount(place, row, minlength=size).reshape(num_clusters, num_cells) for row in rows]
        drawn = np.empty((RESAMPLES, len(rows), num_cells))
        for cells, clusters in _blocks(sums[0] > 0):
            # Single precision is exact for right and wrong, and halves the time of most of a large report's work.
            block = np.concatenate([s[np.ix_(clusters, cells)] for s in sums], axis=1).astype(np.float32)
            times = _times_drawn(num_clusters, self.seed)[clusters].astype(np.float32)
            # Not "@": on a machine that is busy with other work, BLAS threads wait for each other far longer than this.
            products = np.einsum("gc,gd->cd", block, times).T
            drawn[:, :, cells] = products.reshape(RESAMPLES, len(rows), -1)
        counts = np.maximum(sums[0].sum(axis=0), 1)
        observed = np.stack([s.sum(axis=0) / counts for s in sums[1:]])
        with np.errstate(invalid="ignore"):  # a small cell may be missed by a draw: it keeps its mean then
            means: Floats = np.where(drawn[:, :1] > 0, drawn[:, 1:] / drawn[:, :1], observed)
        return means

    def statistic(self, weights: Floats) -> Floats:
        """Return the weighted sum of cell means in each resample, shape (RESAMPLES,)."""
        means = self._cell_means
        statistics = means @ weights[: means.shape[2]]  # (draws, rows)
        rng = np.random.default_rng([self.seed, 1])
        total, start = np.zeros(RESAMPLES), 0
        for part in self.obs.parts:
            k = len(part)
            of_seeds = statistics[:, start : start + k]
            centre = of_seeds.mean(axis=1)
            total += centre
            if k > 1:
                picks = rng.multinomial(k, np.full(k, 1 / k), size=RESAMPLES) / k
                total += np.sqrt(k / (k - 1)) * ((picks * of_seeds).sum(axis=1) - centre)
            start += k
        return total


def _blocks(met: NDArray[np.bool_]) -> list[tuple[Integers, Integers]]:
    """Cells that the same clusters reach, and these clusters: mostly a subset at all lengths and its stories.

    ``met``: shape (clusters, cells).
    """
    groups: dict[bytes, list[int]] = {}
    for cell, column in enumerate(met.T):
        groups.setdefault(column.tobytes(), []).append(cell)
    return [(np.array(cells), np.flatnonzero(met[:, cells[0]])) for cells in groups.values()]


@functools.lru_cache(maxsize=8)
def _times_drawn(num_clusters: int, seed: int) -> NDArray[np.uint8]:
    """How often each cluster is drawn, shape (clusters, RESAMPLES): shared by all statistics over that many."""
    rng = np.random.default_rng([seed, num_clusters])
    drawn = np.empty((num_clusters, RESAMPLES), dtype=np.uint8)  # 255 draws of one cluster do not happen
    for part in np.array_split(np.arange(RESAMPLES), 1 + RESAMPLES * num_clusters // 1_000_000):
        picks = rng.integers(0, num_clusters, (len(part), num_clusters), dtype=np.int32)
        picks += np.arange(len(part), dtype=np.int32)[:, None] * num_clusters
        drawn[:, part] = np.bincount(picks.ravel(), minlength=picks.size).reshape(picks.shape).T
    return drawn


class Resampled(NamedTuple):
    """A statistic with its resamples, and BCa's two corrections (0 where they are not used)."""

    point: float
    draws: Floats
    acceleration: float = 0.0
    bias: float = 0.0

    @classmethod
    def corrected(cls, point: float, draws: Floats, acceleration: float) -> "Resampled":
        """Return it with BCa's corrections; the bias is how far the estimate lies off the middle of its resamples."""
        return cls(point, draws, acceleration, _place(draws, point))

    def interval(self, stretch: float) -> tuple[float, float]:
        """Return the interval's ends, ``stretch`` times as far from the estimate as resampling says."""
        from scipy.special import ndtr

        ends = []
        for z in (-normal(0.5 + CONFIDENCE / 2), normal(0.5 + CONFIDENCE / 2)):
            level = ndtr(self.bias + (self.bias + z) / (1 - self.acceleration * (self.bias + z)))
            ends.append(self.point + stretch * (float(np.quantile(self.draws, level)) - self.point))
        return min(ends[0], self.point), max(ends[1], self.point)

    def p_value(self, dof: float) -> float:
        """Return the two-sided p-value of 0: the level at which the interval just reaches it.

        Where every draw lies on one side of 0, resamples only say that it is small; the t statistic says how small. Of
        three seeds (2 degrees of freedom), even all 4,000 draws on one side are no p < 0.05 by themselves.
        """
        if self.draws.min() > 0 or self.draws.max() < 0:
            farther_than_any_draw = tail(_place(self.draws, 0.0), dof)
            return min(tail(self.point / float(self.draws.std()), dof), farther_than_any_draw)
        z = _place(self.draws, 0.0) - self.bias
        return tail(z / (1 + self.acceleration * z) - self.bias, dof)


def _place(draws: Floats, value: float) -> float:
    """Normal quantile of the share of draws below ``value``, ties counted half, never beyond what they resolve."""
    from scipy.special import ndtri

    below = (np.mean(draws < value) + np.mean(draws <= value)) / 2
    return float(ndtri(np.clip(below, 1 / len(draws), 1 - 1 / len(draws))))


@functools.cache
def normal(level: float) -> float:
    """Return the normal quantile."""
    from scipy.special import ndtri

    return float(ndtri(level))


def tail(statistic: float, dof: float) -> float:
    """Return the two-sided p-value of a t statistic."""
    from scipy.special import stdtr

    return min(1.0, 2 * float(stdtr(max(dof, 1.0), -abs(statistic))))
