"""Tables by the value of a tag, and by the depth that the facts stand at."""

from collections.abc import Sequence

from evalkit.lengths import parse_length
from evalkit.report.analysis import Analysis
from evalkit.report.arms import length_name
from evalkit.report.cells import (
    NOT_RUN,
    Entry,
    Row,
    Table,
    counts_text,
    difference_entry,
    interval_entry,
    score_entry,
    task_title,
)
from evalkit.report.flips import Flips, RetentionDifference
from evalkit.report.groups import Group
from evalkit.report.stats import SIGNIFICANT


def group_tables(analysis: Analysis, task: str) -> list[Table]:
    """Scores by the value of a tag, where one was asked for; flips between depths, where runs were asked at several."""
    tables = []
    groups = [group for group in analysis.groups if group.task == task]
    if groups:
        tag = groups[0].tag
        tables.append(
            _group_table(
                groups,
                name=f"by-{tag}-{task}",
                title=f"{task_title(task)}: official score by {tag}",
                what=f"0 to 100 on the samples with each value of their tag {tag}; samples without it are left out",
            )
        )
    for flips in (f for f in analysis.flips if f.task == task):
        depths = ", ".join(f"{d:g}" for d in flips.depths)
        tables.append(
            _group_table(
                flips.patterns,
                name=f"flips-{task}",
                title=f"{task_title(task)}: the same story at all depths",
                what=f"Percent of the stories asked at each depth ({depths}; 0 top, 1 end), by where they are right",
            )
        )
        tables.append(
            _group_table(
                flips.zones,
                name=f"depths-{task}",
                title=f"{task_title(task)}: official score by depth",
                what="0 to 100 by the depth that the facts stand at (0 the top, 1 the end)",
            )
        )
        tables += _retention_table(flips)
    return tables


def _group_table(groups: Sequence[Group], *, name: str, title: str, what: str) -> Table:
    """Scores of each arm in each group, then points above the baseline."""
    lengths = sorted({c.length for group in groups for c in group.cells}, key=parse_length)
    tag = groups[0].tag
    rows = []
    for group in groups:
        label = Entry(group.value if " " in group.value else f"{tag} {group.value}")
        for arm in dict.fromkeys(c.arm for c in group.cells):
            own = {c.length: c for c in group.cells if c.arm == arm}
            n = Entry(counts_text(c.n for c in own.values()), number=max(c.n for c in own.values()))
            scores = [score_entry(own.get(length), best=False, is_listed=False) for length in lengths]
            rows.append(Row(group=group.value, entries=(label, Entry(arm), n, *scores)))
        for c in group.comparisons:
            cells = [difference_entry(c.by_length.get(length), c.by_length_p_holm.get(length)) for length in lengths]
            n = Entry(counts_text(d.n for d in c.by_length.values()))
            entries = (label, Entry(f"{c.arm} − {c.baseline}"), n, *cells)
            rows.append(Row(group=group.value, entries=entries, kind="detail"))
    return Table(
        name=name,
        title=title,
        caption=(
            f"{what}. Averaged over the subsets that have such samples, with 95 % intervals; below, paired differences "
            "in points, * marks p < 0.05 after Holm's correction over the lengths of a row. n: scored samples, or "
            "pairs, of a length."
        ),
        columns=("Samples", "Arm", "n", *(length_name(parse_length(n)) for n in lengths)),
        num_labels=2,
        rows=tuple(rows),
    )


def _retention_table(flips: Flips) -> list[Table]:
    if all(interval.mean is None for _, _, interval in flips.retention):
        return []
    found = {(arm, depth): interval for arm, depth, interval in flips.retention}
    rows = [
        Row(group="", entries=(Entry(arm), *(interval_entry(found[arm, d]) for d in flips.depths)))
        for arm in dict.fromkeys(arm for arm, _, _ in flips.retention)
    ]
    differences = {(one.arm, one.baseline, one.depth): one for one in flips.retention_differences}
    for arm, baseline in dict.fromkeys((arm, baseline) for arm, baseline, _ in differences):
        cells = [_retention_difference(differences.get((arm, baseline, d))) for d in flips.depths]
        rows.append(Row(group="", entries=(Entry(f"{arm} − {baseline}"), *cells), kind="detail"))
    return [
        Table(
            name=f"depth-retention-{flips.task}",
            title=f"{task_title(flips.task)}: retention by depth",
            caption=(
                "Score at lengths beyond the trained one, in percent of that up to it, by the depth that the facts "
                "stand at, with Fieller's 95 % intervals; below, the difference of two arms' retentions in points, on "
                "the same stories (t over stories of the linearised ratios), * marks p < 0.05 after Holm's correction "
                "over the depths of a row."
            ),
            columns=("Arm", *(f"Depth {d:g}" for d in flips.depths)),
            num_labels=1,
            rows=tuple(rows),
        )
    ]


def _retention_difference(found: RetentionDifference | None) -> Entry:
    if found is None:
        return Entry(NOT_RUN)
    one, mark = found.estimate, "*" if found.p_holm is not None and found.p_holm < SIGNIFICANT else ""
    below = "" if one.low is None or one.high is None else f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
    explanation = f"{one.n} pairs in {one.num_clusters} stories"
    return Entry(f"{100 * one.mean:+.1f}{mark}", below, number=100 * one.mean, explanation=explanation)
