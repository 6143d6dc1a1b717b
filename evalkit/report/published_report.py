"""A report on published tables alone: scores, paired differences, means, figures."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evalkit.files import write_whole
from evalkit.lengths import parse_length
from evalkit.report import render
from evalkit.report.arms import length_name, span
from evalkit.report.cells import NOT_RUN, Entry, Row, Table, interval_text, task_title
from evalkit.report.drawing import Drawing
from evalkit.report.latex import appendix
from evalkit.report.provenance import stamp
from evalkit.report.published import Count, Published, arm_names
from evalkit.report.published_figures import by_name, mean_over, published_drawings, question_sets, set_title
from evalkit.report.published_pairs import PairedCounts, compare_pairs
from evalkit.report.stats import SIGNIFICANT, Interval
from evalkit.report.style import save
from evalkit.report.terminal import terminal, terminal_width

_KEYS = ("task", "subset", "questions", "zone")
_COUNT_COLUMNS = (*_KEYS, "arm", "model", "range", "train_factor", "serve_factor", "length", "n", "correct", "score",
                  "ci_low", "ci_high", "interval", "quoted", "source")  # fmt: skip
_PAIR_COLUMNS = (*_KEYS, "first", "second", "length", "n", "first_only", "second_only", "both", "neither",
                 "difference", "ci_low", "ci_high", "p", "p_holm", "p_mcnemar", "source")  # fmt: skip


def write_published(published: Published, out: Path, record: dict[str, Any]) -> tuple[str, list[Path]]:
    """Write tables and figures of published figures into ``out``; return the text for a terminal, and the files.

    Args:
        record: from ``provenance``.

    Raises:
        OSError: ``out`` cannot be written.
    """
    paired = compare_pairs(published.pairs)
    tables = published_tables(published, paired)
    drawings = published_drawings(published, paired)
    out.mkdir(parents=True, exist_ok=True)
    origin = stamp(record)
    texts = {
        "report.md": _markdown(published, tables, drawings, origin),
        "tables.tex": appendix(tables, origin),
        "published.csv": render.csv_text(_COUNT_COLUMNS, map(count_row, published.counts)),
        "report.json": render.json_text(record),
    }
    if paired:
        texts["pairs.csv"] = render.csv_text(_PAIR_COLUMNS, map(_pair_row, paired))
    for name, text in texts.items():
        write_whole(out / name, text)
    files = [out / name for name in texts]
    for drawing in drawings:
        files += save(drawing.figure(), out, drawing.name, origin)
    width, said = terminal_width(), set[str]()
    return "\n\n".join(terminal(table, width, said) for table in tables), files


def published_tables(published: Published, paired: Sequence[PairedCounts]) -> list[Table]:
    """Return the scores of each set of questions, the paired differences, and the means without an n."""
    tables = [_scores(counts, _mean_lengths(published, counts[0].task)) for counts in question_sets(published.counts)]
    sets = dict.fromkeys((p.pair.task, p.pair.subset, p.pair.questions) for p in paired)
    for key in sets:
        tables.append(_differences([p for p in paired if (p.pair.task, p.pair.subset, p.pair.questions) == key]))
    if published.means:
        tables.append(_means(published))
    return tables


def _mean_lengths(published: Published, task: str) -> list[tuple[str, ...]]:
    """The lengths over which the source itself takes means."""
    return list(dict.fromkeys(mean.lengths for mean in published.means if mean.task == task))


def _scores(counts: Sequence[Count], means: Sequence[tuple[str, ...]]) -> Table:
    names = arm_names(counts)
    lengths = list(dict.fromkeys(c.length for c in counts))
    rows = []
    for zone in dict.fromkeys(c.zone for c in counts):
        for name, own in by_name([c for c in counts if c.zone == zone], names).items():
            found = {c.length: c for c in own}
            ns = sorted({c.n for c in own})
            entries = (
                Entry(zone or "all"),
                Entry(name),
                Entry("–".join(map(str, dict.fromkeys((ns[0], ns[-1])))), number=ns[-1]),
                *(_interval(found[n].interval if n in found else None) for n in lengths),
                *(_interval(mean_over(own, over)) for over in means),
            )
            rows.append(Row(group=zone, entries=entries, kind="published"))
    methods = "; ".join(sorted({c.interval.method for c in counts}))
    return Table(
        name=f"published-{'-'.join(filter(None, (counts[0].task, counts[0].subset, counts[0].questions)))}",
        title=f"{set_title(counts[0])}: published scores",
        caption=(
            f"0 to 100, with 95 % intervals from the number of questions ({methods}). Means over lengths: plain ones; "
            "their intervals have the means of the lengths' ends, which holds whatever the lengths have in common. "
            f"Source: {counts[0].source}."
        ),
        columns=(
            "Facts",
            "Arm",
            "n",
            *(length_name(parse_length(n)) for n in lengths),
            *(f"Mean {span(map(parse_length, over))}" for over in means),
        ),
        num_labels=2,
        rows=tuple(rows),
    )


def _differences(paired: Sequence[PairedCounts]) -> Table:
    first = paired[0].pair
    rows = []
    for found in paired:
        p = found.pair
        mark = "*" if found.p_holm < SIGNIFICANT else ""
        interval = Interval(found.difference, found.low, found.high, "")
        entries = (
            Entry(f"{p.first} − {p.second}"),
            Entry(p.zone or "all"),
            Entry(length_name(parse_length(p.length)), number=parse_length(p.length)),
            *(Entry(str(n), number=n) for n in (p.n, p.first_only, p.second_only, p.both, p.neither)),
            Entry(
                f"{100 * found.difference:+.1f}{mark}", interval_text(interval, signed=True), number=found.difference
            ),
            *(_p_value(value) for value in (found.p, found.p_holm, found.p_mcnemar)),
        )
        rows.append(Row(group=f"{p.first} − {p.second}, {p.zone}", entries=entries, kind="published"))
    return Table(
        name=f"pairs-{'-'.join(filter(None, (first.task, first.subset, first.questions)))}",
        title=f"{', '.join(filter(None, (f'{task_title(first.task)} {first.subset}', first.questions)))}: "
        "paired differences between published arms",
        caption=(
            "Points of the first arm above the second on the same questions, with 95 % intervals; p belongs to the "
            "same t statistic, * marks p < 0.05 after Holm's correction over all cells of a pair of arms (pooled: over "
            "its lengths). McNemar: exact, two-sided. Pooled over zones, the interval and p add up the zones' errors, "
            "since the same stories stand in each; McNemar's p there takes answers in different zones for independent. "
            f"One training seed. Source: {first.source}."
        ),
        columns=("Arms", "Facts", "Length", "n", "First only", "Second only", "Both", "Neither", "Difference", "p",
                 "p (Holm)", "McNemar"),
        num_labels=2,
        rows=tuple(rows),
    )  # fmt: skip


def _means(published: Published) -> Table:
    rows = [
        Row(
            group=mean.task,
            entries=(
                Entry(task_title(mean.task)),
                Entry(mean.arm),
                Entry(mean.model or NOT_RUN),
                Entry(span(map(parse_length, mean.lengths))),
                Entry(f"{100 * mean.mean:.1f}", number=100 * mean.mean),
                Entry(mean.source),
            ),
            kind="published",
        )
        for mean in published.means
    ]
    return Table(
        name="published-means",
        title="Published means over lengths",
        caption="0 to 100; no number of questions is given with them, so they have no interval.",
        columns=("Task", "Arm", "Model", "Lengths", "Mean", "Source"),
        num_labels=3,
        rows=tuple(rows),
    )


def _interval(interval: Interval | None) -> Entry:
    if interval is None or interval.mean is None:
        return Entry(NOT_RUN)
    return Entry(
        f"{100 * interval.mean:.1f}", interval_text(interval), number=100 * interval.mean, explanation=interval.method
    )


def _p_value(p: float) -> Entry:
    return Entry("<0.0001" if p < 0.0001 else f"{p:.4f}", number=p)


def _markdown(published: Published, tables: Iterable[Table], drawings: Iterable[Drawing], origin: str) -> str:
    figures = [f"- `{d.name}`: {render.markdown_text(f'{d.title}. {d.description}')}" for d in drawings]
    parts = [
        "# Published figures",
        f"Others' counts and means ({render.markdown_text(published.sources)}), for orientation. Intervals cover the "
        "questions asked, not another training seed.",
        *(["## Figures", "\n".join(figures)] if figures else []),
        "## Tables",
        *map(render.markdown, tables),
        "## Where this comes from",
        f"`{origin.replace('`', '')}`",
    ]
    return "\n\n".join(parts) + "\n"


def count_row(c: Count) -> dict[str, Any]:
    """Return a count with its interval as a row of published.csv."""
    known = {name: getattr(c, name) for name in _COUNT_COLUMNS if hasattr(c, name)}
    interval = c.interval
    return known | {
        "quoted": "yes" if c.quoted else "no",
        "score": 100 * c.mean,
        "ci_low": 100 * (interval.low or 0.0),
        "ci_high": 100 * (interval.high or 0.0),
        "interval": interval.method,
    }


def _pair_row(found: PairedCounts) -> dict[str, Any]:
    known = {name: getattr(found.pair, name) for name in _PAIR_COLUMNS if hasattr(found.pair, name)}
    return known | {
        "difference": 100 * found.difference,
        "ci_low": 100 * found.low,
        "ci_high": 100 * found.high,
        "p": found.p,
        "p_holm": found.p_holm,
        "p_mcnemar": found.p_mcnemar,
    }
