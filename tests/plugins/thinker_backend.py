"""A backend that thinks aloud before it answers rightly, for as many tokens as it is given."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from evalkit.models.backends.options import BackendOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import ServedRope
from evalkit.types import Completion, Prompt

THOUGHT = "First she was there, then she went away, and after that nobody saw her again, so it must be so."


class Thinker:
    """Implements ``backends.Backend``."""

    name = "thinker"
    warnings = ()

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def serve(self, rope: ServedRope, lengths: Sequence[str], positions: int) -> str:
        return "nothing to read"

    def identity(self) -> dict[str, Any]:
        return {"name": "thinker"}

    def settings(self) -> dict[str, Any]:
        return {}

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        for prompt in prompts:
            end = self.encoder.decode(prompt.token_ids[-40:])
            text = f"{THOUGHT}</think>{prompt.sample.target}"
            if end.rstrip().endswith("</think>"):
                text = prompt.sample.target
            elif not end.rstrip().endswith("<think>"):
                text = f"<think>{text}"
            ids = self.encoder.encode_after(text, before="")[: prompt.max_new_tokens].tolist()
            whole = self.encoder.decode(ids) == text
            yield (
                prompt,
                Completion(
                    text=self.encoder.decode(ids), token_ids=tuple(ids), finish_reason="stop" if whole else "length"
                ),
            )

    def close(self) -> None:
        pass


OPTIONS = BackendOptions


def open_backend(
    checkpoint: Checkpoint,
    encoder: Encoder,
    options: BackendOptions,
    *,
    groups: Sequence[Sequence[str]],
    logprobs: bool,
) -> Thinker:
    return Thinker(encoder)
