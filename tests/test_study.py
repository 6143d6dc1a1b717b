"""A study goes from its TOML file to the report, goes on where it was, and prints commands that do the same."""

import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit import options
from evalkit.benchmarks import open_benchmark
from evalkit.cli import commands
from evalkit.errors import BadInput, EvalkitError
from evalkit.machine import processor
from evalkit.reading import read_toml
from evalkit.runs.config import run_config
from evalkit.runs.plan import make_plan
from evalkit.study import workers
from evalkit.study.cost import detectable_difference, duration, run_cost
from evalkit.study.estimate import describe
from evalkit.study.experiment import experiment_names, load_experiment
from evalkit.study.on_ray import Devices
from evalkit.study.steps import Questions, Report, Run, Train, plan_steps
from evalkit.study.study import PORTABLE_KERNELS, Study
from evalkit.train.config import train_config
from evalkit.train.data import choose_samples, item_fingerprint
from evalkit.train.finetune import held_out
from evalkit.train.tiny import BASES, BaseStage, train_base, write_noise
from tests.test_registries import _plugged_in

__all__ = ["_plugged_in"]  # a fixture

SMALL = """
about = "Two arms of the tiny study."
base = "{base}"
seeds = [0]

[training]
subsets = ["qa1"]
samples = 8
shortest = 128
longest = 128
epochs = 1
batch_size = 4
accumulation = 1
instruction = false
examples = false
post_prompt = false
max_new_tokens = 2
noise = ["{noise}"]
on_leak = "drop"

[arms]
plain = {{ recipe = "plain" }}
"Randomized YaRN" = {{ recipe = "randomized-yarn", factor = 4 }}

[evaluation]
task = "babilong"
subsets = ["qa1"]
lengths = "128,512"
samples = 3
instruction = false
examples = false
post_prompt = false
max_new_tokens = 2
noise = ["{noise}"]
backend = "hf"

[[curves]]
arm = "plain"
rope = "none"

[[curves]]
arm = "Randomized YaRN"
rope = "yarn"
"""
SHORT = replace(BASES["tiny"], stages=(BaseStage(steps=2, shortest=64, longest=128, decay=False, batch_size=4),))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Background text and a base that knows nothing."""
    folder = tmp_path_factory.mktemp("study")
    write_noise(folder / "noise.txt", seed=1, num_sentences=500)
    train_base(folder / "ckpt", SHORT, noise=folder / "noise.txt", seed=0)
    return folder


@pytest.fixture
def written(world, tmp_path):
    """A function that writes the experiment, with some of its text replaced, and returns the file."""

    def write(*changes):
        text = SMALL.format(base=world / "ckpt", noise=world / "noise.txt")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "mine.toml").write_text(text)
        return str(tmp_path / "mine.toml")

    return write


@pytest.fixture
def study(written, tmp_path):
    return Study(experiment=load_experiment(written()), root=tmp_path / "r", plots=tmp_path / "p")


def first(study, kind):
    return next(step for step in plan_steps(study, (0,)) if isinstance(step, kind))


def carry_out(study):
    """Carry out a study in this process, which is quicker than in others, and return what it said by kind of step."""
    said = {}
    for step in plan_steps(study, (0,)):
        said.setdefault(step.kind, []).append(step.carry_out(lambda done, total: None))
    return said


def configured(command):
    """Return the configuration that click makes of a printed ``evalkit run`` or ``evalkit train``."""
    program, name, *words = shlex.split(command)
    assert program == "evalkit"
    click_command = commands.main.commands[name]
    context = click_command.make_context(name, words)
    keys = {key for cls in click_command._classes() for key in options.settings(cls)}
    values = {k: v for k, v in context.params.items() if k in keys and v is not None and v != ()}
    return {"run": run_config, "train": train_config}[name](values)


# What an experiment's file may say


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_can_be_planned(name, tmp_path):
    study = Study(experiment=load_experiment(name), root=tmp_path / "r", plots=tmp_path / "p")
    text = describe(plan_steps(study, study.experiment.seeds))
    assert {curve.arm for curve in study.experiment.curves} >= {"plain", "trained YaRN", "Randomized YaRN"}
    assert re.search(r"^To do on 1 .*about .* of training", text, re.MULTILINE)
    published = "source" in study.experiment.evaluation  # how many rows there are is known where the hub is reached
    assert ("?" in text) == published
    assert ("is not known: " in text) == published, "and why"
    assert not (tmp_path / "r").exists()


def test_a_curve_is_served_under_the_rule_that_it_names(written):
    changes = ('rope = "yarn"', 'rope = "ntk-by-parts"\nfactor = 8\nbeta_fast = 16\noriginal_length = "64"')
    experiment = load_experiment(written(changes))
    rope = experiment.run_config(experiment.curves[1], model="ckpt").rope
    assert (rope.rule, rope.factor, rope.beta_fast, rope.original_length) == ("ntk-by-parts", 8, 16, 64)
    assert experiment.run_config(experiment.curves[0], model="ckpt").rope.rule == "none"


def test_a_list_of_factors_is_one_curve_for_each(written):
    experiment = load_experiment(written(('rope = "yarn"', 'rope = "linear"\nfactor = [2, 4.5, "auto"]')))
    labels = ["plain", "Randomized YaRN x2", "Randomized YaRN x4.5", "Randomized YaRN auto"]
    assert [curve.label for curve in experiment.curves] == labels
    assert [experiment.run_config(c, model="c").rope.factor for c in experiment.curves] == [None, 2, 4.5, "auto"]


def test_a_scale_takes_the_place_of_single_settings_and_of_whole_lists_of_arms_and_curves(written, tmp_path):
    scales = """
[scales.half]
about = "At half the size."
[scales.half.training]
samples = 4
[scales.half.evaluation]
lengths = "64"
[scales.half.arms]
plain = { recipe = "plain" }
[[scales.half.curves]]
arm = "plain"
rope = "none"
[budget]
"""
    file = written(("[[curves]]", f"{scales}[[curves]]"))
    whole, half = load_experiment(file), load_experiment(file, scale="half")
    assert (whole.name, half.name, half.about) == ("mine", "mine-half", "At half the size.")
    assert {**whole.training, "samples": 4} == half.training
    assert {**whole.evaluation, "lengths": "64"} == half.evaluation
    assert [curve.label for curve in whole.curves] == ["plain", "Randomized YaRN"]
    assert ([curve.label for curve in half.curves], list(half.arms)) == (["plain"], ["plain"])
    with pytest.raises(BadInput, match=r"there is no scale 'cpu'; it has half, or leave --scale out"):
        load_experiment(file, scale="cpu")
    with pytest.raises(BadInput, match=r"there is no scale 'cpu'; it has none"):
        load_experiment("small", scale="cpu")
    assert load_experiment("smollm2", scale="cpu").evaluation["backend"] == "hf"


def test_a_revision_goes_with_the_base_to_every_command_that_opens_it(written, tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    experiment = load_experiment(written(), base="some-lab/model", revision=revision)
    study = Study(experiment=experiment, root=tmp_path / "r", plots=tmp_path / "p")
    base, trained = study.evaluation(0), study.run(experiment.curves[0], 0)
    assert (base.model, base.revision) == ("some-lab/model", revision)
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evalkit.study.study.make_plan", asked.append)
        study._asking_the_base(experiment.curves[0])
    assert [(one.model, one.revision) for one in asked] == [("some-lab/model", revision)], (
        "no curve of it is the base's"
    )
    assert study.training("plain", 0).revision == revision
    assert (trained.model, trained.revision) == (str(study.trained("plain", 0)), None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [0]", "seed = [0]", r"mine\.toml has the unknown setting seed; did you mean seeds\?"),
        ("seeds = [0]", 'seeds = "0"', r"mine\.toml: seeds is '0'; "),
        ("seeds = [0]", "seeds = []", r"mine\.toml: seeds is \[\]; name at least one"),
        ("epochs = 1", "epoch = 1", r"mine\.toml \[training\] has the unknown setting epoch; did you mean epochs\?"),
        ("epochs = 1", "epochs = [1]", r"mine\.toml \[training\]: epochs is \[1\]; "),
        ("epochs = 1", "epochs = 0", r"mine\.toml \[training\]: --epochs is 0"),
        ("epochs = 1", "seed = 1", r"mine\.toml \[training\] has the setting seed, but the study gives it"),
        ('on_leak = "drop"', 'on_leak = "dropp"', r"mine\.toml \[training\]: on_leak is 'dropp'"),
        ('recipe = "plain"', 'recipe = "odd"', r"mine\.toml, arm 'plain': There is no recipe 'odd'"),
        ('recipe = "plain"', "factor = 2", r"mine\.toml, arm 'plain' has no recipe"),
        ('recipe = "plain"', 'recipe = "plain", lora_rang = 2', r"arm 'plain' has the unknown setting lora_rang"),
        ('plain = { recipe = "plain" }', "plain = 3", r"mine\.toml: arms is "),
        ("samples = 3", 'samples = "3"', r"mine\.toml \[evaluation\]: samples is '3'"),
        ("samples = 3", "sample = 3", r"mine\.toml \[evaluation\] has the unknown setting sample"),
        ("samples = 3", "needles = [2]", r"mine\.toml \[evaluation\].*needles"),
        ("samples = 3", 'out = "x"', r"mine\.toml \[evaluation\] has the setting out, but the study gives it"),
        ("samples = 3", "factor = 2", r"mine\.toml \[evaluation\] has the setting factor, but each of \[\[curves\]\]"),
        ('task = "babilong"', 'task = "ruler"', r"mine\.toml \[evaluation\]: There is no task 'ruler'"),
        ('rope = "yarn"', 'rope = "warn"', r"mine\.toml, curve 'Randomized YaRN': rope is 'warn'"),
        ('rope = "yarn"', 'rop = "yarn"', r"mine\.toml, curve 'Randomized YaRN' has the unknown setting rop;"),
        ('rope = "none"', 'rope = "none"\nfactor = 2', r"mine\.toml, curve 'plain': Rope rule none .* no factor"),
        ('rope = "yarn"', 'rope = "yarn"\nfactor = ["two"]', r"curve 'Randomized YaRN': factor is 'two'"),
        ('arm = "plain"', 'arm = "lost"', r"mine\.toml: curve 'lost' is of no arm"),
        ('arm = "plain"', 'arm = "base"\nname = "randomized yarn"', r"would share the folder randomized-yarn"),
        ("[[curves]]", "[budget]\nparameters = 'many'\n[[curves]]", r"mine\.toml \[budget\]: parameters is 'many'"),
        ("[[curves]]", "[budget]\nparameters = 0\n[[curves]]", r"mine\.toml \[budget\]: parameters is 0"),
        ("[[curves]]", "[budget]\nrates = 3\n[[curves]]", r"mine\.toml \[budget\]: rates is 3; write each under"),
        ("[[curves]]", "[[budget.rates]]\ndevice = 'x'\n[[curves]]", r"mine\.toml \[budget\] has no source"),
        ("[[curves]]", "[[budget.rates]]\nspeed = 3\n[[curves]]", r"\[budget\] has the unknown setting speed"),
        ("about", "# about", r"mine\.toml has no about"),
        ("[arms]", "[arms", r"mine\.toml is not a TOML file"),
    ],
)  # fmt: skip
def test_what_an_experiment_cannot_say_is_refused_in_one_sentence_with_file_and_key(written, old, new, message):
    with pytest.raises(BadInput, match=message) as refusal:
        load_experiment(written((old, new)))
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("table", ["arms", "curves"])
def test_an_experiment_that_compares_nothing_is_refused_before_anything_is_trained(written, table):
    experiment = load_experiment(written())
    empty = {"arms": {}, "curves": ()}
    with pytest.raises(BadInput, match=rf"has nothing under \[+{table}\]+, so there is nothing to compare"):
        replace(experiment, **{table: empty[table]})


def test_a_scale_that_sets_what_is_no_table_is_refused(written):
    file = written(("[training]", "budget = 3\n[scales.x.budget]\nparameters = 3\n[training]"))
    with pytest.raises(BadInput, match=r"mine\.toml.*budget"):
        load_experiment(file, scale="x")


def test_an_experiment_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(BadInput, match=r"no experiment 'huge'; there are .*tiny"):
        load_experiment("huge")


# What is planned and printed


@pytest.mark.parametrize("name", experiment_names())
def test_every_printed_command_parses_back_to_the_configuration_of_its_step(name, tmp_path):
    study = Study(experiment=load_experiment(name), root=tmp_path / "r", plots=tmp_path / "my plots")
    steps = plan_steps(study, (0, 3))
    for step in steps:
        if isinstance(step, (Train, Run)):
            assert configured(step.command()) == step.config, step
    assert [type(step) for step in steps if not step.command()] == [
        type(s) for s in steps if s.kind in ("noise", "base")
    ]
    command, _, file = first(study, Questions).command().partition(" --print-config > ")
    assert configured(command) == study.evaluation(0)
    assert shlex.split(file) == [str(study.questions)]
    report = commands.report.make_context("report", shlex.split(first(study, Report).command())[2:])
    assert report.params["out"] == study.plots


def test_settings_that_are_seldom_used_are_in_the_printed_commands_too(written, tmp_path):
    change = (
        'task = "babilong"',
        'task = "babilong"\ncontrol = "facts-only"\nsystem_prompt = "Be \\"brief\\"."\n'
        'depth = [0, 0.5]\ndtype = "float32"',
    )
    training = ("epochs = 1", 'epochs = 1\ncontrol = "facts-only"\nsystem_prompt = "Be brief."\nweight_decay = 0.1')
    study = Study(experiment=load_experiment(written(change, training)), root=tmp_path / "r", plots=tmp_path / "p")
    for kind in (Train, Run):
        assert configured(first(study, kind).command()) == first(study, kind).config
    assert first(study, Run).config.data.depths == (0, 0.5)
    assert first(study, Run).config.engine.dtype == "float32"
    assert first(study, Train).config.system_prompt == "Be brief."


def test_print_config_prints_what_reads_back(study):
    command, _, _ = first(study, Questions).command().partition(" > ")
    printed = CliRunner().invoke(commands.main, shlex.split(command)[1:])
    assert printed.exit_code == 0
    first(study, Questions).carry_out(lambda done, total: None)
    assert printed.stdout == study.questions.read_text()
    assert run_config(read_toml(study.questions)) == study.evaluation(0)


def test_the_plan_says_what_nobody_knows_and_why(study, tmp_path):
    """The experiment has no budget; then its questions are rows that are not there, so that nobody can count them."""
    text = describe(plan_steps(study, (0,)))
    rows = [line.split() for line in text.splitlines() if line.startswith(("train ", "run "))]
    assert [row[-3:] for row in rows[:2]] == [["1,024", "?", "?"]] * 2
    assert "How long that takes is not known: the experiment's [budget] has no rates, and no run recorded" in text
    evaluation = {**study.experiment.evaluation, "source": str(tmp_path / "nowhere"), "noise": []}
    lost = replace(study, experiment=replace(study.experiment, evaluation=evaluation))
    text = describe(plan_steps(lost, (0,)))
    row = next(line for line in text.splitlines() if line.startswith("run "))
    assert row.split()[-3:] == ["?", "?", "?"]
    assert re.search(r"^What 2 steps take is not known: .*nowhere", text, re.MULTILINE)


def test_runs_cost_what_their_prompts_are_for_a_base_that_is_here(study):
    planned = first(study, Run).built_cost()
    cost = run_cost(make_plan(replace(first(study, Run).config, model=str(study.experiment.base))))
    assert planned.tokens == sum(cell.prompt_tokens for cell in cost.cells) < first(study, Run).cost().tokens
    assert planned.memory > cost.weight_bytes


def test_a_study_says_beforehand_what_each_cell_takes_and_what_it_can_show(study):
    words = ["reproduce", study.experiment.file, "--out", str(study.root), "--plots", str(study.plots), "--dry-run"]
    told = json.loads(CliRunner().invoke(commands.main, [*words, "--json"], catch_exceptions=False).stdout)
    cost = run_cost(make_plan(replace(first(study, Run).config, model=str(study.experiment.base))))
    assert [cell["length"] for cell in told["cells"]] == ["512", "128"]
    for cell, own in zip(told["cells"], cost.cells, strict=True):
        assert (cell["prompt_tokens"], cell["kv_bytes"]) == (own.prompt_tokens, own.kv_bytes)
        assert cell["detectable_difference"] == own.detectable_difference
        assert "seconds" in cell
    assert told["engines"]["plain"] == ["none (plain rope)"]
    assert told["engines"]["Randomized YaRN"] == ["yarn, factor 4 over 128", "yarn, factor 1 over 128"]
    assert [step["kind"] for step in told["steps"]] == ["ask", "train", "train", "run", "run", "report"]
    assert told["steps"][3]["tokens"] == sum(cell["prompt_tokens"] for cell in told["cells"])
    shown = CliRunner().invoke(commands.main, words).stdout
    assert re.search(r"^ +512 +qa1 +3 ", shown, re.MULTILINE)
    assert "Smallest difference of the mean over subsets, in points" in shown
    assert re.search(
        r"warning: At 512, 128 two arms must differ by up to \d+ points to be told apart; --samples", shown
    )
    assert "All 2 runs: 3 engine loads, about " in shown
    assert "To do on this machine (" in shown
    assert "): not known; --dry-run --calibrate trains and asks a little to know it." in shown


def test_what_a_study_can_show_is_known_before_its_base_is_here():
    words = ["reproduce", "tiny", "--seeds", "1", "--dry-run"]
    told = json.loads(CliRunner().invoke(commands.main, [*words, "--json"], catch_exceptions=False).stdout)
    assert {cell["prompt_tokens"] for cell in told["cells"]} == {None}
    assert {cell["samples"] for cell in told["cells"]} == {100}
    expected = detectable_difference([[str(number) for number in range(100)]])
    assert told["detectable_by_length"]["4k"] == pytest.approx(expected)
    assert (
        "What a run asks is known to the token once its base is here" in CliRunner().invoke(commands.main, words).stdout
    )


RATES = """
[budget]
parameters = 1_000
[[budget.rates]]
device = "1 H200"
source = "measured by somebody"
eval_tokens_per_second = 100
[[budget.rates]]
device = "1 H100"
source = "an estimate"
train_tokens_per_second = 10
eval_tokens_per_second = 100
eval_length = 512
"""


def test_each_kind_of_device_has_its_hours_and_who_says_so(written, tmp_path):
    changed = written(("[[curves]]", RATES + "[[curves]]"))
    study = Study(experiment=load_experiment(changed), root=tmp_path / "r", plots=tmp_path / "p")
    text = describe(plan_steps(study, (0,)))
    tokens = first(study, Run).built_cost().tokens
    said = f"To do on 1 H200: about {duration(2 * tokens / 100)} of asking, 2 steps of training of unknown length; "
    assert said + "measured by somebody." in text
    seconds = first(study, Run).built_cost().seconds
    assert seconds["1 H100"] < seconds["1 H200"], "shorter prompts than that of the rate have fewer operations a token"
    assert f"To do on 1 H100: about {duration(2 * 1024 / 10)} of training, about" in text


def test_a_calibration_says_what_training_and_asking_take_on_this_machine(study, tmp_path, monkeypatch):
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    study.calibrate()
    text = describe(plan_steps(study, (0,)))
    said = r"^To do on this machine: about \d+ \w+ of training, about \d+ \w+ of asking; "
    assert re.search(said, text, re.MULTILINE)
    kept = tmp_path / "cache" / "calibration"
    measured = {file: file.read_bytes() for file in [*kept.glob("training-*.json"), *kept.glob("*/predictions.jsonl")]}
    assert len(measured) == 2
    study.calibrate()
    assert {file: file.read_bytes() for file in measured} == measured, "it is measured once"


def test_a_study_that_trains_its_own_base_cannot_be_calibrated():
    tiny = Study(experiment=load_experiment("tiny"), root=Path("r"), plots=Path("p"))
    with pytest.raises(BadInput, match="tiny trains its own base, which is not there to be measured"):
        tiny.calibrate()


def test_reading_a_context_costs_once_however_many_questions_share_it(written, tmp_path):
    changed = written(
        ("samples = 3\n", "samples = 2\nquestions_per_context = 2\n"), ("[[curves]]", RATES + "[[curves]]")
    )
    study = Study(experiment=load_experiment(changed), root=tmp_path / "r", plots=tmp_path / "p")
    step = first(study, Run)
    cost = run_cost(make_plan(replace(step.config, model=str(study.experiment.base))))
    prefilled = sum(cell.prefilled_tokens for cell in cost.cells)
    assert step.built_cost().seconds["1 H200"] == prefilled / 100
    assert prefilled < step.built_cost().tokens


def test_arms_share_their_data_and_no_item_with_the_evaluation(study):
    one, other = (step.config for step in plan_steps(study, (0,)) if isinstance(step, Train))
    assert (one.data, one.options, one.against) == (other.data, other.options, other.against)
    first(study, Questions).carry_out(lambda done, total: None)
    asked = list(held_out(one.against))
    assert len(asked) == 3
    config = first(study, Run).config
    benchmark = open_benchmark("babilong", config.data, seed=config.seed)
    asked_of_arms = [item_fingerprint(sample) for sample in benchmark.samples("qa1", "128", 3)]
    held = [item_fingerprint(sample) for sample in asked]
    assert held == asked_of_arms
    # The evaluation's own stories, offered as training data: not one of its questions may be trained on.
    same = open_benchmark("babilong", one.options, seed=config.seed)
    chosen, dropped = choose_samples(same, replace(one.data, samples=4), held, one.on_leak)
    assert (len(chosen), dropped) == (4, 3)
    assert not {item_fingerprint(sample) for sample in chosen} & {*held}


# What is done


def test_a_study_trains_evaluates_reports_and_does_nothing_twice(study):
    said = carry_out(study)
    assert list(said) == ["ask", "train", "run", "report"]
    assert said["run"] == ["6 samples, 6 asked now, 0 failed"] * 2
    assert (study.plots / "summary.csv").read_text().count("Randomized YaRN") >= 2
    weights = next(study.root.rglob("randomized-yarn/model.safetensors"))
    before = weights.stat().st_mtime_ns
    assert carry_out(study)["run"] == ["6 samples, 0 asked now, 0 failed"] * 2
    assert weights.stat().st_mtime_ns == before
    steps = plan_steps(study, (0,))
    assert all(step.done() for step in steps if step.kind != "report")
    assert describe(steps).count(" done") == 5


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2, None])  # None: on two devices of Ray's
def test_processes_carry_out_every_step_once_and_tell_how_far_they_are(study, jobs):
    did, shares = [], {}
    plots = workers.reproduce(
        study,
        jobs=jobs or 0,
        side_by_side=None if jobs else partial(Devices, 2, None, study),
        on_step=lambda step, what: did.append(step.kind),
        on_share=lambda step, share: shares.setdefault(str(step), []).append(share),
    )
    assert did == ["ask", "train", "train", "run", "run", "report"]
    assert (plots / "summary.csv").is_file()
    assert len(shares) == 6
    assert all(told == sorted(told) and told[0] == 0 for told in shares.values()), "a step that begins is told of"
    assert sum(told[-1] == 1 for told in shares.values()) == 4
    assert shares["train plain, seed 0"] == [0.0, 0.5, 1.0], "two optimizer steps"


def test_what_the_printed_commands_make_is_what_the_study_expects(study):
    """The printed questions, a printed training and a printed run; the study finds them done and leaves them."""
    train, run = first(study, Train), first(study, Run)
    study.root.mkdir()
    command, _, file = first(study, Questions).command().partition(" > ")
    printed = CliRunner().invoke(commands.main, shlex.split(command)[1:], catch_exceptions=False)
    Path(shlex.split(file)[0]).write_text(printed.stdout)
    for step in (train, run):
        result = CliRunner().invoke(commands.main, shlex.split(step.command())[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    for step in (first(study, Questions), train, run):
        assert step.done()
    weights = train.config.out / "model.safetensors"
    before = weights.stat().st_mtime_ns
    train.carry_out(lambda done, total: None)
    assert weights.stat().st_mtime_ns == before
    assert run.carry_out(lambda done, total: None) == "6 samples, 0 asked now, 0 failed"


def test_a_run_is_done_when_every_sample_of_it_is_recorded(study, written, tmp_path):
    """With two depths each question is asked twice, so the first half of the lines is not the whole."""
    carry_out(study)
    run = first(study, Run)
    assert run.done()
    answers = run.out / "predictions.jsonl"
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:-1]))
    assert not run.done()
    answers.write_bytes(b"".join([lines[0], *lines[:-1]]))  # as many lines, one of them twice
    assert not run.done()
    answers.write_bytes(b"".join(lines))
    experiment = load_experiment(written(('task = "babilong"', 'task = "babilong"\ndepth = [0, 1]')))
    deep = replace(study, experiment=experiment)
    assert sum(deep.num_samples.values()) == 12
    assert not first(deep, Run).done()


def test_a_published_set_that_has_fewer_rows_than_asked_is_done_and_reported(study, world, tmp_path):
    rows = [
        {"input": f"Mary went to the {place}.", "question": "Where is Mary?", "target": place}
        for place in ("kitchen", "garden")
    ]
    (tmp_path / "rows" / "data" / "qa1").mkdir(parents=True)
    for length in ("128", "512"):
        (tmp_path / "rows" / "data" / "qa1" / f"{length}.json").write_text(json.dumps(rows))
    evaluation = {**study.experiment.evaluation, "source": str(tmp_path / "rows"), "noise": [], "samples": 100}
    study = replace(study, experiment=replace(study.experiment, evaluation=evaluation))
    carry_out(study)
    assert sum(study.num_samples.values()) == 4
    assert first(study, Run).done()
    assert (study.plots / "summary.csv").is_file()


@pytest.mark.usefixtures("_plugged_in")
def test_a_study_asks_a_benchmark_and_a_backend_of_somebody_elses(study, checkpoint, tmp_path):
    evaluation = {"task": "echo", "subsets": ["small"], "lengths": "256", "filler": "so", "backend": "parrot"}
    training = {"task": "echo", "subsets": ["small"], "samples": 4, "longest": 128, "epochs": 1, "filler": "so"}
    experiment = replace(study.experiment, base=str(checkpoint), training=training, evaluation=evaluation)
    study = replace(study, experiment=experiment)
    for kind in (Train, Run):
        assert configured(first(study, kind).command()) == first(study, kind).config
    carry_out(study)
    assert "echo" in (study.plots / "summary.csv").read_text()


# What goes wrong


def test_a_step_that_fails_ends_the_others_at_once_and_keeps_what_is_finished(study):
    """One arm cannot be trained; the other one would go on for hours."""
    arms = {
        "plain": {"recipe": "plain", "epochs": 100_000, "save_every": 100_000_000},
        "Randomized YaRN": {"recipe": "randomized-yarn", "lora_rank": 2, "lora_targets": ["lost"]},
    }
    study = replace(study, experiment=replace(study.experiment, arms=arms))
    did = []
    with pytest.raises(BadInput, match=r"^train Randomized YaRN, seed 0: LoRA target 'lost'"):
        workers.reproduce(study, jobs=2, on_step=lambda step, what: did.append(step.kind))
    assert did == ["ask"]
    assert not multiprocessing.active_children()
    assert first(study, Questions).done()
    with workers._only_one_at_work(study.root):
        pass


def test_a_folder_that_cannot_be_written_is_one_sentence(study, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"file/r cannot be written \(Not a directory\); name another --out"):
        workers.reproduce(replace(study, root=tmp_path / "file" / "r"))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100_000, 1_200_000])  # the weights, or only the optimizer beside them, are larger
def test_a_disk_that_is_full_is_one_sentence(study, limit):
    """The processes may write files of so many bytes."""
    code = (
        f"limit = {limit};"
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit));"
        "from evalkit.cli.commands import main; main(sys.argv[1:])"
    )
    command = ["reproduce", study.experiment.file, "--out", str(study.root), "--plots", str(study.plots)]
    ended = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "make room, or name another --out" in ended.stderr


def test_two_reproductions_do_not_work_in_one_folder(study):
    with workers._only_one_at_work(study.root), pytest.raises(BadInput, match="Another 'evalkit reproduce' is at work"):
        workers.reproduce(study)


def test_the_litter_of_a_study_that_was_killed_is_cleared_by_the_next_command(study):
    litter = [study.root / "seed-0" / "base.part" / "config.json", study.root / "noise" / "train.txt.17.tmp"]
    litter.append(study.root / "evaluation.toml.17.tmp")
    for path in litter:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    with pytest.raises(EvalkitError):
        workers.reproduce(replace(study, experiment=replace(study.experiment, base=str(study.root / "lost"))))
    assert not [path for path in litter if path.exists()]
    assert not (study.root / "seed-0" / "base.part").exists()
    carry_out(study)
    run = first(study, Run)
    (run.out / "run.json.17.tmp").write_text("half")
    run.carry_out(lambda done, total: None)
    assert not list(run.out.rglob("*.tmp"))


def test_a_plan_says_that_its_base_is_not_on_this_machine():
    words = ["reproduce", "smollm2", "--scale", "cpu", "--base", "no/such", "--dry-run"]
    done = CliRunner().invoke(commands.main, words)
    assert done.exit_code == 0
    assert "note: the base no/such is neither a folder here nor in the hub's cache" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_study_that_is_killed_leaves_no_process_and_goes_on(study):
    command = ["reproduce", study.experiment.file, "--out", str(study.root), "--plots", str(study.plots)]
    process = subprocess.Popen([sys.executable, "-m", "evalkit", *command], start_new_session=True)
    until = time.monotonic() + 120
    while not (study.root / "seed-0" / "plain").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert (study.root / "seed-0" / "plain").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a worker is left")
    done = subprocess.run([sys.executable, "-m", "evalkit", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (study.plots / "summary.csv").is_file()


# The same numbers everywhere


def test_the_processes_of_a_study_use_the_kernels_that_every_processor_has(tmp_path, monkeypatch):
    for name in PORTABLE_KERNELS:
        monkeypatch.delenv(name, raising=False)
    tiny = Study(experiment=load_experiment("tiny"), root=tmp_path / "r", plots=tmp_path / "p")
    if "avx2" not in processor()["instructions"].split():
        assert tiny.environment == {}
        return
    assert tiny.environment == PORTABLE_KERNELS
    seen = []
    with workers.Workers(1, cores=1, environment=tiny.environment) as started:
        started.carry_out([Kernels(study=tiny)], on_step=lambda step, what: seen.append(what), on_share=lambda *_: None)
    assert seen == ["AVX2"]
    assert not {*PORTABLE_KERNELS} & {*os.environ}


class Kernels(Report):
    """A step that says which kernels torch has chosen."""

    def __init__(self, study):
        super().__init__(study=study, seeds=())

    def carry_out(self, on_part):
        import torch

        return torch.backends.cpu.get_cpu_capability()
