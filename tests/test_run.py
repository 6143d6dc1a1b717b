"""From a command to scores: whole runs on real checkpoints, killed, repeated, grown, and refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.records.folder import RunFolder
from tests.misbehaving_server import serving
from tests.refusals import refused_at_once


def evalkit(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def run(checkpoint: Path, out: Path, *more: object, script: str = "oracle"):
    return evalkit(
        "run",
        "--model",
        checkpoint,
        "--task",
        "babilong",
        "--backend",
        "scripted",
        "--script",
        script,
        "--out",
        out,
        *more,
    )


def scores(folder: Path) -> dict[tuple[str, str], float]:
    """Mean of each (subset, scorer), in percent."""
    from evalkit.benchmarks import scorer_version

    table = RunFolder.open(folder).read_scores(scorer_version("babilong"))
    assert table is not None
    frame = table.to_pandas()
    return (100 * frame.groupby(["subset", "scorer"], observed=True)["value"].mean()).to_dict()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_the_oracle_scores_100_on_every_task_but_officially_not_on_qa7(checkpoint, tmp_path):
    subsets = ",".join(f"qa{n}" for n in range(1, 21))
    shown = run(checkpoint, tmp_path / "r", "--lengths", "0k", "--subsets", subsets, "--samples", 30)
    assert shown.exit_code == 0, shown.output
    means = scores(tmp_path / "r")
    assert {key: value for key, value in means.items() if value != 100} == {
        ("qa7", "official"): means["qa7", "official"]
    }
    assert means["qa7", "official"] < 90


@pytest.mark.parametrize("script", ["wrong", "empty"])
def test_what_is_no_answer_scores_nothing(checkpoint, tmp_path, script):
    assert run(checkpoint, tmp_path / "r", "--lengths", "0k", "--samples", 20, script=script).exit_code == 0
    assert set(scores(tmp_path / "r").values()) == {0}


def test_a_real_model_answers_both_benchmarks_and_the_report_shows_them(checkpoint, tmp_path):
    common = ("--model", checkpoint, "--lengths", "1k,2k", "--samples", 2, "--backend", "hf")
    for task in ("babilong", "mrcr"):
        shown = evalkit("run", "--task", task, *common, "--out", tmp_path / "results" / task)
        assert shown.exit_code == 0, shown.output
        records = lines(tmp_path / "results" / task)
        assert {r["length"] for r in records} == {"1k", "2k"}
        for record in records:
            if record["error"]:
                assert record["error"].startswith("context_overflow"), record  # a long story at 1k
                continue
            bucket = {"1k": 1024, "2k": 2048}[record["length"]]
            assert bucket - 64 <= record["prompt_tokens"] + record["max_new_tokens"] <= bucket
    shown = evalkit("report", tmp_path / "results", "--out", tmp_path / "plots")
    assert shown.exit_code == 0, shown.output
    header = (tmp_path / "plots" / "summary.csv").read_text().splitlines()[0]
    assert header.startswith("run,arm,task,subset,length,scorer,n,n_unscored,score,ci_low,ci_high")


def test_every_line_says_what_was_asked_and_answered(checkpoint, tmp_path):
    run(checkpoint, tmp_path / "r", "--lengths", "1k", "--subsets", "qa2", "--samples", 1)
    (record,) = lines(tmp_path / "r")
    named = (
        "task subset length sample_id story_id prompt_tokens prompt_sha256 max_new_tokens output output_tokens "
        "finish_reason target fact_positions attempt error"
    )
    assert set(named.split()) <= set(record)
    assert len(record["fact_positions"]) >= 2
    assert (tmp_path / "r" / "prompts" / "qa2@1k.txt").read_text().count("Where is the") >= 1


def test_fewer_samples_are_the_first_of_more_and_a_folder_may_grow(checkpoint, tmp_path):
    run(checkpoint, tmp_path / "r", "--lengths", "1k", "--subsets", "qa1", "--samples", 5)
    before = lines(tmp_path / "r")
    run(checkpoint, tmp_path / "r", "--lengths", "1k,2k", "--subsets", "qa1,qa2", "--samples", 10)
    after = lines(tmp_path / "r")
    assert after[: len(before)] == before
    assert len(after) == 2 * 2 * 10
    assert len({(r["subset"], r["length"], r["sample_id"]) for r in after}) == len(after)


def test_what_is_named_twice_is_asked_once(checkpoint, tmp_path):
    twice = ("--subsets", "qa1,qa1", "--lengths", "1k,1024", "--depth", "0,0.5,0.50", "--samples", 2)
    shown = run(checkpoint, tmp_path / "r", *twice)
    assert shown.exit_code == 0, shown.output
    assert [line["sample_id"] for line in lines(tmp_path / "r")] == ["00000@0", "00000@0.5", "00001@0", "00001@0.5"]
    assert "4 samples recorded, 4 asked now" in shown.output


def test_the_same_sample_is_asked_at_every_length(checkpoint, tmp_path):
    run(checkpoint, tmp_path / "r", "--lengths", "1k,2k", "--subsets", "qa3", "--samples", 6)
    asked: dict[str, set] = {}
    for record in lines(tmp_path / "r"):
        asked.setdefault(record["sample_id"], set()).add((record["story_id"], record["question"], record["target"]))
    assert all(len(variants) == 1 for variants in asked.values())


def test_failed_samples_are_asked_again_and_end_in_exit_code_1_while_they_last(checkpoint, tmp_path):
    arguments = ("--lengths", "1k", "--subsets", "qa1", "--samples", 7)
    shown = run(checkpoint, tmp_path / "r", *arguments, script="failing")
    assert shown.exit_code == 1
    assert "2 samples failed (scripted: this prompt was chosen to fail)" in shown.output
    assert RunFolder.open(tmp_path / "r").read_scores.__doc__  # the folder opens
    shown = run(checkpoint, tmp_path / "r", *arguments, script="failing")
    assert shown.exit_code == 0, shown.output
    assert [r["attempt"] for r in lines(tmp_path / "r")].count(2) == 2


def test_an_answer_to_a_published_row_is_not_reused_for_another_row(checkpoint, tmp_path):
    row = {"input": "Mary went to the garden. It rained.", "question": "Where is Mary? ", "target": "garden"}
    file = tmp_path / "rows" / "qa1" / "1k.json"
    file.parent.mkdir(parents=True)
    arguments = ("--lengths", "1k", "--subsets", "qa1", "--source", tmp_path / "rows")
    file.write_text(json.dumps([row]))
    assert run(checkpoint, tmp_path / "r", *arguments).exit_code == 0
    file.write_text(json.dumps([{**row, "input": "Mary went to the garden. It snowed."}]))
    shown = run(checkpoint, tmp_path / "r", *arguments)
    assert shown.exit_code == 2
    assert "of qa1 at 1k is another one than 00000-" in shown.output
    assert len(lines(tmp_path / "r")) == 1


def test_samples_that_do_not_fit_are_counted_with_the_arithmetic_of_one(checkpoint, tmp_path):
    shown = evalkit(
        *("run", "--model", checkpoint, "--task", "mrcr", "--backend", "scripted", "--lengths", "256"),
        *("--needles", "2", "--samples", 1, "--out", tmp_path / "r"),
    )
    assert shown.exit_code == 0, shown.output
    assert "1 samples do not fit their length and stay unscored: MRCR 2needle sample 00000 at 256:" in shown.output
    assert "for the answer > 256" in shown.output


def test_repeating_a_finished_run_asks_nothing(checkpoint, tmp_path):
    arguments = ("--lengths", "1k", "--subsets", "qa1", "--samples", 3)
    run(checkpoint, tmp_path / "r", *arguments)
    content = (tmp_path / "r" / "predictions.jsonl").read_bytes()
    assert run(checkpoint, tmp_path / "r", *arguments).exit_code == 0
    assert (tmp_path / "r" / "predictions.jsonl").read_bytes() == content


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--seed", "1"), "data.seed"),
        (("--no-examples",), "data.wording"),
        (("--max-new-tokens", "7"), "data.max_new_tokens"),
        (("--no-chat-template",), "tokenizer and template"),
        (("--system-prompt", "Be brief."), "tokenizer and template"),
        (("--depth", "0.5"), "data.depths"),
        (("--control", "facts-only"), "data.control"),
    ],
)
def test_another_setting_never_reuses_old_answers_and_is_named(checkpoint, tmp_path, changed, named):
    arguments = ("--lengths", "1k", "--subsets", "qa1", "--samples", 1)
    run(checkpoint, tmp_path / "r", *arguments)
    content = (tmp_path / "r" / "predictions.jsonl").read_bytes()
    shown = run(checkpoint, tmp_path / "r", *arguments, *changed)
    assert shown.exit_code == 2
    assert named in shown.output
    assert (tmp_path / "r" / "predictions.jsonl").read_bytes() == content


def test_another_engine_never_adds_to_old_answers_and_a_refused_command_changes_nothing(checkpoint, tmp_path):
    one = ("--arm", "x", "--lengths", "1k", "--subsets", "qa1", "--samples", 1)
    run(checkpoint, tmp_path / "r", *one)
    before = (tmp_path / "r" / "run.json").read_bytes()
    for arguments, said in (
        (one, "was answered with script oracle, not wrong, and nothing is left to ask"),
        ((*one[:-1], 2), 'engine.script is "oracle" there and "wrong" now'),
    ):
        shown = run(checkpoint, tmp_path / "r", *arguments, script="wrong")
        assert shown.exit_code == 2
        assert said in shown.output
        assert (tmp_path / "r" / "run.json").read_bytes() == before
    assert len(lines(tmp_path / "r")) == 1


def test_another_checkpoint_never_reuses_old_answers(checkpoint, tmp_path):
    from evalkit.models.new_checkpoint import write_checkpoint

    write_checkpoint(tmp_path / "tiny", window=2048, seed=1)
    arguments = ("--lengths", "1k", "--subsets", "qa1", "--samples", 1)
    run(checkpoint, tmp_path / "r", *arguments)
    shown = run(tmp_path / "tiny", tmp_path / "r", *arguments)
    assert shown.exit_code == 2
    assert "checkpoint.weights" in shown.output


def test_without_out_each_setting_gets_a_folder_of_its_own(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = (
        "run",
        "--model",
        checkpoint,
        "--task",
        "babilong",
        "--backend",
        "scripted",
        "--lengths",
        "1k",
        "--samples",
        1,
    )
    for more in ((), (), ("--seed", 1)):
        assert evalkit(*common, *more).exit_code == 0
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_a_dry_run_writes_nothing_and_shows_the_size_of_each_cell(checkpoint, tmp_path):
    shown = run(checkpoint, tmp_path / "r", "--lengths", "1k,2k", "--samples", 3, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "In all 30 samples" in shown.output
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("rounds", [4])
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(checkpoint, tmp_path, rounds):
    arguments = ["--lengths", "1k,2k", "--subsets", "qa1,qa6", "--samples", "40"]
    command = [sys.executable, "-m", "evalkit", "run", "--model", str(checkpoint), "--task", "babilong"]
    command += ["--backend", "scripted", "--script", "slow", "--out", str(tmp_path / "killed"), *arguments]
    draw = random.Random(7)
    seen: list[tuple] = []
    for _ in range(rounds):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        file, had = tmp_path / "killed" / "predictions.jsonl", len(seen)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if file.exists() and file.read_bytes().count(b"\n") > had:
                break
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.6))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        seen = [(r["subset"], r["length"], r["sample_id"]) for r in map(json.loads, _complete_lines(file))]
        assert len(set(seen)) == len(seen), "a recorded sample was asked twice"
    assert subprocess.run(command, capture_output=True).returncode == 0
    run(checkpoint, tmp_path / "whole", *arguments)
    asked = [(r["subset"], r["length"], r["sample_id"]) for r in lines(tmp_path / "killed")]
    assert asked[: len(seen)] == seen
    assert len(set(asked)) == len(asked) == 160
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")


def _complete_lines(file: Path) -> list[bytes]:
    return [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "babylong", "--lengths", "1k"), "babylong"),
        (("--task", "babilong", "--lengths", "1k", "--subsets", "qa21"), "has no subset 'qa21'"),
        (("--task", "babilong", "--lengths", "sixteen"), "'sixteen' is not a number of tokens"),
        (("--task", "babilong", "--lengths", "4k"), "4k = 4,096 tokens are not covered"),
        (("--task", "babilong", "--lengths", "0.1k"), "is not a number of tokens"),
        (("--task", "babilong", "--lengths", "100"), "does not fit"),
        (("--task", "babilong", "--lengths", "1k", "--facts", "."), "bAbI"),
        (("--task", "babilong", "--lengths", "1k", "--depth", "2"), "between 0 and 1"),
        (("--task", "babilong", "--lengths", "1k", "--prompts", "nowhere"), "nowhere"),
        (("--task", "babilong", "--lengths", "1k", "--source", "nowhere"), "nowhere"),
        (("--task", "babilong", "--lengths", "1k", "--script", "nonsense"), "'nonsense'"),
        (("--task", "mrcr", "--lengths", "1k", "--needles", "2", "--subsets", "8needle"), "name them once"),
    ],
)
def test_wrong_use_gets_one_sentence_and_exit_code_2(checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    shown = evalkit("run", "--model", checkpoint, "--backend", "scripted", *arguments)
    assert shown.exit_code == 2
    assert message in shown.output
    assert "Traceback" not in shown.output
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "vllm"), "vLLM is not installed here"),
        (("--backend", "server", "--base-url", "http://h/v1"), "served under 2 rope rules and a server has one"),
        (
            ("--backend", "server", "--base-url", "8k=http://h/v1"),
            "No server is named for 4k; name it like --base-url 4k=URL",
        ),
        (
            ("--backend", "server", "--base-url", "4k=http://h/v1", "--base-url", "8k=http://h/v1", "--timeout", "nan"),
            "nan",
        ),
        (("--backend", "hf", "--factor", "4x"), "a number from 1 up, or auto; got '4x'"),
    ],
)
def test_what_no_backend_could_answer_is_refused_before_any_work(checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evalkit.models.backends.vllm.engine.find_spec", lambda name: None)
    given = ("--model", checkpoint, "--task", "babilong", "--lengths", "4k,8k", "--rope", "yarn")
    with serving(tokenizer=None) as server:  # it is there, and never asked
        shown = evalkit("run", *given, *(word.replace("http://h/v1", server.url) for word in arguments))
    assert shown.exit_code == 2
    assert message in shown.output
    assert not (tmp_path / "results").exists()


def test_a_missing_engine_and_a_folder_of_another_task_are_refused_before_a_checkpoint_is_looked_at(tmp_path):
    from tests.report_runs import holds_to, write_run

    write_run(tmp_path / "r", arm="a", accuracy=holds_to(8192), lengths=("4k",), samples=2)
    before = {path: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    given = ("run", "--model", tmp_path / "nowhere", "--lengths", "4k", "--out", tmp_path / "r")
    other = evalkit(*given, "--task", "mrcr", "--backend", "scripted")
    assert other.exit_code == 2
    assert other.output == (
        f"evalkit: Run folder {tmp_path}/r holds a run of babilong, and this is one of mrcr; name another --out.\n"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "r").iterdir()} == before
    if find_spec("vllm") is None:
        missing = evalkit(*given, "--task", "babilong", "--backend", "vllm")
        assert missing.exit_code == 2
        assert "vLLM is not installed here" in missing.output


def test_a_folder_of_other_data_is_refused_before_transformers_is_loaded(checkpoint, tmp_path):
    run(checkpoint, tmp_path / "r", "--lengths", "1k", "--subsets", "qa1", "--samples", 2)
    words = ["run", "--model", str(checkpoint), "--task", "babilong", "--lengths", "1k", "--backend", "scripted"]
    said = refused_at_once([*words, "--seed", "7", "--out", tmp_path / "r"])
    assert "data.seed is 0 there and 7 now" in said
