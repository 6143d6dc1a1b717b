"""Two rules for a BABILong answer: ``official``, bug for bug, and ``corrected``, the same idea without the bugs.

Both look for the task's label words in the model's first sentence, set aside those that the question names, and call
the answer correct when what remains is exactly the target. Naming several labels is never correct.

    question "Where is Mary?"  target "garden"  output "Mary is in the garden."       correct
                                                output "In the garden or kitchen."    wrong

The official rule is that of ``babilong/metrics.py`` in booydar/babilong at 7a6efee. It differs from the rules of the
same name in other harnesses, which accept the target as a substring of the output.
"""

import re
from collections.abc import Collection

from evalkit.benchmarks.reasoning import answer_of, unscored, without_reasoning
from evalkit.types import Prediction, Score

SCORER_VERSION = "1"


def score_official(prediction: Prediction, labels: Collection[str]) -> Score:
    """Score by the official rule; see ``official``. Unscored (None) where there is no answer."""
    if (output := answer_of(prediction)) is None:
        return unscored(prediction, "official")
    found = official_labels(output, prediction.question, labels)
    correct = official(output, prediction.question, prediction.target, labels)
    return _score(prediction, "official", correct, found)


def score_corrected(prediction: Prediction, labels: Collection[str]) -> Score:
    """Score by the corrected rule; see ``corrected``. Unscored (None) where there is no answer."""
    if (output := answer_of(prediction)) is None:
        return unscored(prediction, "corrected")
    question, target, subset = prediction.question, prediction.target, prediction.subset
    found = corrected_labels(output, question, labels, subset)
    return _score(prediction, "corrected", corrected(output, question, target, labels, subset), found)


def official(output: str, question: str, target: str, labels: Collection[str]) -> bool:
    """Tell whether the official metric accepts the output. ``labels`` are all answers that the task knows.

    Quirks kept on purpose: labels match inside words ("none" contains "one", "unknown" contains "no"); a line break
    does not end the answer but any "." does ("1. garden", "Mr. X ..."); "s, e" is not "s,e"; reasoning text counts;
    a reply that is just "None" is lost, since the authors read replies back with pandas, which takes it for missing.
    """
    found = official_labels(output, question, labels)
    target = target.lower()
    if "," in target and len(target) > 3:  # several objects (qa8); a path such as "n,e" (qa19) has 3 characters
        parts = target.split(",")
        return found.issuperset(parts) and len(found) == len(parts)
    return found == {target}


def official_labels(output: str, question: str, labels: Collection[str]) -> set[str]:
    """Return the labels, in lower case, that the official metric sees in the output and not in the question."""
    answer = "" if output == "None" else output.lower()
    # The original also cuts at "Question", which lower-cased text never contains.
    for end in (".", "<context>", "<example>"):
        answer = answer.split(end)[0]
    return {label for label in map(str.lower, labels) if label in answer and label not in question.lower()}


def corrected(output: str, question: str, target: str, labels: Collection[str], subset: str) -> bool:
    """Tell whether the answer names exactly the target: the official idea with its known defects mended.

    - Reasoning is dropped: everything in and before ``<think> ... </think>`` (also thinking, thought, reasoning,
      analysis, in ``<>`` or ``[]``) and before a final channel. Reasoning that never ends leaves no answer.
    - The answer is the first line with words in it. Lines that end in ":" or "?" only introduce it. List marks,
      numbering and dots in front are skipped. It ends at a line break, at ``<context>``, ``<example>``, "Question:", or
      at a ".", except that of a title ("Mr.").
    - Labels match whole words, also in the plural: "none" is not "one", "unknown" is not "no", "mice" is "mouse".
      "No" in front of a word for knowledge ("no idea", "no information") is not the label "no".
    - qa19: spaces around the comma do not matter, and a longer path is another answer ("w,n,e" is not "n,e").
    - qa8: the objects are a set, in any order, of any size.
    """
    expected = {target.lower()} if subset == "qa19" else set(target.lower().split(","))
    return corrected_labels(output, question, labels, subset) == expected


def corrected_labels(output: str, question: str, labels: Collection[str], subset: str) -> set[str]:
    """Return the labels, in lower case, that the answer names and the question does not (qa19: the paths named)."""
    answer = answer_text(output)
    if subset == "qa19":
        return {re.sub(r"\s", "", path) for path in _PATH.findall(answer)}
    return _named(labels, answer) - _named(labels, question.lower())


def answer_text(output: str) -> str:
    """Return the part of the output that counts as the answer, in lower case; "" when there is none."""
    text = without_reasoning(output.lower())
    for end in ("<context>", "<example>"):
        text = text.split(end)[0]
    for line in text.splitlines():
        answer = _LIST_MARKS.sub("", line)
        if re.search(r"[^\W_]", answer) and not answer.rstrip(" *_\"'").endswith((":", "?")):
            return _ANSWER_END.split(answer)[0]
    return ""


_LIST_MARKS = re.compile(r"^[\s.>#*•-]*(?:\(?\d+[.):]\s*)?[\s.>#*•-]*")
_ANSWER_END = re.compile(r"(?<!\bmr)(?<!\bms)(?<!\bdr)(?<!\bst)(?<!\bmrs)\.|(?<=\S)\s+question:")
_PATH = re.compile(r"(?<![\w,])[nsew](?:\s*,\s*[nsew]\b)+")
_OTHER_FORMS = {
    "mouse": "mouse|mice",
    "wolf": "wolf|wolves",
    "gray": "gray|grey",
    "no": r"no(?!\s+(?:\w+\s+)?(?:idea|information|mention|evidence|indication)\b)",
}


def _named(labels: Collection[str], text: str) -> set[str]:
    """Return the labels that occur in ``text`` (lower case) as whole words; an underscore ends a word."""
    return {label for label in map(str.lower, labels) if re.search(_whole_word(label), text)}


def _whole_word(label: str) -> str:
    return rf"(?<![^\W_])(?:{_OTHER_FORMS.get(label, re.escape(label) + 's?')})(?![^\W_])"


def _score(prediction: Prediction, scorer: str, correct: bool, found: Collection[str]) -> Score:
    detail = "found: " + (", ".join(sorted(found)) or "no label")
    return Score(key=prediction.key, scorer=scorer, value=float(correct), detail=detail)
