"""All scores of one task under one scorer, arranged for statistics (runs down, samples across), and measured."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evalkit.lengths import parse_length
from evalkit.report import stats
from evalkit.report.resampling import Draws, Floats, Observations, difference
from evalkit.report.run import Run
from evalkit.report.stats import Contrast, Estimate, Interval

if TYPE_CHECKING:
    import pandas as pd


Models: TypeAlias = Mapping[str, Sequence[int]]
"""Rows of a panel by trained model."""


class Observed(NamedTuple):
    """Observations of an arm, or of a pair of arms, in some cells, and what could not be used."""

    observations: Observations
    num_unscored: int
    """Samples asked there that have no score under some of the models."""
    num_unfinished: int = 0
    """Those of them with an answer that was cut off inside its reasoning."""


class Both(NamedTuple):
    """Observations of two arms on the same samples."""

    left: Observations
    right: Observations
    paired_seeds: bool
    """Both were trained with the same seeds."""
    num_unscored: int
    """Samples asked of both that have no score under some of the models."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Scores of one task under one scorer. Samples are sorted by cell."""

    task: str
    scorer: str
    runs: tuple[Run, ...]
    """Those with samples of this task, one per row of ``values``."""
    cells: tuple[tuple[str, str], ...]
    """(subset, length), subsets in natural order, then lengths from short to long."""
    cell: NDArray[np.int64]
    """Shape (samples,)."""
    cluster: NDArray[np.int64]
    """Shape (samples,): the story, numbered over the whole task."""
    sample_ids: NDArray[np.object_]
    """Shape (samples,)."""
    data: NDArray[np.int64]
    """Shape (samples,): number of the data a sample belongs to; samples of other data are other samples."""
    data_of_run: NDArray[np.int64]
    """Shape (runs,)."""
    values: Floats
    """Shape (runs, samples): NaN where there is no score."""
    asked: NDArray[np.bool_]
    """Shape (runs, samples)."""
    unfinished: NDArray[np.bool_]
    """Shape (runs, samples): answers that were cut off inside their reasoning."""
    tags: NDArray[np.object_] | None = None
    """Shape (samples,): value of the tag that was loaded, as text, "" for none."""

    def only(self, samples: NDArray[np.bool_]) -> "Panel":
        """Return the panel of some samples, a mask of shape (samples,); cells may be empty then."""
        return replace(
            self,
            cell=self.cell[samples],
            cluster=self.cluster[samples],
            sample_ids=self.sample_ids[samples],
            data=self.data[samples],
            values=self.values[:, samples],
            asked=self.asked[:, samples],
            unfinished=self.unfinished[:, samples],
            tags=None if self.tags is None else self.tags[samples],
        )

    @cached_property
    def lengths(self) -> tuple[str, ...]:
        """Length labels from short to long."""
        return tuple(sorted({length for _, length in self.cells}, key=parse_length))

    @cached_property
    def subsets(self) -> tuple[str, ...]:
        """Subsets in natural order."""
        return tuple(dict.fromkeys(subset for subset, _ in self.cells))

    @cached_property
    def _slices(self) -> list[slice]:
        edges = np.searchsorted(self.cell, np.arange(len(self.cells) + 1))
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]

    @cached_property
    def _asked_in(self) -> NDArray[np.bool_]:
        """Shape (runs, cells): whether a run asked anything there."""
        return np.stack([self.asked[:, part].any(axis=1) for part in self._slices], axis=1)

    def rows(self, arm: str) -> dict[str, list[int]]:
        """Return an arm's rows by trained model (``Run.replicate``)."""
        found: dict[str, list[int]] = {}
        for row, run in enumerate(self.runs):
            if run.arm == arm:
                found.setdefault(run.replicate, []).append(row)
        return dict(sorted(found.items()))

    def asked_cells(self, rows: Iterable[int]) -> set[tuple[str, str]]:
        """Return the cells in which any of ``rows`` asked something."""
        asked = np.flatnonzero(np.any([self._asked_in[row] for row in rows], axis=0))
        return {self.cells[i] for i in asked}

    def weights(self, by_length: Mapping[str, float], subsets: Sequence[str]) -> Floats:
        """Return weights of cells: each length's weight in equal parts for ``subsets``."""
        shares = {(s, length): w / len(subsets) for length, w in by_length.items() for s in subsets}
        return np.array([shares.get(cell, 0.0) for cell in self.cells])

    def models_that_asked(self, models: Models, weights: Floats) -> dict[str, list[int]]:
        """Return the models that asked every cell with a weight."""
        wanted = np.flatnonzero(weights)
        return {
            name: list(rows)
            for name, rows in models.items()
            if len(wanted) and self._asked_in[list(rows)][:, wanted].any(axis=0).all()
        }

    def cells_asked_by_all(self, models: Models) -> Floats:
        """Return 1 for each cell that all of the models asked, else 0, shape (cells,)."""
        asked = [self._asked_in[list(rows)].any(axis=0) for rows in models.values()]
        everywhere: Floats = np.all(asked, axis=0).astype(float)
        return everywhere

    def observations(self, models: Models, weights: Floats) -> Observed | None:
        """Return an arm's scores in the cells that have a weight; None where no model asked them all.

        Args:
            models: rows by trained model, from ``rows``. Runs of the same model are averaged. A model that did not ask
                every cell is left out.
            weights: shape (cells,).
        """
        full = self.models_that_asked(models, weights)
        if not full:
            return None
        place = self._samples(weights)
        scores = self._scores(full, place)
        rows = [row for own in full.values() for row in own]
        unscored = np.isnan(scores).any(axis=0) & self.asked[rows][:, place].any(axis=0)
        unfinished = unscored & self.unfinished[rows][:, place].any(axis=0)
        scored = ~np.isnan(scores).any(axis=0)
        observations = Observations(
            parts=(scores[:, scored],), cell=self.cell[place][scored], cluster=self.cluster[place][scored]
        )
        return Observed(observations, int(unscored.sum()), int(unfinished.sum()))

    def paired_differences(self, first: Models, second: Models, weights: Floats) -> Observed | None:
        """Return the differences of two arms on the samples that both have a score for; None as in ``observations``.

        Where both arms were trained with the same seeds, model is subtracted from model.
        """
        both = self.both_sides(first, second, weights)
        if both is None:
            return None
        return Observed(difference(both.left, both.right, paired_seeds=both.paired_seeds), both.num_unscored)

    def both_sides(self, first: Models, second: Models, weights: Floats) -> Both | None:
        """Return the scores of two arms on the samples that both have one for; None as in ``observations``."""
        sides = [self.models_that_asked(models, weights) for models in (first, second)]
        if not all(sides):
            return None
        place = self._samples(weights)
        a, b = (self._scores(side, place) for side in sides)
        both = ~(np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0))
        cell, cluster = self.cell[place][both], self.cluster[place][both]
        left, right = (Observations(parts=(side[:, both],), cell=cell, cluster=cluster) for side in (a, b))
        everywhere = np.all(
            [self.asked[rows][:, place].any(axis=0) for side in sides for rows in side.values()], axis=0
        )
        return Both(left, right, list(sides[0]) == list(sides[1]), int((everywhere & ~both).sum()))

    def _samples(self, weights: Floats) -> NDArray[np.int64]:
        """Places of the samples of the cells with a weight."""
        return np.concatenate([np.arange(self._slices[c].start, self._slices[c].stop) for c in np.flatnonzero(weights)])

    def _scores(self, models: Models, place: NDArray[np.int64]) -> Floats:
        """Scores of each model, averaged over its runs, shape (models, places)."""
        return np.stack([_mean_of_known(self.values[list(rows)][:, place]) for rows in models.values()])


# -- statistics over any cells of a panel ---------------------------------------------------------------------------


class Mean(NamedTuple):
    """A mean with its interval and counts."""

    interval: Interval
    n: int
    n_unscored: int
    n_unfinished: int
    num_models: int


class Measure:
    """Measures one arm (``mean``, ``ratio``, ``contrast`` for slopes) or the difference of two (``contrast``).

    Resamples are drawn once for all cells of an arm and shared by its means: that is what makes a report of a million
    predictions quick, and two means of the same arm comparable.
    """

    def __init__(self, panel: Panel, *sides: Models, seed: int = 0) -> None:
        self._panel = panel
        self._sides = sides
        self._seed = seed
        self._draws: dict[tuple[str, ...], Draws] = {}

    def mean(self, weights: Floats) -> Mean | None:
        """Return the weighted mean of cell means of an arm; None where no model asked all these cells.

        Where a cell has no scored sample, the mean is not known.
        """
        observed = self._observe(weights)
        if observed is None:
            return None
        obs = observed.observations
        interval = Interval(None, None, None, "none")
        if _is_whole(observed, weights):
            interval = stats.mean_interval(obs, weights, draws=self._shared_draws(weights))
        return Mean(interval, len(obs.cell), observed.num_unscored, observed.num_unfinished, obs.num_seeds)

    def ratio(self, above: Floats, below: Floats) -> Interval:
        """Return the ratio of two weighted means."""
        observed = self._observe(above + below)
        if observed is None or not _is_whole(observed, above + below):
            return Interval(None, None, None, "none")
        return stats.ratio_interval(observed.observations, above, below)

    def ratio_difference(self, above: Floats, below: Floats) -> Estimate | None:
        """Return the ratio of two weighted means of the first side minus that of the second; None as ``contrast``."""
        both = self._panel.both_sides(self._sides[0], self._sides[1], above + below)
        if both is None or not _is_whole(Observed(both.left, 0), above + below):
            return None
        return stats.ratio_difference(both.left, both.right, above, below, paired_seeds=both.paired_seeds)

    def contrast(self, weights: Floats) -> Contrast | None:
        """Return the weighted sum of cell means; None where a cell has no sample that counts."""
        observed = self._observe(weights)
        if observed is None or not _is_whole(observed, weights):
            return None
        return stats.contrast(observed.observations, weights)

    def estimate(self, weights: Floats) -> Estimate | None:
        """Return the same of values without bounds, such as log-probabilities, for an arm or a pair of arms."""
        observed = self._observe(weights)
        if observed is None or not _is_whole(observed, weights):
            return None
        return stats.estimate(observed.observations, weights)

    def num_unscored(self, weights: Floats) -> int:
        """Return the samples of these cells that were asked and do not count."""
        observed = self._observe(weights)
        return observed.num_unscored if observed else 0

    def is_known(self, weights: Floats) -> bool:
        """Return whether every cell with a weight has a sample that counts."""
        observed = self._observe(weights)
        return observed is not None and _is_whole(observed, weights)

    def _observe(self, weights: Floats) -> Observed | None:
        if len(self._sides) == 1:
            return self._panel.observations(self._sides[0], weights)
        return self._panel.paired_differences(self._sides[0], self._sides[1], weights)

    def _shared_draws(self, weights: Floats) -> Draws:
        """Resamples of every cell that the models which asked these cells asked together."""
        models = self._panel.models_that_asked(self._sides[0], weights)
        key = tuple(models)
        if key not in self._draws:
            observed = self._panel.observations(models, self._panel.cells_asked_by_all(models))
            assert observed is not None, "models that asked some cells have cells in common"
            self._draws[key] = Draws(observed.observations, self._seed)
        return self._draws[key]


def _is_whole(observed: Observed, weights: Floats) -> bool:
    """Every cell with a weight has a sample: one without would drop out of the mean unseen."""
    return len(np.unique(observed.observations.cell)) == np.count_nonzero(weights)


# -- from rows to panels -----------------------------------------------------------------------------------------


def make_panels(frame: "pd.DataFrame", runs: Sequence[Run]) -> list[Panel]:
    """Return one panel per task and scorer, in order of task and of the task's own list of scorers."""
    found = {
        (str(task), str(scorer)): part for (task, scorer), part in frame.groupby(["task", "scorer"], observed=True)
    }
    order = sorted(found, key=lambda key: (key[0], scorer_rank(key[1]), key[1]))
    return [_panel(found.pop(key), *key, runs) for key in order]


def scorer_rank(scorer: str) -> int:
    """Place of a scorer in tables: the official rule leads, the corrected one follows."""
    return {"official": 0, "corrected": 1}.get(scorer, 2)


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sorting key in which qa2 comes before qa10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.findall(r"\d+|\D+", text)]


def _panel(part: "pd.DataFrame", task: str, scorer: str, runs: Sequence[Run]) -> Panel:
    part = part.assign(**{name: part[name].cat.remove_unused_categories() for name in ("run", "subset", "length")})
    by_name = {run.name: run for run in runs}
    own = tuple(by_name[name] for name in part["run"].cat.categories)
    subset, length = part["subset"].cat, part["length"].cat
    pairs, pair = np.unique(
        subset.codes.to_numpy().astype(np.int64) * len(length.categories) + length.codes.to_numpy(), return_inverse=True
    )
    cells = [
        (subset.categories[p // len(length.categories)], length.categories[p % len(length.categories)]) for p in pairs
    ]
    order = sorted(range(len(cells)), key=lambda i: (natural(cells[i][0]), parse_length(cells[i][1])))
    cell = np.argsort(order)[pair]
    # Samples of the same name are the same question only where the data are the same.
    data_of_run = _data_group(own)
    data = data_of_run[part["run"].cat.codes.to_numpy()]
    num_samples = len(part["sample_id"].cat.categories)
    key = (cell * (data.max() + 1) + data) * num_samples + part["sample_id"].cat.codes.to_numpy()
    items, first, column = np.unique(key, return_index=True, return_inverse=True)
    story = data * len(part["story_id"].cat.categories) + part["story_id"].cat.codes.to_numpy()
    row = part["run"].cat.codes.to_numpy()
    values, asked = np.full((len(own), len(items)), np.nan), np.zeros((len(own), len(items)), dtype=bool)
    values[row, column], asked[row, column] = part["value"].to_numpy(), True
    unfinished = np.zeros_like(asked)
    if "finish_reason" in part:  # log-probabilities have none
        unfinished[row, column] = part["finish_reason"] == "unfinished_reasoning"
    return Panel(
        task=task,
        scorer=scorer,
        runs=own,
        cells=tuple(cells[i] for i in order),
        cell=cell[first],
        cluster=np.unique(story[first], return_inverse=True)[1].astype(np.int64),
        sample_ids=part["sample_id"].to_numpy(dtype=object)[first],
        data=data[first],
        data_of_run=data_of_run,
        values=values,
        asked=asked,
        unfinished=unfinished,
        tags=part["tag"].to_numpy(dtype=object)[first] if "tag" in part else None,
    )


def _data_group(runs: Sequence[Run]) -> NDArray[np.int64]:
    """Number the runs by the data they ask, shape (runs,)."""
    keys = [json.dumps(run.data, sort_keys=True) for run in runs]
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _mean_of_known(scores: Floats) -> Floats:
    """Average runs of the same model, shape (runs, samples) -> (samples,), over the runs that have a score."""
    if len(scores) == 1:
        only: Floats = scores[0]
        return only
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, scores, 0.0).sum(axis=0) / known.sum(axis=0)
    return mean
