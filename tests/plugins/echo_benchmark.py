"""A benchmark of one card, one file and one line in TASKS: a number is told somewhere, and asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count as numbers
from typing import Any

import numpy as np

from evalkit.benchmarks.cards import TaskCard
from evalkit.benchmarks.options import Part, TaskOptions
from evalkit.errors import ContextOverflow
from evalkit.lengths import parse_length
from evalkit.options import option
from evalkit.types import Prediction, Prompt, PromptEncoder, Sample, Score


@dataclass(frozen=True, kw_only=True)
class EchoOptions(TaskOptions):
    """One choice of its own."""

    filler: str = option("--filler", "The word that fills the text.", default="well")


class Echo:
    """Implements ``types.Benchmark``."""

    task = "echo"
    generated = True

    def __init__(self, card: TaskCard, options: EchoOptions, seed: int) -> None:
        self.card, self.options, self.seed = card, options, seed

    def samples(self, subset: str, length: str, count: int) -> Iterator[Sample]:
        for index in numbers() if count == 10**9 else range(count):
            number = int(np.random.default_rng([self.seed, index]).integers(10 if subset == "small" else 1000))
            name = f"{index:05d}"
            yield Sample(
                task="echo",
                subset=subset,
                sample_id=name,
                story_id=f"{subset}-{name}",
                question="Which number was it?",
                target=str(number),
                facts=(f"The number is {number} ({index}).",),
                supporting=(0,),
            )

    def prompt(self, sample: Sample, length: str, encoder: PromptEncoder, window: int) -> Prompt:
        room, words, fitting = parse_length(length) - 8, 0, None
        while True:  # as many words as fit
            text = f"{sample.facts[0]} {f'{self.options.filler} ' * words}{sample.question}"
            ids = encoder.encode_prompt(encoder.render([{"role": "user", "content": text}]))
            if len(ids) > room:
                break
            fitting, words = ids, words + max((room - len(ids)) // 4, 1)
        if fitting is None:
            raise ContextOverflow(f"echo {sample.sample_id}: {len(ids)} prompt tokens > {room}.")
        return Prompt(sample=sample, length=length, token_ids=fitting, max_new_tokens=8, fact_positions=(0,))

    def recipe(self) -> dict[str, Any]:
        return {"seed": self.seed, "filler": self.options.filler}


def _exact(prediction: Prediction) -> Score:
    output = prediction.output
    value = None if output is None else float(output.strip() == prediction.target)
    return Score(key=prediction.key, scorer="official", value=value)


OPTIONS = EchoOptions
SCORERS = {"official": _exact}
SCORER_VERSION = "1"


def open_benchmark(
    card: TaskCard, options: EchoOptions, *, seed: int, part: Part, count_tokens: Callable[[str], int] | None
) -> Echo:
    return Echo(card, options, seed)
