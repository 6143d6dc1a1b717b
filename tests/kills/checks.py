"""What must hold after a kill, and when the same command has ended as if there had been none."""

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

_ANSWER = ("output", "error", "prompt_sha256", "attempt", "finish_reason", "target")
_EQUAL_TEXTS = {".csv", ".md", ".tex", ".toml", ".txt", ".json"}
_OF_AN_INVOCATION = ("provenance", "environments", "commands")
"""What run.json, a training's record and report.json say of each time that a command was given."""

Recorded = dict[str, list[bytes]]


def recorded(folder: Path) -> Recorded:
    """Return the whole lines of every predictions.jsonl below a folder."""
    return {str(file.relative_to(folder)): _whole_lines(file) for file in sorted(folder.rglob("predictions.jsonl"))}


def _whole_lines(file: Path) -> list[bytes]:
    return [line for line in file.read_bytes().splitlines(True) if line.endswith(b"\n")]


def hashes(lines: Recorded) -> set[str]:
    """Return the hashes of the prompts that are answered."""
    return {json.loads(line)["prompt_sha256"] for file in lines.values() for line in file}


def lost(before: Recorded, now: Recorded) -> list[str]:
    """Say which lines are no longer where they were."""
    return [
        f"{name}: recorded lines are lost" for name in before if now.get(name, [])[: len(before[name])] != before[name]
    ]


def differences(folder: Path, whole: Path) -> Iterator[str]:
    """Say in what a folder differs from one in which nothing was killed."""
    names, wanted = _names(folder), _names(whole)
    yield from (f"litter: {name}" for name in sorted(names - wanted))
    yield from (f"missing: {name}" for name in sorted(wanted - names))
    for name in sorted(names & wanted):
        ours, theirs = folder / name, whole / name
        if ours.name == "predictions.jsonl":
            yield from _of_answers(name, ours, theirs)
        elif ours.suffix == ".parquet":
            if _scores(ours) != _scores(theirs):
                yield f"{name}: other scores"
        elif ours.suffix == ".safetensors":
            if not _close(ours, theirs):
                yield f"{name}: other weights"
        elif ours.suffix in _EQUAL_TEXTS and (one := _text(ours)) != (other := _text(theirs)):
            lines = zip_longest(one.splitlines(), other.splitlines())
            yield f"{name}: {next((a, b) for a, b in lines if a != b)}"


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _of_answers(name: str, ours: Path, theirs: Path) -> Iterator[str]:
    answers = [_answers(file) for file in (ours, theirs)]
    keys = [key for key, _ in answers[0]]
    if twice := len(keys) - len(set(keys)):
        yield f"{name}: {twice} samples are recorded twice"
    if missing := {key for key, _ in answers[1]} - set(keys):
        yield f"{name}: {len(missing)} samples are lost"
    if dict(answers[0]) != dict(answers[1]):
        yield f"{name}: other answers"


def _answers(file: Path) -> list[tuple[Any, Any]]:
    rows = [json.loads(line) for line in _whole_lines(file)]
    keys = ("task", "subset", "length", "sample_id", "repeat")
    return [(tuple(row[key] for key in keys), [row[field] for field in _ANSWER]) for row in rows]


def _scores(file: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    return list(parquet.read_table(file).drop_columns(["seconds"]).to_pylist())


def _close(ours: Path, theirs: Path) -> bool:
    import torch
    from safetensors.torch import load_file

    one, other = load_file(ours), load_file(theirs)
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def _text(file: Path) -> str:
    text = file.read_text()
    if file.suffix != ".json":
        return text
    try:
        return json.dumps(_lasting(json.loads(text)), indent=1)
    except ValueError:  # torn by a kill
        return text


def _lasting(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _lasting(value) for name, value in content.items() if name not in _OF_AN_INVOCATION}
    return [_lasting(value) for value in content] if isinstance(content, list) else content
