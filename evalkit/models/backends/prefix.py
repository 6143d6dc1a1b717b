"""What prompts begin with in common, which an engine computes once where several are asked of one context."""

from collections.abc import Sequence

import numpy as np

from evalkit.types import Prompt


def common_prefix(prompts: Sequence[Prompt]) -> int:
    """Return the number of tokens that all prompts begin with; less than any has, for its last one makes the answer."""
    shortest = min(len(prompt.token_ids) for prompt in prompts) - 1
    rows = np.stack([prompt.token_ids[:shortest] for prompt in prompts])
    differ = (rows != rows[0]).any(axis=0)
    return int(differ.argmax()) if differ.any() else shortest
