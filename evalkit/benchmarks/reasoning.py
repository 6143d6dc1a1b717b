"""What a model thinks aloud is not its answer."""

import re

_TAG = r"think|thinking|thought|reasoning|analysis"
# \A: without it, a text that has no closing tag would be searched again from each of its characters.
_CLOSED = re.compile(rf"\A.*(?:</(?:{_TAG})>|\[/(?:{_TAG})\]|<\|channel\|>final<\|message\|>)", re.S | re.I)
_OPEN = re.compile(rf"(?:<(?:{_TAG})>|\[(?:{_TAG})\]|<\|channel\|>analysis).*", re.S | re.I)


def without_reasoning(text: str) -> str:
    """Return the text behind the last closing tag of reasoning; nothing of reasoning that never ends."""
    return _OPEN.sub("", _CLOSED.sub("", text))
