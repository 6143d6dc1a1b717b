"""Run a campaign: commands that are killed at the calls with which they write, and repeated.

    python -m tests.kills --kills 200 --seed 1                  all commands, in their shares
    python -m tests.kills --commands score,import --kills 20
    python -m tests.kills --seed 1 --only score:7               one try again, with what it printed

A try is named by its command and number, which with the seed make it again. It starts in a fresh folder, is killed
before, after or half-way through a call that changes a file, or at a random moment (the process that makes the call, or
all), is repeated and sometimes killed again, and repeated to its end. It is a fault where something recorded is lost or
asked twice, where a command does not end well, or where its folder then differs from one in which nothing was killed.
"""

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

from tests.kills import on_ray
from tests.kills.campaign import Campaign, Outcome
from tests.kills.scenarios import RAY_SHARE, SCENARIOS
from tests.kills.tracing import missing

RAY = "run-ray"


def main() -> int:
    """Run the campaign and say what was found; 1 where there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join([*SCENARIOS, RAY]), help="such as score,import")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long; 0: when all is done")
    parser.add_argument("--only", help="one try, such as score:7")
    given = parser.parse_args()
    if unknown := set(given.commands.split(",")) - {*SCENARIOS, RAY}:
        parser.error(f"--commands: there is no {min(unknown)}; there are {', '.join([*SCENARIOS, RAY])}")
    if why := missing():
        print(f"nothing can be tried: {why}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = list(carried_out(given, Path(scratch)))
    total = [sum(numbers) for numbers in zip(*((one.kills, len(one.faults)) for one in outcomes), strict=True)]
    kills, faults = total or (0, 0)
    print(f"seed {given.seed}: {kills} kills, {faults} faults")
    return 1 if faults else 0


def carried_out(given: argparse.Namespace, scratch: Path) -> Iterator[Outcome]:
    """Yield what came of each command, told as it ends."""
    names = [given.only.partition(":")[0]] if given.only else given.commands.split(",")
    shares = {name: scenario.share for name, scenario in SCENARIOS.items()} | {RAY: RAY_SHARE}
    possible = [name for name in names if (find_spec("ray") if name == RAY else SCENARIOS[name].is_possible)]
    whole = sum(shares[name] for name in possible)
    until = time.monotonic() + given.seconds if given.seconds else float("inf")
    campaign = Campaign(scratch, given.seed, until)
    for name in names:
        started = time.monotonic()
        if name not in possible:
            print(f"{name:15} left out: its library is not installed", flush=True)
            continue
        kills = math.ceil(given.kills * shares[name] / whole)  # never fewer in all than were asked for
        if name == RAY:
            outcome = on_ray.campaign(scratch / "ray", kills, given.seed)
        elif given.only:
            outcome = campaign.once(name, int(given.only.partition(":")[2]), show=True)
        else:
            outcome = campaign.carry_out(name, kills)
        print(
            f"{name:15} {outcome.kills:3} kills ({outcome.told}), {len(outcome.faults)} faults, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
        yield outcome


if __name__ == "__main__":
    sys.exit(main())
