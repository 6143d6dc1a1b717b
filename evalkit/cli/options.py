"""The options that commands share, and the types of what is typed behind them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from evalkit.errors import BadInput
from evalkit.lengths import parse_length, parse_lengths

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)
DTYPES = ("auto", "float32", "bfloat16", "float16")

# Types of options: click calls them with what was typed, and shows their names in --help.


def lengths(text: str) -> tuple[str, ...]:
    """Turn "16k,4096" into ("4k", "16k")."""
    return parse_lengths(text)


def token_count(text: str) -> int:
    """Turn "8k" into 8192."""
    return parse_length(text)


def names(text: str) -> tuple[str, ...]:
    """Turn "qa1,qa2" into ("qa1", "qa2")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str) -> tuple[float, ...]:
    """Turn "0,0.5" into (0.0, 0.5)."""
    return tuple(float(part) for part in names(text))


def factor(text: str) -> float | str:
    """Turn "4" into 4.0, and keep "auto"."""
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise BadInput(f"A rope factor is a number from 1 up, or auto; got {text!r}.") from error


def _together(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Return one decorator for several options, shown in --help in the order given."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


rope_options = _together(
    click.option(
        "--rope",
        "rope_rule",
        default="checkpoint",
        show_default=True,
        type=click.Choice(["checkpoint", "none", "linear", "ntk", "ntk-by-parts", "yarn"]),
        help="Rule to serve: the checkpoint's own, or another one in its place.",
    ),
    click.option(
        "--factor",
        type=factor,
        help="Window factor of a named rule; 'auto', its default: length / trained length, one per length.",
    ),
    click.option(
        "--original-length", type=token_count, help="Trained window, such as 32k, where the config has it wrong."
    ),
)


def rope_request(options: dict[str, Any]) -> Any:
    """Take what ``rope_options`` gave out of ``options`` and return it as a ``serving.RopeRequest``."""
    from evalkit.models.rope.served import RopeRequest

    return RopeRequest(
        rule=options.pop("rope_rule"), factor=options.pop("factor"), original_length=options.pop("original_length")
    )


_ENGINE_OPTIONS = (  # flag, name in the options of the backend (but for the served model), type, help
    ("--tensor-parallel", "tensor_parallel", int, "vllm: GPUs that share the model."),
    ("--quantization", "quantization", str, "vllm: quantize the weights while loading (fp8, bitsandbytes)."),
    ("--max-num-batched-tokens", "max_num_batched_tokens", int, "vllm: tokens per step; fewer need less memory."),
    ("--max-num-seqs", "max_num_seqs", int, "vllm: requests per step."),
    ("--gpu-memory-utilization", "gpu_memory_utilization", float, "vllm: share of the GPU's memory to use."),
    (
        "--stall-seconds",
        "stall_seconds",
        float,
        "vllm: an engine that does nothing for so long is started again [1800].",
    ),
    ("--served-model", "served_model", str, "server: the model's name there, where it serves several."),
    ("--concurrency", "concurrency", int, "server: requests in flight."),
    ("--timeout", "timeout_seconds", float, "server: seconds per attempt."),
    ("--max-retries", "max_retries", int, "server: further attempts after trouble that may pass."),
)

engine_options = _together(
    *(click.option(flag, name, type=kind, help=text) for flag, name, kind, text in _ENGINE_OPTIONS),
    click.option("--deterministic", is_flag=True, help="vllm: the same tokens however requests are batched; slower."),
    click.option("--base-url", multiple=True, help="server: its address, or LENGTH=URL for one server per length."),
    click.option("--server-chat", "chat_api", is_flag=True, help="server: it takes no ids; send text to its chat API."),
)


def engine_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Take what ``engine_options`` gave out of ``options`` and return what was given."""
    given = {name: options.pop(name) for _, name, _, _ in _ENGINE_OPTIONS}
    given |= {"deterministic": options.pop("deterministic"), "base_url": options.pop("base_url")}
    given |= {"chat": options.pop("chat_api"), "model": given.pop("served_model")}
    return {name: value for name, value in given.items() if value is not None and value is not False and value != ()}


run_options = _together(
    click.option("--model", required=True, type=ANY_PATH, help="Hugging Face checkpoint folder."),
    click.option("--task", required=True, help="A task card; see 'evalkit tasks'."),
    click.option("--lengths", required=True, type=lengths, help="Such as 16k,64k,128k: tokens, answer included."),
    click.option("--subsets", type=names, default="", help="Such as qa1,qa2 or 2needle,8needle; default: the card's."),
    click.option(
        "--needles", type=names, default="", help="MRCR: 2,4,8; the same as --subsets 2needle,4needle,8needle."
    ),
    click.option("--samples", type=click.IntRange(min=1), help="Questions per subset and length; default: the card's."),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws data; same for all arms."
    ),
    click.option(
        "--source", default="generated", show_default=True, help="'generated', 'hub', or published rows' folder."
    ),
    click.option("--facts", type=FOLDER, help="BABILong: folder of bAbI v1.2 text files instead of generated worlds."),
    click.option("--noise", type=ANY_PATH, multiple=True, help="BABILong: background text file (repeatable)."),
    click.option(
        "--depth", "depths", type=numbers, default="", help="Ask each sample with its facts at 0,0.25,... depth."
    ),
    click.option(
        "--control", type=click.Choice(["no-context", "facts-only"]), help="Bound a curve from below or above."
    ),
    click.option(
        "--prompts", default="own", show_default=True, help="Wording: 'own', 'official' (hub), or a local path."
    ),
    click.option("--no-instruction", is_flag=True, help="Leave the instruction out."),
    click.option("--no-examples", is_flag=True, help="Leave the worked examples out."),
    click.option("--no-post-prompt", is_flag=True, help="Leave the answer-format sentence out."),
    click.option("--system-prompt", help="System message in front of every prompt."),
    click.option(
        "--chat-template/--no-chat-template", "chat", default=None, help="Default: if the checkpoint has one."
    ),
    click.option("--max-new-tokens", type=click.IntRange(min=1), help="Answer limit; default: the card's."),
    rope_options,
    click.option(
        "--backend", type=click.Choice(["auto", "hf", "vllm", "server", "scripted"]), default="auto", show_default=True
    ),
    click.option(
        "--script",
        type=click.Choice(["oracle", "wrong", "empty", "slow", "failing"]),
        default="oracle",
        show_default=True,
        help="How the scripted backend answers.",
    ),
    click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option("--batch-tokens", type=click.IntRange(min=1), help="hf: padded prompt tokens per batch."),
    click.option("--adapter", type=FOLDER, help="LoRA adapter folder to serve on top of the checkpoint."),
    engine_options,
    click.option("--arm", help="Name in tables and figures; default: the checkpoint's name and a named rope rule."),
    click.option("--out", type=ANY_PATH, help="Run folder; default: results/<arm>-<task>-<fingerprint>."),
)


def run_config(options: dict[str, Any]) -> Any:
    """Gather what ``run_options`` gave into a ``plan.RunConfig``."""
    from evalkit.runs.plan import RunConfig

    without = tuple(p for p in ("instruction", "examples", "post_prompt") if options.pop(f"no_{p}"))
    rope, engine = rope_request(options), engine_settings(options)
    needles = tuple(f"{n.removesuffix('needle')}needle" for n in options.pop("needles"))
    if needles and options["task"] != "mrcr":
        raise BadInput(f"--needles: an option of MRCR; the task is {options['task']}.")
    if needles and options["subsets"]:
        raise BadInput("--needles and --subsets both name subsets; give one of the two.")
    options["subsets"] = options["subsets"] or needles
    options |= {"without": without, "rope": rope, "engine": engine, "samples": options["samples"] or 0}
    return RunConfig(**options)


_DATA_RECIPE = (  # flag, field of ``train.data.DataRecipe``, type, help
    ("--task", "task", str, "Task card that gives the training data [babilong]."),
    ("--subsets", "subsets", names, "Such as qa3 [qa3]."),
    ("--samples", "samples", int, "Training samples in all [4000]."),
    ("--shortest", "shortest", int, "Shortest sample, tokens with answer [0]."),
    ("--longest", "longest", int, "Longest sample: the trained length, tokens with answer [8192]."),
    ("--data-seed", "seed", int, "Draws stories and background; far from those of evaluation by default."),
    ("--rows", "rows", lengths, "Of a --source, the lengths to train on, such as 4k,8k [that of --longest]."),
)
_TRAINING = (  # flag, field of ``train.finetune.TrainConfig``, type, help
    ("--on-leak", "on_leak", click.Choice(["refuse", "drop", "allow"]), "Items that evaluation asks too [refuse]."),
    ("--factor", "factor", float, "Factor of YaRN in training, where the recipe has it on [2]."),
    ("--stages", "stages", numbers, "Ranges of random positions by stage, x trained length [1,1.25,1.5,2,2]."),
    ("--mixed/--no-mixed", "mixed", None, "Draw each sample's range log-uniformly up to the stage's [no]."),
    ("--per-batch/--no-per-batch", "per_batch", None, "One draw of positions for a whole batch [no]."),
    ("--pose/--no-pose", "pose", None, "Two runs of positions with a random gap instead of random gaps [no]."),
    ("--epochs", "epochs", float, "Passes over the data [5]."),
    ("--batch-size", "batch_size", int, "Samples per device and step [1]."),
    ("--accumulation", "accumulation", int, "Batches per optimizer step [8]."),
    ("--learning-rate", "learning_rate", float, "[1e-4]"),
    ("--warmup", "warmup", float, "Part of the steps over which the rate rises [0.05]."),
    ("--weight-decay", "weight_decay", float, "[0.01]"),
    ("--lm-weight", "lm_weight", float, "Weight of the loss on the prompt, beside that on the answer [0]."),
    ("--lora-rank", "lora_rank", int, "0 trains all weights [0]."),
    ("--lora-alpha", "lora_alpha", float, "[32]"),
    ("--lora-targets", "lora_targets", names, "Module names [attention and MLP projections]."),
    ("--merge/--no-merge", "merge", None, "Merge the adapter into the weights, or write it beside [merge]."),
    ("--gradient-checkpointing/--no-gradient-checkpointing", "gradient_checkpointing", None, "Less memory [no]."),
    ("--precision", "precision", click.Choice(["auto", "bfloat16", "float32"]), "[auto]"),
    ("--seed", "seed", int, "Of weights, order and positions [0]."),
    ("--save-every", "save_every", int, "Steps between checkpoints [five in all]."),
)

train_options = _together(
    click.option("--base", required=True, type=ANY_PATH, help="Checkpoint folder to start from."),
    click.option("--out", required=True, type=ANY_PATH, help="Folder of the trained checkpoint."),
    click.option(
        "--recipe", required=True, help="plain, yarn, rpe, randomized-yarn, or one of the last two with -no-curriculum."
    ),
    *(
        click.option(flag, f"data_{name}", type=kind, default=None, help=text)
        for flag, name, kind, text in _DATA_RECIPE
    ),
    click.option(
        "--source", default="generated", help="'generated', a data set of the task card, or published rows' folder."
    ),
    click.option("--facts", type=FOLDER, help="BABILong: folder of bAbI v1.2 text files; its train files are read."),
    click.option("--noise", type=ANY_PATH, multiple=True, help="BABILong: background text file (repeatable)."),
    click.option("--prompts", default="own", help="BABILong's wording: 'own', 'official' (hub), or a local path."),
    click.option("--no-instruction", is_flag=True, help="Leave the instruction out."),
    click.option("--no-examples", is_flag=True, help="Leave the worked examples out."),
    click.option("--no-post-prompt", is_flag=True, help="Leave the answer-format sentence out."),
    click.option("--max-new-tokens", type=click.IntRange(min=1), help="Room for the answer; default: the card's."),
    click.option("--chat-template/--no-chat-template", "chat", default=None, help="Default: if the base has one."),
    click.option("--system-prompt", help="System message in front of every prompt."),
    click.option("--against", type=FOLDER, multiple=True, help="Run folder whose questions are held out (repeatable)."),
    *(click.option(flag, name, type=kind, default=None, help=text) for flag, name, kind, text in _TRAINING),
)


def train_config(options: dict[str, Any]) -> Any:
    """Gather what ``train_options`` gave into a ``train.finetune.TrainConfig``; the rest keeps its default."""
    from evalkit.records.folder import RunFolder
    from evalkit.runs.plan import asked_samples
    from evalkit.runs.show import config_of
    from evalkit.train.data import DataRecipe
    from evalkit.train.finetune import TrainConfig

    given = {name: options[f"data_{name}"] for _, name, _, _ in _DATA_RECIPE if options[f"data_{name}"] is not None}
    without = tuple(p for p in ("instruction", "examples", "post_prompt") if options[f"no_{p}"])
    benchmark = {name: options[name] for name in ("facts", "noise", "max_new_tokens")} | {"without": without}
    benchmark |= {name: options[name] for name in ("source", "prompts") if options[name] not in ("generated", "own")}
    training = {name: options[name] for _, name, _, _ in _TRAINING if options[name] is not None}
    return TrainConfig(
        base=options["base"],
        out=options["out"],
        recipe=options["recipe"],
        data=DataRecipe(**given),
        options={name: value for name, value in benchmark.items() if value},
        chat=options["chat"],
        system_prompt=options["system_prompt"],
        evaluation=tuple(
            sample for run in options["against"] for sample in asked_samples(config_of(RunFolder.open(run)))
        ),
        **training,
    )
