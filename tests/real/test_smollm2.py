"""A pretrained model is asked as its own files say, answers better than noise, and alike on every path."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from evalkit.cli.commands import main
from evalkit.models.backends.hf import HFBackend, HFOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import RopeRequest, served_rope
from evalkit.records.folder import RunFolder
from evalkit.records.scoring import scored
from evalkit.runs.config import run_config
from evalkit.runs.crosscheck import crosscheck_plans
from evalkit.runs.plan import Plan, make_plan
from evalkit.types import Completion, Prompt

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

ANSWER_TOKENS = 8


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    asked = {"task": "babilong", "subsets": ["qa1"], "lengths": "512", "samples": 1, "dtype": "float32"}
    return {"model": str(folder), "backend": "hf", **asked, "max_new_tokens": ANSWER_TOKENS, **more}


def first_prompts(plan: Plan) -> Iterator[Prompt]:
    for _, prompt in plan.first_prompts():
        assert isinstance(prompt, Prompt), prompt
        yield prompt


def run(out: Path, folder: Path, *more: object) -> RunFolder:
    arguments = ("run", "--model", folder, "--backend", "hf", "--dtype", "float32", "--out", out, *more)
    shown = CliRunner().invoke(main, [str(a) for a in arguments])
    assert shown.exit_code == 0, shown.output
    return RunFolder.open(out)


@pytest.mark.parametrize(
    "more",
    [
        {"subsets": ["qa1", "qa3", "qa19"], "lengths": "2k,8k"},
        {"subsets": ["qa2"], "lengths": "1k", "system_prompt": "Answer with one word."},
        {"task": "mrcr", "subsets": ["2needle", "8needle"], "lengths": "8k"},
    ],
)
def test_the_ids_are_those_of_its_own_tokenizer_on_the_rendered_text(smollm2: Path, more: dict[str, Any]):
    plan = make_plan(run_config(settings(smollm2, **more)))
    own = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    for prompt in first_prompts(plan):
        text = plan.encoder.decode(prompt.token_ids)
        assert text.startswith("<|im_start|>system\n")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert own.encode(text, add_special_tokens=False).ids == prompt.token_ids.tolist()


def test_it_answers_questions_about_one_fact_at_512_and_1k_tokens(smollm2: Path, tmp_path: Path):
    asked = ("--task", "babilong", "--subsets", "qa1", "--lengths", "512,1k", "--samples", 4)
    frame = scored(run(tmp_path / "r", smollm2, *asked)).table.to_pandas()
    means = frame[frame.scorer == "official"].groupby("length", observed=True)["value"].mean()
    print(means.to_dict())
    assert len(means) == 2
    assert (means > 0).all()


def test_it_is_asked_conversations_of_2k_tokens(smollm2: Path, tmp_path: Path):
    folder = run(
        tmp_path / "r", smollm2, "--task", "mrcr", "--subsets", "2needle", "--lengths", "2k", "--samples", 1,
        "--max-new-tokens", 16,
    )  # fmt: skip
    (prediction,) = folder.recorded().values()
    assert prediction.error is None
    assert 2048 - 64 <= prediction.prompt_tokens + 16 <= 2048
    assert prediction.output
    frame = scored(folder).table.to_pandas()
    assert frame[frame.scorer == "official"]["value"].between(0, 1).all()


def test_an_adapter_answers_as_the_weights_it_is_merged_into(smollm2: Path, tmp_path: Path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = tmp_path / "merged"
    adapted.merge_and_unload().save_pretrained(merged)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (merged / name).write_bytes((smollm2 / name).read_bytes())
    del base, adapted

    prompts = list(first_prompts(make_plan(run_config(settings(smollm2)))))
    plain = _answer(Checkpoint.open(smollm2), prompts)
    beside = _answer(Checkpoint.open(smollm2, adapter=tmp_path / "adapter"), prompts)
    inside = _answer(Checkpoint.open(merged), prompts)
    assert beside.token_ids == inside.token_ids
    assert beside.logprobs == pytest.approx(inside.logprobs, abs=1e-4)
    assert beside.logprobs != pytest.approx(plain.logprobs, abs=1e-2)


def _answer(checkpoint: Checkpoint, prompts: list[Prompt]) -> Completion:
    backend = HFBackend(checkpoint, Encoder.open(checkpoint.path).tokenizer, HFOptions(dtype="float32"), logprobs=True)
    backend.serve(served_rope(checkpoint, RopeRequest(), 512), ("512",), 512)
    ((_, completion),) = backend.generate(prompts)
    return completion


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here")
@pytest.mark.parametrize("rope", [{}, {"rope": "yarn", "factor": 2}], ids=["plain", "yarn 2"])
def test_transformers_and_vllm_answer_alike(smollm2: Path, rope: dict[str, Any]):
    asked = settings(smollm2, lengths="512,1k", **rope)
    report = crosscheck_plans([run_config({**asked, "backend": name}) for name in ("hf", "vllm")])
    print(report.to_text())
    print(json.dumps(report.to_json()))
    assert report.compared == 2
    assert report.agreeing == 2, report.to_text()
    assert report.largest_logprob_gap is not None
    assert report.largest_logprob_gap < 1e-3
