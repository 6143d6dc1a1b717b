"""The arms of the comparison. A recipe is two fields; base, samples, order, steps, learning rate and seed are shared.

    recipe                          positions in training           rope in training
    plain                           0 .. n-1                        as the base
    yarn                            0 .. n-1                        YaRN, factor s
    rpe                             random, sorted, curriculum      as the base
    randomized-yarn                 random, sorted, curriculum      YaRN, factor s
    rpe-no-curriculum               random, sorted, full range      as the base
    randomized-yarn-no-curriculum   random, sorted, full range      YaRN, factor s

Source: arXiv 2606.23687. At inference all arms stand at 0 .. N-1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from evalkit.errors import BadInput
from evalkit.train.positions import PAPER_STAGES, PositionRule

TrainedRope: TypeAlias = Literal["none", "yarn"]

RECIPES: tuple[str, ...] = (
    "plain",
    "yarn",
    "rpe",
    "randomized-yarn",
    "rpe-no-curriculum",
    "randomized-yarn-no-curriculum",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one arm is trained."""

    positions: PositionRule
    rope: TrainedRope


def make_recipe(
    name: str,
    *,
    stages: Sequence[float] = PAPER_STAGES,
    mixed: bool = False,
    per_batch: bool = False,
    pose: bool = False,
) -> Recipe:
    """Return a recipe by its name.

    Args:
        name: one of ``RECIPES``.
        stages: ratios of the curriculum, see ``PositionRule``; without curriculum the last one holds throughout.
        mixed: see ``PositionRule``.
        per_batch: see ``PositionRule``.
        pose: draw the random positions as two shifted chunks instead of one by one.

    Raises:
        BadInput: there is no such recipe, or the stages cannot be used.
    """
    if name not in RECIPES:
        raise BadInput(f"There is no recipe {name!r}; choose one of {', '.join(RECIPES)}.")
    rule = PositionRule(kind="pose" if pose else "randomized", stages=tuple(stages), mixed=mixed, per_batch=per_batch)
    if name.endswith("-no-curriculum"):
        rule = replace(rule, stages=rule.stages[-1:])
    contiguous = name in ("plain", "yarn")
    return Recipe(positions=PositionRule() if contiguous else rule, rope="yarn" if "yarn" in name else "none")
