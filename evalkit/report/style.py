"""How figures look: one colour and marker per arm everywhere, and files that are byte-identical for the same input."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalkit.files import write_whole
from evalkit.lengths import parse_length
from evalkit.report.arms import Arm, length_name
from evalkit.report.naming import short_names

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
FAINT = "#b5b5b5"
"""Of arms that are drawn but not told apart."""

FONT = "DejaVu Sans"
RC = {
    "font.family": FONT,
    "font.size": 9,
    "text.parse_math": False,  # a name may hold dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.titlesize": 10,
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
    mark: str = ""
    """By which the page finds what is drawn of the arm."""


def looks(arms: Sequence[Arm]) -> dict[str, Look]:
    """Return the look of each arm by its name.

    The colour is the recipe's, so that a method is seen at once; arms of one recipe, such as two ways of serving it,
    differ in line and marker.
    """
    taken = {_OF_RECIPE[arm.recipe] for arm in arms if arm.recipe in _OF_RECIPE}
    free = cycle([colour for colour in _OTHERS if colour not in taken] or _OTHERS)
    found: dict[str, Look] = {}
    used: Counter[str] = Counter()
    labels = short_names((arm.label for arm in arms), 200)
    for i, arm in enumerate(arms):
        colour = _GREY if arm.control else _OF_RECIPE.get(arm.recipe) or next(free)
        lines = _PUBLISHED_LINES if arm.published else _LINES
        line = lines[used[colour] % len(lines)]
        used[colour] += 1
        found[arm.name] = Look(colour, _MARKERS[i % len(_MARKERS)], line, labels[arm.label], f"arm-{i}")
    return found


def few_in_colour(arms: Sequence[Arm], chosen: Sequence[str]) -> dict[str, Look]:
    """Return the looks of many arms, of which those chosen have a colour each, and all others are grey lines."""
    found = looks(arms)
    colours: dict[str, str] = {}
    for name in chosen:  # a recipe's own colour goes to the first of its arms
        if found[name].colour not in (*colours.values(), _GREY):
            colours[name] = found[name].colour
    free = [colour for colour in _OTHERS if colour not in colours.values()]
    lines = {arm.name: _PUBLISHED_LINES[0] if arm.published else _LINES[0] for arm in arms}
    for i, name in enumerate(chosen):
        colour = colours.get(name) or free.pop(0)
        found[name] = replace(found[name], colour=colour, marker=_MARKERS[i % len(_MARKERS)], line=lines[name])
    return {
        name: look if name in chosen else replace(look, colour=FAINT, marker="", line=lines[name])
        for name, look in found.items()
    }


def length_axis(axes: "Axes", lengths: Sequence[str], *, label: bool = True) -> dict[str, float]:
    """Set up the x axis as log2 of the length and return where each length stands; "0k" stands one step to the left."""
    places = _places(lengths)
    axes.set_xticks(list(places.values()), [length_name(parse_length(n)) for n in places])
    axes.set_xlim(*_ends(places))
    if label:
        axes.set_xlabel("context length (tokens, log scale)")
    return places


def _places(lengths: Sequence[str]) -> dict[str, float]:
    tokens = {length: parse_length(length) for length in lengths}
    first = min((n for n in tokens.values() if n), default=1)
    return {length: float(np.log2(n or first / 2)) for length, n in tokens.items()}


def _ends(places: Mapping[str, float]) -> tuple[float, float]:
    return min(places.values()) - 0.35, max(places.values()) + 0.35


def mark_lengths(axes: "Axes", trained: Sequence[int], windows: Sequence[int], *, label: bool = True) -> None:
    """Draw a dashed line at each trained length and a dotted one at each base's own window, and shade up to them.

    Up to the shortest trained length the shade is darker. A window that is a trained length is not drawn again.
    """
    low, high = axes.get_xlim()
    own = [n for n in windows if n not in trained]
    for lengths, line, alpha, word, side in (
        (trained, "--", 0.06, "trained", "right"),
        (own, (0, (1, 2)), 0.03, "window", "left"),
    ):
        if not lengths:
            continue
        places = {n: float(np.log2(n)) for n in lengths if n}
        for n, place in places.items():
            if low < place < high:
                axes.axvline(place, color="#444444", linestyle=line, linewidth=1, zorder=1)
                if label:
                    at_edge = place - low < 0.8  # hardly room before it
                    _above(axes, place, f"{word} {length_name(n)}", "left" if at_edge else side)
        inside = min([*places.values(), high])
        if inside > low:
            axes.axvspan(low, inside, color="#000000", alpha=alpha, linewidth=0, zorder=0)
    if label and trained and np.log2(min(trained)) >= high:
        _above(axes, low, f"all within the trained {length_name(min(trained))}", "left")
    axes.set_xlim(low, high)


def marks_note(lengths: Sequence[str], trained: Sequence[int], windows: Sequence[int], *, has_chance: bool) -> str:
    """Return the sentence on what ``mark_lengths`` draws over these lengths, and on the chance level where drawn."""
    low, high = _ends(_places(lengths))
    said, within = [], []
    for tokens, line, name in (
        (trained, "dashed", "the trained length"),
        ([n for n in windows if n not in trained], "dotted upwards", "the base's own window"),
    ):
        if any(low < np.log2(n) < high for n in tokens):
            said.append(f"{line}: {name}")
        if tokens and np.log2(min(tokens)) > low:
            within.append(name)
    said += [f"shaded: within {', paler within '.join(within)}"] if within else []
    said += ["dotted across: chance"] if has_chance else []
    return f"{'; '.join(said).capitalize()}." if said else ""


def _above(axes: "Axes", place: float, words: str, side: str) -> None:
    """Write just above the axes."""
    axes.annotate(
        words, (place, 1.0), xytext=(-2 if side == "right" else 2, 1.5), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", fontsize=6.5, color="#555555", ha=side, va="bottom", annotation_clip=False,
    )  # fmt: skip


def save(figure: "Figure", folder: Path, name: str, provenance: str, *, exact: bool = False) -> list[Path]:
    """Write PNG, SVG and PDF without any date, with their provenance in the metadata.

    ``exact``: the figure's own size; else as much as what is drawn takes.
    """
    import matplotlib

    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None, "Description": provenance},
        "svg": {"Date": None, "Creator": None, "Description": provenance},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Subject": provenance},
    }
    paths = []
    dpi = 300 if exact else 160
    with matplotlib.rc_context(RC):
        figure.set_dpi(dpi)  # at which letters are as wide as in the PNG
        figure.draw_without_rendering()  # places everything once, for all three files
        figure.set_layout_engine("none")
        box = None if exact else figure.get_tightbbox().padded(0.08)  # inches
        for kind, entries in metadata.items():
            path = folder / f"{name}.{kind}"
            drawn = BytesIO()  # on a full disk matplotlib would not say what the system said
            figure.savefig(drawn, format=kind, metadata=entries, dpi=dpi, bbox_inches=box)
            write_whole(path, drawn.getvalue())
            paths.append(path)
    return paths
