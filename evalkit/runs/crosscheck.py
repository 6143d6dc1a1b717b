"""The same ids through two backends: do they answer alike, and where not, how far apart were the choices?

Two correct engines sum in different orders, so their log-probabilities differ in the last digits and a greedy answer
may part where two tokens are nearly tied. A wrong rope rule, template or dtype shows as answers that part early, with
log-probabilities that are far apart from the first token on.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

from evalkit.errors import BadInput
from evalkit.models.backends import Backend
from evalkit.runs.config import RunConfig
from evalkit.runs.plan import make_plan
from evalkit.types import Completion, Key, Prompt

NamedAnswers: TypeAlias = tuple[str, Mapping[Key, Completion]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One prompt's two answers."""

    key: Key
    prompt_tokens: int
    answer_tokens: tuple[int, int]
    first_divergence: int | None
    """Index of the first answer token that differs (or that only one has); None where all agree."""
    logprob_gap: float | None
    """Largest difference of the log-probabilities of the tokens up to there; None where a backend gives none."""
    error: str | None = None
    """Set where a backend did not answer; such a prompt is not compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrosscheckReport:
    """How two backends compare on the same prompts."""

    names: tuple[str, str]
    prompts: tuple[Comparison, ...]

    @property
    def compared(self) -> int:
        """Prompts that both answered."""
        return sum(one.error is None for one in self.prompts)

    @property
    def agreeing(self) -> int:
        """Prompts with the same answer."""
        return sum(one.error is None and one.first_divergence is None for one in self.prompts)

    @property
    def agreement(self) -> float | None:
        """Share of the compared prompts with the same answer, 0 to 1; None where none was compared."""
        return self.agreeing / self.compared if self.compared else None

    @property
    def largest_logprob_gap(self) -> float | None:
        """Over all compared tokens; None where no token has two log-probabilities."""
        return max((one.logprob_gap for one in self.prompts if one.logprob_gap is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "backends": list(self.names),
            "compared": self.compared,
            "agreeing": self.agreeing,
            "agreement": self.agreement,
            "largest_logprob_gap": self.largest_logprob_gap,
            "prompts": [
                {
                    **one.key._asdict(),
                    "prompt_tokens": one.prompt_tokens,
                    "answer_tokens": list(one.answer_tokens),
                    "first_divergence": one.first_divergence,
                    "logprob_gap": one.logprob_gap,
                    "error": one.error,
                }
                for one in self.prompts
            ],
        }

    def to_text(self) -> str:
        """Return a summary line and one line for every prompt that does not agree."""
        left, right = self.names
        gap = self.largest_logprob_gap
        lines = [
            f"{left} and {right} give the same answer to {self.agreeing} of {self.compared} prompts; "
            + ("no log-probabilities to compare." if gap is None else f"largest log-probability gap {gap:.2g}.")
        ]
        for one in self.prompts:
            name = f"{one.key.subset}/{one.key.length}/{one.key.sample_id}"
            if one.error is not None:
                lines.append(f"  {name}: not compared, {one.error}")
            elif one.first_divergence is not None:
                near = "" if one.logprob_gap is None else f", log-probabilities up to {one.logprob_gap:.2g} apart"
                lines.append(
                    f"  {name}: {one.prompt_tokens} prompt tokens, answers part at token {one.first_divergence} of "
                    f"{max(one.answer_tokens)}{near}"
                )
        return "\n".join(lines)


def crosscheck_plans(configs: Sequence[RunConfig]) -> CrosscheckReport:
    """Ask two backends the prompts of one run, one backend after the other, so that only one is in memory.

    Args:
        configs: two that differ in nothing but the backend and its options.

    Raises:
        BadInput: not two backends, or a run of either would be refused.
        EngineError: a backend cannot be started, or died for good.
    """
    names = [config.backend for config in configs]
    if len(names) != 2 or names[0] == names[1]:
        raise BadInput(f"A crosscheck compares two backends, such as --backends hf,vllm; got {', '.join(names)}.")
    for config in configs:
        config.engine.require_reachable()
    named: list[NamedAnswers] = []
    prompts: list[Prompt] = []
    plans = [make_plan(config) for config in configs]
    both = [plan.open_backend(logprobs=True) for plan in plans]  # refuses the second before the first does any work
    for name, plan, backend in zip(names, plans, both, strict=True):
        completions: dict[Key, Completion] = {}
        prompts = []
        with closing(backend):
            for group in plan.groups:
                asked = [plan.build(s, c.length) for c in plan.cells(group.lengths) for s in plan.samples_of(c)]
                prompts += asked
                backend.serve(group.rope, group.lengths, plan.positions(group))
                completions |= answers(backend, asked)
        named.append((name, completions))
    return compare(prompts, *named)


def answers(backend: Backend, prompts: Iterable[Prompt]) -> dict[Key, Completion]:
    """Return a backend's completion of each prompt."""
    return {prompt.key: completion for prompt, completion in backend.generate(prompts)}


def compare(prompts: Sequence[Prompt], left: NamedAnswers, right: NamedAnswers) -> CrosscheckReport:
    """Compare the answers of two backends, each given with the backend's name."""
    return CrosscheckReport(
        names=(left[0], right[0]),
        prompts=tuple(_compared(prompt, left[1][prompt.key], right[1][prompt.key]) for prompt in prompts),
    )


def _compared(prompt: Prompt, left: Completion, right: Completion) -> Comparison:
    errors = [completion.error for completion in (left, right) if completion.error is not None]
    pairs = list(itertools.zip_longest(left.token_ids, right.token_ids))
    parting = None if errors else next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if left.text == right.text:  # a server without ids: its text was tokenized again, perhaps into other pieces
        parting = None
    # Up to the first difference both read the same tokens; at it, each gives the log-probability of its own choice.
    same_context = len(pairs) if parting is None else parting + 1
    logprobs = zip(left.logprobs[:same_context], right.logprobs[:same_context], strict=False)
    return Comparison(
        key=prompt.key,
        prompt_tokens=len(prompt.token_ids),
        answer_tokens=(len(left.token_ids), len(right.token_ids)),
        first_divergence=parting,
        logprob_gap=max((abs(a - b) for a, b in logprobs), default=None),
        error=errors[0] if errors else None,
    )
