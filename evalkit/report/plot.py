"""Figures for papers: the size of a column or a page, few colours, names at the lines' ends, no title."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from evalkit.errors import BadInput
from evalkit.lengths import parse_length
from evalkit.report.analysis import Analysis, analyse
from evalkit.report.arms import chosen_arms, chosen_lengths
from evalkit.report.cells import counts_text, task_title
from evalkit.report.curves import (
    FEW,
    arm_looks,
    chance_level,
    draw_chance,
    draw_lines,
    grey_note,
    lengths_to_mark,
    name_at_ends,
    score_axis,
    score_lines,
)
from evalkit.report.drawing import Drawing, empty_figure, wrapped
from evalkit.report.estimates import CellScore
from evalkit.report.heatmaps import arms_heatmap
from evalkit.report.load import Loaded, load_runs
from evalkit.report.main_table import other_questions_note, over_subsets, whole_cells
from evalkit.report.provenance import provenance, stamp
from evalkit.report.published import read_published
from evalkit.report.style import length_axis, mark_lengths, marks_note, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind: TypeAlias = Literal["curve", "heatmap"]


class _Size(NamedTuple):
    """Inches, and points of letters."""

    width: float
    height: float
    names: float
    """Inches of the width, for the names of lines."""
    letters: float


SIZES = {"column": _Size(3.25, 2.3, 0.92, 6.5), "text": _Size(6.75, 3.0, 1.45, 7.5)}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a figure shows, and how."""

    arms: tuple[str, ...] = ()
    """None for all."""
    highlight: tuple[str, ...] = ()
    """Those in colour; none for all, or of many for the baseline and those with the highest means."""
    lengths: tuple[str, ...] = ()
    """None for all."""
    width: Literal["column", "text"] = "column"
    ylim: tuple[float, float] = (0.0, 100.0)
    bands: bool = True
    title: str = ""


def plot(
    paths: Iterable[Path],
    out: Path,
    *,
    kind: Kind = "curve",
    task: str | None = None,
    subset: str | None = None,
    shown: Shown | None = None,
    baseline: str | None = None,
    trained_length: int | None = None,
    published: Sequence[str] = (),
) -> tuple[list[Drawing], list[Path]]:
    """Draw one figure for each task into ``out``, as PDF, PNG and SVG.

    Args:
        paths: run folders, or folders that contain some.
        out: created where it does not exist.
        kind: scores as lines over the lengths, or as a table of colours, arms down.
        task: the only one to draw; None for all that there are.
        subset: the only one to draw; None for the average.
        shown: arms and lengths as they were typed, checked here.
        baseline: the arm that is always in colour; None takes plain training, or else the first arm.
        trained_length: tokens; overrides what the checkpoints say.
        published: tables of others' counts to draw beside; see ``read_published``.

    Returns:
        The figures, whose descriptions make captions, and the files.

    Raises:
        BadInput: no usable run; a task, a subset, an arm or a length that there is not; more than five arms to
            highlight; limits of the axis that are none; a published table that cannot be right, or that has nothing for
            these figures; or ``out`` cannot be written.
    """
    given = [Path(path) for path in paths]
    others = read_published(published) if published else None
    loaded = load_runs(given)
    analysis = analyse(
        of_subset(loaded, subset) if subset else loaded,
        baseline=baseline,
        trained_length=trained_length,
        published=others,
    )
    asked = _checked(analysis, shown or Shown())
    if task is not None and task not in analysis.tasks:
        raise BadInput(f"No run is of the task {task!r}; there are {', '.join(analysis.tasks)}.")
    tasks = [task] if task else list(analysis.tasks)
    if others:
        _refuse_unseen(analysis, tasks)
    make = paper_curve if kind == "curve" else paper_heatmap
    drawings = [make(analysis, name, asked) for name in tasks]
    typed = {"kind": None if kind == "curve" else kind, "task": task, "subset": subset, **_typed(asked)}
    typed |= {"baseline": baseline, "trained_length": trained_length, "published": list(published)}
    known = {name: value for name, value in typed.items() if value}
    origin = stamp(provenance(analysis.loaded.runs, given, known, others.files if others else {}, "plot"))
    files: list[Path] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for drawing in drawings:
            files += save(drawing.figure(), out, drawing.name, origin, exact=True)
    except OSError as error:
        raise BadInput(f"{out} cannot be written to ({error.strerror or error}); name another --out.") from error
    return drawings, files


def of_subset(loaded: Loaded, subset: str) -> Loaded:
    """Return the answers of one subset alone.

    Raises:
        BadInput: none was asked.
    """
    frame = loaded.frame[loaded.frame["subset"] == subset]
    if frame.empty:
        known = ", ".join(sorted(loaded.frame["subset"].unique()))
        raise BadInput(f"No run was asked the subset {subset!r}; there are {known}.")
    return loaded._replace(frame=frame.reset_index(drop=True))


def _refuse_unseen(analysis: Analysis, tasks: Sequence[str]) -> None:
    """Refuse published counts of which no figure shows one: they are of single subsets, which no average holds."""
    drawn = {c.subset for task in tasks for c in whole_cells(analysis, task, analysis.scorers(task)[0])}
    if not any(c.task in tasks and c.subset in drawn for c in analysis.beside):
        there = sorted({c.subset for c in analysis.beside})
        raise BadInput(
            f"No figure shows a published count: they are of {', '.join(there)}, and the figures average over several "
            f"subsets; --subset {there[0]} draws one."
            if there
            else "No figure shows a published count: the tables have none for these runs, only means of which no n is "
            "known; evalkit report lists those."
        )


def _typed(shown: Shown) -> dict[str, Any]:
    """Return what is not as it is by default, as options are written."""
    chosen = {f.name: getattr(shown, f.name) for f in fields(Shown) if getattr(shown, f.name) != f.default}
    written: dict[str, Any] = {"no_bands": True} if chosen.pop("bands", True) is False else {}
    for name, value in chosen.items():
        written[name] = list(value) if name in ("arms", "highlight") else value
    return written | {
        name: ",".join(str(part) if name == "lengths" else f"{part:g}" for part in chosen[name])
        for name in ("lengths", "ylim")
        if name in chosen
    }


def _checked(analysis: Analysis, shown: Shown) -> Shown:
    known = [arm.name for arm in analysis.arms]
    arms, highlight = chosen_arms(shown.arms, known), chosen_arms(shown.highlight, known)
    if len(highlight) > FEW:
        raise BadInput(f"{len(highlight)} arms are to be highlighted; more than {FEW} colours are not told apart.")
    if missing := [name for name in highlight if arms and name not in arms]:
        raise BadInput(f"--highlight names {missing[0]!r}, which --arms leaves out.")
    low, high = shown.ylim
    if not 0 <= low < high <= 100:
        raise BadInput(f"--ylim is {low:g},{high:g}; scores are from 0 to 100, the lower limit comes first.")
    return replace(shown, arms=arms, highlight=highlight, lengths=chosen_lengths(shown.lengths, analysis.lengths))


def paper_curve(analysis: Analysis, task: str, shown: Shown) -> Drawing:
    """Return score over length, one line an arm, averaged over its subsets.

    Raises:
        BadInput: nothing is left to draw.
    """
    scorer = analysis.scorers(task)[0]
    cells = _cells(analysis, task, shown)
    names = list(dict.fromkeys(c.arm for c in cells))
    few = shown.highlight or (tuple(names) if len(names) <= FEW else ())
    style = arm_looks(analysis, task, most=FEW, chosen=few)
    style = {name: style[name] for name in names}
    size = SIZES[shown.width]
    trained = [s.trained_length for s in analysis.summaries if s.task == task and s.arm in names and s.trained_length]
    marks = lengths_to_mark([arm for arm in analysis.arms if arm.name in names], trained)
    lengths = sorted({c.length for c in cells}, key=parse_length)

    def draw() -> "Figure":
        title = wrapped(shown.title, 72 * (size.width - 0.45), size.letters + 1.5)
        figure = empty_figure(size.width, size.height)
        axes = figure.add_axes((
            0.42 / size.width, 0.38 / size.height, 1 - (0.42 + size.names) / size.width,
            1 - (0.55 + 0.17 * len(title.splitlines())) / size.height,
        ))  # fmt: skip
        places = length_axis(axes, lengths)
        score_axis(axes, shown.ylim)
        axes.tick_params(labelsize=size.letters, length=2.5)
        axes.set_xlabel("context length (tokens)", fontsize=size.letters + 0.5, labelpad=2)
        axes.set_ylabel("score", fontsize=size.letters + 0.5, labelpad=2)
        drawn = draw_lines(axes, score_lines(cells, places), style, bands=shown.bands, scale=size.letters / 8)
        draw_chance(axes, cells)
        mark_lengths(axes, *marks)
        if title:
            axes.set_title(title, fontsize=size.letters + 1.5, pad=11)
        name_at_ends(axes, drawn, style, room=72 * size.names, size=size.letters)
        return figure

    sentences = [
        f"{task_title(task)}: {scorer} score (0 to 100) over context length{over_subsets(analysis, task, cells)}; "
        f"n = {counts_text(c.n for c in cells)} per point{', bands are 95 % intervals' if shown.bands else ''}.",
        marks_note(lengths, *marks, has_chance=chance_level(cells, shown.ylim) is not None),
        grey_note(style, len(names)),
        other_questions_note(analysis, task),
        _published_note(cells),
    ]
    return Drawing(
        name=f"plot-curve-{task}",
        title=shown.title,
        description=" ".join(filter(None, sentences)),
        draw=draw,
    )


def paper_heatmap(analysis: Analysis, task: str, shown: Shown) -> Drawing:
    """Return arms down and lengths across; see ``arms_heatmap``.

    Raises:
        BadInput: nothing is left to draw.
    """
    cells = _cells(analysis, task, shown)
    names = list(dict.fromkeys(c.arm for c in cells))
    drawing = arms_heatmap(
        analysis,
        task,
        analysis.scorers(task)[0],
        arms=[name for name in shown.arms if name in names] or names,
        lengths=shown.lengths,
        width=SIZES[shown.width].width,
        title=shown.title,
    )
    description = " ".join(filter(None, [drawing.description, _published_note(cells)]))
    return replace(drawing, name=f"plot-heatmap-{task}", description=description)


def _published_note(cells: Sequence[CellScore]) -> str:
    sources = sorted({c.source for c in cells if c.source})
    return f"Published ({' and '.join(sources)}): other people's checkpoints and samples." if sources else ""


def _cells(analysis: Analysis, task: str, shown: Shown) -> list[CellScore]:
    cells = [
        c
        for c in whole_cells(analysis, task, analysis.scorers(task)[0])
        if c.interval.mean is not None
        and (not shown.arms or c.arm in shown.arms)
        and (not shown.lengths or c.length in shown.lengths)
    ]
    if not cells:
        raise BadInput(f"Of these arms and lengths none has a score in {task}.")
    return cells
