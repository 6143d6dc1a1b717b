"""README's blocks are typed as they stand; only options that cut what is asked and trained are added behind the words.

Its console block and the tutorial are typed as they stand altogether, in tests/real; ``scripts/test`` is what CI runs.
"""

import json
import re
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from evalkit.machine import processor
from tests.documents import ROOT, blocks, shell
from tests.report_runs import holds_to, write_run

README = ROOT / "README.md"
REFERENCE = ROOT / "results" / "reference" / "tiny" / "seed-0.tar.xz"
CUT = {
    "run": "--samples 2 --backend scripted",
    "train": "--samples 5 --accumulation 1 --epochs 1",
    "reproduce tiny": "--scale quick",
}
NEWCOMER, MAIN_JOB, TRAINING = blocks(README)
pytestmark = pytest.mark.slow


def cut(line: str) -> str:
    """A line of README with what makes it small, where it would be large."""
    command = line.partition("  #")[0].strip()
    added = [options for words, options in CUT.items() if command.partition("evalkit ")[2].startswith(words)]
    return " ".join([command, *added])


def typed(folder: Path, command: str) -> str:
    done = shell(folder, command)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def answers(predictions: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """Prompt's hash and reply of each sample."""
    records = map(json.loads, predictions.open())
    return {(r["length"], r["sample_id"]): (r["prompt_sha256"], r["output"]) for r in records}


@pytest.mark.timeout(2400)
def test_the_first_command_makes_the_curve_and_the_very_answers_of_the_reference(tmp_path):
    first, second = NEWCOMER.splitlines()
    assert second == "scripts/test"
    setup, command = first.split(" && ")
    assert setup == "scripts/setup", "with which scripts/test begins"
    typed(tmp_path, cut(command))
    assert (tmp_path / "plots" / "tiny-quick" / "curve-babilong.png").is_file()
    with tarfile.open(REFERENCE) as packed:
        packed.extractall(tmp_path / "reference", filter="data")
    for arm in ("plain", "plain-yarn", "randomized-yarn"):
        made, kept = (
            answers(tmp_path / root / "seed-0" / "runs" / arm / "predictions.jsonl")
            for root in ("results/tiny-quick", "reference")
        )
        assert len(made) == 700
        assert {key: sha256 for key, (sha256, _) in made.items()} == {key: sha256 for key, (sha256, _) in kept.items()}
        seen_to_repeat = "avx2" in processor()["instructions"].split() and "AMD" in processor()["model"]
        if seen_to_repeat and torch.__version__.startswith("2.13.0"):  # results/README.md says what is known of others
            assert made == kept, "the same kernels compute the same weights"


def test_the_main_job_runs_and_reports_and_a_short_window_is_refused_as_the_text_says(tmp_path):
    run, report = MAIN_JOB.splitlines()
    typed(tmp_path, "evalkit new-checkpoint ckpt --window 8k")
    refused = shell(tmp_path, run)
    assert refused.returncode == 2
    assert "16k = 16,384 tokens are not covered" in refused.stderr
    assert "use --rope yarn" in refused.stderr
    assert not (tmp_path / "results").exists()
    (check,) = re.findall(r"`(evalkit check [^`]*)`", README.read_text())
    shown = shell(tmp_path, f"{check} --rope yarn --factor auto")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "yarn, factor 16 over 8,192" in shown.stdout
    assert "30 samples recorded" in typed(tmp_path, f"{cut(run)} --rope yarn --factor auto")
    typed(tmp_path, "rm -r ckpt && evalkit new-checkpoint ckpt --window 128k")
    assert "30 samples recorded" in typed(tmp_path, cut(run))
    typed(tmp_path, report)
    assert (tmp_path / "plots" / "report.html").is_file()


def test_the_lines_of_python_run(tmp_path):
    (block,) = blocks(README, "python")
    typed(tmp_path, "evalkit new-checkpoint ckpt --window 32k")
    for arm in ("plain", "randomized-yarn"):
        write_run(tmp_path / "results" / arm, arm=arm, accuracy=holds_to(16_384), lengths=("16k", "32k"), samples=5)
    smaller = "import functools, evalkit\nevalkit.run = functools.partial(evalkit.run, samples=2, backend='scripted')\n"
    (tmp_path / "lines.py").write_text(smaller + block)
    typed(tmp_path, f'"{sys.executable}" lines.py')
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")


def test_the_lines_of_training_train_and_ask_and_plan_the_study_of_the_paper(tmp_path):
    typed(tmp_path, "evalkit new-checkpoint Qwen2.5-7B-Instruct --window 32k")
    train, run, plan = TRAINING.splitlines()
    assert "randomized-yarn, 5 steps" in typed(tmp_path, cut(train))
    assert "6 samples recorded" in typed(tmp_path, cut(run))
    said = typed(tmp_path, cut(plan))
    assert "train  Randomized YaRN" in said
    assert not (tmp_path / "results" / "paper").exists(), "a plan makes nothing"
