"""The machinery under ``stats.py``: what is observed, how far a weighted mean varies, and how it is resampled.

What varies is stories (clusters) and, where an arm was trained more than once, training seeds:

    variance = variance over clusters of the seed averages + variance between seeds - noise of seed x story in both

A cell is one subset at one length. Every statistic of the report is linear in the means of cells, so it is given by
one weight per cell. Sources: Efron 1987 (BCa); Rao and Wu 1988 (resampling few units); Bonett and Price 2012 (paired
proportions); Price and Bonett 2004 (sums of proportions); Searle, Casella and McCulloch 1992 (two-way random effects);
Satterthwaite 1946 (degrees of freedom).
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
"""Clusters off the commonest value, below which resampling cannot be trusted; half as many carry a t statistic."""
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
    def error(self) -> float:
        """The standard error."""
        return float(np.sqrt(self.value))

    def quantile(self, level: float) -> float:
        """Return the quantile of Student's t."""
        from scipy.special import stdtrit

        return float(stdtrit(max(self.dof, 1.0), level))

    @property
    def stretch(self) -> float:
        """How much wider than the normal quantile the t quantile is."""
        return self.quantile(0.5 + CONFIDENCE / 2) / normal(0.5 + CONFIDENCE / 2)


def clustered_variance(influence: Floats, dof: float | None = None) -> Variance:
    """Return the variance that independent clusters give."""
    num_clusters = len(influence)
    value = float((influence**2).sum()) * num_clusters / max(num_clusters - 1, 1)
    return Variance(value, max(num_clusters - 1, 1) if dof is None else dof)


def with_seeds(over_clusters: Variance, obs: Observations, weights: Floats) -> Variance:
    """Add what seeds vary beyond the noise of seed x story, where a side has several seeds.

    Two-way random effects: the variance over clusters and the variance between seeds both hold that noise, so it is
    estimated from what neither of them explains and taken out once, without letting the sum fall below either. That
    the variance between a few seeds is itself uncertain counts in the degrees of freedom even where all is taken out.
    """
    variances, rest = [over_clusters], over_clusters.value
    for part in obs.parts:
        if (k := len(part)) > 1:
            rows = [linear(row, obs, weights) for row in part]
            seeds = Variance(float(np.var([row.point for row in rows], ddof=1)) / k, k - 1)
            influence = np.stack([row.influence for row in rows])
            noise = [clustered_variance(own) for own in influence - influence.mean(axis=0)]
            counted_twice = min(sum(own.value for own in noise) / (k * (k - 1)), seeds.value, rest)
            rest -= counted_twice
            variances += [seeds, Variance(-counted_twice, (k - 1) * noise[0].dof)]
    return add_variances(variances)


def add_variances(variances: Sequence[Variance]) -> Variance:
    """Return the sum of independent variances (negative: taken out), with Satterthwaite's degrees of freedom.

    They are never fewer than the fewest that went in, which taking out could otherwise cause.
    """
    total = sum(v.value for v in variances)
    spread = sum(v.value**2 / max(v.dof, 1) for v in variances)
    fewest = min(v.dof for v in variances)
    return Variance(total, max(total**2 / spread, fewest) if spread > 0 else fewest)


def adjusted(values: Floats, obs: Observations, weights: Floats) -> tuple[float, Variance]:
    """Return centre and variance after some imagined samples have joined every cell, as many at either extreme.

    So identical arms, an arm that is right everywhere, or one sample still have a variance: it shrinks with the number
    of samples, never to 0. Differences: one at +1 and one at -1 (Bonett and Price), scores of an arm: two at 1 and two
    at 0 (Price and Bonett), in equal parts for all cells. Where samples share stories, an imagined sample weighs as
    many as it takes to be worth an independent one: a whole story, where nothing varies.
    """
    num_cells = len(weights)
    counts = np.bincount(obs.cell, minlength=num_cells)
    used = counts > 0
    story = counts / np.maximum(clusters_per_cell(obs, num_cells), 1)  # samples to a story
    plain = linear(values, obs, weights)
    independent = float(((weights[obs.cell] / counts[obs.cell] * (values - plain.means[obs.cell])) ** 2).sum())
    alike = float((plain.influence**2).sum()) / independent if independent > 0 else np.inf
    at_each_end = (1.0 if obs.lowest < 0 else 2.0) / np.count_nonzero(used)
    size = at_each_end * np.clip(alike, 1, np.maximum(story, 1))
    share, means = np.zeros(num_cells), np.zeros(num_cells)
    sums = np.bincount(obs.cell, values, minlength=num_cells) + size * (1 + obs.lowest)
    share[used] = weights[used] / (counts + 2 * size)[used]
    means[used] = sums[used] / (counts + 2 * size)[used]
    influence = np.bincount(obs.cluster, share[obs.cell] * (values - means[obs.cell])).astype(float)
    spread = (1 - means) ** 2 + (obs.lowest - means) ** 2
    imagined = float(((share * size) ** 2 / at_each_end * spread).sum())
    over_clusters = clustered_variance(influence)
    return float(weights @ means), Variance(over_clusters.value + imagined, over_clusters.dof)


def clusters_per_cell(obs: Observations, num_cells: int, where: NDArray[np.bool_] | None = None) -> Integers:
    """Return the number of clusters in each cell, shape (cells,): those in which ``where`` holds for some sample."""
    size = (int(obs.cluster.max()) + 1) * num_cells
    places = obs.cluster * num_cells + obs.cell
    met = np.bincount(places if where is None else places[where], minlength=size).reshape(-1, num_cells) > 0
    counts: Integers = met.sum(axis=0)
    return counts


def num_informative(values: Floats, obs: Observations) -> int:
    """Return in how many clusters some value is not the commonest one."""
    kinds, counts = np.unique(values, return_counts=True)
    return int(np.count_nonzero(np.bincount(obs.cluster[values != kinds[counts.argmax()]])))


def resampling_fails(values: Floats, obs: Observations, acceleration: float) -> bool:
    """Too few clusters tell anything beyond the commonest value, a cell has almost none, or a few decide it all."""
    per_cell = clusters_per_cell(obs, int(obs.cell.max()) + 1)
    return bool(
        num_informative(values, obs) < MIN_INFORMATIVE
        or per_cell[per_cell > 0].min() < MIN_INFORMATIVE // 2
        or abs(acceleration) > MAX_ACCELERATION
    )


@dataclass(frozen=True)
class Draws:
    """Resampled cell means of one arm, made once and then asked for any weighted mean of them: clusters are drawn."""

    obs: Observations
    seed: int

    @functools.cached_property
    def _cell_means(self) -> Floats:
        """Shape (RESAMPLES, cells), with as many cells as the largest index needs."""
        obs = self.obs
        num_cells, num_clusters = int(obs.cell.max()) + 1, int(obs.cluster.max()) + 1
        place, size = obs.cluster * num_cells + obs.cell, num_clusters * num_cells
        counts, sums = (
            np.bincount(place, row, minlength=size).reshape(num_clusters, num_cells)
            for row in (np.ones(len(obs.cell)), obs.combined)
        )
        drawn = np.empty((RESAMPLES, 2, num_cells))
        for cells, clusters in _blocks(counts > 0):
            # Single precision halves the time of most of a large report's work.
            block = np.concatenate([s[np.ix_(clusters, cells)] for s in (counts, sums)], axis=1).astype(np.float32)
            times = _times_drawn(num_clusters, self.seed)[clusters].astype(np.float32)
            # Not "@": on a machine that is busy with other work, BLAS threads wait for each other far longer than this.
            drawn[:, :, cells] = np.einsum("gc,gd->cd", block, times).T.reshape(RESAMPLES, 2, -1)
        observed = sums.sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
        with np.errstate(invalid="ignore"):  # a small cell may be missed by a draw: it keeps its mean then
            means: Floats = np.where(drawn[:, 0] > 0, drawn[:, 1] / drawn[:, 0], observed)
        return means

    def statistic(self, weights: Floats) -> Floats:
        """Return the weighted sum of cell means in each resample, shape (RESAMPLES,)."""
        means = self._cell_means
        total: Floats = means @ weights[: means.shape[1]]
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


def bca(point: float, draws: Floats, acceleration: float, stretch: float) -> tuple[float, float]:
    """Return BCa's interval, its ends ``stretch`` times as far from the estimate as resampling says.

    The bias it corrects for is how far the estimate lies off the middle of its resamples.
    """
    from scipy.special import ndtr

    bias, ends = _place(draws, point), []
    for z in (-normal(0.5 + CONFIDENCE / 2), normal(0.5 + CONFIDENCE / 2)):
        level = ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
        ends.append(point + stretch * (float(np.quantile(draws, level)) - point))
    return min(ends[0], point), max(ends[1], point)


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
