"""The whole harness on a real engine, from the command line: killed, taken up again, and beside transformers."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

SAMPLES, CELLS = 20, 4


def command(checkpoint: Path, out: Path, backend: str) -> list[str]:
    options = "run --task babilong --subsets qa1,qa2 --lengths 1k,2k --rope yarn --factor auto --max-new-tokens 40"
    return [
        *(sys.executable, "-m", "evalkit", *options.split(), "--samples", str(SAMPLES)),
        *("--model", str(checkpoint), "--out", str(out), "--backend", backend),
    ]


def recorded(out: Path) -> list[dict]:
    """Return the whole lines of a run folder's predictions; the last may be half written."""
    file = out / "predictions.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def keyed(out: Path) -> dict:
    rows = recorded(out)
    by_key = {(row["subset"], row["length"], row["sample_id"]): row for row in rows}
    assert len(by_key) == len(rows), "nothing that was recorded is asked again"
    return by_key


def test_a_run_that_was_killed_goes_on_where_it_was_and_answers_as_transformers_does(tmp_path):
    from evalkit.models.new_checkpoint import write_checkpoint

    checkpoint, out, reference = tmp_path / "ckpt", tmp_path / "vllm", tmp_path / "hf"
    write_checkpoint(checkpoint, window=1024)
    with subprocess.Popen([*command(checkpoint, out, "vllm"), "--max-num-seqs", "4"]) as first:
        while len(recorded(out)) < 5:
            assert first.poll() is None, "killed before it was done"
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    kept = recorded(out)
    assert 5 <= len(kept) < SAMPLES * CELLS, "answers are on disk while the run goes on"

    subprocess.run(command(checkpoint, out, "vllm"), check=True)
    rows = recorded(out)
    assert rows[: len(kept)] == kept
    subprocess.run(command(checkpoint, reference, "hf"), check=True)
    ours, theirs = keyed(out), keyed(reference)
    assert ours.keys() == theirs.keys()
    assert len(ours) == SAMPLES * CELLS
    assert all(ours[key]["prompt_sha256"] == theirs[key]["prompt_sha256"] for key in ours)
    equal = [ours[key]["output"] == theirs[key]["output"] for key in ours]
    assert sum(equal) >= 0.9 * len(equal), "greedy answers part only at near ties"

    provenance = json.loads((out / "run.json").read_text())
    text = json.dumps(provenance)
    assert '"rows": 2048' in text, "what was read back from the engine is on record"
    assert "max_difference" in text


def test_weights_that_lack_half_of_what_vllm_joins_are_refused_before_an_engine_starts(tmp_path):
    from safetensors.numpy import load_file, save_file

    from evalkit.models.new_checkpoint import write_checkpoint

    write_checkpoint(tmp_path / "ckpt", window=2048)
    tensors = load_file(tmp_path / "ckpt" / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]  # gate and up are one weight there
    save_file(tensors, tmp_path / "ckpt" / "model.safetensors", metadata={"format": "pt"})
    shown = subprocess.run(command(tmp_path / "ckpt", tmp_path / "r", "vllm"), capture_output=True, text=True)
    assert shown.returncode == 2
    assert "lack 1 tensors of the model, such as model.layers.1.mlp.up_proj.weight" in shown.stderr
    assert not (tmp_path / "r").exists()
