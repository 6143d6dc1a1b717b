"""What randomized positions cost per training step, measured on the tiny base's shape: python bench/train_step.py

Times two parts on their own, because the difference of two whole steps drowns in noise: making a batch (with positions
drawn in each way), and the whole optimizer step. The overhead is the difference of the first over the second, in
processor time of one thread, which other programs on the machine do not lengthen.
"""

import argparse
import time
from statistics import median

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evalkit.train.data import Example
from evalkit.train.positions import POSITION_KINDS, PositionRule
from evalkit.train.trainer import Collator, Stream, answer_loss


def seconds(action, repeats):
    times = []
    for number in range(repeats):
        started = time.process_time()
        action(number)
        times.append(time.process_time() - started)
    return median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=128, help="tokens of a sample")
    parser.add_argument("--batch", type=int, default=16, help="samples of a batch")
    parser.add_argument("--ratio", type=float, default=16, help="range in multiples of the length")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 146, size=(options.batch * options.steps, options.length)).astype(np.int32)
    stream = Stream([Example(row[:-2], row[-2:]) for row in ids], num_items=len(ids), seed=0)
    batches = {}
    for kind in POSITION_KINDS:
        rule = PositionRule(kind=kind, stages=(options.ratio,), mixed=kind != "contiguous")
        collator = Collator(rule, range_length=options.length, num_items=len(stream), seed=0, pad_id=0)
        batches[kind] = lambda number, collator=collator: collator(
            [stream[number * options.batch + row] for row in range(options.batch)]
        )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=146,
            hidden_size=options.hidden,
            intermediate_size=2 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // 32,
            tie_word_embeddings=True,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters())

    def step(number):
        optimizer.zero_grad()
        answer_loss(model, batches["contiguous"](number), lm_weight=0.1).backward()
        optimizer.step()

    step(0)
    whole = seconds(step, options.steps)
    made = {kind: seconds(make, options.steps) for kind, make in batches.items()}
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters:,} parameters, {options.batch} x {options.length} tokens, one core: {whole * 1e3:.1f} ms a step"
    )
    for kind, duration in made.items():
        overhead = (duration - made["contiguous"]) / whole
        print(f"{kind:>11}: batch made in {duration * 1e3:.3f} ms, overhead {overhead:+.2%} of a step")


if __name__ == "__main__":
    main()
