"""What a checkpoint folder is, found out before any weights are loaded: shape, window, rope rule, identity, record.

Nothing here runs code of the checkpoint's: weights are safetensors only, and configs of model families that
transformers does not know itself are refused.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from evalkit.errors import BadInput, EngineError, EvalkitError
from evalkit.files import first_line
from evalkit.models.adapter import Adapter
from evalkit.models.causal_lm import load_causal_lm
from evalkit.models.hub import resolve
from evalkit.models.layouts import SIZES, ConfigFile, GenerationFile, TokenizerFile, known, read_file
from evalkit.models.rope.formulas import Frequencies, RopeScaling
from evalkit.models.rope.modules import own_frequencies
from evalkit.models.rope.stored import (
    KnownRule,
    StoredRope,
    full_attention_config,
    head_size,
    read_stored_rope,
    refuse_contradictions,
)
from evalkit.models.tokenizer import chat_template
from evalkit.models.training_record import TRAINING_RECORD, TrainingRecord
from evalkit.models.weights import (
    DTYPE_NAMES,
    StoredTensor,
    checkpoint_tensors,
    num_parameters,
    sampled_hash,
)
from evalkit.reading import read_json, shown

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
_CHANGES_NO_ANSWER = ("_name_or_path", "transformers_version", "use_cache", "_commit_hash")
_FOUND_BY_THE_BACKEND = ("torch_dtype", "dtype", "eos_token_id")
"""Told by ``Backend.identity`` as they take effect: the dtype in use, all stop ids."""
_LAYER = re.compile(r"\.(\d+)\.")
"""The first number in a tensor's name is its layer's: model.layers.3.mlp.experts.7.up_proj, transformer.h.3.ln_1."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
"""What configs call their number of layers."""
_HF_WILL_NOT_LOAD = "The hf backend will not load this checkpoint"
_SECONDS_FOR_BLAME = 3.0
_ENDLESS = 10**9  # tokenizers without a limit write 1e30 as model_max_length


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """What one layer keeps of a request."""

    values_per_token: int = 0
    """Numbers per token: keys and values, or what attention with latent keys and values (MLA) keeps instead."""
    window: int | None = None
    """Tokens at which it stops growing; None where it never does."""
    state_values: int = 0
    """Numbers that do not depend on the tokens: of state-space and linear-attention layers."""

    def num_values(self, num_tokens: int) -> int:
        """Return how many numbers it keeps of a request of so many tokens."""
        return self.values_per_token * min(num_tokens, self.window or num_tokens) + self.state_values


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A Hugging Face checkpoint folder: what its files say, checked against each other. Make one with ``open``."""

    path: Path
    name: str
    """The folder's name, or the name on the hub."""
    model_type: str
    max_position_embeddings: int
    """As the config says; what is covered is ``window``."""
    rope: StoredRope | None
    """None for a model whose positions are not rotary."""
    head_dim: int
    """Of the layers that see the whole context, where layers differ."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    hidden_size: int
    vocab_size: int
    dtype: str
    """Of the weights: float32, bfloat16, ...; of those beside the quantized ones where they are quantized."""
    cache: tuple[LayerCache, ...]
    """What each layer with a cache of its own keeps."""
    tensors: Mapping[str, StoredTensor]
    has_chat_template: bool
    tokenizer_limit: int | None
    """``model_max_length`` of the tokenizer's config: caps what vLLM accepts."""
    training: TrainingRecord | None
    """The adapter's where there is one, else the folder's own."""
    adapter: Adapter | None = None
    unbuilt: str = ""
    """Why transformers cannot build a model of this config; empty where it can. vLLM may have a class of its own."""
    warnings: tuple[str, ...] = ()
    commits: Mapping[str, str] = field(default_factory=dict)
    """Of the hub's repositories that it came from: of the model under "commit", of the adapter under
    "adapter commit"; empty for folders."""

    @classmethod
    def find(
        cls,
        model: str,
        revision: str | None = None,
        *,
        adapter: str | None = None,
        adapter_revision: str | None = None,
    ) -> "Checkpoint":
        """Open what people type for a model and an adapter: folders, or names on the hub; see ``hub.resolve``.

        Raises:
            BadInput: as ``hub.resolve`` and ``open``.
        """
        if adapter is None and adapter_revision is not None:
            raise BadInput(f"--adapter-revision {adapter_revision} needs --adapter: the name that it is a revision of.")
        source = resolve(model, revision)
        given = None if adapter is None else resolve(adapter, adapter_revision)
        checkpoint = cls.open(source.path, adapter=given.path if given else None)
        found = {"commit": source.commit, "adapter commit": given.commit if given else None}
        commits = {name: commit for name, commit in found.items() if commit is not None}
        return replace(checkpoint, name=source.name, commits=commits)

    @classmethod
    def open(cls, path: Path | str, *, adapter: Path | str | None = None) -> "Checkpoint":
        """Read a checkpoint folder, and a LoRA adapter for it, without loading weights.

        Raises:
            BadInput: it is not a usable checkpoint; the message says which file and what to do.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BadInput(f"There is no checkpoint folder {path}.")
        raw, where = _read_config(folder), f"{folder}/config.json"
        refuse_contradictions(raw, where)
        _require_quantization(raw, where)
        tensors = checkpoint_tensors(folder)
        _require_layers(raw, tensors, folder)
        _require_tokenizer(folder)
        whole = _as_transformers_reads(folder, raw)
        config = whole.get_text_config()
        longest = _longest(config, where)
        own, unbuilt = _own_frequencies(whole, raw, where)
        rope = read_stored_rope(raw, config, where, own)
        tokenizer = read_file(TokenizerFile, folder / "tokenizer_config.json")
        read_file(GenerationFile, folder / "generation_config.json")
        given = Adapter.open(Path(adapter), folder) if adapter is not None else None
        training = TrainingRecord.read(given.path / TRAINING_RECORD) if given else None
        training = training or TrainingRecord.read(folder / TRAINING_RECORD)
        limit = tokenizer[0].model_max_length if tokenizer else None
        return cls(
            path=folder,
            name=folder.resolve().name,
            model_type=config.model_type,
            max_position_embeddings=longest,
            rope=rope,
            head_dim=head_size(config),
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=_num_kv_heads(full_attention_config(config)),
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            dtype=_dtype_of(tensors),
            cache=_layer_caches(config, where),
            tensors=tensors,
            has_chat_template=chat_template(folder) is not None,
            tokenizer_limit=int(limit) if limit is not None and limit < _ENDLESS else None,
            training=training,
            adapter=given,
            unbuilt=unbuilt,
            warnings=(
                *((f"{_HF_WILL_NOT_LOAD}: {unbuilt}",) if unbuilt else ()),
                *(rope.warnings if rope else ()),
                *_adapter_inside(folder),
                *(given.warnings if given else ()),
            ),
        )

    @property
    def window(self) -> int:
        """Positions that the checkpoint covers as its config says, tokens."""
        return self.rope.window if self.rope else self.max_position_embeddings

    @property
    def base_window(self) -> int:
        """Positions that the model covers by itself: under a rule that it was trained with here, those before it."""
        rule = self.trained_rope
        return rule.original_length if isinstance(rule, RopeScaling) and rule.rule != "none" else self.window

    @property
    def original_length(self) -> int:
        """Positions before any scaling, tokens."""
        return self.rope.original_length if self.rope else self.max_position_embeddings

    @property
    def num_parameters(self) -> int:
        """Values in the weight files."""
        return num_parameters(self.tensors.values())

    @property
    def weight_bytes(self) -> int:
        """Size of the weights as they are stored."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def trained_rope(self) -> KnownRule | None:
        """The rule that was on in training, from the record; None without a record."""
        return self.training.rope if self.training else None

    @property
    def trained_length(self) -> int | None:
        """Longest training sample, tokens; None without a record."""
        return self.training.trained_length if self.training else None

    def dtype_bytes(self, dtype: str | None = None) -> int:
        """Return the bytes of one value of a dtype, such as bfloat16; None is the weights' own."""
        return DTYPE_BYTES.get(dtype or self.dtype, 2)

    def kv_bytes(self, num_tokens: int, dtype: str | None = None) -> int:
        """Return the size of what one request keeps in the cache: keys and values, latent ones, states.

        As vLLM keeps it. transformers keeps latent keys and values (MLA) expanded, for every head.

        Args:
            num_tokens: prompt and answer.
            dtype: of the cache; None: of the weights.
        """
        return self.dtype_bytes(dtype) * sum(layer.num_values(num_tokens) for layer in self.cache)

    def identity(self) -> dict[str, str]:
        """Return what changes when answers could: hashes of sampled weights, config and adapter, and the hub's commits.

        Takes a fraction of a second.
        """
        parts = {"weights": sampled_hash(self.tensors.values()), "config": self._config_hash(), **self.commits}
        return parts | ({"adapter": self.adapter.identity()} if self.adapter else {})

    def weight_problem(self, *, quantized: bool = False) -> str | None:
        """Return why the weights are not those of the model that the config describes, or None.

        They are loaded as for asking, but onto torch's "meta" device, which reads names and shapes and no values. Those
        of a model that transformers cannot build, which vLLM may have a class of its own for, are not compared.

        Args:
            quantized: compare quantized ones, too. Their names hang on packages that only the engine may have, so only
                transformers' own backend asks for it.
        """
        if self.unbuilt or (self._is_quantized and not quantized):
            return None
        try:
            load_causal_lm(self.path, None, "auto", device="meta")
        except EvalkitError as error:
            return str(error)
        return None

    @property
    def _is_quantized(self) -> bool:
        return (read_json(self.path / "config.json") or {}).get("quantization_config") is not None

    def _config_hash(self) -> str:
        parts = []
        for name in ("config.json", "generation_config.json"):
            values = read_json(self.path / name) or {}
            parts.append({k: v for k, v in values.items() if k not in (*_CHANGES_NO_ANSWER, *_FOUND_BY_THE_BACKEND)})
        return hashlib.sha256(_canonical(parts)).hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    found = read_file(ConfigFile, folder / "config.json")
    if found is not None:
        return found[1]
    if (folder / "adapter_config.json").is_file():
        raise BadInput(f"{folder} is a LoRA adapter; give its base as the model and this folder as --adapter.")
    raise BadInput(f"{folder} has no config.json, so it is not a Hugging Face checkpoint.")


def _require_tokenizer(folder: Path) -> None:
    names = {file.name for file in folder.iterdir() if file.is_file()}
    if not names & {"tokenizer.json", "tokenizer.model"} and not {"vocab.json", "merges.txt"} <= names:
        raise BadInput(
            f"{folder} has no tokenizer (tokenizer.json); save the checkpoint's tokenizer beside its weights."
        )


def _require_quantization(raw: Mapping[str, Any], where: str) -> None:
    quantization = raw.get("quantization_config")
    named = ("quant_method", "load_in_8bit", "load_in_4bit")  # the latter of bitsandbytes, which named no method once
    if quantization is not None and not any(quantization.get(name) for name in named):
        raise BadInput(
            f"quantization_config in {where} is {shown(quantization)}; it should name its quant_method, such as fp8: "
            "copy the config again, or take the field out where the weights are not quantized."
        )


def _require_layers(raw: Mapping[str, Any], tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    """Refuse a config of more layers than are stored, before anything is built for each: of a million that takes hours.

    More are stored where some predict further tokens, and of models that see pictures. Of the parts beside the language
    model, which need not be stored at all, no more is asked than that a layer has a tensor.

    Raises:
        BadInput: the numbers.
    """
    stored = len({found[1] for found in map(_LAYER.search, tensors) if found})
    parts = [(raw, stored), (raw.get("text_config"), stored), *((part, len(tensors)) for part in raw.values())]
    for part, most in parts:
        for said in (part.get(name) for name in _LAYERS) if isinstance(part, Mapping) else ():
            if isinstance(said, int) and said > most:
                raise BadInput(
                    f"{folder} has weights of {stored} layers, and its config says {said:,}; copy both again."
                )


def _as_transformers_reads(folder: Path, raw: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each model's class has its own way to stop at a value
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        blamed = _blamed(raw, lambda config: None)
        raise BadInput(f"transformers cannot use {folder}/config.json: {reason[:300]}{blamed}.") from error


def _blamed(raw: Mapping[str, Any], use: Callable[[Any], object]) -> str:
    """Return the end of a message: the field without which a config can be used; "" where no single one is at fault.

    What transformers says of a value often names no field ("'str' object has no attribute 'items'"), so each is left
    out in turn, for a few seconds.
    """
    from transformers import CONFIG_MAPPING

    def fails(left_out: str | None) -> bool:
        try:
            kept = deepcopy({name: value for name, value in raw.items() if name != left_out})
            use(CONFIG_MAPPING[kept["model_type"]].from_dict(kept))
        except Exception:  # noqa: BLE001 - as where it is read
            return True
        return False

    until = time.monotonic() + _SECONDS_FOR_BLAME
    if not fails(None):
        return ""
    tried = takewhile(lambda _: time.monotonic() < until, raw)
    found = next((name for name in tried if not fails(name)), None)
    return "" if found is None else f"; put its {found} right, which is {shown(raw[found])}, or copy the file again"


def _layer_caches(config: Any, where: str) -> tuple[LayerCache, ...]:
    try:
        return layer_caches(config)
    except Exception as error:  # of whichever field transformers or a model's class stumbles over
        raise BadInput(f"The layers in {where} cannot be counted: {first_line(error)}.") from error


def layer_caches(config: Any) -> tuple[LayerCache, ...]:
    """Return what each layer keeps, by the kinds of layers that transformers sees in a config (its text part)."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

    return tuple(
        LayerCache(
            values_per_token=_values_per_token(own) if isinstance(layer, DynamicLayer) else 0,
            window=getattr(layer, "sliding_window", None),
            state_values=_state_values(own) if isinstance(layer, LinearAttentionLayer) else 0,
        )
        for layer, own in zip(DynamicCache(config=config).layers, config.per_layer_config, strict=False)
    )


def _values_per_token(config: Any) -> int:
    if rank := getattr(config, "kv_lora_rank", None):
        return int(rank + config.qk_rope_head_dim)
    keys = head_size(config)
    return int(_num_kv_heads(config) * (keys + (getattr(config, "v_head_dim", None) or keys)))


def _num_kv_heads(config: Any) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    names = ("num_key_value_heads", "num_kv_heads")
    return next((n for name in names if (n := getattr(config, name, None))), None) or int(config.num_attention_heads)


def _state_values(config: Any) -> int:
    """The recurrent state and the last inputs of its convolution; 0 for kinds of layers not known here."""
    if heads := getattr(config, "linear_num_value_heads", None):  # gated delta rule: Qwen3-Next, Qwen3.5
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        values = heads * config.linear_value_head_dim
        return int(values * config.linear_key_head_dim + (2 * keys + values) * config.linear_conv_kernel_dim)
    if heads := getattr(config, "mamba_n_heads", None):  # Mamba-2: Granite 4, Bamba, Falcon-H1
        inner = heads * config.mamba_d_head
        mixed = inner + 2 * config.mamba_n_groups * config.mamba_d_state
        return int(inner * config.mamba_d_state + mixed * config.mamba_d_conv)
    return 0


def _own_frequencies(config: Any, raw: Mapping[str, Any], where: str) -> tuple[dict[str, Frequencies] | None, str]:
    """What the model's class computes, or None and why; vLLM may still have a class of its own."""
    try:
        return own_frequencies(config), ""
    except EngineError as error:
        return None, f"transformers cannot use {where}: {error}{_blamed(raw, own_frequencies)}."


def _longest(config: Any, where: str) -> int:
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        raise BadInput(f"{where} has no usable max_position_embeddings; it says how long a prompt may be.")
    needed = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
    # Which others there are is looked up in the file's own words: a class whose layers differ refuses to be asked.
    sizes = {name: config.to_dict().get(name) for name in SIZES} | {
        name: getattr(config, name, None) for name in needed
    }
    for name in needed:
        if sizes[name] is None:
            raise BadInput(f"{where} ({config.model_type}) has no {name}, so evalkit cannot size what it serves.")
    known(ConfigFile, {name: value for name, value in sizes.items() if isinstance(value, (int, float))}, where)
    return longest


def _dtype_of(tensors: Mapping[str, StoredTensor]) -> str:
    """The floating-point dtype that most of the weights have, leaving out quantized ones."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        if tensor.dtype in DTYPE_NAMES:
            sizes[DTYPE_NAMES[tensor.dtype]] += tensor.num_bytes
    return max(sizes, key=lambda dtype: sizes[dtype], default="bfloat16")


def _adapter_inside(folder: Path) -> tuple[str, ...]:
    if not (folder / "adapter_config.json").is_file():
        return ()
    return (
        f"{folder} holds a LoRA adapter beside the weights, which transformers puts on unasked and vLLM does not; move "
        "it to a folder of its own and name that with --adapter.",
    )


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True).encode()
