"""The presets of the paper hold the authors' own settings, and every arm goes through training, curves and report."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from evalkit.benchmarks.babilong import questions
from evalkit.benchmarks.babilong.prose import generate_prose
from evalkit.models.new_checkpoint import write_checkpoint
from evalkit.reading import read_toml
from evalkit.records.folder import RunFolder
from evalkit.study import experiment as experiment_module
from evalkit.study.experiment import load_experiment
from evalkit.study.steps import plan_steps
from evalkit.study.study import Study

SHARED = {
    "lora_rank": 16,
    "lora_alpha": 32.0,
    "lora_dropout": 0.1,
    "batch_size": 1,
    "accumulation": 4,
    "final_rate": 0.0,
    "max_gradient_norm": 1.0,
    "adam_beta2": 0.999,
    "gradient_checkpointing": True,
    "precision": "bfloat16",
}
BABILONG = SHARED | {"learning_rate": 5e-5, "warmup": 0.15, "epochs": 2.0, "factor": 2.0, "range_length": 8192}
MRCR = SHARED | {"learning_rate": 2e-4, "warmup": 0.1, "epochs": 5.0, "factor": 4.0}


@pytest.mark.parametrize(("name", "settings"), [("paper", BABILONG), ("paper-mrcr", MRCR)])
def test_the_settings_are_those_of_the_authors_reproducibility_files(name, settings):
    experiment = load_experiment(name)
    assert experiment.base == "Qwen/Qwen2.5-7B-Instruct"
    assert experiment.seeds == (42,)
    assert experiment.published == ("paper",)
    trained = experiment.train_config("Randomized YaRN", base="b", out="o")
    assert {key: getattr(trained, key) for key in settings} == settings
    assert set(trained.lora_targets) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    for curve in experiment.curves:  # static: one factor at every length
        assert (curve.rope.rule, curve.rope.factor) in {("none", None), ("yarn", 4.0)}
    assert {"plain", "plain + YaRN", "trained YaRN", "RPE", "RPE + YaRN", "PoSE", "YaRN + PoSE", "Randomized YaRN"} < {
        curve.label for curve in experiment.curves
    }


def test_babilong_is_trained_on_4000_rows_and_asked_the_stories_whose_room_is_entered_again():
    experiment = load_experiment("paper")
    trained = experiment.train_config("Randomized YaRN", base="b", out="o")
    assert (trained.data.rows, trained.data.samples, trained.data.longest) == (("0k", "2k", "4k", "8k"), 4000, 9216)
    assert trained.options.source == "hub-train"
    assert trained.stages == (1, 2)  # 8,192 then 16,384
    asked = experiment.run_config(experiment.curves[0], model="m")
    assert asked.lengths == ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k")
    assert (asked.data.source, asked.data.only, asked.data.max_new_tokens) == ("hub-1k", ("entries>=2",), 10)
    assert (asked.data.prompts, asked.data.examples) == ("official", False)


def test_mrcr_is_trained_on_the_60_rows_of_4k_to_8k_and_asked_the_others():
    experiment = load_experiment("paper-mrcr")
    trained = experiment.train_config("Randomized YaRN", base="b", out="o")
    assert (trained.data.rows, trained.data.samples, trained.stage_length) == (("8k",), 60, 8192)
    assert trained.data.longest >= 8192 + 1000, "a prompt of 8,192 tokens and the longest answer: no row is cut"
    assert trained.epochs * trained.data.samples / (trained.batch_size * trained.accumulation) == 75  # steps
    assert trained.stages == (1, 1.25, 1.5, 2, 2)
    asked = experiment.run_config(experiment.curves[0], model="m")
    for options in (trained.options, asked.data):
        assert (options.source, options.split, options.bins) == ("hub", "70/30:42", "prompt")
    assert (asked.lengths, asked.samples, asked.data.max_new_tokens) == (("8k", "16k", "32k", "64k", "128k"), 30, 2048)


def test_mrcr_has_the_arms_whose_figures_are_quoted_beside_it():
    """61.1 and 57.0 are of RPE within 32K; factor 2 in training was the better one, for every arm under YaRN."""
    experiment = load_experiment("paper-mrcr")
    reach = {
        name: experiment.train_config(name, base="b", out="o").asked().fields["largest_position"] + 1
        for name in experiment.arms
    }
    for curriculum in ("", ", no curriculum"):
        assert (reach[f"RPE{curriculum}"], reach[f"RPE, range 32K{curriculum}"]) == (16_384, 32_768)
    rising = experiment.train_config("RPE, range 32K", base="b", out="o")
    assert [ratio * rising.stage_length for ratio in rising.stages] == [10_240, 16_384, 24_576, 32_768, 32_768]
    served = {(curve.arm, curve.rope.factor) for curve in experiment.curves}
    for name in ("trained YaRN", "YaRN + PoSE", "Randomized YaRN"):
        factors = [experiment.train_config(f"{name}{also}", base="b", out="o").factor for also in ("", ", factor 2")]
        assert factors == [4, 2]
        assert reach[name] == reach[f"{name}, factor 2"]
        assert {(name, 4), (f"{name}, factor 2", 4)} <= served
    assert {("RPE, range 32K", 4), ("RPE, range 32K, no curriculum", 4)} <= served


@pytest.mark.parametrize("name", ["paper", "paper-mrcr"])
def test_the_papers_qwen3_is_trained_and_asked_without_thinking(name):
    whole, qwen3 = load_experiment(name), load_experiment(name, scale="qwen3")
    assert (qwen3.base, qwen3.budget.parameters) == ("Qwen/Qwen3-14B", 14.8e9)
    arm, curve = "Randomized YaRN", qwen3.curves[0]
    told = ("enable_thinking=false",)
    trained, asked = qwen3.train_config(arm, base="b", out="o"), qwen3.run_config(curve, model="m")
    assert (trained.template_args, asked.template_args) == (told, told)
    assert replace(trained, template_args=()) == whole.train_config(arm, base="b", out="o")
    assert replace(asked, template_args=()) == whole.run_config(curve, model="m")


def _rows(folder, seed, lengths, count):
    """Rows in the published layout: statements of qa3 among prose, at about so many words."""
    for length, words in lengths.items():
        prose = generate_prose(seed, 40 * words).split(". ")
        rows = []
        for index in range(count):
            story = questions.generate("qa3", seed, index)
            spread = len(prose) // (len(story.facts) + 1)
            told = [text for i, fact in enumerate(story.facts) for text in (fact, *(f"{p}." for p in prose[i : i + 1]))]
            rest = " ".join(f"{p}." for p in prose[spread : spread + words // 20])
            row = {"input": " ".join([*told, rest]), "question": story.question, "target": story.target}
            rows.append(row)
        file = folder / "data" / "qa3" / f"{length}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows))


def _toml(experiment: dict) -> str:
    """The file of an experiment; JSON's values are TOML's, but for tables."""
    tables = [f"{key} = {json.dumps(value)}" for key, value in experiment.items() if not isinstance(value, dict)]
    tables = [line for line in tables if not line.startswith("curves")]
    for name in ("training", "evaluation"):
        tables += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in experiment[name].items())]
    for arm, own in experiment["arms"].items():
        tables += [f"[arms.{json.dumps(arm)}]", *(f"{key} = {json.dumps(value)}" for key, value in own.items())]
    for curve in experiment["curves"]:
        tables += ["[[curves]]", *(f"{key} = {json.dumps(value)}" for key, value in curve.items())]
    return "\n".join(tables)


@pytest.fixture
def cut_down(tmp_path):
    """The file of the preset, every arm and curve of it, for a tiny base and rows of its own."""
    write_checkpoint(tmp_path / "base", window=2048)
    _rows(tmp_path / "train", 3, {"1k": 200, "2k": 500}, 8)
    _rows(tmp_path / "asked", 5, {"1k": 200, "2k": 500}, 40)
    preset = read_toml(Path(experiment_module.__file__).parent / "experiments" / "paper.toml")
    preset["training"] |= {"prompts": "own", "source": str(tmp_path / "train"), "rows": "1k,2k", "samples": 8}
    preset["training"] |= {"longest": 2048, "range_length": 2048, "precision": "float32", "epochs": 1, "lora_rank": 2}
    preset["training"] |= {"save_every": 1}
    preset["evaluation"] |= {"prompts": "own", "source": str(tmp_path / "asked"), "lengths": "1k,2k", "samples": 40}
    preset["evaluation"] |= {"backend": "hf"}
    preset |= {"base": str(tmp_path / "base")}
    del preset["budget"]
    (tmp_path / "cut.toml").write_text(_toml(preset))
    return tmp_path / "cut.toml"


def _wait_until_its_workers_are_gone(group: int) -> None:
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_the_whole_preset_cut_down_goes_from_a_base_to_the_report_although_it_is_killed_twice(cut_down, tmp_path):
    """Once while arms are trained and once while curves are asked, each time at a moment that nobody chose."""
    study = Study(experiment=load_experiment(str(cut_down)), root=tmp_path / "results", plots=tmp_path / "plots")
    words = ["reproduce", cut_down, "--out", study.root, "--plots", study.plots]
    command = [sys.executable, "-m", "evalkit", *map(str, words)]
    chance = random.Random(7)
    for sign in ("seed-42/*/plan.json", "seed-42/runs/*/predictions.jsonl"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while not any(path.stat().st_size for path in study.root.glob(sign)):
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 4))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "killed before it was done"
        _wait_until_its_workers_are_gone(process.pid)
    begun = {path: path.read_bytes() for path in study.root.glob("seed-42/runs/*/predictions.jsonl")}
    trained = {path: path.stat().st_mtime_ns for path in study.root.glob("seed-42/*/adapter_model.safetensors")}
    assert begun

    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    steps = [step for step in plan_steps(study, (42,)) if step.kind in ("train", "run")]
    assert len(steps) == 8 + 12
    assert all(step.done() for step in steps)
    for path, text in begun.items():
        whole = text[: text.rfind(b"\n") + 1]
        assert path.read_bytes().startswith(whole), "what was answered is kept"
    assert all(path.stat().st_mtime_ns == at for path, at in trained.items()), "no arm is trained twice"
    for step in steps:
        if step.kind == "run":
            asked = [(p.length, p.sample_id) for p in RunFolder.open(step.out).predictions()]
            assert len(set(asked)) == len(asked), "and nothing is asked twice"
    shown = {row["arm"] for row in csv.DictReader((study.plots / "curves.csv").open())}
    assert {curve.label for curve in study.experiment.curves} <= shown
    assert "(published)" in (study.plots / "report.md").read_text(), "the authors' figures stand beside"
    record = json.loads((study.root / "seed-42" / "pose" / "evalkit_training.json").read_text())
    assert record["positions"]["kind"] == "pose"
