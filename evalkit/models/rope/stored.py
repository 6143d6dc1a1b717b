"""The rope rule that a checkpoint's config stores, in every layout that transformers 4 and 5 have written.

    transformers 4:  "rope_theta": 1e6, "rope_scaling": {"type" or "rope_type": "yarn", "factor": 4.0, ...}
    transformers 5:  "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, ...}
    per layer type:  "rope_parameters": {"full_attention": {...}, "sliding_attention": {...}}

transformers itself brings them into one form and fills in each model family's defaults, as the engines will; here
that form becomes a ``RopeScaling`` where the formula is one of ours, and what it covers is worked out and checked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

from evalkit.errors import BadInput
from evalkit.models.rope.formulas import (
    Frequencies,
    RopeScaling,
    Rule,
    frequencies,
    longrope_frequencies,
    relative_differences,
    yarn_attention_factor,
)
from evalkit.reading import shown

FULL = "full_attention"  # the layer type that sees the whole context, in configs with one rule per layer type
_SAME_RULE = ({"longrope", "su"}, {"default", "mrope"})  # an old and a new name of one rule

OF_THE_RULE = frozenset(
    {
        *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor"),
        *("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor"),
        *("short_factor", "long_factor"),
    }
)
"""Keys of a rope entry that belong to its rule; a model may read others from it for purposes of its own."""
_SAME = 1e-5  # relative: float32 in transformers, and room for another order of its operations

_NUMBERS = (
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "low_freq_factor",
    "high_freq_factor",
    "rope_local_base_freq",
)
_FACTORS = ("short_factor", "long_factor")
_MOST = 1e15  # thetas go to 1e9; what is far beyond overflows float32 in the engines


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRope:
    """What a config says about rotary positions."""

    type: str
    """The config's own name: default, linear, dynamic, yarn, llama3, longrope, ..."""
    parameters: Mapping[str, Any]
    """The complete entry, defaults filled in; of the full-attention layers where layer types differ."""
    layers: Mapping[str, Mapping[str, Any]] | None = None
    """All entries, where each layer type has its own."""
    scaling: RopeScaling | None = None
    """The rule in our terms; None where its formula is not one of ours."""
    theta: float
    rotary_dim: int
    original_length: int
    """Positions before any scaling, tokens."""
    window: int
    """Positions that the stored rule covers, tokens."""
    own: Mapping[str, Frequencies] | None = field(default=None, compare=False, repr=False)
    """What the model's class makes of this config, by layer type; None where transformers has no such class."""
    fixed_because: str = ""
    """Why no other rule can take its place; empty where one can."""
    inside_larger_model: bool = False
    original_beside: bool = False
    """The config has ``original_max_position_embeddings`` beside the entry, too, where transformers prefers it."""
    warnings: tuple[str, ...] = ()

    @property
    def main(self) -> str:
        """The layer type that sees the whole context; empty where one rule serves all layers."""
        return FULL if self.layers is not None else ""

    @property
    def rule(self) -> "RopeScaling | KeptRule":
        """The rule: in numbers, or by the name that the config gives it."""
        if self.scaling is not None:
            return self.scaling
        return KeptRule(type=self.type, parameters=self.to_json(), original_length=self.original_length)

    def longrope(self, *, long: bool) -> Frequencies:
        """Return what a longrope entry computes for requests within its original length, or for longer ones."""
        return longrope_frequencies(
            self.parameters,
            rotary_dim=self.rotary_dim,
            original_length=self.original_length,
            window=self.window,
            long=long,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what decides the frequencies, as JSON values."""
        return dict(self.layers) if self.layers is not None else dict(self.parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRule:
    """A rule whose formula is not one of ours, named by what the config stores of it: llama3, longrope, ..."""

    type: str
    parameters: Mapping[str, Any]
    """The stored entry, or one for each layer type."""
    original_length: int
    """Positions before any scaling, tokens."""

    def describe(self) -> str:
        """Return the rule in a few words."""
        return f"{self.type} as stored, over {self.original_length:,}"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; a training record reads them back."""
        return {"rule": "as stored", **asdict(self)}


KnownRule: TypeAlias = RopeScaling | KeptRule


def refuse_contradictions(raw: Mapping[str, Any], where: str) -> None:
    """Refuse a config.json that says two things about one setting: engines and versions differ in which they take.

    Raises:
        BadInput: what contradicts what.
    """
    old, new = raw.get("rope_scaling"), raw.get("rope_parameters")
    for key, entry in (("rope_scaling", old), ("rope_parameters", new)):
        if entry is not None and not isinstance(entry, Mapping):
            raise BadInput(
                f"{key} in {where} is {shown(entry)}; it should be an object with rope_type and its settings."
            )
    if old and new and dict(old) != dict(new):
        raise BadInput(
            f"{where} has both rope_scaling and rope_parameters, and they differ; keep the one that is right."
        )
    entry = _stored_entry(raw)
    for values in (raw, *_entries(entry)):
        _require_types(values, where)
    names = {entry[key] for key in ("type", "rope_type") if key in entry}
    if len(names) > 1 and names not in _SAME_RULE:
        raise BadInput(f"The rope settings in {where} say type {entry['type']!r} and rope_type {entry['rope_type']!r}.")
    for key in ("rope_theta", "original_max_position_embeddings"):
        if key in entry and raw.get(key) not in (None, entry[key]):
            raise BadInput(f"{where} gives {key} twice, {entry[key]:g} in its rope settings and {raw[key]:g} beside.")
    if entry.get("factor") is not None and "type" not in entry and "rope_type" not in entry:
        raise BadInput(
            f"{where} has a rope factor {entry['factor']:g} but no rope_type to use it; name one, such as yarn."
        )


def _entries(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a rope entry, and those of layer types in it."""
    yield entry
    yield from (inner for inner in entry.values() if isinstance(inner, Mapping))


def _require_types(values: Mapping[str, Any], where: str) -> None:
    """Refuse settings that no rule could compute with, which each engine would stop at in its own way, or would not.

    Raises:
        BadInput: the field.
    """
    for key, value in values.items():
        if key in _NUMBERS and not (value is None or _is_usable(value)):
            raise BadInput(f"{key} in {where} is {shown(value)}; it should be a number, from {-_MOST:g} to {_MOST:g}.")
        if key in _FACTORS and not (isinstance(value, list) and all(_is_usable(one) and one > 0 for one in value)):
            raise BadInput(f"{key} in {where} is {shown(value)}; it should be a list of numbers above 0.")
        if key in ("type", "rope_type") and not isinstance(value, str):
            raise BadInput(f"{key} in {where} is {shown(value)}; it should be a name, such as yarn.")
    if not isinstance(values.get("truncate", True), bool):
        raise BadInput(f"truncate in {where} is {shown(values['truncate'])}; it should be true or false.")


def _is_usable(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_MOST <= value <= _MOST


def read_stored_rope(
    raw: Mapping[str, Any], config: Any, where: str, own: Mapping[str, Frequencies] | None
) -> StoredRope | None:
    """Return the stored rule, or None for a model whose positions are not rotary (or not by rules known here).

    A rule that is read as one of ours is compared with what the model's class makes of the same config: a class that
    reads more than the rule's keys (an alpha, a head size that differs by layer) computes something else, and then the
    rule is not one of ours.

    Args:
        raw: the parsed config.json, to see what it says itself.
        config: the same as transformers reads it (its text part), defaults filled in.
        where: the file's name for messages.
        own: from ``modules.own_frequencies``: what the model's class computes.

    Raises:
        BadInput: settings that contradict each other or cannot be used.
    """
    stored = getattr(config, "rope_parameters", None)
    if not stored or own == {}:
        return None
    layers = stored if all(isinstance(entry, Mapping) or entry is None for entry in stored.values()) else None
    if layers is not None:
        layers = {name: dict(entry) for name, entry in layers.items() if entry}
        if FULL not in layers:
            raise BadInput(f"{where} has rope rules for {', '.join(layers)}, but none for {FULL} layers.")
    entry = dict(layers[FULL] if layers is not None else stored)
    if entry.get("rope_theta") is None:
        if _stored_entry(raw):
            raise BadInput(f"{where} has rope settings without a rope_theta; write down the one of the training.")
        return None
    head_dim = head_size(config)
    spread = entry.get("rope_type") == "proportional"  # the turned pairs are a part, but lie among those of the whole
    rotary_dim = head_dim if spread else int(head_dim * entry.get("partial_rotary_factor", 1.0))
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim:
        raise BadInput(
            f"{where} rotates {rotary_dim} of the {head_dim} dimensions of each head; RoPE turns pairs and needs an "
            "even number of them."
        )
    longest = config.max_position_embeddings
    base = StoredRope(
        type=str(entry.get("rope_type", "default")),
        parameters=entry,
        layers=layers,
        theta=float(entry["rope_theta"]),
        rotary_dim=rotary_dim,
        original_length=int(entry.get("original_max_position_embeddings") or longest),
        window=longest,
        own=own,
        fixed_because=_why_fixed(raw, config, entry),
        inside_larger_model="text_config" in raw,
        original_beside="original_max_position_embeddings" in raw,
    )
    if base.type == "longrope" and not base.inside_larger_model:
        _require_divisors(entry, rotary_dim // 2, where)
    if base.fixed_because:
        return base
    if base.type == "default":
        base = replace(base, scaling=_scaling(base, "none", where), original_length=longest)
    elif base.type == "linear":
        base = _read_linear(base, longest, where)
    elif base.type == "yarn":
        base = _read_yarn(base, longest, raw, where)
    return _as_its_class_computes(base, where)


def head_size(config: Any) -> int:
    """Return the dimensions of a head: of the layers that see the whole context, where layer types differ."""
    config = full_attention_config(config)
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size


def full_attention_config(config: Any) -> Any:
    """Return the config of the layers that see the whole context, where layers differ in their sizes."""
    return config.per_layer_config[FULL] if config.is_heterogeneous else config


def _require_divisors(entry: Mapping[str, Any], pairs: int, where: str) -> None:
    """Refuse lists of another length, which transformers stretches where they have one number, with a warning."""
    for key in _FACTORS:
        if (count := len(entry.get(key, ()))) != pairs:
            raise BadInput(
                f"{key} in {where} has {count} numbers for the {pairs} pairs that each head rotates; copy the config "
                "again."
            )


def _as_its_class_computes(base: StoredRope, where: str) -> StoredRope:
    """Take back the reading as a rule of ours where the model's class computes something else from the config."""
    read = base.scaling
    if base.type == "dynamic":  # plain within its original length
        read = _scaling(base, "none", where)
    own = None if base.own is None else base.own.get(base.main)
    if read is None or own is None or _agree(frequencies(read), own):
        return base
    extra = " and ".join(sorted(set(base.parameters) - OF_THE_RULE))
    because = f"its class computes other frequencies than rope_type {base.type} says"
    because += f" (it reads {extra} in its own way)" if extra else ""
    warning = f"The rope rule in {where} is served as stored: {because}."
    return replace(base, scaling=None, fixed_because=because, warnings=(warning,))


def _agree(read: Frequencies, own: Frequencies) -> bool:
    if read.inv_freq.shape != own.inv_freq.shape or abs(read.attention_factor / own.attention_factor - 1) > _SAME:
        return False
    return bool((relative_differences(read.inv_freq, own.inv_freq) <= _SAME).all())


def _read_linear(base: StoredRope, longest: int, where: str) -> StoredRope:
    scaling = _scaling(base, "linear", where)
    if base.layers is not None:  # such configs (Gemma 3) give the window after scaling, and vLLM reads them so
        original = int(longest / scaling.factor)
        return replace(base, scaling=replace(scaling, original_length=original), original_length=original)
    warning = (
        f"{where} has a linear rule with factor {scaling.factor:g}; as vLLM does, its max_position_embeddings "
        f"{longest:,} is taken as the length before scaling, so that {scaling.window:,} positions are covered."
    )
    warnings = (warning,) if scaling.factor > 1 else ()
    return replace(base, scaling=scaling, window=scaling.window, warnings=warnings)


def _read_yarn(base: StoredRope, longest: int, raw: Mapping[str, Any], where: str) -> StoredRope:
    entry = base.parameters
    factor = entry.get("factor") or longest / base.original_length
    scaling = _scaling(base, "yarn", where, factor=factor)
    own, stored = yarn_attention_factor(factor), entry.get("attention_factor")
    if stored is None and entry.get("mscale") and entry.get("mscale_all_dim"):
        over, under = (yarn_attention_factor(factor, entry[key]) for key in ("mscale", "mscale_all_dim"))
        stored = over / under
    if stored is not None and abs(stored - own) > 1e-9:
        by_parts = abs(stored - 1) < 1e-9
        scaling = replace(scaling, rule="ntk-by-parts") if by_parts else replace(scaling, attention_factor=stored)
    warnings = []
    said = _stored_entry(raw)
    said = said.get(FULL, said)
    if "original_max_position_embeddings" not in said and "original_max_position_embeddings" not in raw:
        warnings.append(
            f"{where} has a yarn rule without original_max_position_embeddings; as transformers does, its "
            f"max_position_embeddings {longest:,} is taken for it, so that {scaling.window:,} positions are covered."
        )
    elif longest not in (scaling.window, scaling.original_length):
        warnings.append(
            f"{where} has max_position_embeddings {longest:,}, which is neither the original length "
            f"{scaling.original_length:,} nor factor {factor:g} x {scaling.original_length:,} = {scaling.window:,}; "
            f"the rule covers {scaling.window:,} positions, and that is what is served."
        )
    window = min(scaling.window, longest) if base.layers is not None else scaling.window
    return replace(base, scaling=scaling, window=window, warnings=tuple(warnings))


def _scaling(base: StoredRope, rule: Rule, where: str, factor: float | None = None) -> RopeScaling:
    entry = base.parameters
    if rule == "none":
        factor = 1.0
    elif factor is None:
        factor = entry["factor"]
    try:
        return RopeScaling(
            rule=rule,
            theta=base.theta,
            rotary_dim=base.rotary_dim,
            original_length=base.original_length,
            factor=factor,
            beta_fast=entry.get("beta_fast") or 32.0,
            beta_slow=entry.get("beta_slow") or 1.0,
            truncate=entry.get("truncate", True),
        )
    except BadInput as error:
        raise BadInput(f"The rope settings in {where} cannot be served: {error}") from error


def _stored_entry(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    entry = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    return entry if isinstance(entry, Mapping) else {}


def _why_fixed(raw: Mapping[str, Any], config: Any, entry: Mapping[str, Any]) -> str:
    if "mrope_section" in entry or "xdrope_section" in entry:
        return "its positions have several axes (mrope)"
    if getattr(config, "kv_lora_rank", None):
        return "its compressed attention (MLA) builds the scaling into the softmax, too"
    if "text_config" in raw:
        return "its language model is one part of a larger model"
    if entry.get("rope_type") == "proportional":
        return "its proportional rule turns pairs that are spread over the whole head"
    return ""
