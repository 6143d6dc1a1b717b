"""The arms of the comparison. A recipe is two fields; base, samples, order, steps, learning rate and seed are shared.

    recipe                          positions in training           rope in training
    plain                           0 .. n-1                        as the base
    yarn                            0 .. n-1                        YaRN, factor s
    rpe                             random, sorted, curriculum      as the base
    randomized-yarn                 random, sorted, curriculum      YaRN, factor s
    rpe-no-curriculum               random, sorted, full range      as the base
    randomized-yarn-no-curriculum   random, sorted, full range      YaRN, factor s
    pose                            two chunks with a gap           as the base
    yarn-pose                       two chunks with a gap           YaRN, factor s

Source: arXiv 2606.23687; PoSE: arXiv 2309.10400. The chunks of PoSE lie below the same ranges as random positions do:
one stage is PoSE's own target length; that a sample may be cut anywhere, and not in its first half alone as by PoSE's
authors, is a choice of ours. At inference all arms stand at 0 .. N-1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from evalkit.errors import BadInput
from evalkit.train.positions import PAPER_STAGES, PositionKind, PositionRule

TrainedRope: TypeAlias = Literal["none", "yarn"]

_ARMS: dict[str, tuple[PositionKind, TrainedRope]] = {
    "plain": ("contiguous", "none"),
    "yarn": ("contiguous", "yarn"),
    "rpe": ("randomized", "none"),
    "randomized-yarn": ("randomized", "yarn"),
    "rpe-no-curriculum": ("randomized", "none"),
    "randomized-yarn-no-curriculum": ("randomized", "yarn"),
    "pose": ("pose", "none"),
    "yarn-pose": ("pose", "yarn"),
}
RECIPES: tuple[str, ...] = tuple(_ARMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one arm is trained."""

    positions: PositionRule
    rope: TrainedRope


def make_recipe(
    name: str, *, stages: Sequence[float] = PAPER_STAGES, mixed: bool = False, per_batch: bool = False
) -> Recipe:
    """Return a recipe by its name.

    Args:
        name: one of ``RECIPES``.
        stages: ratios of the curriculum, see ``PositionRule``; without curriculum the last one holds throughout.
        mixed: see ``PositionRule``.
        per_batch: see ``PositionRule``.

    Raises:
        BadInput: there is no such recipe, or the stages cannot be used.
    """
    if name not in RECIPES:
        raise BadInput(f"There is no recipe {name!r}; choose one of {', '.join(RECIPES)}.")
    kind, rope = _ARMS[name]
    rule = PositionRule(kind=kind, stages=tuple(stages), mixed=mixed, per_batch=per_batch)
    if kind == "contiguous":
        rule = PositionRule()
    elif name.endswith("-no-curriculum"):
        rule = replace(rule, stages=rule.stages[-1:])
    return Recipe(positions=rule, rope=rope)
