"""Which rope rule is served at which length: what was asked, what the checkpoint is, and what positions that covers.

An evaluation knows its length buckets beforehand, so dynamic scaling can be had exactly and safely: ``auto`` gives each
bucket one factor, all requests of a bucket share it, and no cached key ever meets another factor. Buckets whose rule is
the same share an engine.
"""

import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from evalkit.errors import BadInput
from evalkit.lengths import parse_length
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.formulas import RULES, RopeScaling, config_mapping, factor_for
from evalkit.models.rope.stored import FULL, OF_THE_RULE, KeptRule, KnownRule, StoredRope
from evalkit.models.training_record import TRAINING_RECORD
from evalkit.options import option
from evalkit.reading import read_json

Factor: TypeAlias = float | Literal["auto"] | None
RuleName: TypeAlias = Literal["checkpoint", "none", "linear", "ntk", "ntk-by-parts", "yarn"]
_BY_PARTS = ("ntk-by-parts", "yarn")
_DETAILS = ("beta_fast", "beta_slow", "truncate", "attention_factor")
_PLAIN = ("llama", "mistral", "qwen2", "qwen3")
"""Their positions are those of ``max_position_embeddings`` where the config names no rule."""
_OF_NO_RULE = {"rope_type", "rope_theta"}
_MOST_POSITIONS = 2**24
"""transformers (``position_ids.float()``) and vLLM (``arange(..., dtype=torch.float)``) turn positions into angles in
float32, of whose whole numbers above this every other one is missing: two neighbours would have one angle."""


def _factor(text: str) -> float | str:
    """Turn "4" into 4.0, and keep "auto"."""
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise BadInput(f"A rope factor is a number from 1 up, or auto; got {text!r}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeRequest:
    """A rule as a person names it. ``checkpoint`` serves what the config says; any other takes its place.

    Raises:
        BadInput: settings that the rule does not have.
    """

    GROUP: ClassVar[str] = "Rope"

    rule: RuleName = option(
        "--rope", "Rule to serve: the checkpoint's own, or another one in its place.", default="checkpoint"
    )
    factor: Factor = option(
        "--factor",
        "Window factor of a named rule; 'auto', its default: length / trained length, one per length.",
        default=None,
        parse=_factor,
    )
    """None is auto: one factor per length bucket."""
    original_length: int | None = option(
        "--original-length",
        "Trained window, such as 32k, where the config has it wrong.",
        default=None,
        parse=parse_length,
    )
    """None: the checkpoint's own. Tokens."""
    beta_fast: float | None = option("--beta-fast", "Turns above which a pair keeps its angle [32].", default=None)
    beta_slow: float | None = option("--beta-slow", "Turns below which a pair is interpolated [1].", default=None)
    truncate: bool | None = option("--truncate", "Round the ramp's corners to whole pairs [yes].", default=None)
    attention_factor: float | None = option("--attention-factor", "Of yarn, in place of 0.1 ln s + 1.", default=None)

    def __post_init__(self) -> None:
        if self.rule not in ("checkpoint", *RULES):
            raise BadInput(f"Rope rule {self.rule!r} is unknown; the rules are checkpoint, {', '.join(RULES)}.")
        if self.factor not in (None, "auto") and not (
            isinstance(self.factor, (int, float)) and math.isfinite(self.factor) and self.factor >= 1
        ):
            raise BadInput(f"A rope factor is a number from 1 up, or auto; got {self.factor!r}.")
        if self.original_length is not None and self.original_length < 1:
            raise BadInput(f"The original length is a positive number of tokens; got {self.original_length}.")
        given = [name for name in ("factor", *_DETAILS) if getattr(self, name) is not None]
        if self.rule == "checkpoint" and (given or self.original_length is not None):
            named = (given or ["original_length"])[0]
            raise BadInput(f"A {named} belongs to a named rope rule; name one, such as --rope yarn.")
        if self.rule == "none" and given:
            raise BadInput(f"Rope rule none changes nothing and takes no {given[0]}.")
        if self.rule in ("linear", "ntk") and [name for name in given if name != "factor"]:
            raise BadInput(f"Rope rule {self.rule} takes no {next(n for n in given if n != 'factor')}.")

    def label(self) -> str:
        """Return a short name for tables: ``yarn x4``, ``yarn auto``, ``none``, ``checkpoint``."""
        if self.rule in ("checkpoint", "none"):
            return self.rule
        return f"{self.rule} auto" if self.factor in (None, "auto") else f"{self.rule} x{self.factor:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRope:
    """What an engine is started with for some lengths."""

    label: str
    """For people: ``yarn, factor 4 over 32,768``."""
    scaling: RopeScaling | None
    """The rule in numbers; None where the formula is the checkpoint's own (``expected_frequencies`` has them still)."""
    mapping: Mapping[str, Any] | None
    """Config fields to replace, complete; None serves the config as it is."""
    window: int
    """Positions covered: prompt plus answer may not be longer. Tokens."""
    long: bool | None = None
    """Of a stored longrope, which has two sets of frequencies: whether it is the one beyond the original length."""
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[RopeScaling | None, bool | None]:
        """Lengths with equal keys can share an engine."""
        return self.scaling, self.long


def served_rope(checkpoint: Checkpoint, request: RopeRequest, length_tokens: int) -> ServedRope:
    """Return what is served at one length.

    Args:
        checkpoint: what is served.
        request: the rule.
        length_tokens: prompt plus answer of the length bucket.

    Raises:
        BadInput: the rule cannot be served, or does not cover the length; the message has the arithmetic.
    """
    if checkpoint.rope is not None and length_tokens > _MOST_POSITIONS:
        raise BadInput(
            f"{_tokens(length_tokens)} are beyond {_MOST_POSITIONS:,}: engines compute rotary angles from positions in "
            "float32, which tells no neighbours apart above it; ask for less."
        )
    if request.rule == "checkpoint":
        return _as_stored(checkpoint, length_tokens)
    stored = _replaceable(checkpoint, request.rule)
    scaling = _scaling(checkpoint, stored, request, length_tokens)
    if request.rule == "none":
        return _served(checkpoint, scaling, length_tokens, _extrapolation_warning(checkpoint, length_tokens))
    if scaling.window < length_tokens:
        raise BadInput(
            f"{_tokens(length_tokens)} are not covered: original length {scaling.original_length:,} x factor "
            f"{scaling.factor:g} = {scaling.window:,}; use --factor "
            f"{math.ceil(length_tokens / scaling.original_length):g} or more, or --factor auto."
        )
    return _served(checkpoint, scaling, length_tokens, _training_warnings(checkpoint, stored, scaling))


def refuse_at_sight(folder: Path, request: RopeRequest, lengths: Sequence[str]) -> None:
    """Refuse what ``served_rope`` refuses of the commonest kinds of model, without transformers, which loads torch.

    Raises:
        BadInput: a folder of plain rotary positions that end before a length, served as it is.
    """
    config = read_json(folder / "config.json") or {}
    window = config.get("max_position_embeddings")
    rule = config.get("rope_scaling") or config.get("rope_parameters") or {}
    plain = isinstance(rule, dict) and rule.get("rope_type", "default") == "default" and rule.keys() <= _OF_NO_RULE
    own_words = (folder / TRAINING_RECORD).is_file()  # its record says more of the rule
    if request.rule != "checkpoint" or config.get("model_type") not in _PLAIN or not plain or own_words:
        return
    for tokens in sorted(map(parse_length, lengths)):
        if type(window) is int and 0 < window < tokens:
            raise BadInput(_beyond(f"{folder.resolve().name} has {window:,} positions", window, tokens))


def rope_groups(
    checkpoint: Checkpoint, request: RopeRequest, lengths: Sequence[str]
) -> list[tuple[ServedRope, list[str]]]:
    """Return the lengths that share a rule, each group with what serves its longest length.

    Raises:
        BadInput: as ``served_rope``, for the first length that cannot be served.
    """
    groups: dict[Any, list[str]] = {}
    served: dict[Any, ServedRope] = {}
    for length in sorted(lengths, key=parse_length):
        rope = served_rope(checkpoint, request, parse_length(length))
        groups.setdefault(rope.key, []).append(length)
        served[rope.key] = rope  # the longest so far: it sizes the table of a rule without a window of its own
    return [(served[key], labels) for key, labels in groups.items()]


def training_rope(checkpoint: Checkpoint, length_tokens: int, yarn_factor: float | None) -> ServedRope:
    """Return the rule that is on in training, as an engine would serve it.

    Args:
        checkpoint: the base.
        length_tokens: of the longest sample.
        yarn_factor: None keeps the base's own rule, whatever it is. A number puts YaRN in its place: **the factor
            counts over the base's own original length**, as ``--factor`` does in serving, and the ramp is the stored
            one. So a base that was itself pretrained under YaRN 8 over 8,192 is taken twice as far by factor 16.

    Raises:
        BadInput: the rule cannot be served, or does not cover the samples.
    """
    if yarn_factor is None:
        return served_rope(checkpoint, RopeRequest(), length_tokens)
    return served_rope(checkpoint, RopeRequest(rule="yarn", factor=yarn_factor), length_tokens)


def served_rule(checkpoint: Checkpoint, served: ServedRope) -> KnownRule:
    """Return what a training record says of the rule: its numbers, or what the config stores where it is not ours.

    Raises:
        BadInput: the checkpoint rotates nothing.
    """
    if served.scaling is not None:
        return served.scaling
    if checkpoint.rope is None:
        raise BadInput(f"{checkpoint.name} has no rotary positions, so there is no rule to record.")
    return checkpoint.rope.rule


def config_for(folder: Path, mapping: Mapping[str, Any] | None) -> Any:
    """Return transformers' config of a checkpoint with a rule's fields in it: the only place where one is made.

    Args:
        folder: the checkpoint.
        mapping: ``ServedRope.mapping``; None leaves the config as it is on file.

    Returns:
        For ``from_pretrained(..., config=...)``.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for name, value in (mapping or {}).items():
        setattr(config, name, deepcopy(value))  # transformers completes it in place
    return config


def rope_identity(checkpoint: Checkpoint, request: RopeRequest) -> dict[str, Any]:
    """Return flat JSON values that decide the frequencies at every length, for a run's fingerprint.

    Which lengths are asked is not among them, and it makes no difference in which way a rule was asked for. (Rules of
    single layer types, which no request changes, are in the config's hash.)
    """
    if request.rule == "checkpoint":
        stored = checkpoint.rope
        if stored is None or stored.scaling is None:
            return {"rule": "checkpoint", "stored": json.dumps(stored.to_json() if stored else None, sort_keys=True)}
        return stored.scaling.to_json()
    stored = _replaceable(checkpoint, request.rule)
    identity = _scaling(checkpoint, stored, request, 1).to_json()
    if request.rule != "none" and request.factor in (None, "auto"):
        identity["factor"] = f"auto, at least {identity['factor']:g}"
    return identity


def _as_stored(checkpoint: Checkpoint, length: int) -> ServedRope:
    stored = checkpoint.rope
    _refuse_lost_rule(checkpoint)
    if checkpoint.window < length:
        raise BadInput(_too_long(checkpoint, length))
    if stored is None:
        return ServedRope(label="as stored (no rotary positions)", scaling=None, mapping=None, window=checkpoint.window)
    if stored.scaling is not None:
        if stored.scaling.rule == "none":
            label = stored.scaling.describe()
            return ServedRope(label=label, scaling=stored.scaling, mapping=None, window=stored.window)
        # Spelled out in full, so that engines which would read an incomplete config differently agree.
        return replace(_served(checkpoint, stored.scaling, length, ()), window=stored.window)
    if stored.type == "dynamic" and not stored.fixed_because:
        # Within its original length it is plain rope; vLLM would scale even there.
        plain = RopeScaling(
            rule="none", theta=stored.theta, rotary_dim=stored.rotary_dim, original_length=stored.original_length
        )
        return _served(checkpoint, plain, length, ())
    if stored.own is None and not stored.fixed_because:
        raise BadInput(
            f"{checkpoint.name} stores rope_type {stored.type!r}, which evalkit cannot check; name a rule in its "
            "place, such as --rope yarn."
        )
    # Two sets of frequencies: transformers takes one by each request's length, vLLM by its longest one.
    long = length > stored.original_length if stored.type == "longrope" else None
    window = stored.original_length if long is False else stored.window
    return ServedRope(label=f"{stored.type} as stored", scaling=None, mapping=None, window=window, long=long)


def _replaceable(checkpoint: Checkpoint, rule: str) -> StoredRope:
    if checkpoint.rope is None:
        raise BadInput(
            f"{checkpoint.name} ({checkpoint.model_type}) has no rotary positions, so --rope {rule} cannot be applied; "
            f"without it, lengths up to {checkpoint.window:,} tokens can be run."
        )
    if checkpoint.rope.fixed_because:
        raise BadInput(
            f"The rope rule of {checkpoint.name} cannot be replaced by {rule}: {checkpoint.rope.fixed_because}; "
            "only --rope checkpoint can be served."
        )
    return checkpoint.rope


def _scaling(checkpoint: Checkpoint, stored: StoredRope, request: RopeRequest, length: int) -> RopeScaling:
    assert request.rule != "checkpoint"
    original = request.original_length or stored.original_length
    if request.rule == "none":
        factor = 1.0
    elif request.factor in (None, "auto"):
        factor = factor_for(length, original, _trained_factor(checkpoint, stored, request.rule))
    else:
        factor = float(request.factor)
    return RopeScaling(
        rule=request.rule,
        theta=stored.theta,
        rotary_dim=stored.rotary_dim,
        original_length=original,
        factor=factor,
        **_ramp(stored, request),
    )


def _ramp(stored: StoredRope, request: RopeRequest) -> dict[str, Any]:
    """What shapes the ramp: as asked, else as the checkpoint's own rule has it. Its attention factor is not taken
    over: a stored one belongs to the stored factor."""
    if request.rule not in _BY_PARTS:
        return {}
    names = ("beta_fast", "beta_slow", "truncate")
    own = stored.scaling if stored.scaling and stored.scaling.rule in _BY_PARTS else None
    inherited = {name: getattr(own, name) for name in names} if own else {}
    asked = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    return inherited | asked | {"attention_factor": request.attention_factor}


def _trained_factor(checkpoint: Checkpoint, stored: StoredRope, rule: str) -> float:
    """The factor under which the model learned, if it learned under this rule: serving it at less loses accuracy."""
    learned = checkpoint.trained_rope or stored.rule
    return learned.factor if isinstance(learned, RopeScaling) and learned.rule == rule else 1.0


def _served(checkpoint: Checkpoint, scaling: RopeScaling, length: int, warnings: tuple[str, ...]) -> ServedRope:
    stored = checkpoint.rope
    assert stored is not None
    mapping = config_mapping(scaling, length=length)
    entry = mapping["rope_parameters"]
    # What a model reads beside the rule stays: a partial_rotary_factor, a temperature by position, ...
    entry |= {key: value for key, value in stored.parameters.items() if key not in OF_THE_RULE}
    if "original_max_position_embeddings" in stored.parameters:  # such a temperature counts from it under any rule
        entry["original_max_position_embeddings"] = scaling.original_length
    if stored.layers is not None:  # sliding layers never see beyond their window and keep their rule
        mapping["rope_parameters"] = {**stored.layers, FULL: entry}
        if scaling.rule == "linear":
            mapping["max_position_embeddings"] = scaling.window
    if stored.original_beside:
        mapping["original_max_position_embeddings"] = scaling.original_length
    window = max(scaling.window, length) if scaling.rule == "none" else scaling.window
    return ServedRope(label=scaling.describe(), scaling=scaling, mapping=mapping, window=window, warnings=warnings)


def _refuse_lost_rule(checkpoint: Checkpoint) -> None:
    """Refuse a config that lost the rule of training: it would still answer fluently, and worse."""
    trained, stored = checkpoint.trained_rope, checkpoint.rope and checkpoint.rope.rule
    if trained is None or stored == trained or (isinstance(trained, RopeScaling) and trained.rule == "none"):
        return
    if isinstance(trained, KeptRule):
        way_out = "put the base's rope settings back"
    else:
        way_out = f"name what to serve, such as --rope {trained.rule}"
    raise BadInput(
        f"{checkpoint.name} was trained under {trained.describe()} (evalkit_training.json), but its config says "
        f"{stored.describe() if stored else 'that nothing is rotated'}; {way_out}."
    )


def _training_warnings(checkpoint: Checkpoint, stored: StoredRope, scaling: RopeScaling) -> tuple[str, ...]:
    learned = checkpoint.trained_rope or stored.rule
    if isinstance(learned, KeptRule):
        return (f"The checkpoint's own rule {learned.type} is replaced by {scaling.describe()}.",)
    warnings = []
    if learned.rule not in ("none", scaling.rule):
        warnings.append(f"Trained under {learned.describe()}, served under {scaling.describe()}.")
    elif learned.rule == scaling.rule and scaling.factor < learned.factor:
        warnings.append(
            f"Trained at factor {learned.factor:g}, served at {scaling.factor:g}: a lower one loses accuracy."
        )
    if learned.original_length != scaling.original_length:
        source = "it was trained over" if checkpoint.trained_rope else "the config has"
        warnings.append(
            f"Served over an original length of {scaling.original_length:,}; {source} {learned.original_length:,}."
        )
    return tuple(warnings)


def _extrapolation_warning(checkpoint: Checkpoint, length: int) -> tuple[str, ...]:
    if length <= checkpoint.original_length:
        return ()
    return (
        f"{_tokens(length)} go beyond the {checkpoint.original_length:,} positions of the checkpoint without any "
        "scaling: a baseline, expected to fail.",
    )


def _too_long(checkpoint: Checkpoint, length: int) -> str:
    stored = checkpoint.rope
    if stored is None or stored.fixed_because:
        return (
            f"{_tokens(length)} are not covered: {checkpoint.name} has {checkpoint.window:,} positions; ask for less."
        )
    if stored.type == "dynamic":
        return (
            f"{_tokens(length)} are not covered: beyond its {checkpoint.window:,} positions the dynamic rule of "
            f"{checkpoint.name} follows whatever was asked before, so that no answer could be repeated; use --rope ntk "
            "(the same idea, with one factor for each length) or --rope yarn."
        )
    rule = f", its rule {stored.scaling.describe()}" if stored.scaling and stored.scaling.rule != "none" else ""
    return _beyond(f"{checkpoint.name} has {checkpoint.window:,} positions{rule}", stored.original_length, length)


def _beyond(what_it_has: str, original_length: int, length: int) -> str:
    return (
        f"{_tokens(length)} are not covered: {what_it_has}; use --rope yarn (original length {original_length:,}, so a "
        f"factor of {math.ceil(length / original_length)} or more, or auto), or --rope none to extrapolate on purpose."
    )


def _tokens(length: int) -> str:
    from evalkit.lengths import format_length

    label = format_length(length)
    return f"{label} = {length:,} tokens" if label != str(length) else f"{length:,} tokens"
