"""Published answers of others as run folders, so that a report shows them beside our own runs."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evalkit.benchmarks import imported_runs
from evalkit.benchmarks.imported import ImportedRun
from evalkit.errors import BadInput
from evalkit.escaping import require_name
from evalkit.files import file_name
from evalkit.lengths import parse_length
from evalkit.records.folder import RunFolder


def import_folder(
    folder: Path | str, out: Path | str, *, arm: str | None = None, provenance: Mapping[str, Any] | None = None
) -> Iterator[RunFolder | BadInput]:
    """Turn every published model at or below ``folder`` into a run folder below ``out``.

    Importing again continues what was interrupted, adds files that are new, and leaves what is complete untouched.

    Args:
        folder: where the answers lie.
        out: where the run folders go.
        arm: the model's name in tables, where there is one model; None: the one that its folders give it.
        provenance: of this invocation.

    Yields:
        Each run folder when it is complete, and for each file that cannot be used the error that names it.

    Raises:
        BadInput: ``arm`` is no name, or is to name several models; there is no file of answers.
        RunFolderError: a run folder that cannot be written.
    """
    if arm is not None:
        require_name(arm, "--arm")
    folder, out = Path(folder).resolve(), Path(out)
    found: Iterable[ImportedRun | BadInput] = imported_runs(folder)
    if arm is not None:
        found = list(found)
        models = sorted({run.model for run in found if isinstance(run, ImportedRun)})
        if len(models) > 1:
            raise BadInput(f"--arm {arm!r} would name {len(models)} models, {models[0]} and {models[1]} among them.")
    is_empty = True
    for run in found:
        is_empty = False
        try:
            yield run if isinstance(run, BadInput) else _write(run, out, arm, provenance or {})
        except BadInput as error:
            yield error
    if is_empty:
        raise BadInput(
            f"No published answers in {folder}: they are CSV files with names like "
            "qa1_16k_instruction_yes_examples_yes_post_prompt_yes.csv, in a folder per model."
        )


def _write(run: ImportedRun, out: Path, given: str | None, provenance: Mapping[str, Any]) -> RunFolder:
    name = given or run.model
    whose = f"The model in {run.source}" if given is None else f"--arm and the prompt setting of {run.source}, as one,"
    arm = require_name(f"{name} ({run.setting_in_words})" if run.setting else name, whose)
    path = out / file_name("--".join(part for part in (*name.split("/"), run.setting) if part))
    files, recipes = dict(run.files), dict(run.recipes)
    if (path / "run.json").exists():
        before = RunFolder.open(path)
        known = before.config.get("files", {})
        if changed := sorted(name for name in files if known.get(name, files[name]) != files[name]):
            raise BadInput(
                f"{run.source / changed[0]} has other content than when it was imported into {path}; "
                f"import into another folder, or delete that one first."
            )
        is_known = files.keys() <= known.keys() and all(p.key in before.recorded() for p in run.predictions)
        if is_known and before.is_closed:
            return before
        files, recipes = {**known, **files}, {**before.config.get("recipes", {}), **recipes}
    cells = [(p.subset, p.length) for p in run.predictions]
    config = {
        "task": run.task,
        "model": run.model,
        "published": True,
        "setting": run.setting,
        "scope": {
            "lengths": sorted({length for _, length in cells}, key=parse_length),
            "subsets": sorted({subset for subset, _ in cells}, key=_natural),
            "samples": max(map(cells.count, set(cells)), default=0),
        },
        "files": files,
        "recipes": recipes,
    }
    with RunFolder.start(
        path,
        arm=arm,
        config=config,
        fingerprint={"published": run.task, "model": run.model, "setting": run.setting},
        provenance={**provenance, "source": str(run.source)},
    ) as written:
        written.extend([prediction for prediction in run.predictions if written.needs_asking(prediction.key)])
        written.notices += run.notices
    return written


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
