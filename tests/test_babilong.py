"""A prompt fills its length in the checkpoint's own tokens, never over, and is the same question at every length."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.babilong.task import MAX_SPARE_TOKENS, BABILong
from evalkit.benchmarks.cards import load_card
from evalkit.errors import BadInput, ContextOverflow
from evalkit.models.encoder import Encoder
from tests.tiny_tokenizers import CHATML, STYLES, tiny_tokenizer

LENGTHS = {"1.5k": 1536, "2k": 2048, "3000": 3000, "4k": 4096}


@cache
def encoder(style: str, chat: bool) -> Encoder:
    return Encoder(tiny_tokenizer(style, template=CHATML if chat else None, add_bos=not chat), chat=chat)


@cache
def benchmark(seed: int = 0, **options) -> BABILong:
    return BABILong(load_card("babilong"), BABILongOptions(**options), seed=seed)


def sample(subset="qa1", index=0, **options):
    return list(benchmark(**options).samples(subset, "1k", index + 1))[index]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("chat", [True, False])
@settings(max_examples=15, deadline=None)
@given(
    length=st.sampled_from(list(LENGTHS)),
    subset=st.sampled_from(["qa1", "qa2", "qa5", "qa8", "qa15", "qa19", "qa20"]),
    index=st.integers(0, 30),
)
def test_a_prompt_fills_its_length_and_never_exceeds_it(style, chat, length, subset, index):
    question = sample(subset, index)
    try:
        prompt = benchmark().prompt(question, length, encoder(style, chat), 10**6)
    except ContextOverflow:
        facts = sum(len(encoder(style, chat).encode_after(f" {fact}")) for fact in question.facts)
        assert facts > LENGTHS[length] / 4, "only a long story may fail to fit"
        return
    used = len(prompt.token_ids) + prompt.max_new_tokens
    assert LENGTHS[length] - MAX_SPARE_TOKENS <= used <= LENGTHS[length]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("chat", [True, False])
def test_assembled_ids_are_those_of_the_whole_text(style, chat):
    # BABILong compares the first prompt of each cell itself; here every prompt is the first of a fresh benchmark.
    for index in range(12):
        fresh = BABILong(load_card("babilong"))
        fresh._haystacks = benchmark()._haystacks
        fresh.prompt(sample("qa1", index), "2k", encoder(style, chat), 10**6)


def test_a_tokenizer_that_joins_sentences_is_refused_instead_of_trusted(monkeypatch):
    fresh = BABILong(load_card("babilong"))
    real = encoder("llama3", True)
    monkeypatch.setattr("evalkit.benchmarks.babilong.task._whole", lambda *_: "another text")
    with pytest.raises(BadInput, match="gives a text other ids than its sentences"):
        fresh.prompt(sample(), "2k", real, 10**6)


@pytest.mark.parametrize("style", STYLES)
def test_fact_positions_are_where_the_facts_stand(style):
    used = encoder(style, True)
    for index in range(8):
        question = sample("qa2", index)
        prompt = benchmark().prompt(question, "3000", used, 10**6)
        for fact, position in zip(question.facts, prompt.fact_positions, strict=True):
            ids = used.encode_after(f" {fact}")
            found = used.decode(prompt.token_ids[max(0, position - 1) : position + len(ids) + 1])
            assert fact[1:] in found


def test_longer_prompts_ask_the_same_question_and_keep_relative_depths():
    question = sample("qa1", 3)
    depths = []
    for length in ("2k", "4k"):
        prompt = benchmark().prompt(question, length, encoder("llama3", True), 10**6)
        start = len(encoder("llama3", True).encode_prompt(benchmark()._frame(question, encoder("llama3", True))[0]))
        depths.append((np.asarray(prompt.fact_positions) - start) / (len(prompt.token_ids) - start))
    assert np.abs(depths[0] - depths[1]).max() < 0.1


def test_facts_stand_at_the_depth_asked_for():
    chosen = BABILong(load_card("babilong"), BABILongOptions(depths=(0.0, 0.5, 1.0)))
    samples = list(chosen.samples("qa1", "4k", 2))
    assert [s.sample_id for s in samples] == [f"0000{i}@{d}" for i in (0, 1) for d in ("0", "0.5", "1")]
    assert len({s.story_id for s in samples}) == 2
    for question in samples:
        prompt = chosen.prompt(question, "4k", encoder("llama3", True), 10**6)
        start = len(encoder("llama3", True).encode_prompt(chosen._frame(question, encoder("llama3", True))[0]))
        depth = (prompt.fact_positions[0] - start) / (len(prompt.token_ids) - start)
        assert depth == pytest.approx(question.metadata["depth"], abs=0.06)


def test_another_seed_gives_other_questions_and_other_background():
    one, other = benchmark(), benchmark(seed=1)
    assert [s.facts for s in one.samples("qa1", "1k", 5)] != [s.facts for s in other.samples("qa1", "1k", 5)]
    assert one.recipe()["noise"] != other.recipe()["noise"]


def test_controls_leave_out_all_context_or_all_background():
    question = sample("qa1")
    used = encoder("llama3", True)
    bare = benchmark(control="no-context").prompt(question, "2k", used, 10**6)
    facts = benchmark(control="facts-only").prompt(question, "2k", used, 10**6)
    assert question.facts[0] not in used.decode(bare.token_ids)
    assert all(fact in used.decode(facts.token_ids) for fact in question.facts)
    assert len(bare.token_ids) < len(facts.token_ids) < 1500


def test_published_rows_are_asked_whole_and_overflow_is_an_error_with_its_arithmetic(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"input": "Mary went to the garden. " * n, "question": "Where is Mary? ", "target": "garden"} for n in (3, 900)
    ]
    (tmp_path / "qa1").mkdir()
    (tmp_path / "qa1" / "1k.json").write_text(json.dumps(rows))
    published = BABILong(load_card("babilong"), BABILongOptions(source=str(tmp_path)))
    short, long = published.samples("qa1", "1k", 10)
    prompt = published.prompt(short, "1k", encoder("llama3", True), 4096)
    assert rows[0]["input"].strip() in encoder("llama3", True).decode(prompt.token_ids)
    with pytest.raises(ContextOverflow, match=r"prompt tokens \+ 20 for the answer > 4,096"):
        published.prompt(long, "1k", encoder("llama3", True), 4096)


def test_a_length_that_the_wording_fills_alone_is_refused():
    with pytest.raises(BadInput, match="does not fit a prompt of qa1: the wording alone takes"):
        benchmark().prompt(sample(), "100", encoder("llama3", True), 10**6)


def test_a_background_that_is_too_small_says_what_it_has_and_what_is_needed(tmp_path):
    (tmp_path / "small.txt").write_text("The old miller counted his twelve sacks of barley again and again. " * 3)
    small = BABILong(load_card("babilong"), BABILongOptions(noise=(tmp_path / "small.txt",)))
    with pytest.raises(BadInput, match=r"has \d+ tokens .* needs [\d,]+"):
        small.prompt(sample(), "4k", encoder("llama3", True), 10**6)


def test_wording_parts_can_be_left_out():
    used = encoder("llama3", True)
    sizes = [
        len(benchmark(**dict.fromkeys(left_out, False)).prompt(sample(), "0k", used, 10**6).token_ids)
        for left_out in ((), ("examples",), ("instruction", "examples", "post_prompt"))
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_the_identity_of_a_run_knows_no_paths_and_no_files_of_other_tasks(tmp_path):
    story = "1 Mary moved to the garden.\n2 Where is Mary?\tgarden\t1\n"
    for place in ("here", "there"):
        (tmp_path / place / "qa1").mkdir(parents=True)
        (tmp_path / place / "qa1_single_test.txt").write_text(story)
    (tmp_path / "there" / "qa2_two_test.txt").write_text(story)
    for option, kind in (("facts", Path), ("source", str)):
        here, there = (
            BABILong(load_card("babilong"), BABILongOptions(**{option: kind(tmp_path / place)}))
            for place in ("here", "there")
        )
        assert here.recipe() == there.recipe()


def test_the_background_grows_with_the_length(monkeypatch):
    monkeypatch.setattr("evalkit.benchmarks.babilong.task.BUILT_IN_WORDS", 1_000)
    fresh, used = BABILong(load_card("babilong")), encoder("llama3", True)
    question = next(fresh.samples("qa1", "1k", 1))
    short = fresh.prompt(question, "1.5k", used, 10**6)
    long = fresh.prompt(question, "32k", used, 10**6)
    assert 32 * 1024 - MAX_SPARE_TOKENS <= len(long.token_ids) + long.max_new_tokens <= 32 * 1024
    assert np.array_equal(
        short.token_ids, BABILong(load_card("babilong")).prompt(question, "1.5k", used, 10**6).token_ids
    )
