"""In which dtype a CPU computes a checkpoint faster: its own half precision, or float32.

Half precision pays where the processor has instructions for it: SmolLM2-135M reads 1,024 tokens 1.5 times as fast in
bfloat16 with avx512_bf16, and several times as slowly without.
"""

import time
from functools import cache

_TOKENS = 256
_TRIES = 9
_CLEARLY = 1.2
"""So many times as fast bfloat16 must be: less would be noise, and float32 is closer to what other engines compute."""


@cache
def fastest_on_cpu(stored: str, width: int) -> str:
    """Return "bfloat16" where the checkpoint is stored so and this CPU is clearly faster in it, else "float32".

    Measured on one linear layer, which is where most of a prompt's time goes; takes some hundredths of a second.

    Args:
        stored: dtype of the checkpoint's weights. Those in float32 are never rounded.
        width: of the model's hidden states.
    """
    return "bfloat16" if stored == "bfloat16" and bfloat16_gain(width) >= _CLEARLY else "float32"


def say_which(stored: str, width: int) -> tuple[str, ...]:
    """Return a sentence on what was chosen by ``fastest_on_cpu``; none where there was nothing to choose."""
    if stored != "bfloat16":
        return ()
    gain = f"{bfloat16_gain(width):.1f} times as fast in bfloat16"
    return (f"--dtype auto took {fastest_on_cpu(stored, width)}: this CPU applies a linear layer {gain}.",)


@cache
def bfloat16_gain(width: int) -> float:
    """Return how many times as fast as in float32 this CPU applies a linear layer of ``width`` in bfloat16."""
    import torch

    layers = {
        dtype: (torch.zeros(_TOKENS, width, dtype=dtype), torch.zeros(4 * width, width, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(layers, float("inf"))
    with torch.inference_mode():
        for _ in range(_TRIES):  # in turn, and the best of each: another process may take the core in between
            for dtype, (states, weights) in layers.items():
                started = time.perf_counter()
                torch.nn.functional.linear(states, weights)
                best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.float32] / best[torch.bfloat16]
