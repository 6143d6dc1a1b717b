"""How long a large report takes, and how much memory.

    python bench/report.py [--runs 40] [--predictions 1000000] [--folder DIR]

Writes runs with stored scores (kept in --folder, if given, for the next time), then reports on them in a process of its
own. Goal: a million predictions over 40 runs in under 60 s and 2 GB on 2 cores.
"""

import argparse
import resource
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from evalkit import benchmarks
from evalkit.records.folder import RunFolder
from evalkit.types import Key, Prediction, Score

SUBSETS = ("qa1", "qa2", "qa3", "qa4", "qa5")
LENGTHS = {"8k": 8192, "16k": 16384, "32k": 32768, "64k": 65536, "128k": 131072}
PLACES = ("garden", "kitchen", "office", "hallway")


def write_run(folder: Path, number: int, per_cell: int) -> None:
    """Write one run whose accuracy falls with length, with official and corrected scores."""
    rng = np.random.default_rng(number)
    predictions, values = [], {}
    for s, subset in enumerate(SUBSETS):
        for step, (length, tokens) in enumerate(LENGTHS.items()):
            right = rng.random(per_cell) < 0.95 - 0.15 * step + 0.004 * number - 0.02 * s
            for i in range(per_cell):
                target = PLACES[i % 4]
                prediction = Prediction(
                    task="babilong",
                    subset=subset,
                    length=length,
                    sample_id=f"{i:05d}",
                    story_id=f"{subset}-{i:05d}",
                    question="Where is Mary?",
                    target=target,
                    prompt_tokens=tokens - 20,
                    prompt_sha256=f"{i:064x}",
                    max_new_tokens=20,
                    fact_positions=(i % tokens, (7 * i) % tokens),
                    output=f"Mary is in the {target if right[i] else PLACES[(i + 1) % 4]}.",
                    output_tokens=6,
                    finish_reason="stop",
                    metadata={"supporting": [1]},
                )
                predictions.append(prediction)
                values[prediction.key] = float(right[i])
    config = {"task": "babilong", "trained_length": 8192}
    parts = {"checkpoint.weights": number, "card": "babilong", "data.seed": 0}
    with RunFolder.start(folder, arm=f"arm {number:02d}", config=config, fingerprint=parts, provenance={}) as run:
        run.extend(predictions)
        run.keep_scores(run.score_table(partial(scores_of, values), benchmarks.scorer_version("babilong")))


def scores_of(values: dict[Key, float], prediction: Prediction) -> list[Score]:
    return [Score(key=prediction.key, scorer=n, value=values[prediction.key]) for n in ("official", "corrected")]


def report(folder: Path, out: Path) -> None:
    """Report, and say how long each part took and what it needed at its peak."""
    from evalkit.report.analysis import analyse
    from evalkit.report.build import build
    from evalkit.report.load import load_runs

    started = time.perf_counter()
    loaded = load_runs([folder])
    read = time.perf_counter()
    print(f"load {len(loaded.frame) // 2:,} predictions of {len(loaded.runs)} runs: {read - started:.1f} s", flush=True)
    analyse(loaded)
    print(f"analyse: {time.perf_counter() - read:.1f} s", flush=True)
    del loaded
    started = time.perf_counter()
    built = build([folder], out)
    wall = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = sum(path.stat().st_size for path in built.files) / 2**20
    print(f"whole report ({len(built.files)} files, {size:.0f} MiB): {wall:.1f} s, peak memory {peak:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--predictions", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    per_cell = arguments.predictions // (arguments.runs * len(SUBSETS) * len(LENGTHS))
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch) / "results"
        for number in range(arguments.runs):
            if not (folder / f"run-{number:02d}" / "scores.parquet").exists():
                write_run(folder / f"run-{number:02d}", number, per_cell)
        worker = get_context("spawn").Process(target=report, args=(folder, Path(scratch) / "plots"))
        worker.start()
        worker.join()


if __name__ == "__main__":
    main()
