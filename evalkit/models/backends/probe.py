"""What a loaded model must show before its answers count: finite numbers, and an adapter that changes them."""

import math
from collections.abc import Sequence

from evalkit.errors import BadInput, EngineError
from evalkit.models.adapter import Adapter

PROBE = "Mary went to the kitchen. Where is Mary? 12,345"
"""A short text; the log-probabilities of its tokens (all but the first) tell one loaded model from another."""


def not_finite(model: object, dtype: str, num_tokens: int) -> EngineError:
    """Return the error that ends a run whose model computes NaN or infinities, which greedy decoding takes for tokens.

    Args:
        model: its folder.
        dtype: of weights and arithmetic.
        num_tokens: how long the prompt was.
    """
    return EngineError(
        f"{model} gives no finite logits in {dtype} (asked with {num_tokens:,} tokens), so its answers mean nothing: "
        "its weights or its adapter hold NaN or infinities, or overflow in this dtype (try --dtype float32); no "
        "answer of it was recorded."
    )


def require_finite(logprobs: Sequence[float], model: object, dtype: str, num_tokens: int) -> None:
    """Refuse log-probabilities that are none; raises ``not_finite``."""
    if not all(map(math.isfinite, logprobs)):
        raise not_finite(model, dtype, num_tokens)


def require_adapter_in_use(adapter: Adapter, base: Sequence[float], adapted: Sequence[float], where: str) -> None:
    """Refuse an adapter under which the model computes what it computes without.

    Args:
        adapter: that was put on.
        base: log-probabilities of the probe's tokens without it.
        adapted: those with it.
        where: they were computed, such as "in float32".

    Raises:
        BadInput: they are equal, in every digit.
    """
    if list(base) == list(adapted):
        raise BadInput(
            f"The adapter {adapter.path} changes nothing: with and without it the model gives the same "
            f"log-probabilities {where}, so its factors multiply to nothing or are lost in rounding; give a trained "
            "adapter, or leave out --adapter."
        )
