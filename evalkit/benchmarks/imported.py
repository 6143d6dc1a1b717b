"""Answers that others have published, as a benchmark reads them; ``records/imports.py`` makes run folders of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.types import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRun:
    """The answers of one model under one prompt setting."""

    task: str
    model: str
    """As its publishers name it, with the organisation where there is one."""
    setting: str
    """What the file names say of the prompt; "" where they say nothing."""
    setting_in_words: str
    source: Path
    """The folder with the files; of several, the first."""
    files: Mapping[str, str]
    """Name of each file and sha256 of its content."""
    recipes: Mapping[str, Mapping[str, Any]]
    """What the publishers say of prompt and decoding, by name of the file without its suffix."""
    predictions: tuple[Prediction, ...]
    notices: tuple[str, ...] = ()
    """What was put together, one sentence each."""
