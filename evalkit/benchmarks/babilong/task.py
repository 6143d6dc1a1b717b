"""BABILong: bAbI stories hidden in long background text (arXiv 2406.10149, github.com/booydar/babilong).

    facts       Mary went to the garden. ... Mary took the milk there.     generated worlds, or bAbI files
    background  sentences of prose, in natural order                       built in, or the user's text files
    question    Where is the milk?      answer  garden                     scored by label words, see scorers.py

Facts stay in story order; each stands in a gap between two background sentences, drawn uniformly with replacement as
in the official generator. The same draw is used at every length, so a sample keeps its relative depths. Unlike the
official data, which fill a number of GPT-2 tokens, a prompt here fills its length in the checkpoint's own tokens,
template and answer included. Published rows are asked as they are.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalkit.benchmarks.babilong import questions
from evalkit.benchmarks.babilong.contexts import contexts_of_file, generated_contexts
from evalkit.benchmarks.babilong.files import read_babi
from evalkit.benchmarks.babilong.haystack import TokenizedHaystack, read_noise, tokenize_haystack
from evalkit.benchmarks.babilong.imported import imported_runs
from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.babilong.placement import (
    Window,
    Woven,
    depth_gaps,
    draw_window,
    official_gaps,
    weave,
    weave_text,
)
from evalkit.benchmarks.babilong.prose import generate_prose
from evalkit.benchmarks.babilong.published import published_samples
from evalkit.benchmarks.babilong.scorers import SCORER_VERSION, score_corrected, score_official
from evalkit.benchmarks.babilong.structure import select
from evalkit.benchmarks.babilong.wording import Wording, load_wording
from evalkit.benchmarks.cards import TaskCard, load_card
from evalkit.benchmarks.options import GENERATED, Part
from evalkit.benchmarks.rows import row_number
from evalkit.errors import BadInput, ContextOverflow, LengthTooShort
from evalkit.files import user_cache
from evalkit.lengths import parse_length
from evalkit.types import Message, Prediction, Prompt, PromptEncoder, Sample, Score, TokenCounter, TokenIds

OPTIONS = BABILongOptions
__all__ = ["OPTIONS", "SCORERS", "SCORER_VERSION", "BABILong", "imported_runs", "open_benchmark"]

BUILT_IN_WORDS = 400_000
"""Words of the built-in background, some 500,000 tokens, so that windows of 128K differ; doubled for what is longer."""

MAX_SPARE_TOKENS = 64
"""Tokens of its length that a generated prompt may leave unused, answer included."""

_CONTEXT = "\ue000"  # a private-use character: stands for the context while the template is filled in


class BABILong:
    """The questions and prompts of BABILong. Implements ``types.Benchmark``."""

    task = "babilong"

    def __init__(
        self, card: TaskCard, options: BABILongOptions | None = None, *, seed: int = 0, part: Part = "test"
    ) -> None:
        """Set up the data.

        Args:
            card: the BABILong card.
            options: facts, background, placement and wording; None: the defaults.
            seed: decides every generated story, its background and its placement.
            part: of the bAbI files in ``options.facts``, which are read.

        Raises:
            BadInput: files that cannot be used.
        """
        self.card = card
        self.options = options or BABILongOptions()
        self.seed = seed
        self.part = part
        self.depths = tuple(dict.fromkeys(self.options.depths))
        left_out = self.options.left_out
        wording = load_wording(self.options.prompts, card)
        self._wording = {name: texts.without(left_out) for name, texts in wording.items()}
        self._haystacks: dict[tuple[str, int], TokenizedHaystack] = {}
        self._fact_ids: dict[tuple[str, str], TokenIds] = {}
        self._checked: set[tuple[str, str, str]] = set()

    @property
    def generated(self) -> bool:
        """Whether prompts are made to fill their lengths; see ``types.Benchmark``."""
        return self.options.source == GENERATED

    def samples(self, subset: str, length: str, count: int) -> Iterator[Sample]:
        """Yield ``count`` questions, each at every depth asked for; see ``types.Benchmark``.

        Raises:
            BadInput: the source has no questions for this subset and length.
        """
        if not self.generated:
            rows = published_samples(self.card, self.options.source, subset, length)
            yield from islice(select(rows, self.options.conditions), count)
            return
        asked = islice(self._questions(subset), count)
        for _, questions_of_one in groupby(asked, key=lambda sample: sample.context_id or sample.sample_id):
            together = list(questions_of_one)
            if not self.depths:
                yield from together
            for depth in self.depths:
                yield from (_at_depth(sample, depth) for sample in together)

    def prompt(self, sample: Sample, length: str, encoder: PromptEncoder, window: int) -> Prompt:
        """Build the prompt of one question at one length; see ``types.Benchmark``.

        Raises:
            ContextOverflow: the facts, or a published row, do not fit.
            BadInput: not even the empty prompt fits, or the background text is too short for the length.
        """
        answer = self._answer_tokens(sample.subset)
        if sample.context is not None:
            ids, positions = self._published(sample, encoder), list[int]()
            limit = window
        elif self.options.control == "no-context" or self.options.control == "facts-only" or parse_length(length) == 0:
            ids, positions = self._without_background(sample, encoder)
            limit = window
        else:
            limit = parse_length(length)
            ids, positions = self._with_background(sample, length, encoder, limit - answer)
        if len(ids) + answer > limit:
            raise ContextOverflow(
                f"{sample.subset} sample {sample.sample_id}: {len(ids):,} prompt tokens + {answer} for the answer "
                f"> {limit:,}."
            )
        return Prompt(
            sample=sample, length=length, token_ids=ids, max_new_tokens=answer, fact_positions=tuple(positions)
        )

    def recipe(self) -> dict[str, Any]:
        """Return what decides the prompts; see ``types.Benchmark``."""
        source = "local rows"  # what they say is in their names, wherever they lie; see ``rows.py``
        if self.generated:
            source = self.options.source
        elif self.options.source in self.card.source:
            hub = self.card.source[self.options.source]
            source = f"{hub['id']}@{hub['revision']}"
        wording = {name: [w.instruction, w.examples, w.post_prompt, w.template] for name, w in self._wording.items()}
        recipe: dict[str, Any] = {
            "source": source,
            "wording": _sha(json.dumps(wording, sort_keys=True)),
            "max_new_tokens": self.options.max_new_tokens or self.card.max_new_tokens,
            "only": " and ".join(map(str, self.options.conditions)) or None,
        }
        if self.options.thinking_tokens:  # not named where there are none: older run folders go on
            recipe["thinking_tokens"] = self.options.thinking_tokens
        if self.options.questions_per_context > 1:  # likewise
            recipe["questions_per_context"] = self.options.questions_per_context
        if self.generated:
            recipe |= {
                "seed": self.seed,
                "facts": "bAbI files" if self.options.facts else f"generated worlds {questions.VERSION}",
                "noise": _sha(self._text),
                "depths": ",".join(f"{depth:g}" for depth in self.depths) or "official placement",
                "control": self.options.control,
            }
        return recipe

    def _questions(self, subset: str) -> Iterator[Sample]:
        """Return all questions of a subset, those of a context next to each other."""
        size, facts, conditions = self.options.questions_per_context, self.options.facts, self.options.conditions
        if size == 1:
            return select(self._stories(subset), conditions)
        if facts is not None:
            return contexts_of_file(facts, subset, size, conditions, part=self.part)
        return generated_contexts(subset, self.seed, size, conditions)

    def _stories(self, subset: str) -> Iterator[Sample]:
        if self.options.facts is not None:
            yield from read_babi(self.options.facts, subset, part=self.part)
            return
        index = 0
        while True:
            yield questions.generate(subset, self.seed, index)
            index += 1

    def _answer_tokens(self, subset: str) -> int:
        tokens = self.options.max_new_tokens or self.card.subsets[subset].max_new_tokens or self.card.max_new_tokens
        assert tokens is not None, "the card of BABILong says how long an answer may be"
        return tokens + self.options.thinking_tokens

    def _texts_of(self, subset: str) -> Wording:
        if subset not in self._wording:
            raise BadInput(f"The chosen prompts have no wording for {subset}; they have {', '.join(self._wording)}.")
        return self._wording[subset]

    def _published(self, sample: Sample, encoder: PromptEncoder) -> TokenIds:
        content = self._texts_of(sample.subset).fill(sample.context or "", sample.question)
        return encoder.encode_prompt(encoder.render([Message(role="user", content=content)]))

    def _frame(self, sample: Sample, encoder: PromptEncoder, question: str | None = None) -> tuple[str, str]:
        """Return the rendered text in front of and behind the context, for the sample's question or another one."""
        content = self._texts_of(sample.subset).fill(_CONTEXT, sample.question if question is None else question)
        head, found, tail = encoder.render([Message(role="user", content=content)]).partition(_CONTEXT)
        if not found:
            raise BadInput("The chat template or the wording drops the context; a prompt must contain it.")
        return head, tail

    def _longest_tail(self, sample: Sample, head: str, tail: str, encoder: PromptEncoder) -> str:
        """Return what stands behind the context with the longest question it is asked: what leaves it room fits all."""
        if not sample.asked_together:
            return tail
        frames = [self._frame(sample, encoder, question) for question, _ in sample.asked_together]
        if any(other != head for other, _ in frames):
            raise BadInput(
                f"The wording of {sample.subset} puts the question in front of the context, so that questions share no "
                "prefix; drop --questions-per-context, or put {question} behind {context}."
            )
        return max((other for _, other in frames), key=lambda one: _num_behind(one, encoder))

    def _without_background(self, sample: Sample, encoder: PromptEncoder) -> tuple[TokenIds, list[int]]:
        head, tail = self._frame(sample, encoder)
        facts = () if self.options.control == "no-context" else sample.facts
        ids = encoder.encode_prompt(head + " ".join(facts) + tail)
        starts = np.cumsum([len(encoder.encode_prompt(head)), *(len(self._ids_of(f, encoder)) for f in facts)])
        return ids, [int(start) for start in starts[: len(facts)]]

    def _with_background(
        self, sample: Sample, length: str, encoder: PromptEncoder, limit: int
    ) -> tuple[TokenIds, list[int]]:
        """Return at most ``limit`` ids, at least limit - MAX_SPARE_TOKENS, and the position of each fact."""
        head, own_tail = self._frame(sample, encoder)
        tail = self._longest_tail(sample, head, own_tail, encoder)
        frame = len(encoder.encode_prompt(head)) + _num_behind(tail, encoder)
        if frame >= limit:
            raise LengthTooShort(
                f"{length} does not fit a prompt of {sample.subset}: the wording alone takes {frame} tokens and the "
                f"answer {parse_length(length) - limit}; ask for longer ones, or leave parts out (--no-examples"
                f"{', --thinking-tokens' if self.options.thinking_tokens else ''})."
            )
        fact_ids = [self._ids_of(fact, encoder) for fact in sample.facts]
        room = limit - frame - sum(map(len, fact_ids))
        if room < 0:
            raise ContextOverflow(
                f"{sample.subset} sample {sample.sample_id}: {len(fact_ids)} facts take {limit - frame - room:,} "
                f"tokens, and {length} leaves {limit - frame:,} beside the wording and the answer."
            )
        seed = [self.seed, zlib.crc32(f"{sample.subset} {_story_part(sample)}".encode())]
        places = np.random.default_rng([*seed, 1]).random(len(sample.facts))
        haystack = self._haystack(encoder, limit)
        for _ in range(8):  # pieces that meet the frame are tokenized with it: room may be off by a few tokens
            background = draw_window(haystack, np.random.default_rng(seed), max(room, 0))
            gaps = self._gaps(sample, background, places)
            woven = weave(background, gaps, sample.facts, fact_ids)
            ids, start = _join(head, woven, tail, encoder)
            spare = limit - len(ids)
            if 0 <= spare <= MAX_SPARE_TOKENS or (spare < 0 and room <= 0):
                break
            room += spare
        if own_tail != tail:
            ids, start = _join(head, woven, own_tail, encoder)
        whole = partial(_whole, head, own_tail, background, gaps, sample)
        self._check_once(sample.subset, length, encoder, ids, whole)
        return ids, [max(0, start + int(offset)) for offset in woven.fact_offsets]

    def _gaps(self, sample: Sample, background: Window, places: NDArray[np.float64]) -> NDArray[np.int64]:
        if "depth" in sample.metadata:
            return depth_gaps(background, sample.metadata["depth"], len(sample.facts))
        return official_gaps(background, places)

    def _check_once(
        self, subset: str, length: str, encoder: PromptEncoder, ids: TokenIds, text: Callable[[], str]
    ) -> None:
        """Compare the first prompt of a cell with tokenizing its whole text: true by construction, or no run."""
        cell = (encoder.identity, subset, length)
        if cell in self._checked:
            return
        if not np.array_equal(ids, encoder.encode_prompt(text())):
            raise BadInput(
                "This tokenizer gives a text other ids than its sentences, so prompts cannot be assembled from "
                "tokenized pieces; please report the model's name."
            )
        self._checked.add(cell)

    def _ids_of(self, fact: str, encoder: PromptEncoder) -> TokenIds:
        key = (encoder.identity, fact)
        if key not in self._fact_ids:
            self._fact_ids[key] = encoder.encode_after(f" {fact}")
        return self._fact_ids[key]

    def _haystack(self, encoder: PromptEncoder, tokens: int) -> TokenizedHaystack:
        """Return the background; of the built-in prose enough for a window of ``tokens`` tokens."""
        words = BUILT_IN_WORDS
        haystack = self._tokenized(encoder, words)
        while haystack.num_tokens < tokens and not self.options.noise:
            words *= 2
            haystack = self._tokenized(encoder, words)
        return haystack

    def _tokenized(self, encoder: PromptEncoder, words: int) -> TokenizedHaystack:
        key = (encoder.identity, words)
        if key not in self._haystacks:
            text = self._text if words == BUILT_IN_WORDS else generate_prose(self.seed, words)
            self._haystacks[key] = tokenize_haystack(text, encoder, user_cache())
        return self._haystacks[key]

    @cached_property
    def _text(self) -> str:
        """The user's background, or the beginning of the built-in one, which decides the rest of it."""
        return read_noise(self.options.noise) if self.options.noise else generate_prose(self.seed, BUILT_IN_WORDS)


def open_benchmark(
    card: TaskCard,
    options: BABILongOptions,
    *,
    seed: int,
    part: Part,
    count_tokens: TokenCounter | None,
) -> BABILong:
    """Return the benchmark; see ``benchmarks.open_benchmark``. Tokens need no counting: published rows have a label."""
    return BABILong(card, options, seed=seed, part=part)


SCORERS: Mapping[str, Callable[[Prediction], Score]] = {
    "official": lambda prediction: score_official(prediction, _labels(prediction.subset)),
    "corrected": lambda prediction: score_corrected(prediction, _labels(prediction.subset)),
}


def labels(sample: Sample) -> tuple[str, ...]:
    """Return the labels that can answer a question: not those that it names itself, which no scorer credits.

    Empty where the right answer is none of them: several objects (qa8).
    """
    question = sample.question.lower()
    possible = tuple(label for label in _labels(sample.subset) if label.lower() not in question)
    return possible if sample.target.lower() in map(str.lower, possible) else ()


def _labels(subset: str) -> Sequence[str]:
    card = load_card("babilong")
    if subset not in card.subsets:
        raise BadInput(f"BABILong has no subset {subset!r}, so its answers cannot be scored.")
    return card.subsets[subset].labels


def _at_depth(sample: Sample, depth: float) -> Sample:
    return replace(
        sample,
        sample_id=f"{sample.sample_id}@{depth:g}",
        context_id=sample.context_id and f"{sample.context_id}@{depth:g}",
        metadata={**sample.metadata, "depth": depth},
    )


def _story_part(sample: Sample) -> str:
    """Name the question's place alone, or its context's: all depths share background and draw."""
    return (sample.context_id or row_number(sample.sample_id)).partition("@")[0]


def _num_behind(tail: str, encoder: PromptEncoder) -> int:
    """Count the tokens behind the context, with a word in front: some tokenizers join a full stop and a line break."""
    return len(encoder.encode_after(f" x{tail}"))


def _join(head: str, woven: Woven, tail: str, encoder: PromptEncoder) -> tuple[TokenIds, int]:
    """Return the ids of a prompt, and the token that ``woven.fact_offsets`` count from."""
    if not woven.last:
        ids = encoder.encode_prompt(head + woven.first + tail)
        return ids, len(ids)
    opening = encoder.encode_prompt(head + woven.first)
    return np.concatenate([opening, woven.middle, encoder.encode_after(f" {woven.last}{tail}")]), len(opening)


def _whole(head: str, tail: str, background: Window, gaps: NDArray[np.int64], sample: Sample) -> str:
    return head + weave_text(background, gaps, sample.facts) + tail


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
