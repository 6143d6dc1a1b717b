"""Backends that serve a rule already, as a run opens them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evalkit.models.backends import Backend
from evalkit.models.backends.hf import HFBackend, HFOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import RopeRequest, served_rope
from evalkit.runs.crosscheck import CrosscheckReport, answers, compare
from evalkit.types import Prompt


def hf(
    folder: Path | str, request: RopeRequest | None = None, length: int = 256, *, adapter: Path | None = None
) -> HFBackend:
    """Return transformers on the CPU, serving a rule at a length."""
    checkpoint = Checkpoint.open(folder, adapter=adapter)
    backend = HFBackend(checkpoint, Encoder.open(checkpoint.path).tokenizer, HFOptions(device="cpu"))
    backend.serve(served_rope(checkpoint, request or RopeRequest(), length), (), length)
    return backend


def vllm(
    checkpoint: Checkpoint,
    request: RopeRequest | None = None,
    length: int = 256,
    *,
    logprobs: bool = False,
    **options: Any,
) -> Any:
    """Return a vLLM engine that serves a rule for requests of up to ``length`` tokens."""
    from evalkit.models.backends.vllm.backend import VLLMBackend
    from evalkit.models.backends.vllm.engine import VLLMOptions

    tokenizer = Encoder.open(checkpoint.path).tokenizer
    backend = VLLMBackend(checkpoint, tokenizer, VLLMOptions(**options), logprobs=logprobs)
    backend.serve(served_rope(checkpoint, request or RopeRequest(), length), (), length)
    return backend


def server(
    checkpoint: Checkpoint,
    encoder: Encoder,
    url: str | tuple[str, ...],
    length: int,
    *,
    logprobs: bool = False,
    **options: Any,
) -> Any:
    """Return a client that has asked its servers what they serve."""
    from evalkit.models.backends.server import ServerBackend, ServerOptions

    chosen = ServerOptions(base_url=(url,) if isinstance(url, str) else url, **options)
    backend = ServerBackend(checkpoint, encoder, chosen, groups=[("1k",)], logprobs=logprobs)
    backend.serve(served_rope(checkpoint, RopeRequest(), 256), ("1k",), length)
    return backend


def crosscheck(left: Backend, right: Backend, prompts: Iterable[Prompt]) -> CrosscheckReport:
    """Ask two backends the same prompts, both in memory at a time, and compare their answers."""
    asked = list(prompts)
    return compare(asked, (left.name, answers(left, asked)), (right.name, answers(right, asked)))
