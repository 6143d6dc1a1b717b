"""The rope-scaling family on one page: frequencies, and the config that makes an engine use them.

Rotary position embedding turns pair j of a head's rotary dimensions by ``position * theta_j`` radians, where
``theta_j = theta ** (-2j / d)`` and d is the rotary dimension. With s = factor and L = original length (tokens):

    rule           effective frequency of pair j            attention factor    source
    none           theta_j                                  1                   extrapolation, no change
    linear         theta_j / s                              1                   position interpolation, arXiv 2306.15595
    ntk            theta_j with theta * s ** (d / (d - 2))  1                   NTK-aware; see arXiv 2309.00071, 3.1
    ntk-by-parts   ((1 - g_j) / s + g_j) * theta_j          1                   arXiv 2309.00071, 3.2
    yarn           as ntk-by-parts                          0.1 ln s + 1        arXiv 2309.00071, 3.4

The attention factor multiplies cos and sin, so it acts on queries and keys both and the logits get its square.

**The ramp g_j follows the pair index**, as the authors' code, transformers and vLLM do: 1 up to the index at which a
pair makes ``beta_fast`` turns within L positions, 0 from the index at which it makes ``beta_slow``, linear in j
between. ``truncate`` moves the two corners outward to whole indices. The formula printed in the paper is linear in the
number of turns instead; ``paper_frequencies`` has it, only so that a test can say by how much the two differ.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from evalkit.errors import BadInput

Rule: TypeAlias = Literal["none", "linear", "ntk", "ntk-by-parts", "yarn"]
RULES: tuple[Rule, ...] = get_args(Rule)
_BY_PARTS = ("ntk-by-parts", "yarn")


class Frequencies(NamedTuple):
    """What an engine computes from a rule."""

    inv_freq: NDArray[np.float64]
    """Radians per position of each pair, shape (rotary_dim / 2,), falling."""
    attention_factor: float
    """Multiplies cos and sin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """One rule with everything that its frequencies depend on.

    Raises:
        BadInput: a value that no rule, or not this rule, can use.
    """

    rule: Rule
    theta: float
    """Base of the frequencies (``rope_theta``), before any scaling."""
    rotary_dim: int
    """Dimensions of a head that are rotated: even."""
    original_length: int
    """Positions that the model was trained on before scaling, tokens."""
    factor: float = 1.0
    beta_fast: float = 32.0
    """Turns within the original length from which on a pair keeps its frequency."""
    beta_slow: float = 1.0
    """Turns up to which a pair is fully interpolated."""
    truncate: bool = True
    attention_factor: float | None = None
    """None: the rule's own."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise BadInput(f"Rope rule {self.rule!r} is unknown; the rules are {', '.join(RULES)}.")
        if not (_is_number(self.factor) and self.factor >= 1):
            raise BadInput(f"A rope factor is a number from 1 up, or auto; got {self.factor!r}.")
        if self.rule == "none" and self.factor != 1:
            raise BadInput(f"Rope rule none changes nothing and takes no factor; got {self.factor:g}.")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise BadInput(f"RoPE turns dimensions in pairs, so the rotary dimension is even; got {self.rotary_dim}.")
        if self.rule == "ntk" and self.rotary_dim < 4:
            raise BadInput(
                "The ntk rule raises the factor to d / (d - 2), which needs a rotary dimension of 4 or more."
            )
        if not (_is_number(self.theta) and self.theta > 1):
            raise BadInput(f"rope_theta is a number above 1; got {self.theta!r}.")
        if self.original_length < 1:
            raise BadInput(f"The original length is a positive number of tokens; got {self.original_length}.")
        if not 0 < self.beta_slow < self.beta_fast:
            raise BadInput(f"beta_slow is positive and below beta_fast; got {self.beta_slow:g} and {self.beta_fast:g}.")
        if self.attention_factor is not None:
            if self.rule != "yarn":
                raise BadInput(f"An attention factor belongs to the yarn rule; {self.rule} has none to set.")
            if not (_is_number(self.attention_factor) and self.attention_factor > 0):
                raise BadInput(f"The attention factor is a number above 0; got {self.attention_factor!r}.")

    @property
    def window(self) -> int:
        """Positions that the rule is meant for: factor x original length, tokens."""
        return math.floor(self.original_length * self.factor)

    def describe(self) -> str:
        """Return the rule in a few words, such as ``yarn, factor 4 over 32,768``."""
        if self.rule == "none":
            return "none (plain rope)"
        extras = [f"attention factor {self.attention_factor:g}"] if self.attention_factor is not None else []
        if self.rule in _BY_PARTS and (self.beta_fast, self.beta_slow) != (32, 1):
            extras.append(f"betas {self.beta_fast:g} and {self.beta_slow:g}")
        if self.rule in _BY_PARTS and not self.truncate:
            extras.append("corners not truncated")
        return ", ".join([f"{self.rule}, factor {self.factor:g} over {self.original_length:,}", *extras])

    def to_json(self) -> dict[str, Any]:
        """Return flat JSON values that ``from_json`` reads back; for run folders and training records."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RopeScaling":
        """Return the scaling that ``to_json`` wrote.

        Raises:
            BadInput: a key is missing or unknown, or a value cannot be used.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise BadInput(f"A rope rule on file cannot be read: {error}.") from error


def frequencies(scaling: RopeScaling) -> Frequencies:
    """Return the inverse frequencies, shape (rotary_dim / 2,) in radians per position, and the attention factor.

    Exponents and ramp are rounded to float32 where both engines round them: those are the two places in which float32
    would otherwise part from float64 by more than 1e-6.
    """
    s = scaling.factor
    if scaling.rule == "none":
        return Frequencies(_plain(scaling.theta, scaling.rotary_dim), 1.0)
    if scaling.rule == "linear":
        return Frequencies(_plain(scaling.theta, scaling.rotary_dim) / s, 1.0)
    if scaling.rule == "ntk":
        return Frequencies(_plain(ntk_theta(scaling), scaling.rotary_dim), 1.0)
    plain, keep = _plain(scaling.theta, scaling.rotary_dim), 1 - _index_ramp(scaling)
    inv_freq = ((1 - keep) / s + keep) * plain
    return Frequencies(inv_freq.astype(np.float64), attention_factor(scaling))


def longrope_frequencies(
    entry: Mapping[str, Any], *, rotary_dim: int, original_length: int, window: int, long: bool
) -> Frequencies:
    """Return what a stored longrope entry (arXiv 2402.13753) computes: a divisor for each pair, from one of two lists.

    It is none of the rules above, since the divisors were searched for one model: it can be kept and not be asked for.
    The attention factor is sqrt(1 + ln s / ln L) with s = window / L, unless the entry has s or itself.

    Args:
        entry: the complete entry, with ``rope_theta``, ``short_factor`` and ``long_factor``.
        rotary_dim: dimensions of a head that are rotated.
        original_length: L, the positions up to which the short list counts, tokens.
        window: positions that the entry covers, tokens.
        long: of the list for longer requests.

    Raises:
        BadInput: the list has not one divisor for each pair.
    """
    name = "long_factor" if long else "short_factor"
    divisors = np.asarray(entry[name], dtype=np.float64)
    if divisors.shape != (rotary_dim // 2,):
        raise BadInput(f"The longrope entry's {name} has {divisors.size} numbers for {rotary_dim // 2} rotated pairs.")
    attention = entry.get("attention_factor")
    if attention is None:
        s = entry.get("factor") or window / original_length
        attention = math.sqrt(1 + math.log(s) / math.log(original_length)) if s > 1 else 1.0
    return Frequencies(_plain(float(entry["rope_theta"]), rotary_dim) / divisors, float(attention))


def relative_differences(actual: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much each frequency differs, as a part of the expected one; of pairs that do not turn, as it is."""
    return np.abs(actual - expected) / np.where(expected == 0, 1.0, expected)


def attention_factor(scaling: RopeScaling) -> float:
    """Return what cos and sin are multiplied with: 0.1 ln(factor) + 1 for yarn unless set, 1 for the others."""
    if scaling.rule != "yarn":
        return 1.0
    return yarn_attention_factor(scaling.factor) if scaling.attention_factor is None else scaling.attention_factor


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """Return 0.1 * mscale * ln(factor) + 1: the square root of YaRN's inverse softmax temperature."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def ntk_theta(scaling: RopeScaling) -> float:
    """Return the scaled base: the slowest pair is slowed by exactly the factor, the fastest not at all."""
    d = scaling.rotary_dim
    return float(scaling.theta * scaling.factor ** (d / (d - 2)))


def paper_frequencies(scaling: RopeScaling) -> Frequencies:
    """Return the by-parts frequencies as the YaRN paper prints them: a ramp over turns, not over the pair index.

    No engine serves this; it exists to measure the difference.
    """
    plain = _plain(scaling.theta, scaling.rotary_dim)
    turns = scaling.original_length * plain / (2 * math.pi)
    keep = np.clip((turns - scaling.beta_slow) / (scaling.beta_fast - scaling.beta_slow), 0, 1)
    return Frequencies(((1 - keep) / scaling.factor + keep) * plain, attention_factor(scaling))


def factor_for(length_tokens: int, original_length: int, at_least: float = 1.0) -> float:
    """Return the automatic factor of one length bucket: max(at_least, length / original length).

    All requests of a bucket share it, so it is dynamic scaling that no cache can fall out of step with. ``at_least``
    is the factor of training: a model that was trained under YaRN at s is served at s or more, at short lengths too.
    """
    factor = max(at_least, length_tokens / original_length)
    while math.floor(original_length * factor) < length_tokens:  # the quotient was rounded down
        factor = math.nextafter(factor, math.inf)
    return factor


def rope_parameters(scaling: RopeScaling) -> dict[str, Any]:
    """Return the complete ``rope_parameters`` entry: both engines replace the stored one, they do not merge.

    A missing ``rope_theta`` would silently become 10000, an integer ``factor`` crashes vLLM's linear rule.
    """
    theta, factor = float(scaling.theta), float(scaling.factor)
    if scaling.rule in ("none", "ntk"):  # vLLM sizes its own ntk type wrongly; a scaled base says the same
        return {"rope_type": "default", "rope_theta": theta if scaling.rule == "none" else ntk_theta(scaling)}
    if scaling.rule == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    entry: dict[str, Any] = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": scaling.original_length,
        "beta_fast": float(scaling.beta_fast),
        "beta_slow": float(scaling.beta_slow),
        "truncate": scaling.truncate,
    }
    if scaling.rule == "ntk-by-parts" or scaling.attention_factor is not None:
        entry["attention_factor"] = float(attention_factor(scaling))
    return entry


def config_mapping(scaling: RopeScaling, *, length: int | None = None) -> dict[str, Any]:
    """Return what a config needs to be served under a rule: ``rope_parameters`` and ``max_position_embeddings``.

    ``max_position_embeddings`` sizes vLLM's cos/sin table: a position past its end is read from foreign memory without
    an error. It is the window for all rules but linear, for which vLLM multiplies by the factor itself.

    Args:
        scaling: the rule.
        length: positions to size the table for under ``none``, which has no window of its own, tokens.

    Returns:
        Values for ``setattr(config, key, value)`` in transformers; ``vllm_mapping`` makes vLLM's ``hf_overrides``.
    """
    size = scaling.original_length if scaling.rule == "linear" else scaling.window
    if scaling.rule == "none":
        size = max(scaling.original_length, length or 0)
    return {"rope_parameters": rope_parameters(scaling), "max_position_embeddings": size}


def vllm_mapping(mapping: Mapping[str, Any] | None, vllm_version: tuple[int, ...], length: int) -> dict[str, Any]:
    """Return the ``hf_overrides`` that make a vLLM of this version do what a mapping says.

    Before 0.30 vLLM ignored ``attention_factor`` (ntk-by-parts silently became yarn) and multiplied its own factor
    with ``attn_factor``; from 0.30 on it is the other way round. ``model_max_length`` lifts the cap that a tokenizer's
    setting of that name puts on the engine's length.

    Args:
        mapping: config fields to replace; None for none.
        vllm_version: such as (0, 26).
        length: longest prompt plus answer that the engine is started for, tokens.
    """
    overrides = {**(mapping or {}), "model_max_length": length}
    if "rope_parameters" in overrides and vllm_version < (0, 30):
        overrides["rope_parameters"] = _with_attn_factor(overrides["rope_parameters"])
    return overrides


def _with_attn_factor(entry: Mapping[str, Any]) -> dict[str, Any]:
    if "rope_type" not in entry:  # one entry per layer type
        return {name: _with_attn_factor(inner) for name, inner in entry.items()}
    if entry["rope_type"] != "yarn" or "attention_factor" not in entry:
        return dict(entry)
    return {**entry, "attn_factor": entry["attention_factor"] / yarn_attention_factor(entry["factor"])}


def _plain(theta: float, rotary_dim: int) -> NDArray[np.float64]:
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    return theta ** -exponents.astype(np.float64)


def _index_ramp(scaling: RopeScaling) -> NDArray[np.float32]:
    """How far each pair is interpolated, 0 to 1, shape (rotary_dim / 2,)."""

    def index_of(turns: float) -> float:  # of the pair that makes so many turns within the original length
        wavelength = scaling.original_length / turns
        return scaling.rotary_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(scaling.theta))

    low, high = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, scaling.rotary_dim - 1)  # of the dimensions, not of the pairs: as the engines do
    if low == high:
        high += 0.001  # as the engines do: a step instead of a division by zero
    index = np.arange(scaling.rotary_dim // 2, dtype=np.float32)
    ramp: NDArray[np.float32] = np.clip((index - np.float32(low)) / np.float32(high - low), 0, 1)
    return ramp


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
