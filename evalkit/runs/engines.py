"""Who answers a plan: one engine in this process, or several on Ray."""

from collections.abc import Callable, Sequence

from evalkit.records.folder import RunFolder
from evalkit.runs.answers import Engines, OneEngine
from evalkit.runs.plan import Plan
from evalkit.runs.todo import Todo
from evalkit.types import Prompt


def open_engines(plan: Plan, previews: Sequence[Prompt], sent: Callable[[], None]) -> Engines:
    """Return whoever answers, with no weights loaded yet.

    Args:
        plan: of the run.
        previews: prompts that were built here, longest first, to compare with those that are built elsewhere.
        sent: called for each prompt that one engine in this process takes.

    Raises:
        BadInput: it can be seen to fail.
    """
    if (plan.config.replicas is None and plan.config.ray is None) or _is_answered(plan):
        return OneEngine(plan, sent)
    from evalkit.runs.replicas import Replicas

    return Replicas(plan, previews)


def _is_answered(plan: Plan) -> bool:
    """Return whether all that a plan asks is recorded: nobody has to be started for that."""
    if not (plan.out / "run.json").is_file():
        return False
    folder = RunFolder.open(plan.out)
    return not any(Todo(plan, folder, group.lengths) for group in plan.groups)
