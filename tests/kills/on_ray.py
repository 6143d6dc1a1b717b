"""Actors, nodes and the driver of a run on a Ray cluster of three nodes, killed at random.

The engines are scripted and take a twentieth of a second an answer. A killed driver is started again by the same
command, a killed node is replaced by a new one.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.kills import checks
from tests.kills.campaign import Outcome

_PATIENCE_SECONDS = 300.0
_BETWEEN = 40
"""Answers between two kills, at most."""


def campaign(folder: Path, kills: int, seed: int, between: int = _BETWEEN) -> Outcome:
    """Kill so often, or until the run is done, and say what came of it."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ |= {"RAY_raylet_start_wait_time_s": "300"}  # on a machine that is busy
    on_cluster = _Run(folder, samples=kills * between, seed=seed)
    outcome = on_cluster.outcome
    try:
        on_cluster.start()
        before: list[bytes] = []
        for _ in range(kills):
            if not on_cluster.wait_for(len(before) + on_cluster.draw.randint(1, between)):
                break
            what = on_cluster.kill()
            outcome.kills += 1
            outcome.how[what] += 1
            now = on_cluster.lines()
            if now[: len(before)] != before:
                outcome.faults.append(f"a recorded answer was lost when {what} was killed")
            before = now
        if code := on_cluster.driver.wait():
            outcome.faults.append(f"the last driver ended with code {code}")
    finally:
        on_cluster.driver.kill()
        on_cluster.cluster.shutdown()
    subprocess.run(on_cluster.command("whole"), stdout=subprocess.DEVNULL, check=True)
    found = checks.differences(folder / "killed", folder / "whole")
    outcome.faults += [one for one in found if not one.startswith("run.json")]  # which says how many engines there were
    for fault in outcome.faults:
        print(f"FAULT --seed {seed} --commands run-ray: {fault}", flush=True)
    return outcome


def engines(session: str) -> list[int]:
    """Return the processes of engines, as Ray names them, whose logs lie in the folder of a cluster."""
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


class _Run:
    """A cluster, a run on it, and what is killed."""

    def __init__(self, folder: Path, samples: int, seed: int) -> None:
        from ray.cluster_utils import Cluster

        from evalkit.models.new_checkpoint import write_checkpoint

        self.folder, self.draw, self.outcome = folder, random.Random(seed), Outcome()
        write_checkpoint(folder / "tiny", window=2048, seed=0)
        self.cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.session = self.cluster.head_node.get_session_dir_path()
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(3)]
        self.samples = samples
        self.driver: Any = None

    def command(self, out: str, *more: str) -> list[str]:
        run = [sys.executable, "-m", "evalkit", "run", "--model", str(self.folder / "tiny"), "--task", "babilong"]
        run += ["--backend", "scripted", "--script", "slow", "--lengths", "1k", "--subsets", "qa1,qa6", "--quiet"]
        return [*run, "--samples", str(self.samples // 2), "--out", str(self.folder / out), *more]

    def start(self) -> None:
        more = ("--ray", self.cluster.address, "--replicas", "3")
        self.driver = subprocess.Popen(self.command("killed", *more), stdout=subprocess.DEVNULL)

    def lines(self) -> list[bytes]:
        return checks.recorded(self.folder / "killed").get("predictions.jsonl", [])

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
        return what

    def wait_for(self, number: int) -> bool:
        """Wait until so many answers are recorded; False where the run is over."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while len(self.lines()) < number:
            if self.driver.poll() is not None:
                return False
            if time.monotonic() > until:
                raise SystemExit(f"no answer for {_PATIENCE_SECONDS:g} s after {self.outcome.told}")
            time.sleep(0.2)
        return True
