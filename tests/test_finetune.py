"""One arm on the Trainer: the right loss at the drawn positions, resumable, and exported as it was trained."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.cli.commands import main
from evalkit.errors import BadInput, EngineError
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.new_checkpoint import write_checkpoint
from evalkit.models.rope import served as served_module
from evalkit.train import finetune as finetune_module
from evalkit.train import trainer as trainer_module
from evalkit.train.config import TrainConfig
from evalkit.train.data import DataRecipe, Example
from evalkit.train.finetune import _export, finetune, prepare
from evalkit.train.positions import PositionRule
from evalkit.train.recipes import RECIPES
from evalkit.train.trainer import Collator, Stream, answer_loss, write_loss_curve
from tests.refusals import refused_at_once
from tests.test_mrcr_published import row, write_parquet
from tests.variants import variant


def tiny_model(**rope):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 1e4},
        use_cache=False,
    )
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # sharp attention, so that a wrong mask shows
    return model


def example(rng, prompt_tokens, answer_tokens):
    ids = rng.integers(1, 50, size=prompt_tokens + answer_tokens).astype(np.int32)
    return Example(ids[:prompt_tokens], ids[prompt_tokens:])


def causal_logits(model, ids, positions):
    """Qwen2 written out: one sequence, an explicit causal mask, rotations by the given positions."""
    config, embed = model.config, model.model.embed_tokens.weight
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = config.hidden_size // heads
    inv_freq = 1e4 ** (-torch.arange(0, dim, 2) / dim)
    angles = positions[:, None] * inv_freq
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * weight

    def rotate(x):  # (tokens, heads, dim)
        return x * cos[:, None] + torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1) * sin[:, None]

    x = embed[ids]
    future = torch.ones(len(ids), len(ids)).triu(1).bool()
    for layer in model.model.layers:
        h, a = norm(x, layer.input_layernorm.weight), layer.self_attn
        q = rotate(a.q_proj(h).view(-1, heads, dim))
        k = rotate(a.k_proj(h).view(-1, kv_heads, dim)).repeat_interleave(heads // kv_heads, 1)
        v = a.v_proj(h).view(-1, kv_heads, dim).repeat_interleave(heads // kv_heads, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / dim**0.5
        mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(future, -torch.inf).softmax(-1), v)
        x = x + a.o_proj(mixed.reshape(len(ids), -1))
        h = norm(x, layer.post_attention_layernorm.weight)
        x = x + layer.mlp.down_proj(torch.nn.functional.silu(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h))
    return norm(x, model.model.norm.weight) @ model.lm_head.weight.T


def collate(rule, examples, range_length=64):
    stream = Stream(examples, num_items=len(examples), seed=0)
    collator = Collator(rule, range_length=range_length, num_items=len(stream), seed=0, pad_id=0)
    return collator([stream[k] for k in range(len(stream))])


@pytest.mark.parametrize("kind", ["contiguous", "randomized", "pose"])
def test_positions_with_gaps_keep_one_causal_sequence(kind):
    rng, model = np.random.default_rng(0), tiny_model()
    batch = collate(PositionRule(kind=kind, stages=(8.0,)), [example(rng, n, 3) for n in (30, 17, 24)])
    with torch.no_grad():
        logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}).logits
        for row in range(3):
            real = batch["attention_mask"][row] == 1
            expected = causal_logits(model, batch["input_ids"][row][real], batch["position_ids"][row][real])
            torch.testing.assert_close(logits[row][real], expected, atol=1e-4, rtol=1e-4)


def test_without_the_mask_transformers_would_cut_attention_at_the_gaps():
    """Why the collator always sends the mask: this is the trap that it avoids."""
    model, ids, positions = tiny_model(), torch.arange(1, 9)[None], torch.arange(0, 24, 3)[None]
    with torch.no_grad():
        right = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False)
        cut = model(input_ids=ids, position_ids=positions, use_cache=False)
    torch.testing.assert_close(right.logits[0], causal_logits(model, ids[0], positions[0]), atol=1e-4, rtol=1e-4)
    assert (right.logits - cut.logits).abs().max() > 0.1


def test_the_loss_is_that_of_the_answer_with_or_without_a_language_model_term():
    rng, model = np.random.default_rng(1), tiny_model()
    examples = [example(rng, 20, 2), example(rng, 9, 4)]
    batch = collate(PositionRule(), examples)
    with torch.no_grad():
        losses = {"answer": [], "other": []}
        for row in range(2):
            real = batch["attention_mask"][row] == 1
            ids, answer = batch["input_ids"][row][real], batch["is_answer"][row][real]
            each = torch.nn.functional.cross_entropy(
                causal_logits(model, ids, torch.arange(len(ids)))[:-1], ids[1:], reduction="none"
            )
            losses["answer"].append(each[answer[1:]])
            losses["other"].append(each[~answer[1:]])
        answer, other = (torch.cat(losses[name]).mean() for name in ("answer", "other"))
        torch.testing.assert_close(answer_loss(model, batch, lm_weight=0.0), answer, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(answer_loss(model, batch, lm_weight=0.1), answer + 0.1 * other, atol=1e-4, rtol=1e-4)


def test_every_epoch_is_a_permutation_and_none_depends_on_the_recipe():
    rng = np.random.default_rng(0)
    examples = [example(rng, 5, 1) for _ in range(7)]
    stream = Stream(examples, num_items=21, seed=3)
    shown = [id(stream[k][1]) for k in range(21)]
    assert [sorted(shown[e : e + 7]) for e in (0, 7, 14)] == [sorted(map(id, examples))] * 3
    assert shown[:7] != shown[7:14]
    assert shown == [id(Stream(examples, num_items=21, seed=3)[k][1]) for k in range(21)]


@pytest.mark.parametrize("per_batch", [False, True])
def test_samples_of_a_batch_share_their_draw_only_when_asked(per_batch):
    rng = np.random.default_rng(0)
    collator = Collator(
        PositionRule(kind="randomized", stages=(4.0,), per_batch=per_batch),
        range_length=64, num_items=3, seed=0, pad_id=0,
    )  # fmt: skip
    short, first, second = collator([(k, example(rng, n, 4)) for k, n in enumerate((36, 60, 60))])["position_ids"]
    assert torch.equal(first, second) == per_batch
    assert torch.equal(short[-40:], first[:40]) == per_batch


def test_an_item_draws_the_same_positions_whenever_it_is_reached():
    rng = np.random.default_rng(0)
    stream = Stream([example(rng, 20, 1) for _ in range(10)], num_items=40, seed=0)
    collator = Collator(
        PositionRule(kind="randomized", stages=(1.0, 8.0)), range_length=32, num_items=40, seed=0, pad_id=0
    )
    late = [stream[k] for k in range(36, 40)]
    once = collator(late)
    collator([stream[0]])
    assert torch.equal(once["position_ids"], collator(late)["position_ids"])
    assert torch.equal(once["position_ids"][1:2], collator(late[1:2])["position_ids"]), "whatever shares its batch"
    assert collator([stream[0], stream[1]])["position_ids"].max() < 32 < once["position_ids"].max() < 256


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    write_checkpoint(folder, window=256, vocab_size=600, num_layers=1)
    return folder


def evalkit(*words):
    return CliRunner().invoke(main, [*map(str, words)])


def config(base, out, **changes):
    data = DataRecipe(subsets=("qa1",), samples=8, shortest=0, longest=240)
    options = BABILongOptions(instruction=False, examples=False, post_prompt=False, control="facts-only")
    settings = {
        "recipe": "plain",
        "epochs": 3,
        "batch_size": 2,
        "accumulation": 2,
        "learning_rate": 1e-3,
        "save_every": 2,
    }
    return TrainConfig(base=str(base), out=out, **{"data": data, "options": options, **settings, **changes})


def logits_of(folder, length=100):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(length)[None] % 500
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_arm_trains_on_the_same_data_and_carries_its_own_rope_rule(base, tmp_path, recipe, monkeypatch):
    trained = {}

    def export(prepared, trainer, plan):
        model = trainer.model.eval()
        ids = torch.arange(100)[None] % 500
        with torch.no_grad():
            trained["logits"] = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        _export(prepared, trainer, plan)

    monkeypatch.setattr(finetune_module, "_export", export)
    out = finetune(config(base, tmp_path / "arm", recipe=recipe, factor=4.0))
    assert torch.equal(logits_of(out), trained["logits"])
    record = json.loads((out / "evalkit_training.json").read_text())
    plain = json.loads((base / "config.json").read_text())
    stored = json.loads((out / "config.json").read_text())
    yarn = "yarn" in recipe
    assert record["rope"]["rule"] == ("yarn" if yarn else "none")
    assert stored["max_position_embeddings"] == (1024 if yarn else 256)
    assert stored["rope_parameters"]["rope_type"] == ("yarn" if yarn else "default")
    assert stored["rope_parameters"]["rope_theta"] == plain["rope_parameters"]["rope_theta"]
    assert Checkpoint.open(out).trained_rope.factor == (4 if yarn else 1)
    assert record["trained_length"] == 240
    assert record["largest_position"] == (239 if recipe in ("plain", "yarn") else 479)
    plain_plan = prepare(config(base, tmp_path / "plain", recipe="plain", factor=4.0)).plan().to_json()
    shared = ("base", "data", "optimization", "lora", "seed")
    assert {name: record[name] for name in shared} == {name: plain_plan[name] for name in shared}
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not {"checkpoints", "plan.json"} & {path.name for path in out.iterdir()}
    assert (out / "loss.png").stat().st_size > 1000
    assert (out / "loss.csv").read_text().startswith("step,loss,learning_rate")


def test_a_training_tells_its_loss_while_it_goes_on(base, tmp_path):
    told = []
    out = finetune(config(base, tmp_path / "arm", recipe="plain", epochs=1), on_loss=told.append)
    logged = [float(line.split(",")[1]) for line in (out / "loss.csv").read_text().splitlines()[1:]]
    assert told == logged
    assert told


def test_an_interrupted_training_ends_as_if_it_had_not_been(base, tmp_path):
    class Killed(BaseException):
        pass

    def kill_at_three(done, total):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        finetune(config(base, tmp_path / "killed", recipe="randomized-yarn"), on_step=kill_at_three)
    assert not (tmp_path / "killed" / "evalkit_training.json").exists()
    steps = []
    resumed = finetune(
        config(base, tmp_path / "killed", recipe="randomized-yarn"), on_step=lambda done, total: steps.append(done)
    )
    whole = finetune(config(base, tmp_path / "whole", recipe="randomized-yarn"))
    assert steps == [3, 4, 5, 6]  # the checkpoint of step 2 is where it went on
    torch.testing.assert_close(logits_of(resumed), logits_of(whole), atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(base, tmp_path):
    words = "train --recipe randomized-yarn --subsets qa1 --samples 12 --longest 240 --epochs 1 --accumulation 1"
    words = [*words.split(), "--lora-rank", 2, "--no-instruction", "--no-examples", "--base", base]
    alone = finetune_by_command(words, "--out", tmp_path / "one", "--batch-size", 4)
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "evalkit"]
    both = finetune_by_command(words, "--out", tmp_path / "two", "--batch-size", 2, launcher=launcher)
    # Each device takes the mean over its own answer tokens, so answers of unequal length weigh a little differently.
    apart, learned = logits_of(both) - logits_of(alone), logits_of(alone) - logits_of(base)
    assert apart.abs().max() < 0.05 * learned.abs().max(), (apart.abs().max(), learned.abs().max())


def finetune_by_command(words, *more, launcher=("evalkit",)):
    subprocess.run([sys.executable, "-m", *launcher, *map(str, words), *map(str, more)], check=True, timeout=240)
    return Path(more[1])


def test_a_finished_arm_is_not_trained_again_and_another_one_not_over_it(base, tmp_path):
    out = finetune(config(base, tmp_path / "arm", recipe="plain", epochs=1))
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert finetune(config(base, tmp_path / "arm", recipe="plain", epochs=1)) == out
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(BadInput, match="holds another training: its recipe is 'plain', not 'rpe'"):
        finetune(config(base, tmp_path / "arm", recipe="rpe", epochs=1))


def test_a_folder_of_another_training_is_refused_before_base_and_data_are_opened(base, tmp_path):
    asked = config(base, tmp_path / "arm", recipe="plain", epochs=1)
    finetune(asked)
    words = ["train", "--base", "no/such", "--out", tmp_path / "arm"]
    assert "its recipe is 'plain', not 'rpe'" in refused_at_once([*words, "--recipe", "rpe"])
    same = ["--recipe", "plain", "--longest", 240, "--samples", 9, "--subsets", "qa1", "--epochs", 1]
    assert "its data.samples is 8, not 9" in refused_at_once([*words, *same])


def test_a_base_that_lacks_a_tensor_is_refused_instead_of_trained_from_random_numbers(base, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    weights = load_file(broken / "model.safetensors")
    lost = next(name for name in weights if "q_proj" in name)
    save_file({k: v for k, v in weights.items() if k != lost}, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=f"lack 1 tensors of the model, such as {lost}"):
        finetune(config(broken, tmp_path / "arm", recipe="plain"))
    assert not (tmp_path / "arm").exists()


@pytest.mark.parametrize("merge", [True, False])
def test_lora_leaves_a_merged_checkpoint_or_an_adapter_beside_its_base(base, tmp_path, merge):
    out = finetune(
        config(base, tmp_path / "arm", recipe="yarn", lora_rank=4, lora_targets=("q_proj", "v_proj"), merge=merge)
    )
    assert (out / "adapter_config.json").exists() == (not merge)
    opened = Checkpoint.open(out) if merge else Checkpoint.open(base, adapter=out)
    assert opened.trained_rope.rule == "yarn"
    if merge:
        assert (logits_of(out) - logits_of(base)).abs().max() > 0


def test_gradient_checkpointing_and_accumulation_do_not_change_the_result(base, tmp_path):
    one = finetune(config(base, tmp_path / "one", recipe="rpe", epochs=1, batch_size=4, accumulation=1))
    other = finetune(config(base, tmp_path / "other", recipe="rpe", epochs=1, batch_size=4, accumulation=1,
                            gradient_checkpointing=True))  # fmt: skip
    torch.testing.assert_close(logits_of(one), logits_of(other), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_trained_is_refused_in_one_sentence(base, tmp_path):
    def refused(says, where=base, **changes):
        with pytest.raises(BadInput, match=says):
            finetune(config(where, tmp_path / "refused", **changes))
        assert not (tmp_path / "refused").exists()

    refused("trained length of 512 tokens is beyond the 256 positions", data=DataRecipe(subsets=("qa1",), longest=512))
    refused("A rope factor is a number from 1 up", recipe="yarn", factor=0.5)
    refused("A stage of 0.5 x the range length", recipe="rpe", stages=(1.0, 0.5))
    refused("no recipe 'best'", recipe="best")
    refused("--batch-size is 0; it is positive", batch_size=0)
    refused(r"LoRA target 'w_q' matches no module .* q_proj", recipe="plain", lora_rank=2, lora_targets=("w_q",))
    asked = tmp_path / "asked.toml"
    asked.write_text(
        f'model = "{base}"\ntask = "babilong"\nsubsets = ["qa1"]\nlengths = "240"\nsamples = 3\n'
        f'seed = {DataRecipe().seed}\nbackend = "scripted"\n'
    )
    refused("Training and evaluation share stories: 3 of 3", recipe="plain", against=(asked,))
    other = tmp_path / "gpt2"
    shutil.copytree(base, other)
    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=32, n_layer=1, n_head=2, n_positions=256)).save_pretrained(other)
    refused("has no rotary positions", other, recipe="plain")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    with pytest.raises(BadInput, match="is not empty and holds no training"):
        finetune(config(base, tmp_path / "notes", recipe="plain"))


def test_a_base_that_loads_under_another_rule_than_is_trained_stops_before_the_first_step(base, tmp_path, monkeypatch):
    loaded_plain = lambda folder, mapping: served_module.config_for(folder, None)  # noqa: E731
    monkeypatch.setattr(finetune_module, "config_for", loaded_plain)
    with pytest.raises(EngineError, match=r"attention factor 1 where the rope rule says 1\.069"):
        finetune(config(base, tmp_path / "out", recipe="yarn", factor=2.0))
    assert not (tmp_path / "out" / "loss.csv").exists()


def test_a_stored_rule_is_trained_under_and_recorded_by_its_name(base, tmp_path):
    llama3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64, "rope_theta": 1e6}  # fmt: skip
    stored = variant(base, tmp_path / "llama3", rope_parameters=llama3)
    out = finetune(config(stored, tmp_path / "out", recipe="rpe", epochs=1))
    record = json.loads((out / "evalkit_training.json").read_text())
    assert record["rope"] == {"rule": "as stored", "type": "llama3", "original_length": 64, "parameters": llama3}
    assert record["base"]["rope"] == record["rope"]
    assert json.loads((out / "config.json").read_text())["rope_parameters"] == llama3
    yarn = finetune(config(stored, tmp_path / "yarn", recipe="yarn", factor=8, epochs=1))
    record = json.loads((yarn / "evalkit_training.json").read_text())
    assert (record["rope"]["rule"], record["rope"]["factor"], record["rope"]["original_length"]) == ("yarn", 8, 64)
    assert record["base"]["rope"]["type"] == "llama3"
    assert record["rope_warnings"] == ["The checkpoint's own rule llama3 is replaced by yarn, factor 8 over 64."]


def test_a_longrope_base_is_trained_on_one_side_of_its_original_length_only(base, tmp_path):
    stored = variant(base, tmp_path / "long", rope_parameters={
        "rope_type": "longrope", "rope_theta": 1e6, "short_factor": [1.0] * 16, "long_factor": [4.0] * 16,
        "original_max_position_embeddings": 250})  # fmt: skip
    with pytest.raises(BadInput, match=r"passes 250 positions .* this training reaches 480"):
        finetune(config(stored, tmp_path / "out", recipe="rpe"))
    assert finetune(config(stored, tmp_path / "out", recipe="plain", epochs=1)).is_dir()


def test_questions_of_a_run_are_held_out_of_a_training(base, tmp_path):
    ask = ("--task", "babilong", "--subsets", "qa1", "--lengths", "240", "--no-instruction", "--no-examples")
    asked = evalkit("run", "--model", base, *ask, "--samples", 3, "--seed", 5, "--backend", "scripted", "--out",
                    tmp_path / "asked")  # fmt: skip
    assert asked.exit_code == 0, asked.output
    train = ("train", "--base", base, "--out", tmp_path / "arm", "--recipe", "plain", "--subsets", "qa1",
             "--longest", 240, "--no-instruction", "--no-examples", "--data-seed", 5)  # fmt: skip
    refused = evalkit(*train, "--samples", 8, "--against", tmp_path / "asked")
    assert refused.exit_code == 2
    assert "3 of 3 evaluation items recur among 8 training items" in refused.output
    assert not (tmp_path / "arm").exists()


def record_of(folder):
    return json.loads((folder / "evalkit_training.json").read_text())


def test_what_auto_came_to_names_a_training_and_not_the_word(base, tmp_path):
    out = finetune(config(base, tmp_path / "arm", epochs=1))
    record = record_of(out)
    assert (record["optimization"]["precision"], record["optimization"]["device"]) == ("float32", "cpu")
    assert record["environments"][0]["processor"]["model"]
    before = (out / "model.safetensors").stat().st_mtime_ns
    finetune(config(base, out, epochs=1, precision="float32"))
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(BadInput, match=r"its optimization.precision is 'float32', not 'bfloat16'"):
        finetune(config(base, out, epochs=1, precision="bfloat16"))


def test_the_second_beta_of_adam_reaches_the_optimizer_and_names_the_training(base, tmp_path):
    weights = {}
    for beta in (0.95, 0.5):
        out = finetune(config(base, tmp_path / f"{beta}", recipe="plain", epochs=1, adam_beta2=beta))
        assert record_of(out)["optimization"]["adam_beta2"] == beta
        weights[beta] = (out / "model.safetensors").read_bytes()
    assert weights[0.95] != weights[0.5]
    with pytest.raises(BadInput, match=r"its optimization.adam_beta2 is 0.95, not 0.999"):
        finetune(config(base, tmp_path / "0.95", recipe="plain", epochs=1, adam_beta2=0.999))
    with pytest.raises(BadInput, match=r"--adam-beta2 is 1; it is 0 or more and below 1"):
        config(base, tmp_path / "none", adam_beta2=1)


def test_an_adapter_is_not_had_from_a_folder_of_merged_weights(base, tmp_path):
    lora = {"epochs": 1, "lora_rank": 2, "lora_targets": ("q_proj",)}
    out = finetune(config(base, tmp_path / "arm", **lora))
    with pytest.raises(BadInput, match=r"holds another training: its lora.merged is True, not False"):
        finetune(config(base, out, **lora, merge=False))


def test_a_training_of_an_earlier_evalkit_is_not_taken_for_this_one(base, tmp_path):
    out = finetune(config(base, tmp_path / "arm", epochs=1))
    (out / "evalkit_training.json").write_text(json.dumps(record_of(out) | {"schema": 1}))
    with pytest.raises(BadInput, match="trained by an earlier evalkit"):
        finetune(config(base, out, epochs=1))


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_bfloat16_base_is_trained_in_float32_and_saved_in_bfloat16(base, tmp_path, lora_rank):
    half = tmp_path / "half"
    shutil.copytree(base, half)
    weights = load_file(half / "model.safetensors")
    kept = next(name for name in weights if "norm" in name)
    stored = {name: tensor if name == kept else tensor.bfloat16() for name, tensor in weights.items()}
    save_file(stored, half / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps(values | {"dtype": "bfloat16"}))
    out = finetune(
        config(half, tmp_path / "arm", epochs=1, precision="float32", lora_rank=lora_rank, lora_targets=("q_proj",))
    )
    trained = load_file(out / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in trained.items()} == {n: t.dtype for n, t in stored.items()}
    assert any(not torch.equal(trained[name], stored[name]) for name in stored)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "setting",
    [{"final_rate": 0.0}, {"warmup": 0.9}, {"max_gradient_norm": 1e-9}, {"lora_dropout": 0.5}, {"range_length": 500}],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_reaches_the_weights_and_the_record(base, tmp_path, setting):
    shared = {"recipe": "rpe", "lora_rank": 2, "lora_targets": ("q_proj", "v_proj")}
    usual, other = (
        finetune(config(base, tmp_path / name, **shared, **more)) for name, more in (("usual", {}), ("other", setting))
    )
    weights = [load_file(folder / "model.safetensors") for folder in (usual, other)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert record_of(usual)["data"] == record_of(other)["data"]
    assert record_of(usual) != record_of(other)


def test_the_rate_falls_to_the_share_that_is_asked_for(base, tmp_path):
    def rates(folder):
        return [float(line.split(",")[2]) for line in (folder / "loss.csv").read_text().splitlines()[1:]]

    plain = rates(finetune(config(base, tmp_path / "plain", warmup=0.0, final_rate=0.0)))
    tenth = rates(finetune(config(base, tmp_path / "tenth", warmup=0.0)))
    cosine = [0.5 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    assert plain == pytest.approx([1e-3 * share for share in cosine], rel=1e-4)
    assert tenth == pytest.approx([1e-3 * (0.1 + 0.9 * share) for share in cosine], rel=1e-4)


def test_a_warm_up_of_one_step_is_not_spent_at_rate_0(base, tmp_path):
    out = finetune(config(base, tmp_path / "arm", epochs=0.5, warmup=1.0))
    assert record_of(out)["steps"] == 1
    assert (logits_of(out) - logits_of(base)).abs().max() > 0


def test_the_loss_of_a_single_step_can_be_seen(tmp_path):
    from matplotlib.image import imread

    write_loss_curve([{"step": 1, "loss": 2.5, "learning_rate": 1e-3}], tmp_path)
    red, _, blue, _ = np.moveaxis(imread(tmp_path / "loss.png"), -1, 0)
    assert (blue - red > 0.4).sum() > 20  # of matplotlib's first colour


def test_stages_are_epochs_where_there_are_as_many_even_if_steps_do_not_divide_them(base, tmp_path, monkeypatch):
    """Nine samples in steps of four: two epochs are 4.5 steps."""
    reached = []
    draw = trainer_module.draw_positions

    def note(rule, num_tokens, **how):
        positions = draw(rule, num_tokens, **how)
        reached.append(positions[-1])
        return positions

    monkeypatch.setattr(trainer_module, "draw_positions", note)
    data = DataRecipe(subsets=("qa1",), samples=9, longest=240)
    finetune(config(base, tmp_path / "arm", recipe="rpe", epochs=2, data=data, stages=(1.0, 50.0), range_length=200))
    assert max(reached[:9]) < 240 < 1000 < min(reached[9:])


def test_samples_that_fit_no_length_are_counted_said_and_recorded(base, tmp_path):
    said = []
    data = DataRecipe(subsets=("qa2",), samples=12, longest=240)
    out = finetune(config(base, tmp_path / "arm", epochs=1, data=data), on_notice=said.append)
    record = record_of(out)["data"]
    trained, left_out = record["examples"], record["unfitting"]
    assert trained + left_out == record["samples"] == 12
    assert 0 < trained < 12
    assert said == [
        f"{left_out} of 12 samples need more than 240 tokens with question and answer and are left out; {trained} are "
        "trained on."
    ]
    assert record["leakage"]["trained"] == trained
    assert record["leakage"]["found"].startswith(f"No evaluation was named to compare {trained} training item")


def test_who_trains_on_rows_that_cannot_be_compared_with_the_evaluation_is_told_and_it_is_recorded(base, tmp_path):
    (tmp_path / "rows" / "qa15").mkdir(parents=True)
    row = {
        "input": "It rained. Wolves are afraid of mice.",
        "question": "What are wolves afraid of?",
        "target": "mouse",
    }
    (tmp_path / "rows" / "qa15" / "1k.json").write_text(json.dumps([row, row]))
    asked = tmp_path / "asked.toml"
    asked.write_text('model = "m"\ntask = "babilong"\nsubsets = ["qa15"]\nlengths = "1k"\nsamples = 3\n')
    prepared = prepare(
        config(
            base, tmp_path / "arm",
            data=DataRecipe(subsets=("qa15",), samples=2, longest=240, rows=("1k",)),
            options=BABILongOptions(source=str(tmp_path / "rows"), instruction=False, examples=False),
            against=(asked,),
        )
    )  # fmt: skip
    said = "2 of 2 training items cannot be compared: what they state cannot be told from the text around it."
    assert said in prepared.notices
    assert prepared.plan().data.leakage.found == said


def test_the_end_of_a_training_names_steps_tokens_and_loss(base, tmp_path):
    ended = evalkit("train", "--base", base, "--out", tmp_path / "arm", "--recipe", "plain", "--subsets", "qa1",
                    "--longest", 240, "--no-instruction", "--no-examples", "--samples", 8, "--epochs", 1,
                    "--accumulation", 4)  # fmt: skip
    record = record_of(tmp_path / "arm")
    assert ended.exit_code == 0
    assert record["steps"] == 2
    assert 8 * 100 < record["tokens"] <= 8 * 240
    assert f"plain, 2 steps over {record['tokens']:,} tokens, loss {record['final_loss']:.4g}" in ended.output


def test_a_task_that_there_is_not_is_never_trained_on_another(base, tmp_path):
    refused = evalkit("train", "--base", base, "--out", tmp_path / "arm", "--recipe", "plain", "--task", "babylong")
    assert refused.exit_code == 2
    assert "There is no task 'babylong'; the tasks are babilong, mrcr." in refused.output
    assert not (tmp_path / "arm").exists()


def test_rows_of_mrcr_are_held_out_of_a_training_without_tiktoken(tmp_path, monkeypatch):
    """A run that counted its rows in the checkpoint's tokens can be named to --against; --split makes two parts."""
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    write_checkpoint(tmp_path / "base", window=16_384, vocab_size=600, num_layers=1)
    write_parquet(
        tmp_path / "rows" / "2needle.parquet",
        [
            row(1500, random_string_to_prepend=f"{number}", answer=f"{number}☕ poem 2 about tea")
            for number in range(10)
        ],
    )
    shared = ("--task", "mrcr", "--subsets", "2needle", "--source", tmp_path / "rows")
    for name, part in (("all", ()), ("part", ("--split", "70/30:42"))):
        ran = evalkit("run", "--model", tmp_path / "base", *shared, *part, "--lengths", "8k", "--samples", 10,
                      "--backend", "scripted", "--out", tmp_path / name)  # fmt: skip
        assert ran.exit_code == 0, ran.output
    train = ("train", "--base", tmp_path / "base", "--recipe", "plain", *shared, "--longest", "8k", "--samples", 2,
             "--epochs", 0.5, "--accumulation", 1)  # fmt: skip
    refused = evalkit(*train, "--against", tmp_path / "all", "--out", tmp_path / "arm")
    assert "2 of 10 evaluation items recur among 2 training items" in refused.output
    apart = evalkit(*train, "--against", tmp_path / "part", "--split", "70/30:42", "--out", tmp_path / "arm")
    assert apart.exit_code == 0, apart.output
    assert record_of(tmp_path / "arm")["data"]["leakage"]["found"] == (
        "0 of 3 evaluation items recur among 2 training items."
    )
