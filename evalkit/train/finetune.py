"""Fine-tune one arm on transformers' Trainer, and leave a checkpoint that says how it wants to be served.

    out/config.json, *.safetensors, tokenizer   the checkpoint; its config carries the rope rule of training
    out/evalkit_training.json                   the record that runs and reports read; written last, so it marks the end
    out/loss.csv, out/loss.png                  the training loss
    out/plan.json, out/checkpoints/             where an interrupted training goes on; removed at the end

With LoRA the adapter is merged, or (``merge=False``) kept in ``out`` to be served beside its base.
"""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from evalkit.benchmarks import open_benchmark
from evalkit.errors import BadInput, EngineError
from evalkit.files import first_line
from evalkit.machine import how_to_install
from evalkit.models import tokenizer
from evalkit.models.backends.cpu_dtype import fastest_on_cpu
from evalkit.models.causal_lm import load_causal_lm
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder, template_arguments
from evalkit.models.rope.modules import read_back_transformers
from evalkit.models.rope.readback import compare_model, expected_frequencies
from evalkit.models.rope.served import ServedRope, config_for, served_rule, training_rope
from evalkit.models.training_record import (
    TRAINING_RECORD,
    TrainedData,
    TrainedLeakage,
    TrainingRecord,
)
from evalkit.models.weights import DTYPE_NAMES
from evalkit.reading import read_toml
from evalkit.records.folder import RunFolder
from evalkit.runs.config import recorded_config, run_config
from evalkit.runs.plan import asked_samples
from evalkit.train.config import Precision, TrainConfig
from evalkit.train.data import (
    Example,
    Leakage,
    choose_samples,
    data_hash,
    item_fingerprint,
    leakage,
    make_examples,
)
from evalkit.train.recipes import Recipe
from evalkit.train.trainer import (
    Collator,
    Stream,
    environment,
    final_loss,
    make_trainer,
    num_devices,
    training_arguments,
    write_loss_curve,
)
from evalkit.train.unfinished import (
    CHECKPOINTS,
    PLAN,
    clear,
    clear_torn,
    continued,
    explained,
    last_whole,
    only_one_at_work,
    refuse_other_training,
)
from evalkit.types import Sample

_BESIDE_THE_WEIGHTS = (*tokenizer.FILES, "generation_config.json")


class Device(NamedTuple):
    """What the settings come to on this machine."""

    kind: Literal["cpu", "cuda"]
    number: int
    """That share the work."""
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that is decided before weights are loaded."""

    config: TrainConfig
    recipe: Recipe
    checkpoint: Checkpoint
    rope: ServedRope
    """The rule that is on in training, and to be served at this factor or more."""
    device: Device
    examples: list[Example]
    unfitting: int
    """Samples that were drawn and are longer than the trained length."""
    leakage: Leakage

    @property
    def notices(self) -> list[str]:
        """What a person should know of the data before the training."""
        data, found = self.config.data, []
        drawn = len(self.examples) + self.unfitting
        if drawn < data.samples:
            found.append(f"{data.samples:,} samples were asked for, and --source has {drawn:,}.")
        if self.unfitting:
            found.append(
                f"{self.unfitting:,} of {drawn:,} samples need more than {data.longest:,} tokens with question and "
                f"answer and are left out; {len(self.examples):,} are trained on."
            )
        if self.leakage.evaluated and (self.leakage.trained_untold or self.leakage.evaluated_untold):
            found.append(self.leakage.describe())
        return found

    def plan(self) -> TrainingRecord:
        """Return all that decides the weights; with what came of it, this is the training record."""
        asked = self.config.asked()
        return TrainingRecord(
            **asked.fields,
            rope=served_rule(self.checkpoint, self.rope),
            rope_warnings=self.rope.warnings,
            base={
                "name": self.checkpoint.name,
                **self.checkpoint.identity(),
                "rope": self.checkpoint.rope.rule.to_json() if self.checkpoint.rope else None,
            },
            data=TrainedData(
                **asked.data,
                examples=len(self.examples),
                unfitting=self.unfitting,
                sha256=data_hash(self.examples),
                leakage=TrainedLeakage(**asdict(self.leakage), found=self.leakage.describe()),
            ),
            optimization={
                **asked.optimization,
                "precision": self.device.precision,
                "device": self.device.kind,
                "devices": self.device.number,
            },
            environments=(environment(),),
        )


def prepare(config: TrainConfig, on_phase: Callable[[str], None] = lambda name: None) -> Prepared:
    """Check base, rule and range, and draw the data, which is the phase "preparing data".

    Raises:
        BadInput: the base has no rotary positions, the samples exceed its window, the data leak into the evaluation.
    """
    recipe, checkpoint = config.make_recipe(), Checkpoint.find(config.base, config.revision)
    rope = _rope(config, recipe, checkpoint)
    encoder = Encoder.open(
        checkpoint.path,
        chat=config.chat,
        system_prompt=config.system_prompt,
        template_args=template_arguments(config.template_args),
        vocab_size=checkpoint.vocab_size,
    )
    stop_id = encoder.tokenizer.eos_token_id
    if stop_id is None:
        raise BadInput(f"The tokenizer in {config.base} has no EOS token, so an answer could not be ended; name one.")
    on_phase("preparing data")
    benchmark = open_benchmark(
        config.data.task, config.options, seed=config.data.seed, part="train", count_tokens=encoder.count_tokens
    )
    evaluated = [item_fingerprint(sample) for sample in held_out(config.against)]
    samples, dropped = choose_samples(benchmark, config.data, evaluated, config.on_leak)
    examples, trained = make_examples(samples, benchmark, encoder, config.data, stop_id=stop_id)
    return Prepared(
        config=config,
        recipe=recipe,
        checkpoint=checkpoint,
        rope=rope,
        device=_device(config, checkpoint),
        examples=examples,
        unfitting=len(samples) - len(trained),
        leakage=leakage(trained, evaluated, dropped),
    )


def finetune(
    config: TrainConfig,
    *,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    on_loss: Callable[[float], None] = lambda loss: None,
    on_notice: Callable[[str], None] = lambda notice: None,
    on_phase: Callable[[str], None] = lambda name: None,
) -> Path:
    """Train one arm, or go on with it, and return its folder. A finished arm is returned as it is.

    Args:
        config: the arm.
        on_step: called with (steps done, steps in all) after each optimizer step.
        on_loss: called with the loss, as often as it is logged.
        on_notice: called with what a person should know: samples that are left out, where a killed training goes on.
        on_phase: called with what begins: "preparing data", "loading the model", "training", "writing the checkpoint".

    Raises:
        BadInput: see ``prepare``; or ``config.out`` holds another training, or cannot be written.
        EngineError: the base's weights are not complete, or the device has too little memory.
    """
    refuse_other_training(config.out, config.asked())
    prepared = prepare(config, on_phase)
    for notice in prepared.notices:
        on_notice(notice)
    main = _is_main_process()
    with explained(config.out):
        plan = continued(config.out, prepared.plan(), main=main)
        if plan.steps is not None:
            return config.out
        with only_one_at_work(config.out) if main else nullcontext():
            on_phase("loading the model")
            model = _load(prepared, half=prepared.device.precision == "bfloat16")
            if main:
                plan.write(config.out / PLAN)  # first: what lies in the folder from here on belongs to this training
            trainer = _trainer(prepared, model, on_step, on_loss)
            on_phase("training")
            _train(trainer, config, on_notice)
            on_phase("writing the checkpoint")
            if main:
                _export(prepared, trainer, plan)
            trainer.accelerator.wait_for_everyone()
    return config.out


def describe(folder: Path) -> str:
    """Return a line about a finished training: steps, tokens, loss.

    Raises:
        BadInput: there is no finished training in the folder.
    """
    record = TrainingRecord.read(folder / TRAINING_RECORD)
    if record is None or record.steps is None or record.tokens is None:
        raise BadInput(f"{folder} holds no finished training.")
    loss = "a loss that is not finite" if record.final_loss is None else f"loss {record.final_loss:.4g}"
    steps = f"{record.steps:,} step{'s' * (record.steps != 1)}"
    return f"{folder}: {record.recipe}, {steps} over {record.tokens:,} tokens, {loss} at the end; see its loss.png."


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
    reached = recipe.positions.largest_range(config.stage_length, config.data.longest)
    if recipe.rope == "none" and stored.type == "longrope" and reached > stored.original_length:
        raise BadInput(
            f"{checkpoint.name} changes its frequencies where a sample passes {stored.original_length:,} positions "
            f"(longrope), and this training reaches {reached:,}, so it would mix two rules; stay below."
        )
    rope = training_rope(checkpoint, config.data.longest, None if recipe.rope == "none" else config.factor)
    try:
        config_for(checkpoint.path, rope.mapping).validate()
    except (StrictDataclassError, ValueError) as error:  # as saving the trained checkpoint would
        raise BadInput(
            f"{checkpoint.name} cannot be trained under {rope.label}: its config class ({checkpoint.model_type}) does "
            f"not save such a rule ({str(error.__cause__ or error).rstrip('.')})."
        ) from error
    return rope


def _device(config: TrainConfig, checkpoint: Checkpoint) -> Device:
    """Return where the training takes place; "auto" stays what it was taken for when the training began."""
    import torch

    has_gpu = torch.cuda.is_available()
    precision: str = config.precision
    if precision == "auto":
        begun = (TrainingRecord.read(config.out / name) for name in (TRAINING_RECORD, PLAN))
        recorded = next((str(record.optimization["precision"]) for record in begun if record), None)
        precision = recorded or ("bfloat16" if has_gpu else _fastest_on_cpu(checkpoint))
    return Device("cuda" if has_gpu else "cpu", num_devices(), cast(Precision, precision))


def _fastest_on_cpu(checkpoint: Checkpoint) -> str:
    alone = num_devices() == 1  # several processes may measure differently, and must agree
    return fastest_on_cpu(checkpoint.dtype, checkpoint.hidden_size) if alone else "float32"


def _is_main_process() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _trainer(
    prepared: Prepared, model: Any, on_step: Callable[[int, int], None], on_loss: Callable[[float], None]
) -> Any:
    config = prepared.config
    per_step = config.batch_size * config.accumulation * prepared.device.number
    num_items = config.epochs * len(prepared.examples)
    steps = max(round(num_items / per_step), 1)
    arguments = training_arguments(
        config.out / CHECKPOINTS,
        steps=steps,
        batch_size=config.batch_size,
        accumulation=config.accumulation,
        learning_rate=config.learning_rate,
        warmup_steps=round(config.warmup * steps),
        final_rate=config.final_rate,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_gradient_norm=config.max_gradient_norm,
        half=prepared.device.precision == "bfloat16",
        gradient_checkpointing=config.gradient_checkpointing,
        save_steps=config.save_every or max(steps // 5, 1),
        seed=config.seed,
    )
    return make_trainer(
        model,
        arguments,
        stream=Stream(prepared.examples, num_items=steps * per_step, seed=config.seed),
        collator=Collator(
            prepared.recipe.positions,
            range_length=prepared.config.stage_length,
            num_items=num_items,
            seed=config.seed,
            pad_id=0,  # masked, so any id will do
        ),
        lm_weight=config.lm_weight,
        on_step=on_step,
        on_loss=on_loss,
    )


def _load(prepared: Prepared, *, half: bool) -> Any:
    """Load the base under the rope rule of training, read it back, and add fresh LoRA weights where they are asked for.

    Weights that are trained stay float32, and bfloat16 is only computed in; a frozen base is held in bfloat16.
    """
    import torch

    config = prepared.config
    frozen = config.lora_rank > 0
    model = load_causal_lm(
        prepared.checkpoint.path,
        config_for(prepared.checkpoint.path, prepared.rope.mapping),
        torch.bfloat16 if half and frozen else torch.float32,
    )
    compare_model(expected_frequencies(prepared.checkpoint, prepared.rope), read_back_transformers(model))
    if not frozen:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise BadInput(f"LoRA needs peft: {how_to_install('peft')}.") from error
    torch.manual_seed(config.seed)  # LoRA's first matrices are random
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets),
        task_type="CAUSAL_LM",
    )
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if missing := [name for name in config.lora_targets if name not in modules]:
        raise BadInput(
            f"LoRA target {missing[0]!r} matches no module of {config.base}; its linear layers are "
            f"{', '.join(sorted(_linear_names(model)))}."
        )
    return get_peft_model(model, lora)


def _linear_names(model: Any) -> set[str]:
    from torch.nn import Linear

    return {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Linear)}


def _train(trainer: Any, config: TrainConfig, on_notice: Callable[[str], None]) -> None:
    import torch

    unfinished, main = config.out / CHECKPOINTS, trainer.is_world_process_zero()
    torn = clear_torn(unfinished) if main else []
    trainer.accelerator.wait_for_everyone()
    last = last_whole(unfinished)
    after = f"goes on after step {last.name.rpartition('-')[2]}" if last else "begins again"
    if torn:
        on_notice(f"{', '.join(torn)} was cut off while it was written and is cleared; the training {after}.")
    elif last and main:
        on_notice(f"The training {after}.")
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"The GPU has too little memory for {config.batch_size} x {config.data.longest:,} tokens; lower "
            "--batch-size and raise --accumulation, add --gradient-checkpointing, or train with --lora-rank."
        ) from error
    except (pickle.UnpicklingError, EOFError, json.JSONDecodeError) as error:  # only what holds no code is loaded
        raise BadInput(
            f"{last} cannot be gone on with ({first_line(error)[:200]}): a file of it is damaged, or no training's; "
            "delete it, and the same command goes on from what is left."
        ) from error
    trainer.accelerator.wait_for_everyone()


def _export(prepared: Prepared, trainer: Any, plan: TrainingRecord) -> None:
    """Write the checkpoint, then its record, then remove what only a resume needs."""
    config, log = prepared.config, trainer.state.log_history
    write_loss_curve(log, config.out)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora_rank and config.merge:
        model = model.merge_and_unload()
    if config.merge or not config.lora_rank:
        _as_stored(model, prepared.checkpoint)
        for name in _BESIDE_THE_WEIGHTS:
            if (file := prepared.checkpoint.path / name).is_file():
                shutil.copyfile(file, config.out / name)
    model.save_pretrained(config.out)
    record = replace(
        plan,
        steps=trainer.state.global_step,
        tokens=trainer.train_dataset.num_tokens,
        final_loss=final_loss(log),
    )
    record.write(config.out / TRAINING_RECORD)
    clear(config.out)


def _as_stored(model: Any, checkpoint: Checkpoint) -> None:
    """Give weights the dtype that they have in the base's files: they were trained in float32, to be rounded once."""
    import torch

    for name, parameter in model.named_parameters():
        stored = checkpoint.tensors.get(name)
        dtype = DTYPE_NAMES.get(stored.dtype) if stored else checkpoint.dtype
        if dtype in ("float32", "bfloat16", "float16"):
            parameter.data = parameter.data.to(getattr(torch, dtype))
