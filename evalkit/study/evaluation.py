"""An evaluation: checkpoints that are there, each asked every table of questions. One TOML file each.

Settings stand flat and under the names that the command line has, as in an experiment, which trains its arms first.

    [arms]          "long YaRN" = { model = "ckpt/", rope = "yarn" }: settings of 'evalkit run' that are an arm's own
    [evaluation]    of 'evalkit run', shared by all arms; a table for each task are several [[evaluation]]

A file of flat settings without these tables, as ``evalkit run --print-config`` prints them, is one run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit import options
from evalkit.errors import BadInput
from evalkit.options import option
from evalkit.reading import read_toml
from evalkit.runs.config import RunConfig, run_config
from evalkit.runs.plan import Plan, make_plan
from evalkit.study.experiment import BASE, named, refuse, refuse_one_folder_for_two

_OF_AN_EXPERIMENT = ("training", "curves", "base", "seeds", "budget")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The runs that a file describes."""

    runs: tuple[RunConfig, ...]
    folder: Path | None
    """Holds the run folders; None: each is where ``evalkit run`` puts it."""

    def plans(self) -> list[Plan]:
        """Return the plans of all runs; whatever is wrong with one shows before any is carried out.

        Raises:
            BadInput: see ``make_plan``; or two runs would share a folder.
        """
        plans = [make_plan(config) for config in self.runs]
        if self.folder is not None:
            plans = [replace(plan, out=self.folder / plan.out.name) for plan in plans]
        out, number = Counter(plan.out for plan in plans).most_common(1)[0]
        if number > 1:
            raise BadInput(
                f"{number} tables [[evaluation]] ask the same data and would share the run folder {out}; make one of "
                "them, with the subsets and lengths of all."
            )
        return plans


@dataclass(frozen=True, kw_only=True)
class _File:
    arms: Mapping[str, Mapping[str, Any]] = option("--arms", "name -> the settings that are the arm's own.")
    evaluation: tuple[Mapping[str, Any], ...] = option("--evaluation", "settings of 'evalkit run' that all arms share.")


def load_evaluation(file: Path, typed: Mapping[str, Any]) -> Evaluation:
    """Return the runs of a file.

    Args:
        file: see the module's text.
        typed: settings that take the place of the file's, by key; ``out`` is the folder of run folders where the file
            has arms.

    Raises:
        BadInput: the file cannot be read or trains its arms, or a setting that no run could have; names file and table.
    """
    where = str(file)
    if file.suffix != ".toml":
        raise BadInput(f"{where} is no .toml file of settings; a checkpoint is named by --model {where}")
    values = read_toml(file)
    if trains := next((key for key in _OF_AN_EXPERIMENT if key in values), None):
        raise BadInput(
            f"{where} has {trains}, which trainings need; to train its arms first: evalkit reproduce {where}"
        )
    if not {"arms", "evaluation"} & values.keys():
        with named(where):
            return Evaluation(runs=(run_config({**values, **typed}, where),), folder=None)
    options.refuse_unknown(values, where, _File)
    if isinstance(values.get("evaluation"), dict):
        values["evaluation"] = [values["evaluation"]]
    read = options.read(_File, values, where)
    refuse(typed, ("model", "arm", "task"), "The command line", f"{where} names them itself")
    folder = Path(typed.get("out") or Path("results") / file.stem)
    typed = {key: value for key, value in typed.items() if key != "out"}
    return Evaluation(runs=tuple(_runs(read, where, typed)), folder=folder)


def _runs(read: _File, where: str, typed: Mapping[str, Any]) -> Sequence[RunConfig]:
    if not read.arms or not read.evaluation:
        raise BadInput(
            f"{where} has no {'[evaluation]' if read.arms else 'arm in [arms]'}, so there is nothing to ask."
        )
    refuse_one_folder_for_two(where, "arms", list(read.arms))
    for name, own in read.arms.items():
        refuse(own, ("task", "arm", "out"), f"{where}, arm {name!r}", "the study gives it")
        if "model" not in own:
            raise BadInput(f'{where}, arm {name!r} has no model; name its checkpoint, such as model = "ckpt/".')
    runs = []
    for number, table in enumerate(read.evaluation, 1):
        place = f"{where} [evaluation]" if len(read.evaluation) == 1 else f"{where} [[evaluation]] {number}"
        refuse(table, ("model", "arm", "out"), place, "each of [arms] has its own")
        with named(place):  # whatever is wrong here is not the fault of an arm
            run_config({"model": BASE, **table, **typed}, place)
        for name, own in read.arms.items():
            with named(f"{where}, arm {name!r}"):
                runs.append(run_config({**table, **own, **typed, "arm": name}, f"{where}, arm {name!r}"))
    return runs
