"""The figures: how scores hold over length, where in the prompt they break, and what each arm was trained on."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from evalkit.lengths import parse_length
from evalkit.report.analysis import Analysis
from evalkit.report.arms import length_name
from evalkit.report.cells import counts_text, percent, task_title
from evalkit.report.comparison import Comparison
from evalkit.report.coverage import coverage
from evalkit.report.curves import (
    Line,
    arm_looks,
    chance_level,
    draw_chance,
    draw_lines,
    grey_note,
    lengths_to_mark,
    name_at_ends,
    score_axis,
    score_lines,
    score_points,
)
from evalkit.report.drawing import Drawing, empty_figure, fitted_names, panels, part_id, write_title
from evalkit.report.estimates import AVERAGE
from evalkit.report.heatmaps import depth_heatmap, heatmap
from evalkit.report.main_table import other_questions_note, over_subsets, whole_cells
from evalkit.report.style import FAINT, Look, length_axis, looks, mark_lengths, marks_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

_WIDTH = 6.6
_NAMES = 1.55
"""Inches of it beside the axes, for names."""
_MOST_ARMS = 24
"""Of the figure of positions."""


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
        if scored.loc[scored["length_tokens"] > 0, "depth"].notna().any():
            found.append(depth_heatmap(analysis, task, scorers[0]))
        if {"prefix_hit", "ratio_given_prefix"} <= set(scorers):
            found.append(prefix_against_ratio(analysis, task))
    has_tokens = any(parse_length(n) for panel in analysis.panels for n in panel.lengths)  # 0k alone has no axis
    if has_tokens and any(coverage(arm) is not None for arm in analysis.arms if not arm.control):
        found.append(positions(analysis))
    return found


def curve(analysis: Analysis, task: str, scorer: str) -> Drawing:
    """Return score over length, averaged over subsets, with the difference from the baseline below."""
    shown = [c for c in whole_cells(analysis, task, scorer) if c.interval.mean is not None]
    compared = [c for c in analysis.comparisons if (c.task, c.scorer) == (task, scorer) and c.by_length]
    lengths = analysis.panel(task, scorer).lengths
    style = arm_looks(analysis, task)
    marks = lengths_to_mark(analysis.arms, _trained(analysis, task))

    def draw() -> "Figure":
        height = 5.6 if compared else 3.9
        figure = empty_figure(_WIDTH, height)
        grid = figure.add_gridspec(
            2 if compared else 1, 1, height_ratios=[2.1, 1][: 2 if compared else 1], hspace=0.12,
            left=0.085, right=1 - _NAMES / _WIDTH, top=1 - 0.45 / height, bottom=0.5 / height,
        )  # fmt: skip
        top = figure.add_subplot(grid[0], gid="score")
        places = length_axis(top, lengths, label=not compared)
        score_axis(top)
        drawn = draw_lines(top, score_lines(shown, places), style)
        draw_chance(top, shown)
        mark_lengths(top, *marks)
        top.set_title(f"{task_title(task)}, {_words(scorer)} score", pad=14)
        if compared:
            top.tick_params(labelbottom=False)
            below = figure.add_subplot(grid[1], sharex=top, gid="difference")
            draw_lines(below, [_difference_line(c, places) for c in compared], style)
            below.axhline(0, color=style[compared[0].baseline].colour, linewidth=1)
            length_axis(below, lengths)
            mark_lengths(below, *marks, label=False)
            minus = {name: f"minus {look.label}" for name, look in style.items()}
            below.set_ylabel(fitted_names(minus.values(), 112, 9, lines=2)[minus[compared[0].baseline]])
        name_at_ends(top, drawn, style, room=72 * _NAMES, size=7.5)
        return figure

    sentences = [
        f"{_words(scorer).capitalize()} score (0 to 100) of each arm over context length"
        f"{over_subsets(analysis, task, shown)}; {'bands' if len(lengths) > 1 else 'bars'} are 95 % intervals; n = "
        f"{counts_text(c.n for c in shown)} per point.",
        marks_note(lengths, *marks, has_chance=chance_level(shown) is not None),
        f"Below: the paired difference from {compared[0].baseline}." if compared else "",
        grey_note(style, len({c.arm for c in shown})),
        other_questions_note(analysis, task),
    ]
    return Drawing(
        name=f"curve-{task}",
        title=f"{task_title(task)}: score over length",
        description=" ".join(filter(None, sentences)),
        draw=draw,
        points=[*score_points("score", shown), *(row for c in compared for row in _difference_points(c))],
    )


def _difference_points(c: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "panel": "difference",
            "arm": c.arm,
            "subset": AVERAGE if len(c.subsets) > 1 else c.subsets[0],
            "length": length,
            f"difference from {c.baseline}": percent(found.mean),
            "ci_low": percent(found.low),
            "ci_high": percent(found.high),
            "n": found.n,
        }
        for length, found in c.by_length.items()
    ]


def _difference_line(c: Comparison, places: Mapping[str, float]) -> Line:
    found = c.by_length.values()
    ends = ([100 * getattr(d, end) for d in found] for end in ("mean", "low", "high"))
    return Line(c.arm, [places[n] for n in c.by_length], *ends)


def curves_by_subset(analysis: Analysis, task: str, scorer: str) -> Drawing:
    """Return one small panel of score over length for each subset."""
    cells = [c for c in analysis.select(task, scorer) if c.interval.mean is not None and c.subset != AVERAGE]
    panel, style = analysis.panel(task, scorer), arm_looks(analysis, task)
    marks = lengths_to_mark(analysis.arms, _trained(analysis, task))

    def draw() -> "Figure":
        across = min(len(panel.subsets), 3 if len(panel.subsets) < 10 else 4)
        figure, axes = panels(len(panel.subsets), across, 2.3, 1.9)
        write_title(figure, f"{task_title(task)}, {_words(scorer)} score")
        for i, (place, subset) in enumerate(zip(axes, panel.subsets, strict=True)):
            own = [c for c in cells if c.subset == subset]
            place.set_gid(subset)
            places = length_axis(place, panel.lengths, label=False)
            score_axis(place, label=i % across == 0)
            draw_lines(place, score_lines(own, places), style)
            draw_chance(place, own, label=i % across == 0)
            mark_lengths(place, *marks, label=False)
            place.set_title(subset, fontsize=9)
            place.tick_params(axis="x", labelrotation=45, labelsize=7)
        handles = [pair for place in axes for pair in zip(*place.get_legend_handles_labels(), strict=True)]
        _legend_below(figure, {label: handle for handle, label in handles}, style)
        return figure

    sentences = [
        f"{_words(scorer).capitalize()} score over context length by subset, with 95 % intervals.",
        grey_note(style, len({c.arm for c in cells})),
        other_questions_note(analysis, task),
    ]
    return Drawing(
        name=f"curve-{task}-subsets",
        title=f"{task_title(task)}: score over length, by subset",
        description=" ".join(filter(None, sentences)),
        draw=draw,
        points=[row for c in cells for row in score_points(c.subset, [c])],
    )


def prefix_against_ratio(analysis: Analysis, task: str) -> Drawing:
    """What an MRCR score is made of: was the form kept, and was the right text found."""
    style = arm_looks(analysis, task)
    parts = {
        scorer: {(c.arm, c.subset, c.length): c.interval.mean for c in analysis.select(task, scorer)}
        for scorer in ("prefix_hit", "ratio_given_prefix")
    }
    panel = analysis.panel(task, "prefix_hit")
    subset = AVERAGE if len(panel.subsets) > 1 else panel.subsets[0]
    found = {
        arm.name: [
            (100 * x, 100 * y, n)
            for n in panel.lengths
            if (x := parts["prefix_hit"].get((arm.name, subset, n))) is not None
            and (y := parts["ratio_given_prefix"].get((arm.name, subset, n))) is not None
        ]
        for arm in analysis.arms
    }

    def draw() -> "Figure":
        figure = empty_figure(5.2, 4.4)
        axes = figure.add_subplot()
        grid = np.linspace(0.001, 100, 200)
        for score in (20, 40, 60, 80):
            axes.plot(grid, 100 * score / grid, color="#dddddd", linewidth=0.8, zorder=0)
            axes.text(101, 100 * score / 101, str(score), fontsize=7, color="#999999", va="center")
        for arm, points in found.items():
            if not points:
                continue
            look = style[arm]
            xs, ys, _ = zip(*points, strict=True)
            line, dots = part_id(axes, look, "line"), part_id(axes, look, "band")
            axes.plot(xs, ys, color=look.colour, linestyle=look.line, linewidth=1, alpha=0.6, gid=line)
            axes.scatter(xs, ys, s=16, color=look.colour, marker=look.marker, label=look.label, zorder=3, gid=dots)
            x, y, longest = points[-1]
            axes.annotate(
                length_name(parse_length(longest)), (x, y), xytext=(4, -8), textcoords="offset points", fontsize=7,
                color=look.colour, gid=part_id(axes, look, "leader"),
            )  # fmt: skip
        axes.set(xlim=(0, 105), ylim=(0, 105), xlabel="answers that begin with the prefix (%)")
        axes.set_ylabel("match ratio of those answers (0 to 100)")
        axes.set_title("What an MRCR score is made of")
        _legend_beside(axes, style)
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
        points=[
            {"panel": "panel", "arm": arm, "subset": subset, "length": n, "prefix_hit": x, "ratio_given_prefix": y}
            for arm, points in found.items()
            for x, y, n in points
        ],
    )


def positions(analysis: Analysis) -> Drawing:
    """Which positions each arm has seen in training, and how often, beside the lengths that were asked."""
    known = [(arm, seen) for arm in analysis.arms if not arm.control and (seen := coverage(arm)) is not None]
    arms = known[:_MOST_ARMS]
    cut = f" Only the first {_MOST_ARMS} of {len(known)} arms are drawn." if len(known) > len(arms) else ""
    style = looks(analysis.arms)
    lengths = sorted({parse_length(n) for panel in analysis.panels for n in panel.lengths} - {0})

    def draw() -> "Figure":
        figure = empty_figure(_WIDTH, 0.5 * len(arms) + 1.2)
        axes = figure.add_subplot()
        shortest = min(lengths) / 4
        for i, (arm, seen) in enumerate(reversed(arms)):
            x = np.log2(np.maximum(seen.positions, shortest))
            axes.fill_between(x, i, i + 0.8 * seen.share, color=style[arm.name].colour, linewidth=0)
        names = fitted_names((style[arm.name].label for arm, _ in reversed(arms)), 168, 9, lines=2)
        axes.set_yticks(np.arange(len(arms)) + 0.4, list(names.values()))
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
            f"means every sample. Dotted lines are the lengths that were asked.{cut}"
        ),
        draw=draw,
        points=[
            {"arm": arm.name, "position": round(x), "share": y}
            for arm, seen in arms
            for x, y in zip(seen.positions.tolist(), seen.share.tolist(), strict=True)
        ],
    )


# -- parts ---------------------------------------------------------------------------------------------------------


def _legend_below(figure: "Figure", named: Mapping[str, Any], style: Mapping[str, Look]) -> None:
    """Name the lines below the panels; grey ones once for all."""
    coloured = {look.label for look in style.values() if look.colour != FAINT}
    entries = {label: handle for label, handle in named.items() if label in coloured}
    if grey := [label for label in named if label not in coloured]:
        entries[f"{len(grey)} other arms"] = named[grey[0]]
    width = figure.get_figwidth()
    names = fitted_names(entries, 72 * width - 60, 8, lines=1)
    columns = max(1, min(len(entries), int(16 * width) // (8 + max(map(len, names.values()))), 5))
    figure.set_figheight(figure.get_figheight() + 0.2 * (-(-len(entries) // columns) - 1))  # the panels keep theirs
    legend = figure.legend(entries.values(), names.values(), loc="outside lower center", ncols=columns, fontsize=8)
    _mark_names(legend, entries, style)


def _legend_beside(axes: "Axes", style: Mapping[str, Look]) -> None:
    """Name what has a colour of its own, to the right of the axes."""
    coloured = {look.label for look in style.values() if look.colour != FAINT}
    entries = {label: h for h, label in zip(*axes.get_legend_handles_labels(), strict=True) if label in coloured}
    names = fitted_names(entries, 155, 8, lines=2)
    legend = axes.legend(entries.values(), names.values(), loc="upper left", bbox_to_anchor=(1.05, 1.0), fontsize=8)
    _mark_names(legend, entries, style)


def _mark_names(legend: "Legend", entries: Iterable[str], style: Mapping[str, Look]) -> None:
    by_label = {look.label: look for look in style.values()}
    for text, label in zip(legend.get_texts(), entries, strict=True):
        if label in by_label:
            text.set_gid(part_id(None, by_label[label], "name"))


def _trained(analysis: Analysis, task: str) -> list[int]:
    return sorted({s.trained_length for s in analysis.summaries if s.task == task and s.trained_length})


def _words(scorer: str) -> str:
    return scorer.replace("_", " ")
