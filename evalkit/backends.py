"""Open the backend of a plan, and keep it over all lengths: only its rope rule changes, and is read back each time."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from evalkit.errors import BadInput
from evalkit.lengths import parse_length
from evalkit.models.serving import ServedRope
from evalkit.types import Backend

if TYPE_CHECKING:
    from evalkit.plan import Plan


class OpenBackend:
    """The backend of one plan; a context manager that ends the engine."""

    found: dict[str, Any]
    """For run.json: by length, what the loaded model was found to compute ("rope"), and the engine's settings."""

    def __init__(self, plan: "Plan") -> None:
        self._plan = plan
        self._backend: Backend | None = None
        self.found = {"rope": {}}

    def serving(self, served: ServedRope, lengths: tuple[str, ...]) -> Backend:
        """Return the backend, serving the rule of some lengths. Ask for the group of the longest lengths first.

        Raises:
            EngineError: it cannot be started, or computes other frequencies than the rule says.
            BadInput: it cannot serve this plan.
        """
        kind = self._plan.backend.split()[0]
        backend, found = {
            "scripted": self._scripted,
            "hf": self._hf,
            "vllm": self._vllm,
            "server": self._server,
        }[kind](served)
        self._backend = backend
        self.found["rope"] |= {length: found for length in lengths}
        return backend

    def _scripted(self, served: ServedRope) -> tuple[Backend, Any]:
        from evalkit.models.scripted import ScriptedBackend

        return ScriptedBackend(self._plan.config.script), None

    def _hf(self, served: ServedRope) -> tuple[Backend, Any]:
        from evalkit.models.hf import HFBackend
        from evalkit.models.rope_readback import (
            GPU_TOLERANCE,
            TOLERANCE,
            compare_model,
            expected_frequencies,
            read_back_transformers,
        )

        config = self._plan.config
        backend: HFBackend
        if isinstance(self._backend, HFBackend):
            backend = self._backend
            backend.set_rope(served.mapping)
        else:
            backend = HFBackend(
                config.model,
                rope=served.mapping,
                dtype=config.dtype,
                device=config.device,
                batch_tokens=config.batch_tokens,
                adapter=config.adapter,
            )
        expected = expected_frequencies(self._plan.checkpoint, served)
        tolerance = GPU_TOLERANCE if backend.device == "cuda" else TOLERANCE
        found = compare_model(expected, read_back_transformers(backend.model), tolerance=tolerance) if expected else []
        return backend, [entry.to_json() for entry in found]

    def _vllm(self, served: ServedRope) -> tuple[Backend, Any]:
        from evalkit.models.rope_readback import expected_frequencies
        from evalkit.models.vllm import VLLMBackend
        from evalkit.models.vllm_engine import VLLMOptions

        plan = self._plan
        expected = expected_frequencies(plan.checkpoint, served).get("")
        backend: VLLMBackend
        if isinstance(self._backend, VLLMBackend) and expected is not None:
            backend = self._backend
            backend.set_rope(expected)
            return backend, backend.read_back
        if self._backend is not None:
            self._backend.close()
            self._backend = None
        backend = VLLMBackend(
            plan.config.model,
            max_model_len=self._longest(served),
            rope=served.mapping,
            expected=expected,
            options=VLLMOptions(dtype=plan.config.dtype, adapter=plan.config.adapter, **plan.config.engine),
        )
        return backend, backend.read_back

    def _server(self, served: ServedRope) -> tuple[Backend, Any]:
        from evalkit.models.server import ServerBackend

        plan = self._plan
        if len(plan.groups) > 1:
            raise BadInput(
                f"These lengths are served under {len(plan.groups)} rope rules and a server has one; start a server "
                "for each, and run the lengths of each apart, with its own --factor."
            )
        if self._backend is None:
            self._backend = ServerBackend(max_model_len=self._longest(served), **plan.config.engine)
        return self._backend, "not readable through a server"

    def _longest(self, served: ServedRope) -> int:
        """Return the positions that the longest request of the plan may use."""
        lengths = [parse_length(length) for length in self._plan.config.lengths]
        published = self._plan.config.source != "generated"
        return served.window if published or 0 in lengths else min(served.window, max(lengths))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None
