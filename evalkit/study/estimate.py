"""A study's plan: every step with its command, what is done, what the rest takes on each device and can show."""

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from evalkit.errors import EvalkitError
from evalkit.machine import describe as machine
from evalkit.study.cost import cannot_answer, detectable_difference, difference_text, duration
from evalkit.study.steps import Run, Step, Train
from evalkit.study.study import THIS_MACHINE, Cost, Study

_DOING = {"base": "training", "train": "training", "run": "asking"}


class _Planned(NamedTuple):
    step: Step
    state: str
    cost: Cost | None
    why_unknown: str
    """Why there is no cost, where there should be one."""


class _Asked(NamedTuple):
    """What every run asks, and what the answers can show."""

    cells: list[dict[str, Any]]
    """Those of ``cost.CellCost``; what hangs on the base is None where that is not on this machine."""
    detectable_by_length: Mapping[str, float]
    warnings: list[str]
    engines: dict[str, list[str] | None]
    """By curve, the rope rules that an engine is loaded for; None where the base cannot tell."""


def describe(steps: Sequence[Step]) -> str:
    """Return the plan as a table: what is done, the command of each step, and what it costs as far as that is known.

    Below it what a run asks, cell by cell, and the smallest difference that its answers can show.
    """
    variables = [f"{name}={value}" for name, value in steps[0].study.environment.items()]
    lines = [shlex.join(["export", *variables])] if variables else []
    lines.append(f"{'':6} {'step':<44} {'state':>6} {'tokens':>14} {'memory':>9} {'time':>8}")
    planned = [_planned(step) for step in steps]
    for step, state, cost, _ in planned:
        lines.append(f"{step.kind:6} {step.title:<44} {state:>6}{_cells(cost)}".rstrip())
        lines.append(f"         {step.command() or '(by evalkit reproduce alone)'}")
    return "\n".join([*lines, *_sums([one for one in planned if one.state != "done"]), *_shown(steps)])


def to_json(steps: Sequence[Step]) -> dict[str, Any]:
    """Return the plan as JSON values; ``cells`` are those of one run, which are the same for all."""
    asked = _asked(steps[0].study)
    return {
        "experiment": steps[0].study.experiment.name,
        "machine": machine(),
        "steps": [
            {
                "kind": step.kind,
                "title": step.title,
                "state": state,
                "command": step.command(),
                "tokens": cost.tokens if cost else 0,
                "memory_bytes": cost.memory if cost else 0,
                "seconds": dict(cost.seconds) if cost else {},
                "why_unknown": why_unknown,
            }
            for step, state, cost, why_unknown in map(_planned, steps)
        ],
        **asked._asdict(),
    }


def estimated_seconds(step: Step) -> float:
    """Return what a step may take one worker: its share of a progress bar; a second where nobody knows."""
    try:
        cost = step.cost()
    except EvalkitError:
        return 1.0
    return (_first(cost) if cost else None) or 1.0


def _planned(step: Step) -> _Planned:
    try:
        state = "done" if step.done() else "to do"
    except EvalkitError:
        state = "?"
    try:
        return _Planned(step, state, step.cost() if state == "done" else step.built_cost(), "")
    except EvalkitError as error:
        return _Planned(step, state, Cost(None, None, {}), str(error))


def _asked(study: Study) -> _Asked:
    """Return what each run asks.

    Raises:
        EvalkitError: data that would tell are missing.
    """
    data, curves = study.evaluation(study.experiment.seeds[0]).data, study.experiment.curves
    if study.one_run:
        cost, plans = study.one_run.cost, {curve.label: study.asking_the_base(curve) for curve in curves}
        engines = {
            label: [group.rope.label for group in plan.groups] if plan else None for label, plan in plans.items()
        }
        cells = [asdict(cell) for cell in cost.cells]
        return _Asked(cells, cost.detectable_by_length, list(cost.warnings), engines)
    by_length, cells = defaultdict[str, list[Sequence[str]]](list), list[dict[str, Any]]()
    unknown = dict.fromkeys(("prompt_tokens", "kv_bytes", "seconds"))
    for cell, stories in study.stories.items():
        by_length[cell.length].append(stories)
        known = {"samples": len(stories), "stories": len(set(stories))}
        shown = {"detectable_difference": detectable_difference([stories])}
        cells.append({**cell._asdict(), **known, **unknown, **shown})
    detectable = {length: detectable_difference(own) for length, own in by_length.items()}
    num_subsets = len({cell.subset for cell in study.stories})
    warnings = cannot_answer(detectable, num_subsets, data.questions_per_context)
    return _Asked(cells, detectable, warnings, dict.fromkeys((curve.label for curve in curves), None))


def _shown(steps: Sequence[Step]) -> Iterator[str]:
    """Yield what a run asks and can show, and what all of them load and write."""
    study = steps[0].study
    try:
        asked = _asked(study)
    except EvalkitError:  # why is said of the steps
        return
    yield ""
    if study.one_run is None:
        yield "What a run asks is known to the token once its base is here; until then, for one training seed:"
        yield difference_text(asked.detectable_by_length)
        yield from (f"warning: {text}" for text in asked.warnings)
        return
    cost = study.one_run.cost
    yield "Every run asks what the first does, whose prompts were built for the base:"
    yield cost.to_text()
    runs = [step for step in steps if isinstance(step, Run)]
    loads = [len(engines) for step in runs if (engines := asked.engines[step.curve.label])]
    answers = len(runs) * sum(cell.disk_bytes for cell in cost.cells)
    trained = [step for step in steps if isinstance(step, Train)]
    weights = sum(0 if step.config.lora_rank else cost.weight_bytes for step in trained)
    yield (
        f"All {len(runs)} runs: {sum(loads)} engine loads, about {_size(answers)} of answers on disk; {len(trained)} "
        f"trainings: {_size(weights)} of whole checkpoints{' (adapters are small)' * (not weights)}."
    )


def _cells(cost: Cost | None) -> str:
    if cost is None:
        return ""
    tokens = "?" if cost.tokens is None else f"{cost.tokens:,}"
    memory = "?" if cost.memory is None else _size(cost.memory)
    seconds = _first(cost)
    return f" {tokens:>14} {memory:>9} {'?' if seconds is None else duration(seconds):>8}"


def _first(cost: Cost) -> float | None:
    """Return the time on the machine that recorded its pace, else on the first device with a rate."""
    return cost.seconds.get(THIS_MACHINE, next(iter(cost.seconds.values()), None))


def _sums(planned: Sequence[_Planned]) -> Iterator[str]:
    """Yield one line per device, with its hours of training and of asking; then why something is not known."""
    if not planned:
        yield "Nothing is to do."
        return
    budget = planned[0].step.study.experiment.budget
    sources = {rate.device: rate.source for rate in budget.rates}
    measured = {device for one in planned if one.cost for device in one.cost.seconds}
    for device in (*sources, *(measured - sources.keys())):
        known: dict[str, float] = defaultdict(float)
        unknown: dict[str, int] = defaultdict(int)
        for one in (one for one in planned if one.cost):
            assert one.cost is not None
            doing = _DOING[one.step.kind]
            if device in one.cost.seconds:
                known[doing] += one.cost.seconds[device]
            else:
                unknown[doing] += 1
        parts = [f"about {duration(seconds)} of {doing}" for doing, seconds in known.items()]
        way_out = " (--calibrate measures it)" if device == THIS_MACHINE else ""
        parts += [f"{_steps(number)} of {doing} of unknown length{way_out}" for doing, number in unknown.items()]
        source = sources.get(device, f"{machine()}, at the pace that was recorded there")
        yield f"To do on {device}: {', '.join(parts) or 'next to nothing'}; {source}."
    if THIS_MACHINE not in measured and not planned[0].step.study.trains_base:
        way_out = "--dry-run --calibrate trains and asks a little to know it"
        yield f"To do on {THIS_MACHINE} ({machine()}): not known; {way_out}."
    if not sources and not measured:
        yield "How long that takes is not known: the experiment's [budget] has no rates, and no run recorded its pace."
    reasons: dict[str, int] = defaultdict(int)
    for one in planned:
        if one.why_unknown:
            reasons[one.why_unknown] += 1
    for reason, number in reasons.items():
        yield f"What {_steps(number)} take{'s' * (number == 1)} is not known: {reason}"


def _steps(number: int) -> str:
    return f"{number} step{'s' * (number != 1)}"


def _size(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size > 2**28 else f"{size / 2**20:,.0f} MiB"
