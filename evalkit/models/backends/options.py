"""What every backend's options have in common."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias

from evalkit.options import option

DType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """How a backend is asked; each has a subclass of its own."""

    SCORES_GIVEN_TEXT: ClassVar[bool] = False
    """Whether it fills ``Completion.candidate_logprobs``."""

    @property
    def decisive(self) -> dict[str, Any]:
        """Those of these settings that can change an answer, as they were typed: they tell run folders' names apart.

        Whether recorded answers may be continued is decided by what the backend finds (``Backend.identity``).
        """
        return {}

    @property
    def shares_prefixes(self) -> bool:
        """Whether what adjacent prompts begin with is computed once, where the model allows it."""
        return True

    def scoring_tokens(self, prompt: int, candidate: int) -> int:
        """Return how many tokens are computed to score one candidate of ``candidate`` tokens behind an answered prompt.

        Both in tokens; see ``SCORES_GIVEN_TEXT``. The computed ones are the last ones of the two together, or of all
        but the last, which is predicted and not read.
        """
        return prompt + candidate

    @property
    def rehearsal(self) -> str:
        """Words for answers that no model gave, to keep them apart in names of arms; empty for a model's."""
        return ""

    @property
    def gpus(self) -> int | None:
        """How many GPUs one engine takes where there are any; None where this backend starts no engine of its own."""
        return 0

    def of_replica(self) -> Self:
        """Return the options of one engine among several: whoever has started it starts another when it dies."""
        return self

    def require_reachable(self) -> None:
        """Find out in the first second, before anything is loaded, that whoever is to answer is there.

        Raises:
            EngineError: nobody is.
            BadInput: nobody can be, here.
        """


@dataclass(frozen=True, kw_only=True)
class ModelOptions(BackendOptions):
    """Of a backend that loads the weights itself."""

    GROUP: ClassVar[str] = "Backend"
    SCORES_GIVEN_TEXT: ClassVar[bool] = True

    dtype: DType = option(
        "--dtype",
        "Of weights and arithmetic [auto: the checkpoint's; on a CPU float32 where that is not slower].",
        default="auto",
    )

    attention: str | None = option(
        "--attention-backend",
        "Attention's kernels, by the engine's own names (hf: sdpa, eager; vllm: FLASH_ATTN) [its choice].",
        default=None,
    )

    @property
    def decisive(self) -> dict[str, Any]:
        """The dtype, and the kernels of attention where they were chosen."""
        return {"dtype": self.dtype} | ({"attention": self.attention} if self.attention else {})
