"""The grade of an MRCR answer: likeness to the right text behind the right prefix.

Likeness is ``difflib.SequenceMatcher.ratio()`` with its default treatment of frequent characters (autojunk), which in
texts of 200 characters and more makes the grade almost "an exact copy or nothing": one word in seven replaced leaves
about a third. No other edit distance gives these numbers, nor does another order of the arguments.

Two rules are published. ``metadata["rule"]`` of a prediction says which is the official one for its row:

- "openai" (card of openai/mrcr): the answer must begin with the prefix; the rest is compared as it is, answer second.
- "google" (eval_hub, mrcr_v2, at 67b7fd2): the last occurrence of the prefix counts, wherever it is; what follows is
  stripped and compared, answer first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from evalkit.benchmarks.reasoning import answer_of, unscored, without_reasoning
from evalkit.errors import BadInput
from evalkit.types import Prediction, Score

try:  # the extra "fast"; the same ratios to the last digit (tests/test_mrcr_scorers.py)
    from cdifflib import CSequenceMatcher as SequenceMatcher
except ImportError:
    from difflib import SequenceMatcher

SCORER_VERSION = "1"

_MARKERS = " \t\r\n\"'`*_“”‘’«»"
"""White space, quotation marks, and what makes text bold or code."""


@dataclass(frozen=True, slots=True)
class Grade:
    """The parts of a grade."""

    prefix_hit: bool
    ratio: float
    """Likeness behind the prefix; 0 without it."""


def official(output: str, target: str, prefix: str, rule: str) -> Grade:
    """Grade by the official rule named ``rule``. ``target`` is the prefix and the right text."""
    if rule == "google":
        output, target = output.strip(), target.strip()
        _, found, reply = output.rpartition(prefix)
        if not found:
            return Grade(False, 0.0)
        return Grade(True, _ratio(target.removeprefix(prefix).strip(), reply.strip()))
    if not output.startswith(prefix):
        return Grade(False, 0.0)
    return Grade(True, _ratio(output.removeprefix(prefix), target.removeprefix(prefix)))


def corrected(output: str, target: str, prefix: str, rule: str) -> Grade:
    """Grade by the same rule without its main defect, that an answer fails for its wrapping.

    - Reasoning in front of the answer is dropped; see ``reasoning.py``.
    - White space, quotation marks, and marks of bold or code text do not count in front of the prefix, nor around the
      text behind it, nor around the right text.
    """
    answer = output.lstrip(_MARKERS)
    if not answer.startswith(prefix):
        answer = without_reasoning(output).lstrip(_MARKERS)
    place = answer.rfind(prefix) if rule == "google" else 0 if answer.startswith(prefix) else -1
    if place < 0:
        return Grade(False, 0.0)
    reply = answer[place + len(prefix) :].strip(_MARKERS)
    text = target.strip().removeprefix(prefix).strip(_MARKERS)
    first, second = (text, reply) if rule == "google" else (reply, text)
    return Grade(True, _ratio(first, second))


def score_official(prediction: Prediction) -> Score:
    """Score by the official rule of the prediction's own data set; see ``official``."""
    return _score(prediction, "official", official, lambda grade: grade.ratio)


def score_corrected(prediction: Prediction) -> Score:
    """Score without regard to how the answer is wrapped; see ``corrected``."""
    return _score(prediction, "corrected", corrected, lambda grade: grade.ratio)


def score_prefix_hit(prediction: Prediction) -> Score:
    """Score 1 where the official rule finds the prefix, else 0: whether the form of the answer was understood."""
    return _score(prediction, "prefix_hit", official, lambda grade: float(grade.prefix_hit))


def score_ratio_given_prefix(prediction: Prediction) -> Score:
    """Score by the official rule; unscored without the prefix. What remains is whether the right text was found."""
    return _score(prediction, "ratio_given_prefix", official, lambda grade: grade.ratio if grade.prefix_hit else None)


SCORERS: dict[str, Callable[[Prediction], Score]] = {
    "official": score_official,
    "corrected": score_corrected,
    "prefix_hit": score_prefix_hit,
    "ratio_given_prefix": score_ratio_given_prefix,
}


@lru_cache(maxsize=4)
def _ratio(first: str, second: str) -> float:
    """Return the likeness of two texts; the four scorers of one prediction ask for the same one up to four times."""
    ratio: float = SequenceMatcher(None, first, second).ratio()
    return ratio


def _score(
    prediction: Prediction,
    name: str,
    rule: Callable[[str, str, str, str], Grade],
    value: Callable[[Grade], float | None],
) -> Score:
    """Return the score; unscored (None) where there is no answer."""
    if (output := answer_of(prediction)) is None:
        return unscored(prediction, name)
    for needed in ("prefix", "rule"):
        if not prediction.metadata.get(needed):
            raise BadInput(f"The answer to {'/'.join(prediction.key)} has no {needed} in its metadata to score it by.")
    prefix = str(prediction.metadata["prefix"])
    grade = rule(output, prediction.target, prefix, str(prediction.metadata["rule"]))
    return Score(
        key=prediction.key, scorer=name, value=value(grade), detail="" if grade.prefix_hit else "prefix missing"
    )
