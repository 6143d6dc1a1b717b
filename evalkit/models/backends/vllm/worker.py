"""What runs inside vLLM's worker processes: reading and rewriting the rotary table, and ending with the harness.

vLLM adds the methods of ``WorkerExtension`` to its worker class and calls them by name (``collective_rpc``), so that no
code has to be sent between processes.
"""

import logging
import os
import select
import threading
from typing import TYPE_CHECKING, Any

from evalkit.files import first_line

if TYPE_CHECKING:
    import torch


ERRORS_VARIABLE = "EVALKIT_VLLM_ERRORS"
"""Names, in the environment of an engine's processes, the file that their exceptions are written to."""


HARNESS_VARIABLE = "EVALKIT_VLLM_HARNESS"
"""Names, in the same place, the process that they end with."""


class ErrorFile(logging.Handler):
    """Appends the exceptions that vLLM logs to a file, a line each; what it tells the harness leaves the reason out."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Write the type and the first line of the record's exception, where it has one."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(f"{type(error).__name__}: {first_line(error)}\n")


def end_with(pid: int) -> None:
    """Exit when process ``pid`` (the harness) is gone.

    vLLM's processes do not look whether the one that started them lives, and an engine that is left behind would hold
    the GPU's memory against the command that resumes the run. The engine process ends when its workers do.
    """
    try:
        harness = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)

    def watch() -> None:
        select.select([harness], [], [])  # returns once that process has ended
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="evalkit-end-with-harness").start()


# vLLM imports this file in its workers before they load the model, which can take minutes.
if ERRORS_VARIABLE in os.environ:
    logging.getLogger("vllm").addHandler(ErrorFile(os.environ[ERRORS_VARIABLE]))
if HARNESS_VARIABLE in os.environ:
    end_with(int(os.environ[HARNESS_VARIABLE]))


class WorkerExtension:
    """Methods for the worker that holds one shard of the model. Values are plain lists: they cross a process."""

    def evalkit_rope_tables(self) -> list[dict[str, Any]]:
        """Describe each distinct rotary table of the loaded model.

        Each entry has ``where`` (the module's name), ``rows`` (positions it covers), ``dtype`` and ``first_row``: the
        row of position 1 in float32, cosines in the first half, sines in the second.

        A float32 table is read itself. A half-precision one is too coarse to tell frequencies: its float32 source is
        computed again, must round to the very table that is loaded, and is read instead.

        Raises:
            RuntimeError: a loaded half-precision table is not the rounding of its source.
        """
        import torch

        found: list[dict[str, Any]] = []
        for where, module in _rotary_modules(self).items():
            table = source = _table(module)
            if table.dtype != torch.float32:
                source = _source(module)
                if not torch.equal(source.to(table.dtype), table):
                    raise RuntimeError("the rotary table in use is not the one that its module computes")
            found.append(
                {
                    "where": where,
                    "rows": table.shape[0],
                    "dtype": str(table.dtype).removeprefix("torch."),
                    "first_row": source[1].tolist(),
                }
            )
        return found

    def evalkit_rope_modules(self) -> list[dict[str, Any]]:
        """Describe the rotary modules of a model that vLLM runs through transformers' own code (Olmo 3, for one).

        Such a model computes its angles from frequencies at each step: it has no table, and no last position. Each
        entry has the fields of ``EffectiveRope`` in ``models/rope/modules.py``.
        """
        from evalkit.models.rope.modules import read_back_transformers

        return [
            {
                "where": module.where,
                "layer_type": module.layer_type,
                "inv_freq": module.inv_freq.tolist(),
                "attention_factor": module.attention_factor,
            }
            for module in read_back_transformers(self.get_model())  # type: ignore[attr-defined]  # vLLM's worker has it
        ]

    def evalkit_attention(self) -> list[str]:
        """Return vLLM's names of the attention backends that its layers use."""
        layers = self.vllm_config.compilation_config.static_forward_context.values()  # type: ignore[attr-defined]
        return sorted({str(layer.attn_backend.get_name()) for layer in layers if hasattr(layer, "attn_backend")})

    def evalkit_write_rope(self, inv_freq: list[float], attention_factor: float) -> int:
        """Overwrite every rotary table in place and return how many there are.

        The memory stays where it is, so captured graphs read the new values. Keys that are already in the KV cache keep
        the old rotation: drain the engine first, and reset its prefix cache after.
        """
        modules = _rotary_modules(self).values()
        for module in modules:
            module.evalkit_rope = (inv_freq, attention_factor)
            table = _table(module)
            table.copy_(_source(module).to(table.dtype))
        return len(modules)

    def evalkit_process(self) -> int:
        """Return the id of this process."""
        return os.getpid()


def _rotary_modules(worker: Any) -> dict[str, Any]:
    """Return, by name, one module per distinct table of shape (rows, rotary_dim); layers share tables."""
    tables: dict[int, tuple[str, Any]] = {}
    for where, module in worker.get_model().named_modules():
        if (table := _table(module)) is not None:
            tables.setdefault(table.data_ptr(), (where, module))
    return dict(tables.values())


def _table(module: Any) -> Any:
    """Return the rows that a module turns by, from position 0; None where it has no table.

    Longrope's module has two tables, one behind the other, and uses one of them as long as the engine lives.
    """
    both = getattr(module, "long_short_cos_sin_cache", None)
    if both is None:
        return getattr(module, "cos_sin_cache", None)
    short = module.original_max_position_embeddings
    return both[short:] if module.use_long_rope else both[:short]


def _source(module: Any) -> "torch.Tensor":
    """Return a module's table in float32, on its own device: what was written into it, or what its class computes."""
    import torch

    table = _table(module)
    with torch.device(table.device), torch.inference_mode():
        if hasattr(module, "use_long_rope"):
            kind = "long" if module.use_long_rope else "short"
            factors, attention_factor = getattr(module, f"{kind}_factor"), getattr(module, f"{kind}_mscale")
            divided: torch.Tensor = module._compute_cos_sin_cache(len(table), factors, attention_factor)
            return divided
        if not hasattr(module, "evalkit_rope"):
            computed: torch.Tensor = module._compute_cos_sin_cache()
            return computed
        inv_freq, attention_factor = module.evalkit_rope
        angles = torch.outer(torch.arange(len(table), dtype=torch.float32), torch.tensor(inv_freq, dtype=torch.float32))
        written: torch.Tensor = torch.cat([angles.cos(), angles.sin()], dim=-1) * attention_factor
        return written
