"""Copies of the small checkpoint with another config, and small models of other families, for tests."""

import json
import shutil
from pathlib import Path
from typing import Any

from evalkit.models.rope.stored import KnownRule


def variant(checkpoint: Path, folder: Path, *, drop: tuple[str, ...] = (), **config: Any) -> Path:
    """Copy a checkpoint and change its config: ``drop`` removes keys, keyword arguments set them."""
    shutil.copytree(checkpoint, folder)
    file = folder / "config.json"
    values = json.loads(file.read_text()) | config
    file.write_text(json.dumps({key: value for key, value in values.items() if key not in drop}))
    return folder


def with_layers(folder: Path, count: int) -> Path:
    """Store a small tensor for each of so many layers, for a config that says as many; the model is none."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    norm = tensors["model.layers.0.input_layernorm.weight"]
    tensors |= {f"model.layers.{i}.input_layernorm.weight": norm for i in range(count)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_record(folder: Path, rope: KnownRule, trained_length: int = 512) -> Path:
    """Put a training record into a checkpoint folder."""
    record = {"recipe": "test", "trained_length": trained_length, "rope": rope.to_json()}
    (folder / "evalkit_training.json").write_text(json.dumps(record))
    return folder


def family(checkpoint: Path, folder: Path, config: Any) -> Path:
    """Write a random model of a transformers config, with the small checkpoint's tokenizer beside it."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:  # attention that is not flat, so that a wrong rotation shows
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 * 2)
        model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(checkpoint / name, folder / name)
    return folder


def family_as_published(checkpoint: Path, folder: Path, values: dict[str, Any]) -> Path:
    """Write a random model whose config.json holds these values as they stand, in whatever layout they are.

    The name of its class is added, which every public config has and vLLM goes by.
    """
    from transformers import AutoConfig

    draft = folder.with_name(f"{folder.name}-draft")
    draft.mkdir()
    (draft / "config.json").write_text(json.dumps(values))
    family(checkpoint, draft, AutoConfig.from_pretrained(draft))
    written = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({"architectures": written["architectures"], **values}))
    return draft.rename(folder)
