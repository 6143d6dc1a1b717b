"""Prompts of random tokens for random weights."""

import numpy as np

from evalkit.types import Prompt, Sample


def random_prompt(number: int, num_tokens: int, *, max_new_tokens: int = 16, start: tuple[int, ...] = ()) -> Prompt:
    """A prompt whose ids are drawn from its number, behind the ids in ``start``."""
    drawn = np.random.default_rng([number]).integers(3, 500, num_tokens - len(start))
    sample = Sample(task="t", subset="s", sample_id=str(number), story_id=str(number), question="?", target="!")
    token_ids = np.array([*start, *drawn], dtype=np.int32)
    return Prompt(sample=sample, length="1k", token_ids=token_ids, max_new_tokens=max_new_tokens)
