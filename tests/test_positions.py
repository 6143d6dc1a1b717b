"""Positions are rising, distinct, inside their range, and every set of them is as likely as any other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import BadInput
from evalkit.train.positions import PAPER_STAGES, POSITION_KINDS, PositionRule, draw_positions

rules = st.builds(
    PositionRule,
    kind=st.sampled_from(POSITION_KINDS),
    stages=st.lists(st.floats(1, 32), min_size=1, max_size=6).map(tuple),
    mixed=st.booleans(),
)


@settings(deadline=None, max_examples=200)
@given(rules, st.integers(1, 300), st.integers(0, 200), st.floats(0, 1), st.integers(0, 2**32))
def test_positions_rise_and_stay_inside_the_stage(rule, num_tokens, spare, progress, seed):
    length = num_tokens + spare
    drawn = draw_positions(rule, num_tokens, range_length=length, progress=progress, rng=np.random.default_rng(seed))
    assert drawn.shape == (num_tokens,)
    assert drawn.dtype == np.int64
    assert (np.diff(drawn) >= 1).all()
    assert drawn[0] >= 0
    assert drawn[-1] < max(num_tokens, int(rule.ratio(progress) * length))
    assert drawn[-1] < rule.largest_range(length, num_tokens)


@settings(deadline=None, max_examples=50)
@given(rules, st.integers(1, 64), st.integers(0, 2**32))
def test_the_generator_decides_everything(rule, num_tokens, seed):
    once, again = (
        draw_positions(rule, num_tokens, range_length=64, progress=0.5, rng=np.random.default_rng(seed))
        for _ in range(2)
    )
    assert np.array_equal(once, again)


def test_contiguous_positions_are_those_of_inference():
    drawn = draw_positions(PositionRule(), 5, range_length=8, progress=0.9, rng=np.random.default_rng(0))
    assert drawn.tolist() == [0, 1, 2, 3, 4]


def test_every_set_of_positions_is_equally_likely():
    rule, rng = PositionRule(kind="randomized", stages=(2.0,)), np.random.default_rng(7)
    counts: dict[tuple[int, ...], int] = {}
    draws = 6000
    for _ in range(draws):
        drawn = tuple(draw_positions(rule, 3, range_length=3, progress=0, rng=rng).tolist())
        counts[drawn] = counts.get(drawn, 0) + 1
    expected = draws / 20  # 6 choose 3 sets
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == 20
    assert chi_square < 43.8  # 99.9 % quantile at 19 degrees of freedom


def test_every_position_of_the_range_is_equally_likely():
    rule, rng = PositionRule(kind="randomized", stages=(4.0,)), np.random.default_rng(3)
    hits = np.zeros(256)
    for _ in range(2000):
        hits[draw_positions(rule, 64, range_length=64, progress=0, rng=rng)] += 1
    z = (hits - 500) / np.sqrt(2000 * 0.25 * 0.75)
    assert np.abs(z).max() < 4.5


def test_mixed_ratios_are_log_uniform_up_to_the_stage():
    rule, rng = PositionRule(kind="randomized", stages=(16.0,), mixed=True), np.random.default_rng(5)
    reach = [draw_positions(rule, 512, range_length=512, progress=0, rng=rng)[-1] / 512 for _ in range(800)]
    octaves = np.histogram(np.log2(reach), bins=[-0.1, 1, 2, 3, 4])[0]
    assert octaves.sum() == 800
    assert np.abs(octaves - 200).max() < 60


def test_the_curriculum_moves_at_equal_parts_of_the_training():
    rule = PositionRule(kind="randomized", stages=PAPER_STAGES)
    assert [rule.ratio(p) for p in (0, 0.19, 0.2, 0.4, 0.6, 0.8, 1.0)] == [1, 1, 1.25, 1.5, 2, 2, 2]
    assert rule.largest_range(8192, 8192) == 16384


@pytest.mark.parametrize("kind", ["randomized", "pose"])
def test_a_sample_beyond_its_stages_range_has_its_own_length_for_a_range(kind):
    """The paper's longest sample has 9,216 tokens, and its first stage 8,192 positions."""
    rule = PositionRule(kind=kind, stages=(1.0, 2.0))
    first, later = (
        draw_positions(rule, 9216, range_length=8192, progress=progress, rng=np.random.default_rng(0))
        for progress in (0, 0.5)
    )
    assert np.array_equal(first, np.arange(9216))
    assert 9216 < later[-1] < 16384
    assert (rule.largest_range(8192, 9216), rule.largest_range(4096, 9216)) == (16384, 9216)


def test_a_pose_sample_is_two_runs():
    rule, rng = PositionRule(kind="pose", stages=(8.0,)), np.random.default_rng(1)
    for _ in range(100):
        drawn = draw_positions(rule, 32, range_length=32, progress=0, rng=rng)
        assert drawn[0] == 0
        assert (np.diff(drawn) > 1).sum() <= 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PositionRule(kind="random"), "unknown"),
        (lambda: PositionRule(kind="randomized", stages=()), "at least one stage"),
        (lambda: PositionRule(kind="randomized", stages=(1.0, 0.5)), "0.5 x the range length"),
        (lambda: PositionRule(kind="pose", stages=(float("nan"),)), "range length"),
    ],
)
def test_a_range_that_is_none_is_refused(make, says):
    with pytest.raises(BadInput, match=says):
        make()
