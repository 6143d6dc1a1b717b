"""The base of the tiny study: read word by word, trained whole or not at all, the same on every processor."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from evalkit.benchmarks import open_benchmark
from evalkit.benchmarks.babilong.haystack import MIN_SENTENCE_TOKENS, split_sentences
from evalkit.benchmarks.babilong.worlds import HOUSE, HOUSE_PEOPLE, OBJECTS
from evalkit.errors import BadInput
from evalkit.machine import processor
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.study.study import PORTABLE_KERNELS
from evalkit.train.tiny import BASES, BaseStage, copy_examples, task_options, train_base, write_noise, write_untrained

SHORT = replace(BASES["tiny"], stages=(BaseStage(steps=2, shortest=64, longest=128, decay=False, batch_size=4),))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Background text and an untrained base."""
    folder = tmp_path_factory.mktemp("tiny")
    write_noise(folder / "noise.txt", seed=1, num_sentences=500)
    write_untrained(folder / "untrained", BASES["tiny"], seed=0)
    return folder


@pytest.fixture(scope="module")
def base(world):
    return train_base(world / "base", SHORT, noise=world / "noise.txt", seed=0)


def test_every_prompt_is_read_word_by_word_at_every_length(world):
    encoder = Encoder.open(world / "untrained")
    benchmark = open_benchmark("babilong", task_options(world / "noise.txt"), seed=0)
    for length in ("64", "128", "4k"):
        for sample in benchmark.samples("qa1", length, 60):
            ids = benchmark.prompt(sample, length, encoder, 4096).token_ids
            assert encoder.tokenizer.unk_token_id not in ids
            text = encoder.decode(ids)
            assert text.endswith(f": where is {sample.question.split()[-1][:-1].lower()} ?")
            assert all(re.sub(r"\W", " ", fact.lower()).split()[-1] in text for fact in sample.facts)
    assert encoder.decode(encoder.encode_after(" kitchen", before="?")) == "kitchen"


def test_the_background_repeats_no_sentence_and_names_nothing_of_the_task(world):
    sentences = split_sentences((world / "noise.txt").read_text().strip())
    assert len(set(sentences)) == len(sentences) == 500
    words = {word for sentence in sentences for word in re.findall(r"\w+", sentence.lower())}
    assert not words & {word.lower() for word in (*HOUSE, *HOUSE_PEOPLE, *OBJECTS)}
    encoder = Encoder.open(world / "untrained")
    assert min(len(encoder.encode_after(f" {sentence}")) for sentence in sentences) >= MIN_SENTENCE_TOKENS


def test_a_base_has_biases_that_look_back_and_the_size_that_the_readme_gives(world):
    checkpoint = Checkpoint.open(world / "untrained")
    assert 190_000 < checkpoint.num_parameters < 210_000
    assert (checkpoint.window, checkpoint.head_dim, checkpoint.rope.scaling.rule) == (128, 32, "none")
    from transformers import AutoModelForCausalLM

    attention = AutoModelForCausalLM.from_pretrained(world / "untrained").model.layers[0].self_attn
    angle = 1e4 ** (-torch.arange(16) / 16)

    def score(head, distance):  # query at ``distance`` behind the key, biases alone
        q, k = (p.bias.detach()[head * 32 : head * 32 + 32].view(2, 16) for p in (attention.q_proj, attention.k_proj))
        turned = torch.polar(torch.ones(16), angle * distance) * torch.complex(*q)
        return float((turned * torch.complex(*k).conj()).real.sum())

    for head, back in enumerate((1, 2, 3)):
        assert max(range(30), key=lambda distance, head=head: score(head, distance)) == back


def test_copies_are_predictable_from_the_second_round_on():
    import numpy as np

    for example in copy_examples(20, shortest=48, longest=64, rng=np.random.default_rng(0)):
        ids = [*example.prompt_ids.tolist(), *example.answer_ids.tolist()]
        period = len(example.prompt_ids) - 1
        assert ids[1 + period :] == ids[1 : len(ids) - period]
        assert len(set(ids[1 : 1 + period])) == period


def test_a_base_is_written_whole_or_not_at_all(world, base):
    record = json.loads((base / "evalkit_training.json").read_text())
    assert (record["trained_length"], record["seed"], record["rope"]["rule"]) == (128, 0, "none")
    before = (base / "model.safetensors").read_bytes()

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_base(world / "other", SHORT, noise=world / "noise.txt", seed=0, on_step=interrupt)
    assert not (world / "other").exists()
    again = train_base(world / "other", SHORT, noise=world / "noise.txt", seed=0)
    assert (again / "model.safetensors").read_bytes() == before
    assert not (world / "other.part").exists()


def test_a_finished_base_is_kept_and_one_of_another_seed_or_training_is_refused(world, base):
    before = (base / "model.safetensors").stat().st_mtime_ns
    assert train_base(base, SHORT, noise=world / "noise.txt", seed=0) == base
    assert (base / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(BadInput, match="another seed or other stages"):
        train_base(base, SHORT, noise=world / "noise.txt", seed=1)
    with pytest.raises(BadInput, match="another seed or other stages"):
        train_base(base, BASES["tiny"], noise=world / "noise.txt", seed=0)
    with pytest.raises(BadInput, match="no training record"):
        train_base(world / "untrained", SHORT, noise=world / "noise.txt", seed=0)


def test_the_record_of_a_base_names_the_processor_and_its_kernels(base):
    record = json.loads((base / "evalkit_training.json").read_text())
    (trained_on,) = record["environments"]
    assert trained_on["processor"] == processor()
    assert trained_on["kernels"] == torch.backends.cpu.get_cpu_capability()
    assert trained_on["versions"]["torch"] == torch.__version__


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in processor()["instructions"].split(), reason="the kernels need AVX2")
@pytest.mark.skipif(not torch.__version__.startswith("2.13.0"), reason="other releases of torch sum in other orders")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_seed_names_the_weights_of_a_base_on_every_processor_with_avx2(threads, tmp_path):
    code = f"""
import hashlib
from dataclasses import replace
from pathlib import Path
import torch
from safetensors.torch import load_file
from evalkit.train.tiny import BASES, train_base, write_noise
torch.set_num_threads({threads})
folder, tiny = Path({str(tmp_path)!r}), BASES["tiny"]
write_noise(folder / "noise.txt", seed=0)
first, second = tiny.stages
short = replace(tiny, stages=(replace(first, steps=60), replace(second, steps=40)))
train_base(folder / "base", short, noise=folder / "noise.txt", seed=0)
digest = hashlib.sha256()
for name, tensor in sorted(load_file(folder / "base" / "model.safetensors").items()):
    digest.update(name.encode() + tensor.numpy().tobytes())
print(digest.hexdigest())
"""
    environment = os.environ | PORTABLE_KERNELS | {"OMP_WAIT_POLICY": "passive"}  # threads may outnumber the cores
    trained = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert trained.stdout.strip() == "ddb701cc54dd81062f16976c83c611e45076b4d13fed7f6a7ed4cbab2ce06ec8"
