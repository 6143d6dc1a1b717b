"""A backend that needs no model: it answers from a script. For tests, and to rehearse a run before paying for it."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from evalkit.models.backends.in_flight import failed
from evalkit.models.backends.options import BackendOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import ServedRope
from evalkit.options import option
from evalkit.types import Completion, Prompt

Script: TypeAlias = Literal["oracle", "wrong", "empty", "slow", "failing"]


@dataclass(frozen=True, kw_only=True)
class ScriptOptions(BackendOptions):
    """Which script."""

    GROUP: ClassVar[str] = "Backend scripted"

    script: Script = option("--script", "How the scripted backend answers.", default="oracle")

    @property
    def decisive(self) -> dict[str, Any]:
        """The script."""
        return {"script": self.script}

    @property
    def rehearsal(self) -> str:
        """The script."""
        return f"scripted: {self.script}"


OPTIONS = ScriptOptions


def open_backend(
    checkpoint: Checkpoint,
    encoder: Encoder,
    options: ScriptOptions,
    *,
    groups: Sequence[Sequence[str]],
    logprobs: bool,
) -> "ScriptedBackend":
    """Return the backend; see ``backends.open_backend``."""
    return ScriptedBackend(options.script)


class ScriptedBackend:
    """Answers every prompt in one of five ways.

    oracle: the target. wrong: a sentence that no scorer credits. empty: nothing. slow: the target, after a twentieth of
    a second (time to kill the run). failing: the target, but every third prompt ends in an error worth retrying.
    """

    name = "scripted"
    warnings: tuple[str, ...] = ()

    def __init__(self, script: Script) -> None:
        self.script = script

    def serve(self, rope: ServedRope, lengths: Sequence[str], positions: int) -> str:
        """Load nothing; see ``backends.Backend``."""
        return "no model"

    def identity(self) -> dict[str, Any]:
        """Return the script; see ``backends.Backend``."""
        return {"name": self.name, "script": self.script}

    def settings(self) -> dict[str, Any]:
        """Return nothing; see ``backends.Backend``."""
        return {}

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        """Yield each prompt with its scripted completion, in the order given."""
        for number, prompt in enumerate(prompts):
            if self.script == "slow":
                time.sleep(0.05)
            if self.script == "failing" and number % 3 == 2:
                error = "scripted: this prompt was chosen to fail"
                yield prompt, failed(error, retryable=True)
                continue
            text = {"wrong": "I cannot tell.", "empty": ""}.get(self.script, prompt.sample.target)
            yield prompt, Completion(text=text, token_ids=(), finish_reason="stop")

    def close(self) -> None:
        """Nothing to free."""
