"""What wrong answers are made of: which labels are named instead, and which text of a conversation comes back.

Everything is told from the record: reply, target, facts, prefix. The texts of a generated MRCR conversation are made
again from the run's own settings, and count only if the target is one of its needles. Not told: which other text of a
published row came back, since the record does not hold its conversation, and the last distractor of a prompt, which is
cut to fit.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from evalkit.benchmarks import open_benchmark
from evalkit.benchmarks.babilong.scorers import corrected, corrected_labels
from evalkit.benchmarks.cards import load_card
from evalkit.benchmarks.mrcr.scorers import corrected as graded
from evalkit.benchmarks.mrcr.task import MRCR
from evalkit.benchmarks.reasoning import without_reasoning
from evalkit.errors import EvalkitError
from evalkit.lengths import parse_length
from evalkit.records.folder import RunFolder
from evalkit.report.arms import Arm, length_name
from evalkit.report.cells import NOT_RUN, Entry, Row, Table, task_title
from evalkit.report.panel import natural
from evalkit.runs.config import recorded_config
from evalkit.types import Prediction, Sample

Words: TypeAlias = frozenset[tuple[str, ...]]
SAME_TEXT = 0.5
"""Share of a reply's runs of three words that a text must hold to be the one that came back."""
_MOST_CHARS_PER_TOKEN = 8


@dataclass(kw_only=True)
class Mistakes:
    """Answers of one arm in one cell, all its runs together. Failed samples are no answers."""

    arm: str
    task: str
    subset: str
    length: str
    answers: int = 0
    wrong: int = 0
    """Under the corrected rule; MRCR: another text, or none, than the one asked for."""
    labels: Counter[str] = field(default_factory=Counter)
    """Wrong answers that name one label, by label."""
    num_labels: int = 0
    """Labels of the subset."""
    no_label: int = 0
    several_labels: int = 0
    last: int = 0
    """Wrong answers that are the last label which the facts mention."""
    could_be_last: int = 0
    """Wrong answers that name one label, where the last one mentioned is not the target."""
    prefix_hit: int = 0
    another_needle: int = 0
    distractor: int = 0
    other_text: int = 0
    """Nothing that is known of the conversation."""
    unknown_texts: int = 0
    """Answers of whose conversation only the asked text is known."""

    @property
    def evenness(self) -> float | None:
        """Entropy of the wrong labels over that of a uniform spread: 1 even, 0 all the same; None without any."""
        total = sum(self.labels.values())
        if not total or self.num_labels < 2:
            return None
        shares = np.array(list(self.labels.values())) / total
        return float(-(shares * np.log(shares)).sum() / np.log(self.num_labels)) + 0.0


def mistakes(arms: Sequence[Arm]) -> list[Mistakes]:
    """Read every answer of the runs and count; arm by arm, subsets in natural order, lengths from short to long."""
    found: dict[tuple[str, ...], Mistakes] = {}
    for arm in arms:
        for run in arm.runs:
            for path in run.paths:
                _count(arm.name, RunFolder.open(path), found)
    order = {arm.name: number for number, arm in enumerate(arms)}
    return sorted(found.values(), key=lambda m: (order[m.arm], m.task, natural(m.subset), parse_length(m.length)))


def _count(arm: str, folder: RunFolder, found: dict[tuple[str, ...], Mistakes]) -> None:
    answered = [p for p in folder.recorded().values() if p.output is not None]
    conversations = _conversations(folder, answered) if folder.config.get("task") == "mrcr" else {}
    for p in answered:
        key = (arm, p.task, p.subset, p.length)
        cell = found.setdefault(key, Mistakes(arm=arm, task=p.task, subset=p.subset, length=p.length))
        cell.answers += 1
        if p.task == "babilong":
            _count_labels(cell, p)
        elif p.task == "mrcr":
            _count_texts(cell, p, conversations.get((p.subset, p.sample_id)))


def _count_labels(cell: Mistakes, p: Prediction) -> None:
    labels = [label.lower() for label in load_card("babilong").subsets[p.subset].labels]
    cell.num_labels = len(labels)
    output = p.output or ""
    if corrected(output, p.question, p.target, labels, p.subset):
        return
    cell.wrong += 1
    named = corrected_labels(output, p.question, labels, p.subset)
    if len(named) != 1:
        cell.no_label += not named
        cell.several_labels += bool(named)
        return
    (label,) = named
    cell.labels[label] += 1
    mentioned = _last_mentioned(p.metadata.get("facts", ()), labels)
    if mentioned and mentioned != p.target.lower():
        cell.could_be_last += 1
        cell.last += label == mentioned


def _last_mentioned(facts: Sequence[str], labels: Iterable[str]) -> str | None:
    """Return the label that the latest fact names (its last one, if several); None where no fact names any."""
    for fact in reversed(facts):
        places = {label: f" {fact.lower()} ".replace(".", " ").rfind(f" {label} ") for label in labels}
        best = max(places, key=lambda label: places[label], default=None)
        if best is not None and places[best] >= 0:
            return best
    return None


class _Conversation(NamedTuple):
    """The texts that a generated conversation holds."""

    sample: Sample
    benchmark: MRCR

    def has_distractor(self, reply: Words, prompt_tokens: int) -> bool:
        """Tell whether a reply is one of the distractors that a prompt of so many tokens can hold."""
        left = prompt_tokens * _MOST_CHARS_PER_TOKEN
        for text in self.benchmark.distractor_texts(self.sample):
            if _share(reply, text) >= SAME_TEXT:
                return True
            left -= len(text)
            if left < 0:
                return False
        return False


def _count_texts(cell: Mistakes, p: Prediction, conversation: _Conversation | None) -> None:
    prefix, rule = str(p.metadata["prefix"]), str(p.metadata["rule"])
    output = p.output or ""
    cell.prefix_hit += graded(output, p.target, prefix, rule).prefix_hit
    cell.unknown_texts += conversation is None
    asked = p.target.removeprefix(prefix)
    reply = _runs_of_words(without_reasoning(output).rpartition(prefix)[2])
    needles = conversation.sample.facts if conversation else ()
    shares = [_share(reply, text) for text in (asked, *(text for text in needles if text != asked))]
    best = int(np.argmax(shares))
    if shares[best] >= SAME_TEXT:
        cell.another_needle += best > 0
        cell.wrong += best > 0
        return
    cell.wrong += 1
    if reply and conversation and conversation.has_distractor(reply, p.prompt_tokens):
        cell.distractor += 1
    else:
        cell.other_text += 1


def _share(reply: Words, text: str) -> float:
    """Share of a reply's runs of three words that a text holds; 0 for an empty reply."""
    return len(reply & _runs_of_words(text)) / max(len(reply), 1)


@functools.lru_cache(maxsize=4096)  # distractors are shared by the samples of a run
def _runs_of_words(text: str) -> Words:
    words = text.split()
    return frozenset(tuple(words[i : i + 3]) for i in range(max(len(words) - 2, min(len(words), 1))))


def _conversations(folder: RunFolder, answered: Sequence[Prediction]) -> dict[tuple[str, str], _Conversation]:
    """Make the conversations of a generated run again; only those of which the target is a needle."""
    targets = {(p.subset, p.sample_id): p.target.removeprefix(str(p.metadata["prefix"])) for p in answered}
    try:
        config = recorded_config(folder)
        benchmark = open_benchmark(config.task, config.data, seed=config.seed, count_tokens=None)
    except EvalkitError:
        return {}  # an older or an imported run, or one whose rows are gone
    if not isinstance(benchmark, MRCR) or not benchmark.generated:
        return {}
    samples = (
        sample
        for subset in {p.subset for p in answered}
        for sample in benchmark.samples(subset, config.lengths[0], config.samples or len(answered))
    )
    made = {(sample.subset, sample.sample_id): _Conversation(sample, benchmark) for sample in samples}
    return {key: found for key, found in made.items() if targets.get(key) in found.sample.facts}


MISTAKE_COLUMNS = (
    "arm", "task", "subset", "length", "answers", "wrong", "one_label", "no_label", "several_labels", "evenness",
    "first_label", "first_count", "second_label", "second_count", "last_mentioned", "could_be_last", "prefix_hit",
    "another_needle", "distractor", "other_text", "unknown_texts",
)  # fmt: skip


def mistake_rows(found: Iterable[Mistakes]) -> Iterable[Mapping[str, Any]]:
    """Return the rows of errors.csv: counts, and evenness from 0 to 1."""
    for m in found:
        row: dict[str, Any] = {
            name: getattr(m, name) for name in ("arm", "task", "subset", "length", "answers", "wrong")
        }
        if m.task == "babilong":
            top = [*top_labels(m), ("", 0), ("", 0)]
            row |= {"one_label": sum(m.labels.values()), "no_label": m.no_label, "several_labels": m.several_labels}
            row |= {"evenness": m.evenness, "last_mentioned": m.last, "could_be_last": m.could_be_last}
            for word, (label, count) in zip(("first", "second"), top, strict=False):
                row |= {f"{word}_label": label, f"{word}_count": count}
        if m.task == "mrcr":
            row |= {
                name: getattr(m, name)
                for name in ("prefix_hit", "another_needle", "distractor", "other_text", "unknown_texts")
            }
        yield row


def top_labels(m: Mistakes) -> list[tuple[str, int]]:
    """Return the two labels most often named wrongly."""
    return sorted(m.labels.items(), key=lambda item: (-item[1], item[0]))[:2]


_TABLE_COLUMNS = {
    "babilong": ("Answers", "Wrong", "One label", "No label", "Several", "Evenness", "Most named", "Next",
                 "Last mentioned"),
    "mrcr": ("Answers", "Wrong", "Prefix hit", "Another needle", "Distractor", "Other text", "Texts unknown"),
}  # fmt: skip
_CAPTIONS = {
    "babilong": (
        "Counts of answers, of wrong ones (corrected rule), and of those that name one label, none or several. "
        "Evenness: entropy of the labels wrongly named over that of an even spread, in percent; low by chance where "
        "few answers are wrong. Last mentioned: wrong answers that are the last label in the facts, of those where "
        "that is not the right one."
    ),
    "mrcr": (
        "Counts of answers. Wrong: not the asked text came back (a text comes back where it holds half of the reply's "
        "runs of three words). Prefix hit: by the corrected rule. Distractor: a text of the conversation that is no "
        "needle. Other text: none that is known of it. Texts unknown: answers of whose conversation the record holds "
        "only the asked text."
    ),
}


def mistake_tables(found: Iterable[Mistakes]) -> list[Table]:
    """Return one table for each task whose answers tell."""
    by_task: dict[str, list[Mistakes]] = {}
    for m in found:
        by_task.setdefault(m.task, []).append(m)
    return [
        Table(
            name=f"errors-{task}",
            title=f"{task_title(task)}: kinds of errors",
            caption=_CAPTIONS[task],
            columns=("Arm", "Subset", "Length", *_TABLE_COLUMNS[task]),
            num_labels=2,
            rows=tuple(Row(group=f"{m.arm} {m.subset}", entries=tuple(_entries(m))) for m in cells),
        )
        for task, cells in by_task.items()
        if task in _TABLE_COLUMNS
    ]


def _entries(m: Mistakes) -> Iterable[Entry]:
    tokens = parse_length(m.length)
    yield from (Entry(m.arm), Entry(m.subset), Entry(length_name(tokens), number=tokens))
    if m.task == "mrcr":
        counts = [m.answers, m.wrong, m.prefix_hit, m.another_needle, m.distractor, m.other_text, m.unknown_texts]
    else:
        counts = [m.answers, m.wrong, sum(m.labels.values()), m.no_label, m.several_labels]
    yield from (Entry(str(count), number=count) for count in counts)
    if m.task == "babilong":
        even = m.evenness
        yield Entry(NOT_RUN if even is None else f"{100 * even:.0f}", number=even)
        top = [Entry(f"{label} {count}", number=count) for label, count in top_labels(m)]
        yield from [*top, *[Entry(NOT_RUN)] * (2 - len(top))]
        yield Entry(f"{m.last} of {m.could_be_last}" if m.could_be_last else NOT_RUN, number=m.last)
