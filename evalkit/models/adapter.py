"""A LoRA adapter folder, checked against the base it is to be put on."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.errors import BadInput
from evalkit.files import first_line
from evalkit.models.layouts import AdapterFile
from evalkit.models.tokenizer import chat_template
from evalkit.models.weights import StoredTensor, is_zero, sampled_hash, stored_tensors
from evalkit.reading import read_as, read_json, shown

_PREFIX = "base_model.model."
_WRAPPING = re.compile(r"\.(?:base_layer|modules_to_save|original_module)(?=\.)")  # of peft, around the base's modules
_PART = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_(?:A|B)\.weight|lora_embedding_(?:A|B)|(?:lora_|token_adapter\.).+)"
)
_GIVES = re.compile(r"\.lora_(?:embedding_)?B(?:\.weight)?$")
# Part of an adapter -> which of its axes, and which of the weight that it changes, have the same size.
_AXES = {
    "lora_A.weight": ("takes", 1, 1),
    "lora_B.weight": ("gives", 0, 0),
    "lora_embedding_A": ("takes", 1, 0),
    "lora_embedding_B": ("gives", 0, 1),
}
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # those that leave the base's weights as they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter in peft's layout. Make one with ``open``."""

    path: Path
    base: str | None
    """The base's name as the adapter's config gives it; often a path on the machine that trained it."""
    rank: int
    config: Mapping[str, Any]
    """``adapter_config.json``."""
    tensors: Mapping[str, StoredTensor]
    warnings: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path, base: Path) -> "Adapter":
        """Read an adapter folder and compare its names and shapes with its base's.

        The names are compared with those of the loaded model, as peft does, not with those in the base's files: a
        wrapped model (Gemma 3 4B) has others there.

        Args:
            folder: with adapter_config.json and adapter_model.safetensors.
            base: the base's folder.

        Raises:
            BadInput: it is not a LoRA adapter, one of another base, or one that works on a part of a prompt only.
        """
        config_file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        for file in (config_file, weights):
            if not file.is_file():
                raise BadInput(f"{folder} is not a LoRA adapter: it has no {file.name}; save one with peft.")
        config = read_json(config_file) or {}
        if (kind := config.get("peft_type")) not in (None, "LORA"):
            raise BadInput(f"The adapter {folder} is of type {shown(kind)}; only LoRA adapters can be served.")
        try:
            known = read_as(AdapterFile, config)
        except BadInput as error:
            reason = str(error).rstrip(".")
            raise BadInput(
                f"{config_file} is not the config of a LoRA adapter ({reason}); save it again with peft."
            ) from error
        if config.get("alora_invocation_tokens"):
            raise BadInput(
                f"The adapter {folder} is an activated LoRA (alora_invocation_tokens), which is off until a prompt "
                "says its invocation tokens, and no prompt of a task does; give a plain LoRA adapter."
            )
        tensors = stored_tensors([weights])
        warnings = tuple(_own_files(folder, base))
        adapter = cls(
            path=folder,
            base=known.base_model_name_or_path,
            rank=known.r,
            config=config,
            tensors=tensors,
            warnings=warnings,
        )
        model = _LoadedModel(base)
        adapter._require_base(model, base)
        model.require_peft_puts_on(folder)
        if known.lora_alpha == 0:
            raise BadInput(
                f"The adapter {folder} changes nothing: its lora_alpha is 0, by which all of it is multiplied."
            )
        if all(is_zero(tensor) for name, tensor in tensors.items() if _GIVES.search(name)):
            raise BadInput(f"The adapter {folder} changes nothing: all its B matrices are zero, as before training.")
        return adapter

    def identity(self) -> str:
        """Return a hash over the adapter's config and samples of all its tensors."""
        config = (self.path / "adapter_config.json").read_bytes()
        return hashlib.sha256(config + sampled_hash(self.tensors.values()).encode()).hexdigest()

    def vllm_refusal(self) -> str | None:
        """Return a sentence why vLLM (0.32, ``vllm/lora/peft_helper.py``) would refuse the adapter, or None."""
        feature = next(self._not_in_vllm(), None)
        return feature and (
            f"The adapter {self.path} has {feature}, which vLLM does not serve; use --backend hf, or merge it into the "
            "weights (peft's merge_and_unload) and give that folder as the model."
        )

    def require_vllm_serves(self) -> None:
        """Refuse what vLLM has not, before an engine is started for it.

        Raises:
            BadInput: a feature of the adapter is not among vLLM's.
        """
        if refusal := self.vllm_refusal():
            raise BadInput(refusal)

    def _not_in_vllm(self) -> Iterator[str]:
        config = self.config
        if config.get("use_dora"):
            yield "DoRA magnitudes (use_dora)"
        if saved := [name for name in config.get("modules_to_save") or () if name not in ("classifier", "score")]:
            yield f"whole modules ({', '.join(saved)}, modules_to_save)"
        if config.get("bias", "none") != "none" or config.get("lora_bias"):
            yield "biases (bias or lora_bias)"
        init = config.get("init_lora_weights")
        if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
            yield f"an initialisation that changes the base's weights (init_lora_weights {init})"
        for name in ("trainable_token_indices", "layer_replication", "use_bdlora", "use_qalora"):
            if config.get(name):
                yield name

    def _require_base(self, model: "_LoadedModel", base: Path) -> None:
        changed = [self._fits(tensor, model, base) for tensor in self.tensors.values()]
        if not any(changed):
            raise BadInput(f"The adapter {self.path} changes nothing of {base}: it has no LoRA matrices.")

    def _fits(self, tensor: StoredTensor, model: "_LoadedModel", base: Path) -> bool:
        """Whether a tensor is a LoRA matrix of the base; raises BadInput when the base has no such place for it."""
        name = _WRAPPING.sub("", tensor.name.removeprefix(_PREFIX))
        found = _PART.fullmatch(name)
        where, part = (found["module"], found["part"]) if found else (name, "")
        if not model.has(where):
            raise self._foreign(f"it changes {where}, which {base} does not have")
        shape = model.shape(f"{where}.weight" if found else where)
        if not found and shape is not None and shape != tensor.shape:
            raise self._foreign(f"its {where} is {_by(tensor.shape)}, that of {base} {_by(shape)}", shape, tensor.shape)
        if part not in _AXES or shape is None or len(shape) != 2:
            return found is not None
        verb, own, others = _AXES[part]
        wanted = shape[1 - others if self.config.get("fan_in_fan_out") else others]
        if tensor.shape[own] != wanted:
            raise self._foreign(f"its {where} {verb} {tensor.shape[own]} values, that of {base} {wanted}")
        return True

    def _foreign(self, why: str, wanted: tuple[int, ...] = (), given: tuple[int, ...] = ()) -> BadInput:
        resized = len(wanted) == 2 and wanted[1:] == given[1:]
        hint = " (the vocabulary was resized before it was trained; give the base that was resized)" if resized else ""
        return BadInput(f"The adapter {self.path} (its base: {self.base}) was made for another model: {why}{hint}.")


class _LoadedModel:
    """What a base's parameters are called, and their shapes, once transformers has loaded it; found without weights."""

    def __init__(self, base: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.conversion_mapping import get_model_conversion_mapping

        try:
            config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except Exception as error:
            raise BadInput(
                f"transformers cannot build the model of {base}/config.json: {first_line(error)}."
            ) from error
        self._model = model
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
        self._names = set(self._shapes) | {name for name, _ in model.named_modules()}
        self._renamings = get_model_conversion_mapping(model)

    def require_peft_puts_on(self, adapter: Path) -> None:
        """Refuse a config that peft's own class does not take, or finds no place for; without peft a run says so.

        Raises:
            BadInput: what it says.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            return
        try:
            inject_adapter_in_model(LoraConfig.from_pretrained(adapter), self._model, low_cpu_mem_usage=True)
        except RuntimeError:  # of weights that are not there: the loaded model will show
            return
        except Exception as error:
            raise BadInput(f"peft cannot use {adapter}/adapter_config.json: {first_line(error)[:300]}.") from error

    def has(self, name: str) -> bool:
        """Whether a module or parameter is there, under this name or the one that it had in older files."""
        return name in self._names or self._renamed(name) in self._names

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        """Return a parameter's shape; None where it is not one of its own (an expert's, stacked when loaded)."""
        return self._shapes.get(parameter) or self._shapes.get(self._renamed(parameter))

    def _renamed(self, name: str) -> str:
        from transformers.core_model_loading import WeightConverter, rename_source_key

        # The patterns of some renamings end behind a module's name, those of others expect a parameter's.
        parameter = name if name in self._shapes or name.endswith((".weight", ".bias")) else f"{name}.weight"
        converters = [rule for rule in self._renamings if isinstance(rule, WeightConverter)]
        renamings = [rule for rule in self._renamings if not isinstance(rule, WeightConverter)]
        renamed, converted = rename_source_key(parameter, renamings, converters)
        return str(renamed) if converted or parameter == name else str(renamed).removesuffix(".weight")


def _own_files(folder: Path, base: Path) -> Iterator[str]:
    """Say which files that decide prompts lie beside the adapter and differ from the base's, which are used."""
    others = []
    if (template := chat_template(folder)) is not None and template != chat_template(base):
        others.append("chat template")
    own, used = folder / "tokenizer.json", base / "tokenizer.json"
    if own.is_file() and used.is_file() and own.read_bytes() != used.read_bytes():
        others.append("tokenizer")
    for name in others:
        yield (
            f"The adapter {folder} has a {name} that is not that of {base}; prompts are made with the base's. Where it "
            "was trained with its own, put that into a copy of the base."
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
