"""The doctor says before a run what a run would say, and what it would cost."""

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.models.rope.formulas import RopeScaling
from evalkit.models.rope.served import RopeRequest
from evalkit.runs import check as checking
from evalkit.runs.check import CheckReport
from evalkit.runs.config import run_config
from evalkit.runs.plan import make_plan
from tests.variants import variant, with_layers, with_record


def check(
    folder: Path,
    lengths: list[str],
    request: RopeRequest | None = None,
    *,
    gpu_memory: float | None = None,
    **more: object,
) -> CheckReport:
    asked = {"model": str(folder), "task": "babilong", "lengths": ",".join(lengths), "backend": "hf", **more}
    config = replace(run_config(asked), rope=request or RopeRequest())
    return checking.check(config, gpu_memory=gpu_memory)


def test_lengths_within_the_window_are_fine(checkpoint: Path):
    report = check(checkpoint, ["2k", "1k"])
    assert report.ok
    assert [row.length for row in report.rows] == ["1k", "2k"]
    assert report.rows[1].arithmetic == "2,048 <= 2,048"
    assert report.rows[1].kv_bytes == 2048 * 512
    assert report.rows[1].num_fit is None
    assert report.warnings == ()
    assert report.to_text().endswith("A run would start.")


def test_a_length_that_is_not_covered_is_a_problem_with_its_way_out(checkpoint: Path):
    report = check(checkpoint, ["1k", "16k"])
    assert not report.ok
    assert [row.problem is None for row in report.rows] == [True, False]
    assert "16k = 16,384 tokens are not covered" in report.problems[0]
    assert "--rope yarn" in report.problems[0]
    text = report.to_text()
    assert "not covered" in text
    assert text.endswith("A run would be refused.")


def test_a_named_rule_shows_factor_and_arithmetic_for_each_length(checkpoint: Path):
    report = check(checkpoint, ["1k", "8k", "16k"], RopeRequest(rule="yarn"))
    assert report.ok
    assert [row.factor for row in report.rows] == [1.0, 4.0, 8.0]
    assert report.rows[1].arithmetic == "8,192 <= 2,048 x 4 = 8,192"
    assert "yarn, factor 8 over 2,048" in report.to_text()
    extrapolated = check(checkpoint, ["8k"], RopeRequest(rule="none"))
    assert extrapolated.ok
    assert extrapolated.rows[0].arithmetic == "8,192 > 2,048, extrapolates"
    assert "without any scaling" in extrapolated.warnings[0]


def test_requests_that_fit_into_a_gpu_are_counted(checkpoint: Path, tmp_path: Path):
    # Qwen2.5-7B: 28 layers, 4 key heads of 128 dimensions, 7 GiB at 128k in bfloat16; its weights are counted from the
    # files, which are tiny here.
    shape = {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584}
    folder = with_layers(variant(checkpoint, tmp_path / "c", **shape), 28)
    report = check(folder, ["128k"], RopeRequest(rule="yarn"), dtype="bfloat16", gpu_memory=80)
    assert report.rows[0].num_fit == int((80 * 0.92 - 2) // 7)
    small = check(folder, ["128k"], RopeRequest(rule="yarn"), dtype="bfloat16", gpu_memory=8)
    assert not small.ok
    assert "128k does not fit into 8 GiB" in small.problems[0]
    assert "7.0 GiB" in small.problems[0]


def test_the_prompt_is_shown_as_the_model_gets_it(checkpoint: Path):
    prompt = check(checkpoint, ["1k"]).prompt
    assert prompt is not None
    assert prompt.first_tokens[0] == "<|im_start|>"
    assert prompt.last_tokens[-1] == "\n"
    assert len(prompt.first_ids) == len(prompt.last_ids) == 8
    assert prompt.bos == "the tokenizer has no BOS"
    assert 150 < prompt.tokens_per_1000_characters < 300


@pytest.mark.parametrize(
    ("template", "said", "ok"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "begins with BOS '<|endoftext|>', once", True),
        ("{{ messages[0].content }}", "no BOS in front", True),
        ("{{ bos_token }}{{ bos_token }}{{ messages[0].content }}", "twice", False),
    ],
)
def test_bos_is_looked_for(checkpoint: Path, tmp_path: Path, template: str, said: str, ok: bool):
    folder = variant(checkpoint, tmp_path / "c")
    (folder / "chat_template.jinja").write_text(template)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<|endoftext|>"}))
    report = check(folder, ["1k"])
    assert report.ok == ok
    assert said in report.to_text()
    with nullcontext() if ok else pytest.raises(BadInput, match=said):  # a run is refused where the check says so
        make_plan(run_config({"model": str(folder), "task": "babilong", "lengths": "1k", "backend": "hf"}))


def test_the_training_rule_is_compared_with_what_would_be_served(checkpoint: Path, tmp_path: Path):
    trained = RopeScaling(rule="yarn", theta=1e6, rotary_dim=32, original_length=2048, factor=2)
    folder = with_record(variant(checkpoint, tmp_path / "c"), trained)
    lost = check(folder, ["1k"])
    assert "was trained under yarn, factor 2 over 2,048" in lost.problems[0]
    kept = check(folder, ["1k", "8k"], RopeRequest(rule="yarn"))
    assert kept.ok
    assert kept.facts["trained under"] == "yarn, factor 2 over 2,048, up to 512 tokens"
    assert [row.factor for row in kept.rows] == [2.0, 4.0]
    assert any("Trained under" in text for text in check(folder, ["1k"], RopeRequest(rule="linear")).warnings)


def test_a_tokenizer_of_another_model_is_a_problem(checkpoint: Path, tmp_path: Path):
    report = check(variant(checkpoint, tmp_path / "c", vocab_size=100), ["1k"])
    assert any("do not belong together" in problem for problem in report.problems)


def test_a_missing_template_and_a_limited_tokenizer_are_pointed_out(checkpoint: Path, tmp_path: Path):
    folder = variant(checkpoint, tmp_path / "c")
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 512}))
    report = check(folder, ["1k"])
    assert report.ok
    assert "no chat template" in report.warnings[0]
    assert report.facts["tokenizer's model_max_length"] == "512 (not applied)"


def test_warnings_of_the_config_reach_the_report(checkpoint: Path, tmp_path: Path):
    stored = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0}
    report = check(variant(checkpoint, tmp_path / "c", rope_parameters=stored), ["1k"])
    assert report.ok
    assert "without original_max_position_embeddings" in report.warnings[0]


def test_the_report_is_json(checkpoint: Path):
    report = json.loads(json.dumps(check(checkpoint, ["1k", "16k"]).to_json()))
    assert report["ok"] is False
    assert report["rows"][0]["window"] == 2048
    assert report["rows"][1]["problem"] == report["problems"][0]


def test_a_folder_that_is_no_checkpoint_is_refused_at_once(tmp_path: Path):
    with pytest.raises(BadInput, match="There is no folder"):
        check(tmp_path / "nowhere", ["1k"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"),
            "lack 1 tensors of the model, such as model",
        ),
        (
            lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"][:10].copy()}),
            "model.norm.weight of .* is 10, and its config says 64",
        ),
    ],
)
def test_weights_that_are_not_the_configs_are_a_problem_as_a_run_would_find(checkpoint, tmp_path, change, said):
    folder = variant(checkpoint, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    report = check(folder, ["1k"])
    assert not report.ok
    assert re.search(said, report.problems[0])


def test_a_control_has_no_length_that_reasoning_could_fill(checkpoint):
    asked = {"thinking_tokens": 2048, "control": "no-context"}
    assert not [one for one in check(checkpoint, ["1k"], **asked).problems if "thinking-tokens" in one]
    assert [one for one in check(checkpoint, ["1k"], thinking_tokens=2048).problems if "thinking-tokens" in one]


def test_how_often_0k_fits_a_gpu_is_not_counted(checkpoint):
    assert [row.num_fit is None for row in check(checkpoint, ["0k", "1k"], gpu_memory=80).rows] == [True, False]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "nope"}, r"config\.json: .*KeyError: 'nope'.*put its hidden_act right, which is 'nope'"),
        ({"num_key_value_heads": 7}, r"layers\.0\.self_attn\.k_proj\.bias of .* is 32, and its config says 224; copy"),
        (
            {"quantization_config": {"quant_method": "fp8"}, "num_attention_heads": 1, "num_key_value_heads": 1},
            r"layers\.0\.self_attn\.k_proj\.weight of .* is 32 x 64, and its config says 64 x 64; copy",
        ),
        ({"quantization_config": {"quant_method": "quanto"}}, "transformers cannot load .*optimum"),
        ({"quantization_config": {}}, r"quantization_config in .*config\.json is \{\}; it should name"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0],
                                 "long_factor": [2.0] * 16, "original_max_position_embeddings": 1024}},
            r"short_factor in .*config\.json has 1 numbers for the 16 pairs .* copy",
        ),
        ({"num_hidden_layers": 1_000_000}, "has weights of 2 layers, and its config says 1,000,000; copy both again"),
    ],
)  # fmt: skip
def test_check_and_run_refuse_a_config_that_does_not_fit_the_weights_in_one_sentence(
    checkpoint: Path, tmp_path: Path, change: dict[str, object], said: str
):
    asked = ["--model", variant(checkpoint, tmp_path / "c", **change), "--lengths", "1k", "--backend", "hf"]
    asked += ["--task", "babilong", "--subsets", "qa1", "--samples", "1"]
    sentences = []
    for words in (["check", *asked], ["run", *asked, "--out", tmp_path / "out"]):
        shown = CliRunner().invoke(main, [str(word) for word in words])
        assert shown.exit_code == 2, shown.output
        assert re.search(said, shown.output), shown.output
        ends = [line for line in shown.output.splitlines() if line.startswith(("problem: ", "evalkit: "))]
        sentences += [line.partition(": ")[2] for line in ends]
    assert len(set(sentences)) == 1, sentences


def test_another_backend_than_transformers_may_have_a_class_for_what_that_cannot_build(checkpoint, tmp_path):
    folder = variant(checkpoint, tmp_path / "c", hidden_act="nope")
    report = check(folder, ["1k"], backend="scripted")
    assert report.ok
    assert "The hf backend will not load this checkpoint" in report.warnings[0]
    of_hf = check(folder, ["1k"], backend="hf")
    assert (len(of_hf.problems), of_hf.warnings) == (1, ())


def test_names_in_a_checkpoint_reach_the_terminal_as_text_alone(checkpoint: Path, tmp_path: Path):
    folder = variant(checkpoint, tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    tensors["\x1b[31mx"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    words = ["check", "--model", folder, "--lengths", "1k", "--backend", "hf"]  # a process: its stderr is transformers'
    shown = subprocess.run([sys.executable, "-m", "evalkit", *words], capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert "lack 1 tensors of the model, such as model.norm.weight" in shown.stdout
    assert "\x1b" not in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"task": "mrcr", "max_new_tokens": 1020}, "The first sample of 2needle/1k cannot be asked"),
        ({"facts": "nowhere"}, "nowhere"),
        ({"device": "cuda"}, "No CUDA device"),
        ({"attention_backend": "FLASH"}, "--attention-backend FLASH"),
        ({"backend": "server", "base_url": ("http://127.0.0.1:9/v1",), "served_model": "m"}, "127.0.0.1:9"),
        ({"gpu_memory": float("nan")}, "--gpu-memory is nan"),
    ],
)
def test_options_of_the_task_and_of_the_backend_are_examined_as_a_run_does_first(checkpoint: Path, more, said):
    try:
        report = check(checkpoint, ["1k"], **more)
        problems = report.problems or report.warnings
    except BadInput as error:
        problems = (str(error),)
    assert any(said in problem for problem in problems), problems
