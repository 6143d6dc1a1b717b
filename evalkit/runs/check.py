"""The doctor: would a run of these lengths be right, before money is spent on it?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evalkit.benchmarks.babilong.prose import generate_prose
from evalkit.errors import BadInput
from evalkit.lengths import parse_length, parse_lengths
from evalkit.models.backends.options import DType
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder, template_arguments
from evalkit.models.rope.served import RopeRequest, ServedRope, served_rope
from evalkit.options import option
from evalkit.types import Message

_GIB = 2**30
_USED_SHARE = 0.92  # of a GPU's memory, vLLM's default
_ACTIVATIONS = 2 * _GIB  # room for activations and tables: a rough allowance
_SHOWN = 8
_SAMPLE_WORDS = 2000
_MESSAGES: tuple[Message, ...] = (
    {"role": "user", "content": "Mary went to the kitchen. John went to the garden. Where is Mary?"},
)


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


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What is examined: a part of what ``evalkit run`` takes, under the same names."""

    model: str = option("--model", "Checkpoint folder, or a name on the Hugging Face hub.")
    revision: str | None = option("--revision", "Branch, tag or commit of a hub name [main].", default=None)
    lengths: tuple[str, ...] = option("--lengths", "Such as 16k,128k.", parse=parse_lengths)
    rope: RopeRequest = field(default_factory=RopeRequest)
    adapter: str | None = option("--adapter", "LoRA adapter to serve on top: a folder, or a hub name.", default=None)
    adapter_revision: str | None = option("--adapter-revision", "Of the adapter's hub name [main].", default=None)
    chat: bool | None = option("--chat-template", "Use it; default: if the checkpoint has one.", default=None)
    system_prompt: str | None = option("--system-prompt", "System message in front of every prompt.", default=None)
    template_args: tuple[str, ...] = option(
        "--template-arg", "Variable of the chat template, such as enable_thinking=false.", default=(), repeat=True
    )
    max_new_tokens: int | None = option("--max-new-tokens", "Answer limit; default: the card's.", default=None)
    thinking_tokens: int = option("--thinking-tokens", "Room for reasoning, added to the answer's [0].", default=0)
    dtype: DType = option("--dtype", "Of weights and cache [auto: the checkpoint's].", default="auto")
    gpu_memory: float | None = option(
        "--gpu-memory", "GiB of the GPU (of all that share the model): counts what fits.", default=None
    )


def check(config: CheckConfig) -> CheckReport:
    """Examine a checkpoint for a run of the given lengths. Loads the tokenizer, no weights.

    Raises:
        BadInput: the folder is not a checkpoint that could be examined any further.
    """
    checkpoint = Checkpoint.find(
        config.model, config.revision, adapter=config.adapter, adapter_revision=config.adapter_revision
    )
    dtype = checkpoint.dtype if config.dtype == "auto" else config.dtype
    rows, warnings = [], list(checkpoint.warnings)
    for length in config.lengths:
        row, found = _check_length(checkpoint, config.rope, length, dtype, config.gpu_memory)
        rows.append(row)
        warnings += found
    problems = [row.problem for row in rows if row.problem]
    problems += budget_problems(config.thinking_tokens, config.lengths)
    if problem := checkpoint.weight_problem():
        problems.append(problem)
    prompt = None
    try:
        encoder = Encoder.open(
            checkpoint.path,
            chat=config.chat,
            system_prompt=config.system_prompt,
            template_args=template_arguments(config.template_args),
            vocab_size=checkpoint.vocab_size,
        )
        warnings += encoder.warnings
        prompt = _check_prompt(encoder)
        problems += prompt_problems(encoder, config.max_new_tokens, config.thinking_tokens)
    except BadInput as error:
        problems.append(str(error))
    if checkpoint.adapter and (refusal := checkpoint.adapter.vllm_refusal()):
        warnings.append(refusal)
    if not checkpoint.has_chat_template:
        warnings.append("There is no chat template; prompts are plain text, which suits base models.")
    return CheckReport(
        checkpoint=config.model,
        facts=_facts(checkpoint),
        rows=tuple(rows),
        prompt=prompt,
        problems=tuple(dict.fromkeys(problems)),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _check_length(
    checkpoint: Checkpoint, request: RopeRequest, length: str, dtype: str, gpu_memory_gib: float | None
) -> tuple[LengthCheck, tuple[str, ...]]:
    tokens = parse_length(length)
    try:
        served = served_rope(checkpoint, request, tokens)
    except BadInput as error:
        return LengthCheck(length=length, tokens=tokens, problem=str(error)), ()
    kv_bytes, num_fit, problem = checkpoint.kv_bytes(tokens, dtype), None, None
    if gpu_memory_gib is not None:
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
    text = encoder.render(_MESSAGES)
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


def prompt_problems(encoder: Encoder, max_new_tokens: int | None, thinking_tokens: int) -> list[str]:
    """Return why the prompts of this tokenizer and template cannot be asked; empty where they can.

    Args:
        encoder: the tokenizer and template.
        max_new_tokens: the answer's limit; None where nobody named one.
        thinking_tokens: room for reasoning in front of the answer.

    Raises:
        BadInput: they cannot even be encoded.
    """
    problems = []
    bos = encoder.tokenizer.bos_token_id
    if bos is not None and encoder.encode_prompt(encoder.render(_MESSAGES))[:2].tolist() == [bos, bos]:
        problems.append(
            f"The prompt begins with BOS {encoder.tokenizer.bos_token!r} twice; take it out of the template."
        )
    if encoder.thinking == "open" and not thinking_tokens and max_new_tokens is None:
        switch = encoder.thinking_switch
        problems.append(
            "The chat template opens a think block, and the usual answer room (20 tokens in BABILong) ends inside of "
            f"it; give --thinking-tokens 2048{f', or --template-arg {switch}=false' if switch else ''}, or name the "
            "limit yourself with --max-new-tokens."
        )
    return problems


def budget_problems(thinking_tokens: int, lengths: Sequence[str]) -> list[str]:
    """Return a sentence for each length that reasoning alone would fill."""
    return [
        f"--thinking-tokens {thinking_tokens} is more than {length} leaves beside prompt and answer; give less, or ask "
        "for longer lengths."
        for length in lengths
        if 0 < parse_length(length) <= thinking_tokens
    ]


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
