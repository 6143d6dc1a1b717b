"""What a plan says beforehand: the tokens of the run to the last one, its shape, its time, and what it can show."""

import json
import re
import tomllib
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.models.backends.vllm.engine import VLLMOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.runs.config import RunConfig, run_config
from evalkit.runs.plan import make_plan
from evalkit.study.cost import COARSE, _seconds, detectable_difference, prefill_flops, run_cost, samples_needed


def evalkit(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def planned(*arguments: object) -> dict:
    return json.loads(evalkit("run", *arguments, "--dry-run", "--json"))


def run_config_of(*arguments: object) -> RunConfig:
    printed = tomllib.loads(evalkit("run", *arguments, "--print-config"))
    return run_config(printed)


def answers(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture
def asked(checkpoint, tmp_path, monkeypatch) -> list[object]:
    monkeypatch.chdir(tmp_path)
    return ["--model", checkpoint, "--backend", "scripted", "--out", tmp_path / "r"]


@pytest.mark.parametrize(
    "task",
    [
        ("--task", "babilong", "--subsets", "qa1,qa3", "--lengths", "0k,1k,2k"),
        ("--task", "mrcr", "--needles", "2", "--lengths", "1k,2k"),
    ],
)
def test_the_plans_tokens_are_those_of_the_run(asked, task, tmp_path):
    plan = planned(*asked, *task, "--samples", 3)
    evalkit("run", *asked, *task, "--samples", 3)
    for cell in plan["cells"]:
        own = [a for a in answers(tmp_path / "r") if (a["subset"], a["length"]) == (cell["subset"], cell["length"])]
        assert not cell["estimated"]
        assert cell["samples"] == len(own) == 3
        assert cell["prompt_tokens"] == sum(a["prompt_tokens"] for a in own)
        assert cell["answer_tokens"] == sum(a["max_new_tokens"] for a in own)
        longest = max(a["prompt_tokens"] + a["max_new_tokens"] for a in own)
        assert cell["kv_bytes"] == Checkpoint.open(asked[1]).kv_bytes(longest)


def test_samples_that_do_not_fit_are_counted_and_not_asked(asked, tmp_path):
    facts = ("--task", "babilong", "--subsets", "qa3", "--lengths", "512", "--samples", 12)
    plan = planned(*asked, *facts)
    evalkit("run", *asked, *facts)
    unasked = [a for a in answers(tmp_path / "r") if (a["error"] or "").startswith("context_overflow")]
    assert 0 < plan["cells"][0]["unfitting"] == len(unasked)
    assert any("cannot be asked" in warning for warning in plan["warnings"])


def test_time_comes_from_an_earlier_run_on_this_machine_and_is_not_made_up_without(asked, tmp_path):
    one = ("--task", "babilong", "--subsets", "qa1", "--script", "slow")
    unknown = planned(*asked, *one, "--lengths", "1k,2k", "--samples", 10)
    assert unknown["seconds"] is None
    assert "Time: not known" in evalkit("run", *asked, *one, "--lengths", "1k", "--samples", 2, "--dry-run")
    evalkit("run", *asked, *one, "--lengths", "1k,2k", "--samples", 5)
    known = planned(*asked, *one, "--lengths", "1k,2k", "--samples", 10)
    assert known["rate_from"] == str(tmp_path / "r")
    assert 20 * 0.05 < known["seconds"] < 20 * 0.05 * 4  # that script waits a twentieth of a second
    assert all(cell["seconds"] > 0 for cell in known["cells"])


def test_a_run_begins_with_its_plan(asked):
    shown = evalkit("run", *asked, "--task", "babilong", "--subsets", "qa1", "--lengths", "1k,2k", "--samples", 4)
    shown = " ".join(shown.split())
    assert f"babilong (card v2), backend scripted, into {asked[-1]} length subset samples prompt tokens" in shown
    assert re.search(r"2k +qa1 +4 +[\d,]+ +80 ", shown), "a row for each cell"
    assert re.search(r"In all 8 samples, [\d,]+ prompt tokens, at most 160 answer tokens", shown)
    assert "--samples 64 would show 20 points" in shown, "what four samples cannot show is said before they are asked"
    quiet = evalkit("run", *asked, "--task", "babilong", "--subsets", "qa1", "--lengths", "1k", "--quiet")
    assert "prompt tokens" not in quiet


def test_what_does_not_fit_is_said_before_a_run_asks(asked):
    shown = evalkit("run", *asked, "--task", "babilong", "--subsets", "qa3", "--lengths", "512", "--samples", 12)
    before, _, _ = shown.partition("BABILong: official score")
    assert re.search(r"warning: \d+ of 12 samples of qa3 at 512 cannot be asked", " ".join(before.split()))


def test_a_plan_of_many_cells_begins_with_a_row_for_each_length_no_wider_than_a_terminal(asked):
    subsets = ",".join(f"qa{number}" for number in (1, 2, 4, 5, 6, 7, 8))
    plan = make_plan(run_config_of(*asked, "--task", "babilong", "--subsets", subsets, "--lengths", "1k,2k"))
    cost = run_cost(plan, 0.0)
    table = cost.to_brief().splitlines()[1:4]
    assert [line.split()[:3] for line in table[1:]] == [["2k", "7", "cells"], ["1k", "7", "cells"]]
    assert all(len(line) <= 80 for line in cost.to_text().splitlines()[1:16])


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_what_is_scaled_up_are_contexts_and_not_their_first_questions(asked, seconds):
    one = ("--task", "babilong", "--subsets", "qa5", "--lengths", "2k", "--samples", 24, "--questions-per-context", 4)
    (cell,) = run_cost(make_plan(run_config_of(*asked, *one)), seconds).cells
    assert cell.estimated == (seconds == 0)
    assert cell.prefilled_tokens == pytest.approx(6 * 2048, rel=0.1)
    assert cell.prompt_tokens == pytest.approx(24 * 2048, rel=0.1)


def test_a_calibration_tells_the_time_of_a_plan_and_is_made_once(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    one = ("--task", "babilong", "--subsets", "qa1", "--lengths", "1k,8k", "--rope", "none", "--script", "slow")
    first = evalkit("run", *asked, *one, "--dry-run", "--calibrate")
    assert "Time: about" in first
    assert "at 4k" in first, "longer prompts are not asked for that"
    recorded = next((tmp_path / "cache" / "calibration").iterdir()) / "predictions.jsonl"
    assert {a["length"] for a in answers(recorded.parent)} == {"1k", "4k"}
    before = recorded.read_bytes()
    evalkit("run", *asked, *one, "--dry-run", "--calibrate")
    assert recorded.read_bytes() == before
    assert not (tmp_path / "r").exists()
    other = ("--task", "babilong", "--subsets", "qa1", "--lengths", "1k", "--script", "wrong")
    assert "Time: not known" in evalkit("run", *asked, *other, "--dry-run"), "another engine has another pace"


def test_settings_that_change_the_pace_and_no_answer_are_measured_anew(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    one = ("--model", checkpoint, "--backend", "hf", "--task", "babilong", "--subsets", "qa1", "--lengths", "1k")
    for tokens in (1000, 60000):
        asked = (*one, "--batch-tokens", tokens, "--out", tmp_path / "r")
        assert "Time: about" in evalkit("run", *asked, "--dry-run", "--calibrate")
    assert len(list((tmp_path / "cache" / "calibration").iterdir())) == 2
    evalkit("run", *asked, "--samples", 1, "--quiet")
    evalkit("run", *asked, "--samples", 2, "--quiet", "--batch-tokens", 500)
    told = json.loads((tmp_path / "r" / "run.json").read_text())["provenance"]
    assert [entry["engine_options"]["batch_tokens"] for entry in told] == [60000, 500]


def test_a_server_that_says_it_computed_nothing_breaks_no_plan(checkpoint):
    own = {"samples": 4, "prompt_tokens": 4000, "cached_tokens": 4000, "seconds": 1.0}
    assert (_seconds(Checkpoint.open(checkpoint), "1k", 1e9, {"1k": own}) or 0) > 0
    one = own | {"prompt_tokens": 4, "cached_tokens": 9}
    assert _seconds(Checkpoint.open(checkpoint), "1k", 1e9, {"1k": one}) is not None


def test_a_calibration_of_another_model_is_not_taken(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    one = ("--task", "babilong", "--subsets", "qa1", "--lengths", "1k", "--dry-run")
    evalkit("run", *asked, *one, "--calibrate")
    evalkit("new-checkpoint", tmp_path / "other", "--seed", 7)
    shown = evalkit("run", "--model", tmp_path / "other", "--backend", "scripted", *one)
    assert "Time: not known; no run of this checkpoint" in shown


def test_prefill_is_two_operations_per_weight_and_four_per_pair_and_dimension(checkpoint):
    found = Checkpoint.open(checkpoint)
    table = found.vocab_size * found.hidden_size
    tables = sum(tensor.shape == (found.vocab_size, found.hidden_size) for tensor in found.tensors.values())
    weights = found.num_parameters - tables * table
    attention = 4 * found.num_layers * found.num_heads * found.head_dim * (1 + 2 + 3)
    assert prefill_flops(found, 3) == 2 * weights * 3 + attention


def test_a_plan_that_cannot_answer_its_question_says_how_many_samples_would(asked):
    one = ("--task", "babilong", "--subsets", "qa1", "--lengths", "1k")
    few = planned(*asked, *one, "--samples", 10)
    assert few["cells"][0]["detectable_difference"] > COARSE
    needed = samples_needed(1, COARSE)
    assert any(f"--samples {needed} " in warning for warning in few["warnings"])
    enough = planned(*asked, *one, "--samples", needed)
    assert enough["cells"][0]["detectable_difference"] <= COARSE
    assert not any("told apart" in warning for warning in enough["warnings"])


def test_more_stories_show_smaller_differences_and_more_questions_about_one_story_do_not():
    stories = [str(i) for i in range(100)]
    one = detectable_difference([stories])
    assert detectable_difference([stories * 4]) == pytest.approx(one)
    assert detectable_difference([stories] * 4) == pytest.approx(one / 2, rel=0.05)


def test_the_tokens_of_scored_answers_are_those_that_the_model_is_given_besides(checkpoint, tmp_path):
    import torch
    from torch.nn import Embedding

    one = ["--model", checkpoint, "--backend", "hf", "--task", "babilong", "--subsets", "qa1", "--lengths", "1k"]
    one += ["--samples", 1]
    plan = planned(*one, "--out", tmp_path / "r", "--answer-logprob", "--repeat", 3)  # repeats are not scored again
    given = {}
    for name, words in (("without", ()), ("with", ("--answer-logprob",))):
        seen = []
        watch = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[0].numel()) if type(module) is Embedding else None
        )
        with closing(SimpleNamespace(close=watch.remove)):
            evalkit("run", *one, "--out", tmp_path / name, *words)
        given[name] = sum(seen)
    (cell,) = plan["cells"]
    assert cell["scoring_tokens"] == given["with"] - given["without"] > 0
    assert planned(*one, "--out", tmp_path / "r")["cells"][0]["scoring_tokens"] == 0


def test_scored_answers_are_in_the_time_unless_the_earlier_run_scored_them_too(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = ["--model", checkpoint, "--backend", "hf", "--task", "babilong", "--subsets", "qa1", "--lengths", "1k"]
    one += ["--samples", 2]
    evalkit("run", *one, "--out", tmp_path / "without")
    without, with_scores = planned(*one, "--out", "r"), planned(*one, "--out", "r", "--answer-logprob")
    flops = [plan["cells"][0]["prefill_flops"] for plan in (without, with_scores)]
    assert with_scores["seconds"] / without["seconds"] == pytest.approx(flops[1] / flops[0])
    assert flops[1] > flops[0]
    assert "tokens behind the prompts" in evalkit("run", *one, "--out", "r", "--answer-logprob", "--dry-run")
    evalkit("run", *one, "--out", tmp_path / "with", "--answer-logprob")
    recorded = json.loads((tmp_path / "with" / "run.json").read_text())["provenance"][-1]["pace"]["by_length"]["1k"]
    again = planned(*one, "--out", "r", "--answer-logprob")
    assert again["rate_from"] == "with"
    assert again["seconds"] == pytest.approx(recorded["seconds"], rel=0.01), "the same samples, scored as well"
    assert planned(*one, "--out", "r")["rate_from"] == "without"


def test_vllm_scores_an_answer_behind_the_last_whole_block_of_its_prompt():
    assert VLLMOptions().scoring_tokens(40, 3) == 8 + 3
    assert VLLMOptions().scoring_tokens(48, 3) == 48 + 3, "the cache reaches the answer, so it is not read"
    assert VLLMOptions(deterministic=True).scoring_tokens(40, 3) == 40 + 3


@pytest.mark.parametrize("flag", ["--json", "--calibrate"])
def test_what_belongs_to_a_dry_run_is_refused_without(asked, flag):
    refused = CliRunner().invoke(main, ["run", *map(str, asked), "--task", "babilong", "--lengths", "1k", flag])
    assert refused.exit_code == 2
    assert "--dry-run" in refused.output
