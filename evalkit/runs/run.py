"""Carry out a plan: build prompts, ask the backend, record each answer as it comes, score what was recorded."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit import options
from evalkit.benchmarks.reasoning import is_unfinished
from evalkit.benchmarks.rows import row_number
from evalkit.errors import BadInput, ContextOverflow, RunFolderError
from evalkit.lengths import parse_length
from evalkit.models.encoder import Thinking
from evalkit.records.folder import RunFolder, this_process
from evalkit.records.scoring import score_folder
from evalkit.runs.config import recorded_config
from evalkit.runs.pace import Pace
from evalkit.runs.plan import Plan
from evalkit.runs.provenance import now, provenance
from evalkit.types import Completion, Key, Prediction, Prompt, Sample

_OVERFLOW = "context_overflow"
MAX_FACT_CHARS = 4000
"""Facts longer than this together (MRCR's needles) are not repeated in every record; ``evalkit show`` rebuilds them."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run left behind."""

    folder: Path
    asked: int
    """Prompts answered by this invocation."""
    recorded: int
    """Samples of the plan that now have a final record."""
    failed: int
    """Samples of the plan whose record is an error, but for those that do not fit."""
    retried: int
    """Those of the failed that the same command would ask again."""
    unfinished: int
    """Samples of the plan whose answer was cut off inside its reasoning: recorded, unscored, not asked again."""
    unfitting: int
    """Samples of the plan that do not fit their length: recorded, never asked."""
    failed_example: str
    """The error of one of the failed, "" where there is none."""
    unfitting_example: str
    """The arithmetic of one of the unfitting, "" where there is none."""
    notices: tuple[str, ...]


class Observer:
    """Told what happens during a run; does nothing with it. ``cli.progress.Progress`` draws it."""

    def phase(self, name: str) -> None:
        """The run now does what this says: "building prompts", "loading the model", "answering"."""

    def resumes(self, recorded: int, to_ask: int) -> None:
        """Of the plan's samples so many were recorded earlier, and so many are asked now."""

    def starts(self, lengths: Sequence[str]) -> None:
        """Samples will be asked: one length label each."""

    def answered(self, prediction: Prediction) -> None:
        """One prediction is on disk."""


def run(plan: Plan, observer: Observer | None = None) -> RunResult:
    """Ask what is not recorded yet, and score.

    Args:
        plan: from ``plan.make_plan``.
        observer: told of each prediction after it is on disk.

    Raises:
        BadInput: the backend cannot serve this plan, or the data do not suffice for it.
        RunFolderError: the folder belongs to another run or engine, is locked or damaged.
        EngineError: the engine cannot be started, or died for good. Everything answered so far is recorded.
    """
    observer = observer or Observer()
    _refuse_another_shard(plan)
    backend = plan.open_backend()
    observer.phase("building prompts")
    previews = list(plan.first_prompts())  # refuses data that do not suffice, before weights are loaded
    asked = 0
    with RunFolder.start(
        plan.out, arm=plan.arm, config=_config(plan), fingerprint=plan.fingerprint, provenance=provenance()
    ) as folder:
        for cell, prompt in previews:
            if isinstance(prompt, Prompt):
                folder.save_prompt(f"{cell.subset}@{cell.length}", plan.encoder.decode(prompt.token_ids))
        todo = [list(_unanswered(plan, folder, group.lengths)) for group in plan.groups]
        to_ask = sum(map(len, todo))
        if recorded := sum(plan.num_samples.values()) - to_ask:
            observer.resumes(recorded, to_ask)
        observer.starts([length for samples in todo for _, length in samples])
        if not any(todo):
            _refuse_other_settings(plan, folder)
            folder.accept()
        read_back: dict[str, Any] = {}
        pace = Pace()
        since: dict[str, Any] = {}  # for ``runs/status.py``
        with closing(backend):
            for group, samples in zip(plan.groups, todo, strict=True):
                if not samples:
                    continue
                observer.phase("loading the model")
                pace.loads()
                found = backend.serve(group.rope, group.lengths, group.positions)
                folder.identify(backend.identity())
                since = since or _answering(folder)
                read_back |= dict.fromkeys(group.lengths, found)
                folder.add_provenance({"rope": read_back, "engine": backend.settings(), "answering": since})
                pace.is_loaded()
                observer.phase("answering")
                for prompt, completion in backend.generate(_prompts(plan, folder, samples, observer)):
                    completion = _with_status(completion, plan.encoder.thinking)
                    prediction = _prediction(prompt, completion, folder.next_attempt(prompt.key))
                    folder.append(prediction)
                    asked += 1
                    pace.answered(prediction)
                    observer.answered(prediction)
                folder.add_provenance({"pace": pace.to_json()})
        score_folder(folder)
        return _result(plan, folder, asked, backend.warnings)


def _refuse_another_shard(plan: Plan) -> None:
    """Shards of a run have one fingerprint, so that a report can join them; a folder holds one of them.

    Raises:
        RunFolderError: the folder holds another part of the run.
    """
    if not (plan.out / "run.json").exists():
        return
    held, asked = RunFolder.open(plan.out).config.get("shard"), plan.config.shard
    if held != asked:
        raise RunFolderError(
            f"Run folder {plan.out} holds {f'shard {held}' if held else 'the whole'} of a run, and "
            f"{f'shard {asked}' if asked else 'the whole of it'} is asked for; use another --out, or none."
        )


def _answering(folder: RunFolder) -> dict[str, Any]:
    """Return since when, after how many attempts, and by whom answers are being recorded."""
    attempts = sum(prediction.attempt for prediction in folder.recorded().values())
    return {"since": now(), "after": attempts, "writer": this_process()}


def _refuse_other_settings(plan: Plan, folder: RunFolder) -> None:
    """Where nothing is left to ask, no engine will show whether it is the one that answered: the settings must agree.

    Raises:
        RunFolderError: the first setting that differs.
    """
    asked, recorded = plan.config.engine.decisive, recorded_config(RunFolder.open(folder.path)).engine.decisive
    for name in sorted({*asked, *recorded}):
        if asked.get(name) != recorded.get(name):
            raise RunFolderError(
                f"Run folder {folder.path} was answered with {name} {recorded.get(name)}, not {asked.get(name)}, and "
                "nothing is left to ask; use another --out, or repeat the settings that the folder was made with."
            )


def _unanswered(plan: Plan, folder: RunFolder, lengths: tuple[str, ...]) -> Iterator[tuple[Sample, str]]:
    """Yield what is not recorded, with its length, longest first.

    Raises:
        BadInput: a row of a file is another one than the one that was answered.
    """
    rows = {key._replace(sample_id=row_number(key.sample_id)): key.sample_id for key in folder.recorded()}
    for cell in plan.cells(lengths):
        for sample in plan.samples_of(cell):
            key = _key(sample, cell.length)
            before = rows.get(key._replace(sample_id=row_number(key.sample_id)), key.sample_id)
            if before != key.sample_id:
                raise BadInput(
                    f"Row {sample.sample_id} of {cell.subset} at {cell.length} is another one than {before}, which "
                    f"{folder.path} holds an answer to; use another --out, or the files of that time."
                )
            if folder.needs_asking(key):
                yield sample, cell.length


def _key(sample: Sample, length: str) -> Key:
    return Key(sample.task, sample.subset, length, sample.sample_id)


def _prompts(plan: Plan, folder: RunFolder, todo: list[tuple[Sample, str]], observer: Observer) -> Iterator[Prompt]:
    """Yield the prompts to ask; a sample that cannot be one is recorded as an error, never truncated."""
    for sample, length in todo:
        try:
            yield plan.build(sample, length)
        except (ContextOverflow, BadInput) as error:
            kind = _OVERFLOW if isinstance(error, ContextOverflow) else "prompt"
            prediction = _unasked(sample, length, f"{kind}: {error}")
            folder.append(prediction)
            observer.answered(prediction)


def _with_status(completion: Completion, thinking: Thinking) -> Completion:
    """Return the completion with unfinished reasoning named so.

    Where the prompt itself opened the reasoning, an answer that is cut off without closing it is unfinished; one that
    ends by itself is an answer: models are trained to answer such prompts at once.
    """
    opened = thinking == "open" and completion.finish_reason == "length"
    if completion.error is None and is_unfinished(completion.text, opened=opened):
        return replace(completion, finish_reason="unfinished_reasoning")
    return completion


def _prediction(prompt: Prompt, completion: Completion, attempt: int) -> Prediction:
    sample = prompt.sample
    return Prediction(
        task=sample.task,
        subset=sample.subset,
        length=prompt.length,
        sample_id=sample.sample_id,
        story_id=sample.story_id,
        question=sample.question,
        target=sample.target,
        prompt_tokens=len(prompt.token_ids),
        prompt_sha256=prompt.sha256,
        max_new_tokens=prompt.max_new_tokens,
        fact_positions=prompt.fact_positions,
        output=None if completion.error else completion.text,
        output_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
        cached_tokens=completion.num_cached_tokens,
        seconds=round(completion.seconds, 4),
        attempt=attempt,
        error=completion.error,
        retryable=completion.retryable,
        metadata=_metadata(sample),
    )


def _metadata(sample: Sample) -> dict[str, Any]:
    """Return the sample's own metadata, and its facts where they are short statements, for a report to show."""
    if not sample.facts or sum(map(len, sample.facts)) > MAX_FACT_CHARS:
        return dict(sample.metadata)
    return {"facts": list(sample.facts), "supporting": list(sample.supporting), **sample.metadata}


def _unasked(sample: Sample, length: str, error: str) -> Prediction:
    return Prediction(
        task=sample.task,
        subset=sample.subset,
        length=length,
        sample_id=sample.sample_id,
        story_id=sample.story_id,
        question=sample.question,
        target=sample.target,
        prompt_tokens=0,
        prompt_sha256="",
        max_new_tokens=0,
        fact_positions=(),
        output=None,
        output_tokens=0,
        finish_reason="error",
        error=error,
        metadata=_metadata(sample),
    )


def _result(plan: Plan, folder: RunFolder, asked: int, warnings: Sequence[str]) -> RunResult:
    recorded = folder.recorded()
    keys = [_key(sample, cell.length) for cell in plan.cells(plan.config.lengths) for sample in plan.samples_of(cell)]
    errors = [recorded[key] for key in keys if recorded[key].error]
    unfitting = [p for p in errors if (p.error or "").startswith(_OVERFLOW)]
    failed = [p for p in errors if not (p.error or "").startswith(_OVERFLOW)]
    return RunResult(
        folder=folder.path,
        asked=asked,
        recorded=len(keys),
        failed=len(failed),
        unfinished=sum(recorded[key].finish_reason == "unfinished_reasoning" for key in keys),
        retried=sum(folder.needs_asking(p.key) for p in errors),
        unfitting=len(unfitting),
        failed_example=next((p.error or "" for p in failed), ""),
        unfitting_example=next(((p.error or "").removeprefix(f"{_OVERFLOW}: ") for p in unfitting), ""),
        notices=(*folder.notices, *warnings),
    )


def _config(plan: Plan) -> dict[str, Any]:
    """Return the run's settings as JSON values (``config.recorded_config`` reads them), and what a report needs."""
    training = plan.checkpoint.training
    return {
        **options.write(plan.config),
        "scope": {
            "lengths": list(plan.config.lengths),
            "subsets": list(plan.subsets),
            "samples": plan.samples,
            "cells": {str(cell): number for cell, number in plan.num_samples.items()},
        },
        "rope_by_length": {
            length: group.rope.mapping for group in plan.groups for length in sorted(group.lengths, key=parse_length)
        },
        "training": training.to_json() if training else None,
        "trained_length": training.trained_length if training else None,
        "window": plan.checkpoint.base_window,
    }
