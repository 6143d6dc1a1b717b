"""The transformers backend answers as ``generate`` does, whatever shares a batch, under whatever rope rule."""

import json
import math
import shutil
import weakref
from collections import Counter
from itertools import chain, count, islice
from pathlib import Path
from threading import Event, Timer

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis.strategies import integers, lists

from evalkit.cli.commands import main
from evalkit.errors import BadInput, EngineError
from evalkit.models.backends.batches import batches, one_ahead
from evalkit.models.rope.served import RopeRequest, served_rope
from evalkit.types import Prompt, Sample
from tests.backends import hf
from tests.variants import family


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


def test_the_next_batch_is_built_while_one_is_answered(backend):
    built = Event()

    def coming():
        yield from random_prompts([600])
        yield from random_prompts([550])
        built.set()
        yield from random_prompts([520])

    answers = backend.generate(coming())
    next(answers)
    assert built.wait(60)
    assert [len(p.token_ids) for p, _ in answers] == [550, 520]


def test_an_error_while_a_batch_is_built_ahead_comes_behind_the_answers_before_it(backend):
    def coming():
        yield from random_prompts([600])
        yield from random_prompts([550])
        raise BadInput("no more")

    answers = backend.generate(coming())
    assert len(next(answers)[0].token_ids) == 600
    with pytest.raises(BadInput, match="no more"):
        next(answers)


@settings(deadline=None)
@given(lists(integers()), integers(1, 5))
def test_what_is_made_ahead_is_all_of_it_in_order(items, size):
    def batched(items):
        while batch := list(islice(items, size)):
            yield batch

    assert list(chain(*one_ahead(items, batched))) == items


def test_who_stops_does_not_wait_for_a_whole_batch_to_be_built():
    made, may_go_on = [], Event()

    def coming():
        for number in count():
            made.append(number)
            if number > 1:
                assert may_go_on.wait(60)
            yield number

    batches_of_a_million = lambda items: ([first, *islice(items, number * 10**6)] for number, first in enumerate(items))  # noqa: E731
    answers = one_ahead(coming(), batches_of_a_million)
    assert next(answers) == [0]
    Timer(0.1, may_go_on.set).start()
    answers.close()
    assert len(made) < 10


def test_batches_respect_the_padded_size_and_keep_the_order():
    prompts = random_prompts([100, 90, 10, 10, 500])
    in_batches = list(batches(prompts, batch_tokens=200))
    assert [[len(p.token_ids) for p in batch] for batch in in_batches] == [[100, 90], [10, 10], [500]]


def test_on_a_cpu_a_long_prompt_with_a_short_answer_shares_no_batch(backend):
    long = random_prompts([600, 600])
    talkative = [prompt(p.token_ids, name=p.sample.sample_id, max_new_tokens=100) for p in long]
    sizes = lambda prompts: [len(b) for b in batches(prompts, 8_192, alone=backend._goes_alone)]  # noqa: E731
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


def memory_for(model, monkeypatch, num_tokens, kind, words):
    """Let a model raise an error for batches of more tokens; return those tokens' tensors, and batch sizes tried."""
    forward, tensors, sizes = model.forward, [], []

    def limited(**inputs):
        ids = inputs["input_ids"]
        assert not any(tensor() is not None for tensor in tensors), "the failed batch is still in memory"
        sizes.append(len(ids))
        if ids.numel() > num_tokens:
            tensors.extend(map(weakref.ref, (ids, inputs["attention_mask"])))
            raise kind(words)
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", limited)
    return tensors, sizes


@pytest.mark.parametrize(
    "error",
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 20.00 GiB."),
        (RuntimeError, "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
    ids=["gpu", "cpu"],
)
def test_a_batch_that_does_not_fit_is_freed_and_answered_in_halves(backend, monkeypatch, error):
    prompts = random_prompts([40, 38, 36, 34, 32, 30, 28])
    expected = {p.key: c.token_ids for p, c in backend.generate(prompts)}
    tensors, sizes = memory_for(backend.model, monkeypatch, 80, *error)
    answers = list(backend.generate(prompts))
    assert Counter(p.key for p, _ in answers) == Counter(p.key for p in prompts), "each once, none lost"
    assert {p.key: c.token_ids for p, c in answers} == expected
    assert tensors, "batches did fail"
    assert max(size for size in sizes if size * 28 <= 80) == 2


def test_a_prompt_that_does_not_fit_alone_is_an_error_worth_another_try(backend, monkeypatch):
    memory_for(backend.model, monkeypatch, 50, torch.OutOfMemoryError, "CUDA out of memory.")
    answers = {p.sample.sample_id: c for p, c in backend.generate(random_prompts([60, 20, 20]))}
    assert (
        answers["0"].error == "engine: out of memory at 60 prompt tokens; use --dtype bfloat16, --prefill-chunk or vllm"
    )
    assert answers["0"].retryable
    assert answers["1"].error is answers["2"].error is None


@pytest.mark.parametrize("chunk", [1, 16, 59])
def test_a_prompt_read_in_chunks_gets_the_answer_of_the_whole_in_less_memory(backend, monkeypatch, chunk):
    prompts = random_prompts([60, 9, 41, 7])
    monkeypatch.setattr(backend, "logprobs", True)
    expected = {p.key: next(backend.generate([p]))[1] for p in prompts}
    monkeypatch.setattr(backend, "_chunk", chunk)
    memory_for(backend.model, monkeypatch, max(chunk, 20), torch.OutOfMemoryError, "too much")
    answers = {p.key: c for p, c in backend.generate(prompts)}
    assert answers.keys() == expected.keys()
    for key, answer in answers.items():
        assert answer.error is None
        assert answer.token_ids == expected[key].token_ids
        assert answer.num_cached_tokens == 0
        np.testing.assert_allclose(answer.logprobs, expected[key].logprobs, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 600])
def test_chunks_change_no_answer_of_a_run_and_stand_in_its_record(checkpoint, tmp_path, chunk):
    for name, more in (("whole", ()), ("chunks", ("--prefill-chunk", chunk))):
        asked = ("--answer-logprob", "--questions-per-context", 2)
        shown = evalkit_run(checkpoint, tmp_path / name, *asked, *more)
        assert shown.exit_code == 0, shown.output
    whole, chunks = (
        [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in ("whole", "chunks")
    )
    for one, other in zip(whole, chunks, strict=True):
        assert one["output"] == other["output"]
        assert one["answer_logprob"]["target"] == pytest.approx(other["answer_logprob"]["target"], abs=1e-3)
        assert one["answer_logprob"]["wrong"] == pytest.approx(other["answer_logprob"]["wrong"], abs=1e-3)
    assert len(whole) == 2
    run = json.loads((tmp_path / "chunks" / "run.json").read_text())
    assert run["fingerprint"]["parts"]["engine.prefill_chunk"] == chunk


def test_a_model_that_keeps_a_window_of_keys_is_not_read_in_chunks(checkpoint, tmp_path):
    from transformers import MistralConfig

    small = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = MistralConfig(
        **small, num_key_value_heads=2, vocab_size=4096, sliding_window=256, max_position_embeddings=2048
    )
    windowed = family(checkpoint, tmp_path / "windowed", config)
    shown = evalkit_run(windowed, tmp_path / "r", "--prefill-chunk", 512)
    assert shown.exit_code == 2
    assert f"--prefill-chunk 512: {windowed} must read a prompt whole" in " ".join(shown.output.split())
    assert not (tmp_path / "r").exists()


def test_a_chunk_of_nothing_is_refused(checkpoint, tmp_path):
    shown = evalkit_run(checkpoint, tmp_path / "r", "--prefill-chunk", 0)
    assert shown.exit_code == 2
    assert "--prefill-chunk is 0; a chunk has at least 1 token." in shown.output


def test_what_ran_out_in_the_middle_of_the_answers_is_not_answered_twice(backend, monkeypatch):
    forward, calls = backend.model.forward, []

    def once(**inputs):
        calls.append(inputs["input_ids"].shape)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(**inputs)

    monkeypatch.setattr(backend.model, "forward", once)
    first, *rest = random_prompts([30, 30, 30])
    answers = list(backend.generate([prompt(first.token_ids, name="0", max_new_tokens=2), *rest]))
    assert sorted(p.sample.sample_id for p, _ in answers) == ["0", "1", "2"]
    assert all(c.error is None for _, c in answers)


def test_any_other_error_of_the_model_is_not_taken_for_a_lack_of_memory(backend, monkeypatch):
    memory_for(backend.model, monkeypatch, 0, RuntimeError, "mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(backend.generate(random_prompts([20])))


def broken(checkpoint: Path, folder: Path, value: float) -> Path:
    """A copy of the checkpoint whose weights are all one value."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, folder)
    tensors = {name: np.full_like(t, value) for name, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def evalkit_run(model: Path, out: Path, *more: object, task: str = "babilong"):
    words = ["run", "--model", model, "--task", task, "--subsets", "qa1", "--lengths", "1k", "--samples", 2]
    return CliRunner().invoke(main, [str(a) for a in (*words, "--backend", "hf", "--out", out, *more)])


def recorded(out: Path) -> int:
    return len((out / "predictions.jsonl").read_text().splitlines())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_end_the_run_and_leave_no_answer(checkpoint, tmp_path, value):
    shown = evalkit_run(broken(checkpoint, tmp_path / "nan", value), tmp_path / "r")
    assert shown.exit_code == 2, shown.output
    assert "gives no finite logits in float32" in " ".join(shown.output.split())
    assert not (tmp_path / "r").exists()


def test_numbers_that_overflow_for_one_prompt_only_are_seen_too(backend, monkeypatch):
    forward = backend.model.forward

    def overflowing(**inputs):
        step = forward(**inputs)
        if inputs["input_ids"].shape[1] == 1:  # the second token of the answers, in the second row
            step.logits[1, -1, 7] = math.nan
        return step

    monkeypatch.setattr(backend.model, "forward", overflowing)
    with pytest.raises(EngineError, match=r"no finite logits in float32 \(asked with 31 tokens\)"):
        list(backend.generate(random_prompts([40, 31, 20])))


def save_adapter(base: Path, folder: Path, *, a: float) -> Path:
    """Save a LoRA adapter whose matrices A are the given value, and B random."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            torch.nn.init.constant_(parameter, a)
    model.save_pretrained(folder)
    return folder


def test_an_adapter_that_changes_nothing_ends_the_run_before_its_first_answer(checkpoint, tmp_path):
    shown = evalkit_run(checkpoint, tmp_path / "r", "--adapter", save_adapter(checkpoint, tmp_path / "a", a=0.0))
    assert shown.exit_code == 2, shown.output
    assert "changes nothing: with and without it the model gives the same log-probabilities in float32" in " ".join(
        shown.output.split()
    )
    assert not (tmp_path / "r").exists()
    assert (
        evalkit_run(checkpoint, tmp_path / "s", "--adapter", save_adapter(checkpoint, tmp_path / "b", a=0.1)).exit_code
        == 0
    )


def test_an_adapter_of_no_numbers_ends_the_run_as_such(checkpoint, tmp_path):
    adapter = save_adapter(checkpoint, tmp_path / "a", a=math.nan)
    with pytest.raises(EngineError, match="its weights or its adapter hold NaN"):
        list(hf(checkpoint, adapter=adapter).generate(random_prompts([20])))


# What changes answers tells run folders apart.


def continued(checkpoint: Path, out: Path, *more: object) -> tuple[int, str]:
    """Ask for one sample more than a folder has."""
    shown = evalkit_run(checkpoint, out, "--samples", 3, *more)
    return shown.exit_code, " ".join(shown.output.split())


@pytest.fixture
def answered(checkpoint, tmp_path):
    """A copy of the checkpoint, and a folder of its answers."""
    shutil.copytree(checkpoint, tmp_path / "model")
    shown = evalkit_run(tmp_path / "model", tmp_path / "r")
    assert shown.exit_code == 0, shown.output
    return tmp_path / "model", tmp_path / "r"


def test_the_same_engine_continues_a_folder(answered):
    assert continued(*answered)[0] == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--dtype", "bfloat16"), 'engine.dtype is "float32" there and "bfloat16" now'),
        (("--attention-backend", "eager"), 'engine.attention is "sdpa" there and "eager" now'),
        (("--prefill-chunk", 512), "engine.prefill_chunk"),
    ],
)
def test_other_arithmetic_does_not_continue_a_folder(answered, option, said):
    code, shown = continued(*answered, *option)
    assert code == 2
    assert said in shown
    assert recorded(answered[1]) == 2


def test_another_version_of_the_engine_does_not_continue_a_folder(answered, monkeypatch):
    monkeypatch.setattr("evalkit.models.backends.hf.versions", lambda names: dict.fromkeys(names, "9.9"))
    code, shown = continued(*answered)
    assert code == 2
    assert 'engine.versions is {"torch":' in shown
    assert 'and {"torch": "9.9", "transformers": "9.9"} now' in shown


def test_another_end_of_the_answer_does_not_continue_a_folder(answered):
    model, out = answered
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [77]}))
    code, shown = continued(model, out)
    assert code == 2
    assert "engine.stop_ids is" in shown
    assert ", 77] now" in shown
    assert recorded(out) == 2


def test_a_gpu_does_not_continue_what_a_cpu_began(answered, monkeypatch):
    """Without a GPU: only what the backend says of its device is changed."""
    from evalkit.models.backends.hf import HFBackend

    identity = HFBackend.identity
    monkeypatch.setattr(HFBackend, "identity", lambda self: identity(self) | {"device": "cuda"})
    code, shown = continued(*answered)
    assert code == 2
    assert 'engine.device is "cpu" there and "cuda" now' in shown


def test_on_a_gpu_the_dtype_of_the_config_decides_and_is_found_after_loading(checkpoint, tmp_path):
    """``dtype auto`` there, tried on a CPU."""
    from evalkit.models.backends.hf import HFBackend, HFOptions
    from evalkit.models.checkpoint import Checkpoint
    from evalkit.models.encoder import Encoder

    shutil.copytree(checkpoint, tmp_path / "m")
    found = []
    for dtype in ("float32", "bfloat16"):
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
        opened = Checkpoint.open(tmp_path / "m")
        backend = HFBackend(opened, Encoder.open(opened.path).tokenizer, HFOptions(device="cpu"))
        backend._dtype = "auto"
        backend.serve(served_rope(opened, RopeRequest(), 256), (), 256)
        found.append(backend.identity()["dtype"])
    assert found == ["float32", "bfloat16"]


def test_attention_that_transformers_does_not_have_is_refused_with_those_it_has(checkpoint, tmp_path):
    shown = evalkit_run(checkpoint, tmp_path / "r", "--attention-backend", "FLASHINFER")
    assert shown.exit_code == 2
    assert "--attention-backend FLASHINFER: transformers has eager, " in shown.output
    assert not (tmp_path / "r").exists()
