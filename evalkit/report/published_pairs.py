"""Two published arms on the same questions: from how often both, one or none was right to a difference and its p."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evalkit.lengths import parse_length
from evalkit.report import stats
from evalkit.report.published import Pair
from evalkit.report.resampling import CONFIDENCE, Variance, single, tail
from evalkit.report.stats import Contrast

POOLED = "pooled"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedCounts:
    """One cell of a pair of arms, or its zones pooled."""

    pair: Pair
    """Counts; summed, and ``zone`` "pooled", where zones are."""
    difference: float
    """First minus second, -1 to 1."""
    low: float
    high: float
    p: float
    """Of the same t statistic as the interval."""
    p_holm: float = 1.0
    """Over all cells, or all pooled lengths, of this pair of arms."""
    p_mcnemar: float
    """Exact, two-sided; of pooled zones as if answers in different zones had nothing in common."""


def compare_pairs(pairs: Sequence[Pair]) -> list[PairedCounts]:
    """Return every cell, and after them each length with its zones pooled, where there are several."""
    cells = {pair.where: _contrast(pair) for pair in pairs}
    alone = [
        PairedCounts(
            pair=p, difference=c.mean, low=c.low, high=c.high, p=c.p, p_mcnemar=mcnemar(p.first_only, p.second_only)
        )
        for p in pairs
        for c in (cells[p.where],)
    ]
    by_length: dict[tuple[str, ...], list[Pair]] = defaultdict(list)
    for p in pairs:
        by_length[(p.task, p.subset, p.questions, p.first, p.second, p.length)].append(p)
    pooled = [_pooled(own, [cells[p.where] for p in own]) for own in by_length.values() if len(own) > 1]
    pooled.sort(key=lambda found: parse_length(found.pair.length))
    return [*_with_holm(alone), *_with_holm(pooled)]


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p-value of "neither arm is right more often", from the pairs that differ."""
    from scipy.stats import binomtest

    differ = first_only + second_only
    return float(binomtest(first_only, differ).pvalue) if differ else 1.0


def _contrast(pair: Pair) -> Contrast:
    values = np.zeros(pair.n)
    values[: pair.first_only] = 1.0
    values[pair.first_only : pair.first_only + pair.second_only] = -1.0
    return stats.contrast(single(values, lowest=-1.0), np.ones(1))


def _pooled(pairs: Sequence[Pair], cells: Sequence[Contrast]) -> PairedCounts:
    """Pool zones. The same stories may stand in each, so their errors are added up: no correlation makes more."""
    total = {
        name: sum(getattr(p, name) for p in pairs) for name in ("n", "first_only", "second_only", "both", "neither")
    }
    shares = [p.n / total["n"] for p in pairs]
    centre = sum(w * c.centre for w, c in zip(shares, cells, strict=True))
    error = sum(w * c.error for w, c in zip(shares, cells, strict=True))
    variance = Variance(error**2, min(c.dof for c in cells))
    difference = (total["first_only"] - total["second_only"]) / total["n"]
    half = variance.quantile(0.5 + CONFIDENCE / 2) * error
    return PairedCounts(
        pair=replace(pairs[0], zone=POOLED, **total),
        difference=difference,
        low=max(min(centre - half, difference), -1.0),
        high=min(max(centre + half, difference), 1.0),
        p=tail(centre / error, variance.dof),
        p_mcnemar=mcnemar(total["first_only"], total["second_only"]),
    )


def _with_holm(found: Iterable[PairedCounts]) -> list[PairedCounts]:
    by_arms: dict[tuple[str, ...], list[PairedCounts]] = defaultdict(list)
    for cell in found:
        p = cell.pair
        by_arms[p.task, p.subset, p.questions, p.first, p.second].append(cell)
    return [
        replace(cell, p_holm=p_holm)
        for own in by_arms.values()
        for cell, p_holm in zip(own, stats.holm([cell.p for cell in own]), strict=True)
    ]
