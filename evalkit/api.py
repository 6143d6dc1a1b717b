"""evalkit from Python, as it is used in a notebook: plan a run, carry it out, and look at what is recorded.

    import evalkit

    plan = evalkit.plan(model="ckpt", task="babilong", lengths=["16k", 32768], subsets="qa1,qa2", samples=50)
    evalkit.run(plan)
    results = evalkit.load("results/")
    results.frame.groupby(["arm", "length", "scorer"], observed=True)["value"].mean()
    results.curve().savefig("curve.pdf")
    results.compare("randomized-yarn", "plain")
    results.report("plots/")

A keyword is the name of an option of ``evalkit run`` with underscores: ``--max-new-tokens 40`` is
``max_new_tokens=40``. Several values are a list, a tuple, or one text with commas; a length is a text such as "16k", or
a number of tokens.
"""

import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_origin

from evalkit import options
from evalkit.cli.options import run_classes
from evalkit.cli.progress import Progress
from evalkit.errors import BadInput
from evalkit.lengths import parse_length
from evalkit.report.analysis import Analysis, analyse
from evalkit.report.build import Report, build
from evalkit.report.comparison import MARGIN
from evalkit.report.load import Loaded, load_runs
from evalkit.report.run import Run
from evalkit.runs.config import run_config
from evalkit.runs.plan import Plan, make_plan
from evalkit.runs.run import Observer, RunResult
from evalkit.runs.run import run as carry_out

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PathLike: TypeAlias = Path | str

__all__ = ["Results", "load", "plan", "run"]


def plan(**settings: Any) -> Plan:
    """Decide everything that can be decided without a model in memory.

    Args:
        settings: the options of ``evalkit run``: ``model``, ``task`` and ``lengths`` must be
            given; ``evalkit run --help`` lists the others. None leaves an option at its default.

    Raises:
        BadInput: a setting that is missing, unknown or of another type, or anything that would make the run mislead.
    """
    return make_plan(run_config(_written(settings), "The call"))


def run(planned: Plan | None = None, /, *, quiet: bool = False, **settings: Any) -> RunResult:
    """Ask a checkpoint a benchmark's questions, and record every answer; what is recorded is not asked again.

    Args:
        planned: from ``plan``; without one, the settings make it.
        quiet: show no progress.
        settings: see ``plan``.

    Returns:
        How many samples were asked, recorded and failed, and the run folder (``load`` reads it).

    Raises:
        BadInput: see ``plan``; or settings beside a plan, which has its own.
        RunFolderError: the folder belongs to another run or engine, is locked or damaged.
        EngineError: the engine cannot be started, or died for good. Everything answered so far is recorded.
    """
    if planned is not None and settings:
        raise BadInput(f"A plan has its settings already; give {min(settings)} to evalkit.plan.")
    chosen = plan(**settings) if planned is None else planned
    showing: AbstractContextManager[Observer] = nullcontext(Observer()) if quiet else Progress()
    with showing as observer:
        result = carry_out(chosen, observer)
    for notice in (*chosen.warnings, *result.notices):
        warnings.warn(notice, stacklevel=2)
    return result


def load(
    *paths: PathLike | Iterable[PathLike],
    baseline: str | None = None,
    trained_length: str | int | None = None,
    margin: float = MARGIN,
) -> "Results":
    """Load every run folder at or below some paths.

    Args:
        paths: run folders, or folders that contain some.
        baseline: the arm that others are compared with; None takes plain training, or else the first arm.
        trained_length: such as "8k" or 8192; None: what the checkpoints say.
        margin: points; arms that are shown to differ by less are equivalent.

    Raises:
        BadInput: there is no run folder, or none with an answer.
    """
    flat = [Path(path) for one in paths for path in ([one] if isinstance(one, (str, Path)) else one)]
    trained = parse_length(str(trained_length)) if trained_length is not None else None
    return Results(flat, load_runs(flat), baseline=baseline, trained_length=trained, margin=margin)


class Results:
    """What some runs answered, and what it means. ``load`` makes it."""

    paths: tuple[Path, ...]
    frame: "pd.DataFrame"
    """One row per answer and scorer: run, arm, task, subset, length, length_tokens, sample_id, story_id, depth (0 top,
    1 end), prompt_tokens, output_tokens, finish_reason, error, scorer, and value from 0 to 1 (NaN where unscored)."""
    runs: tuple[Run, ...]

    def __init__(
        self, paths: Iterable[Path], loaded: Loaded, *, baseline: str | None, trained_length: int | None, margin: float
    ) -> None:
        self.paths = tuple(paths)
        self.frame, self.runs = loaded.frame, loaded.runs
        self._loaded = loaded
        self._baseline, self._trained_length, self._margin = baseline, trained_length, margin

    def __repr__(self) -> str:
        answers = len(self.frame.drop_duplicates(["run", "task", "subset", "length", "sample_id"]))
        runs = "1 run" if len(self.runs) == 1 else f"{len(self.runs)} runs"
        return f"<Results: {runs}, arms {', '.join(map(repr, self.arms))}, {answers} answers>"

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms by name, the baseline first."""
        return tuple(arm.name for arm in self.analysis.arms)

    @property
    def notices(self) -> tuple[str, ...]:
        """What was left out, or should be known before a number is believed, one sentence each."""
        return self.analysis.notes

    @cached_property
    def analysis(self) -> Analysis:
        """Every estimate, summary and comparison that the report shows.

        Raises:
            BadInput: no arm has the name of the baseline.
        """
        return self._analyse(self._loaded, self._baseline)

    def compare(self, a: str, b: str) -> "pd.DataFrame":
        """Return by how much arm ``a`` is better than arm ``b``, on the samples that both answered.

        Returns:
            A row per task, scorer and endpoint. Columns: task, scorer, endpoint ("primary": the lengths beyond the
            trained one together; or one length), n (pairs), difference, ci_low, ci_high (points, 95 %), p_holm
            (corrected over the lengths), verdict (of the primary endpoint: better, worse, equivalent, undecided).

        Raises:
            BadInput: there is no such arm, or they share no sample; what differs is named.
        """
        import pandas as pd

        for name in (a, b):
            self._refuse_unknown_arm(name)
        if a == b:
            raise BadInput(f"{a!r} is one arm; name two to compare.")
        frame = self.frame[self.frame["arm"].isin([a, b])].copy()
        for column in frame.select_dtypes("category"):
            frame[column] = frame[column].cat.remove_unused_categories()
        loaded = Loaded(frame, tuple(one for one in self.runs if one.arm in (a, b)), ())
        analysis = self._analyse(loaded, b)
        rows = []
        for c in analysis.comparisons:
            found = [(length, by, c.by_length_p_holm[length], None) for length, by in c.by_length.items()]
            primary = [("primary", c.primary, c.primary_p_holm, c.verdict)] if c.primary else []
            rows += [
                {
                    "task": c.task,
                    "scorer": c.scorer,
                    "endpoint": endpoint,
                    "n": by.n,
                    "difference": 100 * by.mean,
                    "ci_low": None if by.low is None else 100 * by.low,
                    "ci_high": None if by.high is None else 100 * by.high,
                    "p_holm": p,
                    "verdict": verdict,
                }
                for endpoint, by, p, verdict in (*primary, *found)
            ]
        if not rows:
            raise BadInput(" ".join([f"{a} and {b} cannot be compared.", *analysis.notes]))
        return pd.DataFrame(rows)

    def curve(self, task: str | None = None, scorer: str | None = None) -> "Figure":
        """Draw score over length, averaged over subsets, with the differences from the baseline below.

        Args:
            task: None: the first one.
            scorer: such as "official" or "corrected"; None: the one that reports speak of first.

        Raises:
            BadInput: no run is of this task, or it has no such scorer.
        """
        from evalkit.report.figures import curve

        analysis = self.analysis
        task = _one_of(task, analysis.tasks, "task")
        return curve(analysis, task, _one_of(scorer, analysis.scorers(task), "scorer")).figure()

    def report(self, out: PathLike = "plots") -> Report:
        """Write every table, figure and the page into ``out``.

        Raises:
            BadInput: ``out`` cannot be written.
        """
        return build(self.paths, out, baseline=self._baseline, trained_length=self._trained_length, margin=self._margin)

    def _analyse(self, loaded: Loaded, baseline: str | None) -> Analysis:
        return analyse(loaded, baseline=baseline, trained_length=self._trained_length, margin=self._margin)

    def _refuse_unknown_arm(self, name: str) -> None:
        known = sorted({one.arm for one in self.runs})
        if name not in known:
            raise BadInput(f"There is no arm {name!r}; there are {', '.join(map(repr, known))}.")


def _one_of(name: str | None, known: tuple[str, ...], what: str) -> str:
    if name is not None and name not in known:
        raise BadInput(f"There is no {what} {name!r} in these runs; there are {', '.join(known)}.")
    return name or known[0]


def _written(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a TOML file would have them: texts taken apart as on the command line, one value as a list."""
    known = {key: setting for cls in run_classes() for key, setting in options.settings(cls).items()}
    return {key: _plain(known.get(key), value) for key, value in values.items() if value is not None}


def _plain(setting: options.Setting | None, value: Any) -> Any:
    if setting is None:
        return value
    if isinstance(value, str):
        value = options.from_text(setting, value)
    several = get_origin(setting.hint) is tuple
    if isinstance(value, (str, Path)) or not isinstance(value, Iterable):
        return [_number(value)] if several else _number(value)
    return [_number(one) for one in value]


def _number(value: Any) -> Any:
    """Return numpy's numbers as Python's own."""
    if isinstance(value, (bool, str, Path)):
        return value
    return int(value) if isinstance(value, Integral) else float(value) if isinstance(value, Real) else value
