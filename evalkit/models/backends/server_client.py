"""One server of those that answer: what it serves, found out before any work, and one attempt at one prompt."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalkit.benchmarks.reasoning import is_unfinished
from evalkit.errors import BadInput, EngineError
from evalkit.models.adapter import Adapter
from evalkit.models.backends.in_flight import failed
from evalkit.models.backends.probe import PROBE, require_adapter_in_use
from evalkit.models.backends.server_connection import KEY_VARIABLES, Connection, Trouble
from evalkit.models.tokenizer import decode_answer
from evalkit.types import Completion, Prompt

if TYPE_CHECKING:
    from evalkit.models.backends.server_replies import Answer, ServedModel

_REST_SECONDS = 30.0
"""How long a server that did not answer is left alone while others of the same length do."""
_SPEAK_VLLM = ("vllm", "sglang")  # servers that take stop_token_ids and repetition_penalty
_PROBE_ANSWER_TOKENS = 16
"""Of an answer whose log-probabilities tell an adapter from its base: a server that tells any tells an answer's."""
_SEAM_TOKENS = 2
"""By so many a text in a chat template may be shorter than text and template apart: one token joined at each end."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How prompts go out and answers are read: the same for every server of a run."""

    tokenizer: Any
    vocab_size: int
    stop_ids: tuple[int, ...]
    base: Path
    """The checkpoint's folder."""
    adapter: Adapter | None
    model: str | None
    """Its name at the server; None where there is only one."""
    chat: bool
    """Text as one user message, instead of ids."""
    logprobs: bool

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text as it stands."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Return what a chat is sent."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


class Found(NamedTuple):
    """What a server says of itself."""

    model: "ServedModel"
    version: str | None
    base: "ServedModel | None"
    """What the model is an adapter of, or the model itself where it is none; None where the server does not say."""

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same at every address."""
        return {"model": self.model.id, "software": self.model.owned_by, "versions": {"server": self.version}}

    def __str__(self) -> str:
        return f"{self.model.id} ({self.model.owned_by}, version {self.version}, {self.model.max_model_len} tokens)"


class Client:
    """A server as this run knows it. ``meet`` comes first."""

    found: Found

    def __init__(self, connection: Connection, form: Form) -> None:
        self.connection, self._form = connection, form
        self.template_tokens = 0
        """What its chat template adds to a text, as its own count of a probe shows."""
        self.shows_adapter = False
        """Whether its model was seen to compute something else than the base."""
        self.warnings: list[str] = []
        """What a person should know before trusting its answers."""
        self._resting_until = 0.0
        self._lost = False  # it did not answer the last time; who answers there next may be another

    @property
    def name(self) -> str:
        """Its address without credentials."""
        return self.connection.address.root

    @property
    def load(self) -> tuple[bool, int]:
        """By which the next is chosen: those that answer first, the least busy among them."""
        return time.monotonic() < self._resting_until, self.connection.in_flight

    # What is asked once, before any work.

    async def meet(self, positions: int) -> None:
        """Find out what it serves, and whether that suffices for requests of so many tokens.

        Raises:
            BadInput: it lacks the model, its window is too small, it takes no ids, it answers without the
                run's adapter, or it wants another key.
            EngineError: there is no server, or something else answers there.
        """
        try:
            self.found = await self._ask_what_is_served()
        except Trouble as trouble:
            raise self.unusable("/models", trouble) from trouble
        self._check_window(positions)
        if self._speaks_vllm:
            await self._check_tokenizer()
        await self._probe()
        model = self.found.model
        if self._form.adapter is not None:
            await self._check_adapter(self._form.adapter)
        elif model.parent is not None:
            self.warnings.append(
                f"The server serves {model.id} as an adapter of {model.parent}, and the run records the base's weights "
                "alone; name the adapter's folder with --adapter."
            )

    async def _ask_what_is_served(self) -> Found:
        """Return what it says of the model that is asked.

        Raises:
            Trouble: it does not answer, or says something else.
            BadInput: it does not serve that model, or it must be named.
        """
        from evalkit.models.backends.server_replies import read_models, read_version

        models, wanted = read_models(await self.connection.ask("/models")), self._form.model
        names = [model.id for model in models]
        if wanted is None and len(names) != 1:
            raise BadInput(f"{self.name} serves {_listed(names)}; name one of them with --served-model.")
        if wanted is not None and wanted not in names:
            raise BadInput(f"{self.name} does not serve {wanted!r}; it serves {_listed(names)}.")
        try:
            version = read_version(await self.connection.ask(self._beside("/version")))
        except Trouble:  # only vLLM's servers have this
            version = None
        model = models[0 if wanted is None else names.index(wanted)]
        if model.parent is not None:
            base = next((one for one in models if one.id == model.parent), None)
        else:
            is_base = model.root == str(self._form.base.resolve()) or any(one.parent == model.id for one in models)
            base = model if is_base else None
        if base is not None and model.max_model_len is None:  # vLLM says it of bases alone
            model = model.model_copy(update={"max_model_len": base.max_model_len})
        return Found(model, version, base)

    def _check_window(self, positions: int) -> None:
        window = self.found.model.max_model_len
        if window is None:
            self.warnings.append(
                "The server does not say how many tokens it takes, so answers may be cut short unseen."
            )
        elif window < positions:
            raise BadInput(
                f"{self.name} serves {self.found.model.id} with {window:,} tokens and the run needs {positions:,}; "
                "start the server with a larger --max-model-len, or ask for shorter lengths."
            )

    async def _check_tokenizer(self) -> None:
        """Warn where the server cuts a text into other tokens. Only vLLM's servers tell."""
        from evalkit.models.backends.server_replies import read_tokens

        ours = self._form.ids(PROBE)
        request = {"model": self.found.model.id, "prompt": PROBE, "add_special_tokens": False}
        try:
            theirs = list(read_tokens(await self.connection.ask(self._beside("/tokenize"), request)))
        except Trouble as trouble:
            self.warnings.append(
                f"Whether the server's tokenizer is the checkpoint's was not compared: /tokenize gave {trouble}."
            )
            return
        if theirs != ours:
            self.warnings.append(
                f"The server's tokenizer differs from the checkpoint's: it makes {len(theirs)} tokens of {PROBE!r} "
                f"({theirs[:4]} ...), the checkpoint {len(ours)} ({ours[:4]} ...)."
            )

    async def _probe(self) -> None:
        """Ask for one token, so that a server that takes no such requests is known before any work."""
        ids = self._form.ids(PROBE)
        path, body = self._request(ids, 1)
        try:
            counted = self._read(await self.connection.ask(path, body)).num_read
        except Trouble as trouble:
            if trouble.status in (400, 404, 405, 422, 501) and not self._form.chat:
                raise BadInput(f"{self.name} takes no token ids at {path} ({trouble}); use --server-chat.") from trouble
            raise self.unusable(path, trouble) from trouble
        if counted is None:
            self.warnings.append(
                "The server does not count the tokens of a prompt, so one that it cuts is scored unseen."
            )
        elif self._form.chat:
            self.template_tokens = max(0, counted - len(ids))
        elif counted != len(ids):
            raise BadInput(
                f"{self.name} counts {counted} tokens where {len(ids)} ids were sent: it adds some or tokenizes them "
                "again; use a server that takes ids as they are, or --server-chat."
            )

    async def _check_adapter(self, adapter: Adapter) -> None:
        """Ask the probe of the model and of its base; warn where that shows nothing.

        Raises:
            BadInput: the model is the base, or both answer with the same log-probabilities.
        """
        model, base = self.found.model, self.found.base
        if base is not None and base.id == model.id:
            raise BadInput(
                f"{self.name} serves {model.id} as a base, without the adapter {adapter.path}; name what it serves the "
                "adapter as with --served-model, or leave out --adapter."
            )
        if base is None:
            why = f"{self.name} does not say which of its models is the base of {model.id}"
        else:
            try:
                with_it, without = [await self._probe_logprobs(name) for name in (model.id, base.id)]
            except Trouble as trouble:
                why = f"{self.name} answered the probe with {trouble}"
            else:
                if with_it and without:
                    require_adapter_in_use(adapter, without, with_it, f"at {self.name} (as {model.id} and {base.id})")
                    self.shows_adapter = True
                    return
                why = f"{self.name} gives no log-probabilities"
        self.warnings.append(f"Whether the adapter {adapter.path} is in use could not be shown: {why}.")

    async def _probe_logprobs(self, model: str) -> tuple[float, ...]:
        """Return the log-probabilities of a model's answer to the probe; none where the server gives none."""
        path, body = self._request(self._form.ids(PROBE), _PROBE_ANSWER_TOKENS)
        body |= {"model": model, "logprobs": True if self._form.chat else 1}
        return self._read(await self.connection.ask(path, body)).logprobs

    # What is asked for each prompt.

    async def attempt(self, prompt: Prompt) -> Completion:
        """Ask once.

        Raises:
            Trouble: there is no answer; another attempt may bring one where it is passing.
            EngineError: it was lost before, and another server answers there now.
        """
        path, body = self._request(prompt.token_ids.tolist(), prompt.max_new_tokens)
        try:
            if self._lost:
                await self._require_same()
            reply = await self.connection.ask(path, body)
        except Trouble as trouble:
            if trouble.silent:
                self._lost, self._resting_until = True, time.monotonic() + _REST_SECONDS
            raise
        return self._completion(self._read(reply), prompt)

    async def _require_same(self) -> None:
        """See who has come back.

        Raises:
            Trouble: nobody.
            EngineError: a server that serves something else.
        """
        try:
            found = await self._ask_what_is_served()
        except BadInput as error:
            raise EngineError(f"While the run went on, the server became another: {error}") from error
        if found != self.found:
            raise EngineError(
                f"While the run went on, the server became another: {self.name} serves {found} and served "
                f"{self.found}; start it as it was, and repeat the command to go on."
            )
        self._lost, self._resting_until = False, 0.0

    def _request(self, ids: list[int], max_new_tokens: int) -> tuple[str, dict[str, Any]]:
        """Return path and body of a request: greedy, whatever defaults the server took from a checkpoint."""
        body: dict[str, Any] = {"model": self.found.model.id, "temperature": 0, "max_tokens": max_new_tokens}
        if self._speaks_vllm:
            body |= {"repetition_penalty": 1.0, "stop_token_ids": list(self._form.stop_ids)}
        if self._form.chat:
            body |= {"messages": [{"role": "user", "content": self._form.text(ids)}]}
            return "/chat/completions", body | ({"logprobs": True} if self._form.logprobs else {})
        if self.found.model.owned_by == "vllm":
            body["return_token_ids"] = True
        return "/completions", body | {"prompt": ids} | ({"logprobs": 1} if self._form.logprobs else {})

    def _read(self, reply: bytes) -> "Answer":
        from evalkit.models.backends.server_replies import read_chat, read_completion

        return read_chat(reply) if self._form.chat else read_completion(reply)

    def _completion(self, answer: "Answer", prompt: Prompt) -> Completion:
        """Return an answer, or why what came is none: a prompt that was cut, reasoning without an answer.

        Reasoning that was cut off is the answer as far as it came, opened and never closed. It has no score, whatever a
        chat's server counts (often by another tokenizer than ours), so that its counts are not asked for. The ids are
        the server's; where it gives none, those of its text.

        Raises:
            Trouble: another attempt may bring an answer.
        """
        reason, ids, form = answer.finish_reason, list(answer.token_ids), self._form
        if reason not in ("stop", "length"):
            raise Trouble(f"finish_reason {self.connection.first_line(repr(reason))}")
        if reason == "length" and answer.reasoning and not answer.text:
            answer = replace(answer, text=f"<think>{answer.reasoning}", token_ids=())
        if not (form.chat and is_unfinished(answer.text or "")) and (wrong := self._wrong(answer, prompt)):
            return failed(wrong)
        if answer.text is None:
            raise Trouble("an answer without content")
        if ids and max(ids) >= form.vocab_size:
            raise Trouble(f"token {max(ids)} in an answer, and the checkpoint has {form.vocab_size:,}")
        if ids and ids[-1] in form.stop_ids:
            ids.pop()
        text = decode_answer(form.tokenizer, ids) if answer.token_ids else answer.text
        ids = ids if answer.token_ids else form.ids(text)
        aligned = len(answer.logprobs) - len(ids) in (0, 1)  # one more for the stop token
        return Completion(
            text=text,
            token_ids=tuple(ids),
            finish_reason="length" if reason == "length" else "stop",
            num_cached_tokens=answer.num_cached,
            logprobs=answer.logprobs[: len(ids)] if form.logprobs and aligned else (),
        )

    def _wrong(self, answer: "Answer", prompt: Prompt) -> str | None:
        """Return why what came is no answer to the whole prompt, None where nothing shows it."""
        return _only_reasoning(answer) or self._misread(answer, prompt) or _miscut(answer, prompt.max_new_tokens)

    def _misread(self, answer: "Answer", prompt: Prompt) -> str | None:
        """Return why the server's own count of the prompt is not that of what was sent; None where it may be.

        A chat's count has its template in it, which the server does not tell: never below the text's own tokens, and
        not below those and what the template added to a probe.
        """
        counted, sent = answer.num_read, len(prompt.token_ids)
        if counted is None:
            return None
        if self._form.chat:
            text = self._form.text(prompt.token_ids.tolist()).strip()  # many templates strip what they are given
            own = len(self._form.ids(text))
            least = max(own, own + self.template_tokens - _SEAM_TOKENS)
            if counted < least:
                return f"context_overflow: the server read {counted:,} tokens where text and template have {least:,}"
        elif counted < sent:
            return f"context_overflow: the server read {counted:,} of {sent:,} prompt tokens"
        elif counted > sent:
            return f"server: it read {counted:,} prompt tokens where {sent:,} ids were sent"
        return None

    @property
    def _speaks_vllm(self) -> bool:
        """Whether it takes vLLM's own fields."""
        return self.found.model.owned_by in _SPEAK_VLLM

    def _beside(self, path: str) -> str:
        """Return the URL of an endpoint of vLLM's, which lies beside /v1."""
        return self.name.removesuffix("/v1") + path

    def unusable(self, path: str, trouble: Trouble) -> EngineError | BadInput:
        """Return the error for a server that does not answer a first question as it should."""
        where = f"{self.name}{path}"
        if trouble.status in (401, 403):
            return BadInput(f"{where} wants another API key; set {' or '.join(KEY_VARIABLES)}.")
        if trouble.status is not None:
            return EngineError(f"{where} answers {trouble}; check the address (it usually ends in /v1).")
        if trouble.late:
            return EngineError(f"{where} gave {trouble}; is the server ready?")
        if trouble.silent:
            return nobody_answers({self.name: str(trouble)})
        return EngineError(
            f"{where} gives {trouble}, so no OpenAI-compatible server is there; check the address (it usually ends in "
            "/v1) and the server's log."
        )


def nobody_answers(tried: dict[str, str]) -> EngineError:
    """Return the error where no server is.

    Args:
        tried: what was said at each address.
    """
    where = " or ".join(f"{root} ({said.rstrip('.')})" for root, said in tried.items())
    return EngineError(
        f"No server answers at {where}; start it, or check the address. The same command goes on from what is recorded."
    )


def _only_reasoning(answer: "Answer") -> str | None:
    """Return why there is no answer where a server gives reasoning alone: neither a right nor a wrong one."""
    if answer.text or not answer.reasoning:
        return None
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


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "no model"
