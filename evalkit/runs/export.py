"""A run's answers and scores in the layouts of other tools.

    lm-eval    OUT/<arm>/results_<time>.json and samples_<task>_<subset>_<length>_<time>.jsonl
    inspect    OUT/<time>_<task>_<id>.json, one log of version 2 (Inspect)
    babilong   OUT/<arm>/qa1_16k_instruction_yes_....csv and .json beside it (``evalkit import`` reads them)
    csv        OUT/<run>.csv, a row per answer and scorer, for spreadsheets: text that begins like a formula has an
               apostrophe in front

None of them has a place for whole prompts: a prompt of 128K tokens is in no record of a run. The question stands for
it, with the hash of the prompt where the layout has a field for one. A sample that failed has no score in any of them.
"""

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeAlias

from evalkit.benchmarks.cards import load_card
from evalkit.errors import BadInput
from evalkit.escaping import csv_cell
from evalkit.files import file_name, slug, write_whole
from evalkit.lengths import parse_length
from evalkit.records.folder import RunFolder
from evalkit.records.scoring import scored
from evalkit.types import Key, Prediction

Values: TypeAlias = Mapping[str, float | None]
"""Scores of one answer by scorer; None where it is unscored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sample's latest record and its scores."""

    prediction: Prediction
    values: Values
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    folder: RunFolder
    answers: Sequence[Answer]
    """By subset, length and sample."""

    @property
    def arm(self) -> str:
        return self.folder.arm

    @property
    def task(self) -> str:
        return str(self.folder.config["task"])

    @property
    def started(self) -> str:
        """When the last invocation began, ISO 8601; of imported answers, which do not say, the epoch."""
        started = [str(one["started"]) for one in self.folder.provenance if "started" in one]
        return started[-1] if started else "1970-01-01T00:00:00+00:00"

    @property
    def cells(self) -> dict[tuple[str, str], list[Answer]]:
        found: defaultdict[tuple[str, str], list[Answer]] = defaultdict(list)
        for answer in self.answers:
            found[answer.prediction.subset, answer.prediction.length].append(answer)
        return dict(found)


def export(folder: Path, to: str, out: Path) -> list[Path]:
    """Write one run in another tool's layout.

    Args:
        folder: a run folder.
        to: a key of ``LAYOUTS``.
        out: a folder; it is created.

    Returns:
        The files that were written.

    Raises:
        BadInput: the layout has no place for this task, there is no answer yet, or ``out`` cannot be written.
        RunFolderError: no sound run folder.
    """
    run = _load(folder)
    files = LAYOUTS[to](run)
    try:
        for name, text in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(out / name, text)
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror or error}); name another folder.") from error
    return [out / name for name in files]


def _load(path: Path) -> _Run:
    folder = RunFolder.open(path)
    recorded = folder.recorded()
    if not recorded:
        raise BadInput(f"{path} has no answers yet; there is nothing to export.")
    values: defaultdict[Key, dict[str, float | None]] = defaultdict(dict)
    details: defaultdict[Key, dict[str, str]] = defaultdict(dict)
    columns = ["task", "subset", "length", "sample_id", "scorer", "value", "detail"]
    for row in scored(folder).table.select(columns).to_pylist():
        key = Key(*(row[name] for name in columns[:4]))
        values[key][row["scorer"]] = row["value"]
        details[key][row["scorer"]] = row["detail"]
    ordered = sorted(recorded, key=lambda key: (key.subset, parse_length(key.length), key.sample_id))
    answers = [Answer(prediction=recorded[key], values=values[key], details=details[key]) for key in ordered]
    return _Run(folder=folder, answers=answers)


# -- lm-evaluation-harness -------------------------------------------------------------------------------------------


def _lm_eval(run: _Run) -> dict[str, str]:
    """A task for each subset and length, named like "babilong_qa1_16k"."""
    when = datetime.fromisoformat(run.started).replace(tzinfo=None).isoformat(timespec="microseconds").replace(":", "-")
    name = file_name(run.arm, r'["<>:/|\\?*\[\]]+', "__")  # as the harness writes a model's
    card = load_card(run.task)
    tasks = {f"{run.task}_{subset}_{length}": answers for (subset, length), answers in run.cells.items()}
    scorers = _scorers(run)
    results = {
        "results": {
            task: {"name": task, "alias": task, **_lm_eval_means(answers, scorers)} for task, answers in tasks.items()
        },
        "group_subtasks": {task: [] for task in tasks},
        "configs": {task: {"task": task} for task in tasks},
        "versions": dict.fromkeys(tasks, card.version),
        "higher_is_better": {task: dict.fromkeys(scorers, True) for task in tasks},
        "n-samples": {
            task: {"original": len(answers), "effective": len(_answered(answers))} for task, answers in tasks.items()
        },
        "config": {"model": run.folder.config.get("backend", "published"), "model_args": {"pretrained": run.arm}},
        "model_source": "evalkit",
        "model_name": run.arm,
        "model_name_sanitized": name,
        "date": datetime.fromisoformat(run.started).timestamp(),
    }
    files = {f"{name}/results_{when}.json": _json(results)}
    for task, answers in tasks.items():
        lines = [_lm_eval_sample(number, answer) for number, answer in enumerate(answers) if _answered([answer])]
        files[f"{name}/{file_name(f'samples_{task}_{when}.jsonl')}"] = "".join(
            json.dumps(_clean(line)) + "\n" for line in lines
        )
    return files


def _lm_eval_means(answers: Sequence[Answer], scorers: Sequence[str]) -> dict[str, Any]:
    means: dict[str, Any] = {"sample_len": len(_answered(answers))}
    for scorer in scorers:
        values = _values(answers, scorer)
        if values:
            means[f"{scorer},none"] = fmean(values)
            means[f"{scorer}_stderr,none"] = _standard_error(values) if len(values) > 1 else "N/A"
    return means


def _lm_eval_sample(number: int, answer: Answer) -> dict[str, Any]:
    p = answer.prediction
    doc = {"question": p.question, "target": p.target, "sample_id": p.sample_id, "length": p.length, **p.metadata}
    scores = {scorer: value for scorer, value in answer.values.items() if value is not None}
    return {
        "doc_id": number,
        "doc": doc,
        "target": p.target,
        "arguments": {"gen_args_0": {"arg_0": p.question, "arg_1": {"max_gen_toks": p.max_new_tokens}}},
        "resps": [[p.output]],
        "filtered_resps": [p.output],
        "filter": "none",
        "metrics": list(scores),
        "doc_hash": _sha256(json.dumps(_clean(doc), indent=2, default=str)),
        "prompt_hash": p.prompt_sha256,
        "target_hash": _sha256(p.target),
        **scores,
    }


# -- Inspect ---------------------------------------------------------------------------------------------------------

_STOP_REASONS = {"stop": "stop", "length": "max_tokens"}


def _inspect(run: _Run) -> dict[str, str]:
    task_id = _sha256(str(run.folder.path.resolve()))[:22]
    scorers = _scorers(run)
    answered = _answered(run.answers)
    is_whole = run.folder.expected is None or len(run.answers) >= run.folder.expected
    log = {
        "version": 2,
        "status": "success" if is_whole else "started",
        "eval": {
            "eval_id": task_id,
            "run_id": task_id,
            "created": run.started,
            "task": run.task,
            "task_id": task_id,
            "task_version": load_card(run.task).version,
            "dataset": {
                "name": run.task,
                "samples": len(run.answers),
                "sample_ids": [_inspect_id(answer.prediction) for answer in run.answers],
                "shuffled": False,
            },
            "model": f"evalkit/{run.arm}",
            "config": {"epochs": 1},
            "packages": {"evalkit": _evalkit_version(run)},
            "metadata": {"fingerprint": run.folder.fingerprint},
            "scorers": [{"name": scorer} for scorer in scorers],
        },
        "plan": {"steps": [{"solver": "generate"}]},
        "results": {
            "total_samples": len(run.answers),
            "completed_samples": len(answered),
            "scores": [_inspect_score(run.answers, scorer) for scorer in scorers],
        },
        "stats": {"started_at": run.started, "completed_at": run.started},
        "samples": [_inspect_sample(answer, run.arm) for answer in run.answers],
    }
    when = run.started.replace(":", "-")
    return {f"{when}_{slug(run.task)}_{task_id}.json": _json(log)}


def _inspect_score(answers: Sequence[Answer], scorer: str) -> dict[str, Any]:
    values = _values(answers, scorer)
    metrics = {"mean": fmean(values)} if values else {}
    if len(values) > 1:
        metrics["stderr"] = _standard_error(values)
    return {
        "name": scorer,
        "scorer": scorer,
        "scored_samples": len(values),
        "unscored_samples": len(answers) - len(values),
        "metrics": {name: {"name": name, "value": value} for name, value in metrics.items()},
    }


def _inspect_sample(answer: Answer, arm: str) -> dict[str, Any]:
    p = answer.prediction
    sample: dict[str, Any] = {
        "id": _inspect_id(p),
        "epoch": 1,
        "input": p.question,
        "target": p.target,
        "metadata": {
            "subset": p.subset,
            "length": p.length,
            "story_id": p.story_id,
            "prompt_tokens": p.prompt_tokens,
            "prompt_sha256": p.prompt_sha256,
            "fact_positions": list(p.fact_positions),
            **p.metadata,
        },
    }
    if p.error is not None:
        return sample | {"error": {"message": p.error, "traceback": "", "traceback_ansi": ""}}
    usage = {"input_tokens": p.prompt_tokens, "output_tokens": p.output_tokens}
    usage["total_tokens"] = p.prompt_tokens + p.output_tokens
    message = {"role": "assistant", "content": p.output, "source": "generate"}
    return sample | {
        "messages": [{"role": "user", "content": p.question}, message],
        "output": {
            "model": arm,
            "choices": [{"message": message, "stop_reason": _STOP_REASONS.get(p.finish_reason, "unknown")}],
            "completion": p.output,
            "usage": usage,
            "time": p.seconds,
        },
        "model_usage": {f"evalkit/{arm}": usage},
        "scores": {
            scorer: {"value": value, "answer": p.output, "explanation": answer.details[scorer] or None}
            for scorer, value in answer.values.items()
            if value is not None
        },
    }


def _inspect_id(prediction: Prediction) -> str:
    return f"{prediction.subset}/{prediction.length}/{prediction.sample_id}"


def _evalkit_version(run: _Run) -> str:
    return str(run.folder.provenance[-1].get("versions", {}).get("evalkit", "unknown"))


# -- BABILong's authors ----------------------------------------------------------------------------------------------


def _babilong(run: _Run) -> dict[str, str]:
    """A file for each subset and length; failed samples have no row, since an empty output would be a wrong answer."""
    if run.task != "babilong":
        raise BadInput(f"{run.folder.path} is of {run.task}, which the layout of BABILong's authors has no place for.")
    config = run.folder.config
    switches = ("instruction", "examples", "post_prompt", "chat_template")  # the last one is open where it was not said
    named = [f"{name}_{'yes' if config[name] else 'no'}" for name in switches if config.get(name) is not None]
    setting = "_".join(named) or str(config.get("setting", ""))
    folder = file_name(run.arm)
    files = {}
    for (subset, length), answers in run.cells.items():
        stem = f"{folder}/{file_name('_'.join(part for part in (subset, length, setting) if part))}"
        done = _answered(answers)
        if not done:
            continue
        rows = [(a.prediction.target, a.prediction.output, a.prediction.question) for a in done]
        files[f"{stem}.csv"] = _csv(("target", "output", "question"), rows)
        limit = max(a.prediction.max_new_tokens for a in done)
        recipe = {"prompt": {}, "generate_kwargs": {"max_new_tokens": limit, "do_sample": False, "num_beams": 1}}
        files[f"{stem}.json"] = _json(recipe)
    return files


# -- CSV -------------------------------------------------------------------------------------------------------------

_COLUMNS = (
    "task", "subset", "length", "sample_id", "story_id", "question", "target", "output", "error", "finish_reason",
    "prompt_tokens", "output_tokens", "max_new_tokens", "seconds", "attempt", "prompt_sha256",
)  # fmt: skip


def _long_csv(run: _Run) -> dict[str, str]:
    rows = (
        tuple(
            csv_cell(cell)
            for cell in (
                run.arm,
                *(getattr(answer.prediction, name) for name in _COLUMNS),
                scorer,
                value,
                answer.details[scorer],
            )
        )
        for answer in run.answers
        for scorer, value in answer.values.items()
    )
    return {f"{run.folder.path.resolve().name}.csv": _csv(("arm", *_COLUMNS, "scorer", "value", "detail"), rows)}


LAYOUTS: Mapping[str, Callable[[_Run], dict[str, str]]] = {
    "lm-eval": _lm_eval,
    "inspect": _inspect,
    "babilong": _babilong,
    "csv": _long_csv,
}
"""What each layout makes of a run: texts by the names of their files."""


def _scorers(run: _Run) -> list[str]:
    return list(dict.fromkeys(scorer for answer in run.answers for scorer in answer.values))


def _answered(answers: Iterable[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.prediction.error is None]


def _values(answers: Iterable[Answer], scorer: str) -> list[float]:
    return [value for answer in answers if (value := answer.values.get(scorer)) is not None]


def _standard_error(values: Sequence[float]) -> float:
    return float(stdev(values) / len(values) ** 0.5)


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    plain.writerow(columns)
    for row in rows:
        cells = [_clean(value) for value in row]
        holds_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (quoted if holds_return else plain).writerow(cells)  # a bare \r is written unquoted, and read as a row's end
    return text.getvalue()


def _json(value: Any) -> str:
    return json.dumps(_clean(value), indent=1, default=str) + "\n"


def _clean(value: Any) -> Any:
    """Replace halves of surrogate pairs, which replies may hold and no UTF-8 file can."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {name: _clean(one) for name, one in value.items()}
    return [_clean(one) for one in value] if isinstance(value, (list, tuple)) else value


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
