"""How often the report's 95 % intervals hold the truth, how wide they are, and how often a test raises a false alarm.

    python bench/coverage.py [--times 2000] [--only seeds|single|slopes|retention]

Answers come from a threshold model: a sample is right where skill + seed + story + noise > 0, all of them normal, so
that the true score is known. Scores of MRCR's kind are an exact copy, or a loose likeness. Prints one table each.
"""

import argparse
import itertools
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import ndtri

from evalkit.report import stats
from evalkit.report.resampling import Floats, Observations, difference, single
from evalkit.report.stats import Contrast, Interval

ONE = np.ones(1)
STORY = 1.0
"""Spread of the stories' difficulty; the noise of seed x story has spread 1."""


def observed(values: Floats, cell: np.ndarray, cluster: np.ndarray) -> Observations:
    return Observations(parts=(values,), cell=cell, cluster=cluster)


def answers(rng: np.random.Generator, score: float, seeds: Floats, spread: float, story: Floats) -> Floats:
    """Right or wrong, shape (seeds, samples), right with probability ``score`` over seeds, stories and noise."""
    skill = ndtri(score) * np.sqrt(1 + STORY**2 + spread**2)
    noise = rng.normal(size=(len(seeds), len(story)))
    return (skill + spread * seeds[:, None] + STORY * story + noise > 0).astype(float)


def ratios(rng: np.random.Generator, score: float, story: Floats) -> Floats:
    """Match ratios: 1 where the answer is right, else a likeness of 0.2 on average."""
    exact = (score - 0.2) / 0.8
    right = answers(rng, exact, np.zeros(1), 0.0, story)
    return np.where(right > 0, 1.0, rng.beta(2, 8, right.shape))


Draw = Callable[[np.random.Generator], Observations]


def over_seeds() -> Iterator[tuple[str, Draw, Floats, float]]:
    for num_seeds, paired, spread, gap in itertools.product((3, 5, 10), (True, False), (0.0, 0.15, 0.5), (0.0, 0.2)):

        def draw(rng: np.random.Generator, k=num_seeds, p=paired, s=spread, g=gap) -> Observations:
            story, seeds = rng.normal(size=100), rng.normal(size=(2, k))
            own = (
                np.sqrt(0.5) * (seeds + rng.normal(size=k)) if p else seeds
            )  # half of what a seed does it does to both
            sides = [
                observed(answers(rng, score, seed, s, story), np.zeros(100, np.int64), np.arange(100))
                for score, seed in zip((0.6 + g, 0.6), own, strict=True)
            ]
            return difference(*sides, paired_seeds=p)

        name = f"{num_seeds} seeds, {'paired' if paired else 'unpaired'}, spread {spread}, difference {gap}"
        yield name, draw, ONE, gap


def of_one_seed() -> Iterator[tuple[str, Draw, Floats, float]]:
    for n, per_story, (first, second) in itertools.product(
        (30, 100), (1, 5), ((0.5, 0.5), (0.9, 0.9), (0.98, 0.98), (0.7, 0.5), (0.98, 0.8))
    ):

        def draw(rng: np.random.Generator, n=n, m=per_story, scores=(first, second)) -> Observations:
            story = rng.normal(size=n // m)[np.arange(n) // m]
            a, b = (answers(rng, score, np.zeros(1), 0.0, story) for score in scores)
            return single((a - b)[0], np.arange(n) // m, lowest=-1)

        yield f"right or wrong, n {n}, {per_story} to a story, {first} against {second}", draw, ONE, first - second
    for n, per_story, (first, second) in itertools.product((30, 100), (1, 5), ((0.6, 0.6), (0.9, 0.9), (0.8, 0.6))):

        def draw(rng: np.random.Generator, n=n, m=per_story, scores=(first, second)) -> Observations:
            story = rng.normal(size=n // m)[np.arange(n) // m]
            a, b = (ratios(rng, score, story) for score in scores)
            return single((a - b)[0], np.arange(n) // m, lowest=-1)

        yield f"ratios, n {n}, {per_story} to a story, {first} against {second}", draw, ONE, first - second
    for n, (first, second) in itertools.product((30, 100), ((0.9, 0.9), (0.99, 0.99), (0.7, 0.5))):

        def draw(rng: np.random.Generator, n=n, scores=(first, second)) -> Observations:
            story = np.tile(rng.normal(size=n), 5)
            a, b = (answers(rng, score, np.zeros(1), 0.0, story) for score in scores)
            cell, cluster = np.repeat(np.arange(5), n), np.tile(np.arange(n), 5)
            return difference(observed(a, cell, cluster), observed(b, cell, cluster), paired_seeds=True)

        yield f"mean over 5 lengths, n {n}, {first} against {second}", draw, np.full(5, 0.2), first - second


def of_slopes() -> Iterator[tuple[str, Draw, Floats, float]]:
    weights = stats.slope_weights([4096 * 2**i for i in range(5)])
    for kind, n, shared, (start, fall) in itertools.product(
        ("right or wrong", "ratios"), (30, 100), (True, False), ((0.5, 0.0), (0.9, 0.0), (0.98, 0.0), (0.95, 0.1))
    ):
        scores = start - fall * np.arange(5)

        def draw(rng: np.random.Generator, kind=kind, n=n, shared=shared, scores=scores) -> Observations:
            stories = np.tile(rng.normal(size=n), (5, 1)) if shared else rng.normal(size=(5, n))
            rows = [
                ratios(rng, score, story) if kind == "ratios" else answers(rng, score, np.zeros(1), 0.0, story)
                for score, story in zip(scores, stories, strict=True)
            ]
            cluster = np.tile(np.arange(n), 5) if shared else np.arange(5 * n)
            return observed(np.concatenate(rows, axis=1), np.repeat(np.arange(5), n), cluster)

        stories = "same" if shared else "other"
        yield f"slope, {kind}, n {n}, {stories} stories, {start} falling {fall}", draw, weights, -fall


def of_retention() -> Iterator[tuple[str, Draw, Floats, float]]:
    for n, shared, (inside, outside) in itertools.product(
        (30, 100), (True, False), ((0.9, 0.9), (0.98, 0.98), (0.95, 0.5), (0.5, 0.1), (0.5, 0.5))
    ):

        def draw(rng: np.random.Generator, n=n, shared=shared, scores=(inside, outside)) -> Observations:
            stories = np.tile(rng.normal(size=n), (2, 1)) if shared else rng.normal(size=(2, n))
            rows = [answers(rng, p, np.zeros(1), 0.0, story) for p, story in zip(scores, stories, strict=True)]
            cluster = np.tile(np.arange(n), 2) if shared else np.arange(2 * n)
            return observed(np.concatenate(rows, axis=1), np.repeat([0, 1], n), cluster)

        stories = "same" if shared else "other"
        yield f"retention, n {n}, {stories} stories, {inside} to {outside}", draw, ONE, outside / inside


def measure(name: str, draw: Draw, weights: Floats, truth: float, times: int) -> str:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    found: list[Contrast | Interval] = []
    for _ in range(times):
        obs = draw(rng)
        if name.startswith("retention"):
            found.append(stats.ratio_interval(obs, np.array([0.0, 1.0]), np.array([1.0, 0.0])))
        else:
            found.append(stats.contrast(obs, weights))
    known = [f for f in found if f.low is not None]
    high = np.array([np.inf if f.high is None else f.high for f in known])
    low = np.array([f.low for f in known])
    covered = np.mean((low <= truth + 1e-12) & (truth - 1e-12 <= high))
    row = f"| {name} | {100 * covered:.1f} | {100 * np.median(high - low):.1f} |"
    if not name.startswith("retention"):
        p = np.array([f.p for f in known])
        apart = np.mean(((low > 0) | (high < 0)) != (p < 0.05))
        row += f" {100 * np.mean(p < 0.05):.1f} | {100 * apart:.1f} |"
    return row


TABLES = {"seeds": over_seeds, "single": of_one_seed, "slopes": of_slopes, "retention": of_retention}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=2000)
    parser.add_argument("--only", choices=list(TABLES))
    options = parser.parse_args()
    for table, scenarios in TABLES.items():
        if options.only in (None, table):
            columns = "| data | coverage % | median width | p < 0.05 % | interval and p disagree % |"
            print(columns, "|---|---:|---:|---:|---:|", sep="\n")
            for name, draw, weights, truth in scenarios():
                print(measure(name, draw, weights, truth, options.times), flush=True)


if __name__ == "__main__":
    main()
