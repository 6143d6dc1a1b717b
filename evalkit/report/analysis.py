"""Everything that is known of some runs, put together: estimates by arm, summaries, comparisons, and what to know."""

from collections.abc import Sequence
from dataclasses import dataclass

from evalkit.lengths import parse_length
from evalkit.report.arms import Arm, disagreements, make_arms
from evalkit.report.beside import Beside, beside
from evalkit.report.comparison import MARGIN, Comparison, compare_all, data_differences, repeat_floor, setup_differences
from evalkit.report.estimates import ArmSummary, CellScore, cell_scores, run_scores, study_length, summary
from evalkit.report.flips import Flips, position_flips
from evalkit.report.groups import Group, refuse_unknown_tag, tag_groups
from evalkit.report.load import Loaded
from evalkit.report.panel import Measure, Panel, make_panels
from evalkit.report.published import Published, PublishedMean

_MOST_NAMED = 4
"""Arms that a note names; more are counted."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that tables, figures and the page show."""

    loaded: Loaded
    arms: tuple[Arm, ...]
    panels: tuple[Panel, ...]
    cells: tuple[CellScore, ...]
    """By arm."""
    beside: tuple[CellScore, ...]
    """Published counts; their arms stand last in ``arms``."""
    published_means: tuple[PublishedMean, ...]
    run_cells: tuple[CellScore, ...]
    summaries: tuple[ArmSummary, ...]
    comparisons: tuple[Comparison, ...]
    """Every arm against the baseline, with its cells."""
    pairs: tuple[Comparison, ...]
    """Other pairs of arms."""
    groups: tuple[Group, ...]
    """By the values of a tag, where one was asked for."""
    flips: tuple[Flips, ...]
    """Of runs that were asked at fixed depths."""
    margin: float
    """Points: see ``Verdict``."""
    notes: tuple[str, ...]
    """What was left out, or should be known, one sentence each."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in order."""
        return tuple(dict.fromkeys(panel.task for panel in self.panels))

    @property
    def lengths(self) -> tuple[str, ...]:
        """Lengths of all tasks, from short to long."""
        return tuple(sorted({n for panel in self.panels for n in panel.lengths}, key=parse_length))

    def scorers(self, task: str) -> tuple[str, ...]:
        """Return the scorers of a task, the one that the report speaks of first."""
        return tuple(panel.scorer for panel in self.panels if panel.task == task)

    def panel(self, task: str, scorer: str) -> Panel:
        """Return one panel."""
        return next(panel for panel in self.panels if (panel.task, panel.scorer) == (task, scorer))

    def other_questions(self, task: str) -> dict[str, str]:
        """Return the arms that share no data of a task with the first arm that was asked it, and what differs."""
        asked = {arm.name: [run for run in arm.runs if run.config.get("task") == task] for arm in self.arms}
        own = {name: runs for name, runs in asked.items() if runs and not runs[0].published and not runs[0].control}
        if not own:
            return {}
        base = next(iter(own.values()))
        return {
            name: data_differences(base[0], runs[0])[0]
            for name, runs in own.items()
            if all(data_differences(a, b) for a in base for b in runs)
        }

    def labels(self, task: str) -> dict[str, str]:
        """Return the arms' names as tables and figures show them: "x (published)", or "x †" after other questions."""
        others = self.other_questions(task)
        return {arm.name: f"{arm.label}{' †' * (arm.name in others)}" for arm in self.arms}

    def study_length(self, arm: str) -> int | None:
        """Return an arm's trained length; for one that was not trained, that of the others, if they agree."""
        return study_length(next(a for a in self.arms if a.name == arm), self.arms)

    def select(self, task: str, scorer: str) -> list[CellScore]:
        """Return the estimates by arm of one task under one scorer, published counts last."""
        return [cell for cell in (*self.cells, *self.beside) if (cell.task, cell.scorer) == (task, scorer)]


def analyse(
    loaded: Loaded,
    *,
    baseline: str | None = None,
    trained_length: int | None = None,
    margin: float = MARGIN,
    seed: int = 0,
    published: Published | None = None,
    by: str | None = None,
) -> Analysis:
    """Estimate, summarise and compare.

    Args:
        loaded: from ``load_runs``.
        baseline: the arm that others are compared with; see ``make_arms``.
        trained_length: tokens; overrides what the checkpoints say.
        margin: points; arms that differ by less are equivalent.
        seed: of the resampling; the same seed gives the same numbers.
        published: figures of others, to show beside.
        by: the tag that ``loaded`` was loaded with, to group samples by.

    Raises:
        BadInput: no arm has the name of the baseline, nothing published can stand beside these runs, or
            no answer has the tag.
    """
    if by is not None:
        refuse_unknown_tag(loaded, by)
    arms = make_arms(loaded.runs, baseline=baseline, trained_length=trained_length)
    panels = tuple(make_panels(loaded.frame, loaded.runs))
    notes = list(loaded.left_out)
    for arm in arms:
        notes += [f"Arm {arm.name!r} joins runs that differ: {what}." for what in disagreements(arm)]
    notes += setup_differences(arms)
    notes += _leakage(arms)
    cells: list[CellScore] = []
    run_cells: list[CellScore] = []
    summaries: list[ArmSummary] = []
    comparisons: list[Comparison] = []
    pairs: list[Comparison] = []
    for panel in panels:
        present = [arm for arm in arms if panel.rows(arm.name)]
        for arm in present:
            models = panel.rows(arm.name)
            measure = Measure(panel, models, seed=seed)
            own = cell_scores(panel, arm.name, models, measure)
            cells += own
            run_cells += run_scores(panel, arm, own, seed)
            summaries.append(summary(panel, arm, study_length(arm, arms), own, measure))
        if panel.scorer in ("official", "corrected"):
            compared, others, why_not = compare_all(panel, [arm for arm in present if not arm.control], arms, margin)
            comparisons += compared
            pairs += others
            if panel.scorer == "official":
                notes += why_not + [floor for arm in present for floor in repeat_floor(panel, arm)]
    shown = beside(published, panels, arms) if published else Beside()
    return Analysis(
        loaded=loaded,
        arms=(*arms, *shown.arms),
        panels=panels,
        cells=tuple(cells),
        beside=shown.cells,
        published_means=published.means if published else (),
        run_cells=tuple(run_cells),
        summaries=tuple(summaries),
        comparisons=tuple(comparisons),
        pairs=tuple(pairs),
        groups=tag_groups(panels, arms, by) if by is not None else (),
        flips=position_flips(panels, arms),
        margin=margin,
        notes=tuple(dict.fromkeys([*notes, *shown.notes])),
    )


def _leakage(arms: Sequence[Arm]) -> list[str]:
    """Say what of the evaluation was found in training data, once for all arms of which the same was found.

    Seeds may differ. A control has its arm's training.
    """
    found: dict[str, list[str]] = {}
    for arm in (arm for arm in arms if not arm.control):
        for leak in sorted({run.training.found if run.training else "" for run in arm.runs}):
            found.setdefault(leak.rstrip("."), []).append(repr(arm.name))
    found.pop("", None)
    trained = sum(any(run.training for run in arm.runs) for arm in arms if not arm.control)
    leaks: dict[tuple[str, ...], list[str]] = {}
    for leak, names in found.items():
        leaks.setdefault(tuple(names), []).append(leak)
    sentences = []
    for owners, own in leaks.items():
        whose = ", ".join(owners) if len(owners) <= _MOST_NAMED else f"{len(owners)} of {trained} trained arms"
        sentences.append(f"Training data of {whose} against the evaluation: {'; '.join(own)}.")
    return sentences
