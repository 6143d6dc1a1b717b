"""``evalkit compare A B``: is A really better than B, on the questions that both were asked?"""

from dataclasses import dataclass, replace
from pathlib import Path

from evalkit.errors import BadInput
from evalkit.report.analysis import Analysis, analyse
from evalkit.report.comparison import MARGIN, data_differences
from evalkit.report.load import Loaded, load_runs
from evalkit.report.run import Run
from evalkit.report.tables import comparison_table
from evalkit.report.terminal import terminal, terminal_width, wrapped
from evalkit.report.words import findings


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The answer."""

    text: str
    """For the terminal: a table per task and scorer, then plain sentences."""
    notices: tuple[str, ...]
    """What was left out or should be known, one sentence each."""
    analysis: Analysis
    """With two arms; ``comparisons`` holds the first minus the second."""


def compare(
    first: Path | str,
    second: Path | str,
    *,
    trained_length: int | None = None,
    margin: float = MARGIN,
) -> Compared:
    """Compare two run folders, or two folders of runs, sample by sample.

    Args:
        first: a run folder, or a folder whose runs are one arm (several seeds, several tasks).
        second: what it is compared with.
        trained_length: tokens; overrides what the checkpoints say.
        margin: points; arms that differ by less are equivalent.

    Raises:
        BadInput: they were asked different data (the message names the part of the fingerprint), share no sample, or
            are the same folder.
    """
    a, b = Path(first), Path(second)
    loaded = load_runs([a, b])
    sides = [[run for run in loaded.runs if _within(run, side)] for side in (a, b)]
    for side, runs in zip((a, b), sides, strict=True):
        if not runs:
            raise BadInput(f"Nothing in {side} can be compared. {' '.join(loaded.left_out)}".rstrip())
    if any(run in sides[1] for run in sides[0]):
        raise BadInput(f"{a} and {b} hold the same run {sides[0][0].name}; name two different ones to compare.")
    _refuse_different_data(*sides)
    names = _names(*sides)
    renamed = tuple(replace(run, arm=names[run in sides[1]]) for run in loaded.runs)
    analysis = analyse(
        Loaded(loaded.frame, renamed, loaded.left_out),
        baseline=names[1],
        trained_length=trained_length,
        margin=margin,
    )
    if not analysis.comparisons:
        raise BadInput(f"{a} and {b} have no sample in common: their tasks, subsets or lengths do not meet.")
    width, said = terminal_width(), set[str]()
    tables = [terminal(comparison_table(analysis, c.task, c.scorer), width, said) for c in analysis.comparisons]
    sentences = [f"{found.title}: {' '.join((*found.each, *found.caveats))}" for found in findings(analysis)]
    ends = ["\n".join(wrapped(sentence, width, "", "  ")) for sentence in sentences]
    return Compared(text="\n\n".join([*tables, *ends]), notices=analysis.notes, analysis=analysis)


def _within(run: Run, folder: Path) -> bool:
    return run.path.resolve().is_relative_to(folder.resolve())


def _names(first: list[Run], second: list[Run]) -> tuple[str, str]:
    """The arms' names; where both sides have the same one, the runs' names tell them apart."""
    own = [runs[0].arm if len({run.arm for run in runs}) == 1 else runs[0].name for runs in (first, second)]
    return (own[0], own[1]) if own[0] != own[1] else (first[0].name, second[0].name)


def _refuse_different_data(first: list[Run], second: list[Run]) -> None:
    for a in first:
        others = [b for b in second if a.config.get("task") == b.config.get("task")]
        differing = [found for b in others if (found := data_differences(a, b))]
        if others and len(differing) == len(others):
            raise BadInput(
                f"{a.name} and {others[0].name} were asked different data, so their scores do not pair: "
                f"{'; '.join(differing[0])}; run one of them again with the other's data."
            )
