"""Engines of vLLM as Ray actors: an engine process that is killed costs no answer."""

import subprocess
import time

import psutil
import pytest

from tests.vllm.test_run import SAMPLES, command, keyed, recorded

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


def engine_processes() -> set[psutil.Process]:
    return {one for one in psutil.process_iter(["name"]) if "EngineCor" in (one.info["name"] or "")}


def test_two_engines_answer_as_transformers_does_though_one_is_killed_on_the_way(tmp_path):
    pytest.importorskip("ray")
    from evalkit.models.new_checkpoint import write_checkpoint

    checkpoint, out, reference = tmp_path / "ckpt", tmp_path / "vllm", tmp_path / "hf"
    write_checkpoint(checkpoint, window=1024)
    others = engine_processes()
    with subprocess.Popen([*command(checkpoint, out, "vllm"), "--max-num-seqs", "2", "--replicas", "2"]) as driver:
        engines: set[psutil.Process] = set()
        while not engines or len(recorded(out)) < 5:  # none is there while both go from one rope rule to the next
            assert driver.poll() is None, "killed before it was done"
            time.sleep(0.05)
            engines = engine_processes() - others
        engines.pop().kill()
        assert driver.wait() == 0
    assert not engine_processes() - others
    subprocess.run(command(checkpoint, reference, "hf"), check=True)
    ours, theirs = keyed(out), keyed(reference)
    assert ours.keys() == theirs.keys()
    assert all(row["error"] is None for row in ours.values())
    assert all(ours[key]["prompt_sha256"] == theirs[key]["prompt_sha256"] for key in ours)
    equal = [ours[key]["output"] == theirs[key]["output"] for key in ours]
    assert len(equal) == 4 * SAMPLES
    assert sum(equal) >= 0.9 * len(equal), "greedy answers part only at near ties"
