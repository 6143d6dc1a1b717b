"""A LoRA adapter folder, checked against the base it is to be put on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evalkit.errors import BadInput
from evalkit.models.weights import StoredTensor, sampled_hash, stored_tensors

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter in peft's layout. Make one with ``open``."""

    path: Path
    base: str | None
    """The base's name as the adapter's config gives it; often a path on the machine that trained it."""
    rank: int
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, folder: Path, base_tensors: Mapping[str, StoredTensor], base: Path) -> "Adapter":
        """Read an adapter folder and compare its shapes with its base's.

        Args:
            folder: with adapter_config.json and adapter_model.safetensors.
            base_tensors: the base's weights by name.
            base: the base's folder, for messages.

        Raises:
            BadInput: it is not a LoRA adapter, or one of another base.
        """
        config_file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        for file in (config_file, weights):
            if not file.is_file():
                raise BadInput(f"{folder} is not a LoRA adapter: it has no {file.name}; save one with peft.")
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
            kind, rank, named = config["peft_type"], int(config["r"]), config.get("base_model_name_or_path")
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{config_file} is not the config of a LoRA adapter ({error}); save it again with peft."
            ) from error
        if kind != "LORA":
            raise BadInput(f"The adapter {folder} is of type {kind}; only LoRA adapters can be served.")
        tensors = stored_tensors([weights])
        matched = {
            name: _fits(tensor, base_tensors, f"{folder} (its base: {named})", base) for name, tensor in tensors.items()
        }
        if not any(matched.values()):
            raise BadInput(f"No tensor of the adapter {folder} belongs to a layer of {base}; its base is {named}.")
        foreign = [name for name in matched if _module(name) and f"{_module(name)}.weight" not in base_tensors]
        foreign = [name for name in foreign if not _module(name).endswith("lm_head")]  # may be tied to the embeddings
        if foreign:
            raise BadInput(
                f"The adapter {folder} (its base: {named}) was made for another model: it changes "
                f"{_module(foreign[0])}, which {base} does not have."
            )
        return cls(path=folder, base=named, rank=rank, tensors=tensors)

    def identity(self) -> str:
        """Return a hash over the adapter's config and samples of all its tensors."""
        config = (self.path / "adapter_config.json").read_bytes()
        return hashlib.sha256(config + sampled_hash(self.tensors.values()).encode()).hexdigest()


def _module(tensor_name: str) -> str:
    """Return the module that a LoRA matrix changes; empty for another kind of tensor."""
    module, lora, _ = tensor_name.removeprefix(_PREFIX).partition(".lora_")
    return module if lora and tensor_name.endswith((".lora_A.weight", ".lora_B.weight")) else ""


def _fits(tensor: StoredTensor, base_tensors: Mapping[str, StoredTensor], adapter: str, base: Path) -> bool:
    """Whether a LoRA matrix belongs to a weight of the base; raises BadInput when it does and has the wrong size."""
    module, takes = _module(tensor.name), tensor.name.endswith(".lora_A.weight")
    weight = base_tensors.get(f"{module}.weight")
    if not module or weight is None or len(weight.shape) != 2:
        return False
    values, wanted = (tensor.shape[1], weight.shape[1]) if takes else (tensor.shape[0], weight.shape[0])
    if values != wanted:
        verb = "takes" if takes else "gives"
        raise BadInput(
            f"The adapter {adapter} was made for another model: its {module} {verb} {values} values, "
            f"that of {base} {wanted}."
        )
    return True
