"""Open the backend of a plan, and keep it over all lengths: only its rope rule changes, and is read back each time."""

from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from evalkit.errors import BadInput
from evalkit.lengths import format_length, parse_length
from evalkit.models.rope.served import ServedRope
from evalkit.types import Backend

if TYPE_CHECKING:
    from evalkit.models.backends.server import ServerOptions
    from evalkit.models.backends.vllm.engine import VLLMOptions
    from evalkit.runs.plan import Plan


class OpenBackend:
    """The backend of one plan; a context manager that ends the engine. Made before any work, it refuses what will fail.

    Raises:
        BadInput: vLLM is not installed, lengths have no server, or an option is impossible.
    """

    found: dict[str, Any]
    """For run.json: by length, what the loaded model was found to compute ("rope"), and the engine's own settings."""

    def __init__(self, plan: "Plan", *, logprobs: bool = False) -> None:
        self._plan = plan
        self._logprobs = logprobs
        self._backend: Any = None
        self.found = {"rope": {}}
        self.warnings: list[str] = []
        """What the backend says a person should know before trusting its answers."""
        if plan.backend == "vllm":
            from evalkit.models.backends.vllm.engine import require_vllm

            require_vllm()
            self._vllm_options()
        if plan.backend == "server":
            for _, lengths in plan.groups:
                self._server_options(lengths)

    def serving(self, served: ServedRope, lengths: tuple[str, ...]) -> Backend:
        """Return the backend, serving the rule of some lengths. Ask for the group of the longest lengths first.

        Raises:
            EngineError: it cannot be started, or computes other frequencies than the rule says.
            BadInput: it cannot serve this plan.
        """
        open_or_switch = {"scripted": self._scripted, "hf": self._hf, "vllm": self._vllm, "server": self._server}
        rope = open_or_switch[self._plan.backend](served, lengths)
        self.found["rope"] |= {length: rope for length in lengths}
        backend: Backend = self._backend
        return backend

    def _scripted(self, served: ServedRope, lengths: tuple[str, ...]) -> Any:
        from evalkit.models.backends.scripted import ScriptedBackend

        self._backend = ScriptedBackend(self._plan.config.script)

    def _hf(self, served: ServedRope, lengths: tuple[str, ...]) -> Any:
        from evalkit.models.backends.hf import HFBackend
        from evalkit.models.rope.readback import (
            GPU_TOLERANCE,
            TOLERANCE,
            compare_model,
            expected_frequencies,
            read_back_transformers,
        )

        config = self._plan.config
        if self._backend is None:
            self._backend = HFBackend(
                config.model,
                rope=served.mapping,
                dtype=config.dtype,
                device=config.device,
                batch_tokens=config.batch_tokens,
                adapter=config.adapter,
                logprobs=self._logprobs,
            )
            self.found["engine"] = {"device": self._backend.device, "dtype": self._backend.dtype}
        else:
            self._backend.set_rope(served.mapping)
        expected = expected_frequencies(self._plan.checkpoint, served)
        tolerance = GPU_TOLERANCE if self._backend.device == "cuda" else TOLERANCE
        effective = read_back_transformers(self._backend.model)
        return [one.to_json() for one in compare_model(expected, effective, tolerance=tolerance)] if expected else []

    def _vllm(self, served: ServedRope, lengths: tuple[str, ...]) -> Any:
        from evalkit.models.backends.vllm.backend import VLLMBackend

        plan = self._plan
        longest = self._longest(served, lengths)
        if self._backend is not None and self._backend.can_switch_to(served, longest):
            self._backend.switch_to(served)
            return self._backend.read_back
        self.close()
        self._backend = VLLMBackend(
            plan.checkpoint, served, max_model_len=longest, options=self._vllm_options(), logprobs=self._logprobs
        )
        decisive, beside = self._backend.settings()
        self.found["engine"] = decisive | beside
        return self._backend.read_back

    def _server(self, served: ServedRope, lengths: tuple[str, ...]) -> Any:
        from evalkit.models.backends.server import ServerBackend

        plan = self._plan
        self.close()
        self._backend = ServerBackend(
            plan.checkpoint,
            plan.encoder,
            max_model_len=self._longest(served, lengths),
            options=self._server_options(lengths),
            logprobs=self._logprobs,
        )
        self.warnings += [warning for warning in self._backend.warnings if warning not in self.warnings]
        self.found.setdefault("engine", {})[" ".join(lengths)] = self._backend.settings()
        return "a server's rope rule cannot be read"

    def _vllm_options(self) -> "VLLMOptions":
        from evalkit.models.backends.vllm.engine import VLLMOptions

        return VLLMOptions(dtype=self._plan.config.dtype, **self._plan.config.engine)

    def _server_options(self, lengths: tuple[str, ...]) -> "ServerOptions":
        from evalkit.models.backends.server import ServerOptions

        return ServerOptions(**{**self._plan.config.engine, "base_url": self._url_for(lengths)})

    def _url_for(self, lengths: tuple[str, ...]) -> str:
        """Return the address given for these lengths: LENGTH=URL, or a bare URL for all."""
        given: dict[str, str] = {}
        for entry in self._plan.config.engine.get("base_url", ()):
            name, equals, url = entry.partition("=")
            labelled = equals and "/" not in name
            given[format_length(parse_length(name)) if labelled else ""] = url if labelled else entry
        if len(self._plan.groups) > 1 and "" in given:
            raise BadInput(
                f"These lengths are served under {len(self._plan.groups)} rope rules and a server has one; start a "
                "server for each, and name them like --base-url 16k=http://localhost:8001/v1 --base-url 32k=..."
            )
        urls = {given.get(length, given.get("", "")) for length in lengths}
        if len(urls) != 1 or "" in urls:
            raise BadInput(
                f"The lengths {', '.join(lengths)} share a rope rule and need one server; name it with --base-url URL, "
                "or once for each length with --base-url LENGTH=URL."
            )
        return urls.pop()

    def _longest(self, served: ServedRope, lengths: tuple[str, ...]) -> int:
        """Return the positions that the longest request of these lengths may use."""
        tokens = [parse_length(length) for length in lengths]
        published = self._plan.config.source != "generated"
        return served.window if published or 0 in tokens else min(served.window, max(tokens))

    def close(self) -> None:
        """End the engine, if one is open."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_engine_options(backend: str, options: dict[str, Any]) -> None:
    """Refuse options of another backend than the one that answers.

    Raises:
        BadInput: the option and the backends it belongs to.
    """
    for name in options:
        if name not in _engine_options(backend):
            owners = [owner for owner in ("vllm", "server") if name in _engine_options(owner)]
            raise BadInput(f"The option {name} is for the backend {' or '.join(owners)}, and this run uses {backend}.")
    if backend == "server" and not options.get("base_url"):
        raise BadInput("The server backend needs an address: --base-url http://localhost:8000/v1.")


def engine_options_of(backend: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return those of several backends' options that this one takes."""
    return {name: value for name, value in options.items() if name in _engine_options(backend)}


def _engine_options(backend: str) -> set[str]:
    from evalkit.models.backends.server import ServerOptions
    from evalkit.models.backends.vllm.engine import VLLMOptions

    kind = {"vllm": VLLMOptions, "server": ServerOptions}.get(backend)
    return {field.name for field in fields(kind)} if kind else set()
