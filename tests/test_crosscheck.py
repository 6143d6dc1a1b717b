"""What two backends' answers to the same ids say about them."""

import json

import numpy as np
import pytest

from evalkit.errors import BadInput
from evalkit.runs.config import run_config
from evalkit.runs.crosscheck import crosscheck_plans
from evalkit.types import Completion, Prompt, Sample
from tests.backends import crosscheck


class Fixed:
    """A backend that gives answers written down beforehand, last prompt first."""

    def __init__(self, name, **answers):
        self.name, self.answers = name, answers

    def generate(self, prompts):
        for prompt in reversed(list(prompts)):
            yield prompt, self.answers[prompt.sample.sample_id]

    def close(self):
        pass


def prompt(name):
    sample = Sample(task="t", subset="qa1", sample_id=name, story_id=name, question="?", target="!")
    return Prompt(sample=sample, length="1k", token_ids=np.arange(5, dtype=np.int32), max_new_tokens=4)


def said(*token_ids, logprobs=(), text=None):
    text = " ".join(map(str, token_ids)) if text is None else text
    return Completion(text=text, token_ids=token_ids, finish_reason="length", logprobs=logprobs)


def report(left, right):
    return crosscheck(Fixed("hf", **left), Fixed("vllm", **right), [prompt(name) for name in left])


def test_agreement_is_the_share_of_equal_answers():
    made = report({"a": said(1, 2), "b": said(1, 2)}, {"a": said(1, 2), "b": said(1, 3)})
    assert (made.compared, made.agreeing, made.agreement) == (2, 1, 0.5)
    assert [one.first_divergence for one in made.prompts] == [None, 1]
    assert made.largest_logprob_gap is None


def test_an_answer_that_goes_on_parts_where_the_other_ends():
    assert report({"a": said(1, 2)}, {"a": said(1, 2, 3)}).prompts[0].first_divergence == 2


def test_log_probabilities_are_compared_up_to_the_first_difference_and_not_beyond():
    left, right = said(1, 2, 9, logprobs=(-0.1, -0.5, -7.0)), said(1, 3, 9, logprobs=(-0.2, -0.9, -1.0))
    made = report({"a": left}, {"a": right})
    assert made.largest_logprob_gap == pytest.approx(0.4)


def test_equal_text_agrees_even_if_a_server_without_ids_had_it_tokenized_again():
    assert report({"a": said(1, 2, text="hello")}, {"a": said(7, text="hello")}).agreement == 1


def test_a_prompt_that_one_backend_failed_is_named_and_not_compared():
    lost = Completion(text="", token_ids=(), finish_reason="error", error="server: HTTP 500")
    made = report({"a": said(1), "b": said(1)}, {"a": lost, "b": said(1)})
    assert (made.compared, made.agreement) == (1, 1.0)
    assert "qa1/1k/a: not compared, server: HTTP 500" in made.to_text()


def test_nothing_compared_is_no_agreement():
    lost = Completion(text="", token_ids=(), finish_reason="error", error="engine: gone")
    assert report({"a": lost}, {"a": lost}).agreement is None


def test_text_and_json_say_where_answers_part():
    made = report({"a": said(1, 2, logprobs=(-1.0, -1.0))}, {"a": said(1, 3, logprobs=(-1.0, -1.25))})
    assert "hf and vllm give the same answer to 0 of 1 prompts" in made.to_text()
    assert "answers part at token 1 of 2, log-probabilities up to 0.25 apart" in made.to_text()
    written = json.loads(json.dumps(made.to_json()))
    assert written["backends"] == ["hf", "vllm"]
    assert written["prompts"][0]["first_divergence"] == 1


def test_a_second_backend_that_cannot_answer_is_refused_before_the_first_is_opened(checkpoint, monkeypatch):
    monkeypatch.setattr("evalkit.models.backends.vllm.engine.find_spec", lambda name: None)
    monkeypatch.setattr("evalkit.models.backends.hf.load_causal_lm", None)
    asked = {"model": str(checkpoint), "task": "babilong", "lengths": "1k", "samples": 1}
    with pytest.raises(BadInput, match="vLLM is not installed here"):
        crosscheck_plans([run_config({**asked, "backend": name}) for name in ("hf", "vllm")])
