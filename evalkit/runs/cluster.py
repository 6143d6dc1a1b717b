"""Ray, started on this machine or joined elsewhere, and what its nodes have for engines."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from evalkit.errors import BadInput
from evalkit.files import environment, first_line
from evalkit.machine import how_to_install
from evalkit.runs.reaper import reaped_folder

_GREETING_SECONDS = 5.0
_OBJECT_STORE_BYTES = 128 * 2**20
"""Keys and answers pass through, no prompts; Ray's own default is a third of the memory."""
_OF_OUR_OWN = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's name for "one machine only": its processes then listen on the loopback address alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",  # by default actors give way to every other process of the machine
}


class Needs(NamedTuple):
    """What one engine takes of a node."""

    gpus: int
    cpus: int

    def fit(self, nodes: "list[Node]") -> int:
        """Return how many engines fit, each on one node."""
        gpus = sum(node.gpus // self.gpus for node in nodes) if self.gpus else None
        return sum(node.cpus // self.cpus for node in nodes) if gpus is None else gpus


class Node(NamedTuple):
    """A machine of the cluster, as Ray counts it."""

    name: str
    gpus: int
    cpus: int


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Start Ray on this machine, or join a cluster, and give the module ``ray``; at the end a Ray of ours is gone.

    A Ray that this process has connected to already is used, and left as it is.

    Args:
        address: the head's HOST:PORT, or auto; None starts one.

    Raises:
        BadInput: Ray is missing, nobody answers at the address, or a Ray or Python of another version does.
    """
    try:
        with environment(_OF_OUR_OWN if address is None else {"RAY_USAGE_STATS_ENABLED": "0"}):  # read on import
            import ray
    except ImportError as error:
        raise BadInput(
            f"Ray is not installed here: {how_to_install('ray')}, or leave out --replicas and --ray "
            f"({first_line(error)})."
        ) from None
    if ray.is_initialized():
        yield ray
        return
    with ExitStack() as stack:
        if address is None:
            folder = stack.enter_context(reaped_folder())
            with environment(_OF_OUR_OWN):
                ray.init(
                    "local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="error",
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(folder),
                )
        else:
            _join(ray, address)
        stack.callback(ray.shutdown)
        # It prints what becomes of workers on stdout, where the tables go; evalkit says itself which engine was lost.
        ray._private.worker.print_to_stdstream = lambda *args, **kwargs: None
        yield ray


def _join(ray: Any, address: str) -> None:
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise BadInput(f"--ray is {address!r}; write the address of the head like 10.0.0.1:6379, or auto.")
        try:
            socket.create_connection((host, int(port)), timeout=_GREETING_SECONDS).close()
        except OSError as error:
            raise BadInput(
                f"No Ray answers at {address} ({error.strerror or error}); start its head with "
                "'ray start --head --port 6379', or name the address that it printed."
            ) from None
    try:
        ray.init(address, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        if "ersion mismatch" in said:
            raise BadInput(
                f"The Ray at {address} is of another version than this one: {said.rstrip('.')}; use the same Ray and "
                "Python on all machines."
            ) from None
        raise BadInput(
            f"No Ray answers at {address} ({first_line(error)}); start its head with 'ray start --head --port 6379', "
            "or name the address that it printed."
        ) from None


def nodes(ray: Any) -> list[Node]:
    """Return the machines that are there now and have room for work."""
    found = []
    for node in ray.nodes():
        resources = node["Resources"]
        if node["Alive"] and resources.get("CPU"):
            found.append(Node(node["NodeName"], int(resources.get("GPU", 0)), int(resources["CPU"])))
    return found


def alive(ray: Any, node_id: str) -> bool:
    """Tell whether a machine is still there."""
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def needs(found: list[Node], replicas: int | None, gpus: int) -> Needs:
    """Return what each engine takes, so that all find room.

    Args:
        found: the machines.
        replicas: how many engines; None: as many as there are GPUs for.
        gpus: that one engine takes where there are any (``BackendOptions.gpus``).

    Raises:
        BadInput: more engines than devices, or their number is not said where there are no GPUs to count.
    """
    if gpus and any(node.gpus for node in found):
        each, have = Needs(gpus, 1), ", ".join(str(node.gpus) for node in found)
        if (replicas or 1) > each.fit(found):
            raise BadInput(
                f"{replicas or 1} engines of {gpus} GPUs each do not fit on {len(found)} machines with {have} GPUs, "
                f"which have room for {each.fit(found)}; lower --replicas or --tensor-parallel."
            )
        return each
    if replicas is None:
        raise BadInput("This Ray cluster has no GPUs to count engines by; say how many with --replicas.")
    for cpus in range(sum(node.cpus for node in found) // replicas, 0, -1):
        if Needs(0, cpus).fit(found) >= replicas:
            return Needs(0, cpus)
    cores = sum(node.cpus for node in found)
    raise BadInput(f"--replicas is {replicas} and there are {cores} processor cores for them; start at most {cores}.")


def here() -> str:
    """Return the working directory, from which a node reads relative paths."""
    return os.getcwd()
