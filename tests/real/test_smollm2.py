"""A pretrained model is asked as its own files say, answers better than noise, and alike on every path."""

import json
import tarfile
import time
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    import pandas as pd

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

ANSWER_TOKENS = 8
ROOT = Path(__file__).parents[2]


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    asked = {"task": "babilong", "subsets": ["qa1"], "lengths": "512", "samples": 1, "dtype": "float32"}
    return {"model": str(folder), "backend": "hf", **asked, "max_new_tokens": ANSWER_TOKENS, **more}


def first_prompts(plan: Plan) -> Iterator[Prompt]:
    for _, prompt in plan.first_prompts():
        assert isinstance(prompt, Prompt), prompt
        yield prompt


def run(out: Path, folder: Path, *more: object, dtype: str = "float32") -> RunFolder:
    evalkit("run", "--model", folder, "--backend", "hf", "--dtype", dtype, "--out", out, *more)
    return RunFolder.open(out)


def evalkit(*arguments: object) -> None:
    shown = CliRunner().invoke(main, [str(a) for a in arguments])
    assert shown.exit_code == 0, shown.output


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


def test_the_prompts_of_the_committed_study_are_built_anew_token_for_token(smollm2: Path, tmp_path: Path):
    with tarfile.open(ROOT / "results" / "reference" / "smollm2-cpu" / "seed-0.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    study = tomllib.loads((ROOT / "evalkit" / "study" / "experiments" / "smollm2.toml").read_text())
    asked = study["evaluation"] | study["scales"]["cpu"]["evaluation"]
    plan = make_plan(run_config({"model": str(smollm2), "rope": "none", **asked}))
    records = map(json.loads, (tmp_path / "seed-0" / "runs" / "plain" / "predictions.jsonl").open())
    recorded = {(r["length"], r["sample_id"]): r["prompt_sha256"] for r in records}
    built = {}
    for cell in plan.cells(plan.config.lengths):
        for sample in plan.samples_of(cell):
            prompt = plan.attempt(sample, cell.length)
            assert isinstance(prompt, Prompt), prompt
            built[cell.length, sample.sample_id] = prompt.sha256
    assert built == recorded


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


@pytest.mark.timeout(1800)
def test_a_lora_of_a_few_minutes_lifts_it_well_above_itself(smollm2: Path, tmp_path: Path):
    """Questions, contexts and prose of training and evaluation have seeds of their own; what recurs is left out."""
    from scipy.stats import binomtest

    data = ("--subsets", "qa1", "--no-examples", "--max-new-tokens", 20)
    asked = ("--task", "babilong", *data, "--lengths", "256,512", "--samples", 16, "--seed", 20)
    before = run(tmp_path / "before", smollm2, *asked, dtype="auto")
    began = time.perf_counter()
    evalkit(
        "train", "--base", smollm2, "--out", tmp_path / "lora", "--recipe", "plain", *data, "--samples", 96,
        "--shortest", 128, "--longest", 256, "--against", tmp_path / "before", "--on-leak", "drop",
        "--lora-rank", 16, "--learning-rate", 1e-3, "--batch-size", 4, "--accumulation", 1, "--epochs", 1,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    after = run(tmp_path / "after", tmp_path / "lora", *asked, dtype="auto")
    values = [official(folder) for folder in (before, after)]
    gained, lost = ((a - b > 0).sum() for a, b in (values[::-1], values))
    print([one.groupby("length").mean().to_dict() for one in values], f"{seconds:.0f} s of training")
    assert len(values[0]) == len(values[1]) == 32
    assert values[1].mean() - values[0].mean() >= 0.2
    assert binomtest(int(gained), int(gained + lost), alternative="greater").pvalue < 0.01, "each differs by chance"


def official(folder: RunFolder) -> "pd.Series[float]":
    """Return the official score of each answer, by length and sample."""
    frame = scored(folder).table.to_pandas()
    values: pd.Series[float] = frame[frame.scorer == "official"].set_index(["length", "sample_id"])["value"]
    return values


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
