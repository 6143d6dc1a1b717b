"""The figures: how scores hold over length, where in the prompt they break, and what each arm was trained on."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evalkit.lengths import parse_length
from evalkit.report.analysis import Analysis
from evalkit.report.arms import length_name
from evalkit.report.cells import task_title
from evalkit.report.coverage import coverage
from evalkit.report.estimates import AVERAGE, CellScore
from evalkit.report.style import RC, Look, length_axis, looks, mark_trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Grid: TypeAlias = NDArray[np.float64]
DEPTH_BINS = 10
_THIN = 10
"""Samples of a heat map's cell, below which it is faded."""
_MAX_PANELS = 12


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure before it is drawn."""

    name: str
    title: str
    description: str
    """What it shows, for captions and for people who do not see it."""
    draw: "Callable[[], Figure]"

    def figure(self) -> "Figure":
        """Draw it."""
        import matplotlib

        with matplotlib.rc_context(RC):
            return self.draw()


def all_drawings(analysis: Analysis) -> list[Drawing]:
    """Return the figures that the data allow, in reading order."""
    found: list[Drawing] = []
    for task in analysis.tasks:
        scorers = analysis.scorers(task)
        if all(cell.interval.mean is None for cell in analysis.select(task, scorers[0])):
            continue  # every sample failed
        subsets = analysis.panel(task, scorers[0]).subsets
        found.append(curve(analysis, task, scorers[0]))
        if len(subsets) > 1:
            found.append(curves_by_subset(analysis, task, scorers[0]))
        frame = analysis.loaded.frame
        scored = frame[(frame["task"] == task) & frame["value"].notna()]
        if len(scored):
            found.append(heatmap(analysis, task, scorers[0]))
        if scored["depth"].notna().any():
            found.append(depth_heatmap(analysis, task, scorers[0]))
        if {"prefix_hit", "ratio_given_prefix"} <= set(scorers):
            found.append(prefix_against_ratio(analysis, task))
    if any(coverage(arm) is not None for arm in analysis.arms if not arm.control):
        found.append(positions(analysis))
    return found


def curve(analysis: Analysis, task: str, scorer: str) -> Drawing:
    """Score over length, averaged over subsets, with the difference from the baseline below."""
    cells = [c for c in analysis.select(task, scorer) if c.interval.mean is not None]
    whole = AVERAGE if any(c.subset == AVERAGE for c in cells) else cells[0].subset if cells else AVERAGE
    shown = [c for c in cells if c.subset == whole]
    compared = [c for c in analysis.comparisons if (c.task, c.scorer) == (task, scorer) and c.by_length]
    lengths = analysis.panel(task, scorer).lengths
    style = looks(analysis.arms)

    def draw() -> "Figure":
        figure = _figure(6.6, 5.6 if compared else 3.9)
        grid = figure.add_gridspec(2 if compared else 1, 1, height_ratios=[2.1, 1][: 2 if compared else 1], hspace=0.12)
        top = figure.add_subplot(grid[0])
        places = length_axis(top, lengths, label=not compared)
        _scores(top, shown, places, style)
        mark_trained(top, _trained(analysis, task))
        top.set_title(f"{task_title(task)}, {_words(scorer)} score", pad=14)
        if compared:
            top.tick_params(labelbottom=False)
            below = figure.add_subplot(grid[1], sharex=top)
            for c in compared:
                xs = [places[n] for n in c.by_length]
                line = [100 * d.mean for d in c.by_length.values()]
                band = [
                    [100 * end for end in ends]
                    for ends in zip(*[(d.low, d.high) for d in c.by_length.values()], strict=True)
                ]
                _line(below, xs, line, band, style[c.arm])
            below.axhline(0, color=style[compared[0].baseline].colour, linewidth=1)
            length_axis(below, lengths)
            mark_trained(below, _trained(analysis, task), label=False)
            minus = f"minus {compared[0].baseline}"
            below.set_ylabel(textwrap.fill(minus, 22, break_on_hyphens=False, max_lines=2, placeholder=" …"))
        _legend(top)
        return figure

    counts = sorted({c.n for c in shown})
    per_point = " to ".join(dict.fromkeys(map(str, [*counts[:1], *counts[-1:]]))) or "0"
    over = f"averaged over {len(analysis.panel(task, scorer).subsets)} subsets" if whole == AVERAGE else whole
    return Drawing(
        name=f"curve-{task}",
        title=f"{task_title(task)}: score over length",
        description=(
            f"{_words(scorer).capitalize()} score (0 to 100) of each arm over context length, {over}; bands are 95 % "
            f"intervals; n = {per_point} per point. The dashed line is the trained length, the shaded part is within "
            "it, the dotted line is chance."
            + (f" Below: the paired difference from {compared[0].baseline}." if compared else "")
        ),
        draw=draw,
    )


def curves_by_subset(analysis: Analysis, task: str, scorer: str) -> Drawing:
    """One small panel of score over length for each subset."""
    cells = [c for c in analysis.select(task, scorer) if c.interval.mean is not None and c.subset != AVERAGE]
    panel, style = analysis.panel(task, scorer), looks(analysis.arms)

    def draw() -> "Figure":
        across = min(len(panel.subsets), 3 if len(panel.subsets) < 10 else 4)
        figure, axes = _panels(len(panel.subsets), across, 2.3, 1.9)
        _title(figure, f"{task_title(task)}, {_words(scorer)} score")
        for i, (place, subset) in enumerate(zip(axes, panel.subsets, strict=True)):
            places = length_axis(place, panel.lengths, label=False)
            _scores(place, [c for c in cells if c.subset == subset], places, style, label=i % across == 0)
            mark_trained(place, _trained(analysis, task), label=False)
            place.set_title(subset, fontsize=9)
            place.tick_params(axis="x", labelrotation=45, labelsize=7)
        named = {
            label: handle for place in axes for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
        }
        columns = max(1, min(len(named), 160 // (8 + max(map(len, named)))))
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=min(columns, 5), fontsize=8)
        return figure

    return Drawing(
        name=f"curve-{task}-subsets",
        title=f"{task_title(task)}: score over length, by subset",
        description=f"{_words(scorer).capitalize()} score over context length by subset, with 95 % intervals.",
        draw=draw,
    )


def heatmap(analysis: Analysis, task: str, scorer: str) -> Drawing:
    """Subsets down, lengths across, one panel per arm."""
    found = {(c.arm, c.subset, c.length): c.interval.mean for c in analysis.select(task, scorer)}
    panel = analysis.panel(task, scorer)
    rows = [*panel.subsets, *([AVERAGE] if any(subset == AVERAGE for _, subset, _ in found) else [])]
    values = {
        arm.name: np.array([[_percent(found.get((arm.name, s, n))) for n in panel.lengths] for s in rows])
        for arm in analysis.arms
        if panel.rows(arm.name)
    }
    return _heatmaps(
        analysis,
        values,
        name=f"heatmap-{task}",
        title=f"{task_title(task)}: score by subset and length",
        description=f"{_words(scorer).capitalize()} score (0 to 100): subsets down, context lengths across.",
        rows=rows,
        columns=[length_name(parse_length(n)) for n in panel.lengths],
        row_label="",
    )


def depth_heatmap(analysis: Analysis, task: str, scorer: str) -> Drawing:
    """Where the needed fact stands down, lengths across, one panel per arm."""
    frame = analysis.loaded.frame
    part = frame[
        (frame["task"] == task) & (frame["scorer"] == scorer) & frame["depth"].notna() & frame["value"].notna()
    ]
    lengths = [n for n in analysis.panel(task, scorer).lengths if parse_length(n)]
    bins = np.minimum((part["depth"].to_numpy() * DEPTH_BINS).astype(int), DEPTH_BINS - 1)
    values: dict[str, Grid] = {}
    numbers: dict[str, Grid] = {}
    for arm in analysis.arms:
        own = (part["arm"] == arm.name).to_numpy()
        if not own.any():
            continue
        grid = np.full((DEPTH_BINS, len(lengths)), np.nan)
        numbers[arm.name] = np.zeros(grid.shape)
        for column, length in enumerate(lengths):
            inside = own & (part["length"] == length).to_numpy()
            sums = np.bincount(bins[inside], part["value"].to_numpy()[inside], minlength=DEPTH_BINS)
            counts = np.bincount(bins[inside], minlength=DEPTH_BINS)
            numbers[arm.name][:, column] = counts
            grid[:, column] = np.where(counts > 0, 100 * sums / np.maximum(counts, 1), np.nan)
        values[arm.name] = grid
    return _heatmaps(
        analysis,
        values,
        name=f"depth-{task}",
        title=f"{task_title(task)}: score by depth of the earliest needed fact",
        description=(
            f"{_words(scorer).capitalize()} score (0 to 100) by where the earliest fact that the answer needs stands "
            "in the prompt (0 % top, 100 % just before the question) and by context length, over all subsets. "
            f"Small: number of samples; faded: fewer than {_THIN}. A blank cell has no sample."
        ),
        numbers=numbers,
        rows=[f"{100 * i // DEPTH_BINS}–{100 * (i + 1) // DEPTH_BINS} %" for i in range(DEPTH_BINS)],
        columns=[length_name(parse_length(n)) for n in lengths],
        row_label="depth",
    )


def prefix_against_ratio(analysis: Analysis, task: str) -> Drawing:
    """What an MRCR score is made of: was the form kept, and was the right text found."""
    style = looks(analysis.arms)
    parts = {
        scorer: {(c.arm, c.subset, c.length): c.interval.mean for c in analysis.select(task, scorer)}
        for scorer in ("prefix_hit", "ratio_given_prefix")
    }
    panel = analysis.panel(task, "prefix_hit")
    subset = AVERAGE if len(panel.subsets) > 1 else panel.subsets[0]

    def draw() -> "Figure":
        figure = _figure(5.2, 4.4)
        axes = figure.add_subplot()
        grid = np.linspace(0.001, 100, 200)
        for score in (20, 40, 60, 80):
            axes.plot(grid, 100 * score / grid, color="#dddddd", linewidth=0.8, zorder=0)
            axes.text(101, 100 * score / 101, str(score), fontsize=7, color="#999999", va="center")
        for arm in analysis.arms:
            points = [
                (100 * x, 100 * y, n)
                for n in panel.lengths
                if (x := parts["prefix_hit"].get((arm.name, subset, n))) is not None
                and (y := parts["ratio_given_prefix"].get((arm.name, subset, n))) is not None
            ]
            if not points:
                continue
            look = style[arm.name]
            xs, ys, _ = zip(*points, strict=True)
            axes.plot(xs, ys, color=look.colour, linestyle=look.line, linewidth=1, alpha=0.6)
            axes.scatter(xs, ys, s=16, color=look.colour, marker=look.marker, label=look.label, zorder=3)
            x, y, longest = points[-1]
            axes.annotate(
                length_name(parse_length(longest)), (x, y), xytext=(4, -8), textcoords="offset points", fontsize=7,
                color=look.colour,
            )  # fmt: skip
        axes.set(xlim=(0, 105), ylim=(0, 105), xlabel="answers that begin with the prefix (%)")
        axes.set_ylabel("match ratio of those answers (0 to 100)")
        axes.set_title("What an MRCR score is made of")
        _legend(axes)
        return figure

    return Drawing(
        name=f"prefix-{task}",
        title=f"{task_title(task)}: prefix hit against match ratio",
        description=(
            "Each point is one length, joined from the shortest to the longest, which is named: how often the answer "
            "begins with the asked prefix, against how well such answers match the right text. Grey lines join equal "
            "official scores. A fall to the left is a lost instruction, a fall downwards a lost or confused text."
        ),
        draw=draw,
    )


def positions(analysis: Analysis) -> Drawing:
    """Which positions each arm has seen in training, and how often, beside the lengths that were asked."""
    arms = [(arm, seen) for arm in analysis.arms if not arm.control and (seen := coverage(arm)) is not None]
    style = looks(analysis.arms)
    lengths = sorted({parse_length(n) for panel in analysis.panels for n in panel.lengths} - {0})

    def draw() -> "Figure":
        figure = _figure(6.6, 0.5 * len(arms) + 1.2)
        axes = figure.add_subplot()
        shortest = min(lengths) / 4
        for i, (arm, seen) in enumerate(reversed(arms)):
            x = np.log2(np.maximum(seen.positions, shortest))
            axes.fill_between(x, i, i + 0.8 * seen.share, color=style[arm.name].colour, linewidth=0)
        axes.set_yticks(np.arange(len(arms)) + 0.4, [style[arm.name].label for arm, _ in reversed(arms)])
        axes.tick_params(axis="y", length=0)
        for n in lengths:
            axes.axvline(np.log2(n), color="#999999", linewidth=0.6, linestyle=":", zorder=0)
        axes.set_xticks([np.log2(n) for n in lengths], [length_name(n) for n in lengths])
        longest = max(lengths[-1], *(int(seen.positions[-1]) for _, seen in arms))
        axes.set_xlim(np.log2(shortest), np.log2(longest) + 0.2)
        axes.set_ylim(0, len(arms))
        axes.set_xlabel("position (tokens, log scale); dotted: lengths asked")
        axes.set_title("Positions seen in training (height: share of samples)")
        return figure

    return Drawing(
        name="positions",
        title="Positions seen in training",
        description=(
            "For each arm, how large a share of full-length training samples has a token at each position: full height "
            "means every sample. Dotted lines are the lengths that were asked."
        ),
        draw=draw,
    )


# -- parts ---------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _panels(count: int, across: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """A grid of small panels that share their axes; only the lowest of each column names its lengths."""
    from matplotlib.figure import Figure

    down = -(-count // across)
    figure = Figure(figsize=(width * across + 0.8, height * down + 0.8), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for i, place in enumerate(axes.flat):
        place.set_visible(i < count)
        place.tick_params(labelbottom=i + across >= count)
        place.set_xlabel("length (tokens)" if i + across >= count else "", fontsize=8)
    return figure, list(axes.flat)[:count]


def _title(figure: "Figure", title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")


def _scores(
    axes: "Axes",
    cells: Sequence[CellScore],
    places: Mapping[str, float],
    style: Mapping[str, Look],
    *,
    label: bool = True,
) -> None:
    for arm in dict.fromkeys(c.arm for c in cells):
        own = [c for c in cells if c.arm == arm]
        line = [100 * (c.interval.mean or 0.0) for c in own]
        band = [[100 * (c.interval.low or 0.0) for c in own], [100 * (c.interval.high or 0.0) for c in own]]
        _line(axes, [places[c.length] for c in own], line, band, style[arm])
    guesses = {c.chance for c in cells if c.chance is not None}
    if len(guesses) == 1:
        guess = 100 * guesses.pop()
        axes.axhline(guess, color="#777777", linestyle=":", linewidth=1, zorder=1)
        if label:
            axes.text(axes.get_xlim()[0] + 0.06, guess + 1, "chance", fontsize=7.5, color="#555555")
    axes.set_ylim(0, 102)
    if label:
        axes.set_ylabel("score")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _line(
    axes: "Axes", xs: Sequence[float], line: Sequence[float], band: Sequence[Sequence[float]], look: Look
) -> None:
    axes.plot(
        xs,
        line,
        color=look.colour,
        marker=look.marker,
        markersize=4,
        linestyle=look.line,
        linewidth=1.6,
        label=look.label,
    )
    if len(xs) > 1:
        axes.fill_between(xs, band[0], band[1], color=look.colour, alpha=0.15, linewidth=0)
    else:
        axes.errorbar(xs, line, [[line[0] - band[0][0]], [band[1][0] - line[0]]], color=look.colour, capsize=3)


def _heatmaps(
    analysis: Analysis,
    values: Mapping[str, Grid],
    *,
    name: str,
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    row_label: str,
    numbers: Mapping[str, Grid] | None = None,
) -> Drawing:
    """One panel per arm, at most twelve; whole numbers inside; dark is low, so that what holds stands out.

    ``numbers``: samples to a cell, shown below the value; a cell of few is faded.
    """
    style = looks(analysis.arms)
    shown = list(values)[:_MAX_PANELS]
    left_out = f" Only the first {_MAX_PANELS} of {len(values)} arms are drawn." if len(values) > len(shown) else ""

    def draw() -> "Figure":
        from matplotlib.cm import ScalarMappable

        across = min(len(shown), 3)
        width = 0.42 * len(columns) + 0.3
        figure, axes = _panels(len(shown), across, width, (0.32 if numbers else 0.24) * len(rows) + 0.5)
        _title(figure, title)
        for i, (place, arm) in enumerate(zip(axes, shown, strict=True)):
            is_thin = numbers[arm] < _THIN if numbers else np.zeros(values[arm].shape, dtype=bool)
            image = place.imshow(
                values[arm],
                cmap="cividis",
                vmin=0,
                vmax=100,
                aspect="auto",
                alpha=np.where(is_thin, 0.35, 1.0) if numbers else None,
            )
            for (row, column), value in np.ndenumerate(values[arm]):
                if not np.isnan(value):
                    colour = "black" if value > 55 or is_thin[row, column] else "white"
                    middle = row - 0.12 if numbers else row
                    place.text(column, middle, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
                    if numbers:
                        n = f"{numbers[arm][row, column]:.0f}"
                        place.text(column, row + 0.28, n, ha="center", va="center", fontsize=4.5, color=colour)
            place.set_title(textwrap.fill(style[arm].label, round(11 * width)), fontsize=9)  # 11 letters to an inch
            place.set_xticks(range(len(columns)), columns, rotation=45, fontsize=7.5)
            place.set_yticks(range(len(rows)), rows, fontsize=7.5)
            place.tick_params(length=0)
            place.spines[:].set_visible(False)
            place.set_ylabel(row_label if i % across == 0 else "")
        figure.colorbar(ScalarMappable(image.norm, image.cmap), ax=axes, shrink=0.8, label="score")
        return figure

    return Drawing(name=name, title=title, description=description + left_out, draw=draw)


def _legend(axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        wrapped = [textwrap.fill(label, 34, break_long_words=False) for label in labels]
        axes.legend(
            handles, wrapped, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, ncols=1 + len(labels) // 24
        )


def _trained(analysis: Analysis, task: str) -> list[int]:
    return sorted({s.trained_length for s in analysis.summaries if s.task == task and s.trained_length})


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _words(scorer: str) -> str:
    return scorer.replace("_", " ")
