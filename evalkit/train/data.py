"""Training examples from the benchmarks' own generators: other seeds, other stories, other background.

A training prompt is built by the very code that builds an evaluation prompt, so wording and template cannot drift
apart. What must differ is the content, and that is checked: an item's fingerprint covers statements or conversation,
question and answer, and no item of the evaluation may be among those of the training.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from evalkit.errors import BadInput, ContextOverflow
from evalkit.lengths import format_length, parse_length, parse_lengths
from evalkit.options import option
from evalkit.types import Benchmark, PromptEncoder, Sample, TokenIds

OnLeak: TypeAlias = Literal["refuse", "drop", "allow"]

TRAINING_SEED = 1_000_000_007
"""Default seed of training data; evaluation counts its seeds from 0."""

_LENGTHS, _MIX = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecipe:
    """Which samples are trained on. The same recipe, benchmark options and tokenizer give the same examples."""

    task: str = option("--task", "Task card that gives the training data [babilong].", default="babilong")
    subsets: tuple[str, ...] = option("--subsets", "Such as qa3 [qa3].", default=("qa3",))
    samples: int = option("--samples", "Training samples in all [4000].", default=4_000)
    """Over all subsets together."""
    shortest: int = option("--shortest", "Shortest sample, tokens with answer [0].", default=0, parse=parse_length)
    """Lengths are drawn uniformly from here, tokens with answer; a sample that needs more gets what it needs."""
    longest: int = option(
        "--longest",
        "Longest sample: the trained length, tokens with answer [8k].",
        default=8_192,
        parse=parse_length,
    )
    """To here, tokens with answer."""
    seed: int = option(
        "--data-seed",
        "Draws stories and background; far from those of evaluation by default.",
        default=TRAINING_SEED,
    )
    rows: tuple[str, ...] = option(
        "--rows",
        "Of a --source, the lengths to train on, such as 4k,8k [that of --longest].",
        default=(),
        parse=parse_lengths,
    )
    """Labels of the published rows that are trained on, such as ("4k", "8k"); empty: that of ``longest``."""

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.subsets:
            raise BadInput("Training data need at least one subset and one sample.")
        if not 0 <= self.shortest <= self.longest:
            raise BadInput(
                f"Training lengths run from {self.shortest} to {self.longest}; the first is the smaller one."
            )

    def to_json(self) -> dict[str, Any]:
        """Return flat JSON values for the training record."""
        return asdict(self) | {"subsets": list(self.subsets), "rows": list(self.rows)}


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with the answer that is learned."""

    prompt_ids: TokenIds
    answer_ids: TokenIds
    """Ends with the token that ends a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """How many evaluation items are among the training items, word for word."""

    trained: int
    evaluated: int
    shared: int
    """Evaluation items that recur."""
    dropped: int = 0
    """Training items that were left out for it."""

    def describe(self) -> str:
        """Return one sentence for records and reports."""
        if self.dropped:
            return (
                f"{self.dropped} training items that recur in the {self.evaluated:,} evaluation items were dropped; "
                f"{self.trained:,} remain."
            )
        return f"{self.shared} of {self.evaluated:,} evaluation items recur among {self.trained:,} training items."


def item_fingerprint(sample: Sample) -> str:
    """Return a hash of what is told and asked, whatever surrounds it: equal items have equal fingerprints."""
    told = sample.facts or [message["content"] for message in sample.messages] or sample.context
    item = [told, sample.question.strip(), sample.target.strip()]
    return hashlib.sha256(json.dumps(item, ensure_ascii=False).encode()).hexdigest()


def leakage(training: Iterable[Sample], evaluation: Iterable[Sample]) -> Leakage:
    """Count the evaluation items that occur among the training items."""
    trained = [item_fingerprint(sample) for sample in training]
    evaluated = [item_fingerprint(sample) for sample in evaluation]
    known = set(trained)
    return Leakage(trained=len(trained), evaluated=len(evaluated), shared=sum(item in known for item in evaluated))


def draw_samples(benchmark: Benchmark, recipe: DataRecipe) -> Iterator[Sample]:
    """Yield samples without end for generated data, subsets in turn; published rows end where they end."""
    labels = recipe.rows or (format_length(recipe.longest),)
    streams = [benchmark.samples(name, label, 10**9) for label in labels for name in recipe.subsets]
    while streams:
        for stream in list(streams):
            sample = next(iter(stream), None)
            if sample is None:
                streams.remove(stream)
            else:
                yield sample


def choose_samples(
    benchmark: Benchmark, recipe: DataRecipe, evaluation: Iterable[Sample], on_leak: OnLeak = "refuse"
) -> tuple[list[Sample], Leakage]:
    """Return the samples to train on, and what the leakage check found.

    Args:
        benchmark: opened with ``recipe.seed``.
        recipe: how many samples of what.
        evaluation: the samples that will be asked later.
        on_leak: what to do about a training item that recurs there: refuse all, leave it out, or keep it.

    Raises:
        BadInput: items recur and ``on_leak`` is "refuse", or there are no samples.
    """
    asked = [item_fingerprint(sample) for sample in evaluation]
    barred, seen = set(asked), set()
    chosen: list[Sample] = []
    dropped = 0
    for sample in draw_samples(benchmark, recipe):
        item = item_fingerprint(sample)
        if item in barred and on_leak == "drop":
            dropped += 1
            if dropped > recipe.samples:
                raise BadInput("Most training items recur in the evaluation; train with another seed or other stories.")
            continue
        seen.add(item)
        chosen.append(sample)
        if len(chosen) == recipe.samples:
            break
    if not chosen:
        raise BadInput(f"There are no samples of {recipe.task} {', '.join(recipe.subsets)} to train on.")
    found = Leakage(
        trained=len(chosen), evaluated=len(asked), shared=sum(item in seen for item in asked), dropped=dropped
    )
    if found.shared and on_leak == "refuse":
        raise BadInput(
            f"Training and evaluation share stories: {found.describe()} Train with another --data-seed or other "
            "--facts, or choose --on-leak drop or allow."
        )
    return chosen, found


def make_examples(
    samples: Sequence[Sample], benchmark: Benchmark, encoder: PromptEncoder, recipe: DataRecipe, *, stop_id: int
) -> list[Example]:
    """Return one example a sample, each at a length of its own, in an order that mixes the subsets.

    Args:
        samples: from ``choose_samples``.
        benchmark: builds the prompts.
        encoder: the base's tokenizer and template.
        recipe: gives the range of lengths.
        stop_id: the token that ends an answer.

    Raises:
        BadInput: no sample fits ``recipe.longest``.
    """
    lengths = np.random.default_rng([recipe.seed, _LENGTHS]).integers(
        recipe.shortest, recipe.longest, size=len(samples), endpoint=True
    )
    examples = []
    for sample, length in zip(samples, lengths.tolist(), strict=True):
        prompt_ids = _fitting_prompt(sample, benchmark, encoder, length, recipe.longest)
        if prompt_ids is None:
            continue
        answer_ids = np.append(_answer_ids(sample.target, encoder), stop_id).astype(np.int32)
        if len(prompt_ids) + len(answer_ids) <= recipe.longest:
            examples.append(Example(prompt_ids, answer_ids))
    if not examples:
        raise BadInput(
            f"None of {len(samples):,} samples of {recipe.task} {', '.join(recipe.subsets)} fits {recipe.longest:,} "
            "tokens with its question and answer; raise the trained length."
        )
    order = np.random.default_rng([recipe.seed, _MIX]).permutation(len(examples))
    return [examples[i] for i in order]


def data_hash(examples: Iterable[Example]) -> str:
    """Return a hash over all token ids in order: equal hashes mean that two arms were shown the same."""
    digest = hashlib.sha256()
    for example in examples:
        for ids in (example.prompt_ids, example.answer_ids):
            digest.update(len(ids).to_bytes(4, "little") + np.ascontiguousarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def _fitting_prompt(
    sample: Sample, benchmark: Benchmark, encoder: PromptEncoder, length: int, longest: int
) -> TokenIds | None:
    """The prompt at its drawn length, or as short as it can be where that is too short; None if nothing fits."""
    fits = None
    for tokens in (longest, 0, length):  # 0: statements only, where the benchmark has such prompts
        try:
            prompt = benchmark.prompt(sample, format_length(tokens), encoder, longest)
        except ContextOverflow:
            if tokens == longest:
                return None
            continue
        fits = prompt.token_ids
        if tokens == 0 and len(fits) + prompt.max_new_tokens >= length:
            break
    return fits


def _answer_ids(target: str, encoder: PromptEncoder) -> TokenIds:
    """Encode an answer as a model would write it: after a template's line break, or after the question and a space."""
    chat = encoder.render([{"role": "user", "content": "?"}]) != "?"
    return encoder.encode_after(target, before="\n") if chat else encoder.encode_after(f" {target}", before="?")
