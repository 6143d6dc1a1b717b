"""Figures of published tables alone: curves, many settings by method, and where in the prompt the facts stood."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from evalkit.files import slug
from evalkit.lengths import parse_length
from evalkit.report.arms import Arm
from evalkit.report.cells import task_title
from evalkit.report.drawing import Drawing, wrapped, write_title
from evalkit.report.published import ZONES, Count, Published, arm_names
from evalkit.report.published_pairs import POOLED, PairedCounts
from evalkit.report.stats import SIGNIFICANT, Interval
from evalkit.report.style import Look, length_axis, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_CURVES = 6
"""More settings than this are drawn by method."""
_WHERE = {"beginning": "at the beginning", "middle": "in the middle", "end": "at the end"}
_GREY, _BEST, _QUOTED = "#bbbbbb", "#D55E00", "#0072B2"


def published_drawings(published: Published, paired: Sequence[PairedCounts]) -> list[Drawing]:
    """Return a figure for each set of questions."""
    found = []
    for counts in question_sets(published.counts):
        names = arm_names(counts)
        if any(c.zone for c in counts):
            first = counts[0]
            own = [p for p in paired if (p.pair.task, p.pair.subset, p.pair.questions) == _set_of(first)]
            found.append(_zones(counts, names, own))
        elif len(set(names.values())) > _MOST_CURVES:
            found.append(_families(counts, names))
        else:
            found.append(_curves(counts, names))
    return found


def question_sets(counts: Iterable[Count]) -> list[list[Count]]:
    """Group counts by task, subset and set of questions, in the order of the tables; lengths from short to long."""
    groups: dict[tuple[str, str, str], list[Count]] = {}
    for c in counts:
        groups.setdefault(_set_of(c), []).append(c)
    return [sorted(own, key=lambda c: parse_length(c.length)) for own in groups.values()]


def set_title(c: Count) -> str:
    """Return "BABILong qa3, 305 stories"."""
    return ", ".join(filter(None, (f"{task_title(c.task)} {c.subset}", c.questions)))


def unpaired_difference(first: Count, second: Count) -> Interval:
    """Return first minus second with Newcombe's interval for independent samples, from both Wilson intervals.

    Published counts do not tell which questions both had right. The same questions usually make the true interval
    narrower. Source: Newcombe 1998, Statistics in Medicine 17, 873-890, method 10.
    """
    a, b = first.interval, second.interval
    difference = first.mean - second.mean
    low = difference - math.hypot(first.mean - (a.low or 0.0), (b.high or 1.0) - second.mean)
    high = difference + math.hypot((a.high or 1.0) - first.mean, second.mean - (b.low or 0.0))
    return Interval(difference, low, high, "newcombe, unpaired")


def mean_over(counts: Sequence[Count], lengths: Sequence[str]) -> Interval | None:
    """Return the plain mean of an arm's scores over lengths; None where one is missing.

    The ends of the interval are the means of the lengths' own: the same questions may have been asked at each, and no
    correlation between lengths makes it wider than that.
    """
    own = {c.length: c for c in counts}
    if not all(n in own for n in lengths):
        return None
    parts = [own[n].interval for n in lengths]
    low, high = (sum(getattr(i, end) for i in parts) / len(parts) for end in ("low", "high"))
    return Interval(sum(own[n].mean for n in lengths) / len(lengths), low, high, "ends averaged")


def _set_of(c: Count) -> tuple[str, str, str]:
    return c.task, c.subset, c.questions


def by_name(counts: Sequence[Count], names: Mapping[str, str]) -> dict[str, list[Count]]:
    """Group counts by the arm's full name, in the order of the table."""
    own: dict[str, list[Count]] = {}
    for c in counts:
        own.setdefault(names[c.where], []).append(c)
    return own


def _curves(counts: Sequence[Count], names: Mapping[str, str]) -> Drawing:
    """Scores of every arm, and below, what each is above the first one."""
    arms = by_name(counts, names)
    baseline, *others = arms
    style = _looks(arms)
    lengths = list(dict.fromkeys(c.length for c in counts))

    def draw() -> "Figure":
        figure = _figure(6.6, 5.6 if others else 3.9)
        axes = figure.subplots(
            2 if others else 1,
            1,
            squeeze=False,
            sharex=True,
            gridspec_kw={"height_ratios": [2.1, 1][: 1 + bool(others)]},
        )[:, 0]
        places = length_axis(axes[0], lengths, label=not others)
        for name, own in arms.items():
            _draw(axes[0], own, [c.interval for c in own], places, style[name])
        _score_axis(axes[0])
        axes[0].set_title(wrapped(f"{set_title(counts[0])} (published)", 420, 10))
        if others:
            for name in others:
                pairs = [(a, b) for a in arms[name] for b in arms[baseline] if a.length == b.length]
                _draw(axes[1], [a for a, _ in pairs], [unpaired_difference(*p) for p in pairs], places, style[name])
            axes[1].axhline(0, color=style[baseline].colour, linewidth=1)
            length_axis(axes[1], lengths)
            axes[1].set_ylabel(wrapped(f"minus {baseline}", 112, 9))
            axes[1].grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axes[0].legend(loc="lower left", fontsize=8)
        return figure

    return Drawing(
        name=slug(f"curve-{'-'.join(filter(None, _set_of(counts[0])))}"),
        title=f"{set_title(counts[0])}: published scores over length",
        description=(
            "Score (0 to 100) over context length with 95 % intervals from the number of questions"
            f" (n = {_counts(counts)})."
            + (f" Below: points above {baseline}, as if the questions were not the same ones." if others else "")
        ),
        draw=draw,
    )


def _families(counts: Sequence[Count], names: Mapping[str, str]) -> Drawing:
    """One panel for each method, with or without YaRN at inference: all settings in grey, the best and the quoted."""
    arms = by_name(counts, names)
    lengths = list(dict.fromkeys(c.length for c in counts))
    beyond = lengths[1:] or lengths
    families: dict[str, list[str]] = {}
    for name, own in arms.items():
        families.setdefault(own[0].arm.removesuffix(" + YaRN"), []).append(name)

    def mean(name: str) -> float:
        found = mean_over(arms[name], beyond)
        return found.mean or 0.0 if found else 0.0

    def draw() -> "Figure":
        across = 3
        down = -(-len(families) // across)
        figure = _figure(9.6, 2.75 * down)
        axes = figure.subplots(down, across, sharey=True, squeeze=False).flat
        for i, (place, (family, members)) in enumerate(zip(axes, families.items(), strict=False)):
            places = length_axis(place, lengths, label=i + across >= len(families))
            best = max(members, key=mean)
            for name in members:
                xs = [places[c.length] for c in arms[name]]
                place.plot(xs, [100 * c.mean for c in arms[name]], color=_GREY, linewidth=0.9, zorder=1)
            quoted = [name for name in members if name != best and any(c.quoted for c in arms[name])]
            for name, colour, word in [(best, _BEST, "best"), *((name, _QUOTED, "quoted") for name in quoted)]:
                if word == "best" and any(c.quoted for c in arms[name]):
                    word = "best and quoted" if len(members) > 1 else "quoted"
                elif len(members) == 1:
                    word = "only"
                known = f" ({100 * mean(name):.1f})" if mean(name) else ""
                label = f"{word}: {_setting(arms[name][0])}{known}"
                look = Look(colour, "o" if colour == _BEST else "s", "-", label)
                _draw(place, arms[name], [c.interval for c in arms[name]], places, look)
            _score_axis(place, label=i % across == 0)
            heading = f"{family} ({len(members)} setting{'s' * (len(members) > 1)})"
            place.set_title(wrapped(heading, 190, 9), fontsize=9)
            place.tick_params(axis="x", labelsize=8)
            place.legend(loc="lower left", fontsize=6.5)
        for place in list(figure.axes)[len(families) :]:
            place.set_visible(False)
        write_title(figure, f"{set_title(counts[0])} (published)")
        return figure

    return Drawing(
        name=slug(f"methods-{'-'.join(filter(None, _set_of(counts[0])))}"),
        title=f"{set_title(counts[0])}: published settings by method",
        description=(
            "Mean score (0 to 100) over context length, one panel for each method, one line for each setting of "
            "positions and rope factors in training and at inference. In brackets the mean over "
            f"{beyond[0].upper()} to {beyond[-1].upper()}. The best one was chosen on these same questions, so its "
            f"mean is too high. Bands: 95 % intervals from the number of questions (n = {_counts(counts)}), at the "
            "largest variance that a mean of shares can have. Blue: what the paper quotes."
        ),
        draw=draw,
    )


def _zones(counts: Sequence[Count], names: Mapping[str, str], paired: Sequence[PairedCounts]) -> Drawing:
    """Scores by zone above, paired differences below, and the zones pooled in the last column."""
    arms = by_name(counts, names)
    style = _looks(arms)
    zones = [zone for zone in ZONES if any(c.zone == zone for c in counts)]
    lengths = list(dict.fromkeys(c.length for c in counts))
    couples = list(dict.fromkeys((p.pair.first, p.pair.second) for p in paired))
    columns = [*zones, *([POOLED] if any(p.pair.zone == POOLED for p in paired) else [])]

    def draw() -> "Figure":
        figure = _figure(2.6 * len(columns) + 0.6, 5.8 if paired else 3.2)
        axes = figure.subplots(2 if paired else 1, len(columns), sharey="row", squeeze=False)
        for i, zone in enumerate(columns):
            top = axes[0, i]
            places = length_axis(top, lengths, label=not paired)
            top.set_title("zones pooled" if zone == POOLED else f"facts {_WHERE[zone]}")
            for name, own in arms.items():
                shown = _pool(own) if zone == POOLED else [c for c in own if c.zone == zone]
                _draw(top, shown, [c.interval for c in shown], places, style[name])
            _score_axis(top, label=i == 0)
            top.tick_params(axis="x", labelsize=7)
            for k, couple in enumerate(couples):
                own_pairs = [p for p in paired if (p.pair.first, p.pair.second) == couple and p.pair.zone == zone]
                _differences(axes[1, i], own_pairs, places, shift=0.16 * (k - (len(couples) - 1) / 2), number=k)
            if paired:
                length_axis(axes[1, i], lengths)
                axes[1, i].axhline(0, color="#444444", linewidth=0.8)
                axes[1, i].tick_params(axis="x", labelsize=7)
                axes[1, i].grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axes[0, 0].legend(loc="lower left", fontsize=7)
        if paired:
            axes[1, 0].set_ylabel("paired difference (points)")
            handles, labels = axes[1, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=len(couples), fontsize=8)
        write_title(figure, f"{set_title(counts[0])}: where the facts stand (published)")
        return figure

    return Drawing(
        name=slug(f"zones-{'-'.join(filter(None, _set_of(counts[0])))}"),
        title=f"{set_title(counts[0])}: published scores by place of the facts",
        description=(
            "Score (0 to 100) over context length by where the facts stood, with 95 % intervals (n = "
            f"{_counts(counts)} in a zone). Below: paired differences between arms on the same questions, with 95 % "
            "intervals; filled: p < 0.05 after Holm's correction over all cells of a pair of arms (pooled: over its "
            "lengths). Pooled over the zones, the zones' errors are added up, as the same stories stand in each."
        ),
        draw=draw,
    )


def _differences(
    axes: "Axes", own: Sequence[PairedCounts], places: Mapping[str, float], *, shift: float, number: int
) -> None:
    colour, marker = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")[number % 4], "osD^"[number % 4]
    for i, found in enumerate(own):
        x, y = places[found.pair.length] + shift, 100 * found.difference
        ends = [[y - 100 * found.low], [100 * found.high - y]]
        shown = found.p_holm < SIGNIFICANT
        label = f"{found.pair.first} − {found.pair.second}" if i == 0 else None
        axes.errorbar(
            [x], [y], ends, color=colour, marker=marker, markersize=4, linewidth=1, capsize=0,
            markerfacecolor=colour if shown else "white", label=label,
        )  # fmt: skip


def _pool(own: Sequence[Count]) -> list[Count]:
    """Sum an arm's counts over the zones; the interval of n is that of one zone, whatever the zones share."""
    from dataclasses import replace

    pooled = []
    for length in dict.fromkeys(c.length for c in own):
        parts = [c for c in own if c.length == length]
        n = sum(c.n for c in parts)
        mean = sum(c.mean * c.n for c in parts) / n
        pooled.append(replace(parts[0], zone="", n=min(c.n for c in parts), mean=mean))
    return pooled


def _draw(
    axes: "Axes", counts: Sequence[Count], intervals: Sequence[Interval], places: Mapping[str, float], look: Look
) -> None:
    xs = [places[c.length] for c in counts]
    mean, low, high = ([100 * (getattr(i, end) or 0.0) for i in intervals] for end in ("mean", "low", "high"))
    axes.plot(xs, mean, color=look.colour, marker=look.marker, markersize=4, linewidth=1.6, label=look.label)
    if len(xs) > 1:
        axes.fill_between(xs, low, high, color=look.colour, alpha=0.15, linewidth=0)
    else:
        axes.vlines(xs, low, high, color=look.colour, linewidth=1)


def _score_axis(axes: "Axes", *, label: bool = True) -> None:
    axes.set_ylim(0, 102)
    axes.set_ylabel("score" if label else "")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _looks(arms: Mapping[str, Sequence[Count]]) -> dict[str, Look]:
    made = [Arm(name=name, runs=(), trained_length=None, published_recipe=own[0].recipe) for name, own in arms.items()]
    return {name: Look(look.colour, look.marker, "-", name) for name, look in looks(made).items()}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _setting(c: Count) -> str:
    return c.setting or "as published"


def _counts(counts: Sequence[Count]) -> str:
    ns = sorted({c.n for c in counts})
    return str(ns[0]) if len(ns) == 1 else f"{ns[0]} to {ns[-1]}"
