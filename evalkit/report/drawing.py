"""A figure before it is drawn, and the frames that figures stand in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalkit.report.style import RC, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


def set_title(figure: "Figure", title: str) -> None:
    """Write a title above all panels."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
