"""Task cards: what a benchmark is, as data. One TOML file a benchmark in ``tasks/``, shipped as ``evalkit/_tasks``."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from evalkit.errors import BadInput
from evalkit.reading import read_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetCard:
    """One subset of a benchmark."""

    chance: float
    """Score of a guess, from 0 to 1; the card says how it was found."""
    title: str = ""
    labels: tuple[str, ...] = ()
    """All answers that the scorers know."""
    instruction: str = ""
    examples: str = ""
    """Worked examples, in the form in which they stand in the prompt."""
    post_prompt: str = ""
    """How to answer."""
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
    """Per subset and length."""
    subsets: Mapping[str, SubsetCard]
    guess: str = ""
    """What a subset's chance is the score of."""
    max_new_tokens: int | None = None
    """None: decided for each sample by its answer."""
    template: str = ""
    """Format string of what the user says."""
    source: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Published data sets of the hub: name -> id, revision, layout (path of a file, with {subset} and {length})."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values that only the benchmark's own code reads."""
    sha256: str
    """Hash of the values that can move an answer or a score. What only describes (title, description, paper, chance),
    the scope that is asked by default, and the layout of the file do not count."""


_CARD: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "title": (str,),
    "version": (int,),
    "description": (str,),
    "paper": (str,),
    "default_subsets": (list,),
    "default_samples": (int,),
    "subsets": (dict,),
}
_CARD_OPTIONAL: dict[str, tuple[type, ...]] = {
    "guess": (str,),
    "max_new_tokens": (int,),
    "template": (str,),
    "source": (dict,),
    "settings": (dict,),
}
_SUBSET: dict[str, tuple[type, ...]] = {"chance": (float, int)}
_SUBSET_OPTIONAL: dict[str, tuple[type, ...]] = {
    "title": (str,),
    "labels": (list,),
    "instruction": (str,),
    "examples": (str,),
    "post_prompt": (str,),
    "max_new_tokens": (int,),
}
_SOURCE: dict[str, tuple[type, ...]] = {"id": (str,), "revision": (str,)}
_SOURCE_OPTIONAL: dict[str, tuple[type, ...]] = {"layout": (str,)}

# What no answer and no score hangs on. A version has its own place beside the hash in a run's fingerprint.
_DESCRIBES = {"title", "version", "description", "paper", "guess", "default_subsets", "default_samples"}
_SUBSET_DESCRIBES = {"title", "chance"}


def card_names() -> tuple[str, ...]:
    """Return the names of all task cards, sorted.

    Raises:
        BadInput: the folder of cards is missing.
    """
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


@cache
def load_card(task: str) -> TaskCard:
    """Return the task card of a benchmark.

    Raises:
        BadInput: there is no such card, or ``read_card`` refuses it.
    """
    if task not in card_names():
        raise BadInput(f"There is no task {task!r}; the tasks are {', '.join(card_names())}.")
    return read_card(_folder() / f"{task}.toml")


def read_card(path: Path) -> TaskCard:
    """Read one card file.

    Raises:
        BadInput: it is not TOML, or a field is missing, unknown or impossible; names file and field.
    """
    values = read_toml(path)
    _check(f"{path}:", values, _CARD, _CARD_OPTIONAL)
    subsets = {name: _read_subset(f"{path}: subsets.{name}:", entry) for name, entry in values["subsets"].items()}
    for name, entry in values.get("source", {}).items():
        _check(f"{path}: source.{name}:", entry, _SOURCE, _SOURCE_OPTIONAL)
    unknown = [name for name in values["default_subsets"] if name not in subsets]
    rules = {
        f"task is {values['task']!r}, which must be the name of the file": values["task"] == path.stem,
        "default_subsets is empty": bool(values["default_subsets"]),
        f"default_subsets names {', '.join(map(str, unknown))}, which subsets lacks": not unknown,
        f"default_samples is {values['default_samples']}, which must be 1 or more": values["default_samples"] > 0,
        "max_new_tokens must be 1 or more": values.get("max_new_tokens", 1) > 0,
    }
    for rule, holds in rules.items():
        if not holds:
            raise BadInput(f"{path}: {rule}.")
    sha256 = _decisive_hash(values)
    values |= {"subsets": subsets, "default_subsets": tuple(values["default_subsets"])}
    return TaskCard(**values, sha256=sha256)


def _decisive_hash(values: Mapping[str, Any]) -> str:
    decisive = {name: value for name, value in values.items() if name not in _DESCRIBES}
    decisive["subsets"] = {
        name: {field: value for field, value in subset.items() if field not in _SUBSET_DESCRIBES}
        for name, subset in values["subsets"].items()
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _read_subset(where: str, entry: Any) -> SubsetCard:
    _check(where, entry, _SUBSET, _SUBSET_OPTIONAL)
    labels = entry.get("labels", [])
    if not all(isinstance(label, str) and label for label in labels):
        raise BadInput(f"{where} labels must be texts, and none of them empty.")
    if not 0 <= entry["chance"] <= 1:
        raise BadInput(f"{where} chance is {entry['chance']}, which must be from 0 to 1.")
    if entry.get("max_new_tokens", 1) < 1:
        raise BadInput(f"{where} max_new_tokens must be 1 or more.")
    return SubsetCard(**entry | {"labels": tuple(labels), "chance": float(entry["chance"])})


def _check(
    where: str, entry: Any, required: dict[str, tuple[type, ...]], optional: dict[str, tuple[type, ...]]
) -> None:
    """Refuse a table that lacks a field, or has one that is unknown or of another type."""
    if not isinstance(entry, dict):
        raise BadInput(f"{where} expected a table with the fields {', '.join(required)}.")
    for name in required:
        if name not in entry:
            raise BadInput(f"{where} the field {name!r} is missing.")
    for name, value in entry.items():
        types = (required | optional).get(name)
        if types is None:
            raise BadInput(f"{where} the field {name!r} is unknown; known are {', '.join(required | optional)}.")
        if not isinstance(value, types) or isinstance(value, bool):
            raise BadInput(f"{where} the field {name!r} must be of type {types[0].__name__}, not {value!r}.")


def _folder() -> Path:
    """Return the cards of an installed evalkit, else those beside its ``pyproject.toml``."""
    package = Path(__file__).parents[1]
    if (package / "_tasks").is_dir():
        return package / "_tasks"
    if (package.parent / "pyproject.toml").is_file() and (package.parent / "tasks").is_dir():
        return package.parent / "tasks"
    raise BadInput(
        f"The task cards are missing: neither {package / '_tasks'} nor a project with tasks/ around {package} exists; "
        "install evalkit again."
    )
