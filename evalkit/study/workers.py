"""Carry out a study: independent steps side by side, in processes of their own.

A step that fails ends the others at once. The processes are started anew, so that variables which libraries read when
they are loaded can be set for them, and they end when the process that started them does, however that ends.
"""

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from evalkit import files
from evalkit.errors import BadInput, EngineError, EvalkitError
from evalkit.study.steps import Step, plan_steps
from evalkit.study.study import Study

OnStep: TypeAlias = Callable[[Step, str], None]
"""Called with each step when it is finished, and what came of it."""
OnShare: TypeAlias = Callable[[Step, float], None]
"""Called with a step and the share of it that is done: 0 when it begins, and now and then while it goes on."""

_PATIENCE = 10.0
"""Seconds that a worker has to end by itself."""


def reproduce(
    study: Study,
    *,
    seeds: Sequence[int] = (),
    jobs: int = 0,
    side_by_side: "Callable[[], AbstractContextManager[Carrier]] | None" = None,
    on_step: OnStep = lambda step, what: None,
    on_share: OnShare = lambda step, share: None,
) -> Path:
    """Carry out what is missing of a study, and report.

    Args:
        study: the experiment and its folders.
        seeds: of the trainings; none: the experiment's own.
        jobs: steps side by side; 0: one a core without a GPU, one with.
        side_by_side: makes what carries them out instead of processes on this machine (``on_ray.Devices``).
        on_step: see ``OnStep``.
        on_share: see ``OnShare``.

    Returns:
        The folder of the report.

    Raises:
        EvalkitError: a step failed; those that went on beside it are ended, and all that was finished stays.
    """
    steps = plan_steps(study, seeds or study.experiment.seeds)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(sum(1 for _ in group) for _, group in groupby(steps, key=type))
    number = min(jobs or (1 if _has_gpu() else cores), most)
    with _only_one_at_work(study.root):
        _clear_litter(study.root)
        started = side_by_side() if side_by_side else Workers(number, cores=cores, environment=study.environment)
        with started as workers:
            for _, group in groupby(steps, key=type):
                workers.carry_out(list(group), on_step=on_step, on_share=on_share)
    return study.plots


class Carrier(Protocol):
    """Carries out steps, several at a time."""

    def carry_out(self, steps: Sequence[Step], *, on_step: OnStep, on_share: OnShare) -> None:
        """Carry out steps that do not depend on each other.

        Raises:
            EvalkitError: one failed; the others are not waited for.
        """
        ...


class Workers:
    """Processes that carry out steps; a context manager, at whose end they are ended."""

    def __init__(self, number: int, *, cores: int, environment: Mapping[str, str]) -> None:
        """Start them.

        Args:
            number: of processes.
            cores: that they share.
            environment: variables that have to be set before a library is loaded; what the user has set stays.
        """
        threads = max(cores // number, 1)
        self._workers: list[tuple[Any, Connection]] = []
        context = get_context("spawn")
        with files.environment({name: value for name, value in environment.items() if name not in os.environ}):
            for _ in range(number):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, threads))
                process.start()
                theirs.close()
                self._workers.append((process, ours))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, connection in self._workers:
            connection.close()  # one that waits for a step ends
            if kind:
                process.terminate()
        for process, _ in self._workers:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()

    def carry_out(self, steps: Sequence[Step], *, on_step: OnStep, on_share: OnShare) -> None:
        """Carry out steps that do not depend on each other.

        Raises:
            EvalkitError: one failed; the others are not waited for.
        """
        waiting, running = list(reversed(steps)), dict[Connection, Step]()
        free = [connection for _, connection in self._workers]
        while waiting or running:
            while waiting and free:
                connection = free.pop()
                running[connection] = waiting.pop()
                connection.send(running[connection])
                on_share(running[connection], 0.0)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                step = running[ready]
                outcome = self._hear(ready, step)
                if isinstance(outcome, float):
                    on_share(step, outcome)
                else:
                    free.append(ready)
                    del running[ready]
                    on_step(step, outcome)

    def _hear(self, connection: Connection, step: Step) -> float | str:
        """Return the share that is done of a step, or what came of it."""
        try:
            told = connection.recv()
        except EOFError:
            process = next(process for process, ours in self._workers if ours is connection)
            process.join(_PATIENCE)
            raise EngineError(
                f"{step}: its process was ended from outside (exit code {process.exitcode}; -9 is most often for want "
                "of memory); what was finished stays, and the same command goes on."
            ) from None
        if isinstance(told, Exception):
            raise failure(step, told)
        heard: float | str = told
        return heard


def failure(step: Step, told: Exception) -> Exception:
    """Return the error to raise for what ``outcome`` told: one of evalkit's names the step."""
    if not isinstance(told, EvalkitError):
        return told
    named = type(told)(f"{step}: {told}")
    named.__cause__ = told
    return named


def _work(connection: Connection, threads: int) -> None:
    """In a worker: carry out the steps that are sent; send shares, and at the end a line or an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it ends it, once
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not at once: engines that it started end with it
    sys.unraisablehook = _end_where_python_may_not
    Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            step = connection.recv()
        except EOFError:
            return
        _send(connection, outcome(step, threads, lambda share: _send(connection, share)))


def _end_where_python_may_not(unraisable: "sys.UnraisableHookArgs") -> None:
    """End where the signal came while Python clears up: there it prints the exit as an error, and goes on."""
    if issubclass(unraisable.exc_type, SystemExit):
        os._exit(1)
    sys.__unraisablehook__(unraisable)


def outcome(step: Step, threads: int, on_share: Callable[[float], None]) -> str | Exception:
    """Carry out a step in this process and return a line about it, or why it failed.

    Args:
        step: what is done.
        threads: of torch.
        on_share: called with the share that is done.
    """
    told = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done / total >= told + 0.01:
            told = done / total
            on_share(told)

    try:
        import torch

        torch.set_num_threads(threads)
        return step.carry_out(tell)
    except EvalkitError as error:
        return error
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent must hear of it
        if reason := _disk_fault(error):
            return BadInput(f"{step.study.root} cannot be written ({reason}); make room, or name another --out.")
        return RuntimeError(f"{step} failed:\n{traceback.format_exc()}")


def _send(connection: Connection, what: object) -> None:
    try:
        connection.send(what)
    except BrokenPipeError:  # nobody hears it any more
        sys.exit(1)


def _disk_fault(error: Exception) -> str:
    """Return why a file could not be written; empty where that is not what happened.

    safetensors says it in the words of Rust, torch.save of the file format.
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if number := re.search(r"\(os error (\d+)\)", text):
        return os.strerror(int(number[1]))
    return "torch could not write a whole file" if "inline_container" in text else ""


def _end_with_parent() -> None:
    """End a worker when the process that started it was killed, so that no run folder stays locked."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _only_one_at_work(root: Path) -> Iterator[None]:
    """Hold the lock of a study's folder.

    Raises:
        BadInput: the folder cannot be written, or another process holds the lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(root / "study.lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput(
            f"Another 'evalkit reproduce' is at work in {root}; wait for it, or name another --out."
        ) from None
    except OSError as error:
        raise BadInput(f"{root} cannot be written ({error.strerror}); name another --out.") from error
    try:
        yield
    finally:
        lock.release()


def _clear_litter(root: Path) -> None:
    """Remove what a study that was killed has begun and cannot go on with; the lock is held."""
    import shutil

    for unfinished in root.glob("seed-*/*.part"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for draft in (*root.glob("*.tmp"), *root.glob("noise/*.tmp")):
        draft.unlink(missing_ok=True)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
