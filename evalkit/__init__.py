"""evalkit: does accuracy hold beyond the trained context length, and which training method holds it best?

From Python: ``evalkit.plan``, ``evalkit.run`` and ``evalkit.load``; see ``evalkit.api``.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from evalkit.api import Results, load, plan, run

__all__ = ["Results", "__version__", "load", "plan", "run"]


def __getattr__(name: str) -> Any:
    """Import the Python interface when one of its names is first used: it needs numpy and pandas."""
    if name in __all__:
        from evalkit import api

        return getattr(api, name)
    raise AttributeError(f"module 'evalkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what is offered, loaded or not."""
    return sorted({*globals(), *__all__})
