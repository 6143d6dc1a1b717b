"""Published counts beside runs: arms without samples, shown in tables and curves and compared by no test."""

from collections.abc import Sequence
from typing import NamedTuple

from evalkit.errors import BadInput
from evalkit.lengths import parse_length
from evalkit.report.arms import Arm
from evalkit.report.estimates import CellScore
from evalkit.report.panel import Panel
from evalkit.report.published import Count, Published, arm_names


class Beside(NamedTuple):
    """What is shown of published tables."""

    arms: tuple[Arm, ...] = ()
    cells: tuple[CellScore, ...] = ()
    notes: tuple[str, ...] = ()


def beside(published: Published, panels: Sequence[Panel], arms: Sequence[Arm]) -> Beside:
    """Return the quoted counts of cells that runs were asked, under each task's official score.

    Raises:
        BadInput: no row stands for a task, subset and length that was asked, or an arm has the name of one of ours.
    """
    official = {panel.task: panel for panel in panels if panel.scorer == "official"}
    quoted = [c for c in published.counts if c.quoted and not c.zone]
    shown = [c for c in quoted if c.task in official and (c.subset, c.length) in official[c.task].cells]
    means = [m for m in published.means if m.task in official and set(m.lengths) & set(official[m.task].lengths)]
    if not shown and not means:
        asked = "; ".join(f"{t} {', '.join(p.subsets)} at {', '.join(p.lengths)}" for t, p in official.items())
        there = sorted({(c.task, c.subset, parse_length(c.length), c.length) for c in quoted})
        what = "; ".join(f"{task} {subset} at {length}" for task, subset, _, length in there[:3]) or "no quoted count"
        raise BadInput(
            f"Nothing in {', '.join(published.files)} was asked of these runs too: it has {what}"
            f"{' and more' if len(there) > 3 else ''}, and they have {asked}."
        )
    names = arm_names(shown, always=("model",))
    _refuse_our_names(shown, names, arms)
    cells = tuple(_cell(c, names[c.where]) for c in sorted(shown, key=lambda c: parse_length(c.length)))
    recipes = {names[c.where]: c.recipe for c in shown}
    new = tuple(
        Arm(name=name, runs=(), trained_length=None, published_recipe=recipe) for name, recipe in recipes.items()
    )
    note = (
        f"Published ({published.sources}): other people's checkpoints and samples, for orientation. Intervals come "
        "from the number of questions alone, and nothing here is paired with a run."
    )
    return Beside(new, cells, (note,))


def _refuse_our_names(shown: Sequence[Count], names: dict[str, str], arms: Sequence[Arm]) -> None:
    ours = {arm.name for arm in arms}
    for c in shown:
        if names[c.where] in ours:
            raise BadInput(
                f"{c.where}: arm {names[c.where]!r} has the name of an arm of the runs; give it another name, or "
                "say in a column 'model' whose it is."
            )


def _cell(c: Count, arm: str) -> CellScore:
    return CellScore(
        run="",
        arm=arm,
        task=c.task,
        subset=c.subset,
        length=c.length,
        scorer="official",
        n=c.n,
        n_unscored=0,
        n_unfinished=0,
        num_models=1,
        interval=c.interval,
        chance=None,
        source=c.source,
    )
