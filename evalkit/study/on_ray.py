"""Steps of a study side by side on Ray, one device each: on this machine, or on a cluster whose nodes share its folder.

A step whose process or node is lost is done again, on another device: it goes on from what it left in its folder.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Self

from evalkit.errors import EngineError
from evalkit.files import first_line
from evalkit.runs import cluster
from evalkit.study.steps import Step
from evalkit.study.study import Study
from evalkit.study.workers import OnShare, OnStep, failure, outcome

_ATTEMPTS = 3
"""A step that has lost its process so often is not done again."""


class Devices:
    """Carries out steps on Ray, as ``workers.Workers`` does in processes; a context manager."""

    def __init__(self, replicas: int | None, address: str | None, study: Study) -> None:
        """Start or join Ray.

        Args:
            replicas: steps side by side; None: as many as there are GPUs.
            address: see ``cluster.cluster``.
            study: whose steps they are.

        Raises:
            BadInput: see ``cluster.cluster`` and ``cluster.needs``.
        """
        self._stack = ExitStack()
        try:
            self._ray = self._stack.enter_context(cluster.cluster(address))
            found = cluster.nodes(self._ray)
            needs = cluster.needs(found, replicas, gpus=1)
        except BaseException:
            self._stack.close()
            raise
        self._number, self._threads = replicas or needs.fit(found), needs.cpus
        variables = {name: value for name, value in study.environment.items() if name not in os.environ}
        self._task = self._ray.remote(_carry_out).options(
            num_gpus=needs.gpus,
            num_cpus=needs.cpus,
            max_retries=0,
            scheduling_strategy="SPREAD",
            num_returns="streaming",
            runtime_env={"env_vars": variables} if variables else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def carry_out(self, steps: Sequence[Step], *, on_step: OnStep, on_share: OnShare) -> None:
        """Carry out steps that do not depend on each other.

        Raises:
            EvalkitError: one failed, or lost its process again and again; the others are not waited for.
        """
        from ray.exceptions import RayError, RayTaskError

        waiting, running, losses = list(reversed(steps)), dict[Any, Step](), Counter[str]()
        while waiting or running:
            while waiting and len(running) < self._number:
                step = waiting.pop()
                running[self._task.remote(step, os.getcwd(), self._threads)] = step
                on_share(step, 0.0)
            [ready], _ = self._ray.wait(list(running), num_returns=1)
            step = running[ready]
            try:
                told = self._ray.get(next(ready))
            except RayTaskError as error:
                raise EngineError(
                    f"{step} cannot be begun in a process of Ray's: {first_line(error.cause)}."
                ) from error
            except RayError as error:
                del running[ready]
                losses[str(step)] += 1
                if losses[str(step)] == _ATTEMPTS:
                    raise EngineError(
                        f"{step}: its process was lost {_ATTEMPTS} times ({first_line(error)}); what was finished "
                        "stays, and the same command goes on."
                    ) from error
                waiting.append(step)
                continue
            if isinstance(told, float):
                on_share(step, told)
                continue
            del running[ready]
            if isinstance(told, Exception):
                raise failure(step, told)
            on_step(step, told)


def _carry_out(step: Step, folder: str, threads: int) -> Iterator[float | str | Exception]:
    """In a process of Ray's: yield shares, and at the end a line or an error."""
    if os.path.isdir(folder):
        os.chdir(folder)
    heard: SimpleQueue[float | str | Exception] = SimpleQueue()
    Thread(target=lambda: heard.put(outcome(step, threads, heard.put)), daemon=True).start()
    while isinstance(told := heard.get(), float):
        yield told
    yield told
