"""Two engines against one on the cores of this machine: hf on Ray, the same questions, in turn.

    python bench/replicas.py --rounds 3

Answering is from the first engine that is ready to the last answer; the start of Ray and of the engines is told apart.
"""

import os

os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it to the cores that an engine has

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=60)
    args = parser.parse_args()
    from evalkit.models.new_checkpoint import write_checkpoint

    answering: dict[int, list[float]] = {1: [], 2: []}
    whole: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoint(Path(scratch) / "ckpt", window=4096, hidden_size=256)
        for number in range(args.rounds):
            for replicas in (1, 2) if number % 2 else (2, 1):
                out = Path(scratch) / f"{replicas}-{number}"
                command = [sys.executable, "-m", "evalkit", "run", "--model", f"{scratch}/ckpt", "--task", "babilong"]
                command += ["--backend", "hf", "--lengths", "4k", "--subsets", "qa1", "--samples", str(args.samples)]
                started = time.perf_counter()
                subprocess.run([*command, "--quiet", "--out", str(out), "--replicas", str(replicas)], check=True)
                whole[replicas].append(time.perf_counter() - started)
                entry = json.loads((out / "run.json").read_text())["provenance"][-1]
                answering[replicas].append(sum(one["seconds"] for one in entry["pace"]["by_length"].values()))
                told = f"answering {answering[replicas][-1]:.1f} s, in all {whole[replicas][-1]:.1f} s"
                print(f"{replicas} engines: {told}", flush=True)
    for name, seconds in (("answering", answering), ("in all", whole)):
        ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
        told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"{name}: two engines are {statistics.median(ratios):.2f} times as fast as one (rounds: {told}); load now "
            f"{os.getloadavg()[0]:.0f}"
        )


if __name__ == "__main__":
    main()
