"""The scores of a run folder: the stored ones where they still hold, else computed anew."""

from typing import TYPE_CHECKING, NamedTuple

from evalkit import benchmarks
from evalkit.errors import RunFolderError
from evalkit.records.folder import RunFolder
from evalkit.types import Score

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
    return folder.write_scores(_computed(folder), _version(folder))


def scored(folder: RunFolder) -> Scored:
    """Return the scores of a folder; one that may only be read gets them computed and not kept.

    Raises:
        RunFolderError: the predictions cannot be read.
    """
    version = _version(folder)
    stored = folder.read_scores(version)
    if stored is not None:
        return Scored(stored, outdated=False)
    outdated, scores = folder.has_scores, _computed(folder)
    try:
        return Scored(folder.write_scores(scores, version), outdated)
    except RunFolderError:
        return Scored(folder.score_table(scores, version), outdated)


def _computed(folder: RunFolder) -> list[Score]:
    return [score for prediction in folder.recorded().values() for score in benchmarks.score(prediction)]


def _version(folder: RunFolder) -> str:
    return benchmarks.scorer_version(folder.config["task"])
