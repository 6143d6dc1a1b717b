"""Scores as heat maps: by subset or arm and length, and by where in the prompt the needed fact stands."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evalkit.lengths import parse_length
from evalkit.report.analysis import Analysis
from evalkit.report.arms import length_name
from evalkit.report.cells import task_title
from evalkit.report.curves import arm_looks
from evalkit.report.drawing import Drawing, empty_figure, fitted_names, panels, write_title
from evalkit.report.estimates import AVERAGE
from evalkit.report.main_table import other_questions_note, over_subsets, whole_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Grid: TypeAlias = NDArray[np.float64]
DEPTH_BINS = 10
_FULL = 10
"""Samples from which on a cell by depth is not faded."""
_MAX_PANELS = 12
MOST_ROWS = 60
"""Arms of a single heat map."""


def heatmap(analysis: Analysis, task: str, scorer: str) -> Drawing:
    """Return subsets down, lengths across, one panel per arm; of one subset, or of many arms, arms down."""
    panel = analysis.panel(task, scorer)
    if len(panel.subsets) == 1 or sum(bool(panel.rows(arm.name)) for arm in analysis.arms) > _MAX_PANELS:
        return arms_heatmap(analysis, task, scorer)
    found = {(c.arm, c.subset, c.length): c.interval.mean for c in analysis.select(task, scorer)}
    rows = [*panel.subsets, *([AVERAGE] if any(subset == AVERAGE for _, subset, _ in found) else [])]
    values = {
        arm.name: np.array([[_percent(found.get((arm.name, s, n))) for n in panel.lengths] for s in rows])
        for arm in analysis.arms
        if panel.rows(arm.name)
    }
    return _by_arm(
        analysis,
        task,
        values,
        name=f"heatmap-{task}",
        title=f"{task_title(task)}: score by subset and length",
        description=f"{_words(scorer).capitalize()} score (0 to 100): subsets down, context lengths across.",
        rows=rows,
        columns=[length_name(parse_length(n)) for n in panel.lengths],
        row_label="",
    )


def arms_heatmap(
    analysis: Analysis,
    task: str,
    scorer: str,
    *,
    arms: Sequence[str] = (),
    lengths: Sequence[str] = (),
    width: float | None = None,
    title: str | None = None,
) -> Drawing:
    """Return arms down, lengths across, averaged over each arm's subsets.

    Args:
        analysis: of all runs.
        task: one of its tasks.
        scorer: one of the task's.
        arms: those to show, in this order; none for all, up to ``MOST_ROWS``.
        lengths: those to show; none for all.
        width: of the whole figure, inches; None for what the cells take.
        title: None for one of its own, "" for none.
    """
    cells = [c for c in whole_cells(analysis, task, scorer) if c.interval.mean is not None]
    known = [arm.name for arm in analysis.arms if any(c.arm == arm.name for c in cells)]
    shown = ([name for name in arms if name in known] if arms else known)[:MOST_ROWS]
    found = {(c.arm, c.length): c.interval.mean for c in cells if not lengths or c.length in lengths}
    columns = [n for n in analysis.panel(task, scorer).lengths if any((name, n) in found for name in shown)]
    grid = np.array([[_percent(found.get((name, n))) for n in columns] for name in shown])
    style = arm_looks(analysis, task)
    room, size = (140.0, 7.5) if width is None else (max(72 * (width - 0.27 * len(columns)), 36.0), 6.5)
    labels = list(fitted_names((style[name].label for name in shown), room, size, lines=2).values())
    drawn = [c for c in cells if c.arm in shown]
    over = over_subsets(analysis, task, drawn)
    in_title = over_subsets(analysis, task, drawn, by_arm=False)
    own_title = f"{task_title(task)}, {_words(scorer)} score{in_title}" if title is None else title

    def draw() -> "Figure":
        from matplotlib.cm import ScalarMappable

        own_width = (
            0.42 * len(columns) + 0.065 * max(len(line) for label in labels for line in label.splitlines()) + 1.1
        )
        lines = sum(max(1.0, 0.55 * len(label.splitlines())) for label in labels)
        figure = empty_figure(width or own_width, 0.22 * lines + (0.9 if own_title else 0.6))
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02)
        axes = figure.subplots()
        image = _fill(axes, grid, labels, [length_name(parse_length(n)) for n in columns])
        axes.set_xlabel("length (tokens)", fontsize=8 if width is None else 7)
        if width is None:  # a paper's has no room for it, and numbers in the cells
            bar = figure.colorbar(ScalarMappable(image.norm, image.cmap), ax=axes, fraction=0.05, aspect=25, pad=0.02)
            bar.set_label("score", fontsize=8)
            bar.ax.tick_params(labelsize=7)
            bar.outline.set_visible(False)
        else:
            axes.tick_params(labelsize=6.5)
        if own_title:
            write_title(figure, own_title)
        return figure

    left_out = len(arms or known) - len(shown)
    cut = f"Only the first {len(shown)} of {len(arms or known)} arms are drawn." if left_out else ""
    what = f"{_words(scorer).capitalize()} score (0 to 100){over}: arms down, context lengths across."
    return Drawing(
        name=f"heatmap-{task}",
        title=f"{task_title(task)}: score by arm and length",
        description=" ".join(filter(None, [what, cut, other_questions_note(analysis, task)])),
        draw=draw,
        points=[
            {"arm": shown[row], "length": columns[column], "score": value}
            for (row, column), value in np.ndenumerate(grid)
            if not np.isnan(value)
        ],
    )


def depth_heatmap(analysis: Analysis, task: str, scorer: str) -> Drawing:
    """Return where the needed fact stands down, lengths across, one panel per arm."""
    frame = analysis.loaded.frame
    own_scores = (frame["task"] == task) & (frame["scorer"] == scorer) & frame["value"].notna()
    part = frame[own_scores & frame["depth"].notna() & (frame["length_tokens"] > 0)]
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
    return _by_arm(
        analysis,
        task,
        values,
        name=f"depth-{task}",
        title=f"{task_title(task)}: score by depth of the earliest needed fact",
        description=(
            f"{_words(scorer).capitalize()} score (0 to 100) by where the earliest fact that the answer needs stands "
            "in the prompt (0 % top, 100 % just before the question) and by context length, over all subsets. "
            f"Small: number of samples; the fewer than {_FULL}, the paler. A blank cell has no sample."
        ),
        numbers=numbers,
        rows=[f"{100 * i // DEPTH_BINS}–{100 * (i + 1) // DEPTH_BINS} %" for i in range(DEPTH_BINS)],
        columns=[length_name(parse_length(n)) for n in lengths],
        row_label="depth",
    )


def _by_arm(
    analysis: Analysis,
    task: str,
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
    """One panel per arm, at most twelve. ``numbers``: samples to a cell, shown below the value."""
    style = arm_looks(analysis, task)
    shown = list(values)[:_MAX_PANELS]
    labels = [style[arm].label for arm in shown]
    left_out = f"Only the first {_MAX_PANELS} of {len(values)} arms are drawn." if len(values) > len(shown) else ""

    def draw() -> "Figure":
        plain = drawn([""] * len(shown))  # how wide the panels become is known only when they are placed
        plain.draw_without_rendering()
        room = min(72 / plain.dpi * place.get_window_extent().width for place in plain.axes[: len(shown)])
        return drawn(list(fitted_names(labels, room, 9, lines=3).values()))

    def drawn(names: Sequence[str]) -> "Figure":
        from matplotlib.cm import ScalarMappable

        across = min(len(shown), 3)
        width = max(0.42 * len(columns) + 0.3, 1.6)  # of few lengths, so that names have room
        height = (0.32 if numbers else 0.24) * len(rows) + 0.5 + 0.15 * max(name.count("\n") for name in names)
        figure, axes = panels(len(shown), across, width, height)
        write_title(figure, title)
        for i, (place, arm, name) in enumerate(zip(axes, shown, names, strict=True)):
            image = _fill(place, values[arm], rows, columns, numbers[arm] if numbers else None)
            place.set_title(name, fontsize=9)
            place.set_ylabel(row_label if i % across == 0 else "")
        figure.colorbar(ScalarMappable(image.norm, image.cmap), ax=axes, shrink=0.6, aspect=35, label="score")
        return figure

    said = " ".join(filter(None, [description, left_out, other_questions_note(analysis, task)]))
    points = [
        {"arm": arm, row_label or "subset": rows[row], "length": columns[column], "score": value}
        | ({"n": int(numbers[arm][row, column])} if numbers else {})
        for arm in shown
        for (row, column), value in np.ndenumerate(values[arm])
        if not np.isnan(value)
    ]
    return Drawing(name=name, title=title, description=said, draw=draw, points=points)


def _fill(
    axes: "Axes", grid: Grid, rows: Sequence[str], columns: Sequence[str], numbers: Grid | None = None
) -> "AxesImage":
    """Draw whole numbers on their colours; dark is low, so that what holds stands out.

    A cell of few samples is pale: it says little, however bright its score.
    """
    share = np.ones(grid.shape) if numbers is None else np.clip(numbers / _FULL, 0, 1)
    opacity = 0.15 + 0.85 * share
    image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto", alpha=opacity)
    for (row, column), value in np.ndenumerate(grid):
        if np.isnan(value):
            continue
        colour = "#111111" if value > 55 or opacity[row, column] < 0.6 else "white"
        middle = row if numbers is None else row - 0.12
        axes.text(column, middle, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour, in_layout=False)
        if numbers is not None:
            n = f"{numbers[row, column]:.0f}"
            axes.text(column, row + 0.28, n, ha="center", va="center", fontsize=4.5, color=colour, in_layout=False)
    axes.set_xticks(range(len(columns)), columns, rotation=45, fontsize=7.5)
    axes.set_yticks(range(len(rows)), rows, fontsize=7.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _words(scorer: str) -> str:
    return scorer.replace("_", " ")
