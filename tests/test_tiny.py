"""The tiny reproduction runs through the real harness, and goes on where it was."""

import json
import re
from dataclasses import replace
from itertools import islice

import pytest
import torch

from evalkit.benchmarks.babilong.haystack import MIN_SENTENCE_TOKENS, split_sentences
from evalkit.benchmarks.babilong.worlds import HOUSE, HOUSE_PEOPLE, OBJECTS
from evalkit.errors import BadInput
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.study.experiment import Curve, experiment_names, load_experiment
from evalkit.study.steps import (
    carry_out,
    command_of,
    describe,
    is_done,
    plan_steps,
    reproduce,
    run_config,
    train_config,
)
from evalkit.train.data import DataRecipe, leakage, open_benchmark
from evalkit.train.tiny import (
    BASES,
    BaseStage,
    benchmark_options,
    copy_examples,
    train_base,
    write_noise,
    write_untrained,
)

SHORT = replace(BASES["tiny"], stages=(BaseStage(steps=2, shortest=64, longest=128, decay=False, batch_size=4),))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Background text and an untrained base."""
    folder = tmp_path_factory.mktemp("tiny")
    write_noise(folder / "noise.txt", seed=1, num_sentences=500)
    write_untrained(folder / "untrained", seed=0)
    return folder


@pytest.fixture(scope="module")
def base(world):
    return train_base(world / "base", noise=world / "noise.txt", seed=0, base=SHORT)


def test_every_prompt_is_read_word_by_word_at_every_length(world):
    encoder = Encoder.open(world / "untrained")
    benchmark = open_benchmark(DataRecipe(subsets=("qa1",)), benchmark_options(world / "noise.txt"))
    for length in ("64", "128", "4k"):
        for sample in benchmark.samples("qa1", length, 60):
            ids = benchmark.prompt(sample, length, encoder, 4096).token_ids
            assert encoder.tokenizer.unk_token_id not in ids
            text = encoder.decode(ids)
            assert text.endswith(f": where is {sample.question.split()[-1][:-1].lower()} ?")
            assert all(re.sub(r"\W", " ", fact.lower()).split()[-1] in text for fact in sample.facts)
    assert encoder.decode(encoder.encode_after(" kitchen", before="?")) == "kitchen"


def test_the_background_repeats_no_sentence_and_names_nothing_of_the_task(world):
    sentences = split_sentences((world / "noise.txt").read_text().strip())
    assert len(set(sentences)) == len(sentences) == 500
    words = {word for sentence in sentences for word in re.findall(r"\w+", sentence.lower())}
    assert not words & {word.lower() for word in (*HOUSE, *HOUSE_PEOPLE, *OBJECTS)}
    encoder = Encoder.open(world / "untrained")
    assert min(len(encoder.encode_after(f" {sentence}")) for sentence in sentences) >= MIN_SENTENCE_TOKENS


def test_a_base_has_biases_that_look_back_and_the_size_that_the_readme_gives(world):
    checkpoint = Checkpoint.open(world / "untrained")
    assert 190_000 < checkpoint.num_parameters < 210_000
    assert (checkpoint.window, checkpoint.head_dim, checkpoint.rope.scaling.rule) == (128, 32, "none")
    from transformers import AutoModelForCausalLM

    attention = AutoModelForCausalLM.from_pretrained(world / "untrained").model.layers[0].self_attn
    angle = 1e4 ** (-torch.arange(16) / 16)

    def score(head, distance):  # query at ``distance`` behind the key, biases alone
        q, k = (p.bias.detach()[head * 32 : head * 32 + 32].view(2, 16) for p in (attention.q_proj, attention.k_proj))
        turned = torch.polar(torch.ones(16), angle * distance) * torch.complex(*q)
        return float((turned * torch.complex(*k).conj()).real.sum())

    for head, back in enumerate((1, 2, 3)):
        assert max(range(30), key=lambda distance, head=head: score(head, distance)) == back


def test_copies_are_predictable_from_the_second_round_on():
    import numpy as np

    for example in copy_examples(20, shortest=48, longest=64, rng=np.random.default_rng(0)):
        ids = [*example.prompt_ids.tolist(), *example.answer_ids.tolist()]
        period = len(example.prompt_ids) - 1
        assert ids[1 + period :] == ids[1 : len(ids) - period]
        assert len(set(ids[1 : 1 + period])) == period


def test_a_base_is_written_whole_or_not_at_all(world, base):
    record = json.loads((base / "evalkit_training.json").read_text())
    assert (record["trained_length"], record["seed"], record["rope"]["rule"]) == (128, 0, "none")
    before = (base / "model.safetensors").read_bytes()
    assert train_base(base, noise=world / "noise.txt", seed=1, base=SHORT) == base
    assert (base / "model.safetensors").read_bytes() == before

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_base(world / "other", noise=world / "noise.txt", seed=0, base=SHORT, on_step=interrupt)
    assert not (world / "other").exists()
    again = train_base(world / "other", noise=world / "noise.txt", seed=0, base=SHORT)
    assert (again / "model.safetensors").read_bytes() == before


@pytest.fixture
def study(base):
    """The tiny experiment with two arms, eight samples each, on a base that knows nothing."""
    tiny = load_experiment("tiny", base=base)
    return replace(
        tiny,
        training={**tiny.training, "samples": 8, "batch_size": 4, "options": {
            **tiny.training["options"], "noise": (str(base.parent / "noise.txt"),)}},
        arms={name: tiny.arms[name] for name in ("plain", "Randomized YaRN")},
        evaluation={**tiny.evaluation, "samples": 3, "lengths": "128,512", "noise": (base.parent / "noise.txt",)},
        curves=(Curve(arm="plain", rope="none"), Curve(arm="Randomized YaRN", rope="yarn")),
    )  # fmt: skip


def test_a_reproduction_trains_evaluates_reports_and_does_nothing_twice(study, tmp_path):
    did, shares = [], []
    plots = reproduce(
        study,
        root=tmp_path / "r",
        plots=tmp_path / "p",
        jobs=1,
        on_step=lambda step, what: did.append((step.kind, what)),
        on_share=lambda step, share: shares.append((step.kind, share)),
    )
    assert shares[:2] == [("train", 0.5), ("train", 1.0)], "two optimizer steps"
    assert shares[-1] == ("run", 1.0)
    assert [kind for kind, _ in did] == ["train", "train", "run", "run", "report"]
    assert did[3][1] == "6 samples, 6 asked now, 0 failed"
    assert (plots / "summary.csv").read_text().count("Randomized YaRN") >= 2
    weights = next((tmp_path / "r").rglob("randomized-yarn/model.safetensors"))
    before = weights.stat().st_mtime_ns
    did.clear()
    reproduce(study, root=tmp_path / "r", plots=plots, jobs=1, on_step=lambda step, what: did.append((step.kind, what)))
    assert did[3][1] == "6 samples, 0 asked now, 0 failed"
    assert weights.stat().st_mtime_ns == before
    steps = plan_steps(study, seeds=(0,), root=tmp_path / "r", plots=plots)
    assert all(is_done(step) for step in steps if step.kind != "report")
    assert "done" in describe(steps)


def test_the_plan_names_commands_and_costs_before_anything_is_done(study, tmp_path):
    steps = plan_steps(study, seeds=(0, 1), root=tmp_path / "r", plots=tmp_path / "p")
    assert [step.kind for step in steps] == ["train"] * 4 + ["run"] * 4 + ["report"]
    text = describe(steps)
    assert text.count("to do") == 9
    assert "--recipe randomized-yarn" in text
    assert command_of(steps[-2]).startswith("evalkit run --model")
    assert not (tmp_path / "r").exists()


def test_arms_share_their_data_and_no_item_with_the_evaluation(study, tmp_path):
    steps = plan_steps(study, seeds=(0,), root=tmp_path, plots=tmp_path)
    one, other = (train_config(step) for step in steps if step.kind == "train")
    assert one.data == other.data
    assert one.evaluation == other.evaluation
    assert len(one.evaluation) == 3
    benchmark = open_benchmark(one.data, one.options)
    assert leakage(islice(benchmark.samples("qa1", "128", 500), 500), one.evaluation).evaluated == 3
    assert run_config(steps[2]).rope.rule == "none"


@pytest.mark.slow
def test_steps_of_one_kind_can_be_shared_by_processes(study, tmp_path):
    done, shares = [], {}
    reproduce(
        study,
        root=tmp_path / "r",
        plots=tmp_path / "p",
        jobs=2,
        on_step=lambda step, _: done.append(step.title),
        on_share=lambda step, share: shares.setdefault((step.kind, step.arm), []).append(share),
    )
    assert len(done) == 5
    assert set(shares) == {(kind, arm) for kind in ("train", "run") for arm in study.arms}
    assert all(told == sorted(told) and told[-1] == 1 for told in shares.values())
    assert carry_out(plan_steps(study, seeds=(0,), root=tmp_path / "r", plots=tmp_path / "p")[2]).startswith(
        "6 samples, 0"
    )


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_can_be_planned(name, tmp_path):
    experiment = load_experiment(name)
    steps = plan_steps(experiment, seeds=experiment.seeds, root=tmp_path, plots=tmp_path / "p")
    assert {curve.arm for curve in experiment.curves} >= {"plain", "trained YaRN", "Randomized YaRN"}
    assert "To do:" in describe(steps)


def test_an_experiment_that_cannot_be_is_refused(tmp_path, study):
    with pytest.raises(BadInput, match=r"no experiment 'huge'; there are .*tiny"):
        load_experiment("huge")
    (tmp_path / "mine.toml").write_text("seeds = [0]\n")
    with pytest.raises(BadInput, match=r"mine\.toml lacks a field"):
        load_experiment(str(tmp_path / "mine.toml"))
    with pytest.raises(BadInput, match="is of no arm"):
        replace(study, curves=(Curve(arm="lost", rope="none"),))
    with pytest.raises(BadInput, match="needs a recipe"):
        replace(study, arms={"odd": {"recipe": "odd"}})
