"""What can be chosen about the questions of any benchmark; each adds its own in ``benchmarks/NAME/options.py``."""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

from evalkit.errors import BadInput
from evalkit.options import option

GENERATED = "generated"
Control: TypeAlias = Literal["no-context", "facts-only"]
Part: TypeAlias = Literal["test", "train"]
"""Of data that come in two parts, the one that is evaluated on, or the one that is trained on."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Choices that every benchmark has.

    Raises:
        BadInput: choices that contradict each other.
    """

    GROUP: ClassVar[str] = "Data"

    source: str = option(
        "--source",
        "'generated', published rows on the hub (hub; BABILong: hub-1k, hub-train), or a folder of such rows.",
        default=GENERATED,
    )
    """"generated", a data set named in the card, or a local copy of published rows."""
    control: Control | None = option("--control", "Bound a curve from below or above.", default=None)
    """From below (the question alone) or from above (no background)."""
    max_new_tokens: int | None = option("--max-new-tokens", "Answer limit; default: the card's.", default=None)
    thinking_tokens: int = option("--thinking-tokens", "Room for reasoning, added to the answer's [0].", default=0)
    """In every prompt's length, like the answer."""
    questions_per_context: int = option(
        "--questions-per-context",
        "Ask every context so many questions, for one prefill [1]; --samples counts questions.",
        default=1,
    )
    """The published protocol asks one."""

    def __post_init__(self) -> None:
        if self.control not in (None, *get_args(Control)):
            raise BadInput(f"There is no control {self.control!r}; choose {' or '.join(get_args(Control))}.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise BadInput(f"--max-new-tokens is {self.max_new_tokens}; an answer has at least 1 token.")
        if self.thinking_tokens < 0:
            raise BadInput(f"--thinking-tokens is {self.thinking_tokens}; it is 0 or more.")
        if self.questions_per_context < 1:
            raise BadInput(f"--questions-per-context is {self.questions_per_context}; ask at least 1.")
        if self.questions_per_context > 1 and self.source != GENERATED:
            raise BadInput(
                f"Published rows (--source {self.source}) come with their questions; drop --questions-per-context "
                f"{self.questions_per_context}."
            )
        if self.control and self.source != GENERATED:
            raise BadInput(f"Published rows (--source {self.source}) come ready made; drop --control {self.control}.")

    @property
    def subsets(self) -> tuple[str, ...]:
        """Subsets that these choices name themselves; usually none."""
        return ()


def too_few_questions(asked: int, what: str, most: int) -> BadInput:
    """Return the error of a context that is to be asked more questions than it has."""
    has = f"{what} has {f'at most {most} questions' if most > 1 else f'only {most}'}"
    return BadInput(f"--questions-per-context {asked}: {has}; ask no more than that, or choose other --subsets.")
