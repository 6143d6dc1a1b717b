"""What a server's replies may look like: each field is checked for type and range before anything is made of it.

A server is a stranger. What it says is recorded for good and scored later, so a reply that does not fit is no reply.
"""

from dataclasses import dataclass
from typing import Annotated, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evalkit.models.backends.server_connection import Trouble

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""Of tokens; also the range of their ids, as records keep them."""
Name = Annotated[str, Field(min_length=1, max_length=500)]
LogProbability = Annotated[float, Field(le=1e-3)]
"""Natural logarithm; a rounding error above 0 is forgiven."""


_T = TypeVar("_T")
_Many: TypeAlias = Annotated[tuple[_T, ...], Field(fail_fast=True)]
"""Of many wrong ones the first is enough: a record of each would take gigabytes."""


class _Reply(BaseModel):
    """Fields that we do not know are left alone: every server adds some."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True, extra="ignore")


class ServedModel(_Reply):
    """One entry of /models."""

    id: Name
    owned_by: Name | None = None
    max_model_len: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """Tokens that it takes, answer included. Only vLLM's and SGLang's servers say."""
    root: Name | None = None
    """What the model was loaded from."""
    parent: Name | None = None
    """Of a LoRA adapter: the model that it is put on. Only vLLM's and SGLang's servers say."""


class _Models(_Reply):
    data: _Many[ServedModel]


class _Version(_Reply):
    version: Name


class _Tokens(_Reply):
    tokens: _Many[Count]


class _Cached(_Reply):
    cached_tokens: Count | None = None


class _Usage(_Reply):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _Cached | None = None


class _TokenLogprobs(_Reply):
    token_logprobs: _Many[LogProbability] | None = None


class _Choice(_Reply):
    text: str
    finish_reason: str | None
    token_ids: _Many[Count] | None = None
    logprobs: _TokenLogprobs | None = None


class _Completion(_Reply):
    """Of /completions."""

    choices: Annotated[_Many[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


class _Message(_Reply):
    content: str | None
    reasoning: str | None = None
    """vLLM's name since 0.12."""
    reasoning_content: str | None = None
    """DeepSeek's, SGLang's and llama.cpp's name for it."""


class _Logprob(_Reply):
    logprob: LogProbability


class _ContentLogprobs(_Reply):
    content: _Many[_Logprob] | None = None


class _ChatChoice(_Reply):
    message: _Message
    finish_reason: str | None
    logprobs: _ContentLogprobs | None = None


class _ChatCompletion(_Reply):
    """Of /chat/completions."""

    choices: Annotated[_Many[_ChatChoice], Field(min_length=1)]
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a reply of either kind says."""

    text: str | None
    """None where a chat has none."""
    reasoning: str = ""
    """What a server tells apart from the text; only in a chat."""
    finish_reason: str | None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    num_read: int | None
    """Tokens of the prompt, as the server counts; None where it does not say."""
    num_written: int | None
    num_cached: int


def read_completion(body: bytes) -> Answer:
    """Return what a reply of /completions says.

    Raises:
        Trouble: it is none.
    """
    reply = _read(_Completion, body)
    choice, usage = reply.choices[0], reply.usage or _Usage()
    ids = choice.token_ids or ()
    return Answer(
        text=choice.text,
        finish_reason=choice.finish_reason,
        token_ids=ids,
        logprobs=(choice.logprobs and choice.logprobs.token_logprobs) or (),
        num_read=usage.prompt_tokens,
        num_written=len(ids) or usage.completion_tokens,
        num_cached=_cached(usage),
    )


def read_chat(body: bytes) -> Answer:
    """Return what a reply of /chat/completions says.

    Raises:
        Trouble: it is none.
    """
    reply = _read(_ChatCompletion, body)
    choice, usage = reply.choices[0], reply.usage or _Usage()
    given = (choice.logprobs and choice.logprobs.content) or ()
    return Answer(
        text=choice.message.content,
        reasoning=choice.message.reasoning or choice.message.reasoning_content or "",
        finish_reason=choice.finish_reason,
        logprobs=tuple(token.logprob for token in given),
        num_read=usage.prompt_tokens,
        num_written=usage.completion_tokens,
        num_cached=_cached(usage),
    )


def read_models(body: bytes) -> tuple[ServedModel, ...]:
    """Return the entries of /models.

    Raises:
        Trouble: it is no list of models.
    """
    return _read(_Models, body).data


def read_version(body: bytes) -> str:
    """Return what vLLM's /version says.

    Raises:
        Trouble: it is none.
    """
    return _read(_Version, body).version


def read_tokens(body: bytes) -> tuple[int, ...]:
    """Return the ids that vLLM's /tokenize gives.

    Raises:
        Trouble: it gives none.
    """
    return _read(_Tokens, body).tokens


_R = TypeVar("_R", bound=_Reply)


def _read(kind: type[_R], body: bytes) -> _R:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place, said = ".".join(map(str, first["loc"])), first["msg"][:1].lower() + first["msg"][1:]
        raise Trouble(f"an answer that cannot be used ({place + ': ' if place else ''}{said})") from error


def _cached(usage: _Usage) -> int:
    return (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0
