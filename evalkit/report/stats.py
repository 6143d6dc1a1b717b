"""How sure: intervals, paired differences and summaries over lengths. Arrays in, numbers out.

``mean_interval`` says where a score lies, ``contrast`` where a difference lies and how likely chance gives it. Both
take ``Observations`` and one weight per cell: a single cell, an average over subsets, a mean over lengths, an area or
a slope are the same question with other weights.

Sources: Miller 2024 (arXiv 2411.00640) for clustering and pairing; Bowyer et al. 2025 (arXiv 2503.01747) for score
intervals at small n; Korn and Graubard 1998 and Dean and Pagano 2015 for intervals at an effective sample size.
``tests/test_stats.py`` measures the coverage.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evalkit.report.resampling import (
    CONFIDENCE,
    RESAMPLES,
    Draws,
    Floats,
    Observations,
    Resampled,
    Variance,
    adjusted,
    clustered_variance,
    clusters_per_cell,
    linear,
    normal,
    resampling_fails,
    tail,
    with_seeds,
)

POWER = 0.80
FEWEST_DISCORDANT = 6
"""Samples that must differ, all in one direction, before the exact test gives p < 0.05: 2 * 0.5 ** 6 = 0.03."""


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
        low, high = Resampled.corrected(point, drawn, statistic.acceleration).interval(stretch)
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
    """Return Wilson's interval for a proportion ``mean`` of ``n`` (which may be an effective, fractional number)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(mean * n, n, alpha=1 - CONFIDENCE, method="wilson")
    return max(0.0, min(float(low), mean)), min(1.0, max(float(high), mean))


def contrast(obs: Observations, weights: Floats, *, draws: Draws | None = None, seed: int = 0) -> Contrast:
    """Return the weighted sum of cell means of paired differences, with interval, p-value and detectable difference.

    ``draws``: of the same observations and possibly more cells; made here where none are given.

    - interval: BCa over clusters; with several seeds, percentiles over seeds and clusters; both stretched by t/z, for
      few clusters or seeds. Where the sample cannot carry resampling, the adjusted interval of Bonett and Price,
      generalised to clusters and weights.
    - p: exact McNemar for one cell of right-or-wrong samples without shared stories; else from the resamples; where
      those cannot carry it, flipping the signs of clusters (which is McNemar's test again when each is +1, 0 or -1).

    Raises:
        ValueError: no samples in the cells that have a weight.
    """
    obs = obs.only(weights)
    values = obs.combined
    if not len(values):
        raise ValueError("a contrast needs at least one sample")
    statistic = linear(values, obs, weights)
    reach = float(np.abs(weights).sum())
    sparse = resampling_fails(values, obs, statistic.acceleration)
    centre, imagined = adjusted(values, obs, weights)
    total = with_seeds(imagined if sparse else clustered_variance(statistic.influence), obs, weights)
    error = float(np.sqrt(total.value)) * total.stretch
    if sparse:
        half = normal(0.5 + CONFIDENCE / 2) * error
        low, high, method = centre - half, centre + half, "adjusted"
        t = centre / float(np.sqrt(total.value))
        p = tail(t, total.dof) if obs.num_seeds > 1 else _sign_flip_p(obs, weights, seed)
    else:
        drawn = (draws or Draws(obs, seed)).statistic(weights)
        if obs.num_seeds == 1:
            resampled, method = Resampled.corrected(statistic.point, drawn, statistic.acceleration), "bca"
        else:
            resampled, method = Resampled(statistic.point, drawn), "bootstrap over seeds and stories"
        (low, high), p = resampled.interval(total.stretch), resampled.p_value(total.dof)
    detectable = (normal(0.5 + CONFIDENCE / 2) + normal(POWER)) * error
    if sparse and obs.is_binary:
        detectable = max(detectable, _enough_discordant(len(statistic.influence)))
    one_each = len(statistic.influence) == len(values) and np.count_nonzero(weights) == 1
    if obs.is_binary and obs.num_seeds == 1 and one_each:
        p = mcnemar(int((values > 0).sum()), int((values < 0).sum()))
    return Contrast(
        mean=statistic.point,
        low=max(min(low, statistic.point), -reach),
        high=min(max(high, statistic.point), reach),
        p=p,
        n=len(values),
        num_clusters=len(statistic.influence),
        detectable=min(detectable, reach),
        method=method,
    )


def _enough_discordant(num_clusters: int) -> float:
    """Return the share of clusters that must differ, all in one direction, for a significant result at 80 % power."""
    from scipy.special import betaincinv

    if num_clusters < FEWEST_DISCORDANT:
        return 1.0
    return float(betaincinv(FEWEST_DISCORDANT, num_clusters - FEWEST_DISCORDANT + 1, POWER))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return McNemar's exact two-sided p-value from the two counts of samples on which the sides differ."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


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


def ratio_interval(
    obs: Observations, above: Floats, below: Floats, *, draws: Draws | None = None, seed: int = 0
) -> Interval:
    """Return (weighted mean under ``above``) / (under ``below``), resampled together: for retention.

    Where resampling cannot carry it, the widest range of ratios that the two intervals allow.
    """
    obs = obs.only(np.abs(above) + np.abs(below))
    draws = draws or Draws(obs, seed)
    top, bottom = mean_interval(obs, above, draws=draws), mean_interval(obs, below, draws=draws)
    if top.mean is None or not bottom.mean or top.low is None or top.high is None:
        return Interval(None, None, None, "none")
    assert bottom.low is not None
    assert bottom.high is not None
    point = top.mean / bottom.mean
    values = obs.combined
    parts = [linear(values, obs, weights).influence for weights in (above, below)]
    statistic = linear(values, obs, above)._replace(influence=(parts[0] - point * parts[1]) / bottom.mean)
    if resampling_fails(values, obs, statistic.acceleration) or bottom.low <= 0:
        return Interval(point, top.low / bottom.high, top.high / bottom.low if bottom.low > 0 else None, "bounds")
    stretch = with_seeds(clustered_variance(statistic.influence), obs, above).stretch
    ratios = draws.statistic(above) / np.maximum(draws.statistic(below), 1e-9)
    low, high = Resampled(point, ratios).interval(stretch)
    return Interval(point, low, high, "bootstrap")


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
    """The longest length at which a score still holds, or a bound where the lengths asked do not reveal it."""

    tokens: int
    censored: str
    """"" where it was seen, ">=" where every length held, "<" where not even the shortest did."""


def effective_length(lengths: Sequence[int], lower_bounds: Sequence[float], threshold: float) -> EffectiveLength:
    """Return the longest length up to which, at every length, the lower bound of the score reaches ``threshold``.

    NoLiMa (arXiv 2502.05167) takes 0.85 of the base score as threshold; RULER 85.6 of 100. Using the lower bound and
    asking it of all shorter lengths too keeps a lucky cell from deciding.
    """
    for i, low in enumerate(lower_bounds):
        if low < threshold:
            return EffectiveLength(lengths[i - 1], "") if i else EffectiveLength(lengths[0], "<")
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


def _sign_flip_p(obs: Observations, weights: Floats, seed: int) -> float:
    """Share of sign patterns of the clusters' sums that are at least as far from 0; all of them up to 14 clusters."""
    counts = np.bincount(obs.cell, minlength=len(weights))
    sums = np.bincount(obs.cluster, weights[obs.cell] / counts[obs.cell] * obs.combined)
    sums = sums[sums != 0]
    exact = len(sums) <= 14
    if exact:
        patterns = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
    else:
        patterns = np.random.default_rng([seed, 2]).integers(0, 2, (RESAMPLES, len(sums)))
    reached = np.abs((2 * patterns - 1) @ sums) >= abs(sums.sum()) - 1e-12
    return float(reached.mean() if exact else (reached.sum() + 1) / (len(reached) + 1))
