"""The vLLM backend: prompts as ids into an engine, each answer out as soon as it is finished.

The engine's silent habits are kept out here: an answer is never shortened (prompt plus answer is checked before it is
sent), the rotary table must cover every position, and what it computes is read back and compared.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from evalkit.errors import BadInput, EngineError, EngineLost, EvalkitError
from evalkit.files import first_line
from evalkit.models.backends.cpu_dtype import say_which
from evalkit.models.backends.in_flight import InFlight, failed
from evalkit.models.backends.probe import PROBE, require_adapter_in_use, require_finite
from evalkit.models.backends.vllm.engine import (
    Engine,
    EngineDied,
    VLLMOptions,
    engine_config,
    require_vllm,
    usable_vllm,
)
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.formulas import Frequencies, vllm_mapping
from evalkit.models.rope.modules import EffectiveRope
from evalkit.models.rope.readback import (
    GPU_TOLERANCE,
    TOLERANCE,
    compare_model,
    expected_frequencies,
    rope_from_table,
)
from evalkit.models.rope.served import ServedRope
from evalkit.models.tokenizer import decode_answer, stop_token_ids
from evalkit.types import Completion, Prompt

_MAX_IN_FLIGHT = 256
_WORDLESS = (
    "it left no error, as a process that is killed for want of memory: lower --max-num-seqs or --max-num-batched-tokens"
)


OPTIONS = VLLMOptions


def open_backend(
    checkpoint: Checkpoint,
    encoder: Encoder,
    options: VLLMOptions,
    *,
    groups: Sequence[Sequence[str]],
    logprobs: bool,
) -> "VLLMBackend":
    """Return the backend with no engine started; see ``backends.open_backend``.

    Raises:
        BadInput: vLLM is missing, or a tensor is: vLLM starts without a word where half of a fused weight is missing.
    """
    require_vllm()
    if problem := checkpoint.weight_problem():
        raise BadInput(problem)
    return VLLMBackend(checkpoint, encoder.tokenizer, options, logprobs=logprobs)


class VLLMBackend:
    """Greedy answers from one vLLM engine, which serves one rope rule at a time. Implements ``backends.Backend``.

    An engine process that dies is noticed within ``DEATH_NOTICED_SECONDS``, one that hangs after ``stall_seconds``. It
    is started again (at most ``max_restarts`` times) and asked again what it had not answered. It ends by itself when
    this process is killed.

    The caller sends the longest prompts first, so that what does not fit into memory shows at once, and samples that
    share a context next to each other, so that the prefix cache serves them (``Completion.num_cached_tokens``).
    """

    name = "vllm"
    warnings: tuple[str, ...] = ()

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: Any, options: VLLMOptions | None = None, *, logprobs: bool = False
    ) -> None:
        """Take what is asked; the first ``serve`` starts an engine.

        Args:
            checkpoint: what is served, with its adapter.
            tokenizer: the checkpoint's.
            options: how the engine runs.
            logprobs: fill ``Completion.logprobs``.

        Raises:
            BadInput: vLLM is missing, or installed twice, or does not serve the adapter.
        """
        require_vllm()
        if checkpoint.adapter is not None:
            checkpoint.adapter.require_vllm_serves()
        self.options = options or VLLMOptions()
        self.checkpoint, self.logprobs = checkpoint, logprobs
        self._tokenizer, self._stops = tokenizer, stop_token_ids(checkpoint.path, tokenizer)
        self._deaths, self._answered = 0, False
        self._running: Engine | None = None
        self.read_back: list[dict[str, Any]] = []
        """What the loaded model computes, one entry per rotary table."""

    def serve(self, rope: ServedRope, lengths: Sequence[str], positions: int) -> list[dict[str, Any]]:
        """Start an engine and read its rotary table back, or switch the rule of the one that runs.

        Raises:
            BadInput: vLLM has no device here, or refuses an option or the checkpoint; or the adapter changes nothing.
            EngineError: the engine does not start or dies of its first request, its rotary table does not cover
                ``positions``, or it computes another rule than ``rope``, or no finite numbers.
        """
        if self._running is not None and self.can_switch_to(rope, positions):
            self.switch_to(rope)
            return self.read_back
        self.close()
        self.version, self.device = usable_vllm()
        self._started_with = self._served = rope
        self.max_model_len = positions
        self._running = self._start()
        self.read_back = self._read_back()
        self._probe()
        return self.read_back

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        """Yield each prompt with its completion as soon as it is finished; see ``backends.Backend``.

        Raises:
            EngineError: the engine died or hung more often than it may be restarted, or before it gave any answer, or
                its numbers are not finite.
        """
        waiting, again, flight = iter(prompts), deque[Prompt](), InFlight()
        try:
            while True:
                try:
                    prompt = None
                    if len(flight) < self._window:
                        prompt = again.popleft() if again else next(waiting, None)
                    if prompt is not None and (error := self._overflow(prompt)):
                        yield prompt, failed(error)
                    elif prompt is not None:
                        flight.add(prompt, self._submit(prompt))
                    elif not flight:
                        return
                    # With nothing left to send there is time to wait; else take what has landed, and send the next.
                    for future, seconds in flight.finished(wait=prompt is None):
                        completion = self._completion(future, seconds)
                        self._answered |= completion.error is None
                        yield flight.remove(future), completion
                    if prompt is None and self._engine.dead:
                        raise EngineDied
                except EngineDied:
                    again.extend(flight.cancel())
                    self._restart(len(again))
        finally:
            flight.cancel()

    def can_switch_to(self, served: ServedRope, length: int) -> bool:
        """Whether ``switch_to`` can serve a rule for requests of up to ``length`` tokens.

        One rule for all layers, by a formula of ours, within the table that is loaded: an engine that was started for
        the longest length serves the shorter ones.
        """
        rules = expected_frequencies(self.checkpoint, served)
        started = expected_frequencies(self.checkpoint, self._started_with)
        has_table = any("rows" in entry for entry in self.read_back)
        one_rule = served.scaling is not None and rules.keys() == started.keys() == {""}
        return has_table and one_rule and length <= self.max_model_len

    def switch_to(self, served: ServedRope) -> None:
        """Serve the loaded weights under another rule: the table is rewritten in place, the prefix cache emptied.

        For one factor per length without loading the weights again. Call it between two ``generate`` calls, never
        during one, and where ``can_switch_to`` allows it.

        Raises:
            EngineError: the table that is read back differs.
        """
        self._served = served
        try:
            self._write_table()
        except EngineDied:
            self._restart(0)
        else:
            self.read_back = self._read_back()

    def identity(self) -> dict[str, Any]:
        """Return what can change an answer; see ``backends.Backend``."""
        config = self._engine.config
        dtype = self._dtype
        cache = str(config.cache_config.cache_dtype)
        return {
            "name": self.name,
            "versions": {"vllm": self.version},
            "device": self.device,
            "dtype": dtype,
            "kv_cache_dtype": dtype if cache == "auto" else cache,
            "attention": self._attention,
            "quantization": config.model_config.quantization,
            "deterministic": self.options.deterministic,
            "stop_ids": list(self._stops),
        }

    def settings(self) -> dict[str, Any]:
        """Return what cannot change an answer; see ``backends.Backend``."""
        config, options = self._engine.config, self.options
        return {
            "max_model_len": self.max_model_len,
            "tensor_parallel": options.tensor_parallel,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "gpu_memory_utilization": None if self.device == "cpu" else options.gpu_memory_utilization,
            "kv_cache_memory_bytes": config.cache_config.kv_cache_memory_bytes,
            "enforce_eager": config.model_config.enforce_eager,
            "prefix_cache": config.cache_config.enable_prefix_caching,
        }

    def close(self) -> None:
        """End the engine process and free its device."""
        if self._running is not None:
            self._running.close()
            self._running = None

    @property
    def _engine(self) -> Engine:
        assert self._running is not None, "serve comes first"
        return self._running

    @property
    def _window(self) -> int:
        """Requests in flight: twice what the engine works on at a time, so that it never waits for the next prompt."""
        return min(_MAX_IN_FLIGHT, 2 * int(self._engine.config.scheduler_config.max_num_seqs))

    def _overflow(self, prompt: Prompt) -> str | None:
        """Say why a prompt is not sent. The engine would shorten its answer without a word."""
        asked = len(prompt.token_ids)
        if asked + prompt.max_new_tokens <= self.max_model_len:
            return None
        return (
            f"context_overflow: {asked} prompt tokens and {prompt.max_new_tokens} for the answer exceed the "
            f"{self.max_model_len} that the engine was started for"
        )

    def _submit(self, prompt: Prompt) -> "Future[Any]":
        candidates = [ids.tolist() for ids in prompt.candidates.values()]
        return self._engine.submit(
            prompt.token_ids.tolist(), prompt.max_new_tokens, stops=self._stops, candidates=candidates
        )

    def _completion(self, future: "Future[Any]", seconds: float) -> Completion:
        """Turn a finished request into a completion without its stop token; EngineDied passes through."""
        error = future.exception()
        if error is not None:
            from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

            if isinstance(error, EngineDeadError):
                raise EngineDied from error
            cause = error.__cause__ or error
            message = str(cause).strip().splitlines() or [""]
            return failed(
                f"engine: {type(cause).__name__}: {message[0]}", retryable=isinstance(error, EngineGenerateError)
            )
        output, scored = future.result()
        answer = output.outputs[0]
        if answer.finish_reason not in ("stop", "length"):
            return failed(f"engine: the request ended with {answer.finish_reason!r}", retryable=True)
        token_ids = tuple(answer.token_ids)
        logprobs = _chosen_logprobs(answer)
        require_finite([*logprobs, *scored], self.checkpoint.path, self._dtype, len(output.prompt_token_ids))
        if answer.finish_reason == "stop" and token_ids and token_ids[-1] in self._stops:
            token_ids = token_ids[:-1]
        return Completion(
            text=decode_answer(self._tokenizer, token_ids),
            token_ids=token_ids,
            finish_reason=answer.finish_reason,
            seconds=seconds,
            num_cached_tokens=output.num_cached_tokens or 0,
            logprobs=logprobs[: len(token_ids)] if self.logprobs else (),
            candidate_logprobs=tuple(scored),
        )

    @property
    def _batch_invariant(self) -> bool:
        return self.options.deterministic and self.device == "cuda"

    def _start(self) -> Engine:
        if self.options.dtype == "auto" and self.device == "cpu":
            self.warnings = say_which(self.checkpoint.dtype, self.checkpoint.hidden_size)
        release = tuple(int(part) for part in self.version.split(".")[:2])
        config = engine_config(
            self.checkpoint,
            overrides=vllm_mapping(self._started_with.mapping, release, self.max_model_len),
            max_model_len=self.max_model_len,
            options=self.options,
            device=self.device,
        )
        return Engine(
            config,
            stall_seconds=self.options.stall_seconds,
            adapter=self.checkpoint.adapter,
            batch_invariant=self._batch_invariant,
        )

    def _restart(self, unanswered: int) -> None:
        """Start the engine again, under the rule that it served last.

        Raises:
            EngineLost: it may not be started again, for it died too often, or before it gave any answer.
        """
        reason = self._last_words()
        self._engine.close()
        self._deaths += 1
        if not self._answered:
            raise EngineLost(
                f"vLLM's engine process died, or did nothing for {self.options.stall_seconds:g} s, before its first "
                f"answer; {reason}."
            )
        if self._deaths > self.options.max_restarts:
            raise EngineLost(
                f"vLLM's engine process died, or did nothing for {self.options.stall_seconds:g} s, {self._deaths} "
                f"times, the last time with {unanswered} prompts unanswered; {reason}. The same command goes on from "
                "what is recorded."
            )
        self._running = self._start()
        try:
            if self._served is not self._started_with:
                self._write_table()
        except EngineDied:
            self._restart(unanswered)
        else:
            self.read_back = self._read_back()

    def _last_words(self) -> str:
        return f"vLLM said: {said}" if (said := self._engine.last_error) else _WORDLESS

    def _probe(self) -> None:
        """Ask a first question, so that what fails with every one is told now, with its cause; note the attention.

        Raises:
            BadInput: the adapter changes nothing.
            EngineError: the engine died of it or refused it, or its numbers are not finite. It is ended first.
        """
        engine, adapter = self._engine, self.checkpoint.adapter
        ids = self._tokenizer(PROBE, add_special_tokens=False).input_ids
        try:
            logprobs = engine.probe(ids, adapted=True)
            require_finite(logprobs, self.checkpoint.path, self._dtype, len(ids))
            if adapter is not None:
                require_adapter_in_use(adapter, engine.probe(ids, adapted=False), logprobs, f"in {self._dtype}")
            self._attention = sorted({name for worker in engine.call("evalkit_attention") for name in worker})
        except EngineDied as error:
            reason = self._last_words()
            self.close()
            raise EngineError(f"vLLM's engine process died of its first request; {reason}.") from error
        except EvalkitError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise EngineError(f"vLLM refuses every request: {first_line(error)}.") from error

    @property
    def _dtype(self) -> str:
        return str(self._engine.config.model_config.dtype).removeprefix("torch.")

    def _write_table(self) -> None:
        inv_freq, attention_factor = expected_frequencies(self.checkpoint, self._served)[""]
        self._engine.call("evalkit_write_rope", inv_freq.tolist(), attention_factor)
        self._engine.reset_prefix_cache()

    def _read_back(self) -> list[dict[str, Any]]:
        """Compare the loaded rotary tables with the rule, and describe them.

        Raises:
            EngineError: one covers fewer positions than the longest request, or computes something else. The engine is
                ended first.
        """
        try:
            tables = [table for worker in self._engine.call("evalkit_rope_tables") for table in worker]
            expected = expected_frequencies(self.checkpoint, self._served)
            tolerance = TOLERANCE if self.device == "cpu" else GPU_TOLERANCE
            if tables:
                return compare_tables(tables, expected, positions=self.max_model_len, tolerance=tolerance)
            modules = [module for worker in self._engine.call("evalkit_rope_modules") for module in worker]
            effective = [EffectiveRope(**{**m, "inv_freq": np.asarray(m["inv_freq"])}) for m in modules]
            return [entry.to_json() for entry in compare_model(expected, effective, tolerance=tolerance)]
        except EngineDied as error:
            self._engine.close()
            raise EngineError("vLLM's engine process died or hung while its rotary table was read back.") from error
        except EngineError:
            self._engine.close()
            raise


def compare_tables(
    tables: Sequence[Mapping[str, Any]], expected: Mapping[str, Frequencies], *, positions: int, tolerance: float
) -> list[dict[str, Any]]:
    """Compare the rotary tables of all workers with the rule, and describe each.

    Args:
        tables: from ``worker.WorkerExtension.evalkit_rope_tables``.
        expected: by layer type, from ``expected_frequencies``; empty where nothing can be compared.
        positions: prompt plus answer of the longest request, tokens.
        tolerance: largest relative difference.

    Raises:
        EngineError: a table covers fewer positions, or was made by another rule.
    """
    for table in tables:
        if table["rows"] < positions:
            raise EngineError(
                f"The rotary table of {table['where']} covers {table['rows']:,} positions and the run needs "
                f"{positions:,}; beyond its end vLLM answers with garbage: name a rope rule and factor that cover it."
            )
    if not expected:
        return []
    effective = []
    for table in tables:
        inv_freq, attention_factor = rope_from_table(table["first_row"])
        effective.append(
            EffectiveRope(where=table["where"], layer_type="", inv_freq=inv_freq, attention_factor=attention_factor)
        )
    compared = compare_model(expected, effective, tolerance=tolerance)
    return [
        {**entry.to_json(), "rows": table["rows"], "dtype": table["dtype"]}
        for entry, table in zip(compared, tables, strict=True)
    ]


def _chosen_logprobs(answer: Any) -> tuple[float, ...]:
    """Return the natural-log probability of each token of an answer, its stop token included."""
    chosen = zip(answer.token_ids, answer.logprobs, strict=True)
    return tuple(float(by_token[token].logprob) for token, by_token in chosen)
