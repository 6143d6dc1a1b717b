"""From nothing to the comparison: plan an experiment, train what is missing, evaluate what is missing, report.

Every step leaves a folder that says by itself whether it is finished, so a reproduction that was killed goes on where
it was when the same command is repeated. Steps of one kind do not depend on each other and run side by side.

    results/NAME/noise/        background text of training and evaluation, where the experiment makes its own
    results/NAME/seed-0/base/  the base, where the experiment trains it
    results/NAME/seed-0/ARM/   the trained checkpoints
    results/NAME/seed-0/runs/  the run folders
    plots/NAME/                the report
"""

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple, TypeAlias

from evalkit.benchmarks.cards import load_card
from evalkit.lengths import parse_length, parse_lengths
from evalkit.models.checkpoint import TRAINING_RECORD
from evalkit.models.rope.served import RopeRequest
from evalkit.runs.plan import RunConfig, asked_samples, make_plan
from evalkit.study.experiment import BASE, Curve, Experiment
from evalkit.train.data import TRAINING_SEED, DataRecipe
from evalkit.train.finetune import TrainConfig
from evalkit.train.tiny import BASES, train_base, write_noise
from evalkit.types import Prediction

Kind: TypeAlias = Literal["noise", "base", "train", "run", "report"]
KINDS: tuple[Kind, ...] = ("noise", "base", "train", "run", "report")


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something to be done, and where its result goes."""

    kind: Kind
    title: str
    experiment: Experiment
    root: Path
    plots: Path
    seed: int = 0
    arm: str = ""
    curve: Curve | None = None


def plan_steps(experiment: Experiment, *, seeds: Sequence[int], root: Path, plots: Path) -> list[Step]:
    """Return all steps of a reproduction, finished or not, in an order in which they can be done."""
    step = partial(Step, experiment=experiment, root=root, plots=plots)
    steps = []
    if experiment.base in BASES:
        steps.append(step(kind="noise", title="background text"))
        steps += [step(kind="base", title=f"base, seed {seed}", seed=seed) for seed in seeds]
    for seed in seeds:
        for arm in experiment.arms:
            steps.append(step(kind="train", title=f"{arm}, seed {seed}", seed=seed, arm=arm))
    for seed in seeds:
        for curve in experiment.curves:
            title = f"{curve.label}, seed {seed}"
            steps.append(step(kind="run", title=title, seed=seed, arm=curve.arm, curve=curve))
    steps.append(step(kind="report", title=f"report into {plots}"))
    return steps


def train_config(step: Step) -> TrainConfig:
    """Return the training of a "train" step."""
    experiment = step.experiment
    settings = _settings({**experiment.training, **experiment.arms[step.arm]})
    data = {
        name: settings.pop(name)
        for name in ("task", "subsets", "samples", "shortest", "longest", "rows")
        if name in settings
    }
    options = _settings(settings.pop("options", {}))
    if experiment.base in BASES:
        options["noise"] = (_noise(step, "train"),)
    return TrainConfig(
        base=_base(step),
        out=_seed_folder(step) / _slug(step.arm),
        data=replace(DataRecipe(**data), seed=TRAINING_SEED + step.seed),
        options=options,
        evaluation=tuple(asked_samples(run_config(replace(step, kind="run", curve=Curve(arm=step.arm, rope="none"))))),
        seed=step.seed,
        **settings,
    )


def run_config(step: Step) -> RunConfig:
    """Return the evaluation of a "run" step. All arms and seeds are asked the same samples."""
    assert step.curve is not None
    settings = _settings(step.experiment.evaluation)
    if step.experiment.base in BASES:
        settings["noise"] = (_noise(step, "test"),)
    model = _base(step) if step.arm == BASE else _seed_folder(step) / _slug(step.arm)
    rope = RopeRequest(rule="none") if step.curve.rope == "none" else RopeRequest(rule="yarn", factor=step.curve.factor)
    return RunConfig(
        model=model,
        task=settings.pop("task", "babilong"),
        lengths=parse_lengths(settings.pop("lengths")),
        rope=rope,
        arm=step.curve.label,
        out=_seed_folder(step) / "runs" / _slug(step.curve.label),
        **settings,
    )


def is_done(step: Step) -> bool:
    """Tell from its folder whether a step is finished; carrying it out once more is cheap and changes nothing."""
    if step.kind == "noise":
        return _noise(step, "test").is_file()
    if step.kind == "base":
        return _base(step).is_dir()
    if step.kind == "train":
        return (_seed_folder(step) / _slug(step.arm) / TRAINING_RECORD).is_file()
    if step.kind == "run":
        config = run_config(step)
        assert config.out is not None
        answers = config.out / "predictions.jsonl"
        recorded = sum(1 for _ in answers.open("rb")) if answers.is_file() else 0
        return recorded >= _num_prompts(config)
    return False


def carry_out(step: Step, *, threads: int = 0, on_part: Callable[[int, int], None] = lambda done, total: None) -> str:
    """Do one step in this process and return a line about it.

    Args:
        step: from ``plan_steps``.
        threads: for torch; 0 leaves its own choice.
        on_part: called with (parts done, parts in all) while it goes on.
    """
    if step.kind in ("base", "train", "run") and threads:
        import torch

        torch.set_num_threads(threads)
    if step.kind == "noise":
        for number, part in enumerate(("train", "test")):
            write_noise(_noise(step, part), seed=number)
        return "written"
    if step.kind == "base":
        base, noise = BASES[step.experiment.base], _noise(step, "train")
        return f"in {train_base(_base(step), noise=noise, seed=step.seed, base=base, on_step=on_part)}"
    if step.kind == "train":
        from evalkit.train.finetune import finetune

        return f"in {finetune(train_config(step), on_step=on_part)}"
    if step.kind == "run":
        from evalkit.runs.run import Observer, run

        class Parts(Observer):
            done = total = 0

            def starts(self, lengths: Sequence[str]) -> None:
                self.total = sum(map(parse_length, lengths))

            def answered(self, prediction: Prediction) -> None:
                self.done += parse_length(prediction.length)
                on_part(self.done, self.total)

        result = run(make_plan(run_config(step)), Parts())
        return f"{result.recorded} samples, {result.asked} asked now, {result.failed} failed"
    from evalkit.report.build import build

    folders = [run_config(other).out for other in _runs_of(step)]
    report = build([folder for folder in folders if folder is not None], step.plots)
    return report.text


def reproduce(
    experiment: Experiment,
    *,
    seeds: Sequence[int] = (),
    root: Path | None = None,
    plots: Path | None = None,
    jobs: int = 0,
    on_step: Callable[[Step, str], None] = lambda step, what: None,
    on_share: Callable[[Step, float], None] = lambda step, share: None,
) -> Path:
    """Carry out what is missing of an experiment, and report.

    Args:
        experiment: from ``load_experiment``.
        seeds: of the trainings; none: the experiment's own.
        root: folder of checkpoints and runs; None: ``results/NAME``.
        plots: folder of the report; None: ``plots/NAME``.
        jobs: steps side by side; 0: one a core without a GPU, one with.
        on_step: called with each step when it is finished, and what came of it.
        on_share: called with a step and the share of it that is done (0 to 1), now and then while it goes on.

    Returns:
        The folder of the report.
    """
    root, plots = root or Path("results") / experiment.name, plots or Path("plots") / experiment.name
    steps = plan_steps(experiment, seeds=seeds or experiment.seeds, root=root, plots=plots)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for kind in KINDS:
        todo = [step for step in steps if step.kind == kind]
        workers = min(jobs or (1 if _has_gpu() else cores), len(todo))
        if workers < 2:
            for step in todo:
                on_step(step, carry_out(step, on_part=partial(_tell, on_share, step)))
            continue
        _side_by_side(todo, workers, threads=max(cores // workers, 1), on_step=on_step, on_share=on_share)
    return plots


def _tell(on_share: Callable[[Step, float], None], step: Step, done: int, total: int) -> None:
    on_share(step, done / total)


def _side_by_side(
    steps: Sequence[Step],
    workers: int,
    *,
    threads: int,
    on_step: Callable[[Step, str], None],
    on_share: Callable[[Step, float], None],
) -> None:
    """Carry out independent steps in processes of their own; the workers send the shares that are done."""
    context = get_context("spawn")
    shares = context.SimpleQueue()

    def pass_on() -> None:
        while (share := shares.get()) is not None:
            on_share(steps[share[0]], share[1])

    listener = Thread(target=pass_on, daemon=True)
    listener.start()
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(shares,)) as pool:
            running = {pool.submit(_work, number, step, threads): step for number, step in enumerate(steps)}
            try:
                for future in as_completed(running):
                    on_step(running[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        shares.put(None)
        listener.join()


_shares: Any = None
"""In a worker: where it tells what share of its step is done."""


def _work(number: int, step: Step, threads: int) -> str:
    told = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done / total >= told + 0.01:
            told = done / total
            _shares.put((number, told))

    return carry_out(step, threads=threads, on_part=tell)


def _start_worker(shares: Any) -> None:
    """Let a worker end when the process that started it was killed, so that no run folder stays locked."""
    global _shares
    _shares = shares
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def describe(steps: Sequence[Step]) -> str:
    """Return the plan as a table: what is done, and what each step costs in tokens, memory and time.

    Memory is that of weights, gradients and optimizer; activations and the KV cache come on top.
    """
    lines = [f"{'':6} {'step':<44} {'state':>6} {'tokens':>14} {'memory':>9} {'time':>8}"]
    total = 0.0
    for step in steps:
        line = f"{step.kind:6} {step.title:<44} {'done' if is_done(step) else 'to do':>6}"
        if cost := _cost(step):
            total += 0.0 if is_done(step) else cost.seconds
            memory = f"{cost.memory / 2**30:,.1f} GiB" if cost.memory > 2**28 else f"{cost.memory / 2**20:,.0f} MiB"
            line += f" {cost.tokens:>14,} {memory:>9} {_duration(cost.seconds):>8}"
        lines.append(line)
        if command := command_of(step):
            lines.append(f"         {command}")
    lines.append(f"To do: about {_duration(total)} of one worker.")
    return "\n".join(lines)


def command_of(step: Step) -> str:
    """Return the command that does a "train" or "run" step by itself; empty for the others."""
    if step.kind == "train":
        train, default = train_config(step), TrainConfig(base=Path(), out=Path())
        words = ["evalkit", "train", "--base", str(train.base), "--out", str(train.out), "--recipe", train.recipe]
        words += _options(train, default, skip=("base", "out", "recipe", "data", "options", "evaluation"))
        words += _options(train.data, DataRecipe(), rename={"seed": "data-seed"})
        return _command([*words, *_data_options(train.options)])
    if step.kind == "run":
        run = run_config(step)
        words = ["evalkit", "run", "--model", str(run.model), "--task", run.task, "--lengths", ",".join(run.lengths)]
        words += ["--subsets", ",".join(run.subsets), "--samples", str(run.samples), "--rope", str(run.rope.rule)]
        words += ["--factor", str(run.rope.factor)] if run.rope.rule == "yarn" else []
        words += ["--max-new-tokens", str(run.max_new_tokens)] if run.max_new_tokens else []
        words += ["--backend", run.backend, "--seed", str(run.seed)]
        options = {"noise": run.noise, "without": run.without}
        return _command([*words, *_data_options(options), "--arm", str(run.arm), "--out", str(run.out)])
    return ""


def _options(
    values: Any, defaults: Any, *, skip: Sequence[str] = (), rename: Mapping[str, str] | None = None
) -> list[str]:
    """What differs from the defaults, as command-line options."""
    words = []
    for one in fields(values):
        value = getattr(values, one.name)
        if one.name in skip or value == getattr(defaults, one.name):
            continue
        flag = (rename or {}).get(one.name, one.name.replace("_", "-"))
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        else:
            words += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return words


def _data_options(options: Mapping[str, Any]) -> list[str]:
    words = [f"--no-{part.replace('_', '-')}" for part in options.get("without", ())]
    words += [word for path in options.get("noise", ()) for word in ("--noise", str(path))]
    words += ["--max-new-tokens", str(options["max_new_tokens"])] if "max_new_tokens" in options else []
    return words


def _command(words: Sequence[str]) -> str:
    return shlex.join(words)


def _seed_folder(step: Step) -> Path:
    return step.root / f"seed-{step.seed}"


def _base(step: Step) -> Path:
    return _seed_folder(step) / BASE if step.experiment.base in BASES else Path(step.experiment.base)


def _noise(step: Step, part: str) -> Path:
    return step.root / "noise" / f"{part}.txt"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _settings(written: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from a TOML file as the configs take them."""
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in written.items()}
    if "noise" in settings:
        settings["noise"] = tuple(map(Path, settings["noise"]))
    if "facts" in settings:
        settings["facts"] = Path(settings["facts"])
    return settings


def _num_prompts(config: RunConfig) -> int:
    card = load_card(config.task)
    return len(config.subsets or card.default_subsets) * len(config.lengths) * (config.samples or card.default_samples)


def _runs_of(report: Step) -> list[Step]:
    """The runs that belong to a report: of every seed that has been evaluated."""
    found = sorted(int(path.name.removeprefix("seed-")) for path in report.root.glob("seed-*"))
    steps = plan_steps(report.experiment, seeds=found, root=report.root, plots=report.plots)
    return [step for step in steps if step.kind == "run" and is_done(step)]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def estimated_seconds(step: Step) -> float:
    """Return what a step may take one worker by the experiment's budget; a second where the budget says nothing."""
    cost = _cost(step)
    return cost.seconds if cost else 1.0


class _Cost(NamedTuple):
    tokens: int
    memory: float
    """Bytes."""
    seconds: float
    """Of one worker."""


def _cost(step: Step) -> _Cost | None:
    """What a step costs by the experiment's budget: parameters, and tokens per second."""
    budget = step.experiment.budget
    parameters = budget.get("parameters", 0.0)
    if step.kind == "base":
        stages = BASES[step.experiment.base].stages
        tokens = sum(s.steps * s.batch_size * (s.shortest + s.longest) // 2 for s in stages)
        return _Cost(tokens, 16 * parameters, tokens / budget["train_tokens_per_second"])
    if step.kind == "train":
        config = train_config(step)
        mean = (config.data.shortest + config.data.longest) / 2
        tokens = round(config.epochs * config.data.samples * mean)
        # Float32 weights, gradients and two moments; with LoRA a frozen bfloat16 base, and about a hundredth trained.
        per_parameter = 2 + 0.16 if config.lora_rank else 16
        return _Cost(tokens, per_parameter * parameters, tokens / budget["train_tokens_per_second"])
    if step.kind == "run":
        run = run_config(step)
        tokens = _num_prompts(run) // len(run.lengths) * sum(map(parse_length, run.lengths))
        return _Cost(tokens, 2 * parameters, tokens / budget["eval_tokens_per_second"])
    return None


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 100 else f"{hours:.0f} h"
