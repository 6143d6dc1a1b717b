"""How probable the right answer was, beside what was answered: each candidate scored behind the exact prompt."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from evalkit.benchmarks import open_benchmark, task
from evalkit.benchmarks.answers import candidates
from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.cli.commands import main
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import RopeRequest
from evalkit.records.folder import RunFolder
from evalkit.types import Prompt, Sample
from tests.backends import hf
from tests.test_hf import broken, random_prompts
from tests.test_thinking import OPEN


def evalkit(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def run(checkpoint: Path, out: Path, *more: object, lengths: str = "1k", subsets: str = "qa1"):
    words = (
        "run",
        "--model",
        checkpoint,
        "--task",
        "babilong",
        "--backend",
        "hf",
        "--out",
        out,
        "--samples",
        3,
        "--no-examples",
    )
    return evalkit(*words, "--lengths", lengths, "--subsets", subsets, *more)


def with_candidates(prompt: Prompt, *texts: list[int]) -> Prompt:
    from dataclasses import replace

    return replace(prompt, candidates={str(ids): np.asarray(ids, dtype=np.int32) for ids in texts})


def teacher_forced(backend, prompt: Prompt) -> list[float]:
    """One plain pass over prompt and candidate, nothing shared, nothing padded."""
    found = []
    for ids in prompt.candidates.values():
        whole = torch.from_numpy(np.concatenate([prompt.token_ids, ids]).astype("int64"))[None]
        with torch.inference_mode():
            logprobs = backend.model(input_ids=whole).logits[0, :-1].float().log_softmax(-1)
        found.append(float(logprobs.gather(-1, whole[0, 1:, None])[-len(ids) :].sum()))
    return found


@pytest.mark.parametrize("request_", [RopeRequest(), RopeRequest(rule="yarn", factor=4.0)], ids=["plain", "yarn"])
def test_each_candidate_has_the_sum_of_a_plain_pass_whatever_shares_its_batch(checkpoint, request_):
    backend = hf(checkpoint, request_, 2048)
    lists = [([5], [6, 7, 8], [9]), (), ([400, 401],), ([1, 2, 3, 4, 5, 6], [10, 11])]
    prompts = [with_candidates(p, *own) for p, own in zip(random_prompts([40, 7, 23, 64]), lists, strict=True)]
    found = {p.key: c for p, c in backend.generate(prompts)}
    for prompt in prompts:
        assert found[prompt.key].candidate_logprobs == pytest.approx(teacher_forced(backend, prompt), abs=1e-4)
    bare = {p.key: c.token_ids for p, c in backend.generate(random_prompts([40, 7, 23, 64]))}
    assert {key: c.token_ids for key, c in found.items()} == bare, "the answers are the same as without"


def test_the_labels_of_a_question_are_those_its_scorers_can_credit():
    def labels(subset, question, target):
        sample = Sample(
            task="babilong", subset=subset, sample_id="0", story_id="0", question=question, target=target
        )  # fmt: skip
        return task("babilong").labels(sample)

    assert set(labels("qa1", "Where is Mary?", "garden")) == {
        "bathroom", "bedroom", "garden", "hallway", "kitchen", "office",
    }  # fmt: skip
    assert "kitchen" not in labels("qa3", "Where was the milk before the kitchen?", "garden")
    assert labels("qa8", "What is Mary carrying?", "apple,milk") == (), "several objects are no label"


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("subset", ["qa1", "qa5"])
def test_candidates_are_the_target_and_the_wrong_labels_as_they_continue_the_prompt(checkpoint, subset, chat):
    encoder = Encoder.open(checkpoint, chat=chat)
    benchmark = open_benchmark("babilong", task("babilong").options(), seed=0)
    sample = next(iter(benchmark.samples(subset, "1k", 1)))
    prompt = benchmark.prompt(sample, "1k", encoder, 2048)
    found = candidates(prompt, encoder)
    assert next(iter(found)) == sample.target
    assert not {label.lower() for label in list(found)[1:]} & {sample.target.lower()}
    assert len(found) >= 4
    before = encoder.decode(prompt.token_ids)
    for text, ids in found.items():
        whole = before + ("" if chat else " ") + text
        assert encoder.decode([*prompt.token_ids, *ids]) == whole
        assert list(encoder.encode_prompt(whole)) == [*prompt.token_ids, *ids], "as the tokenizer splits the whole"


def test_of_mrcr_it_is_the_prefix_and_the_text_and_there_are_no_labels(checkpoint):
    encoder = Encoder.open(checkpoint)
    benchmark = open_benchmark("mrcr", task("mrcr").options(), seed=0)
    sample = next(iter(benchmark.samples("2needle", "4k", 1)))
    (found,) = candidates(benchmark.prompt(sample, "4k", encoder, 4096), encoder).items()
    assert found[0] == sample.target
    assert found[0].startswith(sample.metadata["prefix"])
    assert encoder.decode(found[1]) == sample.target


def test_an_answer_that_leaves_its_room_no_token_for_its_end_has_no_log_probability(checkpoint):
    from dataclasses import replace

    encoder = Encoder.open(checkpoint)
    benchmark = open_benchmark("babilong", task("babilong").options(), seed=0)
    prompt = benchmark.prompt(next(iter(benchmark.samples("qa1", "1k", 1))), "1k", encoder, 2048)
    longest = max(map(len, candidates(prompt, encoder).values()))
    assert candidates(replace(prompt, max_new_tokens=longest), encoder) == {}
    assert candidates(replace(prompt, max_new_tokens=longest + 1), encoder)


def test_a_run_records_them_beside_the_answers_which_stay_the_same(checkpoint, tmp_path):
    assert run(checkpoint, tmp_path / "without").exit_code == 0
    shown = run(checkpoint, tmp_path / "with", "--answer-logprob")
    assert shown.exit_code == 0, shown.output
    both = [list(RunFolder.open(tmp_path / name).predictions()) for name in ("without", "with")]
    assert [p.output for p in both[0]] == [p.output for p in both[1]]
    assert all(p.answer_logprob is None for p in both[0])
    backend = hf(checkpoint)
    encoder = Encoder.open(checkpoint)
    benchmark = open_benchmark("babilong", BABILongOptions(examples=False), seed=0)
    for sample, p in zip(benchmark.samples("qa1", "1k", 3), both[1], strict=True):
        prompt = benchmark.prompt(sample, "1k", encoder, 4096)
        prompt = with_candidates(prompt, *(ids.tolist() for ids in candidates(prompt, encoder).values()))
        target, *wrong = teacher_forced(backend, prompt)
        assert p.answer_logprob.target == pytest.approx(target, abs=1e-4)
        assert list(p.answer_logprob.wrong.values()) == pytest.approx(wrong, abs=1e-4)
        assert p.answer_logprob.margin == pytest.approx(target - max(wrong), abs=1e-4)
    identities = [RunFolder.open(tmp_path / name).fingerprint for name in ("without", "with")]
    assert identities[0] == identities[1], "it changes no answer"


def test_a_resumed_run_has_them_for_all_answers_or_is_refused(checkpoint, tmp_path):
    run(checkpoint, tmp_path / "r")
    before = (tmp_path / "r" / "run.json").read_bytes()
    shown = run(checkpoint, tmp_path / "r", "--answer-logprob")
    assert shown.exit_code == 2
    assert "have no log-probabilities of right answers beside them; go on without --answer-logprob" in shown.output
    assert (tmp_path / "r" / "run.json").read_bytes() == before
    run(checkpoint, tmp_path / "l", "--answer-logprob")
    shown = run(checkpoint, tmp_path / "l", "--answer-logprob", lengths="1k,2k")
    assert "6 samples recorded, 3 asked now" in shown.output
    assert "go on with --answer-logprob" in run(checkpoint, tmp_path / "l").output


def test_a_folder_of_before_the_option_is_read_and_goes_on(checkpoint, tmp_path):
    run(checkpoint, tmp_path / "r")
    stored = json.loads((tmp_path / "r" / "run.json").read_text())
    del stored["config"]["answer_logprob"]
    (tmp_path / "r" / "run.json").write_text(json.dumps(stored))
    lines = (tmp_path / "r" / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "r" / "predictions.jsonl").write_text("".join(without_field(line) for line in lines))
    assert "3 samples recorded, 0 asked now" in run(checkpoint, tmp_path / "r").output


def without_field(line: str) -> str:
    import zlib

    body = line.rpartition(',"checksum"')[0].replace('"answer_logprob":null,', "")
    return f'{body},"checksum":"{zlib.crc32(body.encode()):08x}"}}\n'


@pytest.mark.parametrize("backend", ["scripted", "server"])
def test_a_backend_that_cannot_is_refused_before_anything_is_written(checkpoint, tmp_path, backend):
    from tests.misbehaving_server import serving

    with serving(Encoder.open(checkpoint).tokenizer) as server:
        url = ("--base-url", server.url) if backend == "server" else ()
        shown = run(checkpoint, tmp_path / "r", "--answer-logprob", "--backend", backend, *url)
    assert shown.exit_code == 2
    assert f"the backend {backend} gives none; use --backend vllm or hf" in shown.output
    assert not (tmp_path / "r").exists()


def test_where_the_prompt_opens_a_thought_the_answer_does_not_stand_behind_it(checkpoint, tmp_path):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    (model / "chat_template.jinja").write_text(OPEN)
    room = ("--thinking-tokens", 200)
    shown = run(model, tmp_path / "r", "--answer-logprob", *room)
    assert shown.exit_code == 2
    assert "this chat template begins the model's reasoning there; turn that off (--template-arg)" in shown.output
    shown = run(model, tmp_path / "r", "--answer-logprob", "--template-arg", "enable_thinking=false")
    assert shown.exit_code == 0, shown.output


def test_weights_of_no_numbers_end_the_run_before_any_answer(checkpoint, tmp_path):
    shown = run(broken(checkpoint, tmp_path / "ckpt", float("nan")), tmp_path / "r", "--answer-logprob")
    assert shown.exit_code == 2
    assert "gives no finite logits" in shown.output
    assert not (tmp_path / "r").exists()
