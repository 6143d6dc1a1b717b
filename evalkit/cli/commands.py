"""The command line. Only here do errors become exit codes: 0 done, 1 failed samples are left, 2 wrong use."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

from evalkit import __version__
from evalkit.cli.options import (
    ANY_PATH,
    FOLDER,
    SettingsCommand,
    names,
    of_backend,
    option,
    quiet_option,
    refuse_missing,
    run_classes,
    token_count,
    train_classes,
)
from evalkit.cli.reports import compare, export, import_, plot, report, score
from evalkit.cli.terminal import echo, echo_either, echo_text, echo_wrapped, fitted
from evalkit.errors import BadInput, EvalkitError
from evalkit.escaping import one_line

FAILED_SAMPLES = 1
WRONG_USE = 2
_LONGEST = 2000
"""Characters of a refusal, which may hold what was typed; longer ones are cut in their middle."""


class _Group(click.Group):
    """Lists commands in the order they are written, and explains evalkit's errors in one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the whole first sentence of each."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(limit=10**6)) for name, one in self.commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EvalkitError as error:
            echo_text(f"evalkit: {one_line(str(error), most=_LONGEST)}", err=True)
            ctx.exit(WRONG_USE)
        except click.UsageError as error:
            reason = fitted(f"Error: {one_line(error.format_message(), most=_LONGEST)}", err=True)
            raise click.UsageError(reason.removeprefix("Error: "), ctx=error.ctx) from error
        except OSError as error:  # a full disk, a folder that may not be written, a name that is too long
            if error.strerror is None or error.errno == errno.EPIPE:  # click's affair: whoever reads has gone
                raise
            what = error.filename if error.filename is not None else "A file"
            reason = f"{what} cannot be used ({error.strerror}); make room, or name another path."
            echo_text(f"evalkit: {one_line(reason, most=_LONGEST)}", err=True)
            ctx.exit(WRONG_USE)
        except UnicodeEncodeError as error:
            shown = one_line(error.object, most=_LONGEST)
            echo_text(f"evalkit: {shown} is not the name of any file; name another path.", err=True)
            ctx.exit(WRONG_USE)
        except KeyboardInterrupt:
            echo_text("\nevalkit: stopped; what was answered is recorded, and the same command goes on.", err=True)
            ctx.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="evalkit")
def main() -> None:
    """How far does a model's accuracy hold as the context grows, and is method A really better than B there?

    \b
    Ask, then compare:
      evalkit run --model ckpt/ --task babilong --lengths 16k,64k,128k
      evalkit report results/
    """


@main.command(cls=SettingsCommand, classes=run_classes)
@click.argument("file", required=False, type=ANY_PATH)
@option("--dry-run", is_flag=True, help="Print what it would cost and could show, and stop.")
@option("--json", "as_json", is_flag=True, help="With --dry-run: print JSON.")
@option("--calibrate", is_flag=True, help="With --dry-run: ask a few questions first, to know the time.")
@option("--print-config", is_flag=True, help="Print what is typed as such a FILE, and stop.")
@quiet_option
def run(
    file: Path | None,
    dry_run: bool,
    as_json: bool,
    calibrate: bool,
    print_config: bool,
    quiet: bool,
    values: dict[str, Any],
) -> None:
    """Ask a checkpoint a benchmark's questions at several lengths, and record every answer.

    Killed or interrupted, the same command goes on where it was. Nothing is downloaded but a model or a data set of the
    hub that is named. FILE is a TOML file of settings, which options that are typed take the place of. It may have
    several checkpoints, each with its rope rule, under [arms], and several tasks, each under [[evaluation]]; their run
    folders go to results/FILE/, or to --out.

    \b
    Examples:
      evalkit run --model ckpt/ --task babilong --lengths 16k,64k,128k
      evalkit run --model ckpt/ --task mrcr --lengths 1k,2k --needles 2,4,8 --samples 20
      evalkit run --model ckpt/ --task babilong --lengths 4k,8k --rope yarn --factor auto
      evalkit run --model ckpt/ --task babilong --subsets qa3 --lengths 1k,2k \\
          --facts babi/ --noise novel.txt --depth 0,0.5,1
      evalkit run study.toml --dry-run
    """
    from evalkit import options
    from evalkit.cli.running import carry_out, measure, show_cost
    from evalkit.runs.config import run_config
    from evalkit.study.evaluation import Evaluation, load_evaluation

    if file is None:
        refuse_missing(values, "model", "task", "lengths")
    asked = load_evaluation(file, values) if file else Evaluation(runs=(run_config(values),), folder=None)
    if print_config:
        if len(asked.runs) > 1:
            raise BadInput(f"--print-config prints one run as a file, and {file} is a file of {len(asked.runs)}.")
        echo(options.to_toml(asked.runs[0]), nl=False)
        return
    _refuse_without_dry_run(dry_run, as_json=as_json, calibrate=calibrate)
    if calibrate or not dry_run:
        for config in asked.runs:
            config.engine.require_reachable()
    plans = asked.plans()
    if dry_run:
        if calibrate:
            measure(plans, quiet=quiet)
        show_cost(plans, as_json=as_json)
        return
    if carry_out(plans, quiet=quiet):
        sys.exit(FAILED_SAMPLES)


def _refuse_without_dry_run(dry_run: bool, *, as_json: bool = False, calibrate: bool = False) -> None:
    if as_json and not dry_run:
        raise BadInput("--json prints a plan; add --dry-run, or leave it out.")
    if calibrate and not dry_run:
        raise BadInput("--calibrate measures for a plan; add --dry-run, or leave it out.")


@main.command(cls=SettingsCommand, classes=run_classes)
@click.argument("name", required=False)
@option("--gpu-memory", type=float, help="GiB of the GPU (of all that share the model): counts what fits.")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(name: str | None, gpu_memory: float | None, as_json: bool, values: dict[str, Any]) -> None:
    """Tell whether a run of these lengths would be right, before any money is spent on it. Loads no weights.

    Takes the options of 'run', and does what a run does before it loads a model; without --task for BABILong. NAME is
    short for --model NAME.

    \b
    Examples:
      evalkit check --model ckpt/ --lengths 16k,128k
      evalkit check --model ckpt/ --lengths 16k,128k --rope yarn --factor 4 --gpu-memory 80
    """
    from evalkit.runs.check import check as examine
    from evalkit.runs.config import run_config

    values |= {"model": name} if name else {}
    refuse_missing(values, "model", "lengths")
    report = examine(run_config({"task": "babilong"} | values), gpu_memory=gpu_memory)
    echo_either(as_json, report.to_json, report.to_text)
    if not report.ok:
        sys.exit(WRONG_USE)


@main.command(cls=SettingsCommand, classes=run_classes)
@click.argument("name", required=False)
@option("--backends", type=names, default="hf,vllm", show_default=True, help="Two of hf, vllm, server.")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def crosscheck(name: str | None, backends: tuple[str, ...], as_json: bool, values: dict[str, Any]) -> None:
    """Ask two backends the same prompts, by id, and say how often and how early their answers part.

    Takes the options of 'run'; those that only one of the two backends has are given to that one. By default two
    samples of BABILong at 1k. NAME is short for --model NAME.

    \b
    Examples:
      evalkit crosscheck --model ckpt/ --lengths 1k,4k
      evalkit crosscheck --model ckpt/ --backends hf,server --base-url http://localhost:8000/v1
    """
    from evalkit.runs.config import run_config
    from evalkit.runs.crosscheck import crosscheck_plans

    values |= {"model": name} if name else {}
    refuse_missing(values, "model")
    values = {"task": "babilong", "lengths": ("1k",), "samples": 2} | values
    report = crosscheck_plans([run_config(of_backend(values, backend)) for backend in backends])
    echo_either(as_json, report.to_json, report.to_text)


@main.command()
@click.argument("folder", type=FOLDER, default=Path("results"))
@option("--watch", is_flag=True, help="Show it again and again, until nothing runs any more.")
def status(folder: Path, watch: bool) -> None:
    """Say of each run at or below FOLDER how much is done, how fast, how much is left, and whether it is alive.

    'stopped' means that samples are left which the same 'run' command asks. FOLDER is results/ unless it is named.

    \b
    Examples:
      evalkit status
      evalkit status results/paper --watch
    """
    import time

    from evalkit.runs.status import all_status, describe

    is_terminal = sys.stdout.isatty()
    while True:
        statuses = all_status(folder)
        if watch and is_terminal:
            click.clear()
        echo(describe(statuses, folder))
        if not watch or not any(one.state == "running" for one in statuses):
            return
        time.sleep(2 if is_terminal else 60)


for _command in (report, plot, compare, score):
    main.add_command(_command)


@main.command(cls=SettingsCommand, classes=train_classes)
@quiet_option
def train(quiet: bool, values: dict[str, Any]) -> None:
    """Fine-tune a checkpoint under one recipe: how positions are drawn, and which rope rule is on.

    Interrupted, the same command goes on from its last checkpoint. What is trained carries its rope rule in its config
    and its history in evalkit_training.json, which 'run' and 'report' read. In brackets: defaults.

    \b
    Examples:
      evalkit train --base ckpt/ --out plain/ --recipe plain --subsets qa3 --longest 8k
      evalkit train --base ckpt/ --out ryarn/ --recipe randomized-yarn --subsets qa3 --longest 8k
    """
    from evalkit.cli.progress import TrainProgress
    from evalkit.train.config import train_config
    from evalkit.train.finetune import describe, finetune

    refuse_missing(values, "base", "out", "recipe")
    config = train_config(values)
    quiet = quiet or os.environ.get("RANK", "0") != "0"  # torchrun starts the command for each device; the first tells
    with TrainProgress(quiet=quiet) as progress:
        folder = finetune(
            config,
            on_step=progress.step,
            on_loss=progress.loss,
            on_notice=progress.note,
            on_phase=progress.phase,
        )
    if not quiet:
        echo_text(describe(folder), err=True)


@main.command()
@click.argument("experiment", required=False)
@option("--seeds", type=click.IntRange(min=1, max=1000), help="Trainings of each arm, with seeds 0, 1, ...")
@option("--base", help="Checkpoint to train the arms from, a folder or a hub name; default: the experiment's.")
@option("--revision", help="Branch, tag or commit of the base's hub name.")
@option("--scale", help="The experiment at another size that its file has, such as cpu.")
@option("--out", type=ANY_PATH, help="Checkpoints and runs; default: results/EXPERIMENT.")
@option("--plots", type=ANY_PATH, help="Tables and figures; default: plots/EXPERIMENT.")
@option("--replicas", type=click.IntRange(min=1), help="Steps side by side, one device each; needs Ray.")
@option("--ray", help="Use a Ray cluster whose nodes share these folders: its head's HOST:PORT, or auto.")
@option("--dry-run", is_flag=True, help="Print every step with its command, what it takes and can show, and stop.")
@option("--json", "as_json", is_flag=True, help="With --dry-run: print JSON.")
@option("--calibrate", is_flag=True, help="With --dry-run: ask and train a little first, to know the time.")
@quiet_option
def reproduce(
    experiment: str | None,
    seeds: int | None,
    base: str | None,
    revision: str | None,
    scale: str | None,
    out: Path | None,
    plots: Path | None,
    replicas: int | None,
    ray: str | None,
    dry_run: bool,
    as_json: bool,
    calibrate: bool,
    quiet: bool,
) -> None:
    """Train all arms of an experiment, evaluate them, and report: from nothing to the length-generalization curve.

    EXPERIMENT is the name of one that comes with evalkit, or a TOML file of your own; without it those that come with
    evalkit are listed. What is done already is not done again. A file that trains nothing is for 'evalkit run FILE'.

    \b
    Examples:
      evalkit reproduce tiny
      evalkit reproduce smollm2 --scale cpu --base smollm2/
      evalkit reproduce mine.toml --seeds 3
      evalkit reproduce paper --base Qwen/Qwen2.5-7B-Instruct --dry-run
    """
    from functools import partial

    from evalkit.cli.progress import StudyProgress
    from evalkit.models.hub import local, resolve
    from evalkit.study import workers
    from evalkit.study.estimate import describe, to_json
    from evalkit.study.experiment import experiment_names, load_experiment
    from evalkit.study.on_ray import Devices
    from evalkit.study.steps import Run, plan_steps
    from evalkit.study.study import Study

    if experiment is None:
        for name in experiment_names():
            echo_text(f"{name:12} {load_experiment(name).about}")
        return
    loaded = load_experiment(experiment, base=base, revision=revision, scale=scale)
    chosen = tuple(range(seeds)) if seeds else loaded.seeds
    name = loaded.name
    study = Study(experiment=loaded, root=out or Path("results") / name, plots=plots or Path("plots") / name)
    steps = plan_steps(study, chosen)
    _refuse_without_dry_run(dry_run, as_json=as_json, calibrate=calibrate)
    if calibrate:
        echo_text("measuring how fast this machine trains and asks, unless that is known", err=True)
        study.calibrate()
    if dry_run:
        echo_either(as_json, partial(to_json, steps), partial(describe, steps))
        if not study.trains_base and local(loaded.base, loaded.revision) is None:
            there = "is neither a folder here nor in the hub's cache; without --dry-run it is looked for on the hub"
            echo_text(f"note: the base {loaded.base} {there}.", err=True)
        return
    if not study.trains_base:
        resolve(loaded.base, loaded.revision)  # downloaded once, before several processes ask for it
    side_by_side = partial(Devices, replicas, ray, study) if replicas or ray else None
    with StudyProgress(steps, quiet=quiet) as progress:
        workers.reproduce(
            study,
            seeds=chosen,
            side_by_side=side_by_side,
            on_step=progress.is_finished,
            on_share=progress.goes_on,
        )
    if not quiet:
        echo(f"tables and figures: {study.plots}", err=True)
    if unfinished := [step for step in steps if isinstance(step, Run) and not step.done()]:
        echo_text(f"{len(unfinished)} runs have failed samples, which the same command asks again.", err=True)
        sys.exit(FAILED_SAMPLES)


@main.command()
@click.argument("run_folder", type=FOLDER)
@click.argument("key")
@option("--around", type=click.FloatRange(0, 1), help="Print only the part around this depth (0 top, 1 end).")
@option("--width", type=click.IntRange(min=1), default=400, show_default=True, help="Tokens on each side of it.")
def show(run_folder: Path, key: str, around: float | None, width: int) -> None:
    """Rebuild the prompt of one recorded answer and print it with its facts marked.

    KEY is subset/length/sample, as the report names it; zeros in front of a sample's number can be left out.

    \b
    Examples:
      evalkit show results/ckpt-babilong-1a2b3c4d qa3/16k/17
      evalkit show results/ckpt-babilong-1a2b3c4d qa3/16k/17 --around 0.5
    """
    from evalkit.runs.show import show as rebuild

    echo(rebuild(run_folder, key, depth=around, width=width))


@main.command()
@click.argument("task", required=False)
def tasks(task: str | None) -> None:
    """List the task cards, or the subsets of one.

    \b
    Examples:
      evalkit tasks
      evalkit tasks babilong
    """
    from evalkit.benchmarks.cards import card_names, load_card

    if task is None:
        for name in card_names():
            card = load_card(name)
            about = f"{card.title}: {' '.join(card.description.split())}"
            echo_wrapped(f"{name:10} {about} ({len(card.subsets)} subsets, card v{card.version})", indent=11)
        return
    card = load_card(task)
    echo_wrapped(f"{card.title}, card v{card.version}. {' '.join(card.description.split())}")
    echo(card.paper)
    default = ", ".join(card.default_subsets)
    room = f"{card.max_new_tokens} new tokens" if card.max_new_tokens else "room for each answer's own length, and more"
    echo_wrapped(f"Default: {default}; {card.default_samples} samples a cell; {room}.")
    if card.guess:
        echo_wrapped(f"Chance: the score of {card.guess}.")
    for name, subset in card.subsets.items():
        labels = f": {', '.join(subset.labels)}" if subset.labels else ""
        echo_wrapped(f"  {name:8} chance {100 * subset.chance:5.1f}  {subset.title}{labels}", indent=25)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands and options when the tab key is pressed.

    \b
    Examples:
      eval "$(evalkit completion bash)"                               in ~/.bashrc
      eval "$(evalkit completion zsh)"                                in ~/.zshrc
      evalkit completion fish > ~/.config/fish/completions/evalkit.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "click knows the shells that are offered"
    echo(kind(main, {}, "evalkit", "_EVALKIT_COMPLETE").source())


@main.command("new-checkpoint")
@click.argument("folder", type=ANY_PATH)
@option("--window", type=token_count, default="4k", show_default=True, help="Positions of the checkpoint.")
@option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the weights.")
def new_checkpoint(folder: Path, window: int, seed: int) -> None:
    """Write a small checkpoint with random weights, a tokenizer and a chat template: something to try evalkit on.

    \b
    Examples:
      evalkit new-checkpoint ckpt
      evalkit run --model ckpt --task babilong --lengths 1k,2k,4k --samples 5
    """
    from evalkit.lengths import format_length
    from evalkit.models.new_checkpoint import write_checkpoint

    write_checkpoint(folder, window=window, seed=seed)
    echo_text(f"{folder}: random weights, window {format_length(window)}; its answers are noise.", err=True)


for _command in (import_, export):
    main.add_command(_command)
