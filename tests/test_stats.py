"""Intervals cover what they promise, also near 0 and 100; paired answers agree with the textbook where there is one."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalkit.report import stats
from evalkit.report.resampling import Draws, Observations, difference, single

ONE = np.ones(1)
PROPORTIONS = (0.02, 0.5, 0.98)


def slack(n: int) -> float:
    """How far below 95 % the coverage of an interval may lie."""
    return 0.03 if n == 30 else 0.015


def clustered_answers(rng: np.random.Generator, n: int, per_story: int, alike: float, p: float) -> np.ndarray:
    """Right-or-wrong answers to ``n`` questions; ``alike`` is the correlation within a story."""
    story = np.arange(n) // per_story
    num_stories = story.max() + 1
    if alike == 1:
        return (rng.random(num_stories) < p)[story].astype(float)
    easy = rng.beta(p * (1 - alike) / alike, (1 - p) * (1 - alike) / alike, num_stories) if alike else np.full(n, p)
    return (rng.random(n) < easy[story]).astype(float)


def coverage(draw: Callable[[], Observations], truth: float, times: int) -> tuple[float, float]:
    """Share of intervals that hold the truth, and their mean width."""
    found = [stats.mean_interval(draw(), ONE) for _ in range(times)]
    inside = [i.low <= truth + 1e-12 and truth - 1e-12 <= i.high for i in found]
    return float(np.mean(inside)), float(np.mean([i.high - i.low for i in found]))


@pytest.mark.parametrize("p", PROPORTIONS)
@pytest.mark.parametrize("n", [30, 100, 1000])
def test_accuracies_of_independent_samples_are_covered(n: int, p: float) -> None:
    # Exact: every number of right answers, weighted by its probability.
    right = np.arange(n + 1)
    within = [stats.wilson(k / n, n) for k in right]
    likely = scipy_stats.binom.pmf(right, n, p)
    covered = sum(weight for (low, high), weight in zip(within, likely, strict=True) if low <= p <= high)
    width = sum(weight * (high - low) for (low, high), weight in zip(within, likely, strict=True))
    assert covered >= 0.95 - slack(n)
    assert width <= 1.5 * 2 * 1.96 * np.sqrt(p * (1 - p) / n) + 4 / n


def check_clustered(story_sizes: tuple[int, ...], times: int, seed: int) -> None:
    for n, per_story, alike, p in itertools.product((30, 100, 1000), story_sizes, (0.0, 0.3, 1.0), PROPORTIONS):
        rng = np.random.default_rng([seed, n, per_story, int(10 * alike), int(100 * p)])
        story = np.arange(n) // per_story
        draw = lambda: single(clustered_answers(rng, n, per_story, alike, p), story)  # noqa: B023, E731
        covered, width = coverage(draw, p, times)
        noise = 2 * np.sqrt(0.05 * 0.95 / times)
        assert covered >= 0.95 - slack(n) - noise, (n, per_story, alike, p, covered)
        effective = n / (1 + (per_story - 1) * alike)
        fair = 2 * 1.96 * np.sqrt(p * (1 - p) / effective)
        assert width <= 1.5 * fair + 5 * per_story / n, (n, per_story, alike, p, width, fair)


def test_accuracies_of_samples_that_share_stories_are_covered() -> None:
    check_clustered((5,), times=100, seed=0)


def test_an_average_of_cells_near_0_and_near_100_is_covered() -> None:
    p, n, times = np.array([0.99, 0.99, 0.99, 0.99, 0.01]), 100, 400
    rng, cell, weights = np.random.default_rng(3), np.repeat(np.arange(5), n), np.full(5, 0.2)
    found = []
    for _ in range(times):
        answers = (rng.random(5 * n) < p[cell]).astype(float)
        found.append(
            stats.mean_interval(Observations(parts=(answers[None],), cell=cell, cluster=np.arange(5 * n)), weights)
        )
    covered = np.mean([i.low <= p.mean() <= i.high for i in found])
    assert covered >= 0.95 - slack(n)
    assert np.mean([i.high - i.low for i in found]) <= 0.025  # the binomial says 0.0175


@pytest.mark.slow
def test_accuracies_of_samples_that_share_stories_are_covered_closely() -> None:
    check_clustered((2, 5, 10), times=1200, seed=1)


def ratios(rng: np.random.Generator, shape: int, p: float) -> np.ndarray:
    """Match ratios as MRCR gives them: an exact copy or a loose likeness; the mean is ``p``."""
    if p == 0.02:
        return np.where(rng.random(shape) < 0.1, rng.beta(2, 8, shape), 0.0)
    exact = (p - 0.2) / 0.8
    return np.where(rng.random(shape) < exact, 1.0, rng.beta(2, 8, shape))


def check_ratios(times: int, seed: int) -> None:
    for n, per_story, p in itertools.product((30, 100, 1000), (1, 5), PROPORTIONS):
        rng = np.random.default_rng([seed, n, per_story, int(100 * p)])
        story = np.arange(n) // per_story

        def draw() -> Observations:
            own, shared = ratios(rng, n, p), ratios(rng, n, p)[story]  # noqa: B023
            return single(np.where(rng.random(n) < 0.5, own, shared) if per_story > 1 else own, story)  # noqa: B023

        covered, width = coverage(draw, p, times)
        noise = 2 * np.sqrt(0.05 * 0.95 / times)
        assert covered >= 0.95 - slack(n) - noise, (n, per_story, p, covered)
        bernoulli = 2 * 1.96 * np.sqrt(p * (1 - p) * per_story / n)
        assert width <= 1.5 * bernoulli + 5 * per_story / n, (n, per_story, p, width, bernoulli)


def test_ratios_are_covered() -> None:
    check_ratios(times=40, seed=0)


@pytest.mark.slow
def test_ratios_are_covered_closely() -> None:
    check_ratios(times=1000, seed=1)


@pytest.mark.slow
def test_differences_are_covered_and_false_alarms_are_rare() -> None:
    times = 800
    for n, per_story, (better, worse) in itertools.product(
        (30, 100, 1000), (1, 5), ((0.02, 0.02), (0.1, 0.05), (0.3, 0.05), (0.25, 0.25))
    ):
        rng = np.random.default_rng([n, per_story, int(100 * better)])
        story = np.arange(n) // per_story
        inside = false_alarm = 0
        for _ in range(times):
            luck = rng.random(n)
            if per_story > 1:
                luck = np.where(rng.random(n) < 0.5, luck, rng.random(n)[story])
            found = stats.contrast(single((luck < better) * 1.0 - (luck > 1 - worse), story, lowest=-1), ONE)
            inside += found.low <= better - worse <= found.high
            false_alarm += better == worse and found.p < 0.05
        assert inside / times >= 0.95 - slack(n) - 0.014, (n, per_story, better, worse, inside)
        assert false_alarm / times <= 0.08, (n, per_story, better, worse, false_alarm)


@pytest.mark.slow
def test_several_seeds_widen_the_interval_to_what_seeds_do() -> None:
    rng, times, inside = np.random.default_rng(7), 400, 0
    for _ in range(times):
        a, b = ((rng.random((3, 200)) < np.clip(p + rng.normal(0, 0.05, (3, 1)), 0, 1)) * 1.0 for p in (0.6, 0.5))
        cell, story = np.zeros(200, dtype=np.int64), np.arange(200)
        arms = (Observations(parts=(side,), cell=cell, cluster=story) for side in (a, b))
        found = stats.contrast(difference(*arms, paired_seeds=False), ONE)
        inside += found.low <= 0.1 <= found.high
    assert inside / times >= 0.92


def test_of_few_seeds_a_p_value_is_small_only_where_the_interval_excludes_0() -> None:
    rng, cell, story = np.random.default_rng(11), np.zeros(100, dtype=np.int64), np.arange(100)
    excluded = 0
    for _ in range(40):
        gaps = rng.uniform(0, 0.6) + rng.normal(0, 0.1, (3, 1))  # a seed moves an arm as it does in life
        a, b = ((rng.random((3, 100)) < np.clip(p, 0, 1)) * 1.0 for p in (0.3 + gaps, np.full((3, 1), 0.3)))
        arms = (Observations(parts=(side,), cell=cell, cluster=story) for side in (a, b))
        found = stats.contrast(difference(*arms, paired_seeds=True), ONE)
        excludes = not found.low <= 0 <= found.high
        excluded += excludes
        assert found.p < 0.06 if excludes else found.p > 0.04, found
    assert 5 < excluded < 35, "this test needs both kinds"


def test_the_average_over_cells_has_the_average_of_their_means() -> None:
    obs = Observations(
        parts=(np.array([[1.0, 1.0, 0.0, 0.0, 0.0, 1.0]]),),
        cell=np.array([0, 0, 1, 1, 1, 1]),
        cluster=np.arange(6),
    )
    assert stats.mean_interval(obs, np.array([0.5, 0.5])).mean == pytest.approx((1.0 + 0.25) / 2)


@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=40),
    per_story=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_an_interval_holds_its_mean_stays_in_0_to_1_and_is_never_empty(values: list[float], per_story: int) -> None:
    found = stats.mean_interval(single(values, [i // per_story for i in range(len(values))]), ONE)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.high - found.low > 0.005


@given(
    values=st.lists(st.sampled_from([-1.0, 0.0, 0.3, 1.0]), min_size=1, max_size=40),
    per_story=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_a_difference_is_never_plus_minus_nothing(values: list[float], per_story: int) -> None:
    found = stats.contrast(single(values, [i // per_story for i in range(len(values))], lowest=-1), ONE)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    assert found.high - found.low > 0.005
    assert 0 < found.p <= 1
    assert found.detectable > 0


def test_no_samples_have_no_interval() -> None:
    assert stats.mean_interval(single([]), ONE).mean is None


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    obs = single(np.random.default_rng(0).random(80))
    assert stats.mean_interval(obs, ONE, seed=3) == stats.mean_interval(obs, ONE, seed=3)
    assert stats.mean_interval(obs, ONE, seed=3) != stats.mean_interval(obs, ONE, seed=4)


def test_bca_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).beta(2, 3, 120)
    ours = stats.mean_interval(single(values), ONE)
    theirs = scipy_stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=0).confidence_interval
    assert ours.method == "bca"
    assert ours.low == pytest.approx(theirs.low, abs=0.003)
    assert ours.high == pytest.approx(theirs.high, abs=0.003)


def test_resamples_of_clusters_vary_as_clusters_do() -> None:
    rng = np.random.default_rng(2)
    story = np.arange(600) // 6
    values = rng.random(100)[story]  # all samples of a story are the same: 100 pieces of information, not 600
    spread = Draws(single(values, story), seed=0).statistic(ONE).std()
    assert spread == pytest.approx(values.std() / 10, rel=0.05)


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_the_smallest_detectable_difference_of_equal_arms_is_seen_four_times_in_five(n: int) -> None:
    detectable = stats.contrast(single(np.zeros(n), lowest=-1), ONE).detectable
    worse = np.arange(n + 1)
    seen = np.array([stats.mcnemar(0, k) < 0.05 for k in worse])
    assert scipy_stats.binom.pmf(worse, n, detectable)[seen].sum() == pytest.approx(0.8)


def test_fewer_than_six_samples_can_show_no_difference() -> None:
    assert stats.contrast(single(np.zeros(5), lowest=-1), ONE).detectable == 1
    assert stats.contrast(single(np.zeros(6), lowest=-1), ONE).detectable < 1


@given(st.integers(0, 200), st.integers(0, 200))
@settings(max_examples=50, deadline=None)
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(better: int, worse: int) -> None:
    expected = scipy_stats.binomtest(better, better + worse, 0.5).pvalue if better + worse else 1.0
    assert stats.mcnemar(better, worse) == pytest.approx(expected)


def test_flipping_signs_of_stories_is_mcnemar_when_each_story_is_one_pair() -> None:
    better, worse = np.ones(7), -np.ones(2)
    values = np.concatenate([better, worse, np.zeros(30)])
    stories = [f"s{i}" for i in range(38)] + ["s37"]  # one shared story, so that McNemar's own test does not apply
    assert stats.contrast(single(values, stories, lowest=-1), ONE).p == pytest.approx(stats.mcnemar(7, 2))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=10, deadline=None)
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    assert stats.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_multiplies_the_smallest_p_value_by_the_number_of_cells() -> None:
    assert stats.holm([0.01, 0.2, 0.04]) == pytest.approx([0.03, 0.2, 0.08])
    assert stats.holm([]) == []


def test_what_seeds_do_to_both_arms_cancels_when_seeds_pair() -> None:
    rng = np.random.default_rng(3)
    good_seed = np.array([[0.3], [-0.3], [0.0]])
    base = np.clip(rng.random((3, 300)) * 0.2 + 0.4 + good_seed, 0, 1)
    cell, story = np.zeros(300, dtype=np.int64), np.arange(300)
    first = Observations(parts=(np.clip(base + 0.1, 0, 1),), cell=cell, cluster=story)
    second = Observations(parts=(base,), cell=cell, cluster=story)
    paired = stats.contrast(difference(first, second, paired_seeds=True), ONE)
    unpaired = stats.contrast(difference(first, second, paired_seeds=False), ONE)
    assert paired.mean == pytest.approx(unpaired.mean)
    assert paired.low > 0.05
    assert unpaired.low < 0 < unpaired.high


def test_octaves_weigh_the_same_however_many_lengths_were_asked_in_them() -> None:
    assert stats.octave_weights([16, 32, 64, 128]) == pytest.approx([0.25] * 4)
    assert stats.octave_weights([16, 64, 128]) == pytest.approx([2 / 4.5, 1.5 / 4.5, 1 / 4.5])
    assert stats.octave_weights([16]) == pytest.approx([1.0])


def test_area_and_slope_of_a_straight_line() -> None:
    lengths = [8192, 16384, 65536, 131072]
    scores = np.array([0.9, 0.8, 0.6, 0.5])
    assert stats.slope_weights(lengths) @ scores == pytest.approx(-0.1)
    assert stats.area_weights(lengths) @ scores == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("lows", "expected"),
    [
        ([0.9, 0.9, 0.9], (64, ">=")),
        ([0.9, 0.9, 0.5], (32, "")),
        ([0.5, 0.9, 0.9], (16, "<")),
        ([0.9, 0.5, 0.9], (16, "")),  # a lucky longer length does not count
    ],
)
def test_effective_length_asks_every_shorter_length_too(lows: list[float], expected: tuple[int, str]) -> None:
    assert stats.effective_length([16, 32, 64], lows, 0.85) == expected


def test_retention_is_the_ratio_of_two_means() -> None:
    rng = np.random.default_rng(4)
    scores = np.concatenate([(rng.random(200) < 0.9), (rng.random(200) < 0.6)]).astype(float)
    obs = Observations(
        parts=(scores[None, :],),
        cell=np.repeat([0, 1], 200),
        cluster=np.tile(np.arange(200), 2),
    )
    found = stats.ratio_interval(obs, np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    assert found.mean == pytest.approx(scores[200:].mean() / scores[:200].mean())
    assert found.low < 0.6 / 0.9 < found.high
    nothing = Observations(parts=(np.zeros((1, 400)),), cell=obs.cell, cluster=obs.cluster)
    assert stats.ratio_interval(nothing, np.array([0.0, 1.0]), np.array([1.0, 0.0])).mean is None


def test_the_slope_of_an_arm_that_is_right_everywhere_is_known_to_be_small() -> None:
    lengths = [4096 * 2**i for i in range(6)]
    for story in (np.arange(180), np.tile(np.arange(30), 6)):  # other stories at each length, or the same ones
        right = Observations(parts=(np.ones((1, 180)),), cell=np.repeat(np.arange(6), 30), cluster=story)
        found = stats.contrast(right, stats.slope_weights(lengths))
        assert found.mean == pytest.approx(0)
        assert -0.03 < found.low < -0.001
        assert found.high == pytest.approx(-found.low)


def test_the_slope_of_an_arm_that_is_right_everywhere_is_not_moved_by_a_length_with_few_samples() -> None:
    cell = np.repeat(np.arange(4), [2, 30, 30, 30])
    right = Observations(parts=(np.ones((1, 92)),), cell=cell, cluster=np.arange(92))
    found = stats.contrast(right, stats.slope_weights([4096, 8192, 16384, 32768]))
    # What two right answers leave open: an accuracy of 0.34 (Wilson) at the shortest length would be a slope of +20.
    assert -0.1 < found.low < 0 < found.high < 0.21
