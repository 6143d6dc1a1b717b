"""The server backend: any OpenAI-compatible server, asked with token ids over /v1/completions.

A server is a stranger: it is asked what it serves before any work, what passes (429, 5xx, resets, half answers) is
tried again, its own counts must be those of what was sent, and what cannot be checked from outside (its weights, its
rope rule) is said to be unchecked. ``server_connection.py`` sends, ``server_replies.py`` reads.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from evalkit.errors import BadInput, EngineError
from evalkit.lengths import format_length, parse_length
from evalkit.models.backends.flight import Flight, LoopThread, failed
from evalkit.models.backends.options import BackendOptions
from evalkit.models.backends.server_connection import Connection, ServerAddress, Trouble
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import ServedRope
from evalkit.models.tokenizer import decode_answer, stop_token_ids
from evalkit.options import option
from evalkit.types import Completion, Prompt

if TYPE_CHECKING:
    from evalkit.models.backends.server_replies import Answer, ServedModel

_T = TypeVar("_T")
KEY_VARIABLES = ("EVALKIT_API_KEY", "OPENAI_API_KEY")
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
_REST_SECONDS = 30.0
"""How long a server that did not answer is left alone while others of the same length do."""
_GREETING_SECONDS = 5.0
_SPEAK_VLLM = ("vllm", "sglang")  # servers that take stop_token_ids and repetition_penalty
_PROBE = "Mary went to the kitchen. Where is Mary? 12,345"
_SEAM_TOKENS = 2
"""By so many a text in a chat template may be shorter than text and template apart: one token joined at each end."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions(BackendOptions):
    """Which servers, and how they are asked."""

    base_url: tuple[str, ...] = option(
        "--base-url",
        "Its address, or LENGTH=URL for one length's; several are shared out.",
        repeat=True,
        secret=True,
        default=(),
    )
    """Such as "http://localhost:8000/v1"."""
    model: str | None = option("--served-model", "The model's name there, where it serves several.", default=None)
    chat: bool = option("--server-chat", "It takes no ids; send text to its chat API.", default=False)
    """Send each prompt's text as one user message to /v1/chat/completions, for servers that take no ids. The server
    then applies its own template, so the prompt must be built without one."""
    concurrency: int = option("--concurrency", "Requests in flight at each address [8].", default=8)
    timeout_seconds: float = option("--timeout", "Seconds per attempt, to the last byte [600].", default=600.0)
    max_retries: int = option("--max-retries", "Further attempts after trouble that may pass [5].", default=5)
    """They wait 0.5, 1, 2, 4, 8 ... 30 seconds, or as long as the server asks for."""

    def __post_init__(self) -> None:
        if not self._by_length:
            raise BadInput("The server backend needs an address: --base-url http://localhost:8000/v1.")
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

    @cached_property
    def _by_length(self) -> dict[str, tuple[ServerAddress, ...]]:
        """Addresses by length; "" for bare ones, which serve all."""
        addresses: dict[str, dict[ServerAddress, None]] = {}
        for entry in self.base_url:
            name, equals, url = entry.partition("=")
            labelled = bool(equals) and "/" not in name
            length = format_length(parse_length(name)) if labelled else ""
            addresses.setdefault(length, {})[ServerAddress.parse(url if labelled else entry)] = None
        return {length: tuple(each) for length, each in addresses.items()}

    def addresses_of(self, lengths: Sequence[str], num_groups: int) -> tuple[ServerAddress, ...]:
        """Return the servers of lengths that share a rope rule.

        Args:
            lengths: their labels.
            num_groups: how many rope rules the run has.

        Raises:
            BadInput: there is none, or other ones for one length than for another.
        """
        given = self._by_length
        if num_groups > 1 and "" in given:
            raise BadInput(
                f"These lengths are served under {num_groups} rope rules and a server has one; start one server for "
                "each, and name them like --base-url 16k=http://localhost:8001/v1 --base-url 32k=..."
            )
        found = {length: given.get(length, given.get("", ())) for length in lengths}
        if missing := [length for length, servers in found.items() if not servers]:
            raise BadInput(f"No server is named for {', '.join(missing)}; name it like --base-url {missing[0]}=URL.")
        if len(set(found.values())) > 1:
            raise BadInput(
                f"The lengths {', '.join(lengths)} share a rope rule and need the same servers; name them with "
                "--base-url URL, or for each length with --base-url LENGTH=URL."
            )
        return found[lengths[0]]

    def require_reachable(self) -> None:
        """Refuse a dead server in the first second, before anything is loaded or a folder is made.

        One that answers is enough: of servers for different lengths, the others may be started later.

        Raises:
            EngineError: nobody answers at any address.
        """
        import httpx2

        tried: dict[str, str] = {}
        for address in itertools.chain.from_iterable(self._by_length.values()):
            try:
                httpx2.get(f"{address.root}/models", timeout=min(_GREETING_SECONDS, self.timeout_seconds))
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.InvalidURL) as error:
                tried[address.root] = str(error) or type(error).__name__
            except httpx2.HTTPError:  # there, but slow or odd: asked what it serves, it will be called by its name
                return
            else:
                return
        raise _nobody_answers(tried)


OPTIONS = ServerOptions


def open_backend(
    checkpoint: Checkpoint,
    encoder: Encoder,
    options: ServerOptions,
    *,
    groups: Sequence[Sequence[str]],
    logprobs: bool,
) -> "ServerBackend":
    """Return the backend, knowing no more than that a server is there; see ``backends.open_backend``.

    Raises:
        EngineError: nobody answers at any address.
    """
    backend = ServerBackend(checkpoint, encoder, options, groups=groups, logprobs=logprobs)
    options.require_reachable()
    return backend


class _Found(NamedTuple):
    """What a server says of itself."""

    model: "ServedModel"
    version: str | None

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same at every address."""
        return {"model": self.model.id, "software": self.model.owned_by, "versions": {"server": self.version}}

    @property
    def speaks_vllm(self) -> bool:
        """Whether it takes vLLM's own fields."""
        return self.model.owned_by in _SPEAK_VLLM


@dataclass(eq=False)
class _Server:
    """One of the servers that answer, and how it fares."""

    connection: Connection
    found: _Found
    template_tokens: int = 0
    """What its chat template adds to a text, as its own count of a probe shows."""
    resting_until: float = field(default=0.0)
    lost: bool = False
    """It did not answer the last time; who answers there next may be another."""

    @property
    def name(self) -> str:
        """Its address without credentials."""
        return self.connection.address.root

    @property
    def load(self) -> tuple[bool, int]:
        """By which the next is chosen: those that answer first, the least busy among them."""
        return time.monotonic() < self.resting_until, self.connection.in_flight


class ServerBackend:
    """Greedy answers from servers. Implements ``backends.Backend``.

    Several servers of one length are one engine: each prompt goes to the least busy, and what one does not answer is
    asked of another. Servers that are gone are noticed once the retries of a prompt are used up (15 seconds by
    default), those that are there and silent after ``timeout_seconds`` more than those take (70 minutes by default);
    either ends the run with an EngineError. A server that comes back goes on, if it still serves the same. A prompt
    that fails on a server that is still there becomes a completion with an error.

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
        """Take what is asked; ``serve`` finds out what the servers serve.

        Args:
            checkpoint: a local copy of what the servers serve; its tokenizer makes the prompts.
            encoder: that tokenizer.
            options: which servers, and how they are asked.
            groups: the lengths that are served together, one rope rule each.
            logprobs: fill ``Completion.logprobs``.

        Raises:
            BadInput: lengths have no server, prompts would get two chat templates, or the API key is none.
        """
        if options.chat and encoder.chat:
            raise BadInput(
                "In chat mode the server applies its own chat template, and these prompts carry one already; build "
                "them without (--no-chat-template)."
            )
        self.options, self.logprobs = options, logprobs
        self._addresses = {tuple(lengths): options.addresses_of(lengths, len(groups)) for lengths in groups if lengths}
        self._key = _api_key()
        self._tokenizer, self._vocab_size = encoder.tokenizer, checkpoint.vocab_size
        self._stops = stop_token_ids(checkpoint.path, encoder.tokenizer)
        self._loop: LoopThread | None = None
        self._servers: list[_Server] = []
        self.warnings: list[str] = []
        """What a person should know before trusting the answers."""

    def serve(self, rope: ServedRope, lengths: Sequence[str], positions: int) -> str:
        """Find out what the servers of these lengths serve, and whether that suffices.

        Raises:
            BadInput: a server lacks the model, its window is too small, it takes no ids, it wants another key, or it
                serves something else than the others.
            EngineError: there is no server, or something else answers there.
        """
        self.close()
        self.max_model_len = positions
        self._loop = LoopThread("evalkit-server")
        self._warn("Which weights and which rope rule a server serves cannot be checked from outside.")
        try:
            for address in self._addresses[tuple(lengths)]:
                self._wait_for(self._meet(address))
        except BaseException:
            self.close()
            raise
        return "a server's rope rule cannot be read"

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        """Yield each prompt with its completion as soon as it is finished; see ``backends.Backend``.

        Raises:
            EngineError: the servers are gone, or another one answers now.
        """
        waiting, flight, loop = iter(prompts), Flight(), self._loop
        assert loop is not None, "serve comes first"
        room = self.options.concurrency * len(self._servers)
        try:
            while True:
                prompt = next(waiting, None) if len(flight) < room else None
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
            **self._found.identity,
            "prompt_form": "one user message" if self.options.chat else "ids",
            "stop_ids": list(self._stops),
        }

    def settings(self) -> dict[str, Any]:
        """Return what cannot change an answer; see ``backends.Backend``."""
        return {
            "base_url": [server.name for server in self._servers],
            "max_model_len": self._window,
            "root": self._found.model.root,
            "concurrency": self.options.concurrency,
            "timeout_seconds": self.options.timeout_seconds,
            "max_retries": self.options.max_retries,
        }

    def close(self) -> None:
        """Close the connections and end the thread."""
        if self._loop is not None:
            for server in self._servers:
                self._wait_for(server.connection.close())
            self._loop.close()
            self._loop, self._servers = None, []

    def _wait_for(self, work: Coroutine[Any, Any, _T]) -> _T:
        assert self._loop is not None, "serve comes first"
        return self._loop.submit(work).result()

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)

    @property
    def _found(self) -> _Found:
        """What all servers say of themselves."""
        return self._servers[0].found

    @property
    def _window(self) -> int | None:
        """Tokens that every server takes, as far as they say."""
        said = [server.found.model.max_model_len for server in self._servers]
        return min((window for window in said if window is not None), default=None)

    # What is asked once, before any work.

    async def _meet(self, address: ServerAddress) -> None:
        """Take a server among those that answer, if what it says of itself suffices."""
        connection = Connection(address, key=self._key, timeout_seconds=self.options.timeout_seconds)
        try:
            server = _Server(connection, await self._ask_what_is_served(connection))
            self._servers.append(server)  # closed with the others from here on
        except Trouble as trouble:
            await connection.close()
            raise self._unusable(connection, "/models", trouble) from trouble
        except BaseException:
            await connection.close()
            raise
        if server.found.identity != self._found.identity:
            raise BadInput(
                f"{server.name} serves {_described(server.found)} and {self._servers[0].name} "
                f"{_described(self._found)}; servers that share a length must serve the same."
            )
        self._check_window(server)
        await self._check_tokenizer(server)
        await self._probe(server)

    async def _ask_what_is_served(self, connection: Connection) -> _Found:
        """Return what a server says of the model that is asked.

        Raises:
            Trouble: it does not answer, or says something else.
            BadInput: it does not serve that model, or it must be named.
        """
        from evalkit.models.backends.server_replies import read_models, read_version

        where, models = connection.address.root, read_models(await connection.ask("/models"))
        names, wanted = [model.id for model in models], self.options.model
        if wanted is None and len(names) != 1:
            raise BadInput(f"{where} serves {_listed(names)}; name one of them with --served-model.")
        if wanted is not None and wanted not in names:
            raise BadInput(f"{where} does not serve {wanted!r}; it serves {_listed(names)}.")
        try:
            version = read_version(await connection.ask(_beside(connection, "/version")))
        except Trouble:  # only vLLM's servers have this
            version = None
        return _Found(models[0 if wanted is None else names.index(wanted)], version)

    def _check_window(self, server: _Server) -> None:
        window = server.found.model.max_model_len
        if window is None:
            self._warn("The server does not say how many tokens it takes, so answers may be cut short unseen.")
        elif window < self.max_model_len:
            raise BadInput(
                f"{server.name} serves {server.found.model.id} with {window:,} tokens and the run needs "
                f"{self.max_model_len:,}; start the server with a larger --max-model-len, or ask for shorter lengths."
            )

    async def _check_tokenizer(self, server: _Server) -> None:
        """Warn where the server cuts a text into other tokens. Only vLLM's servers tell."""
        from evalkit.models.backends.server_replies import read_tokens

        if not server.found.speaks_vllm:
            return
        ours = self._ids(_PROBE)
        request = {"model": server.found.model.id, "prompt": _PROBE, "add_special_tokens": False}
        try:
            theirs = list(read_tokens(await server.connection.ask(_beside(server.connection, "/tokenize"), request)))
        except Trouble as trouble:
            self._warn(
                f"Whether the server's tokenizer is the checkpoint's was not compared: /tokenize gave {trouble}."
            )
            return
        if theirs != ours:
            self._warn(
                f"The server's tokenizer differs from the checkpoint's: it makes {len(theirs)} tokens of {_PROBE!r} "
                f"({theirs[:4]} ...), the checkpoint {len(ours)} ({ours[:4]} ...)."
            )

    async def _probe(self, server: _Server) -> None:
        """Ask for one token, so that a server that takes no such requests is known before any work."""
        ids = self._ids(_PROBE)
        path, body = self._request(ids, 1)
        try:
            counted = self._read(await server.connection.ask(path, body)).num_read
        except Trouble as trouble:
            if trouble.status in (400, 404, 405, 422, 501) and not self.options.chat:
                raise BadInput(
                    f"{server.name} takes no token ids at {path} ({trouble}); use --server-chat."
                ) from trouble
            raise self._unusable(server.connection, path, trouble) from trouble
        if counted is None:
            self._warn("The server does not count the tokens of a prompt, so one that it cuts is scored unseen.")
        elif self.options.chat:
            server.template_tokens = max(0, counted - len(ids))
        elif counted != len(ids):
            raise BadInput(
                f"{server.name} counts {counted} tokens where {len(ids)} ids were sent: it adds some or "
                "tokenizes them again; use a server that takes ids as they are, or --server-chat."
            )

    # What is asked for each prompt.

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _text(self, ids: Sequence[int]) -> str:
        """Return what a chat is sent."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _request(self, ids: list[int], max_new_tokens: int) -> tuple[str, dict[str, Any]]:
        """Return path and body of a request: greedy, whatever defaults the server took from a checkpoint."""
        body: dict[str, Any] = {"model": self._found.model.id, "temperature": 0, "max_tokens": max_new_tokens}
        if self._found.speaks_vllm:
            body |= {"repetition_penalty": 1.0, "stop_token_ids": list(self._stops)}
        if self.options.chat:
            body |= {"messages": [{"role": "user", "content": self._text(ids)}]}
            return "/chat/completions", body | ({"logprobs": True} if self.logprobs else {})
        if self._found.model.owned_by == "vllm":
            body["return_token_ids"] = True
        return "/completions", body | {"prompt": ids} | ({"logprobs": 1} if self.logprobs else {})

    async def _answer(self, prompt: Prompt) -> Completion:
        """Ask until there is an answer, a refusal, or no attempt left."""
        asked, window = len(prompt.token_ids), self._window
        asked += max(server.template_tokens for server in self._servers)
        if window is not None and asked + prompt.max_new_tokens > window:
            return failed(
                f"context_overflow: {asked} prompt tokens and {prompt.max_new_tokens} for the answer exceed the "
                f"{window} of the server"
            )
        path, body = self._request(prompt.token_ids.tolist(), prompt.max_new_tokens)
        for attempt in itertools.count():
            server = min(self._servers, key=lambda one: one.load)
            try:
                return await self._attempt(server, path, body, prompt)
            except Trouble as trouble:
                if not trouble.passing:
                    return failed(f"server: {trouble}", retryable=trouble.status in (401, 403))
                if attempt < self.options.max_retries:
                    backoff = min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS)
                    await asyncio.sleep(backoff if trouble.wait is None else trouble.wait)
                    continue
                if trouble.silent:
                    await self._require_somebody()
                return failed(f"server: {trouble} (attempt {attempt + 1}, the last)", retryable=True)
        raise AssertionError("unreachable")

    async def _attempt(self, server: _Server, path: str, body: dict[str, Any], prompt: Prompt) -> Completion:
        try:
            if server.lost:
                await self._require_same(server)
            reply = await server.connection.ask(path, body)
        except Trouble as trouble:
            if trouble.silent:
                server.lost, server.resting_until = True, time.monotonic() + _REST_SECONDS
            raise
        return self._completion(self._read(reply), prompt, server)

    async def _require_same(self, server: _Server) -> None:
        """Before a server that was lost is asked again: it may have come back as another one.

        Raises:
            Trouble: it has not come back.
            EngineError: it serves something else now.
        """
        try:
            found = await self._ask_what_is_served(server.connection)
        except BadInput as error:
            raise EngineError(f"While the run went on, the server became another: {error}") from error
        if found != server.found:
            raise EngineError(
                f"While the run went on, the server became another: {server.name} serves {_described(found)} and "
                f"served {_described(server.found)}; start it as it was, and repeat the command to go on."
            )
        server.lost, server.resting_until = False, 0.0

    async def _require_somebody(self) -> None:
        """Raise EngineError where nobody is there any more, or nobody answers."""
        silent = []
        for server in self._servers:
            try:
                await server.connection.ask("/models")
            except Trouble as trouble:
                silent += [trouble] if trouble.silent else []
        if len(silent) == len(self._servers):
            raise self._unusable(self._servers[0].connection, "/models", silent[0])

    def _read(self, reply: bytes) -> "Answer":
        from evalkit.models.backends.server_replies import read_chat, read_completion

        return read_chat(reply) if self.options.chat else read_completion(reply)

    def _completion(self, answer: "Answer", prompt: Prompt, server: _Server) -> Completion:
        """Return an answer, or why what came is none: a prompt that was cut, reasoning that never ended.

        The ids are the server's; where it gives none, those of its text.

        Raises:
            Trouble: another attempt may bring an answer.
        """
        reason, ids = answer.finish_reason, list(answer.token_ids)
        if reason not in ("stop", "length"):
            raise Trouble(f"finish_reason {server.connection.first_line(repr(reason))}")
        if wrong := (
            _only_reasoning(answer) or self._misread(answer, prompt, server) or _miscut(answer, prompt.max_new_tokens)
        ):
            return failed(wrong)
        if answer.text is None:
            raise Trouble("an answer without content")
        if ids and max(ids) >= self._vocab_size:
            raise Trouble(f"token {max(ids)} in an answer, and the checkpoint has {self._vocab_size:,}")
        if ids and ids[-1] in self._stops:
            ids.pop()
        text = decode_answer(self._tokenizer, ids) if answer.token_ids else answer.text
        ids = ids if answer.token_ids else self._ids(text)
        aligned = len(answer.logprobs) - len(ids) in (0, 1)  # one more for the stop token
        return Completion(
            text=text,
            token_ids=tuple(ids),
            finish_reason="length" if reason == "length" else "stop",
            num_cached_tokens=answer.num_cached,
            logprobs=answer.logprobs[: len(ids)] if self.logprobs and aligned else (),
        )

    def _misread(self, answer: "Answer", prompt: Prompt, server: _Server) -> str | None:
        """Return why the server's own count of the prompt is not that of what was sent; None where it may be.

        A chat's count has its template in it, which the server does not tell: never below the text's own tokens, and
        not below those and what the template added to a probe.
        """
        counted, ids = answer.num_read, prompt.token_ids.tolist()
        if counted is None:
            return None
        if self.options.chat:
            own = len(self._ids(self._text(ids).strip()))  # many templates strip what they are given
            least = max(own, own + server.template_tokens - _SEAM_TOKENS)
            if counted < least:
                return f"context_overflow: the server read {counted:,} tokens where text and template have {least:,}"
        elif counted < len(ids):
            return f"context_overflow: the server read {counted:,} of {len(ids):,} prompt tokens"
        elif counted > len(ids):
            return f"server: it read {counted:,} prompt tokens where {len(ids):,} ids were sent"
        return None

    # What went wrong, in words.

    def _unusable(self, connection: Connection, path: str, trouble: Trouble) -> EngineError | BadInput:
        """Return the error for a server that does not answer a first question as it should."""
        where = f"{connection.address.root}{path}"
        if trouble.status in (401, 403):
            return BadInput(f"{where} wants another API key; set {' or '.join(KEY_VARIABLES)}.")
        if trouble.status is not None:
            return EngineError(f"{where} answers {trouble}; check the address (it usually ends in /v1).")
        if trouble.silent and not str(trouble).startswith("no answer"):
            return _nobody_answers({connection.address.root: str(trouble)})
        if trouble.silent:
            return EngineError(f"{where} gave {trouble}; is the server ready?")
        return EngineError(
            f"{where} gives {trouble}, so no OpenAI-compatible server is there; check the address (it usually ends in "
            "/v1) and the server's log."
        )


def _only_reasoning(answer: "Answer") -> str | None:
    """Return why there is no answer where a server gives reasoning alone: neither a right nor a wrong one."""
    if answer.text or not answer.reasoning:
        return None
    if answer.finish_reason == "length":
        return "reasoning: it did not end within the tokens for the answer"
    return "reasoning: the server gave reasoning and no answer beside it"


def _miscut(answer: "Answer", max_new_tokens: int) -> str | None:
    """Return why an answer does not end where it should: cut short, or longer than ordered."""
    written = answer.num_written
    if written is None:
        return None
    if answer.finish_reason == "length" and written < max_new_tokens:
        return f"server: the answer was cut at {written} of {max_new_tokens} tokens"
    if written > max_new_tokens + 1:  # some count the stop token
        return f"server: the answer has {written} tokens where {max_new_tokens} were ordered"
    return None


def _api_key() -> str | None:
    """Return the API key of the environment, None where there is none.

    Raises:
        BadInput: it cannot be sent.
    """
    for name in KEY_VARIABLES:
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise BadInput(f"{name} holds marks that no API key has; set it again (plain letters, digits, signs).")
            return key
    return None


def _beside(connection: Connection, path: str) -> str:
    """Return the URL of an endpoint of vLLM's, which lies beside /v1."""
    return connection.address.root.removesuffix("/v1") + path


def _nobody_answers(tried: dict[str, str]) -> EngineError:
    where = " or ".join(f"{root} ({said.rstrip('.')})" for root, said in tried.items())
    return EngineError(
        f"No server answers at {where}; start it, or check the address. The same command goes on from what is recorded."
    )


def _described(found: _Found) -> str:
    return f"{found.model.id} ({found.model.owned_by}, version {found.version}, {found.model.max_model_len} tokens)"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "no model"
