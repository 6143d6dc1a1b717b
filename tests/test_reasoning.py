"""What is thought aloud is told from what is answered, and a thought that was cut off from a finished one."""

import pytest

from evalkit.benchmarks.reasoning import is_unfinished, without_reasoning

FINISHED = [
    "kitchen",
    "",
    "<think>Mary went there.</think>kitchen",
    "<think></think>\n\nkitchen",
    "[THINK]Mary went there.[/THINK]kitchen",
    "<THINKING>a <think> b </THINKING>kitchen",
    "<|channel|>analysis<|message|>Mary went.<|end|><|start|>assistant<|channel|>final<|message|>kitchen",
    "I think the kitchen",
]
CUT = [
    "<think>Mary was first in a garden, later",
    "<think>one</think> but <think>two",
    "[THINK]Mary",
    "<|channel|>analysis<|message|>Mary was first",
    "<reasoning>",
]


@pytest.mark.parametrize("text", FINISHED)
def test_an_answer_behind_its_reasoning_is_finished(text: str):
    assert not is_unfinished(text)


@pytest.mark.parametrize("text", CUT)
def test_reasoning_without_its_end_is_unfinished_whoever_opened_it(text: str):
    assert is_unfinished(text)
    assert is_unfinished(text, opened=True)


def test_what_follows_a_prompt_that_opens_reasoning_is_unfinished_until_it_is_closed():
    assert is_unfinished("Mary went to the", opened=True)
    assert is_unfinished("", opened=True)
    assert not is_unfinished("Mary went there.</think>kitchen", opened=True)
    assert is_unfinished("One.</think> <think>two", opened=True)


def test_only_what_is_behind_the_reasoning_is_the_answer():
    assert without_reasoning("Mary went there.</think>kitchen") == "kitchen"
    assert without_reasoning("<think>one</think>garden<think>two</think>kitchen") == "kitchen"
    assert without_reasoning("<think>Mary went to the kitchen") == ""
