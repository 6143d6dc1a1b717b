"""Training examples from the benchmarks' own generators: other seeds, other stories, other background.

A training prompt is built by the very code that builds an evaluation prompt, so wording and template cannot drift
apart. What must differ is the content, and that is checked: an item's fingerprint covers statements or conversation,
question and answer, whatever surrounds them, and no item of the evaluation may be among those of the training.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from evalkit.benchmarks.answers import answer_ids
from evalkit.benchmarks.babilong.structure import told_in
from evalkit.errors import BadInput, ContextOverflow, LengthTooShort
from evalkit.lengths import format_length, parse_length, parse_lengths
from evalkit.options import option
from evalkit.types import Benchmark, Prompt, PromptEncoder, Sample, TokenIds

OnLeak: TypeAlias = Literal["refuse", "drop", "allow"]

TRAINING_SEED = 1_000_000_007
"""Default seed of training data; evaluation counts its seeds from 0."""

_LENGTHS, _MIX = 1, 2
_ANY_WINDOW = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecipe:
    """Which samples are trained on. The same recipe, benchmark options and tokenizer give the same examples."""

    GROUP: ClassVar[str] = "Data"

    task: str = option("--task", "Task card that gives the training data [babilong].", default="babilong")
    subsets: tuple[str, ...] = option("--subsets", "Such as qa3 [qa3].", default=("qa3",))
    samples: int = option("--samples", "Training samples in all, evenly over subsets and rows [4000].", default=4_000)
    """Over all subsets and all lengths of published rows together, of each the same number."""
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
        if self.longest < 1:
            raise BadInput(f"The trained length, --longest, is {self.longest} tokens; no sample fits, so name more.")
        if not 0 <= self.shortest <= self.longest:
            raise BadInput(
                f"Training lengths run from {self.shortest} to {self.longest}; the first is the smaller one."
            )


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with the answer that is learned."""

    prompt_ids: TokenIds
    answer_ids: TokenIds
    """Ends with the token that ends a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """How many evaluation items are among the training items: the same statements, question and answer."""

    trained: int
    evaluated: int
    shared: int
    """Evaluation items that recur."""
    dropped: int = 0
    """Training items that were left out for it."""
    trained_untold: int = 0
    """Training items without a fingerprint: they could not be compared."""
    evaluated_untold: int = 0
    """Evaluation items without one."""

    def describe(self) -> str:
        """Return a sentence for records and reports, or two where items could not be compared."""
        if not self.evaluated:
            return f"No evaluation was named to compare {_items(self.trained, 'training')} with (--against)."
        sides = ((self.trained_untold, self.trained, "training"), (self.evaluated_untold, self.evaluated, "evaluation"))
        untold = " and ".join(f"{untold:,} of {_items(number, which)}" for untold, number, which in sides if untold)
        compared = all(untold < number for untold, number, _ in sides)
        said = [self._recurring()] if compared or self.dropped else []
        if untold:
            said.append(f"{untold} cannot be compared: what they state cannot be told from the text around it.")
        return " ".join(said)

    def _recurring(self) -> str:
        trained = _items(self.trained - self.trained_untold, "training")
        evaluated = _items(self.evaluated - self.evaluated_untold, "evaluation")
        if self.dropped:
            recur = f"{_items(self.dropped, 'training')} that recur{'s' * (self.dropped == 1)} in {evaluated}"
            return f"{recur} {'was' if self.dropped == 1 else 'were'} dropped; {self.trained:,} remain."
        return f"{self.shared} of {evaluated} recur among {trained}."


def _items(number: int, which: str) -> str:
    return f"{number:,} {which} item{'s' * (number != 1)}"


def item_fingerprint(sample: Sample) -> str | None:
    """Return a hash of what is told and asked, whatever surrounds it: equal items have equal fingerprints.

    A published BABILong row and a sample of a bAbI file agree where the story is the same, at every length. None where
    a row's statements cannot be told from its background, so that nothing could be compared but the background.
    """
    if sample.context is None:
        told = sample.facts or [message["content"] for message in sample.messages]
    else:
        told = told_in(sample.subset, sample.context) or []
        if not told and sample.metadata.get("published_length") == "0k":  # there the statements are all of it
            told = sample.context.split()
        if not told:
            return None
    item = [" ".join(told), sample.question.strip(), sample.target.strip()]
    return hashlib.sha256(json.dumps(item, ensure_ascii=False).encode()).hexdigest()


def leakage(training: Iterable[Sample], evaluated: Sequence[str | None], dropped: int = 0) -> Leakage:
    """Count the evaluation items that occur among the training items.

    Args:
        training: what is trained on.
        evaluated: fingerprints of the items that will be asked.
        dropped: training items that were left out already.
    """
    trained = [item_fingerprint(sample) for sample in training]
    known = set(trained) - {None}
    return Leakage(
        trained=len(trained),
        evaluated=len(evaluated),
        shared=sum(item in known for item in evaluated),
        dropped=dropped,
        trained_untold=trained.count(None),
        evaluated_untold=list(evaluated).count(None),
    )


def choose_samples(
    benchmark: Benchmark, recipe: DataRecipe, evaluated: Sequence[str | None] = (), on_leak: OnLeak = "refuse"
) -> tuple[list[Sample], int]:
    """Return the samples to train on, and how many were dropped because the evaluation asks them too.

    Subsets, and lengths of published rows, take turns until each has its share; published rows end where they end.

    Args:
        benchmark: opened with ``recipe.seed``.
        recipe: how many samples of what.
        evaluated: fingerprints of the samples that will be asked later.
        on_leak: what to do about a training item that recurs there: refuse all, leave it out, or keep it.

    Raises:
        BadInput: items recur and ``on_leak`` is "refuse", or there are no samples.
    """
    labels = recipe.rows or (format_length(recipe.longest),)
    share = -(-recipe.samples // (len(labels) * len(recipe.subsets)))
    turns = deque((iter(benchmark.samples(name, label, 10**9)), share) for label in labels for name in recipe.subsets)
    barred = set(evaluated) - {None} if on_leak == "drop" else set()
    chosen: list[Sample] = []
    dropped = 0
    while turns and len(chosen) < recipe.samples:
        stream, left = turns.popleft()
        sample = next(stream, None)
        if sample is None:
            continue
        if barred and item_fingerprint(sample) in barred:
            dropped += 1
            if dropped > recipe.samples:
                raise BadInput("Most training items recur in the evaluation; train with another seed or other stories.")
        else:
            chosen.append(sample)
            left -= 1
        if left:
            turns.append((stream, left))
    if not chosen:
        raise BadInput(f"There are no samples of {recipe.task} {', '.join(recipe.subsets)} to train on.")
    found = leakage(chosen, evaluated)
    if found.shared and on_leak == "refuse":
        raise BadInput(
            f"Training and evaluation share stories: {found.describe()} Train with another --data-seed or other "
            "--facts, or choose --on-leak drop or allow."
        )
    return chosen, dropped


def make_examples(
    samples: Sequence[Sample], benchmark: Benchmark, encoder: PromptEncoder, recipe: DataRecipe, *, stop_id: int
) -> tuple[list[Example], list[Sample]]:
    """Return an example of each sample that fits, in an order that mixes the subsets, and those samples as they came.

    Args:
        samples: from ``choose_samples``.
        benchmark: builds the prompts, each at a length of its own.
        encoder: the base's tokenizer and template.
        recipe: gives the range of lengths.
        stop_id: the token that ends an answer.

    Raises:
        BadInput: no sample fits ``recipe.longest``.
    """
    lengths = np.random.default_rng([recipe.seed, _LENGTHS]).integers(
        recipe.shortest, recipe.longest, size=len(samples), endpoint=True
    )
    examples, fitting = [], []
    for sample, length in zip(samples, lengths.tolist(), strict=True):
        prompt = _fitting_prompt(sample, benchmark, encoder, length, recipe.longest)
        if prompt is None:
            continue
        taught = np.append(answer_ids(sample, sample.target, encoder), stop_id).astype(np.int32)
        if len(prompt.token_ids) + len(taught) <= recipe.longest:
            examples.append(Example(prompt.token_ids, taught))
            fitting.append(sample)
    if not examples:
        raise BadInput(
            f"None of {len(samples):,} samples of {recipe.task} {', '.join(recipe.subsets)} fits {recipe.longest:,} "
            "tokens with its question and answer; raise the trained length."
        )
    order = np.random.default_rng([recipe.seed, _MIX]).permutation(len(examples))
    return [examples[i] for i in order], fitting


def data_hash(examples: Iterable[Example]) -> str:
    """Return a hash over all token ids in order: equal hashes mean that two arms were shown the same."""
    digest = hashlib.sha256()
    for example in examples:
        for ids in (example.prompt_ids, example.answer_ids):
            digest.update(len(ids).to_bytes(4, "little") + np.ascontiguousarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def _fitting_prompt(
    sample: Sample, benchmark: Benchmark, encoder: PromptEncoder, length: int, longest: int
) -> Prompt | None:
    """The prompt at its drawn length, or as short as it can be where that is too short; None if nothing fits.

    Length 0 is statements only, where the benchmark has such prompts.
    """
    # A published row is as long as it is: it has to fit with what is taught, not with the room of a reply.
    window = longest if benchmark.generated else _ANY_WINDOW
    for tokens in dict.fromkeys((length, 0, longest)):
        try:
            return benchmark.prompt(sample, format_length(tokens), encoder, window)
        except ContextOverflow:
            continue
        except LengthTooShort:
            if tokens == longest:
                raise
    return None
