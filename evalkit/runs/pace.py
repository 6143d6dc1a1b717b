"""How fast answers came: recorded with every run, so that the next plan on the same machine knows its time."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from evalkit import options
from evalkit.errors import EvalkitError
from evalkit.machine import describe
from evalkit.records.folder import RunFolder
from evalkit.runs.plan import Plan
from evalkit.types import Prediction


@dataclass
class Pace:
    """Measures one invocation. Requests overlap, so the time between two answers belongs to the later one's length."""

    loading_seconds: float = 0.0
    by_length: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per length: ``samples`` answered, their ``prompt_tokens``, ``cached_tokens`` of these, and the ``seconds`` that
    passed."""
    _since: float = field(default_factory=time.monotonic)

    def loads(self) -> None:
        """An engine begins to load, or to switch its rule."""
        self._since = time.monotonic()

    def is_loaded(self) -> None:
        """It is ready to answer."""
        self.loading_seconds = round(self.loading_seconds + self._lap(), 3)

    def answered(self, prediction: Prediction) -> None:
        """One more answer is on disk; a failed one costs time and counts for nothing."""
        nothing = {"samples": 0, "prompt_tokens": 0, "cached_tokens": 0, "seconds": 0.0}
        own = self.by_length.setdefault(prediction.length, nothing)
        own["seconds"] = round(own["seconds"] + self._lap(), 4)
        if prediction.error is None:
            own["samples"] += 1
            own["prompt_tokens"] += prediction.prompt_tokens
            own["cached_tokens"] += prediction.cached_tokens

    def to_json(self) -> dict[str, Any]:
        """Return what is recorded."""
        return {"loading_seconds": self.loading_seconds, "by_length": self.by_length}

    def _lap(self) -> float:
        before, self._since = self._since, time.monotonic()
        return self._since - before


class MeasuredPace(NamedTuple):
    """How fast an earlier run was."""

    folder: Path
    loading_seconds: float
    by_length: Mapping[str, Mapping[str, float]]
    """See ``Pace``."""
    scored: bool
    """It asked for right answers' log-probabilities as well, within these seconds."""


def measured_pace(plan: Plan, folders: list[Path]) -> MeasuredPace | None:
    """Return the latest pace that these weights were answered at on this machine, by this backend with these settings.

    Settings are compared invocation by invocation: one that goes on with a folder may change what decides no answer.

    One with answers scored where the plan has them scored, or without where it has not, if there is such a one; None
    where no folder holds any. A folder that cannot be read is passed over: this is only an estimate's source.
    """
    found: list[tuple[bool, str, MeasuredPace]] = []
    machine = describe()
    same = {name: value for name, value in plan.fingerprint.items() if name.startswith("checkpoint.")}
    same |= {"backend": plan.config.backend}
    engine_options = options.write(plan.config.engine)
    for path in folders:
        try:
            folder = RunFolder.open(path)
            if any(folder.fingerprint.get(name) != value for name, value in same.items()):
                continue
        except EvalkitError:
            continue
        scored = bool(folder.config.get("answer_logprob"))
        found += [
            (
                scored == plan.config.answer_logprob,
                str(entry["started"]),
                MeasuredPace(path, entry["pace"]["loading_seconds"], entry["pace"]["by_length"], scored),
            )
            for entry in folder.provenance
            if entry.get("machine") == machine
            and entry.get("engine_options") == engine_options
            and entry.get("engine", {}).get("replicas", 1) == (plan.config.replicas or 1)
            and any(one["samples"] for one in _by_length(entry))
        ]
    return max(found, key=lambda one: one[:2])[2] if found else None


def _by_length(entry: Mapping[str, Any]) -> list[Mapping[str, float]]:
    return list(entry.get("pace", {}).get("by_length", {}).values())
