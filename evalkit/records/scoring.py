"""The scores of a run folder: the stored ones where they still hold, else computed anew."""

from typing import TYPE_CHECKING, NamedTuple

from evalkit import benchmarks
from evalkit.errors import RunFolderError
from evalkit.records.folder import RunFolder

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
    scores = [score for prediction in folder.recorded().values() for score in benchmarks.score(prediction)]
    version = benchmarks.scorer_version(folder.config["task"])
    try:
        return folder.write_scores(scores, version)
    except RunFolderError as error:
        raise _NotKept(str(error), folder.score_table(scores, version)) from error


def scored(folder: RunFolder) -> Scored:
    """Return the scores of a folder; one that may only be read gets them computed and not kept.

    Raises:
        RunFolderError: the predictions cannot be read.
    """
    stored = folder.read_scores(benchmarks.scorer_version(folder.config["task"]))
    if stored is not None:
        return Scored(stored, outdated=False)
    outdated = folder.has_scores
    try:
        return Scored(score_folder(folder), outdated)
    except _NotKept as unkept:
        return Scored(unkept.table, outdated)


class _NotKept(RunFolderError):
    """Scores that were computed and could not be written."""

    def __init__(self, message: str, table: "pa.Table") -> None:
        super().__init__(message)
        self.table = table
