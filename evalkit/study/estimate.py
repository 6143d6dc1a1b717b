"""A study's plan as text: every step with its command, what is done, and what the rest takes on each kind of device."""

import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from evalkit.errors import EvalkitError
from evalkit.machine import describe as machine
from evalkit.study.cost import duration
from evalkit.study.steps import Step
from evalkit.study.study import THIS_MACHINE, Cost

_DOING = {"base": "training", "train": "training", "run": "asking"}


class _Planned(NamedTuple):
    step: Step
    state: str
    cost: Cost | None
    why_unknown: str
    """Why there is no cost, where there should be one."""


def describe(steps: Sequence[Step]) -> str:
    """Return the plan as a table: what is done, the command of each step, and what it costs as far as that is known."""
    variables = [f"{name}={value}" for name, value in steps[0].study.environment.items()]
    lines = [shlex.join(["export", *variables])] if variables else []
    lines.append(f"{'':6} {'step':<44} {'state':>6} {'tokens':>14} {'memory':>9} {'time':>8}")
    planned = [_planned(step) for step in steps]
    for step, state, cost, _ in planned:
        lines.append(f"{step.kind:6} {step.title:<44} {state:>6}{_cells(cost)}".rstrip())
        lines.append(f"         {step.command() or '(by evalkit reproduce alone)'}")
    return "\n".join([*lines, *_sums([one for one in planned if one.state != "done"])])


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
        parts += [f"{_steps(number)} of {doing} of unknown length" for doing, number in unknown.items()]
        source = sources.get(device, f"{machine()}, at the pace that was recorded there")
        yield f"To do on {device}: {', '.join(parts) or 'next to nothing'}; {source}."
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
