"""How sure: intervals, paired differences and summaries over lengths. Arrays in, numbers out.

``mean_interval`` says where a score lies, ``contrast`` where a difference lies and how likely chance gives it. Both
take ``Observations`` and one weight per cell: a single cell, an average over subsets, a mean over lengths, an area or
a slope are the same question with other weights.

Sources: Miller 2024 (arXiv 2411.00640) for clustering and pairing; Bowyer et al. 2025 (arXiv 2503.01747) for score
intervals at small n; Korn and Graubard 1998 and Dean and Pagano 2015 for intervals at an effective sample size;
Bonett and Price 2012 for paired proportions; Fieller 1954 for ratios; Schuirmann 1987 for equivalence.
``tests/test_stats.py`` measures the coverage, ``bench/coverage.py`` prints it.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from evalkit.report.resampling import (
    CONFIDENCE,
    MIN_INFORMATIVE,
    Draws,
    Floats,
    Observations,
    Variance,
    adjusted,
    bca,
    clustered_variance,
    clusters_per_cell,
    difference,
    linear,
    normal,
    num_informative,
    resampling_fails,
    single,
    tail,
    with_seeds,
)

SIGNIFICANT = 0.05
POWER = 0.80
MAX_RATIO = 1e6
"""Beyond it a ratio counts as unbounded."""


class Interval(NamedTuple):
    """A mean with its 95 % interval; all three None where there are no samples."""

    mean: float | None
    low: float | None
    high: float | None
    method: str


class Contrast(NamedTuple):
    """A difference (or another signed statistic) with its 95 % interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float
    n: int
    num_clusters: int
    detectable: float
    """Smallest true difference that such data would show at 5 % with 80 % power; the largest possible if none would."""
    method: str
    centre: float
    """The middle of the interval before it is cut at what is possible: the difference, adjusted for few samples."""
    error: float
    """Its standard error."""
    dof: float

    def p_equivalent(self, margin: float) -> float:
        """Return the p-value of "the true difference reaches ``margin`` in one direction": two one-sided tests."""
        t = (margin - abs(self.centre)) / self.error
        half = tail(t, self.dof) / 2
        return half if t > 0 else 1 - half


class Estimate(NamedTuple):
    """A statistic of values that have no bounds, with its 95 % interval and the two-sided p-value of 0."""

    mean: float
    low: float | None
    """None, as high and p, where nothing tells how far it varies: of one story, or where no story differs."""
    high: float | None
    p: float | None
    n: int
    num_clusters: int


def mean_interval(obs: Observations, weights: Floats, *, draws: Draws | None = None, seed: int = 0) -> Interval:
    """Return the weighted mean of cell means with its interval, for one arm and weights that add up to 1.

    ``draws``: of the same observations and possibly more cells; made here where none are given.

    - right or wrong, every sample its own story, one seed, one cell: Wilson.
    - right or wrong otherwise: Wilson at the effective sample size n / design effect, where the design effect (never
      below 1) is the clustered variance over the binomial one, and the t quantile replaces the normal one with as many
      degrees of freedom as clusters on the rarer side of their cell allow: a variance of three events is uncertain.
    - ratios: BCa over clusters, stretched by t/z; where the sample cannot carry it (``resampling_fails``), Wilson with
      the number of clusters as n, which holds for any score in 0..1.
    """
    obs = obs.only(weights)
    values = obs.combined
    if not len(values):
        return Interval(None, None, None, "none")
    statistic = linear(values, obs, weights)
    point = float(np.clip(statistic.point, 0.0, 1.0))
    num_clusters = len(statistic.influence)

    if not obs.is_binary and obs.num_seeds == 1 and not resampling_fails(values, obs, statistic.acceleration):
        drawn = (draws or Draws(obs, seed)).statistic(weights)
        stretch = clustered_variance(statistic.influence).stretch
        low, high = bca(point, drawn, statistic.acceleration, stretch)
        return Interval(point, low, high, "bca")
    if obs.is_binary and obs.num_seeds == 1 and num_clusters == len(values) and np.count_nonzero(weights) == 1:
        return Interval(point, *wilson(point, len(values)), "wilson")

    total = with_seeds(_variance_of_mean(obs, values, weights), obs, weights)
    is_plain_ratio = not obs.is_binary and obs.num_seeds == 1
    if is_plain_ratio or total.value <= 0 or not 0 < point < 1:
        sizes = np.bincount(obs.cluster)
        clusters_as_n = len(values) ** 2 / float((sizes**2).sum())  # Kish: as if the clusters were of equal size
        return Interval(point, *wilson(point, clusters_as_n), "wilson, clusters as n")
    effective = point * (1 - point) / total.value / total.stretch**2
    return Interval(point, *wilson(point, effective), "wilson, effective n")


def wilson(mean: float, n: float) -> tuple[float, float]:
    """Return Wilson's interval for a proportion ``mean`` of ``n`` (which may be an effective, fractional number).

    Wilson 1927. Written out: statsmodels has it too, and takes longer to import than a small report to compute.
    """
    z2 = normal(0.5 + CONFIDENCE / 2) ** 2
    centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = float(np.sqrt(z2 * (mean * (1 - mean) / n + z2 / (4 * n * n)))) / (1 + z2 / n)
    return max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean))


def contrast(obs: Observations, weights: Floats) -> Contrast:
    """Return the weighted sum of cell means, with interval and p-value of one t statistic.

    So the interval leaves out 0 exactly where p < 0.05. The variance is clustered by story and two-way over seeds and
    stories (``with_seeds``). Where scores are right or wrong, or too few stories tell anything, centre and variance are
    those of Bonett and Price (``adjusted``), close to McNemar's exact test.

    Raises:
        ValueError: no samples in the cells that have a weight.
    """
    obs = obs.only(weights)
    values = obs.combined
    if not len(values):
        raise ValueError("a contrast needs at least one sample")
    point = linear(values, obs, weights).point
    centre, variance, method = _estimate(obs, weights)
    half = variance.quantile(0.5 + CONFIDENCE / 2) * variance.error
    reach = float(np.abs(weights).sum())
    num_clusters = int(obs.cluster.max()) + 1
    detectable = half + normal(POWER) * variance.error
    if obs.is_binary and obs.lowest < 0:
        # A story differs where one of its samples does; of one sample each, that is the share of samples itself.
        stories = _enough_discordant(num_clusters)
        detectable = max(detectable, 1 - (1 - stories) ** (num_clusters / len(values)))
    return Contrast(
        mean=point,
        low=max(min(centre - half, point), -reach),
        high=min(max(centre + half, point), reach),
        p=tail(centre / variance.error, variance.dof),
        n=len(values),
        num_clusters=num_clusters,
        detectable=min(detectable, reach),
        method=method,
        centre=centre,
        error=variance.error,
        dof=variance.dof,
    )


def estimate(obs: Observations, weights: Floats) -> Estimate:
    """Return the weighted sum of cell means of values without bounds, with interval and p-value of one t statistic.

    The variance is clustered by story and two-way over seeds and stories, as in ``contrast``. Values that are all 0, as
    the differences of an arm from itself are, differ from 0 with p = 1.

    Raises:
        ValueError: no samples in the cells that have a weight.
    """
    obs = obs.only(weights)
    values = obs.combined
    if not len(values):
        raise ValueError("an estimate needs at least one sample")
    found = _around(linear(values, obs, weights).point, obs, weights)
    return found if values.any() or found.num_clusters < 2 else found._replace(low=0.0, high=0.0, p=1.0)


def _around(point: float, obs: Observations, weights: Floats) -> Estimate:
    """Return ``point`` with the variance of the weighted sum of cell means."""
    values = obs.combined
    influence = linear(values, obs, weights).influence
    variance = with_seeds(clustered_variance(influence), obs, weights)
    if len(influence) < 2 or variance.error <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return Estimate(point, None, None, None, len(values), len(influence))
    half = variance.quantile(0.5 + CONFIDENCE / 2) * variance.error
    p = tail(point / variance.error, variance.dof)
    return Estimate(point, point - half, point + half, p, len(values), len(influence))


def _estimate(obs: Observations, weights: Floats) -> tuple[float, Variance, str]:
    """Return centre and variance of a weighted sum of cell means, and what they are called."""
    values = obs.combined
    method = "t over seeds and stories" if obs.num_seeds > 1 else "t over stories"
    if obs.is_binary or num_informative(values, obs) < MIN_INFORMATIVE // 2:
        centre, over_clusters = adjusted(values, obs, weights)
        return centre, with_seeds(over_clusters, obs, weights), f"adjusted {method}"
    statistic = linear(values, obs, weights)
    return statistic.point, with_seeds(clustered_variance(statistic.influence), obs, weights), method


@functools.cache
def _enough_discordant(num_clusters: int) -> float:
    """Return the share of clusters that must differ, all in one direction, for a significant result at 80 % power."""
    from scipy.special import betaincinv

    for fewest in range(1, min(num_clusters, 20) + 1):
        differ = single(np.where(np.arange(num_clusters) < fewest, 1.0, 0.0), lowest=-1.0)
        centre, variance, _ = _estimate(differ, np.ones(1))
        if tail(centre / variance.error, variance.dof) < SIGNIFICANT:
            return float(betaincinv(fewest, num_clusters - fewest + 1, POWER))
    return 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given: the family is everything passed at once.

    These are the values of statsmodels' ``multipletests``, which collects all garbage at every call: a tenth of a
    second each, and a report makes hundreds.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted_p = np.empty_like(p)
    adjusted_p[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in adjusted_p]


def ratio_interval(obs: Observations, above: Floats, below: Floats) -> Interval:
    """Return (weighted mean under ``above``) / (under ``below``) with Fieller's interval: for retention.

    It holds every ratio r for which mean above - r * mean below is not shown to differ from 0; its upper end is None
    where the mean below is not shown to differ from 0 itself.
    """
    from scipy.optimize import brentq

    obs = obs.only(np.abs(above) + np.abs(below))
    values = obs.combined
    bottom = linear(values, obs, below).point if len(values) else 0.0
    if bottom <= 0:
        return Interval(None, None, None, "none")

    def beyond(ratio: float) -> float:
        centre, variance, _ = _estimate(obs, above - ratio * below)
        return abs(centre) - variance.quantile(0.5 + CONFIDENCE / 2) * variance.error

    point = linear(values, obs, above).point / bottom
    low = brentq(beyond, 0.0, point) if point > 0 and beyond(0.0) > 0 else 0.0
    far = max(2 * point, 1.0)
    while (open_above := beyond(far) <= 0) and far < MAX_RATIO:
        far *= 2
    high = None if open_above else brentq(beyond, point, far)
    return Interval(point, min(low, point), None if high is None else max(high, point), "fieller")


def ratio_difference(
    first: Observations, second: Observations, above: Floats, below: Floats, *, paired_seeds: bool
) -> Estimate | None:
    """Return how far the first arm's ratio of weighted means lies above the second's, over the same samples.

    For the difference of two retentions. Each ratio is made linear at its estimate (the delta method: A/B moves by
    (dA - A/B dB) / B), so that what the arms share in a story cancels. Without interval where fewer than
    ``MIN_INFORMATIVE`` / 2 stories tell anything; None where a mean below is 0.
    """
    weights = ((above != 0) | (below != 0)).astype(float)
    ratios, sides = [], []
    for obs in (first, second):
        bottom = linear(obs.combined, obs, below).point
        if bottom <= 0:
            return None
        ratios.append(linear(obs.combined, obs, above).point / bottom)
        moves = (above - ratios[-1] * below) / bottom
        sides.append(replace(obs, parts=tuple(part * moves[obs.cell] for part in obs.parts)))
    pairs = difference(sides[0], sides[1], paired_seeds=paired_seeds).only(weights)
    found = _around(ratios[0] - ratios[1], pairs, weights)
    differ = np.bincount(pairs.cluster[first.combined != second.combined]) > 0
    return found if differ.sum() >= MIN_INFORMATIVE // 2 else found._replace(low=None, high=None, p=None)


def octave_weights(lengths: Sequence[int]) -> Floats:
    """Return weights that add up to 1: each length (tokens, ascending) stands for the octaves nearest to it.

    Evenly spaced lengths (16k, 32k, 64k, 128k) weigh the same. With a gap (16k, 64k, 128k) those beside it stand for
    more. The outermost lengths reach as far outwards as inwards.
    """
    if len(lengths) < 2:
        return np.ones(len(lengths))
    steps = np.diff(np.log2(np.asarray(lengths, dtype=float)))
    weights = (np.append(steps, steps[-1]) + np.insert(steps, 0, steps[0])) / 2
    return weights / weights.sum()  # type: ignore[no-any-return]


def area_weights(lengths: Sequence[int]) -> Floats:
    """Return the weights of the trapezoid area under the score over log2 length, divided by the width: 0 to 1."""
    x = np.log2(np.asarray(lengths, dtype=float))
    steps = np.diff(x)
    weights = (np.append(steps, 0.0) + np.insert(steps, 0, 0.0)) / 2
    return weights / (x[-1] - x[0])  # type: ignore[no-any-return]


def slope_weights(lengths: Sequence[int]) -> Floats:
    """Return the weights of the least-squares slope of the score per doubling of the length; they add up to 0."""
    x = np.log2(np.asarray(lengths, dtype=float))
    x = x - x.mean()
    return x / float((x**2).sum())  # type: ignore[no-any-return]


class EffectiveLength(NamedTuple):
    """The longest length at which a score is shown to hold, or a bound where the lengths asked do not reveal it."""

    tokens: int
    censored: str
    """"" where it was seen, ">=" where every length held, "<" where the shortest did not, "?" where there are too few
    samples to tell whether it did."""


def effective_length(
    lengths: Sequence[int], intervals: Sequence[tuple[float, float]], threshold: float
) -> EffectiveLength:
    """Return the longest length up to which, at every length, the lower bound of the score reaches ``threshold``.

    NoLiMa (arXiv 2502.05167) takes 0.85 of the base score as threshold; RULER 85.6 of 100. Using the lower bound and
    asking it of all shorter lengths too keeps a lucky cell from deciding.
    """
    for i, (low, high) in enumerate(intervals):
        if low < threshold:
            shortest = EffectiveLength(lengths[0], "<" if high < threshold else "?")
            return EffectiveLength(lengths[i - 1], "") if i else shortest
    return EffectiveLength(lengths[-1], ">=")


def _variance_of_mean(obs: Observations, values: Floats, weights: Floats) -> Variance:
    """Variance over clusters; right-or-wrong scores never vary less than as many independent samples would."""
    statistic = linear(values, obs, weights)
    some, less = (clusters_per_cell(obs, len(weights), where) for where in (values > 0, values < 1))
    rarer = int(np.minimum(some, less).sum())  # by cell: an average of all-right and all-wrong cells knows little
    variance = clustered_variance(statistic.influence, dof=min(len(statistic.influence) - 1, rarer + 2))
    if not obs.is_binary:
        return variance
    samples = np.maximum(statistic.counts, 1) * obs.num_seeds
    binomial = float((weights**2 * statistic.means * (1 - statistic.means) / samples).sum())
    return variance._replace(value=max(variance.value, binomial))
