"""Fine-tune one arm on transformers' Trainer, and leave a checkpoint that says how it wants to be served.

    out/config.json, *.safetensors, tokenizer   the checkpoint; its config carries the rope rule of training
    out/evalkit_training.json                   the record that runs and reports read; written last, so it marks the end
    out/loss.csv, out/loss.png                  the training loss
    out/checkpoints/                            where an interrupted training goes on; removed at the end

With LoRA the adapter is merged, or (``merge=False``) kept in ``out`` to be served beside its base.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeAlias

from evalkit import options
from evalkit.benchmarks import open_benchmark, task
from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.options import TaskOptions
from evalkit.errors import BadInput, EngineError
from evalkit.models.backends.hf import load_causal_lm
from evalkit.models.checkpoint import TRAINING_RECORD, Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.modules import read_back_transformers
from evalkit.models.rope.readback import compare_model, expected_frequencies
from evalkit.models.rope.served import ServedRope, config_for, served_rule, training_rope
from evalkit.options import option, read_toml
from evalkit.records.folder import RunFolder
from evalkit.runs.config import recorded_config, run_config
from evalkit.runs.plan import asked_samples
from evalkit.train.data import (
    DataRecipe,
    Example,
    Leakage,
    OnLeak,
    choose_samples,
    data_hash,
    make_examples,
)
from evalkit.train.positions import PAPER_STAGES
from evalkit.train.recipes import RECIPES, Recipe, make_recipe
from evalkit.train.trainer import (
    Collator,
    Stream,
    make_trainer,
    samples_per_step,
    training_arguments,
    write_loss_curve,
)
from evalkit.types import Sample

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]

ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_UNFINISHED = "checkpoints"
_PLAN = "plan.json"
_BESIDE_THE_WEIGHTS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One arm. Two arms that differ in ``recipe`` and ``out`` alone see the same samples in the same order."""

    base: Path = option("--base", "Checkpoint folder to start from.")
    out: Path = option("--out", "Folder of the trained checkpoint.")
    recipe: str = option("--recipe", f"One of {', '.join(RECIPES)}.")
    """One of ``recipes.RECIPES``."""
    data: DataRecipe = field(default_factory=DataRecipe)
    options: TaskOptions = field(default_factory=BABILongOptions)
    """Of the benchmark that gives the data."""
    chat: bool | None = option("--chat-template", "Use it; default: if the base has one.", default=None)
    """Use the chat template; None: exactly when the base has one."""
    system_prompt: str | None = option("--system-prompt", "System message in front of every prompt.", default=None)
    against: tuple[Path, ...] = option(
        "--against", "Run folder whose questions are held out (repeatable).", default=(), repeat=True
    )
    """Run folders, or TOML files of a run's settings."""
    on_leak: OnLeak = option("--on-leak", "Items that evaluation asks too [refuse].", default="refuse")

    factor: float = option("--factor", "Factor of YaRN in training, where the recipe has it on [2].", default=2.0)
    """s of YaRN in training, for the recipes that train under it."""
    stages: tuple[float, ...] = option(
        "--stages",
        "Ranges of random positions by stage, x trained length [1,1.25,1.5,2,2].",
        default=PAPER_STAGES,
    )
    """Ranges of random positions by stage, in multiples of the trained length ``data.longest``."""
    mixed: bool = option("--mixed", "Draw each sample's range log-uniformly up to the stage's [no].", default=False)
    per_batch: bool = option("--per-batch", "One draw of positions for a whole batch [no].", default=False)
    pose: bool = option("--pose", "Two runs of positions with a random gap instead of random gaps [no].", default=False)

    epochs: float = option("--epochs", "Passes over the data [5].", default=5.0)
    batch_size: int = option("--batch-size", "Samples per device and step [1].", default=1)
    """Samples per device and step."""
    accumulation: int = option("--accumulation", "Batches per optimizer step [8].", default=8)
    """Batches per optimizer step."""
    learning_rate: float = option("--learning-rate", "[1e-4]", default=1e-4)
    warmup: float = option("--warmup", "Part of the steps over which the rate rises [0.05].", default=0.05)
    """Part of the steps over which the learning rate rises; it falls to a tenth along a cosine."""
    weight_decay: float = option("--weight-decay", "[0.01]", default=0.01)
    lm_weight: float = option(
        "--lm-weight", "Weight of the loss on the prompt, beside that on the answer [0].", default=0.0
    )
    """Weight of the language-model loss on the prompt, beside the loss on the answer."""
    lora_rank: int = option("--lora-rank", "0 trains all weights [0].", default=0)
    """0 trains all weights."""
    lora_alpha: float = option("--lora-alpha", "[32]", default=32.0)
    lora_targets: tuple[str, ...] = option(
        "--lora-targets", "Module names [attention and MLP projections].", default=ATTENTION_AND_MLP
    )
    merge: bool = option("--merge", "Merge the adapter into the weights, or write it beside [merge].", default=True)
    gradient_checkpointing: bool = option("--gradient-checkpointing", "Less memory [no].", default=False)
    precision: Precision = option("--precision", "[auto]", default="auto")
    """Of the arithmetic; "auto" is bfloat16 on a GPU and float32 on a CPU."""
    seed: int = option("--seed", "Of weights, order and positions [0].", default=0)
    save_every: int = option("--save-every", "Steps between checkpoints [five in all].", default=0)
    """Optimizer steps between checkpoints; 0: five in all."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "epochs", "learning_rate", "lora_alpha"):
            if getattr(self, name) <= 0:
                raise BadInput(f"{name} is positive; got {getattr(self, name)}.")
        for name in ("lora_rank", "lm_weight", "weight_decay", "save_every", "warmup"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} is 0 or more; got {getattr(self, name)}.")
        self.make_recipe()

    def make_recipe(self) -> Recipe:
        """Return the arm's recipe with this training's schedule."""
        return make_recipe(self.recipe, stages=self.stages, mixed=self.mixed, per_batch=self.per_batch, pose=self.pose)


def train_config(values: Mapping[str, Any], where: str = "The command line") -> TrainConfig:
    """Make a training's configuration of flat settings; see ``runs.config.run_config``.

    Raises:
        BadInput: a setting that is missing, unknown or of another type.
    """
    data = task(values.get("task", DataRecipe().task)).options
    options.refuse_unknown(values, where, TrainConfig, data)
    return options.read(TrainConfig, values, where, options=options.read(data, values, where))


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that is decided before weights are loaded."""

    config: TrainConfig
    recipe: Recipe
    checkpoint: Checkpoint
    rope: ServedRope
    """The rule that is on in training, and to be served at this factor or more."""
    examples: list[Example]
    leakage: Leakage


def prepare(config: TrainConfig) -> Prepared:
    """Check base, rule and range, and draw the data.

    Raises:
        BadInput: the base has no rotary positions, the samples exceed its window, the data leak into the evaluation.
    """
    recipe, checkpoint = config.make_recipe(), Checkpoint.open(config.base)
    rope = _rope(config, recipe, checkpoint)
    encoder = Encoder.open(
        config.base, chat=config.chat, system_prompt=config.system_prompt, vocab_size=checkpoint.vocab_size
    )
    stop_id = encoder.tokenizer.eos_token_id
    if stop_id is None:
        raise BadInput(f"The tokenizer in {config.base} has no EOS token, so an answer could not be ended; name one.")
    benchmark = open_benchmark(
        config.data.task,
        config.options,
        seed=config.data.seed,
        part="train",
        count_tokens=lambda text: len(encoder.encode_after(text, before="")),
    )
    samples, leakage = choose_samples(benchmark, config.data, held_out(config.against), config.on_leak)
    examples = make_examples(samples, benchmark, encoder, config.data, stop_id=stop_id)
    return Prepared(config=config, recipe=recipe, checkpoint=checkpoint, rope=rope, examples=examples, leakage=leakage)


def finetune(config: TrainConfig, *, on_step: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Train one arm, or go on with it, and return its folder. A finished arm is returned as it is.

    Args:
        config: the arm.
        on_step: called with (steps done, steps in all) after each optimizer step.

    Raises:
        BadInput: see ``prepare``; or ``config.out`` holds another training.
        EngineError: the base's weights are not complete, or the device has too little memory.
    """
    prepared = prepare(config)
    plan = _plan(prepared)
    if _is_finished(config.out, plan):
        return config.out
    trainer = _trainer(prepared, on_step)
    main = trainer.is_world_process_zero()
    if main:
        config.out.mkdir(parents=True, exist_ok=True)
        _write_json(config.out / _PLAN, plan)
    _train(trainer, config)
    if main:
        _export(prepared, trainer, plan)
    trainer.accelerator.wait_for_everyone()
    return config.out


def held_out(against: Sequence[Path]) -> Iterator[Sample]:
    """Yield the samples that some runs ask, which no training may show.

    Args:
        against: run folders, or TOML files with the settings of a run.

    Raises:
        BadInput: one is neither.
    """
    for path in against:
        config = recorded_config(RunFolder.open(path)) if path.is_dir() else run_config(read_toml(path), str(path))
        yield from asked_samples(config)


def _rope(config: TrainConfig, recipe: Recipe, checkpoint: Checkpoint) -> ServedRope:
    """Return the rule of training: what the base has, or YaRN over the base's original length in its place."""
    from huggingface_hub.errors import StrictDataclassError

    stored = checkpoint.rope
    if stored is None:
        raise BadInput(
            f"{checkpoint.path} ({checkpoint.model_type}) has no rotary positions, so there is nothing to draw or "
            "scale; train a model with RoPE, such as Qwen2, Llama or Olmo."
        )
    if config.data.longest > checkpoint.window:
        raise BadInput(
            f"The trained length of {config.data.longest:,} tokens is beyond the {checkpoint.window:,} positions of "
            f"{checkpoint.name}; train on shorter samples."
        )
    reached = recipe.positions.largest_range(config.data.longest)
    if recipe.rope == "none" and stored.type == "longrope" and reached > stored.original_length:
        raise BadInput(
            f"{checkpoint.name} changes its frequencies where a sample passes {stored.original_length:,} positions "
            f"(longrope), and this training reaches {reached:,}, so it would mix two rules; stay below."
        )
    rope = training_rope(checkpoint, config.data.longest, None if recipe.rope == "none" else config.factor)
    try:
        config_for(config.base, rope.mapping).validate()
    except (StrictDataclassError, ValueError) as error:  # as saving the trained checkpoint would
        raise BadInput(
            f"{checkpoint.name} cannot be trained under {rope.label}: its config class ({checkpoint.model_type}) does "
            f"not save such a rule ({str(error.__cause__ or error).rstrip('.')})."
        ) from error
    return rope


def _trainer(prepared: Prepared, on_step: Callable[[int, int], None]) -> Any:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = prepared.config
    half = config.precision == "bfloat16" or (config.precision == "auto" and torch.cuda.is_available())
    per_step = samples_per_step(config.batch_size, config.accumulation)
    steps = max(round(config.epochs * len(prepared.examples) / per_step), 1)
    arguments = training_arguments(
        config.out / _UNFINISHED,
        steps=steps,
        batch_size=config.batch_size,
        accumulation=config.accumulation,
        learning_rate=config.learning_rate,
        warmup_steps=round(config.warmup * steps),
        weight_decay=config.weight_decay,
        half=half,
        gradient_checkpointing=config.gradient_checkpointing,
        save_steps=config.save_every or max(steps // 5, 1),
        seed=config.seed,
    )
    num_items = steps * per_step
    return make_trainer(
        _load(prepared, half=half),
        arguments,
        stream=Stream(prepared.examples, num_items=num_items, seed=config.seed),
        collator=Collator(
            prepared.recipe.positions,
            trained_length=config.data.longest,
            num_items=num_items,
            seed=config.seed,
            pad_id=0,  # masked, so any id will do
        ),
        lm_weight=config.lm_weight,
        on_step=on_step,
    )


def _load(prepared: Prepared, *, half: bool) -> Any:
    """Load the base under the rope rule of training, read it back, and add fresh LoRA weights where they are asked for.

    Weights that are trained stay float32, and bfloat16 is only computed in; a frozen base is held in bfloat16.
    """
    import torch

    config = prepared.config
    frozen = config.lora_rank > 0
    model = load_causal_lm(
        config.base,
        config_for(config.base, prepared.rope.mapping),
        torch.bfloat16 if half and frozen else torch.float32,
    )
    compare_model(expected_frequencies(prepared.checkpoint, prepared.rope), read_back_transformers(model))
    if not frozen:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise BadInput("LoRA needs peft: pip install 'evalkit[train]'.") from error
    torch.manual_seed(config.seed)  # LoRA's first matrices are random
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_targets),
        task_type="CAUSAL_LM",
    )
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if missing := [name for name in config.lora_targets if name not in modules]:
        raise BadInput(
            f"LoRA target {missing[0]!r} matches no module of {config.base.name}; its linear layers are "
            f"{', '.join(sorted(_linear_names(model)))}."
        )
    return get_peft_model(model, lora)


def _linear_names(model: Any) -> set[str]:
    from torch.nn import Linear

    return {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Linear)}


def _train(trainer: Any, config: TrainConfig) -> None:
    import torch
    from transformers.trainer_utils import get_last_checkpoint

    unfinished = config.out / _UNFINISHED
    last = get_last_checkpoint(str(unfinished)) if unfinished.is_dir() else None
    try:
        trainer.train(resume_from_checkpoint=last)
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"The GPU has too little memory for {config.batch_size} x {config.data.longest:,} tokens; lower "
            "--batch-size and raise --accumulation, add --gradient-checkpointing, or train with --lora-rank."
        ) from error
    trainer.accelerator.wait_for_everyone()


def _export(prepared: Prepared, trainer: Any, plan: Mapping[str, Any]) -> None:
    """Write the checkpoint, then its record, then remove what only a resume needs."""
    config = prepared.config
    write_loss_curve(trainer.state.log_history, config.out)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora_rank and config.merge:
        model = model.merge_and_unload()
    model.save_pretrained(config.out)
    if config.merge or not config.lora_rank:
        for name in _BESIDE_THE_WEIGHTS:
            if (file := config.base / name).is_file():
                shutil.copyfile(file, config.out / name)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    _write_json(
        config.out / TRAINING_RECORD,
        dict(plan) | {"steps": trainer.state.global_step, "final_loss": losses[-1], "versions": _versions()},
    )
    (config.out / _PLAN).unlink()
    shutil.rmtree(config.out / _UNFINISHED, ignore_errors=True)


def _plan(prepared: Prepared) -> dict[str, Any]:
    """Return everything that decides the weights, as JSON values; with what came of it, this is the training record."""
    config, rule = prepared.config, prepared.recipe.positions
    optimization = ("epochs", "batch_size", "accumulation", "learning_rate", "warmup", "weight_decay", "lm_weight")
    lora = {"rank": config.lora_rank, "alpha": config.lora_alpha, "targets": list(config.lora_targets)}
    return {
        "schema": 1,
        "recipe": config.recipe,
        "trained_length": config.data.longest,
        "positions": asdict(rule) | {"stages": list(rule.stages)},
        "largest_position": rule.largest_range(config.data.longest) - 1,
        "rope": served_rule(prepared.checkpoint, prepared.rope).to_json(),
        "rope_warnings": list(prepared.rope.warnings),
        "base": {
            "name": prepared.checkpoint.name,
            **prepared.checkpoint.identity(),
            "rope": prepared.checkpoint.rope.rule.to_json() if prepared.checkpoint.rope else None,
        },
        "data": {
            **config.data.to_json(),
            "options": options.write(config.options),
            "examples": len(prepared.examples),
            "sha256": data_hash(prepared.examples),
            "leakage": asdict(prepared.leakage) | {"found": prepared.leakage.describe()},
        },
        "optimization": {name: getattr(config, name) for name in optimization} | {"precision": config.precision},
        "lora": lora if config.lora_rank else None,
        "seed": config.seed,
    }


def _is_finished(out: Path, plan: Mapping[str, Any]) -> bool:
    """Return whether ``out`` holds the end of this training; refuse a folder that holds another."""
    for name in (TRAINING_RECORD, _PLAN):
        try:
            there = json.loads((out / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except json.JSONDecodeError as error:
            raise BadInput(f"{out / name} is damaged ({error}); move {out} away and train again.") from error
        if differing := [key for key in plan if there.get(key) != plan[key]]:
            raise BadInput(
                f"{out} holds another training: its {differing[0]} is {there.get(differing[0])!r}, not "
                f"{plan[differing[0]]!r}; name another --out."
            )
        return name == TRAINING_RECORD
    if out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty and holds no training; name another --out.")
    return False


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("evalkit", "torch", "transformers", "accelerate", "peft", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    draft.replace(file)
