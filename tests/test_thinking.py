"""Models that think aloud: what their template is told, how much room they get, and what a cut-off thought counts."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evalkit.cli.commands import main
from evalkit.models import backends
from evalkit.records.folder import RunFolder
from evalkit.records.scoring import scored
from tests.plugins.thinker_backend import THOUGHT

POSSIBLE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and "
    "enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
"""Qwen3's way: the model opens the thought, unless the template closes it."""
OPEN = POSSIBLE.replace("{%- endif %}{%- endif %}", "{%- else %}{{ '<think>\n' }}{%- endif %}{%- endif %}")
"""The prompt opens the thought, as Olmo 3 Think's and DeepSeek-R1's do."""


@pytest.fixture(autouse=True)
def _thinker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.BACKENDS, "thinker", backends.BackendKind("tests.plugins.thinker_backend"))


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "model")


def evalkit(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def run(model: Path, template: str, out: Path, *more: object, backend: str = "thinker") -> Result:
    (model / "chat_template.jinja").write_text(template)
    asked = ("--model", model, "--task", "babilong", "--subsets", "qa1", "--lengths", "1k", "--samples", 2)
    return evalkit("run", *asked, "--backend", backend, "--out", out, *more)


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def values(out: Path) -> set[float | None]:
    return set(scored(RunFolder.open(out)).table["value"].to_pylist())


def test_a_cut_off_thought_is_neither_right_nor_wrong_is_counted_apart_and_not_asked_again(model, tmp_path):
    shown = run(model, POSSIBLE, tmp_path / "r")
    assert shown.exit_code == 0, shown.output
    assert "2 answers were cut off inside their reasoning: unscored" in shown.output
    assert {r["finish_reason"] for r in records(tmp_path / "r")} == {"unfinished_reasoning"}
    assert all(r["error"] is None and THOUGHT.startswith(r["output"][7:27]) for r in records(tmp_path / "r"))
    assert values(tmp_path / "r") == {None}
    again = run(model, POSSIBLE, tmp_path / "r")
    assert "2 samples recorded, 0 asked now" in again.output
    assert "(cut off inside its reasoning" in evalkit("show", tmp_path / "r", "qa1/1k/00000").output


def test_with_room_for_the_thought_the_answer_behind_it_is_scored(model, tmp_path):
    shown = run(model, POSSIBLE, tmp_path / "r", "--thinking-tokens", 200)
    assert shown.exit_code == 0, shown.output
    assert "answers were cut off" not in shown.output
    for record in records(tmp_path / "r"):
        assert record["finish_reason"] == "stop"
        assert record["output"] == f"<think>{THOUGHT}</think>{record['target']}"
        assert record["max_new_tokens"] == 220
        assert 1024 - 64 <= record["prompt_tokens"] + 220 <= 1024
    frame = scored(RunFolder.open(tmp_path / "r")).table.to_pandas()
    assert set(frame[frame.scorer == "corrected"]["value"]) == {1.0}


def test_a_template_argument_is_obeyed_recorded_and_part_of_the_run(model, tmp_path):
    plain, told = tmp_path / "plain", tmp_path / "told"
    run(model, POSSIBLE, plain)
    assert run(model, POSSIBLE, told, "--template-arg", "enable_thinking=false").exit_code == 0
    assert values(told) == {1.0}
    folder = RunFolder.open(told)
    assert folder.config["template_arg"] == ["enable_thinking=false"]
    assert folder.fingerprint["tokenizer and template"] != RunFolder.open(plain).fingerprint["tokenizer and template"]
    assert "</think>" in (told / "prompts" / "qa1@1k.txt").read_text()
    assert "rebuilt: the same" in evalkit("show", told, "qa1/1k/00000").output
    other = run(model, POSSIBLE, plain, "--template-arg", "enable_thinking=false")
    assert other.exit_code == 2
    assert "tokenizer and template" in other.output


@pytest.mark.parametrize("word", [("--thinking-tokens", 200), ("--template-arg", "enable_thinking=false")])
def test_a_prompt_that_opens_a_thought_needs_a_word_about_its_room(model, tmp_path, word):
    refused = run(model, OPEN, tmp_path / "r")
    assert refused.exit_code == 2
    assert "opens a think block" in refused.output
    assert "--thinking-tokens 2048, or --template-arg enable_thinking=false" in refused.output
    assert not (tmp_path / "r").exists()
    checked = evalkit("check", model, "--lengths", "1k")
    assert checked.exit_code == 2
    assert "problem: The chat template opens a think block" in checked.output
    assert evalkit("check", model, "--lengths", "1k", *word).exit_code == 0
    assert run(model, OPEN, tmp_path / "r", *word).exit_code == 0
    frame = scored(RunFolder.open(tmp_path / "r")).table.to_pandas()
    assert set(frame[frame.scorer == "corrected"]["value"]) == {1.0}


def test_a_named_answer_limit_is_a_word_too_and_what_is_cut_there_is_unfinished(model, tmp_path):
    assert run(model, OPEN, tmp_path / "r", "--max-new-tokens", 8).exit_code == 0
    assert {r["finish_reason"] for r in records(tmp_path / "r")} == {"unfinished_reasoning"}


def test_who_answers_at_once_behind_an_opened_thought_has_answered(model, tmp_path):
    assert run(model, OPEN, tmp_path / "r", "--max-new-tokens", 8, backend="scripted").exit_code == 0
    assert values(tmp_path / "r") == {1.0}


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (900, "wording alone takes 275 tokens and the answer 920; ask for longer ones, or leave parts out"),
        (5000, "--thinking-tokens 5000 is more than 1k leaves beside prompt and answer"),
    ],
)
def test_a_budget_that_leaves_no_room_for_the_prompt_is_refused_before_any_work(model, tmp_path, budget, said):
    refused = run(model, POSSIBLE, tmp_path / "r", "--thinking-tokens", budget)
    assert refused.exit_code == 2
    assert said in refused.output
    assert "--thinking-tokens" in refused.output
    assert not (tmp_path / "r").exists()


def test_check_names_a_budget_above_a_length(model):
    checked = evalkit("check", model, "--lengths", "1k,2k", "--thinking-tokens", 1500)
    assert checked.exit_code == 2
    assert checked.output.count("--thinking-tokens 1500 is more than 1k leaves") == 1


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("enable_thinking", "it is NAME=VALUE"),
        ("=false", "it is NAME=VALUE"),
        ("enable_thinkin=false", "ignores enable_thinkin; drop --template-arg enable_thinkin"),
        ("messages=x", "messages is set by evalkit itself"),
    ],
)
def test_a_template_argument_that_says_nothing_is_refused(model, tmp_path, typed, said):
    refused = run(model, POSSIBLE, tmp_path / "r", "--template-arg", typed)
    assert refused.exit_code == 2
    assert said in refused.output
    assert not (tmp_path / "r").exists()


def test_the_report_counts_cut_off_thoughts_apart(model, tmp_path):
    run(model, POSSIBLE, tmp_path / "results" / "r")
    shown = evalkit("report", tmp_path / "results", "--out", tmp_path / "plots")
    assert shown.exit_code == 0, shown.output
    plots = tmp_path / "plots"
    assert "| qa1 | model | 0 | 2 (2 in reasoning) | unscored |" in (plots / "report.md").read_text()
    assert "2 (2 in reasoning)" in shown.output
    for name in ("tables.tex", "tables-wide.tex", "appendix.tex"):
        assert "2 (2 in reasoning)" in (plots / name).read_text(), name
    for name in ("summary.csv", "curves.csv"):
        rows = list(csv.DictReader((plots / name).open()))
        assert {(row["n_unscored"], row["n_unfinished"]) for row in rows} == {("2", "2")}, name
