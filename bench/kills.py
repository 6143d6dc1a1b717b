"""Kill actors, nodes and the driver of a run on a Ray cluster at random, and count what was lost or asked twice.

    python bench/kills.py --kills 50 --seed 0

The cluster has three nodes on this machine, the run scripted engines that take a twentieth of a second an answer. A
killed driver is started again by the same command, a killed node is replaced by a new one.
"""

import os

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

_PATIENCE_SECONDS = 300.0


def recorded(folder: Path) -> list[tuple[str, ...]]:
    """Whole lines of a run folder: key, output and error."""
    file = folder / "predictions.jsonl"
    whole = [line for line in file.read_bytes().splitlines(True) if line.endswith(b"\n")] if file.exists() else []
    read = map(json.loads, whole)
    return [(one["subset"], one["length"], one["sample_id"], str(one["output"]), str(one["error"])) for one in read]


def engines(session: str) -> list[int]:
    """Processes of engines, as Ray names them, whose logs lie in the folder of a cluster."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::Replica") and any(
                os.readlink(file).startswith(session) for file in (folder / "fd").iterdir()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


class Campaign:
    """A cluster, a run on it, and what is killed."""

    def __init__(self, folder: Path, samples: int, seed: int) -> None:
        from ray.cluster_utils import Cluster

        from evalkit.models.new_checkpoint import write_checkpoint

        self.folder, self.draw = folder, random.Random(seed)
        write_checkpoint(folder / "tiny", window=2048, seed=0)
        self.cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.session = self.cluster.head_node.get_session_dir_path()
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(3)]
        self.samples, self.killed = samples, Counter[str]()
        self.driver: Any = None

    def command(self, out: str, *more: str) -> list[str]:
        run = [sys.executable, "-m", "evalkit", "run", "--model", str(self.folder / "tiny"), "--task", "babilong"]
        run += ["--backend", "scripted", "--script", "slow", "--lengths", "1k", "--subsets", "qa1,qa6", "--quiet"]
        return [*run, "--samples", str(self.samples), "--out", str(self.folder / out), *more]

    def start(self) -> None:
        more = ("--ray", self.cluster.address, "--replicas", "3")
        self.driver = subprocess.Popen(self.command("killed", *more), stdout=subprocess.DEVNULL)

    def kill(self) -> str:
        """Kill something, and return what."""
        what = self.draw.choice(["actor", "actor", "node", "driver"])
        if what == "actor" and (found := engines(self.session)):
            os.kill(self.draw.choice(found), signal.SIGKILL)
        elif what == "node":
            node = self.nodes.pop(self.draw.randrange(len(self.nodes)))
            self.cluster.remove_node(node, allow_graceful=False)
            self.nodes.append(self.cluster.add_node(num_cpus=1))
        elif what == "driver":
            self.driver.kill()
            self.driver.wait()
            self.start()
        else:
            return self.kill()
        self.killed[what] += 1
        return what

    def wait_for(self, number: int) -> bool:
        """Wait until so many answers are recorded; False where the run is over."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while len(recorded(self.folder / "killed")) < number:
            if self.driver.poll() is not None:
                return False
            if time.monotonic() > until:
                raise SystemExit(f"no answer for {_PATIENCE_SECONDS:g} s after {dict(self.killed)}")
            time.sleep(0.2)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--between", type=int, default=40, help="answers between two kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign(Path(scratch), samples=args.kills * args.between, seed=args.seed)
        try:
            campaign.start()
            before: list[tuple[str, ...]] = []
            for _ in range(args.kills):
                if not campaign.wait_for(len(before) + campaign.draw.randint(1, args.between)):
                    break
                what = campaign.kill()
                now = recorded(Path(scratch) / "killed")
                assert now[: len(before)] == before, "a recorded answer was changed or lost"
                print(f"{time.monotonic() - started:6.0f} s  {len(now):5} recorded, killed: {what}", flush=True)
                before = now
            status = campaign.driver.wait()
        finally:
            campaign.driver.kill()
            campaign.cluster.shutdown()
        subprocess.run(campaign.command("whole"), stdout=subprocess.DEVNULL, check=True)
        found, whole = recorded(Path(scratch) / "killed"), recorded(Path(scratch) / "whole")
    answered = [one for one in found if one[-1] == "None"]
    keys = [one[:3] for one in answered]
    print(f"kills: {sum(campaign.killed.values())} ({dict(campaign.killed)}), exit code of the last driver {status}")
    print(
        f"samples {len(whole)}: recorded {len(found)}, of them answered {len(answered)}, given up "
        f"{len(found) - len(answered)}, asked twice {len(keys) - len(set(keys))}, lost "
        f"{len(set(whole) - set(answered))}, other answers than one engine's {len(set(answered) - set(whole))}"
    )
    print(f"seconds {time.monotonic() - started:.0f}")


if __name__ == "__main__":
    main()
