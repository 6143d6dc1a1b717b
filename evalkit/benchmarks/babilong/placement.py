"""Where the facts of a BABILong question stand in its background: windows of a haystack, gaps, and their joining.

    window = draw_window(haystack, rng, noise_tokens)               # whole sentences, the last cut at a word
    gaps = official_gaps(window, rng.random(len(facts)))            # or depth_gaps(window, 0.5, len(facts))
    woven = weave(window, gaps, facts, fact_ids)

Nothing is tokenized here: a context is put together from slices of the haystack and the ids of the facts.

Source of the rules: booydar/babilong at 7a6efee, the data generator (noise sampler and placement of facts).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalkit.benchmarks.babilong.haystack import MIN_SENTENCE_TOKENS, TokenizedHaystack
from evalkit.errors import BadInput
from evalkit.types import TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A stretch of a haystack in natural order, which may run over its end to its beginning but not into itself."""

    haystack: TokenizedHaystack
    start: int
    """Token of the haystack at which it starts; the start of a sentence."""
    bounds: NDArray[np.int64]
    """Offset of each sentence from the start, and the end; shape (num_sentences + 1,), [0] when empty."""
    ends_mid_sentence: bool
    """The last sentence is cut."""

    @property
    def num_tokens(self) -> int:
        """At most what was asked for, by less than a word."""
        return int(self.bounds[-1])

    @property
    def num_sentences(self) -> int:
        """Sentences in it; facts can stand in num_sentences + 1 gaps."""
        return len(self.bounds) - 1

    def ids(self, sentences: range) -> list[TokenIds]:
        """Return the ids of a run of its sentences, each with the space in front, as slices to be concatenated."""
        return [self.haystack.ids[start:stop] for start, stop in self._spans(sentences)]

    def text(self, sentences: range) -> str:
        """Return the text of a run of its sentences, without the space in front."""
        return " ".join(self.haystack.text_of(start, stop) for start, stop in self._spans(sentences))

    def _spans(self, sentences: range) -> Iterator[tuple[int, int]]:
        if not sentences:
            return
        total = self.haystack.num_tokens
        start, stop = (self.start + int(self.bounds[i]) for i in (sentences.start, sentences.stop))
        if start < total:
            yield start, min(stop, total)
        if stop > total:
            yield max(start - total, 0), stop - total


def draw_window(haystack: TokenizedHaystack, rng: np.random.Generator, num_tokens: int) -> Window:
    """Draw a window of ``num_tokens`` tokens (0 or more): a random first sentence and what follows it.

    The last sentence is cut before the word that would not fit. One number is drawn from ``rng`` whatever the length,
    so with the same seed a shorter window is the beginning of a longer one.

    Raises:
        BadInput: the haystack is too small to fill the window without repeating a sentence.
    """
    total, starts = haystack.num_tokens, haystack.sentence_starts
    if num_tokens > total:
        raise BadInput(
            f"The background text has {total:,} tokens (in sentences of {MIN_SENTENCE_TOKENS} or more), but this "
            f"length needs {num_tokens:,}; give more text with --noise, or leave --noise out to use the built-in prose."
        )
    first = int(rng.random() * haystack.num_sentences)
    start = int(starts[first])
    stop = start + num_tokens
    while not haystack.starts_word(stop % total):
        stop -= 1
    before_end = starts[first : np.searchsorted(starts, min(stop, total))]
    behind_end = starts[: np.searchsorted(starts, max(stop - total, 0))] + total
    return Window(
        haystack=haystack,
        start=start,
        bounds=np.concatenate([before_end, behind_end, [stop]]) - start,
        ends_mid_sentence=bool(starts[np.searchsorted(starts, stop % total)] != stop % total),
    )


def official_gaps(window: Window, u: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the gap of each fact as the official generator draws it: uniform over the gaps, with replacement, sorted.

    Gap i is in front of sentence i; gap num_sentences is behind the last one, even if that is cut. ``u`` holds one
    uniform number from [0, 1) per fact. Drawn once per sample and used at every length, they put a fact at the same
    relative depth everywhere, so that lengths differ in nothing else.
    """
    return np.floor(np.sort(u) * (window.num_sentences + 1)).astype(np.int64)


def depth_gaps(window: Window, depth: float, num_facts: int) -> NDArray[np.int64]:
    """Return the same gap for all facts: the one nearest, in background tokens, to ``depth`` (0 start, 1 end).

    The facts stand there together, in order. The gap behind a sentence that is cut is not used: there the first fact
    would run on from half a sentence in every sample of depth 1.

    Raises:
        BadInput: the depth is not within 0 and 1.
    """
    if not 0 <= depth <= 1:
        raise BadInput(f"Depth {depth} is not between 0 and 1; 0 puts the facts first, 1 last.")
    places = window.bounds[:-1] if window.ends_mid_sentence else window.bounds
    nearest = int(np.argmin(np.abs(places - depth * window.num_tokens)))
    return np.full(num_facts, nearest, dtype=np.int64)


class Woven(NamedTuple):
    """A context of background and facts, ready to be put between the head and the tail of a prompt.

    The first and the last piece (a sentence or a fact) meet text of the prompt and must be tokenized with it:

        encode_prompt(head + first), middle, encode_after(" " + last + tail)
        encode_prompt(head + first + tail)    where there is a single piece, or none
    """

    first: str
    """ "" when there are neither sentences nor facts."""
    middle: TokenIds
    last: str
    """ "" when there is a single piece, or none; middle is empty then."""
    fact_offsets: NDArray[np.int64]
    """Token offset of each fact from the start of ``middle``, shape (num_facts,). For a fact that is ``first`` it is
    negative: minus its number of tokens, right to within a token (its own first token has no space in front)."""


def weave(window: Window, gaps: NDArray[np.int64], facts: Sequence[str], fact_ids: Sequence[TokenIds]) -> Woven:
    """Put the facts into their gaps, in story order, by slicing.

    Args:
        window: the background.
        gaps: the gap of each fact, ascending; fact k stands in front of sentence gaps[k] of the window.
        facts: the statements.
        fact_ids: their ids with a space in front: ``encoder.encode_after(" " + fact)``.
    """
    num_sentences, num_facts = window.num_sentences, len(facts)
    if num_sentences + num_facts == 0:
        return Woven("", np.empty(0, np.int32), "", np.empty(0, np.int64))
    fact_first = num_facts > 0 and bool(gaps[0] == 0)
    fact_last = num_facts > 0 and bool(gaps[-1] == num_sentences)
    first = facts[0] if fact_first else window.text(range(1))
    last = facts[-1] if fact_last else window.text(range(num_sentences - 1, num_sentences))

    slices: list[TokenIds] = []
    offsets = [-len(fact_ids[0])] if fact_first else []
    next_sentence = 0 if fact_first else 1
    num_tokens = 0
    for gap, ids in list(zip(gaps.tolist(), fact_ids, strict=True))[fact_first : num_facts - fact_last]:
        run = window.ids(range(next_sentence, gap))
        num_tokens += sum(map(len, run))
        offsets.append(num_tokens)
        slices += [*run, ids]
        num_tokens += len(ids)
        next_sentence = gap
    slices += window.ids(range(next_sentence, num_sentences - (not fact_last)))
    middle = np.concatenate([np.empty(0, np.int32), *slices])
    if len(offsets) < num_facts:
        offsets.append(len(middle))
    return Woven(first, middle, last if num_sentences + num_facts > 1 else "", np.asarray(offsets, np.int64))


def weave_text(window: Window, gaps: NDArray[np.int64], facts: Sequence[str]) -> str:
    """Return the whole context that ``weave`` makes, as text."""
    pieces = []
    next_sentence = 0
    for gap, fact in zip(gaps.tolist(), facts, strict=True):
        pieces += [window.text(range(next_sentence, gap)), fact]
        next_sentence = gap
    pieces.append(window.text(range(next_sentence, window.num_sentences)))
    return " ".join(filter(None, pieces))
