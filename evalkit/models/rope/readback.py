"""What an engine really computes, compared with what the rule says: a wrong rope rule answers fluently and worse."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evalkit.errors import EngineError
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.formulas import Frequencies, frequencies, relative_differences
from evalkit.models.rope.modules import EffectiveRope
from evalkit.models.rope.served import ServedRope
from evalkit.models.rope.stored import FULL

TOLERANCE = 1e-6
"""Relative. Engines compute in float32 and stay within 3e-7 of ``frequencies`` on a CPU."""
GPU_TOLERANCE = 3e-6
"""Where frequencies are computed on a GPU, which divides by multiplying with a reciprocal and rounds powers worse."""


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

    Our own formulas where the rule is ours; otherwise, and for layers whose rule no request changes, what the model's
    class makes of the config as it is on file (of longrope, the half for the lengths that are served). Empty where
    nothing can be compared: no rotary positions, or a language model inside a larger one.
    """
    stored = checkpoint.rope
    if stored is None or stored.inside_larger_model:
        return {}
    if served.scaling is not None:
        return {**(stored.own or {}), stored.main: frequencies(served.scaling)}
    if served.long is not None:
        return {stored.main: stored.longrope(long=served.long)}
    return dict(stored.own or {})


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
    differences = relative_differences(actual, expected.inv_freq)
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
    the whole context must turn up. Where nothing is expected, nothing is compared.

    Raises:
        EngineError: a module computes something else, or none computes the main rule.
    """
    if not expected:
        return []
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
    if main not in seen:
        raise EngineError("The loaded model has no rotary module that serves its full-attention layers.")
    return found


def _nearest(expected: Mapping[str, Frequencies], module: EffectiveRope) -> str:
    def distance(name: str) -> float:
        inv_freq, factor = expected[name]
        if inv_freq.shape != module.inv_freq.shape:
            return float("inf")
        return float(relative_differences(module.inv_freq, inv_freq).max()) + abs(module.attention_factor / factor - 1)

    return min(expected, key=distance)
