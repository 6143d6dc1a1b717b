"""A backend of one file and one line in BACKENDS: it repeats the answer, or something else."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evalkit.models.backends.options import BackendOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import ServedRope
from evalkit.options import option
from evalkit.types import Completion, Prompt


@dataclass(frozen=True, kw_only=True)
class ParrotOptions(BackendOptions):
    """One choice of its own."""

    mood: str = option("--mood", "good or bad", default="good")

    @property
    def decisive(self) -> dict[str, Any]:
        return {"mood": self.mood}


class Parrot:
    """Implements ``backends.Backend``."""

    name = "parrot"
    warnings = ()

    def __init__(self, mood: str) -> None:
        self.mood = mood

    def serve(self, rope: ServedRope, lengths: Sequence[str], positions: int) -> str:
        return "nothing to read"

    def identity(self) -> dict[str, Any]:
        return {"name": "parrot", "mood": self.mood}

    def settings(self) -> dict[str, Any]:
        return {}

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        for prompt in prompts:
            text = prompt.sample.target if self.mood == "good" else "no idea"
            yield prompt, Completion(text=text, token_ids=(), finish_reason="stop")

    def close(self) -> None:
        pass


OPTIONS = ParrotOptions


def open_backend(
    checkpoint: Checkpoint,
    encoder: Encoder,
    options: ParrotOptions,
    *,
    groups: Sequence[Sequence[str]],
    logprobs: bool,
) -> Parrot:
    return Parrot(options.mood)
