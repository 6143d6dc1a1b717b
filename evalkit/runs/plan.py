"""From what the user asked to a plan: every refusal happens here, before weights are loaded or money is spent."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.benchmarks import open_benchmark
from evalkit.benchmarks.answers import candidates
from evalkit.benchmarks.cards import TaskCard, load_card
from evalkit.errors import BadInput, ContextOverflow, EvalkitError
from evalkit.escaping import require_name
from evalkit.files import slug
from evalkit.lengths import parse_length
from evalkit.models.backends import BACKENDS, Backend, backend_kind, open_backend
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder, template_arguments
from evalkit.models.hub import resolve
from evalkit.models.rope.served import ServedRope, refuse_at_sight, rope_groups, rope_identity
from evalkit.records.fingerprint import fingerprint_sha
from evalkit.records.folder import RunFolder
from evalkit.runs.config import RunConfig
from evalkit.runs.problems import budget_problems, prompt_problems
from evalkit.runs.shards import part_of
from evalkit.types import Benchmark, Key, Message, Prompt, Sample


class Cell(NamedTuple):
    """One (subset, length) of the plan."""

    subset: str
    length: str

    def __str__(self) -> str:
        return f"{self.subset}/{self.length}"


class RopeGroup(NamedTuple):
    """Lengths that are served under one rope rule."""

    rope: ServedRope
    lengths: tuple[str, ...]
    window: int
    """Prompt plus answer of the longest request that may come, tokens; see ``Plan.positions`` for the one that does."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """Everything decided: what is asked, of whom, and under which name it is recorded."""

    config: RunConfig
    card: TaskCard
    checkpoint: Checkpoint
    encoder: Encoder
    benchmark: Benchmark
    subsets: tuple[str, ...]
    groups: tuple[RopeGroup, ...]
    """Longest lengths first."""
    fingerprint: dict[str, Any]
    """All that decides the answers and is known before a model is loaded; ``Backend.identity`` adds the rest."""
    arm: str
    out: Path
    _positions: dict[tuple[str, ...], int] = field(default_factory=dict)

    def __repr__(self) -> str:
        asked = f"{', '.join(self.subsets)} at {', '.join(self.config.lengths)}, {self.samples} samples a cell"
        return f"<Plan: {self.arm!r}, {self.card.task} {asked}, backend {self.config.backend}, into {self.out}>"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before trusting the answers; each once."""
        ropes = (warning for group in self.groups for warning in group.rope.warnings)
        own = []
        if self.config.data.questions_per_context > 1 and not self.config.engine.shares_prefixes:
            own = ["--deterministic keeps no prefix cache, so that each question computes its whole context."]
        return tuple(dict.fromkeys([*self.checkpoint.warnings, *self.encoder.warnings, *ropes, *own]))

    @property
    def samples(self) -> int:
        """Questions per cell, where the data have so many."""
        return self.config.samples or self.card.default_samples

    @cached_property
    def num_samples(self) -> Mapping[Cell, int]:
        """How many samples each cell has: the one count that says when a run is finished."""
        return {cell: len(ids) for cell, ids in self.sample_ids.items()}

    @cached_property
    def sample_ids(self) -> Mapping[Cell, tuple[str, ...]]:
        """What the samples of each cell are called, in their order."""
        return name_samples(self.benchmark, self.subsets, self.config.lengths, self.samples, self.config.shard)

    def key(self, cell: Cell, sample_id: str) -> Key:
        """Return the name of a sample's prediction."""
        return Key(self.benchmark.task, cell.subset, cell.length, sample_id)

    def cells(self, lengths: Sequence[str]) -> list[Cell]:
        """Return the cells of some lengths, longest first: what does not fit into memory shows at once."""
        ordered = sorted(lengths, key=parse_length, reverse=True)
        return [Cell(subset, length) for length in ordered for subset in self.subsets]

    def rope_for(self, length: str) -> ServedRope:
        """Return the rule under which a length is served."""
        return next(group.rope for group in self.groups if length in group.lengths)

    def positions(self, group: RopeGroup) -> int:
        """Return prompt plus answer of a group's longest request, tokens.

        Where a prompt is as long as its row or its facts, all are built for that: an engine that is started for the
        whole window of the checkpoint reserves memory that no row needs, and a server may have less.
        """
        if group.lengths not in self._positions:
            longest = group.window
            if not _fills(self.benchmark, group.lengths):
                samples = ((s, cell.length) for cell in self.cells(group.lengths) for s in self.samples_of(cell))
                prompts = (prompt for one in samples if isinstance(prompt := self.attempt(*one), Prompt))
                longest = max((len(p.token_ids) + p.max_new_tokens for p in prompts), default=longest)
            self._positions[group.lengths] = longest
        return self._positions[group.lengths]

    def samples_of(self, cell: Cell) -> Iterator[Sample]:
        """Yield the samples of one cell."""
        return part_of(self.benchmark.samples(cell.subset, cell.length, self.samples), self.config.shard)

    def build(self, sample: Sample, length: str) -> Prompt:
        """Build one prompt. Raises ContextOverflow when it cannot fit."""
        prompt = self.benchmark.prompt(sample, length, self.encoder, self.rope_for(length).window)
        return replace(prompt, candidates=candidates(prompt, self.encoder)) if self.config.answer_logprob else prompt

    def no_samples(self, cell: Cell) -> BadInput:
        """Return the error of a cell that has nothing to ask."""
        part = f" in shard {self.config.shard}; ask fewer parts, or more samples" if self.config.shard else ""
        return BadInput(f"There are no samples for {self.card.task} {cell.subset} at {cell.length}{part}.")

    def attempt(self, sample: Sample, length: str) -> Prompt | EvalkitError:
        """Build one prompt, or say why it cannot be one.

        Raises:
            BadInput: no prompt can be built with this tokenizer or these data.
        """
        try:
            return self.build(sample, length)
        except ContextOverflow as overflow:
            return overflow
        except BadInput as error:
            if self.benchmark.generated:
                raise
            return error  # a published row that this chat template refuses; others may pass

    def first_prompts(self) -> Iterator[tuple[Cell, Prompt | EvalkitError]]:
        """Build the first prompt of each cell, or say why it cannot be one; it is checked against its whole text.

        Raises:
            BadInput: the data do not suffice for a length, or this tokenizer does not split where prompts are joined.
        """
        for cell in self.cells(self.config.lengths):
            sample = next(iter(self.samples_of(cell)), None)
            if sample is None:
                raise self.no_samples(cell)
            yield cell, self.attempt(sample, cell.length)

    def open_backend(self, *, logprobs: bool = False) -> Backend:
        """Return the backend that will answer, with nothing loaded yet.

        Raises:
            BadInput: it can be seen to fail.
        """
        groups = [group.lengths for group in self.groups]
        return open_backend(
            self.config.backend, self.checkpoint, self.encoder, self.engine_options, groups=groups, logprobs=logprobs
        )

    @property
    def engine_options(self) -> Any:
        """The backend's; a dtype of "auto" is measured once for a folder, and then stays what it was taken for."""
        options = self.config.engine
        if getattr(options, "dtype", None) != "auto" or not (self.out / "run.json").is_file():
            return options
        recorded = RunFolder.open(self.out).fingerprint.get("engine.dtype")
        return replace(options, dtype=recorded) if recorded else options


def make_plan(config: RunConfig) -> Plan:
    """Decide everything that can be decided without a model in memory.

    Raises:
        BadInput: anything that would make the run refuse or mislead, with the arithmetic.
    """
    card = load_card(config.task)
    subsets = chosen_subsets(config)
    _refuse_folder_of_other_data(config, card)
    if config.adapter is None and (folder := Path(config.model).expanduser()).is_dir():
        refuse_at_sight(folder, config.rope, config.lengths)
    checkpoint = Checkpoint.find(
        config.model, config.revision, adapter=config.adapter, adapter_revision=config.adapter_revision
    )
    encoder = open_encoder(config, checkpoint.path, checkpoint.vocab_size)
    for problem in prompt_problems(encoder, config.data.max_new_tokens, config.data.thinking_tokens):
        raise BadInput(problem)
    _refuse_logprobs_of_nothing(config, encoder)
    benchmark = open_benchmark(config.task, config.data, seed=config.seed, count_tokens=encoder.count_tokens)
    for problem in budget_problems(config.data, config.lengths):
        raise BadInput(problem)
    fingerprint = {
        **{f"checkpoint.{name}": value for name, value in checkpoint.identity().items()},
        "tokenizer and template": encoder.identity,
        **{f"rope.{name}": value for name, value in rope_identity(checkpoint, config.rope).items()},
        "decoding": "greedy",
        **_asked_of_whom(config, card, benchmark),
    }
    arm = config.arm or require_name(_arm(config, checkpoint), f"The arm of {config.model} (without --arm)")
    sha = fingerprint_sha({**fingerprint, **config.engine.decisive})
    return Plan(
        config=config,
        card=card,
        checkpoint=checkpoint,
        encoder=encoder,
        benchmark=benchmark,
        subsets=subsets,
        groups=_groups(config, checkpoint, benchmark),
        fingerprint=fingerprint,
        arm=arm,
        out=config.out or Path("results") / f"{slug(arm)}-{card.task}-{sha[:8]}{_suffix(config)}",
    )


def _asked_of_whom(config: RunConfig, card: TaskCard, benchmark: Benchmark) -> dict[str, Any]:
    """Return the parts of the fingerprint that need no checkpoint."""
    return {
        "backend": config.backend,
        "card": f"{card.task} v{card.version} {card.sha256[:16]}",
        **{f"data.{name}": value for name, value in benchmark.recipe().items()},
    }


def _refuse_folder_of_other_data(config: RunConfig, card: TaskCard) -> None:
    """Refuse at once what can be known before transformers is loaded; the rest shows when the folder is opened.

    Raises:
        BadInput: it holds a run of another task: nearly everything differs then.
        RunFolderError: it holds one of other data, or by another backend.
    """
    if config.out is None or not (config.out / "run.json").is_file():
        return
    folder = RunFolder.open(config.out)
    if (task := folder.config.get("task", config.task)) != config.task:
        raise BadInput(
            f"Run folder {config.out} holds a run of {task}, and this is one of {config.task}; name another --out."
        )
    folder.require(_asked_of_whom(config, card, _data_alone(config)), ("backend", "card", "data."))


def _refuse_logprobs_of_nothing(config: RunConfig, encoder: Encoder) -> None:
    if not config.answer_logprob:
        return
    if not config.engine.SCORES_GIVEN_TEXT:
        able = [name for name in BACKENDS if backend_kind(name).options.SCORES_GIVEN_TEXT]
        raise BadInput(
            f"--answer-logprob asks for the probability of a text that the model did not write, and the backend "
            f"{config.backend} gives none; use --backend {' or '.join(able)}, or leave it out."
        )
    if encoder.thinking == "open":
        raise BadInput(
            "--answer-logprob asks how probable the right answer is right behind the prompt, and this chat template "
            "begins the model's reasoning there; turn that off (--template-arg), or leave it out."
        )


def open_encoder(config: RunConfig, folder: Path, vocab_size: int | None = None) -> Encoder:
    """Return the tokenizer and template of a checkpoint folder, as a run words its prompts.

    Raises:
        BadInput: they cannot be read, or a template argument changes nothing.
    """
    return Encoder.open(
        folder,
        chat=config.chat,
        system_prompt=config.system_prompt,
        template_args=template_arguments(config.template_args),
        vocab_size=vocab_size,
    )


def chosen_subsets(config: RunConfig) -> tuple[str, ...]:
    """Return the subsets that a run asks, each once.

    Raises:
        BadInput: the task has no such subset.
    """
    card = load_card(config.task)
    subsets = tuple(dict.fromkeys(config.subsets or config.data.subsets or card.default_subsets))
    if unknown := [name for name in subsets if name not in card.subsets]:
        raise BadInput(f"{card.task} has no subset {unknown[0]!r}; it has {', '.join(card.subsets)}.")
    return subsets


def name_samples(
    benchmark: Benchmark,
    subsets: Sequence[str],
    lengths: Sequence[str],
    samples: int,
    shard: str | None,
    *,
    by: Callable[[Sample], str] = lambda sample: sample.sample_id,
) -> dict[Cell, tuple[str, ...]]:
    """Return the name of each cell's samples: fewer than asked for where published rows run out, more with depths."""
    named: dict[Cell, tuple[str, ...]] = {}
    for subset in subsets:
        for length in lengths:
            if benchmark.generated and length != lengths[0]:  # the same questions at every length
                named[Cell(subset, length)] = named[Cell(subset, lengths[0])]
            else:
                of_cell = part_of(benchmark.samples(subset, length, samples), shard)
                named[Cell(subset, length)] = tuple(map(by, of_cell))
    return named


def expected_stories(config: RunConfig) -> dict[Cell, tuple[str, ...]]:
    """Return the story of each sample of a run's cells, without opening its checkpoint; see ``name_samples``."""
    samples, subsets = config.samples or load_card(config.task).default_samples, chosen_subsets(config)
    by_story = attrgetter("story_id")
    return name_samples(_data_alone(config), subsets, config.lengths, samples, config.shard, by=by_story)


def asked_samples(config: RunConfig) -> Iterator[Sample]:
    """Yield what a run asks, each sample once: generated ones are the same at every length, published rows are not."""
    benchmark = _data_alone(config)
    for length in config.lengths[:1] if benchmark.generated else config.lengths:
        for subset in chosen_subsets(config):
            samples = benchmark.samples(subset, length, config.samples or load_card(config.task).default_samples)
            yield from part_of(samples, config.shard)


def _data_alone(config: RunConfig) -> Benchmark:
    """Open a run's benchmark; the tokenizer is loaded only if rows have to be counted."""

    def count_tokens(what: str | Sequence[Message]) -> int:
        encoders[:] = encoders or [open_encoder(config, resolve(config.model, config.revision).path)]
        return encoders[0].count_tokens(what)

    encoders: list[Encoder] = []
    return open_benchmark(config.task, config.data, seed=config.seed, count_tokens=count_tokens)


def _groups(config: RunConfig, checkpoint: Checkpoint, benchmark: Benchmark) -> tuple[RopeGroup, ...]:
    groups = []
    for rope, lengths in reversed(rope_groups(checkpoint, config.rope, config.lengths)):
        longest = max(map(parse_length, lengths)) if _fills(benchmark, lengths) else rope.window
        groups.append(RopeGroup(rope, tuple(lengths), min(rope.window, longest)))
    return tuple(groups)


def _fills(benchmark: Benchmark, lengths: Sequence[str]) -> bool:
    """Whether prompts fill their lengths; else one is as long as its row or its facts."""
    return benchmark.generated and all(map(parse_length, lengths))


def _suffix(config: RunConfig) -> str:
    logprob = "-logprob" if config.answer_logprob else ""
    return logprob + (f"-shard{config.shard.replace('/', 'of')}" if config.shard else "")


def _arm(config: RunConfig, checkpoint: Checkpoint) -> str:
    rule = "" if config.rope.rule == "checkpoint" else f" {config.rope.label()}"
    rehearsal = f" ({config.engine.rehearsal})" if config.engine.rehearsal else ""  # never one arm with real answers
    return f"{checkpoint.name}{rule}{rehearsal}"
