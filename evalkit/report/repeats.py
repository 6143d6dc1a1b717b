"""What asking again changes: the noise floor, from runs that asked each sample more than once (``--repeat``)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalkit.benchmarks import score
from evalkit.benchmarks.reasoning import answer_of
from evalkit.lengths import parse_length
from evalkit.records.folder import RunFolder
from evalkit.report.arms import Arm, length_name
from evalkit.report.cells import NOT_RUN, Entry, Row, Table, interval_text, percent, task_title
from evalkit.report.resampling import single
from evalkit.report.stats import Interval, mean_interval
from evalkit.types import Prediction


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Answers of one arm at one length against those that the same questions got first."""

    arm: str
    task: str
    length: str
    n: int
    """Repeats with an answer, to questions that had one the first time."""
    unanswered: int
    """Other repeats."""
    changed: Interval
    """Share of the n whose text is another one."""
    score_changed: Interval
    """Share whose official score is."""


def repeated(arms: Sequence[Arm]) -> list[Repeated]:
    """Compare every repeat with the first answer, arm by arm, lengths from short to long, subsets taken together."""
    found = []
    for arm in arms:
        pairs: dict[tuple[str, str], list[tuple[Prediction, Prediction]]] = defaultdict(list)
        for run in arm.runs:
            for path in run.paths if run.config.get("scope", {}).get("repeat", 1) > 1 else ():
                folder = RunFolder.open(path)
                recorded = folder.recorded()
                for latest in folder.repeats().values():
                    for key, again in latest.items():
                        if key in recorded:
                            pairs[key.task, key.length].append((recorded[key], again))
        for task, length in sorted(pairs, key=lambda cell: (cell[0], parse_length(cell[1]))):
            found.append(_compared(arm.name, task, length, pairs[task, length]))
    return found


def _compared(arm: str, task: str, length: str, pairs: Sequence[tuple[Prediction, Prediction]]) -> Repeated:
    answered = [(a, b) for a, b in pairs if answer_of(a) is not None and answer_of(b) is not None]
    stories = [f"{a.subset} {a.story_id}" for a, _ in answered]

    def share(differ: Iterable[bool]) -> Interval:
        return mean_interval(single([float(one) for one in differ], stories), np.ones(1))

    return Repeated(
        arm=arm,
        task=task,
        length=length,
        n=len(answered),
        unanswered=len(pairs) - len(answered),
        changed=share(a.output != b.output for a, b in answered),
        score_changed=share(_official(a) != _official(b) for a, b in answered),
    )


def _official(prediction: Prediction) -> float | None:
    return next(one.value for one in score(prediction) if one.scorer == "official")


REPEAT_COLUMNS = ("arm", "task", "length", "n", "unanswered", "changed", "changed_ci_low", "changed_ci_high",
                  "score_changed", "score_changed_ci_low", "score_changed_ci_high")  # fmt: skip


def repeat_rows(found: Iterable[Repeated]) -> Iterator[dict[str, Any]]:
    """Yield the rows of repeats.csv; shares in percent."""
    for one in found:
        row: dict[str, Any] = {"arm": one.arm, "task": one.task, "length": one.length, "n": one.n}
        row["unanswered"] = one.unanswered
        for name in ("changed", "score_changed"):
            interval: Interval = getattr(one, name)
            row |= {name: percent(interval.mean), f"{name}_ci_low": percent(interval.low)}
            row[f"{name}_ci_high"] = percent(interval.high)
        yield row


def repeat_tables(found: Sequence[Repeated]) -> list[Table]:
    """Return one table per task: what share of answers, and of scores, changed when the same was asked again."""
    return [
        Table(
            name=f"repeats-{task}",
            title=f"{task_title(task)}: answers that changed when the same was asked again",
            caption=(
                "Percent of the repeats (--repeat) whose text, and whose official score, is another one than the first "
                "time, with 95 % intervals: the noise floor, below which a difference between arms may be chance. n: "
                "repeats that were answered both times. No score of the other tables has them."
            ),
            columns=("Arm", "Length", "n", "Unanswered", "Answers changed", "Scores changed"),
            num_labels=1,
            rows=tuple(_row(one) for one in found if one.task == task),
        )
        for task in dict.fromkeys(one.task for one in found)
    ]


def _row(one: Repeated) -> Row:
    tokens = parse_length(one.length)
    entries = [
        Entry(one.arm),
        Entry(length_name(tokens), number=tokens),
        Entry(str(one.n), number=one.n),
        Entry(str(one.unanswered), number=one.unanswered),
        *(_share(interval) for interval in (one.changed, one.score_changed)),
    ]
    return Row(group=one.arm, entries=tuple(entries))


def _share(interval: Interval) -> Entry:
    if interval.mean is None:
        return Entry(NOT_RUN)
    return Entry(f"{100 * interval.mean:.1f}", interval_text(interval), number=100 * interval.mean)
