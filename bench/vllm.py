"""What the harness costs on top of vLLM, and what many requests in flight gain on a server.

    .venv-vllm/bin/python bench/vllm.py [--model CKPT] [--length 1k] [--prompts 200] [--server-prompts 96]

First the same prompts go through one engine twice, in turns: through ``VLLMBackend``, and by a bare loop that hands ids
to the very same engine. Then vLLM's own server answers one request at a time and many at a time. Without --model a
small random checkpoint is made. Prompts are random ids and new in every round, so that no cache serves them.
"""

import sys
from pathlib import Path

# This file's name would hide vLLM, here and in the processes that vLLM starts.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import argparse
import asyncio
import os
import platform
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np

from evalkit.lengths import format_length, parse_length
from evalkit.models.backends import Backend
from evalkit.models.backends.server import ServerBackend, ServerOptions
from evalkit.models.backends.vllm.backend import VLLMBackend
from evalkit.models.backends.vllm.engine import VLLMOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.new_checkpoint import write_checkpoint
from evalkit.models.rope.served import RopeRequest, served_rope
from evalkit.types import Prompt, Sample

NEW_TOKENS = 15
ROUNDS = 10
IN_FLIGHT = 32


def random_prompts(count: int, length: int, *, turn: int) -> list[Prompt]:
    rng = np.random.default_rng([turn])
    made = []
    for number in range(count):
        sample = Sample(task="bench", subset="-", sample_id=str(number), story_id="-", question="", target="")
        ids = rng.integers(300, 1000, length - NEW_TOKENS).astype(np.int32)
        made.append(Prompt(sample=sample, length="-", token_ids=ids, max_new_tokens=NEW_TOKENS))
    return made


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ask_bare(backend: VLLMBackend, prompts: list[Prompt]) -> None:
    """The least one can do: a task per prompt on the engine's own event loop, as many at a time as the backend has."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    engine = backend._engine
    params = SamplingParams(
        temperature=0.0,
        max_tokens=NEW_TOKENS,
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


def ask(backend: Backend, prompts: list[Prompt]) -> None:
    for _, completion in backend.generate(iter(prompts)):
        if completion.error is not None:
            raise SystemExit(f"bench: {completion.error}")


def overhead(checkpoint: Checkpoint, length: int, count: int, options: VLLMOptions) -> None:
    """Measure the backend against the bare loop, in turns on one engine."""
    backend = VLLMBackend(checkpoint, Encoder.open(checkpoint.path).tokenizer, options)
    backend.serve(served_rope(checkpoint, RopeRequest(), length), (), length)
    try:
        ways = {"bare loop": ask_bare, "VLLMBackend": ask}
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(-1, ROUNDS):  # the first is not counted
            for name in sorted(ways, reverse=turn % 2 == 1):  # neither always goes first
                prompts = random_prompts(count, length, turn=2 * turn + list(ways).index(name) + 2)
                spent = seconds(lambda name=name, prompts=prompts: ways[name](backend, prompts))
                if turn >= 0:
                    taken[name].append(spent)
    finally:
        backend.close()
    print(f"\n{count} prompts of {length} tokens, {NEW_TOKENS} new, one engine, {ROUNDS} rounds")
    for name, values in taken.items():
        print(f"  {name:12} median {statistics.median(values):6.2f} s, fastest {min(values):6.2f} s")
    bare, harness = (statistics.median(taken[name]) for name in ways)
    fastest_bare, fastest = (min(taken[name]) for name in ways)
    print(
        f"  the harness adds {harness / bare - 1:+.1%} by the medians, {fastest / fastest_bare - 1:+.1%} by the fastest"
    )


def serve(checkpoint: Checkpoint, length: int, options: VLLMOptions) -> tuple[str, subprocess.Popen[bytes]]:
    """Start vLLM's server and wait until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint.path)]
    command += ["--served-model-name", "bench", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", str(length)]
    if options.kv_cache_memory_bytes:
        command += ["--kv-cache-memory-bytes", str(options.kv_cache_memory_bytes)]
    if options.enforce_eager:
        command += ["--dtype", "float32", "--enforce-eager"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        if process.poll() is not None:
            raise SystemExit("bench: vLLM's server did not start; run its command by hand: " + " ".join(command))
        try:
            urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return f"http://127.0.0.1:{port}/v1", process
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(1)


def in_flight(checkpoint: Checkpoint, length: int, count: int, options: VLLMOptions) -> None:
    """Measure one request at a time against many, over the same server."""
    url, process = serve(checkpoint, length, options)
    try:
        print(f"\n{count} prompts of {length} tokens, {NEW_TOKENS} new, vLLM's server")
        rates: dict[int, float] = {}
        for turn, concurrency in enumerate((1, IN_FLIGHT, 1, IN_FLIGHT, 1, IN_FLIGHT)):
            label = format_length(length)
            asked = ServerOptions(base_url=(url,), concurrency=concurrency)
            backend = ServerBackend(checkpoint, Encoder.open(checkpoint.path), asked, groups=[(label,)])
            backend.serve(served_rope(checkpoint, RopeRequest(), length), (label,), length)
            prompts = random_prompts(count, length, turn=turn)
            rate = count / seconds(lambda backend=backend, prompts=prompts: ask(backend, prompts))
            backend.close()
            rates[concurrency] = max(rate, rates.get(concurrency, 0.0))
        for concurrency, rate in rates.items():
            print(f"  {concurrency:3} in flight: {rate:7.1f} prompts/s, best of 3")
        print(f"  {rates[IN_FLIGHT] / rates[1]:.1f} times as many")
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint folder; default: a small random one")
    parser.add_argument("--length", type=parse_length, default=1024, help="prompt and answer, such as 1k or 16k")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--server-prompts", type=int, default=96)
    arguments = parser.parse_args()

    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print(f"{platform.machine()}, {os.cpu_count()} cores, {gpu or 'no GPU'}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or Path(scratch) / "tiny"
        if arguments.model is None:
            write_checkpoint(folder, window=arguments.length, hidden_size=128)
        checkpoint = Checkpoint.open(folder)
        small = {} if gpu else {"kv_cache_memory_bytes": 512 * 2**20, "enforce_eager": True}
        options = VLLMOptions(**small)
        overhead(checkpoint, arguments.length, arguments.prompts, options)
        in_flight(checkpoint, arguments.length, arguments.server_prompts, options)


if __name__ == "__main__":
    main()
