"""The base of the tiny reproduction: a language model of 0.2 M parameters that reads BABILong's first task.

It is trained from scratch in minutes on a CPU core, plain RoPE, prompts of at most 128 tokens, and stands for the
pretrained model of the paper. Everything around it is real: Llama's layout in safetensors (with attention biases),
which transformers and vLLM load as any other, a tokenizer of words, the benchmark's prompts, transformers' Trainer.

A model this small does not find the circuit "look back to the name in front of this place" by itself within minutes.
Three things bring it about, together; they concern the base alone, which all arms share:

* half of the examples are copies: a chunk of words, repeated (the induction circuit is the one that is needed);
* the query and key biases of layer 1 start as soft "look back k tokens" heads, which RoPE heads learn slowly;
* short prompts first, then prompts of up to the trained length.
"""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.benchmarks import open_benchmark
from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.babilong.worlds import HOUSE, HOUSE_PEOPLE
from evalkit.benchmarks.cards import load_card
from evalkit.errors import BadInput
from evalkit.files import write_whole
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.training_record import TRAINING_RECORD, TrainingRecord
from evalkit.train.data import DataRecipe, Example, choose_samples, make_examples
from evalkit.train.positions import PositionRule
from evalkit.train.trainer import Collator, Stream, environment, final_loss, make_trainer, training_arguments


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Background sentences are about other persons who walk to other places: nearly facts, so that a model has to read the
# names. All words are in the tokenizer's vocabulary, and none is a person, place or thing of the task.
_PEOPLE = _words("alice bob carol dave emma frank grace henry irene jack karen leo nina oscar paula rosa")
_PLACES = _words(
    "attic bakery castle cellar church garage harbour library market museum pier stable station temple tower valley"
)
_THINGS = _words(
    """barrel basket bell blanket bottle bucket candle chain clock coat compass drum fence flag flute hammer hat kettle
    ladder lamp lantern letter map mirror needle painting parcel pillow pipe plate rope rug saddle shovel spoon table
    trumpet umbrella wagon wheel"""
)
_KINDS = _words(
    """ancient bright broken clean crooked dusty empty faded golden heavy hollow iron large little narrow new old pale
    plain polished quiet round rusty sharp silver simple small smooth soft square stone strange striped tall thin tiny
    warm wide wooden worn"""
)
_WALKS = ("moved", "went", "went back", "journeyed", "travelled")
_PATTERNS = (
    "{p} {w} to the {l} with the {k} {t} and the {t}.",
    "{p} {w} to the {l} and {p} {w} to the {l} near the {t}.",
    "The {k} {t} of {p} stood in the {l} near the {k} {t}.",
    "{p} and {p} {w} to the {l} with the {t} of the {k} {t}.",
)
LOOK_BACK = (1, 2, 3)
"""Tokens from "?" back to the name, and from a place back to its person."""
_SPECIAL = ("<pad>", "<eos>", "<unk>")
_SPLIT = r"</?\w+>|(?:went back|moved|went|journeyed|travelled) to the|\w+|[^\w\s]"
_BASE_SEED = 2_000_000_011  # apart from the seeds of fine-tuning and evaluation
_BLANK = {"p": _PEOPLE, "l": _PLACES, "t": _THINGS, "k": _KINDS, "w": _WALKS}


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseStage:
    """One part of the base's training."""

    steps: int
    shortest: int
    """Prompts with answer are so long, tokens,"""
    longest: int
    """to so long."""
    decay: bool
    """Let the learning rate fall along a cosine."""
    batch_size: int = 16
    learning_rate: float = 3e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """Size and training of a base."""

    length: int
    """L: the longest prompt that base and arms are trained on, tokens with answer."""
    hidden_size: int
    head_dim: int
    num_layers: int
    stages: tuple[BaseStage, ...]
    theta: float = 1e4


BASES = {
    "tiny": BaseModel(
        length=128,
        hidden_size=96,
        head_dim=32,
        num_layers=2,
        stages=(
            # The circuit is there after 300 steps; with 500, one seed of four still asked the wrong statement later on.
            BaseStage(steps=1_500, shortest=32, longest=48, decay=False),
            BaseStage(steps=1_000, shortest=48, longest=128, decay=True),
        ),
    ),
    "small": BaseModel(
        length=1_024,
        hidden_size=512,
        head_dim=64,
        num_layers=6,
        stages=(
            BaseStage(steps=600, shortest=64, longest=128, decay=False, batch_size=128, learning_rate=1e-3),
            BaseStage(steps=1_200, shortest=128, longest=1_024, decay=True, batch_size=128, learning_rate=1e-3),
        ),
    ),
}
"""Bases that evalkit trains itself, by the name that an experiment gives."""


def write_noise(path: Path, *, seed: int, num_sentences: int = 4_000) -> None:
    """Write background sentences of at least 10 tokens, no two alike."""
    rng = np.random.default_rng([seed, num_sentences])
    sentences: dict[str, None] = {}
    while len(sentences) < num_sentences:
        pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))]
        for letter, words in _BLANK.items():
            while f"{{{letter}}}" in pattern:
                pattern = pattern.replace(f"{{{letter}}}", words[int(rng.integers(len(words)))], 1)
        sentences[pattern[0].upper() + pattern[1:]] = None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, " ".join(sentences) + "\n")


def vocabulary() -> list[str]:
    """Return every token in lower case: special ones, those of the bare prompt, the words of task and background."""
    bare = load_card("babilong").template.format(
        instruction="", examples="", post_prompt="", context=".", question="Where is?"
    )
    frame = dict.fromkeys(re.findall(_SPLIT, bare.lower()))
    words = {f"{walk} to the" for walk in _WALKS} | set(re.findall(r"[a-z]{2,}", " ".join(_PATTERNS).lower()))
    for group in (HOUSE, HOUSE_PEOPLE, _PEOPLE, _PLACES, _THINGS, _KINDS):
        words.update(word.lower() for word in group)
    return [*_SPECIAL, *frame, *sorted(words - set(frame))]


def write_untrained(folder: Path, base: BaseModel, *, seed: int) -> None:
    """Write the tokenizer and a model with initial weights as a checkpoint folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if folder.exists() and any(folder.iterdir()):
        raise BadInput(f"{folder} is not an empty folder; give a new name, nothing is overwritten.")
    folder.mkdir(parents=True, exist_ok=True)
    tokens = vocabulary()
    _write_tokenizer(folder, tokens)
    heads = base.hidden_size // base.head_dim
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=base.hidden_size,
        intermediate_size=2 * base.hidden_size,
        num_hidden_layers=base.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=base.length,
        rope_parameters={"rope_type": "default", "rope_theta": base.theta},
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokens.index("<eos>"),
        pad_token_id=tokens.index("<pad>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        _look_back(model, base)
    model.save_pretrained(folder)


def _look_back(model: Any, base: BaseModel) -> None:
    """Set initial weights. Head h of layer 1 looks back: a constant key, and a query turned by so many tokens."""
    import torch

    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.02 if "embed" in name else 0.7 / math.sqrt(weight.shape[1]))
    attention, half = model.model.layers[0].self_attn, base.head_dim // 2
    pair = torch.arange(half)
    angle, strength = base.theta ** (-pair / half), 3.0 * torch.exp(-pair * 3 / half)
    with torch.no_grad():
        for head in range(base.hidden_size // base.head_dim):
            back, start = LOOK_BACK[head % len(LOOK_BACK)], head * base.head_dim
            low, high = slice(start, start + half), slice(start + half, start + base.head_dim)
            attention.k_proj.bias[low] = strength
            attention.q_proj.bias[low] = strength * torch.cos(back * angle)
            attention.q_proj.bias[high] = -strength * torch.sin(back * angle)


def _write_tokenizer(folder: Path, tokens: list[str]) -> None:
    """One word, one token, in lower case; "went back to the" and its like are one, too.

    Random positions stretch what stands between a person and a place, so the fewer tokens that is, the sooner it is
    learned to be bridged: with four or five, 300 steps do not suffice.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True)
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def copy_examples(count: int, *, shortest: int, longest: int, rng: np.random.Generator) -> list[Example]:
    """Return examples whose answer goes on with a repeated chunk of 6 to 20 different words."""
    tokens = vocabulary()
    words = np.array([i for i, token in enumerate(tokens) if token.isalpha()], np.int32)
    start = np.array([len(_SPECIAL)], np.int32)  # the token that opens every prompt
    examples = []
    for _ in range(count):
        length, size = int(rng.integers(shortest, longest, endpoint=True)), int(rng.integers(6, 21))
        chunk = rng.choice(words, size, replace=False)
        ids = np.concatenate([start, np.resize(chunk, length - len(start))]).astype(np.int32)
        known = len(start) + size
        examples.append(Example(ids[:known], ids[known:]))
    return examples


def train_base(
    folder: Path,
    base: BaseModel,
    *,
    noise: Path,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Train a base from scratch and write it as a checkpoint folder, whole or not at all.

    Args:
        folder: where it goes; a base that is finished there is returned as it is.
        base: its size, and the stages of its training.
        noise: background text of its prompts; another one than is evaluated on.
        seed: decides weights, samples and their order.
        on_step: called with (steps done, steps in all) after each optimizer step.

    Raises:
        BadInput: ``folder`` holds something else, or a base of another seed or other stages.
    """
    if _is_finished(folder, base, seed):
        return folder
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    write_untrained(part, base, seed=seed)
    model = AutoModelForCausalLM.from_pretrained(part, local_files_only=True)
    total, done, loss = sum(stage.steps for stage in base.stages), 0, None
    for number, stage in enumerate(base.stages):
        examples = _stage_examples(stage, Encoder.open(part), noise, seed=_BASE_SEED + 10 * seed + number)
        trainer = _stage_trainer(part, model, base, stage, examples, seed, partial(_report, on_step, done, total))
        trainer.train()
        done += stage.steps
        loss = final_loss(trainer.state.log_history)
    model.save_pretrained(part)
    TrainingRecord(
        recipe="from scratch",
        trained_length=base.length,
        rope=rope.scaling if (rope := Checkpoint.open(part).rope) else None,
        seed=seed,
        optimization=_optimization(base),
        environments=(environment(),),
        steps=total,
        final_loss=loss,
    ).write(part / TRAINING_RECORD)
    part.replace(folder)
    return folder


def _is_finished(folder: Path, base: BaseModel, seed: int) -> bool:
    """Return whether a folder holds this base; refuse one that holds something else."""
    if not folder.exists():
        return False
    record = TrainingRecord.read(folder / TRAINING_RECORD)
    if record is None:
        raise BadInput(f"{folder} has no training record, so it is no finished base; move it away, and train again.")
    if (record.seed, record.optimization) != (seed, _optimization(base)):
        raise BadInput(f"{folder} holds a base of another seed or other stages; move it away, or name another folder.")
    return True


def _optimization(base: BaseModel) -> dict[str, Any]:
    return {"stages": [asdict(stage) for stage in base.stages]}


def _stage_trainer(
    folder: Path,
    model: Any,
    base: BaseModel,
    stage: BaseStage,
    examples: list[Example],
    seed: int,
    on_step: Callable[[int, int], None],
) -> Any:
    num_items = stage.steps * stage.batch_size
    return make_trainer(
        model,
        training_arguments(
            folder,
            steps=stage.steps,
            batch_size=stage.batch_size,
            learning_rate=stage.learning_rate,
            warmup_steps=min(50, stage.steps // 4),
            final_rate=0.1 if stage.decay else 1.0,
            seed=seed,
        ),
        stream=Stream(examples, num_items=num_items, seed=seed),
        collator=Collator(PositionRule(), range_length=base.length, num_items=num_items, seed=seed, pad_id=0),
        lm_weight=0.1,
        on_step=on_step,
    )


def _report(on_step: Callable[[int, int], None], before: int, total: int, step: int, _: int) -> None:
    on_step(before + step, total)


def _stage_examples(stage: BaseStage, encoder: Encoder, noise: Path, *, seed: int) -> list[Example]:
    """Half questions of the task, half copies; each example is shown about twice."""
    half = max(stage.steps * stage.batch_size // 4, 1)
    recipe = DataRecipe(subsets=("qa1",), samples=half, shortest=stage.shortest, longest=stage.longest, seed=seed)
    benchmark = open_benchmark("babilong", task_options(noise), seed=seed, part="train")
    samples, _ = choose_samples(benchmark, recipe)
    eos = encoder.tokenizer.eos_token_id
    questions, _ = make_examples(samples, benchmark, encoder, recipe, stop_id=eos)
    rng = np.random.default_rng([seed, half])
    return questions + copy_examples(len(questions), shortest=stage.shortest, longest=stage.longest, rng=rng)


def task_options(noise: Path) -> BABILongOptions:
    """Return BABILong's options for a tokenizer of words: the bare template, and room for one word and the end."""
    return BABILongOptions(noise=(noise,), instruction=False, examples=False, post_prompt=False, max_new_tokens=2)
