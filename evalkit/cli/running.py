"""What 'evalkit run' prints while it carries out one run, or the several of a file."""

from collections.abc import Sequence

from evalkit.cli.progress import Progress
from evalkit.cli.reports import print_tables
from evalkit.cli.terminal import echo_either, echo_text, echo_wrapped
from evalkit.errors import EngineError, EvalkitError
from evalkit.runs import run as running
from evalkit.runs.plan import Plan
from evalkit.runs.run import RunResult


def show_cost(plans: Sequence[Plan], *, as_json: bool) -> None:
    """Print what runs would cost and could show; of several runs the JSON is a list."""
    from evalkit.study.cost import run_cost

    costs = [run_cost(plan) for plan in plans]
    told = [cost.to_json() for cost in costs]
    echo_either(
        as_json,
        lambda: told if len(told) > 1 else told[0],
        lambda: "\n\n".join(cost.to_text() for cost in costs),
    )


def measure(plans: Sequence[Plan], *, quiet: bool) -> None:
    """Ask each checkpoint a few questions, so that the time of its run is known; see ``study.calibration``."""
    from evalkit.study.calibration import calibrate_answers

    for plan in plans:
        if quiet:
            calibrate_answers(plan)
        else:
            echo_text(f"measuring how fast {plan.arm} answers here, unless that is known", err=True)
            with Progress() as progress:
                calibrate_answers(plan, progress)


def carry_out(plans: Sequence[Plan], *, quiet: bool) -> int:
    """Carry out runs one after the other, and print their tables; return how many samples failed.

    Raises:
        EvalkitError: a run could not be carried out; of several, the others are.
    """
    results, ended = list[RunResult](), list[str]()
    for plan in plans:
        try:
            results.append(_one(plan, quiet=quiet))
        except EvalkitError as error:
            if len(plans) == 1:
                raise
            ended.append(str(plan.out))
            echo_text(f"{plan.out}: {error}", err=True)
    if not quiet:
        _print_tables(results)
    for result in results:
        _say_what_is_unscored(result)
    if ended:
        raise EngineError(f"{len(ended)} of {len(plans)} runs ended early ({', '.join(ended)}); see above.")
    return sum(result.failed for result in results)


def _one(plan: Plan, *, quiet: bool) -> RunResult:
    if quiet:
        for warning in plan.warnings:
            echo_text(f"warning: {warning}", err=True)
        result = running.run(plan)
    else:
        from evalkit.study.cost import BEGINNING_SECONDS, run_cost

        echo_wrapped(run_cost(plan, BEGINNING_SECONDS).to_brief(), indent=2, err=True)
        with Progress() as progress:
            result = running.run(plan, progress)
    for notice in result.notices:
        echo_text(f"note: {notice}", err=True)
    return result


def _print_tables(results: Sequence[RunResult]) -> None:
    if results:
        print_tables([result.folder for result in results])
    for result in results:
        echo_text(f"{result.recorded} samples recorded, {result.asked} asked now; {result.folder}", err=True)


def _say_what_is_unscored(result: RunResult) -> None:
    if result.unfitting:
        example = result.unfitting_example.rstrip(".")
        echo_text(f"{result.unfitting} samples do not fit their length and stay unscored: {example}.", err=True)
    if result.unfinished:
        echo_text(
            f"{result.unfinished} answers were cut off inside their reasoning: unscored, neither right nor wrong; more "
            "--thinking-tokens give them room, in a run of their own.",
            err=True,
        )
    if result.failed:
        again = f"; the same command asks {result.retried} of them again" if result.retried else ""
        echo_text(f"{result.failed} samples failed ({result.failed_example.rstrip('.')}){again}.", err=True)
