"""MRCR: find the i-th of several identical requests in a long conversation, and repeat the reply to it word for word.

Paper: "Michelangelo: Long Context Evaluations Beyond Haystacks via Latent Structure Queries", arXiv 2409.12640. The
form is that of the hub data set openai/mrcr; ``published.py`` reads its rows, which are asked as they are. By
default conversations are generated: seeded, offline, at any length.

    user        write a poem about tea
    assistant   <poem 1>
    user        write a riddle about tea            (a distractor; longer prompts have more of them)
    assistant   <riddle>
    user        write a poem about tea
    assistant   <poem 2>
    user        Prepend aB3dE5gH7j to the 2nd (1 indexed) poem about tea, ...
    answer      aB3dE5gH7j<poem 2>

The answer counts by its likeness to the right text, and not at all without the prefix: see ``scorers.py``.
"""

import string
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from evalkit.benchmarks.cards import TaskCard
from evalkit.benchmarks.mrcr.conversation import ConversationEncoder, Turn, cut_between_words, message_offsets
from evalkit.benchmarks.mrcr.options import MRCROptions
from evalkit.benchmarks.mrcr.published import PublishedRows
from evalkit.benchmarks.mrcr.scorers import SCORER_VERSION, SCORERS
from evalkit.benchmarks.mrcr.texts import FORMATS, TEXTS_VERSION, TOPICS, write_text
from evalkit.benchmarks.options import GENERATED, Part, too_few_questions
from evalkit.errors import BadInput, ContextOverflow
from evalkit.lengths import parse_length
from evalkit.types import Message, Prompt, PromptEncoder, Sample, TokenCounter, TokenIds

OPTIONS = MRCROptions
__all__ = ["MRCR", "OPTIONS", "SCORERS", "SCORER_VERSION", "open_benchmark"]

ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th")
SLACK = 64
"""A generated prompt may end this many tokens short of its length, never over it."""

_AIM = 8  # tokens left over on purpose, so that a reply cut between words rarely asks for a second try
_MAX_TRIES = 12
_ALPHANUMERICS = string.ascii_letters + string.digits
# Each purpose draws from its own stream, so that none can shift another's numbers.
_SAMPLE, _ORDINAL, _POOL, _DEPTHS, _DISTRACTORS, _FILLER = range(6)


class MRCR:
    """Generated conversations, or published rows. Implements ``types.Benchmark``.

    A sample's ``facts`` are the needles in order, ``fact_positions`` of its prompt the offsets of their first tokens
    (none where a row is one text). Its metadata: ``rule`` (how it is scored), ``prefix``, ``num_needles``, ``wanted``
    (1 is the first needle; Google's rows lack it); of generated samples ``format`` and ``topic``; of published rows
    ``published_length`` and ``date_added`` or ``context_len``.
    """

    task = "mrcr"

    def __init__(
        self,
        card: TaskCard,
        options: MRCROptions | None = None,
        *,
        seed: int = 0,
        part: Part = "test",
        count_tokens: TokenCounter | None = None,
    ) -> None:
        """Set up the data.

        Args:
            card: the MRCR card.
            options: where the rows come from, and what is left out; None: the defaults.
            seed: decides every generated sample.
            part: of published rows that are split.
            count_tokens: the checkpoint's own count, for published rows (``options.bins``).

        Raises:
            BadInput: the source holds no published rows.
        """
        self.card = card
        self.options = options or MRCROptions()
        self.seed = seed
        source = self.options.source
        self._published: PublishedRows | None = None
        if source != GENERATED:
            self._published = PublishedRows(card, source, count_tokens, self.options, part=part)
        self._pool: dict[tuple[str, str, int], Turn] = {}
        self._encoders: dict[str, ConversationEncoder] = {}
        self._checked: set[tuple[str, str, str]] = set()

    def recipe(self) -> dict[str, Any]:
        """Return what decides every prompt, but for the encoder; see ``types.Benchmark``."""
        answer = {
            "card_version": self.card.version,
            "max_new_tokens": self.options.max_new_tokens or f"answer + {self.card.settings['answer_margin']}",
        }
        if self.options.thinking_tokens:  # not named where there are none: older run folders go on
            answer["thinking_tokens"] = self.options.thinking_tokens
        if self.options.questions_per_context > 1:  # likewise
            answer["questions_per_context"] = self.options.questions_per_context
        if self._published:
            return {**self._published.recipe(), **answer}
        settings = self.card.settings
        return {
            "source": "generated",
            "seed": self.seed,
            "control": self.options.control,
            "texts_version": TEXTS_VERSION,
            "question": self.card.template,
            **{name: settings[name] for name in ("request", "distractor_chars", "share_topic", "share_format")},
            **{f"needle_chars {subset}": chars for subset, chars in settings["needle_chars"].items()},
            **answer,
        }

    @property
    def generated(self) -> bool:
        """Whether prompts are made to fill their lengths; see ``types.Benchmark``."""
        return self._published is None

    def samples(self, subset: str, length: str, count: int) -> Iterator[Sample]:
        """Yield ``count`` samples of "2needle", "4needle" or "8needle": generated ones are the same at every length.

        Raises:
            BadInput: there is no such subset or length, it has fewer needles than questions are asked, or a published
                row cannot be read.
        """
        parse_length(length)
        if subset not in self.card.subsets:
            raise BadInput(f"MRCR has no subset {subset!r}; it has {', '.join(self.card.subsets)}.")
        if self._published:
            return islice(self._published.samples(subset, length), count)
        num_needles, asked = int(subset.removesuffix("needle")), self.options.questions_per_context
        if asked > num_needles:
            raise too_few_questions(asked, f"a conversation of {subset}", num_needles)
        return (self._sample(subset, *divmod(number, asked)) for number in range(count))

    def _sample(self, subset: str, index: int, number: int) -> Sample:
        """Return one of the questions (``number``, from 0) that a conversation is asked."""
        num_needles, asked = int(subset.removesuffix("needle")), self.options.questions_per_context
        rng = np.random.default_rng([self.seed, _SAMPLE, num_needles, index])
        form, topic = FORMATS[rng.integers(len(FORMATS))], TOPICS[rng.integers(len(TOPICS))]
        shortest, longest = self.card.settings["needle_chars"][subset]
        sizes = rng.integers(shortest, longest + 1, size=num_needles)
        needles = tuple(write_text(rng, form, topic, int(size)) for size in sizes)
        prefix = "".join(_ALPHANUMERICS[i] for i in rng.integers(len(_ALPHANUMERICS), size=10))
        # Every block of n samples asks once for each of the n needles: position and ordinal stay balanced.
        block, place = divmod(index * asked, num_needles)
        order = np.random.default_rng([self.seed, _ORDINAL, num_needles, block]).permutation(num_needles)
        ordinals = [int(order[(place + i) % num_needles]) for i in range(asked)]
        together = tuple(
            (
                self.card.template.format(prefix=prefix, ordinal=ORDINALS[ordinal], format=form, topic=topic),
                prefix + needles[ordinal],
            )
            for ordinal in ordinals
        )
        wanted, (question, target) = ordinals[number], together[number]
        return Sample(
            task=self.task,
            subset=subset,
            sample_id=f"{index:05d}-q{number + 1}" if asked > 1 else f"{index:05d}",
            story_id=f"{subset}-{index:05d}",
            context_id=f"{index:05d}" if asked > 1 else "",
            asked_together=together if asked > 1 else (),
            question=question,
            target=target,
            facts=needles,
            supporting=(wanted,),
            seed=int(rng.integers(2**63)),
            metadata={
                "rule": "openai",
                "prefix": prefix,
                "wanted": wanted + 1,
                "num_needles": num_needles,
                "format": form,
                "topic": topic,
            },
        )

    def prompt(self, sample: Sample, length: str, encoder: PromptEncoder, window: int) -> Prompt:
        """Return the prompt: generated to fill the length with distractors, or a published row as it is.

        At every length a needle has the same share of the distractor text in front of it.

        Raises:
            ContextOverflow: a row, or the needles, question and answer of a generated sample, do not fit.
            BadInput: the chat template refuses the conversation, or changes it.
        """
        room = (self.options.max_new_tokens or self._answer_room(sample, encoder)) + self.options.thinking_tokens
        limit = window if sample.messages or self.options.control else parse_length(length)
        if sample.messages or self.options.control == "no-context":
            token_ids, offsets = _as_given(sample, encoder)
        else:
            token_ids, offsets = self._as_turns(sample, length, limit - room, encoder)
        if len(token_ids) + room > limit:
            raise ContextOverflow(
                f"MRCR {sample.subset} sample {sample.sample_id} at {length}: {len(token_ids):,} prompt tokens + "
                f"{room:,} for the answer > {limit:,}"
                + ("." if sample.messages else ", without any distractor; ask for a longer length.")
            )
        return Prompt(sample=sample, length=length, token_ids=token_ids, max_new_tokens=room, fact_positions=offsets)

    def _answer_room(self, sample: Sample, encoder: PromptEncoder) -> int:
        """Return the answer's tokens, and a margin for its end and for another way to split it into tokens.

        What is asked of one conversation gets the room of the longest answer, so that the conversation is the same.
        """
        targets = [target for _, target in sample.asked_together] or [sample.target]
        longest = max(len(encoder.encode_with_starts(target)[0]) for target in targets)
        return longest + int(self.card.settings["answer_margin"])

    def _as_turns(
        self, sample: Sample, length: str, budget: int, encoder: PromptEncoder
    ) -> tuple[TokenIds, tuple[int, ...]]:
        """Return the ids of a generated conversation, and the offsets of its needles."""
        if encoder.identity not in self._encoders:
            self._encoders[encoder.identity] = ConversationEncoder(encoder)
        conversation = self._encoders[encoder.identity]
        turns, token_ids = self._fill(sample, budget, conversation)
        cell = (encoder.identity, sample.subset, length)
        if cell not in self._checked:
            conversation.check(turns, sample.question)
            self._checked.add(cell)
        needles = [i for i, turn in enumerate(turns) if turn.reply in sample.facts]
        return token_ids, conversation.reply_offsets(turns, sample.question, needles)

    def _fill(self, sample: Sample, budget: int, conversation: ConversationEncoder) -> tuple[list[Turn], TokenIds]:
        """Return the fullest conversation of at most ``budget`` tokens, or the bare needles, and its ids.

        Turns are chosen by their own tokens. Where these do not add up to the prompt's (a reply is cut between words, a
        conversation can only be tokenized whole), the difference goes into the next choice.
        """
        questions = [question for question, _ in sample.asked_together] or [sample.question]
        bare = self._interleave(sample, [])
        question = max(questions, key=lambda one: len(conversation.encode(bare, one)))  # where it fits, all fit
        best, ids = bare, conversation.encode(bare, question)
        room = budget - len(ids) - _AIM
        for _ in range(0 if self.options.control else _MAX_TRIES):
            if budget - len(ids) <= SLACK:
                break
            turns = self._interleave(sample, self._choose(sample, room, conversation))
            new_ids = conversation.encode(turns, question)
            if len(ids) < len(new_ids) <= budget:
                best, ids = turns, new_ids
            room += budget - len(new_ids) - _AIM
        return best, ids if question == sample.question else conversation.encode(best, sample.question)

    def _choose(self, sample: Sample, room: int, conversation: ConversationEncoder) -> list[Turn]:
        """Return whole distractors from the start of the sample's stream, then one that is cut to what is left."""
        request = self._request("short essay", "windmills")
        shortest = len(conversation.ids(Turn(request, request)))
        chosen: list[Turn] = []
        for form, topic, variant in self._distractors(sample):
            turn = self._pooled(form, topic, variant)
            size = len(conversation.ids(turn))
            if room - size < shortest:  # a short turn must fit behind it
                break
            chosen.append(turn)
            room -= size
        room -= len(conversation.ids(Turn(turn.request, "")))
        if room > 1:
            text = write_text(np.random.default_rng([sample.seed, _FILLER]), form, topic, 8 * room)
            if reply := cut_between_words(text, room, conversation.encoder):
                chosen.append(Turn(turn.request, reply))
        return chosen

    def distractor_texts(self, sample: Sample) -> Iterator[str]:
        """Yield what a generated conversation may hold besides its needles, without end: longer prompts take more."""
        for form, topic, variant in self._distractors(sample):
            yield self._pooled(form, topic, variant).reply

    def _distractors(self, sample: Sample) -> Iterator[tuple[str, str, int]]:
        """Yield (format, topic, how often this pair came before) without end, never the needles' own pair."""
        settings = self.card.settings
        form, topic = sample.metadata["format"], sample.metadata["topic"]
        other_forms, other_topics = [f for f in FORMATS if f != form], [t for t in TOPICS if t != topic]
        rng = np.random.default_rng([sample.seed, _DISTRACTORS])
        used: Counter[tuple[str, str]] = Counter()
        while True:
            for kind, form_at, topic_at in rng.random((64, 3)).tolist():
                same_topic = kind < settings["share_topic"]
                same_form = not same_topic and kind < settings["share_topic"] + settings["share_format"]
                pair = (
                    form if same_form else other_forms[int(form_at * len(other_forms))],
                    topic if same_topic else other_topics[int(topic_at * len(other_topics))],
                )
                yield (*pair, used[pair])
                used[pair] += 1

    def _pooled(self, form: str, topic: str, variant: int) -> Turn:
        """Return a distractor; the samples of a run share them, so that each is written and counted once."""
        key = (form, topic, variant)
        if key not in self._pool:
            rng = np.random.default_rng([self.seed, _POOL, FORMATS.index(form), TOPICS.index(topic), variant])
            shortest, longest = self.card.settings["distractor_chars"]
            num_chars = int(shortest + (longest - shortest) * rng.random() ** 2)
            self._pool[key] = Turn(self._request(form, topic), write_text(rng, form, topic, num_chars))
        return self._pool[key]

    def _request(self, form: str, topic: str) -> str:
        return str(self.card.settings["request"].format(format=form, topic=topic))

    def _interleave(self, sample: Sample, distractors: Sequence[Turn]) -> list[Turn]:
        """Return the turns with the needles among them, each as deep as its share of the distractors' text says."""
        depths = np.sort(np.random.default_rng([sample.seed, _DEPTHS]).random(len(sample.facts)))
        ends = np.cumsum([0] + [len(turn.request) + len(turn.reply) for turn in distractors])
        shares = ends / max(ends[-1], 1)
        gaps = np.searchsorted((shares[1:] + shares[:-1]) / 2, depths)  # the nearest gap between two distractors
        request = self._request(sample.metadata["format"], sample.metadata["topic"])
        turns = list(distractors)
        for gap, needle in reversed(list(zip(gaps.tolist(), sample.facts, strict=True))):
            turns.insert(gap, Turn(request, needle))
        return turns


def open_benchmark(
    card: TaskCard,
    options: MRCROptions,
    *,
    seed: int,
    part: Part,
    count_tokens: TokenCounter | None,
) -> MRCR:
    """Return the benchmark; see ``benchmarks.open_benchmark``. Generated rows have no parts: the seed parts them."""
    return MRCR(card, options, seed=seed, part=part, count_tokens=count_tokens)


def _as_given(sample: Sample, encoder: PromptEncoder) -> tuple[TokenIds, tuple[int, ...]]:
    """Return the ids of a published conversation, or of the bare question, and the offsets of the needles."""
    messages: Sequence[Message] = sample.messages or [{"role": "user", "content": sample.question}]
    text = encoder.render(messages)
    replies: list[int] = []
    for index, message in enumerate(messages):
        if len(replies) < len(sample.facts) and message["content"] == sample.facts[len(replies)]:
            replies.append(index)
    return encoder.encode_prompt(text), message_offsets(messages, text, replies, encoder)
