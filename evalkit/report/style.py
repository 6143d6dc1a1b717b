"""How figures look: one colour and marker per arm everywhere, and files that are byte-identical for the same input."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalkit.lengths import parse_length
from evalkit.report.arms import Arm, length_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any common colour blindness can tell apart; its yellow is too light for
# lines on white. Known recipes keep their colour from one report to the next, others take what is left.
_OF_RECIPE = {
    "plain": "#000000",
    "yarn": "#0072B2",
    "rpe": "#E69F00",
    "randomized-yarn": "#D55E00",
    "rpe-no-curriculum": "#CC79A7",
    "randomized-yarn-no-curriculum": "#009E73",
}
_OTHERS = ("#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#E69F00", "#D55E00", "#000000")
_MARKERS = "osD^vPX<>*"
_LINES = ("-", "--", "-.", ":")
_PUBLISHED_LINES = ("--", ":", "-.")
_GREY = "#777777"

RC = {
    "text.parse_math": False,  # a name may hold dollar signs
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "evalkit",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True, slots=True)
class Look:
    """How an arm is drawn."""

    colour: str
    marker: str
    line: str
    label: str


def looks(arms: Sequence[Arm]) -> dict[str, Look]:
    """Return the look of each arm by its name.

    The colour is the recipe's, so that a method is seen at once; arms of one recipe, such as two ways of serving it,
    differ in line and marker.
    """
    taken = {_OF_RECIPE[arm.recipe] for arm in arms if arm.recipe in _OF_RECIPE}
    free = cycle([colour for colour in _OTHERS if colour not in taken] or _OTHERS)
    found: dict[str, Look] = {}
    used: Counter[str] = Counter()
    for i, arm in enumerate(arms):
        colour = _GREY if arm.control else _OF_RECIPE.get(arm.recipe) or next(free)
        lines = _PUBLISHED_LINES if arm.published else _LINES
        line = lines[used[colour] % len(lines)]
        used[colour] += 1
        label = f"{arm.name} (published)" if arm.published else arm.name
        found[arm.name] = Look(colour, _MARKERS[i % len(_MARKERS)], line, label)
    return found


def length_axis(axes: "Axes", lengths: Sequence[str], *, label: bool = True) -> dict[str, float]:
    """Set up the x axis as log2 of the length and return where each length stands; "0k" stands one step to the left."""
    tokens = {length: parse_length(length) for length in lengths}
    first = min((n for n in tokens.values() if n), default=1)
    places = {length: float(np.log2(n or first / 2)) for length, n in tokens.items()}
    axes.set_xticks(list(places.values()), [length_name(n) for n in tokens.values()])
    axes.set_xlim(min(places.values()) - 0.35, max(places.values()) + 0.35)
    if label:
        axes.set_xlabel("context length (tokens, log scale)")
    return places


def mark_trained(axes: "Axes", trained: Sequence[int], *, label: bool = True) -> None:
    """Draw a dashed line at each trained length, and shade what lies within the shortest."""
    low, high = axes.get_xlim()
    for n in trained:
        place = float(np.log2(n)) if n else low
        if low < place < high:
            axes.axvline(place, color="#444444", linestyle="--", linewidth=1, zorder=1)
    inside = min(float(np.log2(min(trained))), high) if trained else low
    if inside > low:
        axes.axvspan(low, inside, color="#000000", alpha=0.05, linewidth=0, zorder=0)
        axes.set_xlim(low, high)
        if label:
            axes.text(
                low + 0.06, 1.0, "in distribution", transform=axes.get_xaxis_transform(), fontsize=7.5, color="#555555",
                va="bottom",
            )  # fmt: skip


def save(figure: "Figure", folder: Path, name: str, provenance: str) -> list[Path]:
    """Write PNG, SVG and PDF without any date, with their provenance in the metadata."""
    import matplotlib

    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None, "Description": provenance},
        "svg": {"Date": None, "Creator": None, "Description": provenance},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Subject": provenance},
    }
    paths = []
    with matplotlib.rc_context(RC):
        figure.draw_without_rendering()  # places everything once, for all three files
        figure.set_layout_engine("none")
        box = figure.get_tightbbox().padded(0.08)  # inches
        for kind, entries in metadata.items():
            path = folder / f"{name}.{kind}"
            figure.savefig(path, metadata=entries, dpi=160, bbox_inches=box)
            paths.append(path)
    return paths
