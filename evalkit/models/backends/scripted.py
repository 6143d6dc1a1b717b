"""A backend that needs no model: it answers from a script. For tests, and to rehearse a run before paying for it."""

import time
from collections.abc import Iterable, Iterator

from evalkit.errors import BadInput
from evalkit.types import Completion, Prompt

SCRIPTS = ("oracle", "wrong", "empty", "slow", "failing")


class ScriptedBackend:
    """Answers every prompt in one of five ways.

    oracle: the target. wrong: a sentence that no scorer credits. empty: nothing. slow: the target, after a twentieth of
    a second (time to kill the run). failing: the target, but every third prompt ends in an error worth retrying.
    """

    name = "scripted"

    def __init__(self, script: str) -> None:
        if script not in SCRIPTS:
            raise BadInput(f"There is no script {script!r}; choose one of {', '.join(SCRIPTS)}.")
        self.script = script

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        """Yield each prompt with its scripted completion, in the order given."""
        for number, prompt in enumerate(prompts):
            if self.script == "slow":
                time.sleep(0.05)
            if self.script == "failing" and number % 3 == 2:
                error = "scripted: this prompt was chosen to fail"
                yield prompt, Completion(text="", token_ids=(), finish_reason="error", error=error, retryable=True)
                continue
            text = {"wrong": "I cannot tell.", "empty": ""}.get(self.script, prompt.sample.target)
            yield prompt, Completion(text=text, token_ids=(), finish_reason="stop")

    def close(self) -> None:
        """Nothing to free."""
