"""Write docs/reference.md: every setting, file and column, found by looking at what evalkit makes.

    python docs/reference.py

A tiny model and a script that takes its place are asked and reported; the names are read from those files, the meanings
from meanings.toml. A name without a meaning, or a meaning without a name, is an error: tests/test_docs.py looks.
"""

import csv
import json
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
_MADE_BY_RUN = ("run.lock", "writer.txt")
"""In a run folder while a process writes it, or not on every system."""
_CONFIG = ("scope", "rope_by_length", "training", "trained_length")


def make(folder: Path) -> tuple[Path, Path]:
    """Make run folders and a report with every file that a report can have; return a run folder and the report."""
    import evalkit
    from evalkit.models.new_checkpoint import write_checkpoint
    from evalkit.report.build import build

    write_checkpoint(folder / "ckpt", window=2048)
    babilong = {"task": "babilong", "subsets": "qa1", "samples": 2, "depth": "0,1", "lengths": "512,1k"}
    mrcr = {"task": "mrcr", "needles": "2", "samples": 2, "lengths": "1k"}
    model = {"arm": "model", "backend": "hf", "answer_logprob": True, "repeat": 2}
    script = {"arm": "script", "backend": "scripted", "script": "oracle"}
    for number, asked in enumerate([babilong | model, babilong | script, mrcr | script]):
        settings: dict[str, Any] = {"model": folder / "ckpt", "out": folder / f"run-{number}", **asked}
        evalkit.run(**settings, quiet=True)
    build([folder], folder / "report", trained_length=512, by="hops", full=True)
    return folder / "run-0", folder / "report"


def found(run: Path, report: Path) -> dict[str, list[str]]:
    """Return the names in each kind of file, in their order."""
    import pyarrow.parquet as pq

    import evalkit

    told = json.loads((run / "run.json").read_text())
    line = json.loads((run / "predictions.jsonl").read_text().splitlines()[0])
    drawings = {path.stem for path in report.glob("*.svg")}
    tables = sorted(report.glob("*.csv"))
    return {
        "run": sorted({path.name + "/" * path.is_dir() for path in run.iterdir()} | {*_MADE_BY_RUN}),
        "run.json": [*told, *(f"config.{name}" for name in _CONFIG if name in told["config"])],
        "predictions.jsonl": list(line),
        "scores.parquet": pq.read_schema(run / "scores.parquet").names,
        "report": sorted(path.name for path in report.iterdir() if path.stem not in drawings),
        **{path.name: next(csv.reader(path.open())) for path in tables},
        "frame": list(evalkit.load(run).frame),
    }


def described(names: Mapping[str, Iterable[str]]) -> dict[str, dict[str, str]]:
    """Return the meaning of each name.

    Raises:
        SystemExit: one has none, or a meaning is of nothing that is there.
    """
    meanings: dict[str, dict[str, str]] = tomllib.loads((DOCS / "meanings.toml").read_text())
    wrong = [f"{file} is not described" for file in names if file not in meanings]
    wrong += [f"{file} is described and not made" for file in meanings if file not in names]
    for file in names.keys() & meanings.keys():
        there, told = {_stem(name) for name in names[file]}, meanings[file].keys()
        wrong += [f"{file}: {name} is not described" for name in there - told]
        wrong += [f"{file}: {name} is described and not there" for name in told - there]
    if wrong:
        raise SystemExit("docs/meanings.toml: " + "; ".join(sorted(wrong)))
    return {
        file: {name: meanings[file][_stem(name)] for name in own if _stem(name) == name} for file, own in names.items()
    }


def _stem(name: str) -> str:
    """Return what an interval is of: overall_ci_low belongs to overall."""
    stem = name.removesuffix("_ci_low").removesuffix("_ci_high")
    return stem or name


def settings() -> Iterable[str]:
    """Yield the settings of runs by heading, and those that only trainings have."""
    from evalkit import options
    from evalkit.cli.options import run_classes, train_classes

    of_runs = {key: one for cls in run_classes() for key, one in options.settings(cls).items()}
    of_trainings = {key: one for cls in train_classes() for key, one in options.settings(cls).items()}
    groups: dict[str, dict[str, options.Setting]] = {}
    for key, one in of_runs.items():
        groups.setdefault(one.group or "Options", {})[key] = one
    for key, one in of_trainings.items():
        if key not in of_runs:
            groups.setdefault(f"Of trainings alone: {one.group}", {})[key] = one
    for title, own in groups.items():
        yield f"### {title}\n\n" + _table(
            ("option", "key", "what it is"),
            [(f"`{one.option.flag}`", f"`{key}`", one.option.help) for key, one in own.items()],
        )


_FILES = {
    "run": ("A run folder", "`results/ARM-TASK-FINGERPRINT/`, or `--out`."),
    "run.json": ("run.json", "An entry with a dot stands inside of another."),
    "predictions.jsonl": ("predictions.jsonl", "One JSON object a line."),
    "scores.parquet": ("scores.parquet", "One row per answer and scorer."),
    "frame": ("The frame in Python", "`evalkit.load(...).frame`, a pandas DataFrame: one row per answer and scorer."),
    "report": ("A report", "`plots/`, or `--out`; every figure besides as PNG, SVG and PDF."),
}


def text() -> str:
    """Return the page."""
    with tempfile.TemporaryDirectory() as folder:
        files = described(found(*make(Path(folder))))
    parts = [
        "<!-- Written by docs/reference.py; do not edit. -->",
        "# Files, columns, settings",
        "Every name below was read from files that evalkit made. Scores, shares and intervals in CSV files are percent "
        "and points, 0 to 100; in `scores.parquet` and in `.frame` they are 0 to 1 (`.compare` gives points). "
        "`X_ci_low` and `X_ci_high` are the 95 % interval of `X`.",
    ]
    for file, own in files.items():
        title, note = _FILES.get(file, (file, ""))
        parts += [f"## {title}", *([note] if note else [])]
        parts.append(_table(("name", "meaning"), [(f"`{name}`", meaning) for name, meaning in own.items()]))
    parts += [
        "## Settings",
        "On the command line by the option; in TOML files, run.json and Python by the key.",
        *settings(),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    (DOCS / "reference.md").write_text(text())
