"""The server backend: any OpenAI-compatible server, asked with token ids over /v1/completions.

A server is a stranger: it is asked what it serves before any work, what passes (429, 5xx, resets, half answers) is
tried again, and what cannot be checked from outside (its weights, its rope rule) is said to be unchecked.
"""

import asyncio
import itertools
import json
import os
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from evalkit.errors import BadInput, EngineError
from evalkit.lengths import format_length, parse_length
from evalkit.models.backends.flight import Flight, LoopThread, failed
from evalkit.models.backends.options import BackendOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import ServedRope
from evalkit.models.tokenizer import decode_answer, stop_token_ids
from evalkit.options import option
from evalkit.types import Completion, Prompt

_T = TypeVar("_T")
KEY_VARIABLES = ("EVALKIT_API_KEY", "OPENAI_API_KEY")
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
_PASSING_STATUS = (408, 409, 425, 429)
_SPEAK_VLLM = ("vllm", "sglang")  # servers that take stop_token_ids and repetition_penalty
_PROBE = "Mary went to the kitchen. Where is Mary? 12,345"


@dataclass(frozen=True, kw_only=True)
class ServerOptions(BackendOptions):
    """Which servers, and how they are asked."""

    base_url: tuple[str, ...] = option(
        "--base-url", "Its address, or LENGTH=URL for one server per length.", repeat=True, secret=True, default=()
    )
    """Such as "http://localhost:8000/v1"."""
    model: str | None = option("--served-model", "The model's name there, where it serves several.", default=None)
    chat: bool = option("--server-chat", "It takes no ids; send text to its chat API.", default=False)
    """Send each prompt's text as one user message to /v1/chat/completions, for servers that take no ids. The server
    then applies its own template, so the prompt must be built without one."""
    concurrency: int = option("--concurrency", "Requests in flight [8].", default=8)
    timeout_seconds: float = option("--timeout", "Seconds per attempt [600].", default=600.0)
    max_retries: int = option("--max-retries", "Further attempts after trouble that may pass [5].", default=5)
    """They wait 0.5, 1, 2, 4, 8 ... 30 seconds, or as long as the server asks for."""

    def __post_init__(self) -> None:
        if not self.base_url:
            raise BadInput("The server backend needs an address: --base-url http://localhost:8000/v1.")
        for address in self._by_length.values():
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise BadInput(f"{address!r} is not a server's address; give one like http://localhost:8000/v1.")
        if self.concurrency < 1:
            raise BadInput(f"concurrency is {self.concurrency}; it must be at least 1.")
        if not self.timeout_seconds > 0:
            raise BadInput(f"timeout_seconds is {self.timeout_seconds}; it must be above 0.")
        if self.max_retries < 0:
            raise BadInput(f"max_retries is {self.max_retries}; it must be 0 or more.")

    @property
    def decisive(self) -> dict[str, Any]:
        """Which model, and in which form it is asked."""
        given = {"served model": self.model, "server chat": self.chat}
        return {name: value for name, value in given.items() if value}

    @property
    def _by_length(self) -> dict[str, str]:
        """Addresses by length; "" for a bare one, which serves all."""
        addresses: dict[str, str] = {}
        for entry in self.base_url:
            name, equals, url = entry.partition("=")
            labelled = bool(equals) and "/" not in name
            addresses[format_length(parse_length(name)) if labelled else ""] = url if labelled else entry
        return addresses

    def address_of(self, lengths: Sequence[str], num_groups: int) -> "ServerAddress":
        """Return the server of lengths that share a rope rule.

        Args:
            lengths: their labels.
            num_groups: how many rope rules the run has.

        Raises:
            BadInput: there is none, or more than one.
        """
        given = self._by_length
        if num_groups > 1 and "" in given:
            raise BadInput(
                f"These lengths are served under {num_groups} rope rules and a server has one; start one server for "
                "each, and name them like --base-url 16k=http://localhost:8001/v1 --base-url 32k=..."
            )
        urls = {given.get(length, given.get("", "")) for length in lengths}
        if len(urls) != 1 or "" in urls:
            raise BadInput(
                f"The lengths {', '.join(lengths)} share a rope rule and need one server; name it with --base-url URL, "
                "or once for each length with --base-url LENGTH=URL."
            )
        return ServerAddress(urls.pop())


class ServerAddress(NamedTuple):
    """One server's address as it was given."""

    url: str

    @property
    def api_root(self) -> str:
        """The address that /models and /completions are below; "/v1" where none was given."""
        address = self.url.rstrip("/")
        return address if urlsplit(address).path else f"{address}/v1"

    @property
    def shown(self) -> str:
        """The address without credentials, for records and messages."""
        parts = urlsplit(self.api_root)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


OPTIONS = ServerOptions


def open_backend(
    checkpoint: Checkpoint,
    encoder: Encoder,
    options: ServerOptions,
    *,
    groups: Sequence[Sequence[str]],
    logprobs: bool,
) -> "ServerBackend":
    """Return the backend with no server asked; see ``backends.open_backend``."""
    return ServerBackend(checkpoint, encoder, options, groups=groups, logprobs=logprobs)


class ServerBackend:
    """Greedy answers from a server. Implements ``types.Backend``.

    A server that is gone is noticed once the retries of a prompt are used up (15 seconds by default), one that is there
    and silent after ``timeout_seconds`` more than those take (70 minutes by default); either ends the run with an
    EngineError. A prompt that fails on a server that is still there becomes a completion with an error.

    The API key is read from EVALKIT_API_KEY or OPENAI_API_KEY when the backend is opened, and shown nowhere.
    """

    name = "server"

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: Encoder,
        options: ServerOptions,
        *,
        groups: Sequence[Sequence[str]] = ((),),
        logprobs: bool = False,
    ) -> None:
        """Take what is asked; ``serve`` finds out what the server serves.

        Args:
            checkpoint: a local copy of what the server serves; its tokenizer makes the prompts.
            encoder: that tokenizer.
            options: which servers, and how they are asked.
            groups: the lengths that are served together, one rope rule each.
            logprobs: fill ``Completion.logprobs``.

        Raises:
            BadInput: lengths have no server, or prompts would get two chat templates.
        """
        if options.chat and encoder.chat:
            raise BadInput(
                "In chat mode the server applies its own chat template, and these prompts carry one already; build "
                "them without (--no-chat-template)."
            )
        self.options, self.logprobs = options, logprobs
        self._addresses = {tuple(lengths): options.address_of(lengths, len(groups)) for lengths in groups if lengths}
        self._key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "none")
        self._tokenizer = encoder.tokenizer
        self._stops = stop_token_ids(checkpoint.path, encoder.tokenizer)
        self._loop: LoopThread | None = None
        self.warnings: list[str] = []
        """What a person should know before trusting the answers."""

    def serve(self, rope: ServedRope, lengths: Sequence[str], positions: int) -> str:
        """Find out what the server of these lengths serves, and whether that suffices.

        Raises:
            BadInput: the server lacks the model, its window is too small, it takes no ids, or it wants another key.
            EngineError: there is no server, or something else answers there.
        """
        from openai import AsyncOpenAI

        self.close()
        self._address = self._addresses[tuple(lengths)]
        self.max_model_len = positions
        self._loop = LoopThread("evalkit-server")
        self._client = AsyncOpenAI(
            base_url=self._address.api_root, api_key=self._key, timeout=self.options.timeout_seconds, max_retries=0
        )
        self._warn("Which weights and which rope rule a server serves cannot be checked from outside.")
        try:
            self._served = self._wait_for(self._find_model())
            self._speaks_vllm = self._served.get("owned_by") in _SPEAK_VLLM
            self.version = self._wait_for(self._find_version())
            self._check_window()
            self._wait_for(self._check_tokenizer())
            self._wait_for(self._probe())
        except BaseException:
            self.close()
            raise
        return "a server's rope rule cannot be read"

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        """Yield each prompt with its completion as soon as it is finished; see ``types.Backend``.

        Raises:
            EngineError: the server is gone.
        """
        waiting, flight, loop = iter(prompts), Flight(), self._loop
        assert loop is not None, "serve comes first"
        try:
            while True:
                prompt = next(waiting, None) if len(flight) < self.options.concurrency else None
                if prompt is not None:
                    flight.add(prompt, loop.submit(self._answer(prompt)))
                elif not flight:
                    return
                for future, seconds in flight.landed(wait=prompt is None):
                    completion = replace(future.result(), seconds=seconds)
                    yield flight.remove(future), completion
        finally:
            flight.cancel()

    def identity(self) -> dict[str, Any]:
        """Return what can change an answer, as far as a server tells; see ``backends.Backend``."""
        return {
            "name": self.name,
            "model": self._served["id"],
            "software": self._served.get("owned_by"),
            "versions": {"server": self.version},
            "prompt_form": "one user message" if self.options.chat else "ids",
            "stop_ids": list(self._stops),
        }

    def settings(self) -> dict[str, Any]:
        """Return what cannot change an answer; see ``backends.Backend``."""
        return {
            "base_url": self._address.shown,
            "max_model_len": self._served.get("max_model_len"),
            "root": self._served.get("root"),
            "concurrency": self.options.concurrency,
            "timeout_seconds": self.options.timeout_seconds,
            "max_retries": self.options.max_retries,
        }

    def close(self) -> None:
        """Close the connections and end the thread."""
        if self._loop is not None:
            self._wait_for(self._client.close())
            self._loop.close()
            self._loop = None

    def _wait_for(self, work: Coroutine[Any, Any, _T]) -> _T:
        assert self._loop is not None, "serve comes first"
        return self._loop.submit(work).result()

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)

    # What is asked once, before any work.

    async def _find_model(self) -> dict[str, Any]:
        """Return the entry of the model that is asked."""
        where = self._address.shown
        reply = await self._get("/models")
        models = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(models, list) or not all(isinstance(model, dict) and "id" in model for model in models):
            raise EngineError(
                f"{where}/models does not answer with a list of models, so no OpenAI-compatible server is there; check "
                "the address (it usually ends in /v1)."
            )
        names = [str(model["id"]) for model in models]
        wanted = self.options.model
        if wanted is None and len(names) != 1:
            raise BadInput(f"{where} serves {_listed(names)}; name one of them with --served-model.")
        if wanted is not None and wanted not in names:
            raise BadInput(f"{where} does not serve {wanted!r}; it serves {_listed(names)}.")
        return dict(models[0 if wanted is None else names.index(wanted)])

    async def _find_version(self) -> str | None:
        reply = await self._beside("/version")
        return str(reply["version"]) if isinstance(reply, dict) and "version" in reply else None

    def _check_window(self) -> None:
        window = self._served.get("max_model_len")
        if window is None:
            self._warn("The server does not say how many tokens it takes, so answers may be cut short unseen.")
        elif int(window) < self.max_model_len:
            raise BadInput(
                f"{self._address.shown} serves {self._served['id']} with {int(window):,} tokens and the run needs "
                f"{self.max_model_len:,}; start the server with a larger --max-model-len, or ask for shorter lengths."
            )

    async def _check_tokenizer(self) -> None:
        """Warn where the server cuts a text into other tokens. Only vLLM's servers tell."""
        ours = self._tokenizer(_PROBE, add_special_tokens=False).input_ids
        request = {"model": self._served["id"], "prompt": _PROBE, "add_special_tokens": False}
        reply = await self._beside("/tokenize", request)
        theirs = reply.get("tokens") if isinstance(reply, dict) else None
        if theirs is not None and theirs != ours:
            self._warn(
                f"The server's tokenizer differs from the checkpoint's: it makes {len(theirs)} tokens of {_PROBE!r} "
                f"({theirs[:4]} ...), the checkpoint {len(ours)} ({ours[:4]} ...)."
            )

    async def _probe(self) -> None:
        """Ask for one token, so that a server that takes no such requests is known before any work."""
        ids = self._tokenizer(_PROBE, add_special_tokens=False).input_ids
        path, body = self._request(ids, 1)
        try:
            reply = await self._client.post(path, body=body, cast_to=object)
        except Exception as error:
            status = getattr(error, "status_code", None)
            if status in (400, 404, 405, 422, 501) and not self.options.chat:
                raise BadInput(
                    f"{self._address.shown} takes no token ids at {path} ({self._said(error)}); use --server-chat."
                ) from error
            raise self._unusable(error, path) from error
        counted = (reply.get("usage") or {}).get("prompt_tokens") if isinstance(reply, dict) else None
        if counted not in (None, len(ids)) and not self.options.chat:
            raise BadInput(
                f"{self._address.shown} counts {counted} tokens where {len(ids)} ids were sent: it adds some or "
                "tokenizes them again; use a server that takes ids as they are, or --server-chat."
            )

    async def _get(self, path: str) -> Any:
        try:
            return await self._client.get(path, cast_to=object)
        except Exception as error:
            raise self._unusable(error, path) from error

    async def _beside(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask an endpoint of vLLM's, which lies beside /v1; None where there is none."""
        from openai import OpenAIError

        address = self._address.api_root.removesuffix("/v1") + path
        try:
            if body is None:
                return await self._client.get(address, cast_to=object)
            return await self._client.post(address, body=body, cast_to=object)
        except (OpenAIError, json.JSONDecodeError):
            return None

    # What is asked for each prompt.

    def _request(self, ids: list[int], max_new_tokens: int) -> tuple[str, dict[str, Any]]:
        """Return path and body of a request: greedy, whatever defaults the server took from a checkpoint."""
        body: dict[str, Any] = {"model": self._served["id"], "temperature": 0, "max_tokens": max_new_tokens}
        if self._speaks_vllm:
            body |= {"repetition_penalty": 1.0, "stop_token_ids": list(self._stops)}
        if self.options.chat:
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
            body |= {"messages": [{"role": "user", "content": text}]} | ({"logprobs": True} if self.logprobs else {})
            return "/chat/completions", body
        if self._served.get("owned_by") == "vllm":
            body["return_token_ids"] = True
        return "/completions", body | {"prompt": ids} | ({"logprobs": 1} if self.logprobs else {})

    async def _answer(self, prompt: Prompt) -> Completion:
        """Ask until there is an answer, a refusal, or no attempt left."""
        asked, window = len(prompt.token_ids), self._served.get("max_model_len")
        if window is not None and asked + prompt.max_new_tokens > window:
            return failed(
                f"context_overflow: {asked} prompt tokens and {prompt.max_new_tokens} for the answer exceed the "
                f"{window} of the server"
            )
        path, body = self._request(prompt.token_ids.tolist(), prompt.max_new_tokens)
        for attempt in itertools.count():
            try:
                return await self._attempt(path, body, prompt.max_new_tokens)
            except _Passing as trouble:
                if attempt < self.options.max_retries:
                    backoff = min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS)
                    await asyncio.sleep(backoff if trouble.wait is None else trouble.wait)
                    continue
                if trouble.silent:
                    await self._get("/models")  # raises EngineError where nobody is there any more, or nobody answers
                return failed(f"server: {trouble} (attempt {attempt + 1}, the last)", retryable=True)
        raise AssertionError("unreachable")

    async def _attempt(self, path: str, body: Mapping[str, Any], max_new_tokens: int) -> Completion:
        import openai

        try:
            reply: Any = await self._client.post(path, body=body, cast_to=object)
        except openai.APITimeoutError as error:
            raise _Passing(f"no answer within {self.options.timeout_seconds:g} s", silent=True) from error
        except openai.APIConnectionError as error:
            raise _Passing(f"connection lost ({self._said(error)})", silent=True) from error
        except openai.APIStatusError as error:
            said = f"HTTP {error.status_code}: {self._said(error)}"
            if error.status_code in _PASSING_STATUS or error.status_code >= 500:
                raise _Passing(said, wait=_asked_to_wait(error.response.headers)) from error
            return failed(f"server: {said}", retryable=error.status_code in (401, 403))
        except json.JSONDecodeError as error:
            raise _Passing("half an answer") from error
        try:
            return self._completion(reply["choices"][0], reply.get("usage") or {}, max_new_tokens)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Passing(f"an answer without {error}" if isinstance(error, KeyError) else "half an answer") from error

    def _completion(self, choice: Mapping[str, Any], usage: Mapping[str, Any], max_new_tokens: int) -> Completion:
        """Read one choice. Its ids are the server's; where it gives none, those of its text."""
        reason = choice["finish_reason"]
        if reason not in ("stop", "length"):
            raise _Passing(f"finish_reason {reason!r}")
        text = _content(choice["message"]) if self.options.chat else choice["text"]
        token_ids: list[int] = choice.get("token_ids") or []
        if token_ids:
            if reason == "length" and len(token_ids) < max_new_tokens:
                return failed(f"server: the answer was cut at {len(token_ids)} of {max_new_tokens} tokens")
            if token_ids[-1] in self._stops:
                token_ids = token_ids[:-1]
            text = decode_answer(self._tokenizer, token_ids)
        else:
            token_ids = self._tokenizer(text, add_special_tokens=False).input_ids
        given = choice.get("logprobs") or {}
        logprobs = given.get("token_logprobs") or [token["logprob"] for token in given.get("content") or []]
        return Completion(
            text=text,
            token_ids=tuple(token_ids),
            finish_reason=reason,
            num_cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            logprobs=tuple(logprobs[: len(token_ids)]) if self.logprobs else (),
        )

    # What went wrong, in words.

    def _unusable(self, error: Exception, path: str) -> EngineError | BadInput:
        """Return the error for a server that does not answer a first question as it should."""
        import openai

        where = f"{self._address.shown}{path}"
        if isinstance(error, openai.APITimeoutError):
            return EngineError(
                f"{where} gave no answer within {self.options.timeout_seconds:g} s; is the server ready?"
            )
        if isinstance(error, openai.APIConnectionError):
            return EngineError(
                f"No server answers at {self._address.shown} ({self._said(error)}); start it, or check the address. "
                "The same command goes on from what is recorded."
            )
        if isinstance(error, openai.APIStatusError):
            if error.status_code in (401, 403):
                return BadInput(f"{where} wants another API key; set {' or '.join(KEY_VARIABLES)}.")
            return EngineError(f"{where} answers HTTP {error.status_code} ({self._said(error)}); check the address.")
        if isinstance(error, json.JSONDecodeError):
            return EngineError(f"{where} answers half a JSON document; check the address and the server's log.")
        raise error

    def _said(self, error: Exception) -> str:
        """Return the first line of what was said, never with the API key in it."""
        cause = error.__cause__
        said = str(getattr(error, "message", "") or error)
        body = getattr(error, "body", None)
        if isinstance(body, dict) and body.get("message"):
            said = str(body["message"])
        elif cause is not None and str(cause):
            said = str(cause)
        line = (said.strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        return line.replace(self._key, "***") if self._key != "none" else line


class _Passing(Exception):
    """Trouble that another attempt may not meet."""

    def __init__(self, message: str, *, wait: float | None = None, silent: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.silent = silent


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds in a Retry-After header, at most a minute; None without one (or where it holds a date)."""
    try:
        return min(max(float(headers["retry-after"]), 0.0), 60.0)
    except (KeyError, ValueError):
        return None


def _content(message: Mapping[str, Any]) -> str:
    """Return a message's text; where the server has only its reasoning, that, opened and never closed."""
    thought = message.get("reasoning_content") or message.get("reasoning")
    return message["content"] or (f"<think>{thought}" if thought else "")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "no model"
