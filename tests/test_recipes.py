"""An arm differs from its control in exactly one of two fields."""

import pytest

from evalkit.errors import BadInput
from evalkit.train.positions import PAPER_STAGES
from evalkit.train.recipes import RECIPES, make_recipe


def test_the_arms_are_the_table_of_positions_and_rope():
    table = {name: (make_recipe(name).positions.kind, make_recipe(name).rope) for name in RECIPES}
    assert table == {
        "plain": ("contiguous", "none"),
        "yarn": ("contiguous", "yarn"),
        "rpe": ("randomized", "none"),
        "randomized-yarn": ("randomized", "yarn"),
        "rpe-no-curriculum": ("randomized", "none"),
        "randomized-yarn-no-curriculum": ("randomized", "yarn"),
        "pose": ("pose", "none"),
        "yarn-pose": ("pose", "yarn"),
    }


def test_without_curriculum_the_final_range_holds_from_the_start():
    assert make_recipe("rpe").positions.stages == PAPER_STAGES
    ablation = make_recipe("rpe-no-curriculum", stages=(1, 4, 16), mixed=True).positions
    assert (ablation.stages, ablation.mixed) == ((16,), True)


def test_an_unknown_recipe_is_answered_with_those_there_are():
    with pytest.raises(BadInput, match=r"no recipe 'ryarn'; choose one of plain, yarn"):
        make_recipe("ryarn")
