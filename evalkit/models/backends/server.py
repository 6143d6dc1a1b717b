"""The server backend: any OpenAI-compatible servers, asked with token ids over /v1/completions.

A server is a stranger: it is asked what it serves before any work, what passes (429, 5xx, resets, half answers) is
tried again, its own counts must be those of what was sent, and what cannot be checked from outside (its weights, its
rope rule) is said to be unchecked. ``server_client.py`` deals with one of them, ``server_connection.py`` sends,
``server_replies.py`` reads.
"""

import asyncio
import itertools
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from evalkit.errors import BadInput
from evalkit.lengths import format_length, parse_length
from evalkit.models.backends.in_flight import InFlight, LoopThread, failed
from evalkit.models.backends.options import BackendOptions
from evalkit.models.backends.server_client import Client, Form, Found, nobody_answers
from evalkit.models.backends.server_connection import Connection, ServerAddress, Trouble, api_key
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import ServedRope
from evalkit.models.tokenizer import stop_token_ids
from evalkit.options import option
from evalkit.types import Completion, Prompt

_T = TypeVar("_T")
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
_GREETING_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class ServerOptions(BackendOptions):
    """Which servers, and how they are asked."""

    GROUP: ClassVar[str] = "Backend server"

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

    @property
    def gpus(self) -> None:
        """None: the servers are there already."""
        return None

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
        raise nobody_answers(tried)


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
        self.options = options
        self._addresses = {tuple(lengths): options.addresses_of(lengths, len(groups)) for lengths in groups if lengths}
        self._key = api_key()
        self._form = Form(
            tokenizer=encoder.tokenizer,
            vocab_size=checkpoint.vocab_size,
            stop_ids=stop_token_ids(checkpoint.path, encoder.tokenizer),
            base=checkpoint.path,
            adapter=checkpoint.adapter,
            model=options.model,
            chat=options.chat,
            logprobs=logprobs,
        )
        self._loop: LoopThread | None = None
        self._servers: list[Client] = []
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
        self._loop = LoopThread("evalkit-server")
        self._warn("Which weights and which rope rule a server serves cannot be checked from outside.")
        try:
            for address in self._addresses[tuple(lengths)]:
                self._wait_for(self._meet(address, positions))
        except BaseException:
            self.close()
            raise
        return "a server's rope rule cannot be read"

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        """Yield each prompt with its completion as soon as it is finished; see ``backends.Backend``.

        Raises:
            EngineError: the servers are gone, or another one answers now.
        """
        waiting, flight, loop = iter(prompts), InFlight(), self._loop
        assert loop is not None, "serve comes first"
        room = self.options.concurrency * len(self._servers)
        try:
            while True:
                prompt = next(waiting, None) if len(flight) < room else None
                if prompt is not None:
                    flight.add(prompt, loop.submit(self._answer(prompt)))
                elif not flight:
                    return
                for future, seconds in flight.finished(wait=prompt is None):
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
            "stop_ids": list(self._form.stop_ids),
        }

    def settings(self) -> dict[str, Any]:
        """Return what cannot change an answer; see ``backends.Backend``."""
        shown = {"adapter_shown": all(server.shows_adapter for server in self._servers)} if self._form.adapter else {}
        return {
            **shown,
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
    def _found(self) -> Found:
        """What all servers say of themselves."""
        return self._servers[0].found

    @property
    def _window(self) -> int | None:
        """Tokens that every server takes, as far as they say."""
        said = [server.found.model.max_model_len for server in self._servers]
        return min((window for window in said if window is not None), default=None)

    async def _meet(self, address: ServerAddress, positions: int) -> None:
        """Take a server among those that answer, if what it says of itself suffices."""
        connection = Connection(address, key=self._key, timeout_seconds=self.options.timeout_seconds)
        server = Client(connection, self._form)
        self._servers.append(server)
        await server.meet(positions)
        for warning in server.warnings:
            self._warn(warning)
        if server.found.identity != self._found.identity:
            raise BadInput(
                f"{server.name} serves {server.found} and {self._servers[0].name} {self._found}; servers that share a "
                "length must serve the same."
            )

    async def _answer(self, prompt: Prompt) -> Completion:
        """Ask until there is an answer, a refusal, or no attempt left."""
        asked, window = len(prompt.token_ids), self._window
        asked += max(server.template_tokens for server in self._servers)
        if window is not None and asked + prompt.max_new_tokens > window:
            return failed(
                f"context_overflow: {asked} prompt tokens and {prompt.max_new_tokens} for the answer exceed the "
                f"{window} of the server"
            )
        for attempt in itertools.count():
            server = min(self._servers, key=lambda one: one.load)
            try:
                return await server.attempt(prompt)
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

    async def _require_somebody(self) -> None:
        """Raise EngineError where nobody is there any more, or nobody answers."""
        silent = []
        for server in self._servers:
            try:
                await server.connection.ask("/models")
            except Trouble as trouble:
                silent += [trouble] if trouble.silent else []
        if len(silent) == len(self._servers):
            raise self._servers[0].unusable("/models", silent[0])
