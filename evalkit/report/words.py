"""The summary in words: what a person should take away, and how sure it is."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evalkit.lengths import parse_length
from evalkit.report.analysis import Analysis
from evalkit.report.arms import length_name, span
from evalkit.report.cells import effective_text, interval_text, task_title
from evalkit.report.comparison import Comparison, Verdict
from evalkit.report.estimates import ArmSummary
from evalkit.report.stats import SIGNIFICANT, Contrast


class Finding(NamedTuple):
    """What one task says."""

    title: str
    verdicts: tuple[str, ...]
    """The primary comparisons, put together by their verdict, the largest differences first; alone, each arm."""
    each: tuple[str, ...]
    """Every arm against the baseline, the best first; empty where nothing is compared."""
    caveats: tuple[str, ...]
    """What the intervals are about."""


MOST_NAMED = 6
"""Arms of one verdict that are named; tables have them all."""


def findings(analysis: Analysis, most: int = MOST_NAMED) -> list[Finding]:
    """Return what each task says, by the first of its scorers; a sentence names ``most`` arms."""
    found = []
    for task in analysis.tasks:
        scorer = analysis.scorers(task)[0]
        compared = [c for c in analysis.comparisons if (c.task, c.scorer) == (task, scorer)]
        summaries = {s.arm: s for s in analysis.summaries if (s.task, s.scorer) == (task, scorer)}
        verdicts = [_verdict_sentence(compared, verdict, analysis.margin, most) for verdict in _VERDICTS]
        each = []
        for c in _largest_first(compared):
            each += [compared_sentence(c, summaries, analysis.margin), order_sentence(c)]
        found.append(
            Finding(
                task_title(task),
                verdicts=tuple(filter(None, verdicts)) or tuple(map(_alone, summaries.values())),
                each=tuple(filter(None, each)),
                caveats=tuple(caveats(compared, most)),
            )
        )
    return found


_VERDICTS: tuple[Verdict | None, ...] = ("better", "worse", "equivalent", "undecided", None)


def _verdict_sentence(compared: Sequence[Comparison], verdict: Verdict | None, margin: float, most: int) -> str:
    own = [c for c in compared if c.verdict == verdict]
    if not own:
        return ""
    baseline = own[0].baseline
    begin = {
        "better": f"Better than {baseline}",
        "worse": f"Worse than {baseline}",
        "equivalent": f"Equivalent to {baseline} within {margin:g} points",
        "undecided": f"Undecided against {baseline}",
        None: f"No length with scores of both to compare with {baseline}",
    }[verdict]
    spans = {_span(c) for c in own}
    where = f" at {spans.pop()}" if len(spans) == 1 and verdict else ""
    ordered = sorted(own, key=lambda c: -abs(c.primary.mean) if c.primary else 0)
    named = []
    for c in ordered[:most]:
        points = f" {100 * c.primary.mean:+.1f} {interval_text(c.primary, signed=True)}" if c.primary else ""
        named.append(f"{c.arm}{points}{f' at {_span(c)}' if verdict and not where else ''}")
    more = f"; and {len(own) - most} more" if len(own) > most else ""
    return f"{begin}{where}: {'; '.join(named)}{more}."


def _span(c: Comparison) -> str:
    return span(parse_length(n) for n in c.lengths)


def compared_sentence(c: Comparison, summaries: dict[str, ArmSummary], margin: float) -> str:
    """Return "Randomized YaRN is better: 12.4 points [8.1, 16.6] above plain at 16K to 128K; effective length ..."."""
    if c.primary is None:
        beyond = f" beyond the trained {length_name(c.trained_length)}" if c.trained_length else ""
        return f"{c.arm} and {c.baseline} have no length{beyond} with scores of both in every subset that they share."
    sentence = difference_sentence(c, c.primary, margin)
    own, theirs = summaries.get(c.arm), summaries.get(c.baseline)
    if own and theirs and own.effective and theirs.effective:
        sentence += f"; effective length {effective_text(own.effective)} against {effective_text(theirs.effective)}"
    return sentence + "."


def difference_sentence(c: Comparison, primary: Contrast, margin: float) -> str:
    """Say the verdict, what it rests on, and what could have been seen where it is undecided."""
    where = span(parse_length(n) for n in c.lengths)
    points, interval = 100 * primary.mean, interval_text(primary, signed=True)
    if c.verdict in ("better", "worse"):
        low, high = sorted((100 * abs(primary.low), 100 * abs(primary.high)))
        side = "above" if points > 0 else "below"
        return (
            f"{c.arm} is {c.verdict}: {abs(points):.1f} points [{low:.1f}, {high:.1f}] {side} {c.baseline} at {where}"
        )
    if c.verdict == "equivalent":
        found = f"{points:+.1f} points {interval}"
        return f"{c.arm} and {c.baseline} are equivalent within {margin:g} points at {where}: {found}"
    undecided = f"{c.arm} against {c.baseline} is undecided at {where}: {points:+.1f} points {interval}"
    if primary.p < SIGNIFICANT:
        p = f"p = {c.primary_p_holm:.2f}"
        return f"{undecided}, which leaves out 0, but not after correction for all comparisons ({p})"
    if primary.detectable >= 1:
        return f"{undecided}, from too few samples for any true difference to be seen"
    seen = f"a true difference of {100 * primary.detectable:.1f} would have been seen four times in five"
    return f"{undecided}, neither different nor equivalent within {margin:g} points; {seen}"


def order_sentence(c: Comparison) -> str:
    """Say whether one of two arms is ahead at every length; "" where fewer than two lengths can be compared."""
    order = c.order
    if order is None:
        return ""
    where = span(parse_length(n) for n in c.by_length)
    sides = [
        f"{side} {c.baseline} at {_lengths(lengths)} (significantly at {_lengths(set(lengths) & set(order.shown))})"
        for side, lengths in (("above", order.above), ("below", order.below))
        if lengths
    ]
    told = f"{c.arm} is {' and '.join(sides) or f'level with {c.baseline}'}."
    begin = {
        "holds": "The order holds",
        "changes": "The order changes",
        "undecided": "Undecided whether the order holds",
    }
    return f"{begin[order.word]} over {where}: {told}"


def _lengths(labels: Iterable[str]) -> str:
    return ", ".join(length_name(n) for n in sorted(map(parse_length, labels))) or "none"


def caveats(compared: Sequence[Comparison], most: int = MOST_NAMED) -> list[str]:
    """Say what the intervals do not cover, and name ``most`` arms."""
    if not compared:
        return []
    if all(c.num_models == (1, 1) for c in compared):
        return [
            "One checkpoint to an arm: each difference is between these two checkpoints, not between methods; training "
            "again with other seeds could move it."
        ]
    models = {name: n for c in compared for name, n in zip((c.arm, c.baseline), c.num_models, strict=True)}
    seeds = sorted({n for n in models.values() if n > 1})
    sentences = [
        f"The intervals are over training seeds ({seeds[0]}{' or more' * (len(seeds) > 1)} to an arm) and questions."
    ]
    alone = [name for name, n in models.items() if n == 1]
    if alone:
        more = f"; and {len(alone) - most} more" if len(alone) > most else ""
        sentences.append(
            f"One checkpoint only: {'; '.join(alone[:most])}{more}. What is said of "
            f"{'it' if len(alone) == 1 else 'them'} is about checkpoints, not methods."
        )
    return sentences


def _alone(summary: ArmSummary) -> str:
    mean, interval = summary.overall.mean, interval_text(summary.overall)
    if mean is None:
        return f"{summary.arm} has no length at which every subset was scored."
    where = span(parse_length(n) for n in summary.lengths)
    sentence = f"{summary.arm} scores {100 * mean:.1f} {interval} at {where}"
    return sentence + (f", effective length {effective_text(summary.effective)}." if summary.effective else ".")


def _largest_first(compared: Sequence[Comparison]) -> list[Comparison]:
    return sorted(compared, key=lambda c: -(c.primary.mean if c.primary else -2))
