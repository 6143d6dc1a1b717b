"""Run a campaign: many generated inputs in a few processes, each bounded in time and memory.

    python -m tests.fuzz --inputs 10000 --seed 1            all kinds, in their shares
    python -m tests.fuzz --kinds config,flags --inputs 500
    python -m tests.fuzz --only config:1234 --seed 1        one input again, with all that it prints

An input is named by its kind, its number and the campaign's seed, which make it again. A fault is anything but an end
with exit code 0, 1 or 2, of which the last says in one sentence why: a traceback, control characters in the terminal,
more than 60 s or 2 GiB, or a run that fails over what ``check`` let pass. Each is kept as a folder of small files.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.inputs import KINDS

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run the campaign and say what was found; 1 where there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="such as config,flags")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long; 0: when all inputs were tried")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where failures are saved")
    parser.add_argument("--only", help="one input, such as config:1234")
    given = parser.parse_args()
    inputs = [given.only] if given.only else planned(given.inputs, given.kinds.split(","))
    started = time.monotonic()
    tried, faults = campaign(inputs, given.seed, given.keep, given.seconds, show=bool(given.only))
    seconds = time.monotonic() - started
    each = ", ".join(f"{kind} {n:,}" for kind, n in sorted(Counter(one.partition(":")[0] for one in tried).items()))
    print(f"seed {given.seed}: {len(tried):,} inputs ({each}), {len(faults):,} faults, {seconds:,.0f} s")
    for what, names in sorted(grouped(faults).items(), key=lambda item: -len(item[1])):
        print(f"  {len(names):4} x {what}  such as {names[0]}")
    return 1 if faults else 0


def planned(count: int, kinds: list[str]) -> list[str]:
    """Return the names of inputs, kinds taken in turn by their shares."""
    turn = [
        kind for step in range(max(share for share, _ in KINDS.values())) for kind in kinds if step < KINDS[kind][0]
    ]
    return [f"{turn[number % len(turn)]}:{number}" for number in range(count)]


def campaign(
    inputs: list[str], seed: int, keep: Path, seconds: float = 0.0, show: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Try the inputs in worker processes, one after the other; one that dies or hangs is a fault, and the next goes on.

    Returns:
        The names of those tried, and for each fault its name and what happened.
    """
    waiting, tried, faults = list(inputs), [], {}
    until = time.monotonic() + seconds if seconds else float("inf")
    while waiting and time.monotonic() < until:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.worker",
            str(seed),
            str(keep.resolve()),
            *(["--show"] if show else []),
        ]
        worker = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdin is not None
        assert worker.stdout is not None
        answered = 0
        while answered < len(waiting) and time.monotonic() < until:
            print(waiting[answered], file=worker.stdin, flush=True)
            while (line := worker.stdout.readline()) and not line.startswith("@@"):
                print(line, end="")
            if not line:
                break
            name, fault = json.loads(line[2:])
            answered += 1
            tried.append(name)
            if fault:
                faults[name] = fault
                print(f"{name}: {fault}", flush=True)
        worker.stdin.close()
        worker.wait()
        if answered < len(waiting) and time.monotonic() < until:  # it died of what it was given last
            name = waiting[answered]
            answered += 1
            tried.append(name)
            faults[name] = f"the process ended with code {worker.returncode} (a hang over 60 s, or a crash)"
            print(f"{name}: {faults[name]}", flush=True)
        waiting = waiting[answered:]
    return tried, faults


def grouped(faults: dict[str, str]) -> dict[str, list[str]]:
    """Return the names of the inputs by what happened."""
    found: dict[str, list[str]] = {}
    for name, what in faults.items():
        found.setdefault(what, []).append(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
