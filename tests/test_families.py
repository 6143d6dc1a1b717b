"""Every family's rope as its public configs have it, on a tiny random model of its class: served right, or refused.

Thetas, factors, lengths, layer kinds and the layout of config.json are the public ones; sizes are tiny. The outcome of
each family is a row of docs/families.md.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.models.backends.hf import HFBackend, HFOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.formulas import RopeScaling, frequencies
from evalkit.models.rope.modules import read_back_transformers
from evalkit.models.rope.readback import expected_frequencies
from evalkit.models.rope.served import RopeRequest, ServedRope, served_rope
from evalkit.train.config import TrainConfig
from evalkit.train.data import DataRecipe
from evalkit.train.finetune import finetune
from tests.test_hf import prompt
from tests.variants import family_as_published, variant, with_layers

SIZES = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
MLA = {"kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}


def longrope(pairs: int) -> dict[str, Any]:
    factors = {"short_factor": [1 + 0.05 * j for j in range(pairs)], "long_factor": [1 + 1.5 * j for j in range(pairs)]}
    return {"type": "longrope", **factors}


HYBRID = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
}


@dataclass(frozen=True)
class Family:
    """Facts of a public config, and what comes of them."""

    name: str
    config: dict[str, Any]
    stored: str
    """As ``--rope checkpoint`` calls it."""
    window: int
    original: int
    fixed: str = ""
    """Why YaRN cannot take the stored rule's place; empty where it can."""
    read_back: bool = True
    untrained: str = ""
    """Why it cannot be trained at all."""
    unsaved: str = ""
    """Why it cannot be trained under YaRN, which is served."""

    def values(self) -> dict[str, Any]:
        sizes = SIZES if self.config["model_type"] == "phi3" else SIZES | {"head_dim": 32}  # Phi-3's has no head_dim
        return sizes | self.config

    def row(self) -> str:
        """Return its row in docs/families.md."""
        yarn = f"no: {self.fixed}" if self.fixed else f"yes, over {self.original:,}"
        training = "as stored" if self.fixed or self.unsaved else "as stored; YaRN"
        training += f"; not YaRN: {self.unsaved}" if self.unsaved else ""
        training = f"no: {self.untrained}" if self.untrained else training
        read_back = "yes" if self.read_back else "no"
        kind = self.config["model_type"]
        return f"| {self.name} | `{kind}` | {self.stored} | {self.window:,} | {read_back} | {yarn} | {training} |"


LATENT = "its compressed attention (MLA) builds the scaling into the softmax, too"
FAMILIES = [
    Family(
        "Qwen2.5",
        {"model_type": "qwen2", "rope_theta": 1e6, "max_position_embeddings": 32768, "use_sliding_window": False,
         "sliding_window": 131072},
        "none (plain rope)", 32768, 32768,
    ),
    Family(
        "Qwen2.5 with YaRN as its card says",
        {"model_type": "qwen2", "rope_theta": 1e6, "max_position_embeddings": 32768, "use_sliding_window": False,
         "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        "yarn, factor 4 over 32,768", 131072, 32768,
    ),
    Family(
        "Qwen3",
        {"model_type": "qwen3", "rope_theta": 1e6, "max_position_embeddings": 40960, "rope_scaling": None},
        "none (plain rope)", 40960, 40960,
    ),
    Family(
        "Qwen3-Next",
        {"model_type": "qwen3_next", "rope_theta": 1e7, "max_position_embeddings": 262144,
         "partial_rotary_factor": 0.25, **HYBRID, "num_experts": 4, "num_experts_per_tok": 2,
         "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
        "none (plain rope)", 262144, 262144,
    ),
    Family(
        "Qwen3.5",
        {"model_type": "qwen3_5",
         "text_config": {**SIZES, **HYBRID, "head_dim": 32, "model_type": "qwen3_5_text",
                         "max_position_embeddings": 262144,
                         "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
                                             "mrope_interleaved": True, "mrope_section": [2, 1, 1]}},
         "vision_config": {"model_type": "qwen3_5", "depth": 1, "hidden_size": 32, "intermediate_size": 32,
                           "num_heads": 2, "out_hidden_size": 64, "num_position_embeddings": 16}},
        "default as stored", 262144, 262144, fixed="its positions have several axes (mrope)", read_back=False,
    ),
    Family(
        "Olmo 3",
        {"model_type": "olmo3", "rope_theta": 5e5, "max_position_embeddings": 65536, "num_hidden_layers": 4,
         "sliding_window": 4096,
         "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192,
                          "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1}},
        "yarn, factor 8 over 8,192", 65536, 8192,
    ),
    Family(
        "Llama 3.1",
        {"model_type": "llama", "rope_theta": 5e5, "max_position_embeddings": 131072,
         "rope_scaling": {**LLAMA3, "factor": 8.0, "high_freq_factor": 4.0}},
        "llama3 as stored", 131072, 8192,
    ),
    Family(
        "Llama 4",
        {"model_type": "llama4_text", "rope_theta": 5e5, "max_position_embeddings": 10485760, "num_hidden_layers": 4,
         "attention_chunk_size": 8192, "num_local_experts": 2, "intermediate_size_mlp": 64,
         "interleave_moe_layer_step": 2,
         "rope_scaling": {**LLAMA3, "factor": 16.0, "high_freq_factor": 1.0}},
        "llama3 as stored", 10485760, 8192,
    ),
    Family(
        "Gemma 3",
        {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4, "max_position_embeddings": 131072,
         "num_hidden_layers": 6, "sliding_window": 1024, "query_pre_attn_scalar": 32,
         "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        "linear, factor 8 over 16,384", 131072, 16384,
    ),
    Family(
        "Gemma 4",
        {"model_type": "gemma4_text", "head_dim": 16, "global_head_dim": 32, "num_hidden_layers": 6,
         "sliding_window": 512, "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
         "max_position_embeddings": 131072, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
         "rope_parameters": {
             "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
             "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}},
        "proportional as stored", 131072, 131072,
        fixed="its proportional rule turns pairs that are spread over the whole head",
    ),
    Family(
        "Phi-3 (128K)",
        {"model_type": "phi3", "rope_theta": 1e4, "max_position_embeddings": 131072,
         "original_max_position_embeddings": 4096, "sliding_window": 262144, "rope_scaling": longrope(16)},
        "longrope as stored", 131072, 4096,
        unsaved="its config class (phi3) does not save such a rule",
    ),
    Family(
        "Phi-4-mini",
        {"model_type": "phi3", "rope_theta": 1e4, "max_position_embeddings": 131072, "partial_rotary_factor": 0.75,
         "original_max_position_embeddings": 4096, "sliding_window": 262144, "rope_scaling": longrope(12)},
        "longrope as stored", 131072, 4096,
        unsaved="its config class (phi3) does not save such a rule",
    ),
    Family(
        "Phi-2",
        {"model_type": "phi", "rope_theta": 1e4, "max_position_embeddings": 2048, "partial_rotary_factor": 0.5},
        "none (plain rope)", 2048, 2048,
    ),
    Family(
        "Mistral 7B v0.1",
        {"model_type": "mistral", "rope_theta": 1e4, "max_position_embeddings": 32768, "sliding_window": 4096},
        "none (plain rope)", 32768, 32768,
    ),
    Family(
        "Ministral 3",
        {"model_type": "ministral3", "max_position_embeddings": 262144,
         "rope_parameters": {"rope_type": "yarn", "type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0,
                             "beta_slow": 1.0, "original_max_position_embeddings": 16384, "mscale": 1.0,
                             "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}},
        "ntk-by-parts, factor 16 over 16,384", 262144, 16384,
    ),
    Family(
        "DeepSeek-V2-Lite",
        {"model_type": "deepseek_v2", **MLA, **EXPERTS, "q_lora_rank": None, "head_dim": 16, "rope_theta": 1e4,
         "max_position_embeddings": 163840, "first_k_dense_replace": 1, "topk_method": "greedy", "n_group": 1,
         "topk_group": 1, "scoring_func": "softmax", "norm_topk_prob": False,
         "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                          "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707}},
        "yarn as stored", 163840, 4096, fixed=LATENT,
    ),
    Family(
        "DeepSeek-V3",
        {"model_type": "deepseek_v3", **MLA, **EXPERTS, "q_lora_rank": 32, "head_dim": 16, "rope_theta": 1e4,
         "max_position_embeddings": 163840, "first_k_dense_replace": 1, "topk_method": "noaux_tc", "n_group": 1,
         "topk_group": 1, "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
         "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                          "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}},
        "yarn as stored", 163840, 4096, fixed=LATENT,
    ),
    Family(
        "GLM-4 (0414)",
        {"model_type": "glm4", "rope_theta": 1e4, "max_position_embeddings": 32768, "partial_rotary_factor": 0.5},
        "none (plain rope)", 32768, 32768,
    ),
    Family(
        "MiniCPM3, a factor of 1 written into its longrope entry",
        {"model_type": "minicpm3", **MLA, "q_lora_rank": 32, "head_dim": 16, "max_position_embeddings": 32768,
         "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32,
         "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 1.0,
                          "original_max_position_embeddings": 32768}},
        "longrope as stored", 32768, 32768, fixed=LATENT,
    ),
    Family(
        "SmolLM3",
        {"model_type": "smollm3", "rope_theta": 5e6, "max_position_embeddings": 65536, "num_hidden_layers": 4,
         "no_rope_layers": [1, 1, 1, 0]},
        "none (plain rope)", 65536, 65536,
    ),
    Family(
        "InternLM2.5 in Llama's layout",
        {"model_type": "llama", "rope_theta": 1e6, "max_position_embeddings": 32768,
         "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "none (plain rope)", 32768, 32768,
    ),
    Family(
        "gpt-oss",
        {"model_type": "gpt_oss", "rope_theta": 150000.0, "max_position_embeddings": 131072, "sliding_window": 128,
         "num_local_experts": 4, "num_experts_per_tok": 2,
         "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                          "original_max_position_embeddings": 4096}},
        "yarn, factor 32 over 4,096, corners not truncated", 131072, 4096,
    ),
    Family(
        "StableLM 2",
        {"model_type": "stablelm", "rope_theta": 1e4, "max_position_embeddings": 4096, "partial_rotary_factor": 0.25},
        "none (plain rope)", 4096, 4096,
    ),
    Family(
        "Hunyuan",
        {"model_type": "hunyuan_v1_dense", "rope_theta": 1e4, "max_position_embeddings": 32768,
         "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1,
                          "mscale": 1.0, "mscale_all_dim": 0.0}},
        "dynamic as stored", 32768, 32768,
        fixed="its class computes other frequencies than rope_type dynamic says (it reads alpha in its own way)",
    ),
    Family(
        "Granite 4 H",
        {"model_type": "granitemoehybrid", "num_hidden_layers": 4, "layer_types": ["mamba"] * 3 + ["attention"],
         "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 64, "num_local_experts": 4,
         "num_experts_per_tok": 2, "shared_intermediate_size": 64, "position_embedding_type": "nope",
         "rope_theta": 10000, "rope_scaling": None, "max_position_embeddings": 131072},
        "as stored (no rotary positions)", 131072, 131072, fixed="it has no rotary positions", read_back=False,
        untrained="there is nothing to draw or scale",
    ),
]  # fmt: skip
LATER = {"auto_map": {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}}
REFUSED = [  # name, config, by whom, why
    ("MiniCPM3 as published",
     {"model_type": "minicpm3", **MLA, "q_lora_rank": 32, "head_dim": 16, "max_position_embeddings": 32768,
      "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
                       "original_max_position_embeddings": 32768}},
     "hf", "KeyError: 'factor'"),
    ("MiniCPM4", {"model_type": "minicpm", "max_position_embeddings": 32768, **LATER}, "all", "custom code"),
    ("InternLM2.5", {"model_type": "internlm2", "max_position_embeddings": 32768, **LATER}, "all", "custom code"),
    ("DeepSeek-V4", {"model_type": "deepseek_v4", "max_position_embeddings": 65536, "num_hidden_layers": 4}, "all",
     "rope rules for main, compress, but none for full_attention layers"),
]  # fmt: skip
EACH = pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)


@pytest.fixture(scope="session")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that writes a family's model, once."""
    root = tmp_path_factory.mktemp("families")

    def make(case: Family) -> Checkpoint:
        folder = root / str(FAMILIES.index(case))
        return Checkpoint.open(folder if folder.exists() else family_as_published(checkpoint, folder, case.values()))

    return make


def serving(checkpoint: Checkpoint, rope: ServedRope, *, logprobs: bool = False) -> HFBackend:
    """Return transformers on the CPU under a rule, read back."""
    tokenizer = Encoder.open(checkpoint.path).tokenizer
    backend = HFBackend(checkpoint, tokenizer, HFOptions(device="cpu"), logprobs=logprobs)
    assert bool(backend.serve(rope, (), 1024)) == bool(expected_frequencies(checkpoint, rope))
    return backend


def logits(model: Any, longest: int = 2000) -> torch.Tensor:
    """Of 200 tokens at positions up to ``longest``, so that the slow frequencies count, too."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, 4000, (1, 200)))
    positions = torch.linspace(0, longest - 1, 200).long()[None]
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    return result


@EACH
def test_a_family_is_served_as_it_is_stored(made: Any, case: Family) -> None:
    from transformers import AutoModelForCausalLM

    opened = made(case)
    served = served_rope(opened, RopeRequest(), 1024)
    assert (served.label, opened.window, opened.original_length) == (case.stored, case.window, case.original)
    plain = AutoModelForCausalLM.from_pretrained(opened.path, dtype=torch.float32).eval()
    backend = serving(opened, served)
    difference = (logits(backend.model) - logits(plain)).abs().max()
    assert difference < 1e-4 * logits(plain).std()
    assert bool(expected_frequencies(opened, served)) == case.read_back


@EACH
def test_yarn_takes_the_place_of_a_familys_rule_or_is_refused(made: Any, case: Family) -> None:
    opened = made(case)
    request = RopeRequest(rule="yarn", factor=16)
    if case.fixed:
        with pytest.raises(BadInput, match=r"no rotary positions|cannot be replaced by yarn") as error:
            served_rope(opened, request, 1024)
        assert case.fixed.removeprefix("it ") in str(error.value)
        return
    served = served_rope(opened, request, 16 * case.original)
    assert served.scaling is not None
    loaded, switched = serving(opened, served), serving(opened, served_rope(opened, RopeRequest(), 1024))
    as_stored = logits(switched.model)
    assert switched.serve(served, (), 1024)
    for model in (loaded.model, switched.model):
        main = next(e for e in read_back_transformers(model) if e.layer_type in ("", "full_attention"))
        np.testing.assert_allclose(main.inv_freq, frequencies(served.scaling).inv_freq, rtol=1e-6)
        assert main.attention_factor == pytest.approx(frequencies(served.scaling).attention_factor)
    assert torch.equal(logits(loaded.model), logits(switched.model))
    assert not torch.allclose(logits(loaded.model), as_stored, atol=1e-3)
    switched.serve(served_rope(opened, RopeRequest(), 1024), (), 1024)
    assert torch.equal(logits(switched.model), as_stored)


@EACH
def test_a_family_is_checked_and_run(made: Any, case: Family, tmp_path: Path) -> None:
    folder = made(case).path
    words = ["--lengths", "512", "--rope", "checkpoint"]
    checked = CliRunner().invoke(main, ["check", str(folder), *words])
    assert checked.exit_code == 0, checked.output
    task = ["--task", "babilong", "--subsets", "qa1", "--samples", "2", "--backend", "hf", "--out", str(tmp_path / "r")]
    shown = CliRunner().invoke(main, ["run", "--model", str(folder), *words, *task])
    assert shown.exit_code == 0, shown.output
    assert len((tmp_path / "r" / "predictions.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("recipe", ["plain", "yarn"])
@EACH
def test_a_family_is_trained_two_steps_or_refused(made: Any, case: Family, recipe: str, tmp_path: Path) -> None:
    opened = made(case)
    config = TrainConfig(
        base=opened.path, out=tmp_path / "out", recipe=recipe, factor=16.0, epochs=1, accumulation=1,
        learning_rate=1e-4, data=DataRecipe(subsets=("qa1",), samples=2, shortest=0, longest=400),
        options=BABILongOptions(instruction=False, examples=False, post_prompt=False, control="facts-only"),
    )  # fmt: skip
    refusal = case.untrained or ((case.fixed or case.unsaved) if recipe == "yarn" else "")
    if refusal:
        with pytest.raises(BadInput) as error:
            finetune(config)
        assert refusal in str(error.value)
        assert not (tmp_path / "out").exists()
        return
    trained = Checkpoint.open(finetune(config))
    record = json.loads((trained.path / "evalkit_training.json").read_text())
    assert record["steps"] == 2
    assert np.isfinite(record["final_loss"])
    served = served_rope(trained, RopeRequest(), 1024)
    if recipe == "yarn":
        assert isinstance(trained.trained_rope, RopeScaling)
        assert (trained.trained_rope.rule, trained.trained_rope.factor) == ("yarn", 16)
        assert trained.trained_rope.original_length == case.original
    else:
        assert trained.trained_rope is not None
        assert trained.trained_rope.describe().startswith(case.stored)
        assert served.label == case.stored
    assert record["base"]["rope"] == opened.rope.rule.to_json()


@pytest.mark.parametrize(("name", "config", "by", "why"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_family_that_cannot_be_served_is_refused_with_the_reason(
    checkpoint: Path, name: str, config: dict[str, Any], by: str, why: str, tmp_path: Path
) -> None:
    folder = with_layers(variant(checkpoint, tmp_path / "c"), 4)
    (folder / "config.json").write_text(json.dumps(SIZES | config))
    for backend in ("hf", "scripted"):
        checked = CliRunner().invoke(main, ["check", str(folder), "--lengths", "512", "--backend", backend])
        assert why in checked.output
        assert checked.exit_code == (0 if by == "hf" != backend else 2)
    words = ["--task", "babilong", "--lengths", "512", "--samples", "1", "--out", str(tmp_path / "r")]
    shown = CliRunner().invoke(main, ["run", "--model", str(folder), "--backend", "hf", *words])
    assert shown.exit_code == 2
    assert why.split(": ")[-1] in shown.output


def test_the_table_of_the_documentation_is_what_was_seen_here() -> None:
    text = (Path(__file__).parents[1] / "docs" / "families.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    refused = [f"| {name} | `{config['model_type']}` | {by} | {why} |" for name, config, by, why in REFUSED]
    assert rows == [*(case.row() for case in FAMILIES), *refused]


@EACH
def test_answers_do_not_hang_on_what_shares_the_batch(made: Any, case: Family) -> None:
    rng = np.random.default_rng(1)
    prompts = [
        prompt(rng.integers(5, 4000, n), name=str(n), max_new_tokens=limit) for n, limit in ((40, 6), (9, 2), (23, 4))
    ]
    opened = made(case)
    backend = serving(opened, served_rope(opened, RopeRequest(), 1024), logprobs=True)
    together = {p.sample.sample_id: c for p, c in backend.generate(prompts)}
    for one in prompts:
        ((_, alone),) = backend.generate([one])
        answer = together[one.sample.sample_id]
        assert answer.token_ids == alone.token_ids
        np.testing.assert_allclose(answer.logprobs, alone.logprobs, atol=1e-3)
