"""Scores over length as lines: apart where they coincide, and named at their ends."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evalkit.report.analysis import Analysis
from evalkit.report.arms import Arm
from evalkit.report.cells import percent
from evalkit.report.drawing import fitted_names, part_id
from evalkit.report.estimates import CellScore
from evalkit.report.naming import short_names
from evalkit.report.style import FAINT, Look, few_in_colour, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_IN_COLOUR = 12
"""Arms that a report's figure tells apart by colour, line and marker."""
FEW = 5
"""Arms in colour where there are more than that, or in a paper."""
_DODGE = 0.05
"""Octaves between the points of two arms at one length."""
_WIDEST_DODGE = 0.36


class Line(NamedTuple):
    """One arm over the lengths: where its points stand, and 0 to 100."""

    arm: str
    places: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def arm_looks(
    analysis: Analysis, task: str, *, most: int = MOST_IN_COLOUR, chosen: Sequence[str] = ()
) -> dict[str, Look]:
    """Return the looks of all arms: each its own up to ``most`` arms, else a few in colour and the others grey.

    Args:
        analysis: of all runs.
        task: by whose scores the few are found, where none are chosen.
        most: arms that are told apart.
        chosen: those in colour.
    """
    if chosen or len(analysis.arms) > most:
        style = few_in_colour(analysis.arms, chosen or prominent(analysis, task))
    else:
        style = looks(analysis.arms)
    labels = short_names(analysis.labels(task).values(), 200)
    return {
        name: replace(look, label=labels[label])
        for (name, look), label in zip(style.items(), analysis.labels(task).values(), strict=True)
    }


def prominent(analysis: Analysis, task: str, most: int = FEW) -> tuple[str, ...]:
    """Return the few arms of many that are shown, or shown in colour: the baseline and those with the highest means."""
    scorer = analysis.scorers(task)[0]
    means = {s.arm: s.overall.mean or 0.0 for s in analysis.summaries if (s.task, s.scorer) == (task, scorer)}
    others = [arm.name for arm in analysis.arms[1:] if arm.name in means and not arm.control]
    best = sorted(others, key=lambda name: -means[name])[: most - 1]
    return (analysis.arms[0].name, *(name for name in others if name in best))


def score_lines(cells: Sequence[CellScore], places: Mapping[str, float]) -> list[Line]:
    """Return a line for each arm that has scores among some cells."""
    scored = [c for c in cells if c.interval.mean is not None]
    found = []
    for arm in dict.fromkeys(c.arm for c in scored):
        own = [c for c in scored if c.arm == arm]
        ends = [[100 * (getattr(c.interval, end) or 0.0) for c in own] for end in ("mean", "low", "high")]
        found.append(Line(arm, [places[c.length] for c in own], *ends))
    return found


def score_points(panel: str, cells: Sequence[CellScore]) -> list[dict[str, Any]]:
    """Return the rows of ``Drawing.points`` for lines of some cells that have scores."""
    return [
        {
            "panel": panel,
            "arm": c.arm,
            "subset": c.subset,
            "length": c.length,
            "score": percent(c.interval.mean),
            "ci_low": percent(c.interval.low),
            "ci_high": percent(c.interval.high),
            "n": c.n,
        }
        for c in cells
    ]


def draw_lines(
    axes: "Axes", lines: Sequence[Line], style: Mapping[str, Look], *, bands: bool = True, scale: float = 1.0
) -> list[Line]:
    """Draw lines with 95 % bands, grey ones below, and return them as they were drawn.

    Points of several arms at one length stand a little apart, in the order of the arms. Nothing is cut off at the ends
    of the axis, unless the axis shows a part of the range. ``scale``: of lines and markers.
    """
    told_apart = [line.arm for line in lines if style[line.arm].colour != FAINT]
    step = min(_DODGE, _WIDEST_DODGE / max(1, len(told_apart) - 1))
    low, high = axes.get_ylim()
    pale = 0.15 if len(told_apart) <= FEW else 0.07  # many bands above each other are mud
    drawn = []
    for line in lines:
        look, is_faint = style[line.arm], line.arm not in told_apart
        shift = 0.0 if is_faint else step * (told_apart.index(line.arm) - (len(told_apart) - 1) / 2)
        line = line._replace(places=[place + shift for place in line.places])
        drawn.append(line)
        inside = [low <= y <= high for y in line.mean]
        looks_like: dict[str, Any] = {"color": look.colour, "marker": look.marker or None, "markersize": 4 * scale}
        axes.plot(
            line.places, line.mean, linestyle=look.line, linewidth=scale * (0.8 if is_faint else 1.6), label=look.label,
            zorder=2 if is_faint else 3, clip_on=not all(inside), gid=part_id(axes, look, "line"), **looks_like,
        )  # fmt: skip
        if not all(inside) and look.marker:
            shown = [(x, y) for x, y, i in zip(line.places, line.mean, inside, strict=True) if i]
            axes.plot(*zip(*shown, strict=True), linestyle="none", clip_on=False, zorder=3, **looks_like)
        if is_faint:
            continue
        if len(line.places) > 1 and bands:
            axes.fill_between(
                line.places, line.low, line.high, color=look.colour, alpha=pale, linewidth=0,
                gid=part_id(axes, look, "band"),
            )  # fmt: skip
        elif bands or len(line.places) == 1:
            bars = axes.vlines(line.places, line.low, line.high, color=look.colour, linewidth=1)
            bars.set_gid(part_id(axes, look, "band"))
    return drawn


def name_at_ends(axes: "Axes", lines: Sequence[Line], style: Mapping[str, Look], *, room: float, size: float) -> None:
    """Write each line's name beside its end, moved up or down where two would overlap; grey ones if all have room.

    Args:
        axes: with its limits set; its place in the figure must be final.
        lines: from ``draw_lines``.
        style: of all arms.
        room: points to the right of the axes.
        size: of the letters, points.
    """
    box = axes.get_window_extent()
    width, height = (72 * pixels / axes.figure.dpi for pixels in (box.width, box.height))
    low, high = axes.get_ylim()
    off = {line.arm: " ↓" if line.mean[-1] < low else " ↑" if line.mean[-1] > high else "" for line in lines}
    arrows = 1.5 * size * any(off.values())
    names = fitted_names((style[line.arm].label for line in lines), room - 12 - arrows, size, lines=3)
    texts = {line.arm: names[style[line.arm].label] + off[line.arm] for line in lines}
    tall = {arm: (text.count("\n") + 1) * size * 1.12 + 0.5 for arm, text in texts.items()}
    named = sorted(lines, key=lambda line: line.mean[-1])
    if sum(tall.values()) > height + size:
        named = [line for line in named if style[line.arm].colour != FAINT]
    leader = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)}
    wanted = [(min(max(line.mean[-1], low), high) - low) / (high - low) * height for line in named]
    for line, y in zip(named, spread(wanted, [tall[line.arm] for line in named], height), strict=True):
        look = style[line.arm]
        axes.annotate(
            texts[line.arm],
            (line.places[-1], min(max(line.mean[-1], low), high)),
            xytext=(1 + 10 / width, y / height),
            textcoords="axes fraction",
            fontsize=size,
            color="#8a8a8a" if look.colour == FAINT else look.colour,
            va="center",
            linespacing=1.0,
            annotation_clip=False,
            arrowprops=None if off[line.arm] else leader | {"color": look.colour, "gid": part_id(axes, look, "leader")},
            gid=part_id(axes, look, "name"),
        )


def spread(wanted: Sequence[float], heights: Sequence[float], top: float) -> list[float]:
    """Return places for labels, as near to those wanted as can be without overlap, from 0 to ``top``.

    Args:
        wanted: middles, from the lowest to the highest.
        heights: of the labels.
        top: of the axis. Where the labels are taller together, they go beyond both ends alike.
    """

    def lower_end(members: Sequence[int]) -> float:
        tall = [heights[k] for k in members]
        below = np.cumsum([0.0, *tall[:-1]])
        mean = np.mean([wanted[k] - heights[k] / 2 - b for k, b in zip(members, below, strict=True)])
        return float(max(-tall[0] / 2, min(mean, top + tall[-1] / 2 - sum(tall))))

    groups: list[tuple[list[int], float]] = []  # labels that touch, and the lower end of the first
    for i in range(len(wanted)):
        members, start = [i], lower_end([i])
        while groups and groups[-1][1] + sum(heights[k] for k in groups[-1][0]) > start:
            members = groups.pop()[0] + members
            start = lower_end(members)
        groups.append((members, start))
    places = [0.0] * len(wanted)
    for members, start in groups:
        for k in members:
            places[k] = start + heights[k] / 2
            start += heights[k]
    return places


def score_axis(axes: "Axes", ylim: tuple[float, float] = (0.0, 100.0), *, label: bool = True) -> None:
    """Set up the y axis."""
    axes.set_ylim(*ylim)
    if label:
        axes.set_ylabel("score")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_chance(axes: "Axes", cells: Sequence[CellScore], *, label: bool = True) -> None:
    """Draw the chance level, if it is inside the axis."""
    if (level := chance_level(cells, axes.get_ylim())) is not None:
        axes.axhline(level, color="#777777", linestyle=":", linewidth=1, zorder=1)
        if label:
            axes.annotate(
                f"chance {level:.1f}", (0.0, level), xytext=(2, 1.5), xycoords=axes.get_yaxis_transform(),
                textcoords="offset points", fontsize=6.5, color="#555555", va="bottom", zorder=4,
                bbox={"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 0.5},
            )  # fmt: skip


def chance_level(cells: Sequence[CellScore], ylim: tuple[float, float] = (0.0, 100.0)) -> float | None:
    """Return the chance level that a figure shows; None where arms differ in it or the axis leaves it out."""
    levels = {c.chance for c in cells if c.chance is not None}
    low, high = ylim
    return level if len(levels) == 1 and low < (level := 100 * levels.pop()) < high else None


def lengths_to_mark(arms: Sequence[Arm], trained: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the trained lengths and the bases' own windows; those of untrained arms, where there are some."""
    bases = [arm for arm in arms if arm.window and not arm.recipe] or [arm for arm in arms if arm.window]
    return sorted(set(trained)), sorted({arm.window for arm in bases if arm.window})


def grey_note(style: Mapping[str, Look], lines: int) -> str:
    """Return the sentence that says which arms are grey; "" where all have a colour."""
    named = [look.label for look in style.values() if look.colour != FAINT]
    others = lines - len(named)
    grey = "The other arm is grey." if others == 1 else f"The other {others} arms are grey."
    return f"In colour: {'; '.join(named)}. {grey}" if others else ""
