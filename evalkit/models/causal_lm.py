"""The weights of a checkpoint in transformers, for asking and for training: all of them, or a refusal."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit.errors import BadInput, EngineError
from evalkit.files import first_line
from evalkit.machine import how_to_install


def load_causal_lm(
    folder: Path, config: Any, dtype: Any, *, attention: str | None = None, device: str | None = None
) -> Any:
    """Return a checkpoint's model in transformers, on the CPU, with every weight from its files.

    Args:
        folder: the checkpoint.
        config: transformers' own, with the rope rule to load it under; None: as it is on file.
        dtype: of the weights, as ``from_pretrained`` takes it.
        attention: transformers' name of the kernels; None: its choice.
        device: "meta" compares names and shapes, and reads no values.

    Raises:
        BadInput: the kernels are not installed, or the model cannot use them.
        EngineError: the weights cannot be loaded, lack a tensor, or have one of another shape than the config's.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar is enough, and none where there is no terminal
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            device_map=device,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused here, by name
            output_loading_info=True,
        )
    except Exception as error:  # each model's class has its own way to stop at a value of its config
        if isinstance(error, ImportError) and attention is not None:
            raise BadInput(f"--attention-backend {attention} cannot be used here: {first_line(error)}.") from error
        reason = " ".join(f"{type(error).__name__} {first_line(error)}".split())
        raise EngineError(f"transformers cannot load {folder}: {reason}.") from error
    if missing := sorted(loading["missing_keys"]):  # transformers would go on with random numbers there
        raise EngineError(
            f"The weights in {folder} lack {len(missing)} tensors of the model, such as {missing[0]}; copy them again."
        )
    mismatched = [*loading["mismatched_keys"], *_unlike_their_layers(model)]
    for name, stored, wanted in sorted(mismatched):
        sizes = " x ".join(map(str, stored)), " x ".join(map(str, wanted))
        raise EngineError(f"{name} of {folder} is {sizes[0]}, and its config says {sizes[1]}; copy both again.")
    return model


def _unlike_their_layers(model: Any) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Yield each linear layer's weight of another size: where a quantization is undone, transformers compares none."""
    from torch.nn import Linear

    for name, module in model.named_modules():
        weight = getattr(module, "weight", None) if type(module) is Linear else None
        if weight is None or not weight.is_floating_point():  # packed
            continue
        if weight.shape != (wanted := (module.out_features, module.in_features)):
            yield f"{name}.weight", tuple(weight.shape), wanted


def with_adapter(model: Any, adapter: Path) -> Any:
    """Return a model with a LoRA adapter merged into its weights.

    Raises:
        BadInput: peft is missing, or cannot put it on.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise BadInput(f"An adapter needs peft: {how_to_install('peft')}.") from error
    try:
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except Exception as error:
        raise BadInput(f"The adapter {adapter} cannot be put on its base: {first_line(error)}.") from error
