"""Runs in, report out: tables, figures and one page, in one folder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.errors import BadInput
from evalkit.files import write_whole
from evalkit.lengths import parse_length
from evalkit.report import render
from evalkit.report.analysis import Analysis, analyse
from evalkit.report.arms import chosen_arms, chosen_lengths
from evalkit.report.cells import Table, effective_text, percent
from evalkit.report.comparison import MARGIN, Comparison
from evalkit.report.estimates import AVERAGE, CellScore
from evalkit.report.figures import all_drawings
from evalkit.report.flips import flip_rows
from evalkit.report.groups import GROUP_COLUMNS, group_rows
from evalkit.report.latex import appendix, paper_tables
from evalkit.report.load import Loaded, load_runs
from evalkit.report.logprobs import LOGPROB_COLUMNS, log_probabilities, logprob_rows, logprob_tables
from evalkit.report.mistakes import MISTAKE_COLUMNS, mistake_rows, mistake_tables, mistakes
from evalkit.report.page import render_page
from evalkit.report.provenance import provenance, stamp
from evalkit.report.published import Published, read_published
from evalkit.report.published_report import write_published
from evalkit.report.repeats import REPEAT_COLUMNS, repeat_rows, repeat_tables, repeated
from evalkit.report.samples import collect_samples
from evalkit.report.stats import Contrast, Interval
from evalkit.report.style import save
from evalkit.report.tables import all_tables, score_table
from evalkit.report.terminal import (
    MOST_LINES,
    files_text,
    notes_text,
    terminal,
    terminal_full,
    terminal_report,
    terminal_width,
)
from evalkit.report.words import findings

__all__ = ["Loaded", "Report", "build", "load_runs", "terminal_tables"]

SUMMARY_COLUMNS = (
    "run",
    "arm",
    "task",
    "subset",
    "length",
    "scorer",
    "n",
    "n_unscored",
    "score",
    "ci_low",
    "ci_high",
    "length_tokens",
    "interval",
    "chance",
    "n_unfinished",
    "trained_length",
    "published",
)
_CURVE_COLUMNS = (*(c for c in SUMMARY_COLUMNS if c not in ("run", "trained_length", "published")), "models")
"""Of an arm over all its runs, as figures and tables show it."""


class Shown(NamedTuple):
    """What main tables show; all where nothing is named."""

    arms: tuple[str, ...]
    lengths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What ``build`` made."""

    text: str
    """For the terminal, as wide as it is."""
    notices: tuple[str, ...]
    """What was left out or should be known, one sentence each."""
    files: tuple[Path, ...]
    analysis: Analysis | None
    """None for a report on published tables alone."""


def build(
    paths: Iterable[Path | str],
    out: Path | str = "plots",
    *,
    baseline: str | None = None,
    trained_length: int | None = None,
    margin: float = MARGIN,
    published: Sequence[str] = (),
    by: str | None = None,
    full: bool = False,
    arms: Sequence[str] = (),
    lengths: Sequence[str] = (),
) -> Report:
    """Write every table and figure and the page of some runs into ``out``.

    Args:
        paths: run folders, or folders that contain some; none for a report on ``published`` alone, without a page.
        out: created where it does not exist; files of an earlier report are replaced.
        baseline: the arm that others are compared with; None takes plain training, or else the first arm.
        trained_length: tokens; overrides what the checkpoints say.
        margin: points; arms that differ by less are equivalent.
        published: tables of others' figures to show beside; see ``read_published``.
        by: a tag of the samples, to group them by.
        arms: those that the main table shows, in this order; each entry may name several, with commas between.
        lengths: those that the main table shows, such as "16k".
        full: tell everything in the text; read every answer and count kinds of errors as well.

    Raises:
        BadInput: no usable run, no arm of the baseline's name, a published table that cannot be right or stand beside
            these runs, or ``out`` cannot be written.
    """
    given, out = [Path(path) for path in paths], Path(out)
    tables_of_others = read_published(published) if published else None
    if tables_of_others and not given:
        return _build_published(tables_of_others, out, published)
    loaded = load_runs(given, tag=by)
    analysis = analyse(
        loaded,
        baseline=baseline,
        trained_length=trained_length,
        margin=margin,
        published=tables_of_others,
        by=by,
    )
    shown = Shown(chosen_arms(arms, [arm.name for arm in analysis.arms]), chosen_lengths(lengths, analysis.lengths))
    options = {
        "baseline": baseline,
        "trained_length": trained_length,
        "margin": None if margin == MARGIN else margin,
        "published": list(published) or None,
        "by": by,
        "full": full or None,
        "arms": list(arms) or None,
        "lengths": ",".join(lengths) or None,
    }
    known = {name: value for name, value in options.items() if value is not None}
    record = provenance(loaded.runs, given, known, tables_of_others.files if tables_of_others else {})
    wrong = mistakes(analysis.arms) if full else []
    logprobs = log_probabilities(analysis)
    repeats = repeated(analysis.arms)
    tables = [*all_tables(analysis), *logprob_tables(logprobs), *repeat_tables(repeats), *mistake_tables(wrong)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        more = {"logprobs.csv": render.csv_text(LOGPROB_COLUMNS, logprob_rows(logprobs))} if logprobs else {}
        more |= {"repeats.csv": render.csv_text(REPEAT_COLUMNS, repeat_rows(repeats))} if repeats else {}
        more |= {"errors.csv": render.csv_text(MISTAKE_COLUMNS, mistake_rows(wrong))} if wrong else {}
        files = _write_texts(analysis, tables, more, record, out, shown)
        drawn = []
        for drawing in all_drawings(analysis):
            files += save(drawing.figure(), out, drawing.name, stamp(record))
            svg, pdf = ((out / f"{drawing.name}.{kind}").read_bytes() for kind in ("svg", "pdf"))
            drawn.append((drawing, svg, pdf))
        samples = collect_samples(analysis)
        page = out / "report.html"
        write_whole(page, render_page(analysis, tables, drawn, samples, record))
    except OSError as error:
        raise _unwritten(out, error) from error
    notices = (*analysis.notes, *samples.notes)
    width = terminal_width()
    if full:
        text = terminal_full(analysis, tables, width)
    else:
        below = notes_text(notices, full=False) + files_text(out, [page, *files])
        text = terminal_report(analysis, width, *shown, room=MOST_LINES - below.count("\n") - 1)
    return Report(text=text, notices=notices, files=(page, *files), analysis=analysis)


def _build_published(published: Published, out: Path, sources: Sequence[str]) -> Report:
    record = provenance((), (), {"published": list(sources)}, published.files)
    try:
        text, files = write_published(published, out, record)
    except OSError as error:
        raise _unwritten(out, error) from error
    return Report(text=text, notices=(), files=tuple(files), analysis=None)


def _unwritten(out: Path, error: OSError) -> BadInput:
    return BadInput(f"The report cannot be written to {out} ({error.strerror or error}); name another --out.")


def _write_texts(
    analysis: Analysis,
    tables: Sequence[Table],
    more: Mapping[str, str],
    record: dict[str, Any],
    out: Path,
    shown: Shown,
) -> list[Path]:
    origin = stamp(record)
    contents = {
        "report.md": _markdown(analysis, tables, origin),
        "tables.tex": paper_tables(analysis, "column", origin, arms=shown.arms, lengths=shown.lengths),
        "tables-wide.tex": paper_tables(analysis, "text", origin, arms=shown.arms, lengths=shown.lengths),
        "appendix.tex": appendix(tables, origin),
        "summary.csv": render.csv_text(SUMMARY_COLUMNS, _summary_rows(analysis)),
        "curves.csv": render.csv_text(_CURVE_COLUMNS, _curve_rows(analysis)),
        "comparisons.csv": render.csv_text(_COMPARISON_COLUMNS, _comparison_rows(analysis)),
        "arms.csv": render.csv_text(_ARM_COLUMNS, _arm_rows(analysis)),
        "report.json": render.json_text(record | {"notes": analysis.notes}),
    }
    if analysis.groups:
        contents["by.csv"] = render.csv_text(GROUP_COLUMNS, group_rows(analysis.groups))
    if analysis.flips:
        contents["depths.csv"] = render.csv_text(GROUP_COLUMNS, flip_rows(analysis.flips))
    contents |= more
    for name, text in contents.items():
        write_whole(out / name, text)
    return [out / name for name in contents]


def _markdown(analysis: Analysis, tables: Sequence[Table], origin: str) -> str:
    parts = ["# Report"]
    for found in findings(analysis):
        parts += [f"## {found.title}", _listed((*found.verdicts, *found.caveats))]
        parts += ["Arm by arm:", _listed(found.each)] if found.each else []
    if analysis.notes:
        parts += ["## What was left out, and what to know", _listed(analysis.notes)]
    parts += ["## Tables", *map(render.markdown, tables), "## Where this comes from", f"`{origin.replace('`', '')}`"]
    return "\n\n".join(parts) + "\n"


def _listed(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {render.markdown_text(sentence)}" for sentence in sentences)


def terminal_tables(loaded: Loaded) -> str:
    """Return the score tables of some runs as text, without comparing them: what ``evalkit run`` prints at its end."""
    analysis = analyse(loaded)
    width, said = terminal_width(), set[str]()
    tables = [score_table(analysis, task, analysis.scorers(task)[0]) for task in analysis.tasks]
    return "\n\n".join(terminal(table, width, said) for table in tables)


# -- CSV: long form, 0 to 100 ----------------------------------------------------------------------------------------


def _summary_rows(analysis: Analysis) -> Iterable[dict[str, Any]]:
    by_name = {run.name: run for run in analysis.loaded.runs}
    for cell in analysis.run_cells:
        run = by_name[cell.run]
        origin = {"run": cell.run, "trained_length": run.trained_length, "published": run.published}
        yield _cell_row(cell) | origin


def _curve_rows(analysis: Analysis) -> Iterable[dict[str, Any]]:
    for cell in analysis.cells:
        yield _cell_row(cell) | {"models": cell.num_models}


def _cell_row(cell: CellScore) -> dict[str, Any]:
    return {
        "arm": cell.arm,
        "task": cell.task,
        "subset": cell.subset,
        "length": cell.length,
        "scorer": cell.scorer,
        "n": cell.n,
        "n_unscored": cell.n_unscored,
        **_ends("score", cell.interval),
        "length_tokens": parse_length(cell.length),
        "interval": cell.interval.method,
        "chance": percent(cell.chance),
        "n_unfinished": cell.n_unfinished,
    }


_COMPARISON_COLUMNS = (
    "arm", "baseline", "task", "scorer", "endpoint", "subset", "length", "n", "stories", "difference", "ci_low",
    "ci_high", "p", "p_holm", "verdict", "order", "detectable", "interval", "models_arm", "models_baseline",
)  # fmt: skip


def _comparison_rows(analysis: Analysis) -> Iterable[dict[str, Any]]:
    for c in (*analysis.comparisons, *analysis.pairs):
        whole = AVERAGE if len(c.subsets) > 1 else c.subsets[0]
        if c.primary is not None:
            row = _comparison_row(c, "primary", whole, " ".join(c.lengths), c.primary, c.primary_p_holm)
            yield row | {"verdict": c.verdict, "order": c.order.word if c.order else None}
        for length, found in c.by_length.items():
            yield _comparison_row(c, "length", whole, length, found, c.by_length_p_holm[length])
        for (subset, length), found in c.by_cell.items():
            yield _comparison_row(c, "cell", subset, length, found, c.by_cell_p_holm[subset, length])


def _comparison_row(
    c: Comparison, endpoint: str, subset: str, length: str, found: Contrast, p_holm: float | None
) -> dict[str, Any]:
    return {
        "arm": c.arm,
        "baseline": c.baseline,
        "task": c.task,
        "scorer": c.scorer,
        "endpoint": endpoint,
        "subset": subset,
        "length": length,
        "n": found.n,
        "stories": found.num_clusters,
        **_ends("difference", found),
        "p": found.p,
        "p_holm": p_holm,
        "detectable": percent(found.detectable),
        "interval": found.method,
        "models_arm": c.num_models[0],
        "models_baseline": c.num_models[1],
    }


_ARM_INTERVALS = ("in_distribution", "out_of_distribution", "overall", "retention", "area", "slope")
_ARM_COLUMNS = (
    "arm",
    "task",
    "scorer",
    "subsets",
    "lengths",
    "trained_length",
    *(f"{name}{end}" for name in _ARM_INTERVALS for end in ("", "_ci_low", "_ci_high")),
    "effective_length",
    "effective_length_ruler",
)


def _arm_rows(analysis: Analysis) -> Iterable[dict[str, Any]]:
    for s in analysis.summaries:
        row: dict[str, Any] = {
            "arm": s.arm,
            "task": s.task,
            "scorer": s.scorer,
            "subsets": " ".join(s.subsets),
            "lengths": " ".join(s.lengths),
            "trained_length": s.trained_length,
            "effective_length": effective_text(s.effective),
            "effective_length_ruler": effective_text(s.effective_ruler),
        }
        for name in _ARM_INTERVALS:
            found = getattr(s, name)
            if found is not None:
                row |= _ends(name, found, prefix=f"{name}_")
        yield row


def _ends(name: str, found: Interval | Contrast, prefix: str = "") -> dict[str, float | None]:
    return {
        name: percent(found.mean),
        f"{prefix}ci_low": percent(found.low),
        f"{prefix}ci_high": percent(found.high),
    }
