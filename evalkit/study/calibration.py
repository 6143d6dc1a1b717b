"""A short measurement of this machine: how fast a checkpoint answers here, and how fast it is trained.

What is found is kept in the user's cache, and taken for every plan of the same checkpoint, settings and machine.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalkit import options
from evalkit.errors import BadInput
from evalkit.files import user_cache, write_whole
from evalkit.lengths import format_length, parse_length
from evalkit.machine import describe
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.hub import local
from evalkit.models.training_record import TRAINING_RECORD, TrainingRecord
from evalkit.reading import read_json
from evalkit.runs.plan import Plan, make_plan
from evalkit.runs.run import Observer, run
from evalkit.train.config import TrainConfig
from evalkit.train.finetune import finetune
from evalkit.train.trainer import num_devices

LONGEST = 4096
"""Prompts up to here are asked; of longer ones the time follows from their operations."""
SAMPLES = 3
"""Questions of each length that is asked."""
STEPS = 2
"""Optimizer steps that are timed, after one that is not: the first one allocates and compiles."""
_DECIDE_THE_RATE = ("batch_size", "accumulation", "lora_rank", "lora_targets", "gradient_checkpointing", "precision")


def calibrate_answers(plan: Plan, observer: Observer | None = None) -> Path:
    """Ask some of a plan's shorter questions with its own engine, in a run folder that the user's cache holds.

    Returns:
        The folder; its pace is found by ``cost.run_cost``. What was measured before is not measured again.

    Raises:
        EvalkitError: see ``runs.run.run``.
    """
    config = replace(
        plan.config,
        lengths=_measured_lengths(plan),
        subsets=plan.subsets[:1],
        samples=SAMPLES,
        data=replace(plan.config.data, questions_per_context=1),
        repeat=1,
        shard=None,
        answer_logprob=False,
        out=None,
    )
    small = make_plan(config)
    settings = _digest(options.write(config.engine))  # those too that decide no answer, but its time
    return run(replace(small, out=answers_folder() / f"{small.out.name}-{settings[:8]}"), observer).folder


def _measured_lengths(plan: Plan) -> tuple[str, ...]:
    """Return the shortest, and the longest up to ``LONGEST``; of generated samples that itself, if some are longer."""
    lengths = sorted(plan.config.lengths, key=parse_length)
    short = [length for length in lengths if parse_length(length) <= LONGEST]
    if plan.benchmark.generated and len(short) < len(lengths):
        short.append(format_length(LONGEST))
    return tuple(dict.fromkeys((*short[:1], *short[-1:]))) or tuple(lengths[:1])


def answers_folder() -> Path:
    """Return where the run folders of calibrations are."""
    return user_cache() / "calibration"


def calibrate_training(config: TrainConfig) -> float:
    """Train a throwaway checkpoint for some steps, and return the tokens per second. Measured once.

    Raises:
        EvalkitError: see ``train.finetune.finetune``.
    """
    if (known := trained_tokens_per_second(config)) is not None:
        return known
    per_step = config.batch_size * config.accumulation * num_devices()
    finished = list[float]()
    with tempfile.TemporaryDirectory(prefix="evalkit-calibration-") as folder:
        small = replace(
            config,
            out=Path(folder) / "trained",
            data=replace(config.data, samples=per_step * (1 + STEPS)),
            against=(),
            epochs=1.0,
            stages=config.stages[-1:],
        )
        finetune(small, on_step=lambda done, total: finished.append(time.monotonic()))
        record = TrainingRecord.read(small.out / TRAINING_RECORD)
    if len(finished) < 2 or record is None or not record.tokens:
        raise BadInput(f"{len(finished)} steps are too few to time a training by; give it data for {1 + STEPS}.")
    tokens = record.tokens * (len(finished) - 1) / len(finished)
    rate = tokens / (finished[-1] - finished[0])
    file = _training_file(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps({"tokens_per_second": rate}))
    return rate


def trained_tokens_per_second(config: TrainConfig) -> float | None:
    """Return what a calibration measured for trainings like this one on this machine; None where none did."""
    found = read_json(_training_file(config)) if local(config.base, config.revision) else None
    return None if found is None else float(found["tokens_per_second"])


def _training_file(config: TrainConfig) -> Path:
    written = options.write(config)
    identity = {name: written[name] for name in _DECIDE_THE_RATE} | {
        "base": Checkpoint.find(config.base, config.revision).identity(),
        "lengths": [config.data.shortest, config.data.longest, *config.data.rows],
        "machine": describe(),
    }
    return answers_folder() / f"training-{_digest(identity)[:16]}.json"


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
