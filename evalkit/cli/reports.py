"""The commands that read recorded answers: report, plot, compare, score, import, export."""

from pathlib import Path
from typing import Any

import click

from evalkit.cli.options import ANY_PATH, FOLDER, GroupedCommand, lengths, option, quiet_option, token_count
from evalkit.cli.terminal import echo, echo_text
from evalkit.errors import BadInput, EvalkitError

_COMPARED, _SHOWN, _LOOK = "What is compared", "What is shown", "Look"

margin_option = option(
    "--margin",
    group=_COMPARED,
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Points: arms that are shown to differ by less are equivalent.",
)
published_option = option(
    "--published",
    multiple=True,
    group=_SHOWN,
    metavar="paper|FILE.csv",
    help="Show others' counts beside: those of the Randomized YaRN paper, or a table of yours. Repeatable.",
)
trained_length_option = option(
    "--trained-length", type=token_count, group=_COMPARED, help="Such as 8k; default: what the checkpoints say."
)


@click.command(cls=GroupedCommand)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@option("--out", type=ANY_PATH, default=Path("plots"), show_default=True, help="Folder for tables and figures.")
@option(
    "--baseline",
    group=_COMPARED,
    help="Arm that the others are compared with; default: plain training, or the first arm.",
)
@trained_length_option
@margin_option
@published_option
@option(
    "--by",
    group=_SHOWN,
    metavar="TAG",
    help="Group samples by a tag of theirs, such as entries, hops or distance.",
)
@option(
    "--arms",
    group=_SHOWN,
    multiple=True,
    help="Arms of the main table (terminal, LaTeX), with commas or repeated.",
)
@option(
    "--lengths",
    "chosen",
    group=_SHOWN,
    type=lengths,
    default="",
    help="Lengths of the main table, such as 16k,128k.",
)
@option(
    "--full",
    group=_SHOWN,
    is_flag=True,
    help="Print every table; count kinds of errors in all answers (errors.csv).",
)
@quiet_option
def report(
    runs: tuple[Path, ...],
    out: Path,
    baseline: str | None,
    trained_length: int | None,
    margin: float,
    published: tuple[str, ...],
    by: str | None,
    arms: tuple[str, ...],
    chosen: tuple[str, ...],
    full: bool,
    quiet: bool,
) -> None:
    """Compare runs: tables in the terminal; Markdown, CSV, figures and a page in --out.

    RUNS are run folders, or folders that contain some; none for a report on --published alone. A table of counts has
    the columns task, subset, arm, length, n, correct (or mean, 0 to 1) and source.

    \b
    Examples:
      evalkit report results/
      evalkit report results/ --published paper
      evalkit report results/ --by entries
      evalkit report results/plain-babilong-1a2b3c4d results/yarn-babilong-5e6f7a8b --out plots/yarn/
    """
    from evalkit.report.build import build
    from evalkit.report.terminal import files_text, notes_text

    if not runs and not published:
        raise BadInput("There is nothing to report: name run folders, or --published paper.")
    built = build(
        runs,
        out,
        baseline=baseline,
        trained_length=trained_length,
        margin=margin,
        published=list(published),
        by=by,
        full=full,
        arms=arms,
        lengths=chosen,
    )
    if not quiet:
        echo(built.text)
    echo(notes_text(built.notices, full=full), nl=False, err=True)
    if not quiet:
        echo(files_text(out, built.files), err=True)


def _limits(text: str) -> tuple[float, float]:
    """Turn "40,100" into (40.0, 100.0)."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not two numbers such as 40,100.") from None
    return low, high


@click.command(cls=GroupedCommand)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("--out", type=ANY_PATH, default=Path("plots"), show_default=True, help="Folder for PDF, PNG and SVG.")
@option("--kind", group=_SHOWN, type=click.Choice(["curve", "heatmap"]), default="curve", show_default=True)
@option("--task", group=_SHOWN, help="The only task to draw; default: a figure for each.")
@option("--subset", group=_SHOWN, help="The only subset to draw; default: the average of all.")
@option(
    "--arms",
    group=_SHOWN,
    multiple=True,
    help="Arms to draw, in this order, with commas or repeated; default: all.",
)
@option("--highlight", group=_SHOWN, multiple=True, help="Up to five arms in colour; the others are grey.")
@option("--lengths", "chosen", group=_SHOWN, type=lengths, default="", help="Lengths to draw; default: all.")
@option("--width", group=_LOOK, type=click.Choice(["column", "text"]), default="column", show_default=True)
@option(
    "--ylim",
    group=_LOOK,
    metavar="LOW,HIGH",
    type=_limits,
    default="0,100",
    show_default=True,
    help="Ends of the score axis.",
)
@option("--bands/--no-bands", group=_LOOK, default=True, show_default=True, help="95 % intervals as bands.")
@option("--title", group=_LOOK, default="", help="Default: none, as captions of papers have it.")
@option(
    "--baseline",
    group=_COMPARED,
    help="Arm that is in colour whatever its score; default: plain training, or the first.",
)
@trained_length_option
@published_option
def plot(
    runs: tuple[Path, ...],
    out: Path,
    kind: Any,
    task: str | None,
    subset: str | None,
    arms: tuple[str, ...],
    highlight: tuple[str, ...],
    chosen: tuple[str, ...],
    width: Any,
    ylim: tuple[float, float],
    bands: bool,
    title: str,
    baseline: str | None,
    trained_length: int | None,
    published: tuple[str, ...],
) -> None:
    """Draw figures for a paper, 3.25 inches wide (--width column) or 6.75 (text), and print a caption for each.

    Of more than five arms the baseline and those with the highest means have colours, unless --highlight names others.

    \b
    Examples:
      evalkit plot results/ --width column
      evalkit plot results/ --arms "plain,Randomized YaRN" --ylim 40,100 --no-bands
      evalkit plot results/ --kind heatmap --width text
      evalkit plot results/ --subset qa3 --published paper
    """
    from evalkit.report.plot import Shown
    from evalkit.report.plot import plot as draw
    from evalkit.report.terminal import files_text, terminal_width, wrapped

    shown = Shown(arms=arms, highlight=highlight, lengths=chosen, width=width, ylim=ylim, bands=bands, title=title)
    drawings, files = draw(
        runs,
        out,
        kind=kind,
        task=task,
        subset=subset,
        shown=shown,
        baseline=baseline,
        trained_length=trained_length,
        published=published,
    )
    for drawing in drawings:
        echo("\n".join(wrapped(f"{drawing.name}: {drawing.description}", terminal_width(), "", "  ")))
    echo(files_text(out, files), err=True)


@click.command()
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
@trained_length_option
@margin_option
def compare(first: Path, second: Path, trained_length: int | None, margin: float) -> None:
    """Say by how much FIRST is better than SECOND on the samples that both answered, and how sure that is.

    Each is a run folder, or a folder of runs that are one arm (several seeds). Runs that were asked different data are
    refused, with the difference named.

    \b
    Example:
      evalkit compare results/randomized-yarn-babilong-1a2b3c4d results/plain-babilong-5e6f7a8b
    """
    from evalkit.report.compare import compare as compare_runs
    from evalkit.report.terminal import notes_text

    compared = compare_runs(first, second, trained_length=trained_length, margin=margin)
    echo(compared.text)
    echo(notes_text(compared.notices), nl=False, err=True)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
def score(runs: tuple[Path, ...]) -> None:
    """Compute the scores of recorded answers again, without a model.

    RUNS are run folders, or folders that contain some. One that cannot be scored is named, and the others are scored.

    \b
    Examples:
      evalkit score results/ckpt-babilong-1a2b3c4d
      evalkit score results/
    """
    from evalkit.records.scoring import score_folders

    done: list[Path] = []
    faults = []
    for found in score_folders(runs):
        if isinstance(found, EvalkitError):
            faults.append(found)
            echo_text(f"Left out: {found}", err=True)
            continue
        done.append(found.path)
        for notice in found.notices:
            echo_text(f"note: {notice}", err=True)
    if not done:
        raise BadInput(f"No run could be scored. {faults[0]}")
    print_tables(done)


@click.command("import")
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@option("--out", type=ANY_PATH, default=Path("results"), show_default=True, help="Where run folders go.")
@option("--arm", help="Name in tables and figures; default: the model's, from its folders.")
def import_(folder: Path, out: Path, arm: str | None) -> None:
    """Turn a folder of published BABILong answers into run folders that 'report' shows beside yours.

    A file that cannot be used is named, and the others are imported.

    A table of counts needs no import: evalkit report --published FILE.csv shows it.

    \b
    Example:
      evalkit import babilong_evals/microsoft/Phi-3-mini-128k-instruct && evalkit report results/
    """
    from evalkit.records.imports import import_folder
    from evalkit.records.scoring import score_folder
    from evalkit.runs.provenance import provenance

    if folder.is_file():
        raise BadInput(
            f"{folder} is no folder of answers; a table of counts needs no import: evalkit report --published {folder}"
        )
    imported, faults = 0, 0
    for found in import_folder(folder, out, arm=arm, provenance=provenance()):
        if isinstance(found, BadInput):
            faults += 1
            echo_text(f"Left out: {found}", err=True)
            continue
        for notice in found.notices:
            echo_text(notice, err=True)
        score_folder(found)
        imported += 1
        echo_text(f"{found.path}: {len(found.recorded()):,} answers")
    if not imported:
        raise BadInput(f"Nothing in {folder} could be imported: all of its {faults} files of answers are faulty.")


@click.command()
@click.argument("run_folder", metavar="RUN", type=FOLDER)
@click.argument("out", type=ANY_PATH)
@option("--to", required=True, metavar="LAYOUT", help="lm-eval, inspect, babilong or csv.")
def export(run_folder: Path, out: Path, to: str) -> None:
    """Write a run's answers and scores into the folder OUT, in the layout of another tool.

    lm-eval: results and samples as lm-evaluation-harness writes them. inspect: a log for 'inspect view'. babilong: the
    CSV files of BABILong's authors. csv: a row per answer and scorer. Prompts are in none of them; questions are.

    \b
    Examples:
      evalkit export results/ckpt-babilong-1a2b3c4d --to inspect logs/
      evalkit export results/ckpt-babilong-1a2b3c4d --to csv tables/
    """
    from evalkit.runs.export import LAYOUTS
    from evalkit.runs.export import export as write

    if to not in LAYOUTS:
        raise BadInput(f"--to is {to!r}; the layouts are {', '.join(LAYOUTS)}.")
    for path in write(run_folder, to, out):
        echo(path)


def print_tables(folders: list[Path]) -> None:
    """Print the score tables of some runs."""
    from evalkit.report.build import load_runs, terminal_tables

    echo(terminal_tables(load_runs(folders)))
