"""From samples to predictions: prompts are built, an engine answers them, and each answer says what it answers.

``OneEngine`` does so in this process, ``runs/replicas.py`` with engines on many devices; ``runs/run.py`` records what
either tells, and a replica does on its node what ``OneEngine`` does here.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

from evalkit.benchmarks.reasoning import is_unfinished
from evalkit.errors import BadInput, ContextOverflow
from evalkit.models.backends import Backend
from evalkit.models.encoder import Thinking
from evalkit.runs.plan import Plan, RopeGroup
from evalkit.types import AnswerLogprob, Completion, Key, Prediction, Prompt, Sample, prediction_of

OVERFLOW = "context_overflow"
MAX_FACT_CHARS = 4000
"""Facts longer than this together (MRCR's needles) are not repeated in every record; ``evalkit show`` rebuilds them."""

Name: TypeAlias = tuple[Key, int]
"""What names one answer that is wanted: a key, and which time it is asked."""


class Ask(NamedTuple):
    """What is asked."""

    sample: Sample
    length: str
    """The label."""
    repeat: int = 1
    """Which time; see ``Prompt.repeat``."""

    @property
    def name(self) -> Name:
        """Tells it apart from all others of a run."""
        return key_of(self.sample, self.length), self.repeat


class Asks(Sized, Iterable[Ask], Protocol):
    """Several, counted before they are made."""


@dataclass(frozen=True)
class Loading:
    """Engines are being started; nothing is answered meanwhile."""


@dataclass(frozen=True)
class Served:
    """An engine serves a rope rule."""

    group: RopeGroup
    read_back: Any
    """See ``Backend.serve``."""
    identity: dict[str, Any]
    """See ``Backend.identity``."""
    settings: dict[str, Any]
    """See ``Backend.settings``."""


Event: TypeAlias = Loading | Served | Prediction


class Engines(Protocol):
    """Whoever answers the samples of a plan. Nothing is loaded before the first answer is asked for."""

    @property
    def warnings(self) -> Sequence[str]:
        """What a person should know before trusting the answers."""
        ...

    def answers(self, todo: Sequence[tuple[RopeGroup, Asks]]) -> Iterator[Event]:
        """Ask the samples of each rope rule, longest first, and tell what happens.

        Yields:
            ``Served`` before the first prediction under a rule, and each prediction as soon as it is there, in any
            order, all with attempt 1. Of a sample that cannot be made a prompt it is an error, without a prompt.

        Raises:
            BadInput, EngineError: see ``Backend.serve`` and ``Backend.generate``.
        """
        ...

    def close(self) -> None:
        """Free the devices; a second time does nothing."""
        ...


class OneEngine:
    """The backend of a plan, in this process. Implements ``Engines``."""

    def __init__(self, plan: Plan, sent: Callable[[], None]) -> None:
        """Open it; see ``Plan.open_backend``.

        Args:
            plan: of the run.
            sent: called for each prompt that the backend takes.

        Raises:
            BadInput: it can be seen to fail.
        """
        self._plan, self._backend, self._sent = plan, plan.open_backend(), sent

    @property
    def warnings(self) -> Sequence[str]:
        """Those of the backend."""
        return self._backend.warnings

    def answers(self, todo: Sequence[tuple[RopeGroup, Asks]]) -> Iterator[Event]:
        """Serve one rule after the other; see ``Engines``."""
        for group, asks in todo:
            if asks:
                self._plan.positions(group)  # of rows that have to be built for it, before anything is loaded
                yield Loading()
                yield serve(self._plan, self._backend, group)
                yield from predictions(self._plan, self._backend, iter(asks), self._sent)

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()


def serve(plan: Plan, backend: Backend, group: RopeGroup) -> Served:
    """Serve a rule; see ``Backend.serve``."""
    read_back = backend.serve(group.rope, group.lengths, plan.positions(group))
    return Served(group, read_back, backend.identity(), backend.settings())


def predictions(
    plan: Plan, backend: Backend, asks: Iterator[Ask], sent: Callable[[], None] = lambda: None
) -> Iterator[Prediction]:
    """Ask asks under the rule that is served, and yield each prediction as soon as it is there.

    Asks may come late: when ``asks`` runs out while prompts are in flight, it is asked for its next once more after
    the next answer. ``sent`` is called for each prompt that the backend takes.
    """
    prompts = _Prompts(plan, asks, sent)
    for prompt, completion in backend.generate(prompts):
        yield from prompts.unasked()
        yield _prediction(prompt, _with_status(completion, plan.encoder.thinking))
    yield from prompts.unasked()


def key_of(sample: Sample, length: str) -> Key:
    """Return what names the prediction of a sample at a length."""
    return Key(sample.task, sample.subset, length, sample.sample_id)


def without_answer(ask: Ask, error: str, *, retryable: bool = False) -> Prediction:
    """Return the prediction of what no engine has answered, and never will or (retryable) may another time."""
    return prediction_of(
        ask.sample,
        ask.length,
        output=None,
        finish_reason="error",
        error=error,
        retryable=retryable,
        repeat=ask.repeat,
        metadata=_metadata(ask.sample),
    )


class _Prompts(Iterator[Prompt]):
    """Builds the prompts of asks when they are asked for, in whatever thread that is done.

    A class, for a generator that has ended stays at its end.
    """

    def __init__(self, plan: Plan, asks: Iterator[Ask], sent: Callable[[], None]) -> None:
        self._plan, self._asks, self._sent = plan, asks, sent
        self._unasked = deque[Prediction]()

    def __next__(self) -> Prompt:
        while True:
            ask = next(self._asks)
            try:
                prompt = self._plan.build(ask.sample, ask.length)
            except (ContextOverflow, BadInput) as error:  # recorded, never truncated
                kind = OVERFLOW if isinstance(error, ContextOverflow) else "prompt"
                self._unasked.append(without_answer(ask, f"{kind}: {error}"))
                continue
            self._sent()
            if ask.repeat > 1:  # it is for its answer alone
                return replace(prompt, repeat=ask.repeat, candidates={})
            return prompt

    def unasked(self) -> Iterator[Prediction]:
        """Yield what could not be a prompt since the last call."""
        while self._unasked:
            yield self._unasked.popleft()


def _with_status(completion: Completion, thinking: Thinking) -> Completion:
    """Return the completion with unfinished reasoning named so.

    Where the prompt itself opened the reasoning, an answer that is cut off without closing it is unfinished; one that
    ends by itself is an answer: models are trained to answer such prompts at once.
    """
    opened = thinking == "open" and completion.finish_reason == "length"
    if completion.error is None and is_unfinished(completion.text, opened=opened):
        return replace(completion, finish_reason="unfinished_reasoning")
    return completion


def _prediction(prompt: Prompt, completion: Completion) -> Prediction:
    return prediction_of(
        prompt.sample,
        prompt.length,
        prompt_tokens=len(prompt.token_ids),
        prompt_sha256=prompt.sha256,
        max_new_tokens=prompt.max_new_tokens,
        fact_positions=prompt.fact_positions,
        output=None if completion.error else completion.text,
        output_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
        cached_tokens=completion.num_cached_tokens,
        seconds=round(completion.seconds, 4),
        error=completion.error,
        retryable=completion.retryable,
        answer_logprob=_answer_logprob(prompt, completion),
        repeat=prompt.repeat,
        metadata=_metadata(prompt.sample),
    )


def _answer_logprob(prompt: Prompt, completion: Completion) -> AnswerLogprob | None:
    if completion.error is not None or not prompt.candidates:
        return None
    ids = next(iter(prompt.candidates.values()))
    target, *wrong = (round(value, 6) for value in completion.candidate_logprobs)
    return AnswerLogprob(
        target=target, tokens=len(ids), wrong=dict(zip(list(prompt.candidates)[1:], wrong, strict=True))
    )


def _metadata(sample: Sample) -> dict[str, Any]:
    """Return the sample's own metadata, and its facts where they are short statements, for a report to show."""
    if not sample.facts or sum(map(len, sample.facts)) > MAX_FACT_CHARS:
        return dict(sample.metadata)
    return {"facts": list(sample.facts), "supporting": list(sample.supporting), **sample.metadata}
