"""Run folders for the tests of the report: arms whose accuracy falls with length as the test wants it to."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.records.folder import RunFolder
from evalkit.types import Prediction

LENGTHS = ("4k", "8k", "16k", "32k", "64k", "128k")
PLACES = ("garden", "kitchen", "office", "hallway", "bathroom", "bedroom")

Accuracy = Callable[[str, int], float]
"""(subset, tokens) -> chance of a right answer."""


def holds_to(length: int, best: float = 0.95, worst: float = 0.15) -> Accuracy:
    """Accuracy that stays at ``best`` up to ``length`` tokens, then falls a quarter of the way with each doubling."""

    def accuracy(subset: str, tokens: int) -> float:
        doublings = max(np.log2(max(tokens, 1) / length), 0.0)
        return float(max(best - (best - worst) * doublings / 4, worst))

    return accuracy


def write_run(
    folder: Path,
    *,
    arm: str,
    accuracy: Accuracy,
    task: str = "babilong",
    subsets: Sequence[str] = ("qa1", "qa2"),
    lengths: Sequence[str] = LENGTHS,
    samples: int = 40,
    per_story: int = 1,
    training: Mapping[str, Any] | None = None,
    data_seed: int = 0,
    config: Mapping[str, Any] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    reply: Callable[[Prediction], str] | None = None,
) -> Path:
    """Write a run folder. The same samples are hard for every arm, as they are in life, so that pairing helps."""
    from evalkit.lengths import parse_length

    training = dict(training) if training else None
    seed = (training or {}).get("seed", 0)
    rng = np.random.default_rng([seed, len(arm), sum(arm.encode())])
    parts = {
        "checkpoint.weights": f"{arm}-{seed}",
        "tokenizer and template": "t",
        "backend": "hf",
        "card": f"{task} v1",
        "data.seed": data_seed,
        "data.source": "generated",
        **(fingerprint or {}),
    }
    scope = {"lengths": list(lengths), "subsets": list(subsets), "samples": samples}
    settings = {
        "task": task,
        "scope": scope,
        "training": training,
        "trained_length": (training or {}).get("trained_length"),
        **(config or {}),
    }
    predictions = []
    for subset in subsets:
        hardness = np.random.default_rng([data_seed, sum(subset.encode())]).random(samples)
        for length in lengths:
            tokens = parse_length(length)
            for i in range(samples):
                luck = 0.7 * hardness[i] + 0.3 * rng.random()
                right = luck < accuracy(subset, tokens)
                predictions.append(_prediction(task, subset, length, tokens, i, per_story, right))
    if reply is not None:
        predictions = [_with_reply(p, reply(p)) for p in predictions]
    provenance = {"command": "evalkit run ...", "versions": {"evalkit": "0"}}
    engine = {name.removeprefix("engine."): parts.pop(name) for name in list(parts) if name.startswith("engine.")}
    with RunFolder.start(folder, arm=arm, config=settings, fingerprint=parts, provenance=provenance) as run:
        if engine:  # found after loading, as in a run
            run.identify(engine)
        run.extend(predictions)
    return folder


def _prediction(
    task: str, subset: str, length: str, tokens: int, index: int, per_story: int, right: bool
) -> Prediction:
    positions = tuple(int(tokens * d) for d in np.random.default_rng([index, 5]).random(2).round(3))
    common: dict[str, Any] = {
        "task": task,
        "subset": subset,
        "length": length,
        "sample_id": f"{index:05d}",
        "story_id": f"{subset}-{index // per_story:05d}",
        "prompt_tokens": max(tokens - 20, 0),
        "prompt_sha256": f"{index:064x}",
        "max_new_tokens": 20,
        "fact_positions": tuple(sorted(positions)),
        "output_tokens": 5,
        "finish_reason": "stop",
    }
    if task == "mrcr":
        target = f"abcdefghij{' '.join(f'word{index}{k}' for k in range(24))}"
        output = target if right else f"abcdefghij{' '.join(f'other{index}{k}' for k in range(24))}"
        if index % 10 == 9 and not right:
            output = "I cannot do that."
        metadata = {"rule": "openai", "prefix": "abcdefghij", "wanted": 1 + index % 2, "num_needles": 2}
        return Prediction(**common, question="Prepend ...", target=target, output=output, metadata=metadata)
    place = PLACES[index % len(PLACES)]
    output = f"Mary is in the {place if right else PLACES[(index + 1) % len(PLACES)]}."
    return Prediction(**common, question="Where is Mary?", target=place, output=output, metadata={"supporting": [1]})


def _with_reply(prediction: Prediction, text: str) -> Prediction:
    from dataclasses import replace

    return replace(prediction, output=text)


def training(recipe: str, *, seed: int = 0, trained_length: int = 8192) -> dict[str, Any]:
    """The parts of a training record that the report reads."""
    stages = [1.0] if recipe in ("plain", "yarn") else [1.0, 1.25, 1.5, 2.0, 2.0]
    kind = "contiguous" if recipe in ("plain", "yarn") else "randomized"
    rope = {"theta": 1e6, "rotary_dim": 128, "original_length": 32768}
    data = {"task": "babilong", "subsets": ["qa1"], "samples": 8, "examples": 8, "sha256": "00", "seed": 1,
            "shortest": 0, "longest": trained_length}  # fmt: skip
    found = "no story of the evaluation is in the training data"
    return {
        "recipe": recipe,
        "trained_length": trained_length,
        "seed": seed,
        "positions": {"kind": kind, "stages": stages, "mixed": False, "per_batch": False},
        "rope": {"rule": "yarn", "factor": 2.0, **rope} if "yarn" in recipe else {"rule": "none", **rope},
        "data": {**data, "leakage": {"trained": 8, "evaluated": 8, "shared": 0, "found": found}},
    }
