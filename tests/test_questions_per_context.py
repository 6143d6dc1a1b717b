"""Several questions about one context: the same text in front of each, computed once, answered as if asked alone."""

import json
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from evalkit.benchmarks.babilong.contexts import generated_contexts
from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.babilong.questions import MOST_QUESTIONS, SUBSETS, generate, generate_together
from evalkit.benchmarks.babilong.structure import Condition
from evalkit.benchmarks.babilong.task import MAX_SPARE_TOKENS, BABILong
from evalkit.benchmarks.cards import load_card
from evalkit.benchmarks.mrcr.options import MRCROptions
from evalkit.benchmarks.mrcr.task import MRCR, SLACK
from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.models.backends.prefix import common_prefix
from evalkit.models.encoder import Encoder
from tests.babi_solver import solve
from tests.backends import hf
from tests.tiny_tokenizers import CHATML, STYLES, tiny_tokenizer
from tests.variants import family


@cache
def encoder(style: str = "llama3") -> Encoder:
    return Encoder(tiny_tokenizer(style, template=CHATML), chat=True)


@cache
def babilong(size: int = 4, **options) -> BABILong:
    return BABILong(load_card("babilong"), BABILongOptions(questions_per_context=size, **options))


@cache
def mrcr(size: int = 4) -> MRCR:
    return MRCR(load_card("mrcr"), MRCROptions(questions_per_context=size))


def prompts(benchmark, subset, count, length="2k", style="llama3"):
    return [benchmark.prompt(s, length, encoder(style), 10**6) for s in benchmark.samples(subset, length, count)]


def evalkit(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


# What is asked


@pytest.mark.parametrize("subset", SUBSETS)
def test_every_question_about_a_story_has_the_answer_that_the_story_gives(subset):
    stories = [list(islice(generate_together(subset, 1, index), 8)) for index in range(60)]
    for index, together in enumerate(stories):
        first = generate(subset, 1, index)
        assert (together[0].question, together[0].target) == (first.question, first.target)
        assert {sample.facts for sample in together} == {first.facts}
        assert len({sample.question for sample in together}) == len({s.sample_id for s in together}) == len(together)
        for sample in together:
            assert solve(sample.facts, sample.question) == sample.target, sample
    most = max(map(len, stories))
    assert most > 1 or MOST_QUESTIONS[subset] == 1


@pytest.mark.parametrize(("subset", "most"), MOST_QUESTIONS.items())
def test_there_are_stories_with_as_many_questions_as_a_task_is_said_to_have_and_none_with_more(subset, most):
    numbers = (sum(1 for _ in generate_together(subset, 2, index)) for index in range(4000))
    found = 0
    for number in numbers:
        assert number <= most
        found += number == most
        if found:
            break
    assert found


def test_the_questions_of_a_context_stand_together_share_their_story_and_count_as_samples():
    samples = list(babilong().samples("qa1", "1k", 10))
    assert len(samples) == 10
    contexts = [samples[0:4], samples[4:8], samples[8:10]]
    for together in contexts:
        assert len({(s.story_id, s.context_id, s.facts, s.asked_together) for s in together}) == 1
        assert [s.question for s in together] == [question for question, _ in together[0].asked_together][
            : len(together)
        ]
    assert len({together[0].story_id for together in contexts}) == 3
    assert list(babilong().samples("qa1", "1k", 6)) == samples[:6]


def test_at_several_depths_a_context_is_asked_all_questions_before_the_next_depth():
    samples = list(babilong(depths=(0.0, 1.0)).samples("qa1", "1k", 8))
    assert [s.metadata["depth"] for s in samples] == [0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [1.0] * 4
    assert [s.context_id for s in samples[:8:4]] == [f"{samples[0].context_id.partition('@')[0]}@{d}" for d in "01"]
    assert len({s.sample_id for s in samples}) == 16


def test_conditions_hold_for_every_question_of_a_context():
    chosen = list(islice(generated_contexts("qa3", 0, 2, (Condition.parse("entries>=2"),)), 6))
    assert all(sample.metadata["tags"]["entries"] >= 2 for sample in chosen)
    assert [a.story_id == b.story_id for a, b in zip(chosen[::2], chosen[1::2], strict=True)] == [True] * 3


def test_a_babi_file_is_asked_only_what_it_asks_about_the_same_statements(tmp_path):
    told = ["1 Mice are afraid of cats.", "2 Winona is a mouse.", "3 What is winona afraid of?\tcat\t2 1"]
    both = ["1 Cats are afraid of wolves.", "2 Emily is a cat.", "3 Jessica is a cat."]
    both += ["4 What is emily afraid of?\twolf\t2 1", "5 What is jessica afraid of?\twolf\t3 1"]
    (tmp_path / "qa15_test.txt").write_text("\n".join([*told, *both]) + "\n")
    samples = list(babilong(2, facts=tmp_path).samples("qa15", "1k", 100))
    assert [s.question for s in samples] == ["What is emily afraid of?", "What is jessica afraid of?"]
    assert samples[0].context_id == samples[1].context_id
    with pytest.raises(BadInput, match=r"per-context 3: a story of qa15 in .* has at most 2 questions; ask no more"):
        list(babilong(3, facts=tmp_path).samples("qa15", "1k", 100))


def test_an_mrcr_conversation_is_asked_for_several_of_its_needles():
    samples = list(mrcr(4).samples("8needle", "4k", 16))
    for together in (samples[:4], samples[4:8], samples[8:12]):
        assert len({(s.story_id, s.facts, s.metadata["prefix"]) for s in together}) == 1
        assert len({s.metadata["wanted"] for s in together}) == 4
        for s in together:
            assert s.target == s.metadata["prefix"] + s.facts[s.metadata["wanted"] - 1]
    wanted = [s.metadata["wanted"] for s in samples]
    assert sorted(wanted) == sorted([*range(1, 9)] * 2), "all ordinals equally often, as with one question"
    assert sorted(s.metadata["wanted"] for s in islice(mrcr(3).samples("4needle", "4k", 3), 3)) in (
        [1, 2, 3],
        [1, 2, 4],
        [1, 3, 4],
        [2, 3, 4],
    )


# The prompts


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("subset", ["qa1", "qa5", "qa17"])
def test_prompts_of_a_context_differ_in_their_questions_alone_and_fill_the_length(style, subset):
    together = prompts(babilong(), subset, 4, style=style)
    texts = [encoder(style).decode(prompt.token_ids) for prompt in together]
    question = [prompt.sample.question for prompt in together]
    assert len({text.replace(q, "?") for text, q in zip(texts, question, strict=True)}) == 1
    behind = max(len(encoder(style).encode_after(f" {q}")) for q in question) + 40  # the template's end of turn
    assert common_prefix(together) > min(len(prompt.token_ids) for prompt in together) - behind
    assert len({prompt.fact_positions for prompt in together}) == 1
    used = [len(prompt.token_ids) + prompt.max_new_tokens for prompt in together]
    assert 2048 - MAX_SPARE_TOKENS <= max(used) <= 2048
    assert max(used) - min(used) < 30


@pytest.mark.parametrize("style", STYLES)
def test_an_mrcr_conversation_is_the_same_whatever_is_asked_of_it(style):
    together = prompts(mrcr(4), "4needle", 4, "3000", style)
    assert common_prefix(together) > min(len(prompt.token_ids) for prompt in together) - 120
    assert len({(prompt.max_new_tokens, prompt.fact_positions) for prompt in together}) == 1
    used = [len(prompt.token_ids) + prompt.max_new_tokens for prompt in together]
    assert 3000 - SLACK - 30 <= min(used) <= max(used) <= 3000


def test_one_question_a_context_is_the_protocol_with_nothing_added():
    one, published = babilong(1), BABILong(load_card("babilong"))
    assert one.recipe() == published.recipe()
    assert "questions_per_context" not in {**one.recipe(), **mrcr(1).recipe()}
    assert (babilong().recipe()["questions_per_context"], mrcr().recipe()["questions_per_context"]) == (4, 4)
    assert [p.sha256 for p in prompts(one, "qa1", 2)] == [p.sha256 for p in prompts(published, "qa1", 2)]


# What is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--subsets", "qa1,qa2"], "4: a story of qa2 has at most 3 questions; ask no more than that"),
        (["--subsets", "qa16"], "4: a story of qa16 has only 1; ask no more than that, or choose other --subsets."),
        (["--task", "mrcr", "--needles", "2,4"], "4: a conversation of 2needle has at most 2 questions; ask no more"),
        (["--questions-per-context", 0], "--questions-per-context is 0; ask at least 1."),
        (
            ["--source", "rows"],
            "Published rows (--source rows) come with their questions; drop --questions-per-context",
        ),
    ],
)
def test_more_questions_than_there_are_end_in_a_sentence_and_leave_no_folder(checkpoint, tmp_path, arguments, said):
    common = ("--model", checkpoint, "--backend", "scripted", "--lengths", "0k", "--out", tmp_path / "r")
    task = () if "--task" in arguments else ("--task", "babilong")
    shown = evalkit("run", *common, *task, "--questions-per-context", 4, *arguments)
    assert shown.exit_code == 2, shown.output
    assert said in " ".join(shown.output.split())
    assert not (tmp_path / "r").exists()


def test_a_wording_that_asks_before_it_tells_is_refused(tmp_path):
    asks_first = 'DEFAULT_TEMPLATE = "{instruction}{examples}{post_prompt}{question} {context}"\n'
    texts = 'PROMPTS = {"qa1": {"instruction": "", "examples": "", "post_prompt": ""}}\n'
    (tmp_path / "prompts.py").write_text(asks_first + texts)
    with pytest.raises(BadInput, match="puts the question in front of the context"):
        prompts(babilong(prompts=str(tmp_path / "prompts.py")), "qa1", 1)


# What is computed


class Counted:
    """The tokens that a backend's model is really run on, answers left out."""

    def __init__(self, backend):
        self.tokens = 0
        self._hook = backend.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model, args, kwargs):
        if kwargs["input_ids"].shape[1] > 1:
            self.tokens += kwargs["input_ids"].numel()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._hook.remove()


@pytest.fixture(scope="module")
def backend(checkpoint):
    torch.set_num_threads(1)
    loaded = hf(checkpoint, length=2048)
    assert loaded._keeps_all_keys, "asked once, with a few tokens that no test counts"
    return loaded


def asked(checkpoint, benchmark, subset, count):
    own = Encoder.open(checkpoint)
    return [benchmark.prompt(s, "2k", own, 2048) for s in benchmark.samples(subset, "2k", count)]


@pytest.mark.parametrize(("benchmark", "subset"), [(babilong(), "qa1"), (babilong(), "qa5"), (mrcr(), "4needle")])
@pytest.mark.parametrize("batch_tokens", [8192, 2048])
def test_four_questions_take_hardly_more_prefill_than_one_and_get_the_answers_of_each_alone(
    backend, checkpoint, benchmark, subset, batch_tokens, monkeypatch
):
    monkeypatch.setattr(backend, "batch_tokens", batch_tokens)  # all four in one batch, or each on its own
    together = asked(checkpoint, benchmark, subset, 8)
    with Counted(backend) as alone:
        expected = {p.key: next(backend.generate([p]))[1] for p in together}
    assert alone.tokens == sum(len(p.token_ids) for p in together)
    with Counted(backend) as shared:
        answers = {p.key: c for p, c in backend.generate(together)}
    one_each = len(together[0].token_ids) + len(together[4].token_ids)
    assert shared.tokens <= 1.15 * one_each
    assert {key: c.token_ids for key, c in answers.items()} == {key: c.token_ids for key, c in expected.items()}
    computed = sum(len(p.token_ids) - answers[p.key].num_cached_tokens for p in together)
    assert computed <= shared.tokens <= computed + 40, "what is counted, but for padding"


def test_log_probabilities_are_those_of_each_question_alone(checkpoint, backend, monkeypatch):
    monkeypatch.setattr(backend, "logprobs", True)
    together = asked(checkpoint, babilong(), "qa5", 4)
    expected = [next(backend.generate([p]))[1].logprobs for p in together]
    answers = {p.key: c.logprobs for p, c in backend.generate(together)}
    for prompt, own in zip(together, expected, strict=True):
        np.testing.assert_allclose(answers[prompt.key], own, atol=1e-4)


def test_a_context_that_does_not_fit_into_memory_is_shared_by_its_halves(checkpoint, backend, monkeypatch):
    together = asked(checkpoint, babilong(), "qa5", 4)
    expected = {p.key: c.token_ids for p, c in backend.generate(together)}
    real = backend._pad

    def pad(batch, shared):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too much")
        return real(batch, shared)

    monkeypatch.setattr(backend, "_pad", pad)
    with Counted(backend) as counted:
        answers = {p.key: c.token_ids for p, c in backend.generate(together)}
    assert answers == expected
    assert counted.tokens < 3.1 * len(together[0].token_ids), "the first try, and once for each half"


def test_a_model_with_a_window_of_keys_computes_every_prompt_whole(checkpoint, tmp_path):
    from transformers import MistralConfig

    small = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = MistralConfig(
        **small, num_key_value_heads=2, vocab_size=4096, sliding_window=256, max_position_embeddings=2048
    )
    windowed = hf(family(checkpoint, tmp_path / "windowed", config), length=2048)
    together = asked(checkpoint, babilong(), "qa5", 4)
    expected = {p.key: next(windowed.generate([p]))[1].token_ids for p in together}
    assert not windowed._keeps_all_keys
    with Counted(windowed) as counted:
        answers = {p.key: c for p, c in windowed.generate(together)}
    assert counted.tokens == sum(len(p.token_ids) for p in together)
    assert {key: c.token_ids for key, c in answers.items()} == expected
    assert {c.num_cached_tokens for c in answers.values()} == {0}


# Whole runs


def test_a_run_goes_on_in_the_middle_of_a_context_and_belongs_to_its_number_of_questions(checkpoint, tmp_path):
    common = ("run", "--model", checkpoint, "--task", "babilong", "--subsets", "qa1,qa5", "--lengths", "1k,2k")
    common = (*common, "--out", tmp_path / "r", "--questions-per-context")
    plan = json.loads(evalkit(*common, 4, "--samples", 8, "--backend", "hf", "--dry-run", "--json").output)
    assert evalkit(*common, 4, "--samples", 6, "--backend", "hf").exit_code == 0
    grown = evalkit(*common, 4, "--samples", 8, "--backend", "hf")
    assert grown.exit_code == 0, grown.output
    records = lines(tmp_path / "r")
    assert len(records) == len({(r["subset"], r["length"], r["sample_id"]) for r in records}) == 32
    assert len({(r["subset"], r["story_id"]) for r in records}) == 4
    for cell in plan["cells"]:
        own = [r for r in records if (r["subset"], r["length"]) == (cell["subset"], cell["length"])]
        assert (cell["samples"], cell["contexts"], cell["stories"]) == (8, 2, 2)
        assert cell["prompt_tokens"] == sum(r["prompt_tokens"] for r in own)
        assert cell["prefilled_tokens"] < 1.15 * cell["prompt_tokens"] / 4
    other = evalkit(*common, 2, "--samples", 8, "--backend", "hf")
    assert other.exit_code == 2
    assert "data.questions_per_context" in " ".join(other.output.split())


def test_the_plan_says_what_is_prefilled_and_how_many_samples_are_independent(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ("run", "--model", checkpoint, "--task", "babilong", "--subsets", "qa5", "--lengths", "1k", "--dry-run")
    four = evalkit(*common, "--samples", 48, "--questions-per-context", 4).output
    assert "The 48 questions are about 12 contexts:" in four
    assert "12 independent samples" in four
    costs = [
        json.loads(evalkit(*common, "--json", "--samples", n, "--questions-per-context", k).output)
        for n, k in ((48, 4), (12, 1))
    ]
    detectable, prefill = (
        [cost["cells"][0][name] for cost in costs] for name in ("detectable_difference", "prefill_flops")
    )
    assert detectable[0] == detectable[1], "four times the questions show no smaller a difference, by this count"
    assert prefill[0] < 1.15 * prefill[1]


def test_an_engine_without_a_prefix_cache_is_warned_of(checkpoint):
    from evalkit.runs.config import run_config
    from evalkit.runs.plan import make_plan

    asked = {"model": str(checkpoint), "task": "babilong", "lengths": ["1k"], "subsets": ["qa5"], "backend": "vllm"}
    alone, together = (
        make_plan(run_config({**asked, "deterministic": True, "questions_per_context": size})) for size in (1, 4)
    )
    assert set(together.warnings) - set(alone.warnings) == {
        "--deterministic keeps no prefix cache, so that each question computes its whole context."
    }
    assert not any(
        "prefix" in warning for warning in make_plan(run_config({**asked, "questions_per_context": 4})).warnings
    )


def test_a_report_takes_the_questions_of_a_context_for_one_cluster(checkpoint, tmp_path):
    from evalkit.report.load import load_runs
    from evalkit.report.panel import make_panels

    common = ("run", "--model", checkpoint, "--task", "babilong", "--backend", "scripted", "--lengths", "1k")
    shown = evalkit(*common, "--subsets", "qa5", "--samples", 20, "--questions-per-context", 4, "--out", tmp_path / "r")
    assert shown.exit_code == 0, shown.output
    loaded = load_runs([tmp_path])
    [panel, *_] = make_panels(loaded.frame, loaded.runs)
    assert len(set(panel.cluster.tolist())) == 5
    assert panel.values.shape[1] == 20
