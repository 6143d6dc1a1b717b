"""What a model thinks aloud is not its answer, and a thought that was cut off is no answer at all.

Marks of reasoning, as chat templates and models write them: ``<think> ... </think>`` (Qwen3, DeepSeek-R1, Olmo 3;
also thinking, thought, reasoning, analysis), ``[THINK] ... [/THINK]`` (Magistral), ``<|channel|>analysis ...
<|channel|>final<|message|>`` (gpt-oss). Case does not matter.

The corrected scorers look behind the reasoning; the official ones keep it, as their authors do. An answer that was cut
off inside of it (``finish_reason`` "unfinished_reasoning") is unscored under both: neither right nor wrong.
"""

import re

from evalkit.types import Prediction, Score

_TAG = r"think|thinking|thought|reasoning|analysis"
_OPENING = rf"<(?:{_TAG})>|\[(?:{_TAG})\]|<\|channel\|>analysis"
_CLOSING = rf"</(?:{_TAG})>|\[/(?:{_TAG})\]|<\|channel\|>final<\|message\|>"
# \A: without it, a text that has no closing tag would be searched again from each of its characters.
_TO_LAST_CLOSING = re.compile(rf"\A.*(?:{_CLOSING})", re.S | re.I)
_FROM_OPENING = re.compile(rf"(?:{_OPENING}).*", re.S | re.I)
_ANY = re.compile(rf"{_OPENING}|{_CLOSING}", re.I)
_TOKEN = re.compile(rf"</?(?:{_TAG})>|\[/?(?:{_TAG})\]|<\|(?:channel|message)\|>", re.I)


def answer_of(prediction: Prediction) -> str | None:
    """Return the output to score; None where there is no answer: an error, or reasoning that was cut off."""
    return None if prediction.finish_reason == "unfinished_reasoning" else prediction.output


def unscored(prediction: Prediction, scorer: str) -> Score:
    """Return the score of what is no answer: without a value, and with the reason."""
    reason = "unfinished reasoning" if prediction.finish_reason == "unfinished_reasoning" else "no output"
    return Score(key=prediction.key, scorer=scorer, value=None, detail=prediction.error or reason)


def without_reasoning(text: str) -> str:
    """Return the text behind the last closing tag of reasoning; nothing of reasoning that never ends."""
    return _FROM_OPENING.sub("", _TO_LAST_CLOSING.sub("", text))


def is_unfinished(text: str, *, opened: bool = False) -> bool:
    """Whether a text ends inside reasoning, so that whatever stands there is not an answer.

    Args:
        text: an answer, or the end of a prompt.
        opened: the prompt in front of an answer ends with an opening mark, which the answer then does not repeat.
    """
    rest = _TO_LAST_CLOSING.sub("", text)
    return _FROM_OPENING.search(rest) is not None or (opened and rest == text)


def is_closed(text: str) -> bool:
    """Whether a closing mark of reasoning is in the text."""
    return _TO_LAST_CLOSING.match(text) is not None


def mentions_reasoning(text: str) -> bool:
    """Whether a mark of reasoning is anywhere in the text, such as the source of a chat template."""
    return _ANY.search(text) is not None


def is_mark(token: str) -> bool:
    """Whether a token's text is a mark of reasoning, or the part of one that is a token of its own."""
    return _TOKEN.fullmatch(token) is not None
