"""Who answers a plan: one engine in this process, or several on Ray."""

from collections.abc import Callable, Sequence

from evalkit.runs.answers import Engines, OneEngine
from evalkit.runs.plan import Plan
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
    if plan.config.replicas is None and plan.config.ray is None:
        return OneEngine(plan, sent)
    from evalkit.runs.replicas import Replicas

    return Replicas(plan, previews)
