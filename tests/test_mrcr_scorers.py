"""The grade of an MRCR answer: golden cases computed with CPython's difflib, and what a wrapped answer is worth."""

from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.benchmarks import task
from evalkit.benchmarks.mrcr import scorers
from evalkit.benchmarks.mrcr.task import SCORERS
from evalkit.benchmarks.reasoning import without_reasoning
from evalkit.types import Prediction

NOVEL = Path(__file__).parents[2] / "shared" / "data" / "books" / "pride-and-prejudice.txt"
PREFIX = "aB3dE5gH7j"
TRUTH = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of
a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this
truth is so well fixed in the minds of the surrounding families, that he is considered the rightful property of some one
or other of their daughters."""
ISHMAEL = """Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and
nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of the world.
It is a way I have of driving off the spleen and regulating the circulation."""


def prediction(output: str | None, text: str = TRUTH, rule: str = "openai", prefix: str = PREFIX) -> Prediction:
    return Prediction(
        task="mrcr",
        subset="2needle",
        length="8k",
        sample_id="00000",
        story_id="2needle-00000",
        question=f"Prepend {prefix} to the 1st (1 indexed) poem about tea.",
        target=prefix + text,
        prompt_tokens=8000,
        prompt_sha256="0" * 64,
        max_new_tokens=100,
        fact_positions=(10, 500),
        output=output,
        output_tokens=50,
        finish_reason="error" if output is None else "stop",
        error="engine: died" if output is None else None,
        metadata={"rule": rule, "prefix": prefix},
    )


def values(output: str | None, **kwargs) -> dict[str, float | None]:
    return {name: scorer(prediction(output, **kwargs)).value for name, scorer in SCORERS.items()}


def test_a_copy_behind_the_prefix_scores_one_everywhere():
    assert set(values(PREFIX + TRUTH).values()) == {1.0}
    assert dict(task("mrcr").scorers) == SCORERS
    assert next(iter(SCORERS)) == "official"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (PREFIX + ISHMAEL, 0.035398230088495575),
        (PREFIX + TRUTH[: len(TRUTH) // 2], 0.6654804270462633),
        (PREFIX + TRUTH[:-1], 0.9986648865153538),
        (PREFIX + TRUTH + " extra words", 0.984251968503937),
        (PREFIX, 0.0),
    ],
)
def test_the_official_value_is_difflibs_ratio_of_reply_and_text(output, expected):
    assert values(output)["official"] == pytest.approx(expected, abs=1e-12)


def texts(**sizes: int) -> st.SearchStrategy[str]:
    """Few letters, which are all frequent in long texts, or so many that each is rare."""
    return st.text("abc é.", **sizes) | st.text(**sizes)


@given(texts(max_size=400), texts(min_size=1, max_size=400))
def test_the_official_value_is_difflibs_to_the_last_digit(reply, text):
    assert scorers.SequenceMatcher is not SequenceMatcher  # what the extra "fast" installs is compared
    assert values(PREFIX + reply, text=text)["official"] == SequenceMatcher(None, reply, text).ratio()


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 120), st.integers(0, 3000), st.floats(0, 1))
def test_the_compiled_likeness_finds_the_blocks_that_difflib_finds(seed, letters, length, kept):
    """Longer texts than those above: letters that are more than 1 % of 200 and more start no block."""
    rng = np.random.default_rng(seed)
    text = "".join(map(chr, rng.integers(32, 32 + letters, length)))
    reply = "".join(one if rng.random() < kept else chr(rng.integers(32, 32 + letters)) for one in text)
    found, expected = scorers.SequenceMatcher(None, reply, text), SequenceMatcher(None, reply, text)
    assert list(found.get_matching_blocks()) == expected.get_matching_blocks()
    assert found.ratio() == expected.ratio()


def test_the_scorers_of_one_answer_compare_its_text_once(monkeypatch):
    compared = []

    class Counted(SequenceMatcher):
        def ratio(self):
            compared.append((self.a, self.b))
            return super().ratio()

    monkeypatch.setattr(scorers, "SequenceMatcher", Counted)
    reply = "A reply that no other test has."
    values(PREFIX + reply)
    assert compared == [(reply, TRUTH)]


@pytest.mark.skipif(not NOVEL.is_file(), reason="needs the novel in shared/data/books beside the project")
def test_one_word_in_seven_replaced_costs_most_of_the_grade_because_autojunk_is_on():
    """Facts of the benchmark: 0.354 for one passage of 1,500 characters, and 0.902 with autojunk off."""
    novel = " ".join(NOVEL.read_text(encoding="utf-8").split())
    grades, plain = [], []
    for start in range(100_000, 500_000, 20_000):
        text = novel[start : start + 1500]
        words = text.split(" ")
        changed = " ".join(words[-i] if i % 7 == 6 else word for i, word in enumerate(words))
        grades.append(values(PREFIX + changed, text=text)["official"])
        plain.append(SequenceMatcher(None, changed, text, autojunk=False).ratio())
    assert 0.2 < np.mean(grades) < 0.5
    assert np.mean(plain) > 0.85


@pytest.mark.parametrize(
    "output",
    [
        "\n" + PREFIX + TRUTH,
        " " + PREFIX + TRUTH,
        f"**{PREFIX}**{TRUTH}",
        f'"{PREFIX}{TRUTH}"',
        f"“{PREFIX}{TRUTH}”",
        f"```\n{PREFIX}\n{TRUTH}\n```",
        f"<think>The second one, so {PREFIX}...</think>\n\n{PREFIX}{TRUTH}",
        f"[THINK]which?[/THINK]{PREFIX}{TRUTH}\n",
    ],
)
def test_wrapping_fails_the_official_rule_and_not_the_corrected_one(output):
    assert values(output) == {"official": 0.0, "corrected": 1.0, "prefix_hit": 0.0, "ratio_given_prefix": None}


def test_a_reply_without_the_prefix_scores_nothing_under_either_rule():
    for output in ("", TRUTH, f"Here it is: {PREFIX}{TRUTH}", PREFIX[:-1], f"<think>{PREFIX}{TRUTH}"):
        assert values(output) == {"official": 0.0, "corrected": 0.0, "prefix_hit": 0.0, "ratio_given_prefix": None}
    assert SCORERS["ratio_given_prefix"](prediction(TRUTH)).detail == "prefix missing"


def test_the_corrected_rule_keeps_text_that_only_looks_like_reasoning():
    text = "A verse about the tag </think> and its twin [thought] in the margin."
    assert values(PREFIX + text, text=text)["corrected"] == 1.0


def test_a_failure_has_no_value_and_says_why():
    assert set(values(None).values()) == {None}
    assert all(scorer(prediction(None)).detail == "engine: died" for scorer in SCORERS.values())


# Google's rule


def test_googles_rule_takes_the_last_prefix_wherever_it_is_and_strips():
    prefix = "a1b2c3d4e5f6"
    for output in (
        prefix + TRUTH,
        f"Sure! {prefix}{TRUTH}",
        f"{prefix} no, wait: {prefix}\n{TRUTH}\n",
        f"<think>{prefix}{ISHMAEL}</think>{prefix}{TRUTH}",
    ):
        assert values(output, rule="google", prefix=prefix)["official"] == 1.0
    assert values(TRUTH, rule="google", prefix=prefix)["prefix_hit"] == 0.0


def test_googles_rule_compares_the_other_way_round():
    """The arguments' order moves the value: SequenceMatcher treats them differently."""
    assert values(PREFIX + ISHMAEL)["official"] == pytest.approx(0.035398230088495575, abs=1e-12)
    assert values(PREFIX + ISHMAEL, rule="google")["official"] == pytest.approx(0.0471976401179941, abs=1e-12)


def test_googles_rule_corrected_does_not_count_the_prefix_inside_reasoning():
    output = f"<think>It starts with {PREFIX}{TRUTH}</think>I cannot tell."
    scores = values(output, rule="google")
    assert scores["official"] > 0.9
    assert scores["corrected"] == 0.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("plain", "plain"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>one</think><think>two</think>three", "three"),
        ("<think>never ends", ""),
        ("<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>done", "done"),
    ],
)
def test_reasoning_is_dropped_up_to_its_last_end(text, answer):
    assert without_reasoning(text) == answer
