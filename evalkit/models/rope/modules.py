"""The rotary modules of a transformers model, loaded or not: what they are, and what they compute.

A model with one rule has a module with a buffer ``inv_freq``; one with a rule per layer type has
``full_attention_inv_freq``, ``sliding_attention_inv_freq`` and so on.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalkit.errors import EngineError
from evalkit.models.rope.formulas import Frequencies

_OVER_A_CONFIG = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, ImportError, RuntimeError),
)
"""What model classes raise over a config that they cannot use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveRope:
    """What one rotary module of a model computes."""

    where: str
    """Its name in the model."""
    layer_type: str
    """The layers that it serves, where layer types have rules of their own; empty otherwise."""
    inv_freq: NDArray[np.float64]
    """Radians per position, shape (rotary_dim / 2,)."""
    attention_factor: float


def rotary_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and module of each rotary embedding of a transformers model's language part."""
    config = getattr(model, "config", None)
    text = config.get_text_config().model_type if config is not None else None
    for where, module in model.named_modules():
        if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)):
            own = getattr(module, "config", None)
            if text is None or own is None or own.model_type == text:  # vision towers rotate, too
                yield where, module


def read_back_transformers(model: Any, positions: int = 1) -> list[EffectiveRope]:
    """Return what each rotary module of a loaded transformers model computes for requests of so many tokens.

    Only longrope hangs on that: its module changes its frequencies by the last position that it is asked for.
    """
    found: list[EffectiveRope] = []
    for where, module in rotary_modules(model):
        if getattr(module, "rope_type", None) == "longrope":
            _turn_once(module, positions - 1)
        found += _read(where, module)
    return found


def own_frequencies(config: Any) -> dict[str, Frequencies]:
    """Return what the model class of a config computes from it, by layer type ("" where one rule serves all layers).

    The model is built without memory for weights (0.3 s for 80 layers), and only its rotary modules are built anew
    with values in them. Empty: the model rotates nothing, whatever its config says.

    Raises:
        EngineError: transformers has no such model, or its class cannot use the config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(deepcopy(config))
        built = [(where, type(module)(config=module.config)) for where, module in rotary_modules(model)]
    except _OVER_A_CONFIG as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise EngineError(f"no {config.model_type} model can be built from it ({reason})") from error
    found: dict[str, Frequencies] = {}
    for effective in (effective for where, module in built for effective in _read(where, module)):
        found.setdefault(effective.layer_type, Frequencies(effective.inv_freq, effective.attention_factor))
    return found


def rebuild_rotary_modules(model: Any) -> None:
    """Build the rotary modules of a loaded model anew, after its config was changed."""
    for where, module in list(rotary_modules(model)):
        device = next(module.buffers()).device
        parent, _, name = where.rpartition(".")
        setattr(model.get_submodule(parent), name, type(module)(config=module.config).to(device))


def _turn_once(module: Any, position: int) -> None:
    import torch

    device = next(module.buffers()).device
    module(torch.zeros(1, device=device), torch.tensor([[position]], device=device))


def _read(where: str, module: Any) -> Iterator[EffectiveRope]:
    for name, buffer in module.named_buffers(recurse=False):
        layer_type, _, rest = name.rpartition("inv_freq")
        if rest or layer_type.endswith("original_") or not name.endswith("inv_freq"):
            continue
        yield EffectiveRope(
            where=where or type(module).__name__,
            layer_type=layer_type.removesuffix("_"),
            inv_freq=buffer.detach().double().cpu().numpy(),
            attention_factor=float(getattr(module, f"{layer_type}attention_scaling", 1.0)),
        )
