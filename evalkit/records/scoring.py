"""The scores of a run folder: the stored ones where they still hold, else computed anew."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evalkit import benchmarks
from evalkit.errors import BadInput, EvalkitError, RunFolderError
from evalkit.records.folder import RunFolder, find_run_folders

if TYPE_CHECKING:
    import pyarrow as pa


class Scored(NamedTuple):
    """The scores of a folder."""

    table: "pa.Table"
    """See ``scores.table`` for its columns."""
    outdated: bool
    """There were stored scores, which fit neither the predictions nor the scoring rules of today."""


def score_folder(folder: RunFolder) -> "pa.Table":
    """Compute every score of a run folder from its predictions, write ``scores.parquet``, and return the table.

    Raises:
        RunFolderError: the predictions cannot be read, or the file cannot be written.
    """
    table = folder.score_table(benchmarks.score, _version(folder))
    folder.keep_scores(table)
    return table


def score_folders(paths: Iterable[Path]) -> Iterator[RunFolder | EvalkitError]:
    """Compute the scores of all run folders at or below some paths again; see ``score_folder``.

    Yields:
        Each folder when its scores are written, and for one that cannot be scored the error that names it.

    Raises:
        BadInput: a path is no folder, or there is no run folder at or below it.
    """
    for path in paths:
        found = find_run_folders(path)
        if not found:
            raise BadInput(
                f"There is no run folder (one with a run.json) at or below {path}; make one with evalkit run."
            )
        for place in found:
            try:
                folder = RunFolder.open(place)
                score_folder(folder)
                yield folder
            except EvalkitError as error:
                yield error


def scored(folder: RunFolder) -> Scored:
    """Return the scores of a folder; one that may only be read gets them computed and not kept.

    Raises:
        RunFolderError: the predictions cannot be read.
    """
    version = _version(folder)
    stored = folder.read_scores(version)
    if stored is not None:
        return Scored(stored, outdated=False)
    table = folder.score_table(benchmarks.score, version)
    outdated = folder.has_other_scores(table)
    with suppress(RunFolderError):
        folder.keep_scores(table)
    return Scored(table, outdated)


def _version(folder: RunFolder) -> str:
    if "task" not in folder.config:
        raise RunFolderError(f"{folder.path}/run.json has no task in its config; restore it from a backup.")
    return benchmarks.scorer_version(folder.config["task"])
