"""Golden cases for both BABILong rules, and the official one against the authors' own outputs and table."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.benchmarks.babilong.scorers import (
    answer_text,
    corrected,
    corrected_labels,
    official,
    score_corrected,
    score_official,
)
from evalkit.types import Prediction

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real bAbI and BABILong files are not beside the project")

PLACES = "bathroom bedroom garden hallway kitchen office"
LABELS = {
    **{task: frozenset(PLACES.split()) for task in ("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13")},
    "qa5": frozenset(["Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"]),
    **{task: frozenset({"no", "yes"}) for task in ("qa6", "qa9", "qa17", "qa18")},
    "qa7": frozenset(["none", "one", "three", "two"]),
    "qa8": frozenset(["apple", "football", "milk", "nothing"]),
    "qa10": frozenset(["maybe", "no", "yes"]),
    "qa14": frozenset(["bedroom", "cinema", "kitchen", "office", "park", "school"]),
    "qa15": frozenset(["cat", "mouse", "sheep", "wolf"]),
    "qa16": frozenset(["gray", "green", "white", "yellow"]),
    "qa19": frozenset(["e,e", "e,n", "e,s", "n,e", "n,n", "n,w", "s,e", "s,s", "s,w", "w,n", "w,s", "w,w"]),
    "qa20": frozenset(["bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"]),
}
QUESTION = {"qa3": "Where was the milk before the kitchen? ", "qa5": "What did Bill give to Mary? "}

# task, output, target, official, corrected
CASES = [
    ("qa1", "garden", "garden", True, True),
    ("qa1", "The most recent location of Mary is GARDEN.", "garden", True, True),
    ("qa1", "kitchen", "garden", False, False),
    ("qa1", "", "garden", False, False),
    ("qa1", "garden or kitchen", "garden", False, False),
    ("qa1", "bathroom bedroom garden hallway kitchen office", "garden", False, False),
    ("qa1", "In the garden. Not in the kitchen.", "garden", True, True),
    ("qa1", "garden <context> kitchen", "garden", True, True),
    ("qa1", "garden <example> kitchen", "garden", True, True),
    # lower-cased text never contains "Question", so the official cut there is dead
    ("qa1", "garden Question: is it the kitchen", "garden", False, True),
    ("qa1", "garden\n\nQuestion: where is the kitchen", "garden", False, True),
    ("qa1", ". garden", "garden", False, True),
    ("qa1", "1. garden", "garden", False, True),
    ("qa1", "- **garden**", "garden", True, True),
    ("qa1", "\n\n  _garden_", "garden", True, True),
    ("qa1", "Mr. Smith is in the garden", "garden", False, True),
    ("qa1", "Answer:\ngarden\nkitchen", "garden", False, True),
    ("qa1", "**Answer:**\n\n1.\n\ngarden", "garden", False, True),
    ("qa1", "Where is Mary?\ngarden", "garden", True, True),
    ("qa1", "Where is Mary? garden", "garden", True, True),
    ("qa1", "<think>kitchen? No.</think>\ngarden", "garden", False, True),
    ("qa1", "kitchen? No.</think> garden", "garden", False, True),
    ("qa1", "[THINK]the kitchen[/THINK]garden", "garden", False, True),
    ("qa1", "<|channel|>analysis<|message|>kitchen.<|end|><|channel|>final<|message|>garden", "garden", False, True),
    # reasoning that runs into the token limit has not answered
    ("qa1", "<think>the garden", "garden", True, False),
    ("qa1", "backgardens", "garden", True, False),
    ("qa3", "Before the kitchen the milk was in the garden.", "garden", True, True),
    ("qa3", "kitchen", "kitchen", False, False),
    ("qa5", "Bill gave the milk to Mary.", "milk", True, True),
    ("qa5", "Fred gave the milk to Mary.", "milk", False, False),
    ("qa6", "no", "no", True, True),
    ("qa6", "I do not know", "no", True, False),
    ("qa6", "Unknown", "no", True, False),
    ("qa6", "There is no information about it", "no", True, False),
    ("qa6", "No, there is no clear mention of it", "no", True, True),
    ("qa6", "Mary is no longer in the garden", "no", True, True),
    ("qa6", "Yes and no", "yes", False, False),
    ("qa7", "none", "none", False, True),
    ("qa7", "None of them", "none", False, True),
    ("qa7", "none", "one", False, False),
    ("qa7", "one", "one", True, True),
    ("qa8", "nothing", "nothing", True, True),
    ("qa8", "apple,football", "football,apple", True, True),
    ("qa8", "The milk, the apple and the football", "football,apple,milk", True, True),
    ("qa8", "apple", "football,apple", False, False),
    ("qa8", "apple, milk", "apple", False, False),
    ("qa8", "apple, football, milk, nothing", "football,apple,milk", False, False),
    ("qa10", "nobody knows, maybe", "maybe", False, True),
    ("qa15", "cats", "cat", True, True),
    ("qa15", "mice", "mouse", False, True),
    ("qa15", "wolves", "wolf", False, True),
    ("qa16", "Grey", "gray", False, True),
    ("qa19", "s,e", "s,e", True, True),
    ("qa19", "s, e", "s,e", False, True),
    ("qa19", "S,E.", "s,e", True, True),
    ("qa19", "w,n,e", "w,n", False, False),
    ("qa19", "s,e or e,s", "s,e", False, False),
    # three letters that end in another path: the official rule sees "n,n" inside
    ("qa19", "in, n", "n,n", False, False),
    ("qa19", "train,n", "n,n", True, False),
]


@pytest.mark.parametrize(("task", "output", "target", "by_official", "by_corrected"), CASES)
def test_golden_case(task, output, target, by_official, by_corrected):
    question = QUESTION.get(task, "Where is Mary? ")
    assert official(output, question, target, LABELS[task]) is by_official
    assert corrected(output, question, target, LABELS[task], task) is by_corrected


def test_official_ignores_labels_inside_words_of_the_question():
    # "know" in the question sets the label "no" aside, so a plain "no" is not found
    assert not official("no", "Do you know where Mary is?", "no", LABELS["qa6"])
    assert corrected("no", "Do you know where Mary is?", "no", LABELS["qa6"], "qa6")


SENTENCES = ("{}", "{}.", "{}\n", "The answer is {}.", "Answer: {}", "<think>Let me see. {}?</think>\n\n{}")


@pytest.mark.parametrize("task", LABELS)
def test_gold_text_is_correct_for_every_label_of_every_task(task):
    for label in LABELS[task]:
        for sentence in SENTENCES:
            assert corrected(sentence.format(label, label), "?", label, LABELS[task], task), (label, sentence)
        if label != "none":
            assert official(label, "?", label, LABELS[task])


@given(data=st.data(), task=st.sampled_from(sorted(LABELS)))
@settings(max_examples=100, deadline=None)
def test_listing_several_labels_is_never_correct_for_one(data, task):
    named = data.draw(st.permutations(sorted(LABELS[task])))[: data.draw(st.integers(2, len(LABELS[task])))]
    separator = data.draw(st.sampled_from([" or ", ", ", " and ", "/", "; "]))
    output = separator.join(named)
    target = data.draw(st.sampled_from(sorted(LABELS[task])))
    assert not corrected(output, "?", target, LABELS[task], task)
    assert not official(output, "?", target, LABELS[task])


@given(output=st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_output_can_be_scored(output):
    for task in ("qa1", "qa7", "qa19"):
        corrected_labels(output, "Where is Mary? ", LABELS[task], task)
        official(output, "Where is Mary? ", "one", LABELS[task])
    assert "\n" not in answer_text(output)


def test_very_long_output_without_an_end_is_scored_in_linear_time():
    # a search that starts again at each of these characters would not come back
    assert answer_text("a" * 1_000_000) == "a" * 1_000_000


def prediction(output: str | None, **fields: object) -> Prediction:
    return Prediction(
        **{
            "task": "babilong",
            "subset": "qa7",
            "length": "4k",
            "sample_id": "0",
            "story_id": "0",
            "question": "How many objects is Mary carrying? ",
            "target": "none",
            "prompt_tokens": 10,
            "prompt_sha256": "",
            "max_new_tokens": 20,
            "fact_positions": (),
            "output": output,
            "output_tokens": 1,
            "finish_reason": "stop",
            **fields,
        }
    )


def test_scores_carry_the_key_and_what_was_found():
    asked = prediction("None.")
    score = score_official(asked, LABELS["qa7"])
    assert (score.key, score.scorer, score.value, score.detail) == (asked.key, "official", 0.0, "found: none, one")
    score = score_corrected(asked, LABELS["qa7"])
    assert (score.key, score.scorer, score.value, score.detail) == (asked.key, "corrected", 1.0, "found: none")
    assert score_corrected(prediction("Hm"), LABELS["qa7"]).detail == "found: no label"


def test_failed_prediction_is_unscored_and_empty_output_is_wrong():
    failed = prediction(None, finish_reason="error", error="engine: died")
    for scorer in (score_official, score_corrected):
        assert scorer(failed, LABELS["qa7"]).value is None
        assert scorer(failed, LABELS["qa7"]).detail == "engine: died"
        assert scorer(prediction(""), LABELS["qa7"]).value == 0.0


PHI = DATA / "babilong" / "predictions" / "microsoft" / "Phi-3-mini-128k-instruct"
SETTING = "instruction_yes_examples_yes_post_prompt_yes"


@needs_data
def test_official_gives_the_authors_table_from_their_outputs():
    import pandas as pd

    golden = pd.read_csv(DATA / "babilong" / "golden" / "all_results.csv")
    golden = golden[golden.model_name == "microsoft/Phi-3-mini-128k-instruct"].set_index("task")
    for length in golden.columns[1:]:
        means = {}
        for task in ("qa1", "qa2", "qa3", "qa4", "qa5"):
            rows = pd.read_csv(PHI / f"{task}_{length}_{SETTING}.csv", keep_default_na=False)
            correct = [official(row.output, row.question, row.target, LABELS[task]) for row in rows.itertuples()]
            means[task] = 100 * sum(correct) / len(rows)
            assert means[task] == pytest.approx(golden.loc[task, length], abs=1e-9, rel=0)
        assert sum(means.values()) / 5 == pytest.approx(golden.loc["avg", length], abs=1e-9, rel=0)


@needs_data
def test_gold_answers_of_real_babi_questions_are_correct_except_official_qa7():
    for path in sorted((DATA / "babi").glob("qa*_test.txt")):
        task = path.name.split("_")[0]
        rows = [line.split(" ", 1)[1].split("\t") for line in path.read_text("utf-8").splitlines() if "\t" in line]
        assert len(rows) == 1000
        for question, target, _ in rows:
            assert corrected(target, question, target, LABELS[task], task)
            assert corrected(f"The answer is {target}.", question, target, LABELS[task], task)
        by_official = sum(official(target, question, target, LABELS[task]) for question, target, _ in rows)
        assert by_official == (532 if task == "qa7" else 1000)


def test_the_official_rule_loses_a_bare_none_as_the_authors_reader_does():
    assert not official("None", "Is Mary in the garden?", "no", ["yes", "no"])
    assert official("None of them", "Is Mary in the garden?", "no", ["yes", "no"])
