"""From what the user asked to a plan: every refusal happens here, before weights are loaded or money is spent."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evalkit.benchmarks.cards import TaskCard, load_card
from evalkit.errors import BadInput, ContextOverflow, EvalkitError
from evalkit.lengths import parse_length
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import RopeRequest, ServedRope, rope_groups, rope_identity
from evalkit.records.fingerprint import fingerprint_sha
from evalkit.runs.backends import check_engine_options
from evalkit.runs.check import prompt_problems
from evalkit.types import Benchmark, Prompt, Sample

_DECISIVE = ("quantization", "deterministic", "chat", "model")  # engine options that can change an answer
BACKENDS = ("auto", "hf", "vllm", "server", "scripted")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the user asked for: one task, one checkpoint, one arm. Defaults are those of ``evalkit run``."""

    model: Path
    task: str
    lengths: tuple[str, ...]
    """Canonical labels, shortest first (``lengths.parse_lengths``)."""
    subsets: tuple[str, ...] = ()
    """Empty: the card's default subsets."""
    samples: int = 0
    """Per cell; 0: the card's default."""
    seed: int = 0
    """Draws questions, background and placement. Evaluate all arms with the same one."""

    source: str = "generated"
    """"generated", a data set named in the card ("hub"), or a local copy of published rows."""
    facts: Path | None = None
    """Folder of bAbI v1.2 text files that replace the generated worlds."""
    noise: tuple[Path, ...] = ()
    """Text files that replace the built-in background prose."""
    depths: tuple[float, ...] = ()
    """Every sample is asked with its facts at each of these depths (0 top, 1 end); empty: official random placement."""
    control: Literal["no-context", "facts-only"] | None = None
    """Bound a curve from below (question only) or above (no background)."""

    prompts: str = "own"
    without: tuple[str, ...] = ()
    """Wording parts left out: instruction, examples, post_prompt."""
    system_prompt: str | None = None
    chat: bool | None = None
    """Use the chat template; None: exactly when the checkpoint has one."""
    max_new_tokens: int | None = None
    """None: the card's."""

    rope: RopeRequest = field(default_factory=RopeRequest)
    backend: str = "auto"
    script: str = "oracle"
    dtype: str = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    adapter: Path | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    """Options of the chosen backend alone: ``VLLMOptions`` or ``ServerBackend`` arguments."""

    arm: str | None = None
    """Name in tables and figures; None: the checkpoint's name, with its rope rule if one was named."""
    out: Path | None = None
    """Run folder; None: ``results/<arm>-<task>-<fingerprint>``."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One (subset, length) of the plan."""

    subset: str
    length: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything decided: what is asked, of whom, and under which name it is recorded."""

    config: RunConfig
    card: TaskCard
    checkpoint: Checkpoint
    encoder: Encoder
    benchmark: Benchmark
    subsets: tuple[str, ...]
    samples: int
    groups: tuple[tuple[ServedRope, tuple[str, ...]], ...]
    """Lengths that share a rope rule, longest group first."""
    fingerprint: dict[str, Any]
    arm: str
    out: Path

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before trusting the answers; each once."""
        ropes = (warning for served, _ in self.groups for warning in served.warnings)
        return tuple(dict.fromkeys([*self.checkpoint.warnings, *ropes]))

    @property
    def backend(self) -> str:
        """The backend that will answer, "auto" resolved."""
        return str(self.fingerprint["backend"])

    def cells(self, lengths: tuple[str, ...]) -> list[Cell]:
        """Return the cells of some lengths, longest first: what does not fit into memory shows at once."""
        ordered = sorted(lengths, key=parse_length, reverse=True)
        return [Cell(subset=subset, length=length) for length in ordered for subset in self.subsets]

    def rope_for(self, length: str) -> ServedRope:
        """Return the rule under which a length is served."""
        return next(served for served, lengths in self.groups if length in lengths)

    def samples_of(self, cell: Cell) -> Iterator[Sample]:
        """Yield the samples of one cell."""
        return self.benchmark.samples(cell.subset, cell.length, self.samples)

    def build(self, sample: Sample, length: str) -> Prompt:
        """Build one prompt. Raises ContextOverflow when it cannot fit."""
        return self.benchmark.prompt(sample, length, self.encoder, self.rope_for(length).window)

    def first_prompts(self) -> Iterator[tuple[Cell, Prompt | EvalkitError]]:
        """Build the first prompt of each cell, or say why it cannot be one; it is checked against its whole text.

        Raises:
            BadInput: the data do not suffice for a length, or this tokenizer does not split where prompts are joined.
        """
        for cell in self.cells(self.config.lengths):
            sample = next(iter(self.samples_of(cell)), None)
            if sample is None:
                raise BadInput(f"There are no samples for {self.card.task} {cell.subset} at {cell.length}.")
            try:
                yield cell, self.build(sample, cell.length)
            except ContextOverflow as overflow:
                yield cell, overflow
            except BadInput as error:
                if self.config.source == "generated":
                    raise
                yield cell, error  # a published row that this chat template refuses; others may pass


def make_plan(config: RunConfig) -> Plan:
    """Decide everything that can be decided without a model in memory.

    Raises:
        BadInput: anything that would make the run refuse or mislead, with the arithmetic.
    """
    card = load_card(config.task)
    subsets = tuple(dict.fromkeys(config.subsets or card.default_subsets))  # named twice, asked once
    unknown = [name for name in subsets if name not in card.subsets]
    if unknown:
        raise BadInput(f"{card.task} has no subset {unknown[0]!r}; it has {', '.join(card.subsets)}.")
    if not config.lengths:
        raise BadInput("No length was given; name them like --lengths 16k,64k,128k.")
    if config.backend not in BACKENDS:
        raise BadInput(f"There is no backend {config.backend!r}; choose one of {', '.join(BACKENDS)}.")
    backend = best_backend() if config.backend == "auto" else config.backend
    check_engine_options(backend, config.engine)
    checkpoint = Checkpoint.open(config.model, adapter=config.adapter)
    encoder = Encoder.open(config.model, chat=config.chat, system_prompt=config.system_prompt)
    for problem in prompt_problems(encoder, checkpoint):
        raise BadInput(problem)
    groups = rope_groups(checkpoint, config.rope, config.lengths)
    benchmark = make_benchmark(config, card, lambda text: len(encoder.encode_after(text, before="")))
    fingerprint = {
        **{f"checkpoint.{name}": value for name, value in checkpoint.identity().items()},
        "tokenizer and template": encoder.identity,
        **{f"rope.{name}": value for name, value in rope_identity(checkpoint, config.rope).items()},
        "backend": backend,
        "script": config.script if backend == "scripted" else None,
        "dtype": config.dtype,
        "decoding": "greedy",
        **{f"engine.{name}": config.engine.get(name) for name in _DECISIVE},
        "card": f"{card.task} v{card.version} {card.sha256[:16]}",
        **{f"data.{name}": value for name, value in benchmark.recipe().items()},
    }
    rule = "" if config.rope.rule == "checkpoint" else f" {config.rope.label()}"
    rehearsal = f" (scripted: {config.script})" if backend == "scripted" else ""  # never one arm with real answers
    arm = config.arm or f"{checkpoint.name}{rule}{rehearsal}"
    name = f"{_slug(arm)}-{card.task}-{fingerprint_sha(fingerprint)[:8]}"
    return Plan(
        config=config,
        card=card,
        checkpoint=checkpoint,
        encoder=encoder,
        benchmark=benchmark,
        subsets=subsets,
        samples=config.samples or card.default_samples,
        groups=tuple((served, tuple(lengths)) for served, lengths in reversed(groups)),
        fingerprint=fingerprint,
        arm=arm,
        out=config.out or Path("results") / name,
    )


def asked_samples(config: RunConfig) -> Iterator[Sample]:
    """Yield what a run asks, each sample once: generated ones are the same at every length, published rows are not."""
    card = load_card(config.task)
    benchmark = make_benchmark(config, card)
    for length in config.lengths[:1] if config.source == "generated" else config.lengths:
        for subset in config.subsets or card.default_subsets:
            yield from benchmark.samples(subset, length, config.samples or card.default_samples)


def make_benchmark(config: RunConfig, card: TaskCard, count_tokens: Callable[[str], int] | None = None) -> Benchmark:
    """Return the benchmark of a card, set up from a run's data options.

    ``count_tokens`` is the checkpoint's own count, for published rows whose bins cannot be counted otherwise.
    """
    if card.task == "babilong":
        from evalkit.benchmarks.babilong.task import BABILong

        return BABILong(
            card,
            seed=config.seed,
            source=config.source,
            facts=config.facts,
            noise=config.noise,
            depths=config.depths,
            control=config.control,
            prompts=config.prompts,
            without=config.without,
            max_new_tokens=config.max_new_tokens,
        )
    if card.task == "mrcr":
        from evalkit.benchmarks.mrcr.task import MRCR

        _refuse_babilong_options(config)
        return MRCR(
            card,
            seed=config.seed,
            source=config.source,
            control=config.control,
            max_new_tokens=config.max_new_tokens,
            count_tokens=count_tokens,
        )
    raise BadInput(f"No benchmark is written for task card {card.task!r}.")


def _refuse_babilong_options(config: RunConfig) -> None:
    given = {
        "--facts": config.facts,
        "--noise": config.noise,
        "--depth": config.depths,
        "--prompts": config.prompts != "own",
        "--no-instruction, --no-examples and --no-post-prompt": config.without,
    }
    for name, value in given.items():
        if value:
            raise BadInput(f"{name}: an option of BABILong; MRCR's conversations have no such part.")


def best_backend() -> str:
    """Return "vllm" where it is installed beside a GPU, else "hf"."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        return "hf"
    import torch

    return "vllm" if torch.cuda.is_available() else "hf"


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in text).strip("-").lower()


def describe(plan: Plan) -> str:
    """Return what a run would ask, as a table: one line per cell, with the size of its first prompt, and the sums.

    Raises:
        BadInput: as ``Plan.first_prompts``.
    """
    lines = [
        f"{plan.arm}: {plan.card.task} (card v{plan.card.version}), backend {plan.backend}, into {plan.out}",
        f"{'length':>8} {'subset':>10} {'samples':>8} {'prompt tokens':>14} {'answer':>7} {'KV/request':>11}  rope",
    ]
    total_samples = total_tokens = 0
    for cell, prompt in plan.first_prompts():
        samples = sum(1 for _ in plan.samples_of(cell))
        total_samples += samples
        row = f"{cell.length:>8} {cell.subset:>10} {samples:>8}"
        if isinstance(prompt, EvalkitError):
            lines.append(f"{row}  cannot be asked: {prompt}")
            continue
        tokens = len(prompt.token_ids)
        total_tokens += tokens * samples
        kv_mib = plan.checkpoint.kv_bytes(tokens + prompt.max_new_tokens) / 2**20
        rope = plan.rope_for(cell.length).label
        lines.append(f"{row} {tokens:>14,} {prompt.max_new_tokens:>7} {kv_mib:>7,.0f} MiB  {rope}")
    lines.append(f"In all {total_samples:,} samples and about {total_tokens:,} prompt tokens.")
    return "\n".join(lines)
