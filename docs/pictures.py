"""Draw the pictures of docs/concepts.md into docs/pictures/. They are drawings: no point in them was measured.

python docs/pictures.py
"""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from evalkit.report.style import RC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parent / "pictures"
INK, GREY, PALE, BLUE, RED, GREEN = "#222222", "#777777", "#DDDDDD", "#0072B2", "#D55E00", "#009E73"


def prompt() -> "Figure":
    """A prompt of one length: what is in it, and where depth counts from."""
    figure, axes = _empty(7.2, 2.1, (-0.5, 100.5), (-2.7, 3.2))
    parts = [
        (0, 6, PALE, "template"),
        (6, 20, "#BBD7EA", "instruction,\nexamples"),
        (20, 83, "#F3F3F3", ""),
        (83, 90, "#BBD7EA", "question"),
        (90, 94, PALE, "template"),
        (94, 100, "white", "room\nfor the\nanswer"),
    ]
    for left, right, colour, text in parts:
        axes.add_patch(Rectangle((left, 0), right - left, 1.4, facecolor=colour, edgecolor=INK, linewidth=0.8))
        rotation = 90 if right - left < 6.5 and "\n" not in text else 0
        axes.text((left + right) / 2, 0.7, text, ha="center", va="center", fontsize=6.5, rotation=rotation)
    for place in (27, 45, 71):
        axes.add_patch(Rectangle((place, 0), 1.6, 1.4, facecolor=RED, edgecolor=INK, linewidth=0.6))
    axes.text(59, 0.7, "background text", ha="center", va="center", fontsize=8, color=GREY)
    axes.annotate("facts (red)", (45.8, 1.45), (45.8, 1.85), ha="center", fontsize=8, color=RED)
    _brace(axes, 0, 100, 2.45, "length: 16K = 16,384 of the checkpoint's own tokens, never one more")
    axes.annotate("", (83, -0.7), (20, -0.7), arrowprops={"arrowstyle": "->", "color": GREY})
    for place, text in ((20, "depth 0"), (51.5, "0.5"), (83, "depth 1")):
        axes.plot([place, place], [-0.55, -0.85], color=GREY, linewidth=0.8)
        axes.text(place, -1.45, text, ha="center", fontsize=8, color=GREY)
    told = "controls:  no-context leaves out facts and background,  facts-only leaves out the background"
    axes.text(50, -2.5, told, ha="center", fontsize=8, color=INK)
    return figure


def cells() -> "Figure":
    """Two arms, asked the same cells: what is paired with what."""
    figure, axes = _empty(7.2, 2.7, (-2.4, 12.4), (-0.9, 3.9))
    lengths, subsets = ("4K", "16K", "64K"), ("qa1", "qa2", "qa3")
    for arm, left, colour in (("arm A", 0, BLUE), ("arm B", 7, RED)):
        axes.text(left + 2.1, 3.55, arm, ha="center", fontsize=10, fontweight="bold", color=colour)
        for column, length in enumerate(lengths):
            axes.text(left + 1.4 * column + 0.65, 3.08, length, ha="center", fontsize=8, color=GREY)
            for row, subset in enumerate(subsets):
                held = (length, subset) == ("16K", "qa2")
                place = (left + 1.4 * column, 2 - row)
                face = "#FFF2CC" if held else "white"
                axes.add_patch(
                    Rectangle(place, 1.3, 0.9, facecolor=face, edgecolor=INK, linewidth=1.6 if held else 0.6)
                )
                if held:
                    axes.text(place[0] + 0.65, place[1] + 0.45, "q1 ... q100", ha="center", va="center", fontsize=6.5)
    for row, subset in enumerate(subsets):
        axes.text(-0.25, 2.45 - row, f"subset {subset}", ha="right", va="center", fontsize=8, color=GREY)
    axes.annotate("", (8.35, 1.45), (2.75, 1.45), arrowprops={"arrowstyle": "<->", "color": GREEN, "linewidth": 1.4})
    axes.text(5.6, 1.62, "paired:\nthe same questions", ha="center", fontsize=8, color=GREEN)
    told = "the heavy frame is one cell; its n is the number of scored samples"
    axes.text(5, -0.6, told, ha="center", fontsize=8, color=INK)
    return figure


def curve() -> "Figure":
    """Score over length: trained and beyond, retention, effective length, what the controls bound."""
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    lengths = ["2K", "4K", "8K", "16K", "32K", "64K", "128K"]
    places = range(len(lengths))
    arm, baseline = [95, 95, 94, 90, 86, 74, 60], [96, 96, 95, 70, 52, 38, 30]
    error = [4, 4, 4, 5, 5, 7, 8]
    axes.axvspan(-0.4, 2.5, color="#EEF5EA", zorder=0)
    axes.axvspan(2.5, 6.9, color="#FBEFE7", zorder=0)
    axes.text(1.05, 108, "up to the trained length (8K):\nin distribution", ha="center", fontsize=8, color=GREEN)
    axes.text(4.6, 108, "beyond it: out of distribution\nthe primary endpoint is the difference here", ha="center",
              fontsize=8, color=RED)  # fmt: skip
    axes.errorbar(places, arm, error, color=RED, marker="o", capsize=3, linewidth=1.4)
    axes.errorbar(places, baseline, error, color=BLUE, marker="s", capsize=3, linewidth=1.4)
    axes.text(6.15, 60, "arm A", color=RED, va="center")
    axes.text(6.15, 30, "arm B", color=BLUE, va="center")
    for height, text in ((99, "control facts-only"), (21, "chance"), (10, "control no-context")):
        axes.plot([-0.4, 6.9], [height, height], color=GREY, linewidth=0.9, linestyle=":")
        axes.text(6.85, height + 1.5, text, color=GREY, fontsize=7.5, ha="right")
    threshold = 0.85 * 94.7
    axes.plot([-0.4, 4.05], [threshold, threshold], color=INK, linewidth=0.9, linestyle="--")
    axes.text(-0.3, threshold - 5.4, "85 % of the in-distribution score", fontsize=7.5)
    axes.annotate("effective length of A: 32K\n(the last whose interval\nstays above the line)", (4, 81), (3.55, 56),
                  ha="right", va="top", fontsize=7.5, arrowprops={"arrowstyle": "->", "color": INK})  # fmt: skip
    told = "retention = mean beyond it / mean up to the trained length"
    axes.text(2.6, 3, told, fontsize=8, color=INK)
    axes.set(xticks=list(places), xticklabels=lengths, xlim=(-0.4, 6.9), ylim=(0, 122), yticks=[0, 25, 50, 75, 100])
    axes.set_xlabel("length (tokens, one octave a step)")
    axes.set_ylabel("score")
    return figure


def _empty(width: float, height: float, x: tuple[float, float], y: tuple[float, float]) -> "tuple[Figure, Axes]":
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set(xlim=x, ylim=y)
    axes.axis("off")
    return figure, axes


def _brace(axes: "Axes", left: float, right: float, height: float, text: str) -> None:
    axes.annotate("", (left, height), (right, height), arrowprops={"arrowstyle": "<->", "color": INK})
    axes.text((left + right) / 2, height + 0.15, text, ha="center", va="bottom", fontsize=8.5)


def main() -> None:
    """Draw them all; the files are the same byte for byte each time."""
    FOLDER.mkdir(exist_ok=True)
    with plt.rc_context(RC | {"svg.fonttype": "none"}):
        for draw in (prompt, cells, curve):
            figure = draw()
            figure.savefig(FOLDER / f"{draw.__name__}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
