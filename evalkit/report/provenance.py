"""Where an artefact comes from: enough to make it again, and nothing that changes when it is."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evalkit import __version__, escaping
from evalkit.report.run import Run

_LIBRARIES = ("matplotlib", "numpy", "pandas", "scipy")


def provenance(
    runs: Sequence[Run],
    paths: Sequence[Path],
    options: dict[str, Any],
    published: Mapping[str, str] | None = None,
    command: str = "report",
) -> dict[str, Any]:
    """Return command, versions, and each run's identity, data and origin, as JSON values without any date of today.

    ``published``: SHA-256 of each table of others' figures.

    The output folder and the order of the paths are left out on purpose: the same runs give the same bytes.
    """
    words = ["evalkit", command, *sorted(path.as_posix() for path in paths)]
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", *([] if each is True else [str(each)])]
    record = {
        "command": shlex.join(words),
        "evalkit": __version__,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "runs": [_of_run(run) for run in runs],
    }
    return record | ({"published": dict(published)} if published else {})


def digest(record: dict[str, Any]) -> str:
    """Return one hash over the identities of all runs and published tables: reports on the same ones share it."""
    identities = sorted([*(run["fingerprint"] for run in record["runs"]), *record.get("published", {}).values()])
    return hashlib.sha256(json.dumps(identities).encode()).hexdigest()


def stamp(record: dict[str, Any]) -> str:
    """Return it in the form that fits the metadata of a figure and the head of a table."""
    named = [(run["name"], run["fingerprint"]) for run in record["runs"]] + [*record.get("published", {}).items()]
    runs = ", ".join(f"{name} {identity[:12]}" for name, identity in named)
    return escaping.one_line(f"evalkit {record['evalkit']}; {record['command']}; runs {digest(record)[:12]}: {runs}")


def _of_run(run: Run) -> dict[str, Any]:
    latest = run.provenance[-1] if run.provenance else {}
    training = run.training.to_json() if run.training else {}
    return {
        "name": run.name,
        "arm": run.arm,
        "fingerprint": run.sha256,
        "published": run.published,
        "data": run.data,
        "trained_length": run.trained_length,
        "training": {name: training[name] for name in ("recipe", "seed", "rope") if training.get(name) is not None},
        "leakage": run.training.found if run.training else None,
        "commands": [entry["command"] for entry in run.provenance if "command" in entry],
        "versions": latest.get("versions", {}),
        "git": latest.get("git"),
    }
