"""Prompts in batches of similar length, the next of which is made while one is answered."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from threading import Event
from typing import TypeVar

from evalkit.types import Prompt

_T = TypeVar("_T")
_MAX_BATCH = 64


def batches(
    prompts: Iterable[Prompt], batch_tokens: int, *, alone: Callable[[Prompt], bool] = lambda prompt: False
) -> Iterator[list[Prompt]]:
    """Group prompts, in order, so that a padded batch holds at most ``batch_tokens`` (a longer prompt goes alone)."""
    batch: list[Prompt] = []
    longest = 0
    for prompt in prompts:
        longest = max(longest, len(prompt.token_ids))
        full = longest * (len(batch) + 1) > batch_tokens or len(batch) == _MAX_BATCH
        if batch and (full or alone(prompt) or alone(batch[-1])):
            yield batch
            batch, longest = [], len(prompt.token_ids)
        batch.append(prompt)
    if batch:
        yield batch


def one_ahead(prompts: Iterable[_T], batched: Callable[[Iterable[_T]], Iterator[list[_T]]]) -> Iterator[list[_T]]:
    """Yield the batches that ``batched`` makes of prompts; a thread makes the next one while one is answered.

    What a batch's making raises comes in its place. Closed early, it waits for one prompt at most.
    """
    ended = Event()
    made = batched(takewhile(lambda _: not ended.is_set(), prompts))
    with ThreadPoolExecutor(1, "evalkit-one-ahead") as thread:
        try:
            coming = thread.submit(next, made, None)
            while batch := coming.result():
                coming = thread.submit(next, made, None)
                yield batch
        finally:
            ended.set()
