"""One arm on the Trainer: the right loss at the drawn positions, resumable, and exported as it was trained."""

import numpy as np
import pytest
import torch

from evalkit.train.data import Example
from evalkit.train.positions import PositionRule
from evalkit.train.trainer import Collator, Stream, answer_loss


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


def collate(rule, examples, trained_length=64):
    stream = Stream(examples, num_items=len(examples), seed=0)
    collator = Collator(rule, trained_length=trained_length, num_items=len(stream), seed=0, pad_id=0)
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


def test_an_item_draws_the_same_positions_whenever_it_is_reached():
    rng = np.random.default_rng(0)
    stream = Stream([example(rng, 20, 1) for _ in range(10)], num_items=40, seed=0)
    collator = Collator(
        PositionRule(kind="randomized", stages=(1.0, 8.0)), trained_length=32, num_items=40, seed=0, pad_id=0
    )
    late = [stream[k] for k in range(36, 40)]
    once = collator(late)
    collator([stream[0]])
    assert torch.equal(once["position_ids"], collator(late)["position_ids"])
    assert collator([stream[0], stream[1]])["position_ids"].max() < 32 < once["position_ids"].max() < 256
