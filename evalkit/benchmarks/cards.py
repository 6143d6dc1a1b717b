"""Task cards: what a benchmark is, as data. One TOML file a benchmark in ``tasks/``, shipped as ``evalkit/_tasks``."""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from evalkit.errors import BadInput

_REQUIRED = ("task", "title", "version", "description", "paper", "default_subsets", "default_samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetCard:
    """One subset of a benchmark."""

    chance: float
    """Score of a guess, 0 to 1."""
    title: str = ""
    labels: tuple[str, ...] = ()
    """All answers that the scorers know."""
    instruction: str = ""
    examples: str = ""
    post_prompt: str = ""
    max_new_tokens: int | None = None
    """None: the card's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCard:
    """One benchmark."""

    task: str
    title: str
    version: int
    """Raised with every change that can move a score."""
    description: str
    paper: str
    default_subsets: tuple[str, ...]
    default_samples: int
    subsets: Mapping[str, SubsetCard]
    max_new_tokens: int | None = None
    """None: decided for each sample by its answer."""
    template: str = ""
    source: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Published data sets of the hub: name -> id, revision."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values that only the benchmark's own code reads."""
    sha256: str
    """Hash of the file."""


def card_names() -> tuple[str, ...]:
    """Return the names of all task cards, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


@cache
def load_card(task: str) -> TaskCard:
    """Return a task card.

    Raises:
        BadInput: there is no such card, or its file lacks a field or has one that is not known.
    """
    path = _folder() / f"{task}.toml"
    if task not in card_names():
        raise BadInput(f"There is no task {task!r}; the tasks are {', '.join(card_names())}.")
    content = path.read_bytes()
    try:
        values = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not a TOML file: {error}.") from error
    missing = [name for name in (*_REQUIRED, "subsets") if name not in values]
    if missing:
        raise BadInput(f"{path} lacks the field {missing[0]!r}.")
    subsets = {name: _subset(path, name, entry) for name, entry in values.pop("subsets").items()}
    values["default_subsets"] = tuple(values["default_subsets"])
    try:
        return TaskCard(**values, subsets=subsets, sha256=hashlib.sha256(content).hexdigest())
    except TypeError as error:
        raise BadInput(f"{path} has a field that a task card does not know: {error}.") from error


def _subset(path: Path, name: str, entry: dict[str, Any]) -> SubsetCard:
    try:
        return SubsetCard(**{**entry, "labels": tuple(entry.get("labels", ()))})
    except TypeError as error:
        raise BadInput(f"{path}, subset {name}: {error}.") from error


def _folder() -> Path:
    package = Path(__file__).parents[1]
    for folder in (package / "_tasks", package.parent / "tasks"):
        if folder.is_dir():
            return folder
    raise BadInput(f"The task cards are missing: neither {package / '_tasks'} nor {package.parent / 'tasks'} exists.")
