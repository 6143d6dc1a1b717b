"""The transformers backend answers as ``generate`` does, whatever shares a batch, under whatever rope rule."""

import json
import shutil

import numpy as np
import pytest
import torch

from evalkit.errors import EngineError
from evalkit.models.backends.hf import _batches
from evalkit.models.rope.served import RopeRequest, served_rope
from evalkit.types import Prompt, Sample
from tests.backends import hf


def prompt(token_ids, *, name="0", max_new_tokens=6):
    sample = Sample(task="babilong", subset="qa1", sample_id=name, story_id=name, question="?", target="garden")
    return Prompt(
        sample=sample, length="1k", token_ids=np.asarray(token_ids, dtype=np.int32), max_new_tokens=max_new_tokens
    )


def random_prompts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [prompt(rng.integers(300, 1000, n), name=str(i)) for i, n in enumerate(lengths)]


@pytest.fixture(scope="module")
def backend(checkpoint):
    torch.set_num_threads(1)
    return hf(checkpoint)


def test_answers_are_those_of_generate_for_prompts_of_mixed_length_in_one_batch(backend):
    prompts = random_prompts([40, 7, 23, 64])
    answers = {p.key: c.token_ids for p, c in backend.generate(prompts)}
    for one in prompts:
        ids = torch.from_numpy(one.token_ids.astype("int64"))[None]
        reference = backend.model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=list(backend.stops))
        expected = [i for i in reference[0, ids.shape[1] :].tolist() if i not in backend.stops]
        assert list(answers[one.key]) == expected


def test_each_row_stops_at_its_own_limit(backend):
    short, long = random_prompts([30, 30])
    short = prompt(short.token_ids, name="short", max_new_tokens=1)
    lengths = {p.sample.sample_id: len(c.token_ids) for p, c in backend.generate([short, long])}
    assert lengths["short"] <= 1
    assert lengths["1"] > 1


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(backend):
    one = random_prompts([30])[0]
    answer = next(c for _, c in backend.generate([one])).token_ids
    assert len(answer) == 6, "this test needs an answer that runs to its limit"
    stops, backend.stops = backend.stops, (answer[2],)
    try:
        stopped = next(c for _, c in backend.generate([one]))
    finally:
        backend.stops = stops
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == answer[: answer.index(answer[2])]


def test_finished_rows_are_yielded_before_the_batch_is(backend):
    first, second = random_prompts([30, 30])
    first = prompt(first.token_ids, name="first", max_new_tokens=1)
    answers = backend.generate([second, first])
    assert next(answers)[0].sample.sample_id == "first"


def test_batches_respect_the_padded_size_and_keep_the_order():
    prompts = random_prompts([100, 90, 10, 10, 500])
    batches = list(_batches(prompts, batch_tokens=200))
    assert [[len(p.token_ids) for p in batch] for batch in batches] == [[100, 90], [10, 10], [500]]


def test_on_a_cpu_a_long_prompt_with_a_short_answer_shares_no_batch(backend):
    long = random_prompts([600, 600])
    talkative = [prompt(p.token_ids, name=p.sample.sample_id, max_new_tokens=100) for p in long]
    sizes = lambda prompts: [len(b) for b in _batches(prompts, 8_192, alone=backend._goes_alone)]  # noqa: E731
    assert sizes(long) == [1, 1]
    assert sizes(talkative) == [2]
    assert sizes([*long, *random_prompts([500, 500])]) == [1, 1, 2]


def test_weights_that_lack_a_tensor_are_refused_instead_of_filled_with_random_numbers(checkpoint, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, tmp_path / "ckpt")
    tensors = load_file(tmp_path / "ckpt" / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "ckpt" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        EngineError, match=r"lack 1 tensors of the model, such as model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        hf(tmp_path / "ckpt")


def test_an_output_layer_that_is_the_embedding_is_no_lack(checkpoint, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, tmp_path / "ckpt")
    config = json.loads((tmp_path / "ckpt" / "config.json").read_text())
    (tmp_path / "ckpt" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tensors = load_file(tmp_path / "ckpt" / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "ckpt" / "model.safetensors", metadata={"format": "pt"})
    hf(tmp_path / "ckpt")


def test_changing_the_rope_rule_in_place_equals_loading_with_it(checkpoint, backend):
    yarn = RopeRequest(rule="yarn", factor=4.0)
    prompts = random_prompts([2500, 300])
    plain = [c.token_ids for _, c in backend.generate(prompts)]
    loaded = hf(checkpoint, yarn, 8192)
    switched = hf(checkpoint)
    switched.serve(served_rope(switched.checkpoint, yarn, 8192), (), 8192)
    expected = [c.token_ids for _, c in loaded.generate(prompts)]
    assert [c.token_ids for _, c in switched.generate(prompts)] == expected
    assert expected != plain
