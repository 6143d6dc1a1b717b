"""The doctor: would a run of these lengths be right, before money is spent on it?"""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from evalkit.benchmarks.babilong.prose import generate_prose
from evalkit.errors import BadInput, EvalkitError
from evalkit.lengths import parse_length
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import ServedRope, served_rope
from evalkit.runs.config import RunConfig
from evalkit.runs.plan import make_plan, open_encoder
from evalkit.runs.problems import EXAMPLE, budget_problems, prompt_problems
from evalkit.types import Prompt

_GIB = 2**30
_USED_SHARE = 0.92  # of a GPU's memory, vLLM's default
_ACTIVATIONS = 2 * _GIB  # room for activations and tables: a rough allowance
_SHOWN = 8
_SAMPLE_WORDS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthCheck:
    """What would happen at one length."""

    length: str
    tokens: int
    problem: str | None
    """Why a run would be refused; None where it would not."""
    rule: str = ""
    factor: float | None = None
    """None where the rule is not one with a factor."""
    window: int = 0
    """Positions covered, tokens."""
    arithmetic: str = ""
    """How the window covers the length."""
    kv_bytes: int = 0
    """Keys and values of one request of this length."""
    num_fit: int | None = None
    """Requests of this length in the GPU's memory at once, roughly; None where no GPU was named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCheck:
    """A short prompt as the model would get it."""

    text: str
    num_tokens: int
    first_ids: tuple[int, ...]
    first_tokens: tuple[str, ...]
    last_ids: tuple[int, ...]
    last_tokens: tuple[str, ...]
    bos: str
    """In words: whether the prompt begins with the tokenizer's BOS."""
    tokens_per_1000_characters: float
    """Of the built-in background prose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Everything the doctor found."""

    checkpoint: str
    facts: dict[str, Any]
    """What the checkpoint is: flat JSON values, for the table's head."""
    rows: tuple[LengthCheck, ...]
    prompt: PromptCheck | None
    problems: tuple[str, ...]
    """Each would make a run refuse to start."""
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether a run would start."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"ok": self.ok} | asdict(self)

    def to_text(self) -> str:
        """Return the findings for a terminal."""
        lines = [f"{self.checkpoint}", *(f"  {name}: {value}" for name, value in self.facts.items()), ""]
        lines += _table(self.rows)
        if self.prompt:
            lines += ["", *_prompt_lines(self.prompt)]
        lines += [f"\nwarning: {text}" for text in self.warnings] + [f"\nproblem: {text}" for text in self.problems]
        lines += ["", "A run would start." if self.ok else "A run would be refused."]
        return "\n".join(lines)


def check(config: RunConfig, *, gpu_memory: float | None = None) -> CheckReport:
    """Examine a checkpoint for a run. Loads the tokenizer, no weights; asks servers what they serve.

    Args:
        config: the run.
        gpu_memory: GiB of the GPU, or of all that share the model: counts the requests that fit.

    Raises:
        BadInput: the folder is not a checkpoint that could be examined any further.
    """
    if gpu_memory is not None and not (math.isfinite(gpu_memory) and gpu_memory > 0):
        raise BadInput(f"--gpu-memory is {gpu_memory:g}; give the GPU's memory in GiB, such as 80.")
    checkpoint = Checkpoint.find(
        config.model, config.revision, adapter=config.adapter, adapter_revision=config.adapter_revision
    )
    rows, warnings = [], list(checkpoint.warnings)
    for length in config.lengths:
        row, found = _check_length(checkpoint, config, length, gpu_memory)
        rows.append(row)
        warnings += found
    problems = [row.problem for row in rows if row.problem]
    problems += budget_problems(config.data, config.lengths)
    if problem := checkpoint.weight_problem(quantized=config.backend == "hf"):
        problems.append(problem)
    prompt = None
    try:
        encoder = open_encoder(config, checkpoint.path, checkpoint.vocab_size)
        warnings += encoder.warnings
        prompt = _check_prompt(encoder)
        problems += prompt_problems(encoder, config.data.max_new_tokens, config.data.thinking_tokens)
    except BadInput as error:
        problems.append(str(error))
    if checkpoint.adapter and (refusal := checkpoint.adapter.vllm_refusal()):
        warnings.append(refusal)
    if not checkpoint.has_chat_template:
        warnings.append("There is no chat template; prompts are plain text, which suits base models.")
    if not problems:
        refused, unfitting = _first_steps(config)
        problems += refused
        warnings += unfitting
    return CheckReport(
        checkpoint=config.model,
        facts=_facts(checkpoint),
        rows=tuple(rows),
        prompt=prompt,
        problems=tuple(dict.fromkeys(problems)),
        warnings=tuple(dict.fromkeys(text for text in warnings if not any(said in text for said in problems))),
    )


def _first_steps(config: RunConfig) -> tuple[list[str], list[str]]:
    """Do what a run does before it loads a model; return why it would be refused, and which cells' first do not fit."""
    unfitting = []
    try:
        config.engine.require_reachable()
        plan = make_plan(config)
        with closing(plan.open_backend()) as backend:
            if config.engine.gpus is None:  # servers: what is there already is asked what it serves, as a run does
                first = plan.groups[0]  # those of other lengths may be started later
                backend.serve(first.rope, first.lengths, plan.positions(first))
        for cell, prompt in plan.first_prompts():
            if not isinstance(prompt, Prompt):
                unfitting.append(f"The first sample of {cell} cannot be asked: {prompt}")
    except EvalkitError as error:
        return [str(error)], unfitting
    return [], unfitting


def _check_length(
    checkpoint: Checkpoint, config: RunConfig, length: str, gpu_memory_gib: float | None
) -> tuple[LengthCheck, tuple[str, ...]]:
    tokens, dtype = parse_length(length), getattr(config.engine, "dtype", "auto")  # a server's is its own
    dtype = checkpoint.dtype if dtype == "auto" else dtype
    try:
        served = served_rope(checkpoint, config.rope, tokens)
    except BadInput as error:
        return LengthCheck(length=length, tokens=tokens, problem=str(error)), ()
    kv_bytes, num_fit, problem = checkpoint.kv_bytes(tokens, dtype), None, None
    if gpu_memory_gib is not None and kv_bytes:  # not of 0k, which has no length of its own
        as_stored = dtype == checkpoint.dtype
        weights = checkpoint.weight_bytes if as_stored else checkpoint.num_parameters * checkpoint.dtype_bytes(dtype)
        free = gpu_memory_gib * _GIB * _USED_SHARE - weights - _ACTIVATIONS
        num_fit = max(0, int(free // kv_bytes))
        if num_fit == 0:
            problem = (
                f"{length} does not fit into {gpu_memory_gib:g} GiB: weights take {weights / _GIB:.1f} GiB, keys and "
                f"values of one request {kv_bytes / _GIB:.1f} GiB; use more GPUs (tensor parallel) or a smaller dtype."
            )
    row = LengthCheck(
        length=length,
        tokens=tokens,
        problem=problem,
        rule=served.label,
        factor=served.scaling.factor if served.scaling else None,
        window=served.window,
        arithmetic=_arithmetic(served, tokens),
        kv_bytes=kv_bytes,
        num_fit=num_fit,
    )
    return row, served.warnings


def _arithmetic(served: ServedRope, tokens: int) -> str:
    scaling = served.scaling
    if scaling is not None and scaling.rule == "none" and tokens > scaling.original_length:
        return f"{tokens:,} > {scaling.original_length:,}, extrapolates"
    if scaling is not None and scaling.factor > 1:
        return f"{tokens:,} <= {scaling.original_length:,} x {scaling.factor:g} = {served.window:,}"
    return f"{tokens:,} <= {served.window:,}"


def _check_prompt(encoder: Encoder) -> PromptCheck:
    text = encoder.render(EXAMPLE)
    ids = [int(i) for i in encoder.encode_prompt(text)]
    bos = encoder.tokenizer.bos_token_id
    if bos is None:
        said = "the tokenizer has no BOS"
    elif ids[0] != bos:
        said = f"no BOS in front (the tokenizer's is {encoder.tokenizer.bos_token!r}, the template leaves it out)"
    else:
        times = "twice" if ids[1:2] == [bos] else "once"
        said = f"begins with BOS {encoder.tokenizer.bos_token!r}, {times}"
    prose = generate_prose(0, _SAMPLE_WORDS)
    return PromptCheck(
        text=text,
        num_tokens=len(ids),
        first_ids=tuple(ids[:_SHOWN]),
        first_tokens=tuple(encoder.decode([i]) for i in ids[:_SHOWN]),
        last_ids=tuple(ids[-_SHOWN:]),
        last_tokens=tuple(encoder.decode([i]) for i in ids[-_SHOWN:]),
        bos=said,
        tokens_per_1000_characters=round(1000 * len(encoder.encode_after(prose, "")) / len(prose), 1),
    )


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    stored = checkpoint.rope
    rule = "no rotary positions" if stored is None else stored.scaling.describe() if stored.scaling else stored.type
    facts: dict[str, Any] = {
        "model": f"{checkpoint.model_type}, {checkpoint.num_parameters:,} parameters, {checkpoint.dtype}",
        "window": f"{checkpoint.window:,} positions (original length {checkpoint.original_length:,})",
        "rope as stored": rule,
        "heads": f"{checkpoint.num_heads} of {checkpoint.head_dim} dimensions, {checkpoint.num_kv_heads} for keys",
        "chat template": "yes" if checkpoint.has_chat_template else "no",
    }
    if stored is not None:
        facts["rope theta"] = f"{stored.theta:g}"
    for name, commit in checkpoint.commits.items():
        facts[name] = commit
    if trained := checkpoint.trained_rope:
        length = f", up to {checkpoint.trained_length:,} tokens" if checkpoint.trained_length else ""
        facts["trained under"] = f"{trained.describe()}{length}"
    if checkpoint.adapter:
        facts["adapter"] = f"{checkpoint.adapter.path} (LoRA, rank {checkpoint.adapter.rank})"
    if checkpoint.tokenizer_limit is not None:
        facts["tokenizer's model_max_length"] = f"{checkpoint.tokenizer_limit:,} (not applied)"
    return facts


def _table(rows: Sequence[LengthCheck]) -> list[str]:
    head = ("length", "tokens", "covered", "rule", "KV cache each", "fit at once")
    cells = [head]
    for row in rows:
        fit = "" if row.num_fit is None else f"{row.num_fit:,}"
        each = _size(row.kv_bytes) if row.kv_bytes else ""
        cells.append((row.length, f"{row.tokens:,}", row.arithmetic or "not covered", row.rule, each, fit))
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _prompt_lines(prompt: PromptCheck) -> list[str]:
    def shown(ids: Sequence[int], tokens: Sequence[str]) -> str:
        return " ".join(f"{i}:{token!r}" for i, token in zip(ids, tokens, strict=True))

    return [
        f"prompt: {prompt.bos}; {prompt.num_tokens} tokens",
        f"  first: {shown(prompt.first_ids, prompt.first_tokens)}",
        f"  last:  {shown(prompt.last_ids, prompt.last_tokens)}",
        f"tokens per 1,000 characters of background: {prompt.tokens_per_1000_characters:g}",
    ]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB" if num_bytes >= _GIB else f"{num_bytes / 2**20:.1f} MiB"
