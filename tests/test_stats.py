"""Intervals cover what they promise, also near 0 and 100; paired answers agree with the textbook where there is one."""

import itertools
from collections.abc import Callable
from dataclasses import replace

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
    times = 2000
    noise = 2 * np.sqrt(0.05 * 0.95 / times)
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
        assert inside / times >= 0.95 - slack(n) - noise, (n, per_story, better, worse, inside)
        assert false_alarm / times <= 0.06 + noise, (n, per_story, better, worse, false_alarm)


def seeds_of_two_arms(
    rng: np.random.Generator, num_seeds: int, *, paired: bool, spread: float, gap: float, n: int = 100
) -> Observations:
    """Two arms of several seeds: a sample is right where skill + seed + story + noise > 0, all of them normal.

    Paired seeds do half of what they do to both arms.
    """
    story, seeds = rng.normal(size=n), rng.normal(size=(2, num_seeds))
    if paired:
        seeds = (seeds + rng.normal(size=num_seeds)) * np.sqrt(0.5)
    total = np.sqrt(2 + spread**2)
    sides = []
    for score, seed in zip((0.6 + gap, 0.6), seeds, strict=True):
        skill = scipy_stats.norm.ppf(score) * total
        right = skill + spread * seed[:, None] + story + rng.normal(size=(num_seeds, n)) > 0
        sides.append(Observations(parts=(right * 1.0,), cell=np.zeros(n, dtype=np.int64), cluster=np.arange(n)))
    return difference(*sides, paired_seeds=paired)


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_over_seeds_count_the_noise_of_seed_and_story_once(paired: bool) -> None:
    # Seeds that differ in nothing but that noise: counted twice, five of them covered 100 % at a width of 18 points.
    rng = np.random.default_rng(5)
    found = [stats.contrast(seeds_of_two_arms(rng, 5, paired=paired, spread=0.0, gap=0.1), ONE) for _ in range(300)]
    assert np.mean([c.low <= 0.1 <= c.high for c in found]) >= 0.95
    assert np.median([c.high - c.low for c in found]) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("paired", [True, False])
def test_differences_over_seeds_are_covered(num_seeds: int, paired: bool) -> None:
    times = 1500
    noise = 2 * np.sqrt(0.05 * 0.95 / times)
    for spread, gap in itertools.product((0.0, 0.15, 0.5), (0.0, 0.2)):
        rng = np.random.default_rng([num_seeds, paired, int(100 * spread), int(10 * gap)])
        draws = (seeds_of_two_arms(rng, num_seeds, paired=paired, spread=spread, gap=gap) for _ in range(times))
        found = [stats.contrast(obs, ONE) for obs in draws]
        covered = np.mean([c.low <= gap <= c.high for c in found])
        assert 0.94 - noise <= covered <= 0.995, (spread, gap, covered)


def test_the_interval_over_seeds_is_never_narrower_than_over_stories_or_over_seeds_alone() -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        obs = seeds_of_two_arms(rng, 3, paired=True, spread=0.2, gap=0.0)
        over_both = stats.contrast(obs, ONE).error
        averaged = replace(obs, parts=(obs.combined[None],))
        assert over_both >= stats.contrast(averaged, ONE).error - 1e-9
        assert over_both >= obs.parts[0].mean(axis=1).std(ddof=1) / np.sqrt(3) - 1e-9


@pytest.mark.parametrize("paired", [True, False])
def test_over_seeds_too_a_p_value_is_small_exactly_where_the_interval_leaves_out_0(paired: bool) -> None:
    rng = np.random.default_rng(11)
    leaves_out = []
    for gap in np.linspace(0, 0.35, 60):
        found = stats.contrast(seeds_of_two_arms(rng, 3, paired=paired, spread=0.2, gap=gap), ONE)
        leaves_out.append(not found.low <= 0 <= found.high)
        assert leaves_out[-1] == (found.p < 0.05), found
    assert 10 < sum(leaves_out) < 50, "this test needs both kinds"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["right or wrong", "ratios"])
@pytest.mark.parametrize("shared", [True, False])
def test_of_30_samples_a_slope_of_0_seldom_seems_one(kind: str, shared: bool) -> None:
    times, weights = 4000, stats.slope_weights([4096 * 2**i for i in range(5)])
    for p in (0.5, 0.9):
        rng = np.random.default_rng([shared, int(10 * p)])
        cell, story = np.repeat(np.arange(5), 30), np.tile(np.arange(30), 5) if shared else np.arange(150)
        found = []
        for _ in range(times):
            luck = rng.random(30)[story] if shared else 0.0
            scores = ratios(rng, 150, p) if kind == "ratios" else (rng.random(150) < p) * 1.0
            scores = np.where((rng.random(150) < 0.5) & shared, (luck < p) * 1.0, scores)
            found.append(stats.contrast(Observations(parts=(scores[None],), cell=cell, cluster=story), weights))
        alarms = np.mean([c.p < 0.05 for c in found])
        assert alarms <= 0.065, (p, alarms)


def test_equivalence_needs_an_interval_within_the_margin() -> None:
    values = np.concatenate([np.ones(10), -np.ones(10), np.zeros(980)])
    alike = stats.contrast(single(values, lowest=-1), ONE)
    assert alike.p_equivalent(0.03) < 0.001
    assert alike.p_equivalent(0.002) > 0.05
    half = 1.645 * alike.error  # the 90 % interval, which belongs to two one-sided tests at 5 %
    assert alike.p_equivalent(half + 0.0005) < 0.05 < alike.p_equivalent(half - 0.0005)
    apart = stats.contrast(single(np.concatenate([np.ones(100), np.zeros(900)]), lowest=-1), ONE)
    assert apart.p_equivalent(0.03) > 0.99


@pytest.mark.parametrize(("inside", "outside"), [(30, 30), (30, 12), (25, 3), (12, 0)])
def test_a_ratio_is_held_exactly_where_the_difference_it_makes_is_not_shown(inside: int, outside: int) -> None:
    scores = np.concatenate([np.arange(30) < inside, np.arange(30) < outside]).astype(float)
    obs = Observations(parts=(scores[None],), cell=np.repeat([0, 1], 30), cluster=np.arange(60))
    found = stats.ratio_interval(obs, np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    assert found.mean == pytest.approx(outside / inside)
    assert found.high is not None
    assert 0 <= found.low <= found.mean <= found.high
    just_beyond = stats.contrast(obs, np.array([-found.high * 1.001, 1.0]))
    just_within = stats.contrast(obs, np.array([-found.high * 0.999, 1.0]))
    assert just_beyond.p < 0.05 < just_within.p


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
    seen = np.array([stats.contrast(single(-1.0 * (np.arange(n) < k), lowest=-1), ONE).p < 0.05 for k in worse])
    assert scipy_stats.binom.pmf(worse, n, detectable)[seen].sum() == pytest.approx(0.8)


def of_stories(values: np.ndarray) -> Observations:
    """Observations of one cell, from an array of shape (stories, samples of each)."""
    stories, each = values.shape
    cell, cluster = np.zeros(stories * each, dtype=int), np.repeat(np.arange(stories), each)
    return Observations(parts=(values.reshape(1, -1),), cell=cell, cluster=cluster, lowest=-1.0)


def test_several_samples_of_a_story_show_smaller_differences_than_one() -> None:
    one, two, five = (stats.contrast(of_stories(np.zeros((12, n))), ONE).detectable for n in (1, 2, 5))
    assert five < two < one
    rng = np.random.default_rng(0)
    drawn = (stats.contrast(of_stories(-1.0 * (rng.random((12, 2)) < two)), ONE) for _ in range(400))
    assert np.mean([found.p < 0.05 for found in drawn]) == pytest.approx(0.8, abs=0.06)


def test_fewer_than_six_samples_can_show_no_difference() -> None:
    assert stats.contrast(single(np.zeros(5), lowest=-1), ONE).detectable == 1
    assert stats.contrast(single(np.zeros(6), lowest=-1), ONE).detectable < 1


@given(better=st.integers(0, 60), worse=st.integers(0, 60), equal=st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_the_interval_leaves_out_0_exactly_where_p_is_small_and_p_is_near_that_of_mcnemar(
    better: int, worse: int, equal: int
) -> None:
    values = np.concatenate([np.ones(better), -np.ones(worse), np.zeros(equal)])
    found = stats.contrast(single(values, lowest=-1), ONE)
    assert (found.low > 0 or found.high < 0) == (found.p < 0.05)
    if better + worse > 20 and equal > 20:
        exact = scipy_stats.binomtest(better, better + worse, 0.5).pvalue
        assert found.p == pytest.approx(exact, abs=0.15)
        assert found.p < 0.001 or exact > 0.0005 or found.p < 5 * exact + 0.001


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=10, deadline=None)
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    assert stats.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@given(st.integers(0, 500), st.floats(0.5, 500))
@settings(max_examples=100, deadline=None)
def test_wilson_agrees_with_statsmodels(right: int, n: float) -> None:
    from statsmodels.stats.proportion import proportion_confint

    mean = right / 500
    expected = proportion_confint(mean * n, n, alpha=0.05, method="wilson")
    assert stats.wilson(mean, n) == pytest.approx(expected, rel=1e-11, abs=1e-14)


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
    intervals = [(low, low + 0.1) for low in lows]
    assert stats.effective_length([16, 32, 64], intervals, 0.85) == expected


def test_whether_the_shortest_length_holds_is_not_known_where_its_interval_holds_the_threshold() -> None:
    assert stats.effective_length([16, 32], [(0.6, 0.97), (0.6, 0.97)], 0.85) == (16, "?")


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
    assert found.high - found.low < 0.2
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
