"""Replay the event loop of a run on many engines against the real planner and the real store: do they keep up?

    python bench/scale.py --engines 1000 --samples 1000000

Engines are simulated on a clock of their own: each holds what the planner gives it and answers one after the other.
Everything else is what a run does: ``runs/work.py`` decides who gets what, ``records/folder.py`` writes each answer and
forces it to the disk. Now and then an engine is lost. Printed are the seconds that planner and store took, and how
memory grows with the answers.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import heapq
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from evalkit.records.folder import RunFolder
from evalkit.runs.answers import Name
from evalkit.runs.work import Work
from evalkit.types import Key, Prediction

_LENGTHS = ("128k", "64k", "32k", "16k", "8k")
_SECONDS = {"128k": 16.0, "64k": 6.0, "32k": 2.5, "16k": 1.1, "8k": 0.5}
"""Simulated, of one answer; the planner's order does not hang on it."""


def resident() -> float:
    """MiB of this process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def contexts(samples: int) -> Iterator[tuple[Name, ...]]:
    """Keys of one rope rule, longest first, made when they are pulled, as a generator of samples makes them."""
    each = samples // len(_LENGTHS)
    for length in _LENGTHS:
        for number in range(each):
            yield ((Key("babilong", f"qa{number % 5 + 1}", length, f"{number // 5:07d}"), 1),)


def prediction(key: Key) -> Prediction:
    """A line of the size that a real one has."""
    return Prediction(
        task=key.task,
        subset=key.subset,
        length=key.length,
        sample_id=key.sample_id,
        story_id=f"{key.subset}-{key.sample_id}",
        question="Where is Mary?",
        target="kitchen",
        prompt_tokens=131_050,
        prompt_sha256="0" * 64,
        max_new_tokens=20,
        fact_positions=(365, 443, 621, 735),
        output="Mary is in the kitchen.",
        output_tokens=6,
        finish_reason="stop",
        metadata={"facts": ["Mary moved to the garden.", "Mary went to the kitchen."], "supporting": [1]},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--lose", type=int, default=100_000, help="answers between two lost engines")
    parser.add_argument("--no-store", action="store_true", help="the planner alone")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, total = random.Random(args.seed), args.samples // len(_LENGTHS) * len(_LENGTHS)
    work = Work([(contexts(total), total)])
    work.rules[0].engines = args.engines
    held: list[dict[Name, None]] = [{} for _ in range(args.engines)]
    queue: list[tuple[float, int]] = []
    planning = storing = now = 0.0
    answered = lost = 0
    start = resident()
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder.start(Path(scratch) / "r", arm="simulated", config={}, fingerprint={"p": 1}, provenance={})
        folder.identify({"name": "simulated"})
        began = time.perf_counter()

        def give(engine: int) -> None:
            nonlocal planning
            before, idle = time.perf_counter(), not held[engine]
            held[engine].update(dict.fromkeys(work.take(0, held[engine])))
            planning += time.perf_counter() - before
            if idle and held[engine]:
                heapq.heappush(
                    queue, (now + _SECONDS[next(iter(held[engine]))[0].length] * draw.uniform(0.8, 1.2), engine)
                )

        for engine in range(args.engines):
            give(engine)
        while work.left:
            now, engine = heapq.heappop(queue)
            if not held[engine]:
                continue
            if args.lose and draw.random() < 1 / args.lose:
                before = time.perf_counter()
                answered += len(work.lost(0, list(held[engine]), blameless=draw.random() < 0.5))
                planning += time.perf_counter() - before
                held[engine].clear()
                lost += 1
            else:
                key = next(iter(held[engine]))
                del held[engine][key]
                before = time.perf_counter()
                work.done(0, key)
                planning += time.perf_counter() - before
                if not args.no_store:
                    before = time.perf_counter()
                    folder.append(prediction(key[0]))
                    storing += time.perf_counter() - before
                answered += 1
                if answered % (total // 10) == 0:
                    print(f"{answered:>11,} answered, {resident():8.0f} MiB resident", flush=True)
            if held[engine]:
                length = next(iter(held[engine]))[0].length
                heapq.heappush(queue, (now + _SECONDS[length] * draw.uniform(0.8, 1.2), engine))
                before = time.perf_counter()
                held[engine].update(dict.fromkeys(work.take(0, held[engine])))
                planning += time.perf_counter() - before
            else:
                give(engine)
            if work.left and not queue:
                for idle in range(args.engines):
                    give(idle)
        took = time.perf_counter() - began
        folder.close()
    print(f"{args.engines:,} engines, {answered:,} samples, {lost:,} engines lost")
    print(f"simulated {now / 3600:.1f} h, took {took:.0f} s ({time.process_time():.0f} s of processor time)")
    print(
        f"planner {1e6 * planning / answered:.1f} us a sample, store {1e6 * storing / answered:.1f} us a sample; "
        f"the engines bring {answered / now:,.0f} answers a second"
    )
    print(
        f"memory: {start:.0f} MiB before, {resident():.0f} MiB after: "
        f"{(resident() - start) * 2**20 / answered:.0f} bytes a sample"
    )


if __name__ == "__main__":
    main()
