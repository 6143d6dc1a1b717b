"""What answers prompts. A new backend is a file here and a line in BACKENDS."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from evalkit.errors import BadInput
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import ServedRope
from evalkit.types import Completion, Prompt


class Backend(Protocol):
    """An engine in this process, a server, or a script. Nothing is loaded before the first ``serve``."""

    name: str
    """Its key in ``BACKENDS``."""

    @property
    def warnings(self) -> Sequence[str]:
        """What a person should know before trusting its answers."""
        ...

    def serve(self, rope: ServedRope, lengths: Sequence[str], positions: int) -> Any:
        """Serve one rope rule, loading the model or switching its rule, and return what was read back, as JSON values.

        Args:
            rope: the rule.
            lengths: the labels that are asked under it. The rule of the longest ones is served first.
            positions: prompt plus answer of the longest request, tokens.

        Raises:
            BadInput: it cannot serve this checkpoint or rule with these options.
            EngineError: it cannot be started, or computes other frequencies than the rule says.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """Return what can change an answer, as found by ``serve``: engine, version, dtype, device kind, stop ids."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what cannot change an answer and is worth recording: batch sizes, memory, addresses."""
        ...

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        """Yield each prompt with its completion as soon as it is finished, in any order.

        Prompts are pulled lazily, so building the next ones overlaps with answering. An iterator that had no next one
        may have one later (``runs/replica.py``): a backend with prompts in flight may ask it again, and none may pull
        what it does not answer. A prompt that fails yields a completion with an error; only an engine that is beyond
        repair raises EngineError.
        """
        ...

    def close(self) -> None:
        """Free the device, end processes that this backend started; before ``serve`` or a second time, do nothing."""
        ...


@dataclass(frozen=True, slots=True)
class BackendKind:
    """The module of one backend, imported when it is first used.

    It has ``OPTIONS``, the class of its options, and ``open_backend``, with the arguments of the one below.
    """

    module: str

    @property
    def options(self) -> type[Any]:
        """The class of its options, a frozen dataclass of ``options.option`` fields."""
        options: type[Any] = import_module(self.module).OPTIONS
        return options


BACKENDS: dict[str, BackendKind] = {
    "vllm": BackendKind("evalkit.models.backends.vllm.backend"),
    "hf": BackendKind("evalkit.models.backends.hf"),
    "server": BackendKind("evalkit.models.backends.server"),
    "scripted": BackendKind("evalkit.models.backends.scripted"),
}
"""Every backend by its name."""


def backend_kind(name: str) -> BackendKind:
    """Return a backend's entry in ``BACKENDS``.

    Raises:
        BadInput: there is none.
    """
    if not isinstance(name, str) or name not in BACKENDS:  # of a file, where it may be anything
        raise BadInput(f"There is no backend {name!r}; choose one of auto, {', '.join(BACKENDS)}.")
    return BACKENDS[name]


def open_backend(
    name: str,
    checkpoint: Checkpoint,
    encoder: Encoder,
    options: Any,
    *,
    groups: Sequence[Sequence[str]],
    logprobs: bool = False,
) -> Backend:
    """Return a backend that has loaded nothing yet, and refuse what can be seen to fail.

    Args:
        name: a key of ``BACKENDS``.
        checkpoint: what is asked, with its adapter.
        encoder: its tokenizer and template.
        options: of the class that the backend has.
        groups: the lengths that will be served together, one rope rule each.
        logprobs: fill ``Completion.logprobs``.

    Raises:
        BadInput: an engine that is not installed, lengths without a server, a device that is not there.
    """
    opened: Backend = import_module(backend_kind(name).module).open_backend(
        checkpoint, encoder, options, groups=groups, logprobs=logprobs
    )
    return opened


def best_backend() -> str:
    """Return "vllm" where it is installed beside a GPU, else "hf"."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        return "hf"
    import torch

    return "vllm" if torch.cuda.is_available() else "hf"
