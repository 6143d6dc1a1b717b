"""What stands between the examples and transformers' Trainer: order, batches with drawn positions, and the loss."""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evalkit.files import versions
from evalkit.machine import processor
from evalkit.train.data import Example
from evalkit.train.positions import PositionRule, draw_positions
from evalkit.train.unfinished import keep_only

if TYPE_CHECKING:
    import torch

_POSITIONS, _ORDER = 1, 2  # separate streams of randomness under one seed


class Stream:
    """The examples in the order of training, epoch after epoch. Knows nothing of the recipe: all arms see the same.

    Item k is (k, example): its place in the stream decides its draws, so they survive a resume and do not depend on
    how many devices share the work.
    """

    def __init__(self, examples: Sequence[Example], *, num_items: int, seed: int) -> None:
        """Order ``num_items`` items; each epoch is a permutation of all examples, drawn from (seed, epoch)."""
        self._examples = examples
        epochs = -(-num_items // len(examples))
        orders = [np.random.default_rng([seed, _ORDER, epoch]).permutation(len(examples)) for epoch in range(epochs)]
        self._order = np.concatenate(orders)[:num_items]

    def __len__(self) -> int:
        return len(self._order)

    @property
    def num_tokens(self) -> int:
        """Tokens of all items, prompts and answers."""
        sizes = np.array([len(example.prompt_ids) + len(example.answer_ids) for example in self._examples])
        return int(sizes[self._order].sum())

    def __getitem__(self, k: int) -> tuple[int, Example]:
        return k, self._examples[self._order[k]]


class Collator:
    """Pads examples on the left, so that answers end together, and draws their positions.

    An item's draw depends on its place in the stream alone, not on the batch that it comes in: a resume, another batch
    size and another number of devices show it at the same positions. With ``per_batch`` a batch's first item decides.
    """

    def __init__(self, rule: PositionRule, *, range_length: int, num_items: float, seed: int, pad_id: int) -> None:
        """Draw by ``rule``, whose stages are multiples of ``range_length`` tokens.

        The part of the training that is done is an item's place among ``num_items``: epochs x examples, whole or not.
        """
        self.rule, self.range_length, self.num_items = rule, range_length, num_items
        self.seed, self.pad_id = seed, pad_id

    def __call__(self, items: Sequence[tuple[int, Example]]) -> dict[str, "torch.Tensor"]:
        """Return input_ids, attention_mask, position_ids and is_answer, each of shape (batch, longest sample)."""
        import torch

        sizes = [len(example.prompt_ids) + len(example.answer_ids) for _, example in items]
        if self.rule.per_batch:
            shared = self._positions(items[0][0], max(sizes))  # shorter samples take its first ones
            positions = [shared[:size] for size in sizes]
        else:
            positions = [self._positions(place, size) for (place, _), size in zip(items, sizes, strict=True)]
        shape = (len(items), max(sizes))
        ids, position_ids = np.full(shape, self.pad_id, np.int64), np.zeros(shape, np.int64)
        mask, is_answer = np.zeros(shape, np.int64), np.zeros(shape, bool)
        for row, ((_, example), size) in enumerate(zip(items, sizes, strict=True)):
            ids[row, -size:] = np.concatenate([example.prompt_ids, example.answer_ids])
            position_ids[row, -size:] = positions[row]
            # Never leave the mask out: with gaps in position_ids and no mask, transformers 5 takes every gap for the
            # border of a packed sequence and cuts attention there, without a word.
            mask[row, -size:] = 1
            is_answer[row, -len(example.answer_ids) :] = True
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "position_ids": torch.from_numpy(position_ids),
            "is_answer": torch.from_numpy(is_answer),
        }

    def _positions(self, place: int, num_tokens: int) -> NDArray[np.int64]:
        return draw_positions(
            self.rule,
            num_tokens,
            range_length=self.range_length,
            progress=place / self.num_items,
            rng=np.random.default_rng([self.seed, _POSITIONS, place]),
        )


def answer_loss(model: Any, batch: dict[str, "torch.Tensor"], *, lm_weight: float) -> "torch.Tensor":
    """Return the mean cross-entropy of answer tokens, plus ``lm_weight`` times that of all other tokens.

    Without the second term only the logits in front of the answers are computed: at 8K tokens and a vocabulary of
    150K, the others would take gigabytes.
    """
    from torch.nn.functional import cross_entropy

    ids, mask, is_answer = batch["input_ids"], batch["attention_mask"], batch["is_answer"]
    kept = ids.shape[1] if lm_weight else int(is_answer.sum(-1).max()) + 1
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=batch["position_ids"], use_cache=False, logits_to_keep=kept
    ).logits[:, :-1]
    targets, answers = ids[:, 1 - kept :], is_answer[:, 1 - kept :]
    loss = cross_entropy(logits[answers].float(), targets[answers])
    if lm_weight:
        others = (mask[:, 1:] == 1) & (mask[:, :-1] == 1) & ~answers
        loss = loss + lm_weight * cross_entropy(logits[others].float(), targets[others])
    return loss


def num_devices() -> int:
    """Return how many devices share a training: the processes that were launched, or the GPUs of this one."""
    import torch
    from accelerate import PartialState

    processes = PartialState(cpu=not torch.cuda.is_available()).num_processes
    return int(processes) if processes > 1 else max(torch.cuda.device_count(), 1)


def training_arguments(
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    accumulation: int = 1,
    learning_rate: float,
    warmup_steps: int,
    final_rate: float = 0.1,
    weight_decay: float = 0.01,
    adam_beta2: float = 0.95,
    max_gradient_norm: float = 1.0,
    half: bool = False,
    gradient_checkpointing: bool = False,
    save_steps: int = 0,
    seed: int,
) -> Any:
    """Return transformers' TrainingArguments for a stream: AdamW, a linear warm-up, then a cosine.

    Args:
        folder: for the checkpoints of an unfinished training.
        steps: optimizer steps.
        batch_size: samples per device and batch.
        accumulation: batches per step.
        learning_rate: at its highest.
        warmup_steps: over which it rises from 0. The first of them is at rate 0, so a single one is left out.
        final_rate: where the cosine ends, as a share of the highest rate; 1 is a plateau.
        weight_decay: of AdamW.
        adam_beta2: of AdamW. 0.95, usual for language models, follows the gradients of short trainings faster than
            transformers' 0.999.
        max_gradient_norm: longer gradients are scaled down to it.
        half: compute in bfloat16.
        gradient_checkpointing: compute activations twice instead of keeping them.
        save_steps: steps between checkpoints; 0 keeps none. The Trainer itself removes none (``unfinished.py`` does).
        seed: of whatever the Trainer draws itself (dropout).
    """
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": final_rate},
        warmup_steps=warmup_steps if warmup_steps > 1 else 0,
        weight_decay=weight_decay,
        adam_beta2=adam_beta2,
        max_grad_norm=max_gradient_norm,
        bf16=half,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if gradient_checkpointing else None,
        logging_steps=max(steps // 100, 1),
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        seed=seed,
        train_sampling_strategy="sequential",  # the stream has its own order, the same for all arms
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to="none",
    )


def make_trainer(
    model: Any,
    arguments: Any,
    *,
    stream: Stream,
    collator: Collator,
    lm_weight: float,
    on_step: Callable[[int, int], None],
    on_loss: Callable[[float], None] = lambda loss: None,
) -> Any:
    """Return a transformers Trainer that takes the stream in its own order and minimises ``answer_loss``.

    Args:
        model: a causal language model, with or without LoRA.
        arguments: ``transformers.TrainingArguments``.
        stream: the examples.
        collator: makes batches of them.
        lm_weight: weight of the language-model term.
        on_step: called with (steps done, steps in all) after each optimizer step.
        on_loss: called with the loss, as often as it is logged.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback

    class AnswerTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return answer_loss(model, inputs, lm_weight=lm_weight)

    class Report(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            on_step(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                on_loss(float(logs["loss"]))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.accelerator.wait_for_everyone()  # each process writes a file of its own
            if state.is_world_process_zero:
                keep_only(Path(args.output_dir), state.global_step)

    trainer = AnswerTrainer(
        model=model, args=arguments, train_dataset=stream, data_collator=collator, callbacks=[Report()]
    )
    trainer.model_accepts_loss_kwargs = False  # the loss is a mean: gradient accumulation has to divide it
    trainer.remove_callback(PrinterCallback)
    return trainer


def environment() -> dict[str, Any]:
    """Return what this process trains on. A seed names its result only where GPU or kernels and versions agree."""
    import torch

    used = ("evalkit", "torch", "transformers", "accelerate", "peft", "numpy")
    kernels = torch.backends.cpu.get_cpu_capability()  # fewer than the processor has, where ATEN_CPU_CAPABILITY says so
    found: dict[str, Any] = {"processor": processor(), "kernels": kernels, "versions": versions(used)}
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def final_loss(log: Sequence[dict[str, Any]]) -> float | None:
    """Return the last loss of a Trainer's log history, None where it is not finite."""
    losses = [float(entry["loss"]) for entry in log if "loss" in entry]
    return losses[-1] if losses and math.isfinite(losses[-1]) else None


def write_loss_curve(log: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write ``loss.csv`` (step, loss, learning_rate) and ``loss.png`` from a Trainer's log history."""
    rows = [(entry["step"], entry["loss"], entry["learning_rate"]) for entry in log if "loss" in entry]
    with (folder / "loss.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "learning_rate"])
        writer.writerows(rows)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([row[0] for row in rows], [row[1] for row in rows], marker="o" if len(rows) == 1 else None)
    axes.set(xlabel="optimizer step", ylabel="training loss", yscale="log")
    figure.savefig(folder / "loss.png", dpi=120)
