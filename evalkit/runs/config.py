"""What a person asks of one run, and the one way to read it from the command line, a TOML file or run.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from evalkit import options
from evalkit.benchmarks import TASKS, task
from evalkit.benchmarks.options import TaskOptions
from evalkit.errors import BadInput
from evalkit.escaping import require_name
from evalkit.lengths import parse_lengths
from evalkit.models.backends import BACKENDS, backend_kind, best_backend
from evalkit.models.encoder import template_arguments
from evalkit.models.rope.served import RopeRequest
from evalkit.options import option
from evalkit.records.folder import RunFolder
from evalkit.runs.shards import parse_shard

_SINCE = {"answer_logprob", "repeat", "replicas", "ray"}
"""Settings that run folders of schema 2 did not have at first; their defaults are what was done."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One task, one checkpoint, one arm. Made by ``run_config``, which finds the classes of ``data`` and ``engine``."""

    GROUP: ClassVar[str] = "What is asked"

    model: str = option("--model", "Checkpoint folder, or a name on the Hugging Face hub, such as Qwen/Qwen3-8B.")
    revision: str | None = option("--revision", "Branch, tag or commit of a hub name [main].", default=None)
    task: str = option("--task", "A task card; see 'evalkit tasks'.")
    lengths: tuple[str, ...] = option(
        "--lengths", "Such as 16k,64k,128k: tokens, answer included.", parse=parse_lengths
    )
    """Canonical labels, shortest first."""
    subsets: tuple[str, ...] = option(
        "--subsets", "Such as qa1,qa2 or 2needle,8needle; default: the card's.", default=()
    )
    samples: int | None = option("--samples", "Questions per subset and length; default: the card's.", default=None)
    seed: int = option("--seed", "Draws data; same for all arms [0].", default=0)
    """Draws questions, background and placement. Evaluate all arms with the same one."""
    repeat: int = option(
        "--repeat", "Ask each sample so often; the report says how many answers changed [1].", default=1
    )
    """Scores come from the first time alone."""
    shard: str | None = option("--shard", "Ask one part, such as 3/8; 'report' joins.", default=None, parse=parse_shard)
    answer_logprob: bool = option(
        "--answer-logprob", "Also record the right answer's log-probability, and the wrong labels'.", default=False
    )
    """Changes no answer, so it is no part of the fingerprint; a folder has it for all of its answers or for none."""
    data: TaskOptions
    """Of the task's own class."""

    system_prompt: str | None = option(
        "--system-prompt", "System message in front of every prompt.", default=None, group="Wording"
    )
    chat: bool | None = option(
        "--chat-template", "Use it; default: if the checkpoint has one.", default=None, group="Wording"
    )
    template_args: tuple[str, ...] = option(
        "--template-arg",
        "Variable of the chat template, such as enable_thinking=false.",
        default=(),
        repeat=True,
        group="Wording",
    )
    """NAME=VALUE each; see ``encoder.template_arguments``."""

    rope: RopeRequest = field(default_factory=RopeRequest)
    adapter: str | None = option("--adapter", "LoRA adapter to serve on top: a folder, or a hub name.", default=None)
    adapter_revision: str | None = option("--adapter-revision", "Of the adapter's hub name [main].", default=None)
    backend: str = option(
        "--backend",
        f"One of {', '.join(BACKENDS)}; default: vllm where it is installed beside a GPU, else hf.",
        group="Backend",
    )
    engine: Any
    """Of the backend's own class."""
    replicas: int | None = option(
        "--replicas",
        "Engines side by side, each on devices of its own; needs the extra 'ray'.",
        default=None,
        group="Several devices",
    )
    ray: str | None = option(
        "--ray",
        "Use a Ray cluster: its head's HOST:PORT, or auto; default of --replicas: all that fit.",
        default=None,
        group="Several devices",
    )

    arm: str | None = option(
        "--arm",
        "Name in tables and figures; default: the checkpoint's and a named rope rule.",
        default=None,
        group="Output",
    )
    out: Path | None = option(
        "--out", "Run folder; default: results/<arm>-<task>-<fingerprint>.", default=None, group="Output"
    )

    def __post_init__(self) -> None:
        if not self.lengths:
            raise BadInput("No length was given; name them like --lengths 16k,64k,128k.")
        if self.samples is not None and self.samples < 1:
            raise BadInput(f"--samples is {self.samples}; ask at least 1 question.")
        if self.repeat < 1:
            raise BadInput(f"--repeat is {self.repeat}; each sample is asked at least once.")
        if self.arm is not None:
            require_name(self.arm, "--arm")
        if self.seed < 0:
            raise BadInput(f"--seed is {self.seed}; it is 0 or more.")
        if self.replicas is not None and self.replicas < 1:
            raise BadInput(f"--replicas is {self.replicas}; start at least 1 engine.")
        template_arguments(self.template_args)


def run_config(values: Mapping[str, Any], where: str = "The command line") -> RunConfig:
    """Make a run's configuration of flat settings.

    Args:
        values: by key (``options``); a backend that is absent or "auto" is chosen for this machine.
        where: the file, for messages.

    Raises:
        BadInput: a setting that is missing, unknown, of another type, or of another task or backend than is chosen.
    """
    if "task" not in values:
        raise BadInput(f"{where} has no task; name one of {', '.join(TASKS)}.")
    name = values.get("backend") or "auto"
    values = {**values, "backend": best_backend() if name == "auto" else name}
    config = _read(values, where)
    named = config.data.subsets
    if config.subsets and named and set(config.subsets) != set(named):
        raise BadInput(f"{where} names the subsets {', '.join(named)} and {', '.join(config.subsets)}; name them once.")
    return replace(config, subsets=config.subsets or named)


def _read(values: Mapping[str, Any], where: str) -> RunConfig:
    data, engine = task(values["task"]).options, backend_kind(values["backend"]).options
    _refuse_options_of_others(values, data, engine)
    options.refuse_unknown(values, where, RunConfig, data, engine)
    return options.read(
        RunConfig, values, where, data=options.read(data, values, where), engine=options.read(engine, values, where)
    )


def _refuse_options_of_others(values: Mapping[str, Any], data: type, engine: type) -> None:
    """Refuse a setting that only another task or backend has, and say whose it is."""
    own = {**options.settings(RunConfig), **options.settings(data), **options.settings(engine)}
    tasks = {key: f"the task {name}" for name, one in TASKS.items() for key in options.settings(one.options)}
    backends = {key: f"the backend {name}" for name, one in BACKENDS.items() for key in options.settings(one.options)}
    for key in values:
        owner = tasks.get(key) or backends.get(key)
        if key not in own and owner:
            now = f"the task {values['task']}" if key in tasks else f"the backend {values['backend']}"
            raise BadInput(f"--{key.replace('_', '-')} is an option of {owner}, and this run uses {now}; leave it out.")


def recorded_config(folder: RunFolder) -> RunConfig:
    """Return the configuration that a run folder was made with, over all that it was ever asked for.

    Raises:
        BadInput: it was imported, or written by an earlier evalkit, so that there is nothing to rebuild.
    """
    if folder.published:
        raise BadInput(f"{folder.path} holds imported answers; their prompts cannot be rebuilt.")
    config = folder.config
    if not options.settings(RunConfig).keys() - _SINCE <= config.keys():
        raise BadInput(
            f"{folder.path} was written by an earlier evalkit: it can be reported, but its prompts cannot be rebuilt."
        )
    classes = (RunConfig, task(config["task"]).options, backend_kind(config["backend"]).options)
    known = {key for cls in classes for key in options.settings(cls)}
    values = {key: value for key, value in config.items() if key in known}
    values |= {name: config["scope"][name] for name in ("lengths", "subsets", "samples")}
    values["repeat"] = config["scope"].get("repeat", 1)
    for name in ("revision", "adapter_revision"):  # a branch may have moved on since
        commit = folder.fingerprint.get(f"checkpoint.{name.replace('revision', 'commit').replace('_', ' ')}")
        values |= {name: commit} if commit else {}
    return _read(values, f"{folder.path}/run.json")
