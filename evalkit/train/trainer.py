"""What stands between the examples and transformers' Trainer: order, batches with drawn positions, and the loss."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evalkit.train.data import Example
from evalkit.train.positions import PositionRule, draw_positions

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

    def __getitem__(self, k: int) -> tuple[int, Example]:
        return k, self._examples[self._order[k]]


class Collator:
    """Pads examples on the left, so that answers end together, and draws their positions.

    An item's draw depends on its place in the stream alone, not on the batch that it comes in: a resume, another batch
    size and another number of devices show it at the same positions. With ``per_batch`` a batch's first item decides.
    """

    def __init__(self, rule: PositionRule, *, trained_length: int, num_items: int, seed: int, pad_id: int) -> None:
        """Draw by ``rule``; the part of the training that is done is an item's place among ``num_items``."""
        self.rule, self.trained_length, self.num_items = rule, trained_length, num_items
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
            trained_length=self.trained_length,
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


def samples_per_step(batch_size: int, accumulation: int) -> int:
    """Return how many samples one optimizer step takes: batch size x accumulation x devices."""
    import torch
    from accelerate import PartialState

    processes = PartialState(cpu=not torch.cuda.is_available()).num_processes
    devices = processes if processes > 1 else max(torch.cuda.device_count(), 1)
    return batch_size * accumulation * devices


def training_arguments(
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    accumulation: int = 1,
    learning_rate: float,
    warmup_steps: int,
    decay: bool = True,
    weight_decay: float = 0.01,
    half: bool = False,
    gradient_checkpointing: bool = False,
    save_steps: int = 0,
    seed: int,
) -> Any:
    """Return transformers' TrainingArguments for a stream: AdamW, warm-up, then a cosine to a tenth or a plateau.

    Args:
        folder: for the checkpoints of an unfinished training.
        steps: optimizer steps.
        batch_size: samples per device and batch.
        accumulation: batches per step.
        learning_rate: at its highest.
        warmup_steps: over which it rises.
        decay: let it fall along a cosine.
        weight_decay: of AdamW.
        half: compute in bfloat16.
        gradient_checkpointing: compute activations twice instead of keeping them.
        save_steps: steps between checkpoints; 0 keeps none.
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
        lr_scheduler_type="cosine_with_min_lr" if decay else "constant_with_warmup",
        lr_scheduler_kwargs={"min_lr_rate": 0.1} if decay else {},
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=half,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if gradient_checkpointing else None,
        logging_steps=max(steps // 100, 1),
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        save_total_limit=1,
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
) -> Any:
    """Return a transformers Trainer that takes the stream in its own order and minimises ``answer_loss``.

    Args:
        model: a causal language model, with or without LoRA.
        arguments: ``transformers.TrainingArguments``.
        stream: the examples.
        collator: makes batches of them.
        lm_weight: weight of the language-model term.
        on_step: called with (steps done, steps in all) after each optimizer step.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback

    class AnswerTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return answer_loss(model, inputs, lm_weight=lm_weight)

    class Report(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            on_step(state.global_step, state.max_steps)

    trainer = AnswerTrainer(
        model=model, args=arguments, train_dataset=stream, data_collator=collator, callbacks=[Report()]
    )
    trainer.model_accepts_loss_kwargs = False  # the loss is a mean: gradient accumulation has to divide it
    trainer.remove_callback(PrinterCallback)
    return trainer


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
    axes.plot([row[0] for row in rows], [row[1] for row in rows])
    axes.set(xlabel="optimizer step", ylabel="training loss", yscale="log")
    figure.savefig(folder / "loss.png", dpi=120)
