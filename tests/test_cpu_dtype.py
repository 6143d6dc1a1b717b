"""--dtype auto on a CPU: measured, never below what the weights are stored in, and once for a run folder."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from evalkit.cli.commands import main
from evalkit.models.backends import cpu_dtype
from evalkit.models.backends.cpu_dtype import bfloat16_gain, fastest_on_cpu, say_which
from evalkit.models.checkpoint import Checkpoint


def in_bfloat16(checkpoint: Path, folder: Path) -> None:
    shutil.copytree(checkpoint, folder)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))


def test_weights_in_float32_are_never_rounded_and_half_precision_is_taken_where_it_was_measured_faster():
    assert fastest_on_cpu("float32", 64) == "float32"
    assert say_which("float32", 64) == ()
    gain = bfloat16_gain(576)
    assert gain > 0
    assert fastest_on_cpu("bfloat16", 576) == ("bfloat16" if gain >= 1.2 else "float32")
    assert fastest_on_cpu("bfloat16", 576) in say_which("bfloat16", 576)[0]


@pytest.mark.parametrize(("gain", "taken"), [(2.0, "bfloat16"), (0.3, "float32")])
def test_a_run_that_goes_on_keeps_the_dtype_that_was_measured_when_it_began(
    gain, taken, checkpoint, tmp_path, monkeypatch
):
    in_bfloat16(checkpoint, tmp_path / "model")
    assert Checkpoint.open(tmp_path / "model").dtype == "bfloat16"

    def run(samples, gain):
        for function in (fastest_on_cpu, bfloat16_gain):
            function.cache_clear()
        monkeypatch.setattr(cpu_dtype, "bfloat16_gain", lambda width: gain)  # another load on the machine
        shown = CliRunner().invoke(
            main,
            [
                *("run", "--model", str(tmp_path / "model"), "--backend", "hf", "--task", "babilong"),
                *("--subsets", "qa1", "--lengths", "512", "--out", str(tmp_path / "r"), "--samples", str(samples)),
            ],
        )
        assert shown.exit_code == 0, shown.output
        return shown.output, json.loads((tmp_path / "r" / "run.json").read_text())["fingerprint"]["parts"]

    said, parts = run(1, gain)
    assert parts["engine.dtype"] == taken
    assert f"--dtype auto took {taken}" in said
    said, parts = run(2, 1 / gain)
    assert parts["engine.dtype"] == taken
    assert "2 samples recorded, 1 asked now" in said
