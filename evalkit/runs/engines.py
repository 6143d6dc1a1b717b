"""Who answers a plan: one engine in this process, or several on Ray."""

from collections.abc import Sequence

from evalkit.runs.answers import Engines, OneEngine
from evalkit.runs.plan import Plan
from evalkit.types import Prompt


def open_engines(plan: Plan, previews: Sequence[Prompt]) -> Engines:
    """Return whoever answers, with no weights loaded yet.

    Args:
        plan: of the run.
        previews: prompts that were built here, longest first, to compare with those that are built elsewhere.

    Raises:
        BadInput: it can be seen to fail.
    """
    if plan.config.replicas is None and plan.config.ray is None:
        return OneEngine(plan)
    from evalkit.runs.replicas import Replicas

    return Replicas(plan, previews)
