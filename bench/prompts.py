"""How fast prompts are built, and how much memory that takes.

    python bench/prompts.py [--length 128k] [--prompts 1000]

Builds BABILong prompts for a small byte-level BPE tokenizer and streams them, as a run does. Prints tokens per second
on one core once the background is cached, the peak memory, and the ratio to tokenizing the same texts anew.
"""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource

BARE = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

import argparse
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

from evalkit.benchmarks.babilong.task import BABILong
from evalkit.benchmarks.cards import load_card
from evalkit.lengths import parse_length
from evalkit.models.encoder import Encoder
from evalkit.models.new_checkpoint import write_checkpoint

REPEATS = 3


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build(folder: Path, length: str, subset: str, count: int, *, report: bool) -> None:
    """Build ``count`` prompts from the checkpoint and cache in ``folder``; say how that went."""
    window = parse_length(length)
    encoder = Encoder.open(folder / "ckpt")
    encoder.encode_prompt("warm")
    warm = peak_mib()
    started = time.perf_counter()
    benchmark = BABILong(load_card("babilong"))
    last = benchmark.prompt(next(benchmark.samples(subset, length, 1)), length, encoder, window)
    first = time.perf_counter() - started
    if not report:
        print(f"first prompt, background generated and tokenized: {first:.1f} s")
        return
    print(f"first prompt, background cached: {first:.2f} s")
    samples = list(benchmark.samples(subset, length, count))
    started = time.perf_counter()
    tokens = 0
    for sample in samples:
        last = benchmark.prompt(sample, length, encoder, window)
        tokens += len(last.token_ids)
    rate = tokens / (time.perf_counter() - started)
    print(f"{len(samples)} prompts of {length}, {tokens / 1e6:.0f}M tokens: {rate / 1e6:.1f}M tokens/s")
    print(f"peak memory: {peak_mib() - BARE:.0f} MiB above the bare interpreter ({BARE:.0f} MiB), ", end="")
    print(f"{peak_mib() - warm:.0f} MiB above the one that has transformers loaded")
    text = encoder.decode(last.token_ids)
    started = time.perf_counter()
    for _ in range(REPEATS):
        encoder.encode_prompt(text)
    anew = REPEATS * len(last.token_ids) / (time.perf_counter() - started)
    print(f"tokenizing anew: {anew / 1e6:.2f}M tokens/s; assembling is {rate / anew:.0f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how fast prompts are built.")
    parser.add_argument("--length", default="128k")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--subset", default="qa3")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EVALKIT_CACHE"] = str(folder / "cache")
        write_checkpoint_apart = get_context("spawn").Process(
            target=write_checkpoint, args=(folder / "ckpt",), kwargs={"window": parse_length(arguments.length)}
        )
        stages = [write_checkpoint_apart]
        for report in (False, True):  # each in a process of its own, so that one's memory is not counted as another's
            count = arguments.prompts if report else 1
            stages.append(
                get_context("spawn").Process(
                    target=build,
                    args=(folder, arguments.length, arguments.subset, count),
                    kwargs={"report": report},
                )
            )
        for stage in stages:
            stage.start()
            stage.join()
            if stage.exitcode:
                raise SystemExit(f"a stage failed with exit code {stage.exitcode}")


if __name__ == "__main__":
    main()
