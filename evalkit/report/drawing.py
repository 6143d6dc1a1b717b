"""A figure before it is drawn, the frames that figures stand in, and texts that keep within them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evalkit.report.naming import short_names
from evalkit.report.style import FONT, RC, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NARROWEST = 3.25
"""Inches: a title takes this much where the figure is narrower."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure before it is drawn."""

    name: str
    title: str
    description: str
    """What it shows, for captions and for people who do not see it."""
    draw: "Callable[[], Figure]"
    points: Sequence[Mapping[str, Any]] = ()
    """What is drawn, in numbers: rows of equal names. Of a line: its ``panel`` and ``arm``, and a row for each point in
    the order of the line."""

    def figure(self) -> "Figure":
        """Draw it."""
        import matplotlib

        with matplotlib.rc_context(RC):
            return self.draw()


def part_id(axes: "Axes | None", look: Look, part: str) -> str:
    """Return the id in SVG of an arm's line, band, leader or name, by which the page's script finds it."""
    return f"{(axes.get_gid() if axes else None) or 'panel'}.{look.mark}.{part}"


def empty_figure(width: float, height: float) -> "Figure":
    """Return a figure of this size, inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def panels(count: int, across: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """Return a grid of small panels that share their axes; only the lowest of each column names its lengths."""
    from matplotlib.figure import Figure

    down = -(-count // across)
    figure = Figure(figsize=(width * across + 0.8, height * down + 0.8), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for i, place in enumerate(axes.flat):
        place.set_visible(i < count)
        place.tick_params(labelbottom=i + across >= count)
        place.set_xlabel("length (tokens)" if i + across >= count else "", fontsize=8)
    return figure, list(axes.flat)[:count]


def write_title(figure: "Figure", title: str) -> None:
    """Write a title above all panels, as wide as the figure, which grows by each line after the first."""
    text = wrapped(title, 70 * max(figure.get_figwidth(), _NARROWEST), 10)
    figure.set_figheight(figure.get_figheight() + 0.165 * text.count("\n"))
    figure.suptitle(text, x=0.01, ha="left", fontsize=10)


def wrapped(text: str, room: float, size: float) -> str:
    """Return a text in as few lines as fit ``room`` points.

    It is broken after spaces, slashes, hyphens and underscores; within a word only where that alone has no room.
    """

    def fits(line: str) -> bool:
        return size * _wide(line.rstrip()) <= room

    lines = [""]
    for word in re.findall(r"[^\s/_-]+[\s/_-]*|[\s/_-]+", text):
        if lines[-1] and not fits(lines[-1] + word):
            lines.append("")
        lines[-1] += word
        while len(line := lines[-1]) > 1 and not fits(line):
            kept = next((n for n in range(len(line) - 1, 1, -1) if fits(line[:n])), 1)
            lines[-1:] = [line[:kept], line[kept:]]
    return "\n".join(line.strip() for line in lines)


def fitted_names(names: Iterable[str], room: float, size: float, *, lines: int) -> dict[str, str]:
    """Return each name in at most so many lines of ``room`` points, shortened as ``short_names`` does where it must."""
    ordered = list(names)
    longest = min(max(map(len, ordered), default=0), int(lines * room / (0.4 * size)))  # narrower letters are rare
    for limit in range(max(longest, 4), 3, -1):
        short = short_names(ordered, limit)
        found = {name: wrapped(short[name], room, size) for name in ordered}
        if all(text.count("\n") < lines for text in found.values()):
            break
    return found


@lru_cache(10_000)
def _wide(text: str) -> float:
    """Return how wide a text is, in its size; letters are up to 3 % wider where their edges are moved to pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, size=100)
    return float(1.03 * text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 100)
