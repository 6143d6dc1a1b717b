"""What an engine really computes, compared with what the rule says: a wrong rope rule answers fluently and worse."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalkit.errors import EngineError
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.formulas import Frequencies, RopeScaling, frequencies
from evalkit.models.rope.served import ServedRope
from evalkit.models.rope.stored import FULL

TOLERANCE = 1e-6
"""Relative. Engines compute in float32 and stay within 3e-7 of ``frequencies`` on a CPU."""
GPU_TOLERANCE = 3e-6
"""Where frequencies are computed on a GPU, which divides by multiplying with a reciprocal and rounds powers worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveRope:
    """What one rotary module of a loaded model computes."""

    where: str
    """Its name in the model."""
    layer_type: str
    """The layers that it serves, where layer types have rules of their own; empty otherwise."""
    inv_freq: NDArray[np.float64]
    """Radians per position, shape (rotary_dim / 2,)."""
    attention_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeReadback:
    """The comparison that came out well; for run.json."""

    where: str
    max_difference: float
    """Largest relative difference of a frequency or of the attention factor."""
    attention_factor: float
    fastest: float
    """Radians per position of the first pair."""
    slowest: float

    def to_json(self) -> dict[str, Any]:
        """Return flat JSON values."""
        return asdict(self)


def expected_frequencies(checkpoint: Checkpoint, served: ServedRope) -> dict[str, Frequencies]:
    """Return what a loaded model must compute, by layer type ("" where one rule serves all layers).

    Our own formulas where the rule is ours; otherwise transformers' functions on the checkpoint's config. Empty where
    nothing can be compared: no rotary positions, longrope (its frequencies follow each request's length), or positions
    with several axes.
    """
    stored = checkpoint.rope
    if stored is None or stored.fixed_because or stored.type == "longrope":
        return {}
    if served.scaling is not None:
        main = frequencies(served.scaling)
    else:
        main = _transformers_frequencies(checkpoint.path, FULL if stored.layers else None)
    if stored.layers is None:
        return {"": main}
    others = {
        name: _layer_frequencies(checkpoint, name, entry) for name, entry in stored.layers.items() if name != FULL
    }
    return {FULL: main, **others}


def read_back_transformers(model: Any) -> list[EffectiveRope]:
    """Return what each rotary module of a loaded transformers model holds.

    A model with one rule has a buffer ``inv_freq`` and ``attention_scaling``; one with a rule per layer type has
    ``full_attention_inv_freq``, ``full_attention_attention_scaling`` and so on.
    """
    found = []
    for where, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            layer_type, _, rest = name.rpartition("inv_freq")
            if rest or layer_type.endswith("original_") or not name.endswith("inv_freq"):
                continue
            found.append(
                EffectiveRope(
                    where=where or type(module).__name__,
                    layer_type=layer_type.removesuffix("_"),
                    inv_freq=buffer.detach().double().cpu().numpy(),
                    attention_factor=float(getattr(module, f"{layer_type}attention_scaling", 1.0)),
                )
            )
    return found


def rope_from_table(row: ArrayLike) -> Frequencies:
    """Return the rule that a float32 cos/sin table was made with, from its row of position 1.

    Args:
        row: shape (rotary_dim,), cosines in the first half, sines in the second, as in vLLM's ``cos_sin_cache``. A
            half-precision table is too coarse: it carries errors of up to 4e-3.
    """
    cos, sin = np.split(np.asarray(row, dtype=np.float64), 2)
    return Frequencies(np.arctan2(sin, cos), float(np.hypot(cos, sin).mean()))


def compare_frequencies(
    expected: Frequencies,
    inv_freq: ArrayLike,
    attention_factor: float,
    where: str,
    *,
    tolerance: float = TOLERANCE,
) -> RopeReadback:
    """Compare what a loaded model computes with what it should.

    Raises:
        EngineError: they differ by more than the tolerance, relatively; the message has both values.
    """
    actual = np.asarray(inv_freq, dtype=np.float64)
    if actual.shape != expected.inv_freq.shape:
        raise EngineError(
            f"{where} rotates {2 * actual.size} dimensions where the rope rule has {2 * expected.inv_freq.size}; "
            "the checkpoint's head dimension or partial_rotary_factor is read differently."
        )
    differences = np.abs(actual / expected.inv_freq - 1)
    factor_difference = abs(attention_factor / expected.attention_factor - 1)
    if not factor_difference <= tolerance:
        raise EngineError(
            f"{where} multiplies by attention factor {attention_factor:.8g} where the rope rule says "
            f"{expected.attention_factor:.8g}; it serves another rule than the one asked for."
        )
    worst = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
    if not differences[worst] <= tolerance:
        raise EngineError(
            f"{where} turns pair {worst} by {actual[worst]:.8g} radians a position where the rope rule says "
            f"{expected.inv_freq[worst]:.8g}; it serves another rule than the one asked for."
        )
    return RopeReadback(
        where=where,
        max_difference=float(max(differences[worst], factor_difference)),
        attention_factor=float(attention_factor),
        fastest=float(actual[0]),
        slowest=float(actual[-1]),
    )


def compare_model(
    expected: Mapping[str, Frequencies], effective: Sequence[EffectiveRope], *, tolerance: float = TOLERANCE
) -> list[RopeReadback]:
    """Compare every rotary module of a model with the rule of the layers it serves.

    A module that does not say which layers it serves must agree with one of the rules. The rule of the layers that see
    the whole context must turn up.

    Raises:
        EngineError: a module computes something else, or none computes the main rule.
    """
    main = FULL if FULL in expected else ""
    found, seen = [], set()
    for module in effective:
        name = module.layer_type if module.layer_type in expected else _nearest(expected, module)
        seen.add(name)
        found.append(
            compare_frequencies(
                expected[name], module.inv_freq, module.attention_factor, module.where, tolerance=tolerance
            )
        )
    if expected and main not in seen:
        raise EngineError("The loaded model has no rotary module that serves its full-attention layers.")
    return found


def transformers_config(folder: Path, mapping: Mapping[str, Any] | None) -> Any:
    """Return a checkpoint's config with a rule's fields in it, to be given to ``from_pretrained(..., config=...)``."""
    from copy import deepcopy

    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for name, value in (mapping or {}).items():
        setattr(config, name, deepcopy(value))
    return config


def _nearest(expected: Mapping[str, Frequencies], module: EffectiveRope) -> str:
    def distance(name: str) -> float:
        inv_freq, factor = expected[name]
        if inv_freq.shape != module.inv_freq.shape:
            return float("inf")
        return float(np.abs(module.inv_freq / inv_freq - 1).max()) + abs(module.attention_factor / factor - 1)

    return min(expected, key=distance)


def _layer_frequencies(checkpoint: Checkpoint, layer_type: str, entry: Mapping[str, Any]) -> Frequencies:
    if entry.get("rope_type", "default") != "default":
        return _transformers_frequencies(checkpoint.path, layer_type)
    dim = int(checkpoint.head_dim * entry.get("partial_rotary_factor", 1.0))
    return frequencies(RopeScaling(rule="none", theta=entry["rope_theta"], rotary_dim=dim, original_length=1))


def _transformers_frequencies(folder: Path, layer_type: str | None) -> Frequencies:
    """What transformers' own function makes of the stored config, for rules whose formulas are not ours."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers_config(folder, None).get_text_config()
    entry = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[entry["rope_type"]](config, layer_type=layer_type)
    return Frequencies(inv_freq.double().numpy(), float(attention_factor))
