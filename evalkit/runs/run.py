"""Carry out a plan: build prompts, ask the backend, record each answer as it comes, score what was recorded."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit import options
from evalkit.errors import RunFolderError
from evalkit.lengths import parse_length
from evalkit.records.folder import RunFolder, this_process
from evalkit.records.scoring import score_folder
from evalkit.runs.answers import OVERFLOW, Event, Loading, Served
from evalkit.runs.config import recorded_config
from evalkit.runs.engines import open_engines
from evalkit.runs.pace import Pace
from evalkit.runs.plan import Plan
from evalkit.runs.provenance import now, provenance
from evalkit.runs.todo import Todo
from evalkit.types import Prediction, Prompt


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run left behind."""

    folder: Path
    asked: int
    """Prompts answered by this invocation."""
    recorded: int
    """Samples of the plan: each has a record now, if only of an error."""
    failed: int
    """Samples of the plan, and repeats, whose record is an error, but for those that do not fit."""
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

    def sent(self) -> None:
        """The engine has taken one more prompt; told in whatever thread builds it."""

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
    _refuse_another_part(plan)
    observer.phase("building prompts")
    previews = list(plan.first_prompts())  # refuses data that do not suffice, before weights are loaded
    with (
        closing(open_engines(plan, [one for _, one in previews if isinstance(one, Prompt)], observer.sent)) as engines,
        RunFolder.start(
            plan.out,
            arm=plan.arm,
            config=_config(plan),
            fingerprint=plan.fingerprint,
            provenance=provenance() | {"engine_options": options.write(plan.config.engine)},
        ) as folder,
    ):
        for cell, prompt in previews:
            if isinstance(prompt, Prompt):
                folder.save_prompt(f"{cell.subset}@{cell.length}", plan.encoder.decode(prompt.token_ids))
        todo = [Todo(plan, folder, group.lengths) for group in plan.groups]
        to_ask = sum(map(len, todo))
        if recorded := sum(plan.num_samples.values()) * plan.config.repeat - to_ask:
            observer.resumes(recorded, to_ask)
        observer.starts([length for asks in todo for length in asks.lengths()])
        if not to_ask:
            _refuse_other_settings(plan, folder)
            folder.accept()
        asked = _record(engines.answers(list(zip(plan.groups, todo, strict=True))), folder, observer)
        engines.close()
        score_folder(folder)
        return _result(plan, folder, asked, engines.warnings)


def _record(events: Iterable[Event], folder: RunFolder, observer: Observer) -> int:
    """Record what is answered, and by what, as it is told; return how many prompts were answered.

    Raises:
        RunFolderError: the folder belongs to another engine, or cannot be written.
        EngineError: see ``Engines.answers``.
    """
    asked, pace, loading = 0, Pace(), False
    read_back: dict[str, Any] = {}
    since: dict[str, Any] = {}  # for ``runs/status.py``
    for event in events:
        if isinstance(event, Loading):
            observer.phase("loading the model")
            pace.loads()
            loading = True
        elif isinstance(event, Served):
            folder.identify(event.identity)
            since = since or _answering(folder)
            read_back |= dict.fromkeys(event.group.lengths, event.read_back)
            known = {"rope": read_back, "engine": event.settings, "answering": since}
            folder.add_provenance(known | ({"pace": pace.to_json()} if asked else {}))
            if loading:  # else others answer already
                pace.is_loaded()
                observer.phase("answering")
                loading = False
        else:
            prediction = replace(event, attempt=folder.next_attempt(event.key, event.repeat))
            folder.append(prediction)
            if prediction.prompt_sha256:
                asked += 1
                pace.answered(prediction)
            observer.answered(prediction)
    if since:
        folder.add_provenance({"pace": pace.to_json()})
    return asked


def _refuse_another_part(plan: Plan) -> None:
    """Refuse what the fingerprint does not tell apart: a folder is one shard, with log-probabilities or without.

    Raises:
        RunFolderError: the folder holds another part of the run, or answers of the other kind.
    """
    if not (plan.out / "run.json").exists():
        return
    config = RunFolder.open(plan.out).config
    if config.get("answer_logprob", False) != plan.config.answer_logprob:
        has, way = ("no", "without") if plan.config.answer_logprob else ("the", "with")
        raise RunFolderError(
            f"The answers in run folder {plan.out} have {has} log-probabilities of right answers beside them; go on "
            f"{way} --answer-logprob, or use another --out, or none."
        )
    held, asked = config.get("shard"), plan.config.shard
    if held != asked:
        raise RunFolderError(
            f"Run folder {plan.out} holds {f'shard {held}' if held else 'the whole'} of a run, and "
            f"{f'shard {asked}' if asked else 'the whole of it'} is asked for; use another --out, or none."
        )


def _answering(folder: RunFolder) -> dict[str, Any]:
    """Return since when, after how many attempts, and by whom answers are being recorded."""
    attempts = sum(state.attempt for _, state in folder.states())
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


def _result(plan: Plan, folder: RunFolder, asked: int, warnings: Sequence[str]) -> RunResult:
    asked_for = ((cell, sample_id) for cell in plan.cells(plan.config.lengths) for sample_id in plan.sample_ids[cell])
    states = [
        (plan.key(*one), repeat, state)
        for one in asked_for
        for repeat in range(1, plan.config.repeat + 1)
        if (state := folder.state(plan.key(*one), repeat)) and (state.error or state.unfinished)
    ]
    errors = [(key, repeat, state.error) for key, repeat, state in states if state.error]
    unfitting = [(repeat, error) for _, repeat, error in errors if error.startswith(OVERFLOW)]
    failed = [error for _, _, error in errors if not error.startswith(OVERFLOW)]
    return RunResult(
        folder=folder.path,
        asked=asked,
        recorded=sum(plan.num_samples.values()),
        failed=len(failed),
        unfinished=sum(state.unfinished and repeat == 1 for _, repeat, state in states),
        retried=sum(folder.needs_asking(key, repeat) for key, repeat, _ in errors),
        unfitting=sum(repeat == 1 for repeat, _ in unfitting),
        failed_example=next(iter(failed), ""),
        unfitting_example=next((error.removeprefix(f"{OVERFLOW}: ") for _, error in unfitting), ""),
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
            "repeat": plan.config.repeat,
            "cells": {str(cell): number for cell, number in plan.num_samples.items()},
        },
        "rope_by_length": {
            length: group.rope.mapping for group in plan.groups for length in sorted(group.lengths, key=parse_length)
        },
        "training": training.to_json() if training else None,
        "trained_length": training.trained_length if training else None,
        "window": plan.checkpoint.base_window,
    }
