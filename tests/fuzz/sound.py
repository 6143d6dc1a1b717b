"""Sound things that inputs are made of by spoiling a part: a checkpoint, an adapter and its record, runs."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = list[list[str]]
"""Command lines, run one after the other."""
ASK = ["--task", "babilong", "--lengths", "1k", "--subsets", "qa1", "--samples", "1"]


@dataclass(frozen=True)
class Sound:
    """Sound things, made once."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "ckpt"

    @classmethod
    def make(cls, folder: Path) -> "Sound":
        """Write a checkpoint, an adapter and its record, rows of every layout, and runs."""
        from evalkit.models.new_checkpoint import write_checkpoint

        made = cls(folder)
        write_checkpoint(made.checkpoint, window=2048, seed=0)
        _write_adapter(folder / "adapter")
        _write_runs(folder / "runs")
        return made


def _write_adapter(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from evalkit.models.rope.formulas import RopeScaling
    from evalkit.models.training_record import TrainingRecord

    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base", "bias": "none",
                "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    matrices = {
        f"{at}.lora_A.weight": np.ones((4, 64), np.float32),
        f"{at}.lora_B.weight": np.ones((64, 4), np.float32),
    }
    save_file(matrices, folder / "adapter_model.safetensors")
    rope = RopeScaling(rule="yarn", theta=1e4, rotary_dim=32, original_length=512, factor=2.0)
    TrainingRecord(recipe="yarn", trained_length=512, rope=rope, seed=0).write(folder / "evalkit_training.json")


def _write_runs(folder: Path) -> None:
    from evalkit.records.folder import RunFolder
    from evalkit.records.scoring import score_folder
    from tests.report_runs import holds_to, training, write_run

    for arm in ("a", "b"):
        write_run(folder / arm, arm=arm, accuracy=holds_to(1024), lengths=("1k", "2k"), subsets=("qa1",), samples=6,
                  training=training("yarn"))  # fmt: skip
        score_folder(RunFolder.open(folder / arm))
        os.chmod(folder / arm, 0o755)
