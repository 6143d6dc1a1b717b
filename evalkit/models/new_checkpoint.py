"""A small checkpoint with random weights, to try evalkit on where no model can be downloaded.

It is a real one in every respect but what it has learned: Qwen2's layout in safetensors, a byte-level BPE tokenizer
trained on generated text, a chat template, a generation config. transformers and vLLM load it as any other. Equal
arguments write equal files, byte for byte.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evalkit.benchmarks.babilong.prose import generate_prose
from evalkit.benchmarks.mrcr.texts import FORMATS, TOPICS, write_text
from evalkit.errors import BadInput
from evalkit.files import first_line, is_draft_of, is_draft_of_weights, write_whole

_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
_FILES |= {"chat_template.jinja"}
_LAST = "config.json"
HEAD_DIM = 32  # the smallest that every attention kernel of both engines takes
_END_OF_TEXT, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_TRAINING_WORDS = 40_000
_SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # words with their space, lone digits
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}\n"
)


def write_checkpoint(
    directory: Path,
    *,
    window: int = 4096,
    seed: int = 0,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_kv_heads: int = 1,
    vocab_size: int = 4096,
    rope_theta: float = 1e6,
) -> None:
    """Write a checkpoint folder.

    Args:
        directory: a folder that is empty or does not exist yet.
        window: positions that the config gives, tokens.
        seed: decides the weights and the text that the tokenizer is trained on.
        hidden_size: a multiple of the head dimension 32; there are hidden_size / 32 heads.
        num_layers: decoder layers.
        num_kv_heads: divides the number of heads.
        vocab_size: tokens of the vocabulary, at most.
        rope_theta: base of the rotary frequencies.

    Raises:
        BadInput: the folder has files in it or cannot be written, or a size is impossible. Nothing half written stays.
    """
    num_heads = hidden_size // HEAD_DIM
    if hidden_size < HEAD_DIM or hidden_size % HEAD_DIM or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise BadInput(
            f"A hidden size is a multiple of {HEAD_DIM} and the key-value heads divide hidden size / {HEAD_DIM}; "
            f"got {hidden_size} and {num_kv_heads}."
        )
    if window < 1:
        raise BadInput(f"The window is a positive number of tokens; got {window}.")
    if directory.exists() and (not directory.is_dir() or not _is_free(directory)):
        raise BadInput(f"{directory} is not an empty folder; give a new name, nothing is overwritten.")
    with _whole_or_nothing(directory):
        _write(
            directory,
            seed=seed,
            vocab_size=vocab_size,
            window=window,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            rope_theta=rope_theta,
        )


def _is_free(directory: Path) -> bool:
    """Whether a folder holds nothing but what a killed writer left: config.json is written last, and whole."""
    return all(
        is_draft_of_weights(path) or path.name in _FILES - {_LAST} or is_draft_of(path, _LAST)
        for path in directory.iterdir()
    )


@contextmanager
def _whole_or_nothing(directory: Path) -> Iterator[None]:
    """Take away what was written where not all could be, and say why.

    Raises:
        BadInput: a full disk, or a folder that may not be written.
    """
    from safetensors import SafetensorError

    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in filter(is_draft_of_weights, directory.iterdir()):
            path.unlink()
        yield
    except Exception as error:
        for name in _FILES:
            with suppress(OSError):
                (directory / name).unlink()
        if is_new:
            with suppress(OSError):
                directory.rmdir()
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        if not isinstance(error, (OSError, SafetensorError)) and "os error" not in reason:  # as Rust says it
            raise
        raise BadInput(f"{directory} cannot be written ({reason}); make room, or name another folder.") from error


def _write(
    directory: Path,
    *,
    seed: int,
    vocab_size: int,
    window: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    rope_theta: float,
) -> None:
    num_tokens, token_ids = _write_tokenizer(directory, seed, vocab_size)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "float32",
        "vocab_size": num_tokens,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": window,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "eos_token_id": token_ids[_END],
        "pad_token_id": token_ids[_END_OF_TEXT],
    }
    stops = {"eos_token_id": [token_ids[_END], token_ids[_END_OF_TEXT]], "pad_token_id": token_ids[_END_OF_TEXT]}
    _write_json(directory / "generation_config.json", {"do_sample": False, **stops})
    _write_weights(directory / "model.safetensors", config, seed)
    write_whole(directory / _LAST, json.dumps(config, indent=2) + "\n")


def _write_tokenizer(directory: Path, seed: int, vocab_size: int) -> tuple[int, dict[str, int]]:
    """Write the tokenizer's files and return the vocabulary's size and the special tokens' ids."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [_END_OF_TEXT, _START, _END]  # ids 0, 1, 2
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(seed), trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _END,
        "pad_token": _END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(directory / "tokenizer_config.json", settings)
    (directory / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")
    return tokenizer.get_vocab_size(), {token: index for index, token in enumerate(special)}


def _training_text(seed: int) -> Iterator[str]:
    """Built-in prose, and sentences with the words that the tasks are about, so that those are whole tokens.

    Without MRCR's, eight needles would take more than 1k tokens.
    """
    yield from generate_prose(seed, _TRAINING_WORDS).split("\n\n")
    people = ("Mary", "John", "Daniel", "Sandra", "Bill", "Fred", "Jeff", "Julie")
    places = ("kitchen", "garden", "hallway", "bathroom", "bedroom", "office", "school", "park", "cinema")
    things = ("apple", "football", "milk")
    for person, place, thing in itertools.product(people, places, things):
        yield f"{person} went to the {place}. {person} picked up the {thing}. Where is {person}? Where is the {thing}?"
    rng = np.random.default_rng([seed])
    for form, topic in itertools.product(FORMATS, TOPICS):
        yield f"user\nwrite a {form} about {topic}"
        yield f"assistant\n{write_text(rng, form, topic, 400)}"


def _write_weights(file: Path, config: dict[str, object], seed: int) -> None:
    """Write weights whose answers hang on what was read and where: logits a few units apart, attention not flat."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng([seed])
    hidden, inner = int(str(config["hidden_size"])), int(str(config["intermediate_size"]))
    kv = HEAD_DIM * int(str(config["num_key_value_heads"]))
    vocab = int(str(config["vocab_size"]))

    def matrix(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float32]:
        return rng.normal(scale=gain * columns**-0.5, size=(rows, columns)).astype(np.float32)

    ones = np.ones(hidden, dtype=np.float32)
    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden, hidden**0.5)}
    for layer in range(int(str(config["num_hidden_layers"]))):
        at = f"model.layers.{layer}"
        for name, rows, gain in (("q", hidden, 2.0), ("k", kv, 2.0), ("v", kv, 1.0)):
            tensors[f"{at}.self_attn.{name}_proj.weight"] = matrix(rows, hidden, gain)
            tensors[f"{at}.self_attn.{name}_proj.bias"] = rng.normal(scale=0.5, size=rows).astype(np.float32)
        tensors[f"{at}.self_attn.o_proj.weight"] = matrix(hidden, hidden)
        tensors[f"{at}.mlp.gate_proj.weight"] = matrix(inner, hidden)
        tensors[f"{at}.mlp.up_proj.weight"] = matrix(inner, hidden)
        tensors[f"{at}.mlp.down_proj.weight"] = matrix(hidden, inner)
        tensors[f"{at}.input_layernorm.weight"] = ones
        tensors[f"{at}.post_attention_layernorm.weight"] = ones
    tensors["model.norm.weight"] = ones
    tensors["lm_head.weight"] = matrix(vocab, hidden, 3.0)
    save_file(tensors, file, metadata={"format": "pt"})


def _write_json(file: Path, values: dict[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
