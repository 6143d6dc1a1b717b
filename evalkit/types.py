"""The words of the project: each of these names is defined here and nowhere else.

    Sample -> Prompt -> Completion -> Prediction -> Score

A *length* is a label such as ``"16k"`` (see ``lengths.py``); a *position* is a token offset inside a prompt; token
counts are in the checkpoint's own tokens.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

TokenIds: TypeAlias = NDArray[np.int32]
FinishReason: TypeAlias = Literal["stop", "length", "unfinished_reasoning", "error"]
"""Why an answer ended. "unfinished_reasoning": inside of what the model thought aloud, so that it is no answer."""


class Message(TypedDict):
    """One turn of a conversation, in the form that every chat template takes."""

    role: str
    content: str


TokenCounter: TypeAlias = Callable[[str | Sequence[Message]], int]
"""Counts a bare text, or a conversation as a checkpoint's template renders it."""


class Key(NamedTuple):
    """What names one prediction inside a run folder."""

    task: str
    subset: str
    length: str
    sample_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question, independent of any tokenizer and, where the data are generated, of any length."""

    task: str
    subset: str
    sample_id: str
    """Names the question within its subset; the same at every length and for every arm, so that results pair."""
    story_id: str
    """The cluster: questions that share a story or a conversation share it."""
    context_id: str = ""
    """Names the context among those of its subset, where it is asked several questions, whose prompts then differ
    behind it alone; "" where it is asked one."""
    asked_together: tuple[tuple[str, str], ...] = ()
    """Question and target of each that is asked of this context, this one among them; empty where it is asked one."""
    question: str
    target: str
    facts: tuple[str, ...] = ()
    """The statements that the answer follows from, in story order."""
    supporting: tuple[int, ...] = ()
    """Indices into ``facts`` of those that the answer needs."""
    context: str | None = None
    """The whole text in front of the question, where a published row brings it ready made."""
    messages: tuple[Message, ...] = ()
    """The conversation, for tasks that are one."""
    seed: int = 0
    """Decides everything that is drawn for this sample: background, placement, distractors."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Small JSON facts that scoring or the report needs; copied to the prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A sample made for one checkpoint at one length. Backends see nothing but ``token_ids``."""

    sample: Sample
    length: str
    token_ids: TokenIds
    """Shape (num_tokens,), special tokens and chat template included."""
    max_new_tokens: int
    fact_positions: tuple[int, ...] = ()
    """Token offset of each fact or needle, in story order; empty where the text came ready made."""
    candidates: Mapping[str, TokenIds] = field(default_factory=dict)
    """Texts whose log-probability as the beginning of the answer is asked too, with their ids behind the prompt: the
    right answer first, then the wrong labels. Each leaves the answer's room a token."""
    repeat: int = 1
    """Which time it is asked: 2 and more are repeats, whose answers show the noise and are no scores."""

    @property
    def key(self) -> Key:
        """Its name inside a run folder."""
        return Key(self.sample.task, self.sample.subset, self.length, self.sample.sample_id)

    @property
    def sha256(self) -> str:
        """Hash of the ids as little-endian int32: proves that a rebuilt prompt is the one that was asked."""
        return hashlib.sha256(np.ascontiguousarray(self.token_ids, dtype="<i4").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a model answered to one prompt, or why it did not."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    seconds: float = 0.0
    """From handing the prompt to the engine to its last token; requests overlap, so these do not add up."""
    num_cached_tokens: int = 0
    """Prompt tokens that the engine's prefix cache served."""
    logprobs: tuple[float, ...] = ()
    """Natural-log probability of each of ``token_ids``, where the backend was asked for it; else empty."""
    candidate_logprobs: tuple[float, ...] = ()
    """Natural-log probability of each of the prompt's candidates, the sum over its tokens, each behind the prompt and
    the candidate's own tokens before it."""
    error: str | None = None
    """Set exactly when ``finish_reason`` is "error"."""
    retryable: bool = False
    """The error may be gone on another try (a server that was busy, not a prompt that cannot be served)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLogprob:
    """How probable the right answer was as the beginning of the reply, whatever was replied. Natural logarithms."""

    target: float
    """Of the right answer: the sum over its tokens."""
    tokens: int
    """How many those are."""
    wrong: Mapping[str, float] = field(default_factory=dict)
    """Of each wrong label, where the task has a closed set of them; else empty."""

    @property
    def margin(self) -> float | None:
        """How far the right answer is above the best wrong label; None without labels."""
        return self.target - max(self.wrong.values()) if self.wrong else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One flat line of ``predictions.jsonl``: what was asked and answered. Never edited."""

    task: str
    subset: str
    length: str
    sample_id: str
    story_id: str
    question: str
    target: str
    prompt_tokens: int
    prompt_sha256: str
    max_new_tokens: int
    fact_positions: tuple[int, ...]
    output: str | None
    """None exactly when ``error`` is set: a failure is never an answer."""
    output_tokens: int
    finish_reason: FinishReason
    cached_tokens: int = 0
    seconds: float = 0.0
    attempt: int = 1
    error: str | None = None
    """First word names the kind: ``context_overflow: ...``, ``engine: ...``."""
    retryable: bool = False
    """The error is worth another attempt when the command is repeated."""
    answer_logprob: AnswerLogprob | None = None
    """Where it was asked for (``--answer-logprob``) and fits into the answer's room."""
    repeat: int = 1
    """Which time the sample was asked; see ``Prompt``."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Its name inside a run folder."""
        return Key(self.task, self.subset, self.length, self.sample_id)


def prediction_of(sample: Sample, length: str, **answered: Any) -> Prediction:
    """Return the prediction of a sample at a length.

    Args:
        sample: what was asked, or would have been.
        length: the label.
        answered: the other fields. Those of the prompt, where they are left out, are of one that was never made.
    """
    never_made = {
        "prompt_tokens": 0,
        "prompt_sha256": "",
        "max_new_tokens": 0,
        "fact_positions": (),
        "output_tokens": 0,
    }
    return Prediction(
        task=sample.task,
        subset=sample.subset,
        length=length,
        sample_id=sample.sample_id,
        story_id=sample.story_id,
        question=sample.question,
        target=sample.target,
        **{**never_made, **answered},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The value of one prediction under one named scorer. Derived; can be computed again without a model."""

    key: Key
    scorer: str
    value: float | None
    """From 0 to 1; None where the sample is unscored (it failed, or the scorer does not apply to it)."""
    detail: str = ""


class PromptEncoder(Protocol):
    """Text to token ids for one checkpoint. ``models/encoder.py`` implements it; benchmarks only use it."""

    @property
    def identity(self) -> str:
        """Changes whenever the same text could give other ids: tokenizer files, chat template, system prompt."""
        ...

    def render(self, messages: Sequence[Message]) -> str:
        """Return the full prompt text, chat template, special tokens and generation prompt included."""
        ...

    def encode_prompt(self, text: str) -> TokenIds:
        """Return the ids of a rendered prompt: what the checkpoint's tokenizer gives, never with a double BOS."""
        ...

    def encode_after(self, text: str, before: str = ".") -> TokenIds:
        """Return the ids that ``text`` has when it stands right after ``before``, without special tokens."""
        ...

    def encode_with_starts(self, text: str) -> tuple[TokenIds, NDArray[np.int64]]:
        """Return ids without special tokens, and the character offset at which each token starts, shape (num_tokens,).

        A leading space belongs to its token, whatever the tokenizer's own offsets say.
        """
        ...

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of the ids, special tokens included."""
        ...


class Benchmark(Protocol):
    """What is asked (``samples``, ``prompt``) and what decides it (``recipe``). Scoring lives beside it, per task."""

    task: str

    @property
    def generated(self) -> bool:
        """Whether a sample is the same question at every length and its prompt made to fill the length.

        Otherwise rows are asked as they were published: each length has rows of its own, as long as they are.
        """
        ...

    def samples(self, subset: str, length: str, count: int) -> Iterator[Sample]:
        """Yield ``count`` samples (fewer if a published set has fewer); the first 50 of 100 are those of 50."""
        ...

    def prompt(self, sample: Sample, length: str, encoder: PromptEncoder, window: int) -> Prompt:
        """Build the prompt.

        Generated data fill the length: prompt tokens + max_new_tokens <= the length's tokens (<= window). Published
        rows are as long as they are: prompt tokens + max_new_tokens <= window, the positions that are served.

        Raises:
            ContextOverflow: the sample cannot fit, with the arithmetic in the message.
        """
        ...

    def recipe(self) -> dict[str, Any]:
        """Return flat JSON values that, with the encoder's identity, decide every prompt; part of the fingerprint."""
        ...
