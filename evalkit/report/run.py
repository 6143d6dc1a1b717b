"""What a report knows of one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.models.training_record import TrainingRecord
from evalkit.records.fingerprint import fingerprint_sha

_NAMES_SINCE = {"backend": "engine.name", "dtype": "engine.dtype", "script": "engine.script"}
"""Parts of the fingerprint that folders of schema 1 know by another name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the report knows of one run folder."""

    name: str
    """Unique in this report: the folder's name, with as much of its path as that takes."""
    path: Path
    arm: str
    config: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    provenance: Sequence[Mapping[str, Any]]
    more_paths: tuple[Path, ...] = ()
    """The folders of the other shards, where it was asked in parts; ``path`` is the first one's."""
    training: TrainingRecord | None = None
    """The checkpoint's training record, where it has one."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of its folders."""
        return (self.path, *self.more_paths)

    @property
    def sha256(self) -> str:
        """The run's identity."""
        return fingerprint_sha(self.fingerprint)

    @property
    def published(self) -> bool:
        """Others published these answers; they were imported."""
        return bool(self.config.get("published"))

    @property
    def trained_length(self) -> int | None:
        """Tokens of the longest training sample; None where the checkpoint does not say."""
        length = self.config.get("trained_length") or (self.training and self.training.trained_length)
        return int(length) if length else None

    @property
    def window(self) -> int | None:
        """Tokens that the checkpoint, or the base it was trained from, covers by itself; None where no record says."""
        length = self.config.get("window") or self.fingerprint.get("rope.original_length")
        return int(length) if length else None

    @property
    def recipe(self) -> str:
        """Name of the training recipe; "" where there was none."""
        return self.training.recipe if self.training else ""

    @property
    def control(self) -> str:
        """ "no-context" or "facts-only" for a run that only bounds the others; else ""."""
        return str(self.config.get("control") or "")

    @property
    def data(self) -> dict[str, Any]:
        """The fingerprint's parts that decide what is asked. Samples pair only between runs that agree on them."""
        if self.published:
            return {"published": self.fingerprint.get("published")}
        parts = self.fingerprint.items()
        return {name: value for name, value in parts if name.startswith("data.") or name == "card"}

    @property
    def weights(self) -> dict[str, Any]:
        """The fingerprint's parts that say which model answered."""
        return {name: value for name, value in self.fingerprint.items() if name.startswith("checkpoint.")}

    @property
    def setup(self) -> dict[str, Any]:
        """The fingerprint's parts that say how questions were put and answered: neither model, rope nor data."""
        others = ("checkpoint.", "rope.", "data.", "card", "published", "model")
        parts = {n: v for n, v in self.fingerprint.items() if v is not None and not n.startswith(others)}
        renamed = {_NAMES_SINCE[n]: v for n, v in parts.items() if n in _NAMES_SINCE}
        return renamed | {n: v for n, v in parts.items() if n not in _NAMES_SINCE}

    @property
    def replicate(self) -> str:
        """Names the trained model within its arm; runs that share it count as one, so their weights should agree."""
        if self.training and self.training.seed is not None:
            return f"seed {self.training.seed}"
        return fingerprint_sha(self.weights) if self.weights else "the only one"
