"""How probable the right answer was, where runs recorded it: a continuous measure, which tells arms apart early.

Three measures of a sample, in natural logarithms: ``log-probability`` of the right answer's tokens, their sum;
``margin`` over the best wrong label, where there are labels; ``context``, the log-probability with the context minus
that of the same question without it, where the same model was also run with ``--control no-context``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from evalkit.lengths import parse_length
from evalkit.records.folder import RunFolder
from evalkit.report.analysis import Analysis
from evalkit.report.arms import Arm, length_name
from evalkit.report.cells import NOT_RUN, Entry, Row, Table, task_title
from evalkit.report.estimates import AVERAGE
from evalkit.report.panel import Measure, Panel, make_panels
from evalkit.report.run import Run
from evalkit.report.stats import SIGNIFICANT, Estimate, holm
from evalkit.types import Prediction

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("log-probability", "margin", "context")
_Answers: TypeAlias = Mapping[tuple[str, str, str], Prediction]
"""By subset, length and sample."""


@dataclass(frozen=True, kw_only=True)
class LogprobCell:
    """The mean of a measure for one arm in a cell, or averaged over subsets; or one arm's above another's."""

    task: str
    measure: str
    arm: str
    baseline: str = ""
    """Of a difference, over the samples that both have; else ""."""
    subset: str
    length: str
    num_models: int
    estimate: Estimate
    p_holm: float | None = None
    """Of a difference, corrected over the lengths of its subset."""


def log_probabilities(analysis: Analysis) -> tuple[LogprobCell, ...]:
    """Return means and paired differences, by task and measure; empty where no run recorded any."""
    runs = [run for arm in analysis.arms for run in arm.runs if run.config.get("answer_logprob")]
    answers = {run.name: _answers(run) for run in runs}
    rows = [row for run in runs for row in _rows(run, runs, answers)]
    if not rows:
        return ()
    panels = make_panels(_frame(rows), runs)
    panels.sort(key=lambda panel: (panel.task, MEASURES.index(panel.scorer)))
    return tuple(cell for panel in panels for cell in _cells(panel, analysis.arms))


def _answers(run: Run) -> _Answers:
    recorded = (p for path in run.paths for p in RunFolder.open(path).recorded().values())
    return {(p.subset, p.length, p.sample_id): p for p in recorded if p.answer_logprob is not None}


def _rows(run: Run, runs: Sequence[Run], answers: Mapping[str, _Answers]) -> Iterator[dict[str, Any]]:
    """Yield one row per answer and measure that it has."""
    without = next((answers[other.name] for other in runs if _asks_the_same_without_context(other, run)), None)
    alone = {(subset, sample_id): p for (subset, _, sample_id), p in (without or {}).items()}
    for (subset, length, sample_id), p in answers[run.name].items():
        assert p.answer_logprob is not None
        own = p.answer_logprob
        found = {"log-probability": own.target, "margin": own.margin}
        pair = (without or {}).get((subset, length, sample_id)) or alone.get((subset, sample_id))
        if pair is not None and pair.answer_logprob is not None:
            found["context"] = own.target - pair.answer_logprob.target
        for measure, value in found.items():
            if value is not None:
                yield {
                    "run": run.name,
                    "task": p.task,
                    "subset": subset,
                    "length": length,
                    "sample_id": sample_id,
                    "story_id": p.story_id,
                    "scorer": measure,
                    "value": value,
                }


def _asks_the_same_without_context(other: Run, run: Run) -> bool:
    """The same weights under the same rope rule, asked the same questions alone."""

    def asked(one: Run) -> dict[str, Any]:
        return {name: value for name, value in one.fingerprint.items() if name != "data.control"}

    return (other.control, run.control) == ("no-context", "") and asked(other) == asked(run)


def _frame(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame(rows)
    names = [name for name in frame.columns if name != "value"]
    return frame.astype(dict.fromkeys(names, "category"))


def _cells(panel: Panel, arms: Sequence[Arm]) -> Iterator[LogprobCell]:
    """Yield the means of each arm, then the differences of the others from the first; controls are not compared."""
    present = [arm for arm in arms if panel.rows(arm.name)]
    for arm in present:
        yield from _of(panel, arm)
    compared = [arm for arm in present if not arm.control]
    for arm in compared[1:]:
        yield from _of(panel, arm, compared[0])


def _of(panel: Panel, arm: Arm, baseline: Arm | None = None) -> Iterator[LogprobCell]:
    sides = [panel.rows(side.name) for side in (arm, baseline) if side is not None]
    measure = Measure(panel, *sides)
    asked = [panel.asked_cells(row for rows in side.values() for row in rows) for side in sides]
    shared = set.intersection(*asked)
    subsets = [s for s in panel.subsets if any(s == subset for subset, _ in shared)]
    named = {AVERAGE: subsets} if len(subsets) > 1 else {}
    for name, members in (named | {s: [s] for s in subsets}).items():
        lengths = [n for n in panel.lengths if all((s, n) in shared for s in members)]
        known = {n: e for n in lengths if (e := measure.estimate(panel.weights({n: 1.0}, members))) is not None}
        tested = [n for n, e in known.items() if e.p is not None]
        corrected = dict(zip(tested, holm([known[n].p or 0.0 for n in tested]), strict=True)) if baseline else {}
        for length, estimate in known.items():
            yield LogprobCell(
                task=panel.task,
                measure=panel.scorer,
                arm=arm.name,
                baseline=baseline.name if baseline else "",
                subset=name,
                length=length,
                num_models=len(sides[0]),
                estimate=estimate,
                p_holm=corrected.get(length),
            )


LOGPROB_COLUMNS = ("task", "measure", "arm", "baseline", "subset", "length", "n", "stories", "value", "ci_low",
                   "ci_high", "p", "p_holm", "models")  # fmt: skip


def logprob_rows(cells: Iterable[LogprobCell]) -> Iterator[dict[str, Any]]:
    """Yield the rows of logprobs.csv, in natural logarithms; of a mean no p-value, for 0 is no hypothesis about it."""
    for c in cells:
        e = c.estimate
        row: dict[str, Any] = {"task": c.task, "measure": c.measure, "arm": c.arm, "baseline": c.baseline}
        row |= {"subset": c.subset, "length": c.length, "models": c.num_models}
        row |= {"n": e.n, "stories": e.num_clusters, "value": e.mean, "ci_low": e.low, "ci_high": e.high}
        yield row | ({"p": e.p, "p_holm": c.p_holm} if c.baseline or c.measure == "context" else {})


_TITLES = {
    "log-probability": "log-probability of the right answer",
    "margin": "margin of the right answer over the best wrong label",
    "context": "log-probability of the right answer, with the context minus without",
}
_CAPTIONS = {
    "log-probability": "Natural logarithm of the probability that the reply begins with the right answer, the sum over "
    "its tokens, whatever the reply was",
    "margin": "Log-probability of the right answer minus that of the likeliest wrong label: above 0 the right one is "
    "the likeliest of all",
    "context": "What the context adds to the log-probability of the right answer: the same question alone (--control "
    "no-context) is subtracted, asked at the same length where there is such an answer",
}


def logprob_tables(cells: Sequence[LogprobCell]) -> list[Table]:
    """Return one table per task and measure: every arm's mean at each length, then differences from the first arm."""
    by_table: dict[tuple[str, str], list[LogprobCell]] = {}
    for cell in cells:
        by_table.setdefault((cell.task, cell.measure), []).append(cell)
    return [_table(task, measure, own) for (task, measure), own in by_table.items()]


def _table(task: str, measure: str, cells: Sequence[LogprobCell]) -> Table:
    lengths = sorted({c.length for c in cells}, key=parse_length)
    lines: dict[tuple[str, str, str], dict[str, LogprobCell]] = {}
    for c in cells:
        lines.setdefault((c.subset, c.arm, c.baseline), {})[c.length] = c
    if any(subset == AVERAGE for subset, _, _ in lines):  # single subsets: logprobs.csv
        lines = {key: line for key, line in lines.items() if key[0] == AVERAGE}
    rows = []
    for (subset, arm, baseline), line in lines.items():
        n = sorted({c.estimate.n for c in line.values()})
        label = f"{arm} − {baseline}" if baseline else arm
        entries = [Entry(subset), Entry(label), Entry("–".join(map(str, dict.fromkeys((n[0], n[-1])))), number=n[-1])]
        entries += [_entry(line.get(length)) for length in lengths]
        rows.append(Row(group=subset, entries=tuple(entries), kind="detail" if baseline else "arm"))
    return Table(
        name=f"logprobs-{measure}-{task}",
        title=f"{task_title(task)}: {_TITLES[measure]}",
        caption=(
            f"{_CAPTIONS[measure]}. Averaged over subsets, with 95 % intervals (t over stories); below, paired "
            "differences between arms, * marks p < 0.05 after Holm's correction over the lengths of a row. n: answers, "
            "or pairs, of a length."
        ),
        columns=("Subset", "Arm", "n", *(length_name(parse_length(n)) for n in lengths)),
        num_labels=2,
        rows=tuple(rows),
    )


def _entry(cell: LogprobCell | None) -> Entry:
    if cell is None:
        return Entry(NOT_RUN)
    e, sign = cell.estimate, "+" if cell.baseline else ""
    mark = "*" if cell.p_holm is not None and cell.p_holm < SIGNIFICANT else ""
    below = "" if e.low is None or e.high is None else f"[{e.low:{sign}.2f}, {e.high:{sign}.2f}]"
    explanation = f"n = {e.n} in {e.num_clusters} stories" + (f", p = {e.p:.3g}" if cell.baseline and e.p else "")
    return Entry(f"{e.mean:{sign}.2f}{mark}", below, number=e.mean, explanation=explanation)
