"""The samples behind the numbers, packed so that a page with a hundred thousand of them opens at once.

One slice holds some samples of one cell with every run's reply, as gzipped JSON in base64; the page unpacks a slice
when somebody looks at it. Base64 also means that nothing a model wrote can end the element it stands in.
"""

import base64
import gzip
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from evalkit.errors import RunFolderError
from evalkit.records import lines
from evalkit.report.analysis import Analysis
from evalkit.report.load import needed_facts
from evalkit.report.panel import Panel, natural
from evalkit.report.run import Run
from evalkit.types import Prediction

MAX_PREDICTIONS = 200_000
MAX_BYTES = 256 * 2**20
"""Of the lines that are read: answers to MRCR are long."""
SLICE = 250
"""Samples to a slice."""

Reply: TypeAlias = tuple[Prediction, int]
"""And which of the run's folders it lies in."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What the page's browser shows."""

    index: dict[str, Any]
    """``runs``: name, folders (for a shell; several where it was asked in shards), arm, seed (of training; null where
    none is known), data (a number that runs of the same data share), published, tasks. ``arms`` in order. ``scorers``
    by task. ``cells``: task, subset, length, number of samples, their slices."""
    slices: tuple[str, ...]
    """Base64 of gzipped JSON: {"samples": [[id, story, question, target, facts]], "runs": {run: [row or null]}}; a row
    is [reply, error, finish_reason, prompt_tokens, output_tokens, positions, needed, [score, ...], folder]; the folder
    is its number among the run's."""
    notes: tuple[str, ...]


def collect_samples(analysis: Analysis) -> Samples:
    """Read questions and replies of the samples that fit the limits: the same ones of each cell for every run."""
    numbers = {run.name: number for number, run in enumerate(analysis.loaded.runs)}
    data = [run.data for run in analysis.loaded.runs]
    slices: list[str] = []
    cells: list[dict[str, Any]] = []
    notes: list[str] = []
    per_cell, asked = _samples_per_cell(analysis), 0
    for task in analysis.tasks:
        panels = _panels(analysis, task)
        wanted = _first_samples(panels[0], per_cell)
        replies = _replies(panels[0], wanted, notes)
        asked += len(panels[0].cell)
        for cell, places in wanted.items():
            own = []
            for start in range(0, len(places), SLICE):
                own.append(len(slices))
                slices.append(_pack(panels, places[start : start + SLICE], replies, numbers))
            subset, length = panels[0].cells[cell]
            cells.append({"task": task, "subset": subset, "length": length, "count": len(places), "slices": own})
    shown = sum(cell["count"] for cell in cells)
    if shown < asked:
        notes.append(f"The page holds {per_cell} samples of each cell, {shown:,} of {asked:,}, to stay quick.")
    index = {
        "runs": [
            {
                "name": run.name,
                "folders": [shlex.quote(path.as_posix()) for path in run.paths],
                "arm": run.arm,
                "seed": run.training.seed if run.training else None,
                "data": data.index(run.data),
                "published": run.published,
                "tasks": _tasks(analysis, run),
            }
            for run in analysis.loaded.runs
        ],
        "arms": [arm.name for arm in analysis.arms if arm.runs],
        "scorers": {task: [panel.scorer for panel in _panels(analysis, task)] for task in analysis.tasks},
        "cells": cells,
    }
    return Samples(index=index, slices=tuple(slices), notes=tuple(notes))


def _tasks(analysis: Analysis, run: Run) -> list[str]:
    return [task for task in analysis.tasks if run in _panels(analysis, task)[0].runs]


def _panels(analysis: Analysis, task: str) -> list[Panel]:
    """The panels of a task that hold the same samples in the same places, the leading scorer first."""
    first, *others = (panel for panel in analysis.panels if panel.task == task)
    return [first, *(p for p in others if np.array_equal(p.sample_ids, first.sample_ids) and p.cells == first.cells)]


def _samples_per_cell(analysis: Analysis) -> int:
    """Return how many samples of each cell may be shown: all, or a round number that keeps within the limits."""
    counts = [
        np.bincount(panel.cell[asked], minlength=len(panel.cells))
        for panel in analysis.panels
        if panel.scorer == analysis.scorers(panel.task)[0]
        for asked in panel.asked
    ]
    flat = np.concatenate(counts)
    size = sum((p / "predictions.jsonl").stat().st_size for run in analysis.loaded.runs for p in run.paths)
    most = min(MAX_PREDICTIONS, int(MAX_BYTES * flat.sum() / max(size, 1)))
    round_numbers = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    sizes = [n for n in round_numbers if n < flat.max()] + [int(flat.max())]
    return max((n for n in sizes if np.minimum(flat, n).sum() <= most), default=1)


def _first_samples(panel: Panel, per_cell: int) -> dict[int, list[int]]:
    """Places of the first samples of each cell, in the order of their names; of each data, where runs differ in it."""
    order = sorted(range(len(panel.cell)), key=lambda i: natural(str(panel.sample_ids[i])))
    found: dict[int, list[int]] = {cell: [] for cell in range(len(panel.cells))}
    taken: Counter[tuple[int, int]] = Counter()
    for place in order:
        cell, data = int(panel.cell[place]), int(panel.data[place])
        if taken[cell, data] < per_cell:
            taken[cell, data] += 1
            found[cell].append(place)
    return found


def _replies(panel: Panel, wanted: Mapping[int, Sequence[int]], notes: list[str]) -> dict[tuple[int, int], Reply]:
    """Return the wanted predictions, each with the number of its folder, by row and place of the panel.

    A line says which sample it is about in its first bytes, so that most lines of a large run need not be decoded.
    """
    heads: dict[int, dict[bytes, int]] = {}
    for i in (i for places in wanted.values() for i in places):
        subset, length = panel.cells[panel.cell[i]]
        heads.setdefault(int(panel.data[i]), {})[_head(panel.task, subset, length, str(panel.sample_ids[i]))] = i
    found: dict[tuple[int, int], Reply] = {}
    for row, run in enumerate(panel.runs):
        places = heads.get(int(panel.data_of_run[row]), {})
        try:
            for folder, line in _lines(run):
                place = places.get(line[: line.find(b',"story_id":')])
                prediction = lines.decode(line) if place is not None else None
                if place is not None and prediction is not None and prediction.repeat == 1:
                    found[row, place] = prediction, folder  # a later attempt stands later in the file
        except RunFolderError as error:
            notes.append(f"Samples of {run.name} are not shown: {error}")
    return found


def _head(task: str, subset: str, length: str, sample_id: str) -> bytes:
    """The start of a line of predictions.jsonl, up to the story."""
    key = {"task": task, "subset": subset, "length": length, "sample_id": sample_id}
    return json.dumps(key, separators=(",", ":")).encode("ascii")[:-1]


def _lines(run: Run) -> Iterable[tuple[int, bytes]]:
    for number, folder in enumerate(run.paths):
        path = folder / "predictions.jsonl"
        try:
            with path.open("rb") as file:
                yield from ((number, line) for line in file)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read ({error.strerror}).") from error


def _pack(
    panels: Sequence[Panel],
    places: Sequence[int],
    replies: Mapping[tuple[int, int], Reply],
    numbers: Mapping[str, int],
) -> str:
    first = panels[0]
    told = {i: next((replies[row, i] for row in range(len(first.runs)) if (row, i) in replies), None) for i in places}
    samples = [
        [p.sample_id, p.story_id, p.question, p.target, list(p.metadata.get("facts", []))] if p else None
        for p in (reply and reply[0] for reply in told.values())
    ]
    rows = {
        numbers[run.name]: [_row(panels, row, i, replies.get((row, i))) for i in places]
        for row, run in enumerate(first.runs)
    }
    kept = [i for i, sample in enumerate(samples) if sample is not None]
    content = {
        "samples": [samples[i] for i in kept],
        "runs": {run: [own[i] for i in kept] for run, own in rows.items() if any(own)},
    }
    packed = gzip.compress(json.dumps(content, separators=(",", ":")).encode(), compresslevel=6, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def _row(panels: Sequence[Panel], row: int, place: int, reply: Reply | None) -> list[Any] | None:
    if reply is None:
        return None
    p, folder = reply
    values = [float(panel.values[row, place]) for panel in panels]
    scores = [None if np.isnan(value) else round(value, 4) for value in values]
    needed = needed_facts(p.metadata)
    return [
        p.output,
        p.error,
        p.finish_reason,
        p.prompt_tokens,
        p.output_tokens,
        list(p.fact_positions),
        needed,
        scores,
        folder,
    ]
