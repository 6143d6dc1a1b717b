"""Prompts in flight: asked on an event loop in a thread of its own, collected from an ordinary generator."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from evalkit.types import Completion, Prompt

_T = TypeVar("_T")
WAIT_SECONDS = 1.0
"""How long ``InFlight.finished`` waits before its caller can look whether anybody is still there to answer."""


class LoopThread:
    """An event loop that runs in a daemon thread until it is closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=name)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, _T]) -> "Future[_T]":
        """Run a coroutine there; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what is left and end the thread."""

        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.submit(cancel_all()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class InFlight:
    """The prompts that are with an engine or a server, and those whose answers have come back."""

    def __init__(self) -> None:
        self._prompts: dict[Future[Any], tuple[Prompt, float]] = {}
        self._finished: SimpleQueue[tuple[Future[Any], float]] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, prompt: Prompt, answer: "Future[Any]") -> None:
        """Remember a prompt that was just sent."""
        self._prompts[answer] = prompt, time.perf_counter()
        answer.add_done_callback(lambda done: self._finished.put((done, time.perf_counter())))

    def finished(self, *, wait: bool) -> Iterator[tuple["Future[Any]", float]]:
        """Yield what has come back and is still wanted, with the seconds it took.

        Args:
            wait: if nothing has, wait ``WAIT_SECONDS`` for the first.
        """
        while True:
            try:
                answer, end = self._finished.get(block=wait, timeout=WAIT_SECONDS)
            except Empty:
                return
            wait = False
            if answer in self._prompts:
                yield answer, end - self._prompts[answer][1]

    def remove(self, answer: "Future[Any]") -> Prompt:
        """Forget a prompt that has its answer, and return it."""
        return self._prompts.pop(answer)[0]

    def cancel(self) -> list[Prompt]:
        """Give up on everything in flight and return it, in the order in which it was sent."""
        flying, self._prompts = self._prompts, {}
        for answer in flying:
            answer.cancel()
        return [prompt for prompt, _ in flying.values()]


def failed(error: str, *, retryable: bool = False) -> Completion:
    """Return the completion of a prompt that has no answer."""
    return Completion(text="", token_ids=(), finish_reason="error", error=error, retryable=retryable)
