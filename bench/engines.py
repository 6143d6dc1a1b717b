"""What ``bench/all.py`` asks vLLM with: an engine through the harness and bare, and vLLM's own server."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from urllib.error import URLError
from urllib.request import urlopen

from evalkit.models.backends import Backend
from evalkit.models.backends.vllm.backend import VLLMBackend
from evalkit.models.backends.vllm.engine import VLLMOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.types import Prompt


def ask_bare(backend: VLLMBackend, prompts: list[Prompt]) -> None:
    """The least one can do: a task per prompt on the engine's own event loop, as many at a time as the backend has."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    engine = backend._engine
    params = SamplingParams(
        temperature=0.0,
        max_tokens=prompts[0].max_new_tokens,
        stop_token_ids=list(backend._stops),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )

    async def one(number: int, prompt: Prompt, turn: asyncio.Semaphore) -> None:
        async with turn:
            async for _ in engine._llm.generate(tokens_input(prompt.token_ids.tolist()), params, f"bare-{number}"):
                pass

    async def all_of_them() -> None:
        turn = asyncio.Semaphore(backend._window)
        await asyncio.gather(*(one(number, prompt, turn) for number, prompt in enumerate(prompts)))

    engine._loop.submit(all_of_them()).result()


def with_empty_cache(backend: VLLMBackend, ask: Callable[[Backend], None]) -> None:
    """Ask what was asked before, of an engine that has forgotten it."""
    backend._engine.reset_prefix_cache()
    ask(backend)


def serve(checkpoint: Checkpoint, length: int, options: VLLMOptions) -> tuple[str, subprocess.Popen[bytes]]:
    """Start vLLM's server, which keeps no prefix, and wait until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint.path)]
    command += ["--served-model-name", "bench", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", str(length), "--no-enable-prefix-caching"]
    if options.kv_cache_memory_bytes:
        command += ["--kv-cache-memory-bytes", str(options.kv_cache_memory_bytes)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        if process.poll() is not None:
            raise SystemExit("bench: vLLM's server did not start; run its command by hand: " + " ".join(command))
        try:
            urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return f"http://127.0.0.1:{port}/v1", process
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(1)
