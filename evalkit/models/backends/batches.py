"""Prompts in batches of similar length, the next of which is made while one is answered."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


def one_ahead(items: Iterable[_T]) -> Iterator[_T]:
    """Yield items; a thread makes the next while one is in use. What an item's making raises comes in its place."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "evalkit-one-ahead") as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # not the end
