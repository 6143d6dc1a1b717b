"""The files of a checkpoint that others write, each with the types of the fields that are used; the rest is let be.

transformers, peft, safetensors and vLLM read the same files in their own ways, and some stop at what others take: a
field that has the wrong type is refused here, in one sentence, before any of them sees it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from evalkit.errors import BadInput
from evalkit.reading import parse_json, read_as, read_json

Count: TypeAlias = Annotated[int, Field(ge=1, le=2**40)]
"""Of tokens, layers, heads or dimensions."""
TokenId: TypeAlias = Annotated[int, Field(ge=0, le=2**31 - 1)]
Ids: TypeAlias = TokenId | list[TokenId] | None


class _File(BaseModel):
    """Fields that are not named here are left alone."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Sizes(_File):
    """What says how large a model is, where it is said under these names."""

    max_position_embeddings: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_size: Count | None = None
    intermediate_size: Count | list[Count] | None = None
    vocab_size: Count | None = None
    sliding_window: Annotated[int, Field(le=2**40)] | None = None
    num_experts: Annotated[int, Field(ge=0, le=2**40)] | None = None
    num_local_experts: Annotated[int, Field(ge=0, le=2**40)] | None = None
    n_routed_experts: Annotated[int, Field(ge=0, le=2**40)] | None = None
    num_experts_per_tok: Count | None = None
    eos_token_id: Ids = None
    bos_token_id: Ids = None
    pad_token_id: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None


class _Quantization(_File):
    quant_method: str | None = None


SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "vocab_size")
"""Those that a model of every kind with attention has."""


class ConfigFile(_Sizes):
    """``config.json``. Its rope settings are looked at by ``rope/stored.py``."""

    model_type: str | None = None
    architectures: list[str] | None = None
    text_config: _Sizes | None = None
    quantization_config: _Quantization | None = None
    dtype: str | None = None
    torch_dtype: str | None = None


class GenerationFile(_File):
    """``generation_config.json``."""

    eos_token_id: Ids = None
    bos_token_id: Ids = None
    pad_token_id: Ids = None


class TokenizerFile(_File):
    """``tokenizer_config.json``."""

    model_max_length: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    chat_template: str | list[Any] | dict[str, Any] | None = None
    tokenizer_class: str | None = None
    added_tokens_decoder: dict[str, dict[str, Any]] | None = None
    extra_special_tokens: list[Any] | dict[str, Any] | None = None
    bos_token: str | dict[str, Any] | None = None
    eos_token: str | dict[str, Any] | None = None
    pad_token: str | dict[str, Any] | None = None
    unk_token: str | dict[str, Any] | None = None


class AdapterFile(_File):
    """``adapter_config.json`` of peft."""

    peft_type: str
    r: Annotated[int, Field(ge=1, le=2**20)]
    lora_alpha: Annotated[float, Field(allow_inf_nan=False)] | None = None
    base_model_name_or_path: str | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=2**20)]] | None = None
    alpha_pattern: dict[str, Annotated[float, Field(allow_inf_nan=False)]] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool | None = None
    use_dora: bool | None = None
    use_rslora: bool | None = None
    fan_in_fan_out: bool | None = None
    init_lora_weights: bool | str | None = None


class IndexFile(_File):
    """``model.safetensors.index.json``."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


class TensorEntry(_File):
    """One tensor in the header of a safetensors file."""

    dtype: str
    shape: tuple[Annotated[int, Field(ge=0, le=2**40)], ...]
    data_offsets: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


_F = TypeVar("_F", bound=_File)


def read_file(kind: type[_F], file: Path) -> tuple[_F, dict[str, Any]] | None:
    """Return the known fields of a file, and all that it holds; None where there is no such file.

    Raises:
        BadInput: it is no JSON object, or a field has another type; names file and field.
    """
    values = read_json(file)
    return None if values is None else (known(kind, values, str(file)), values)


def known(kind: type[_F], values: Mapping[str, Any], where: str) -> _F:
    """Return the known fields of JSON values; ``where`` is the file.

    Raises:
        BadInput: a field is missing or has another type; names file and field.
    """
    try:
        return read_as(kind, values)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error


def read_tensor_entries(header: bytes, where: str) -> dict[str, TensorEntry]:
    """Return the tensors that the header of a safetensors file names; ``where`` is what messages call the header.

    Raises:
        BadInput: it is no JSON object, or an entry lacks something; names the tensor.
    """
    values = parse_json(header, where)
    if not isinstance(values, dict):
        raise BadInput(f"{where} holds {type(values).__name__}; it should be a JSON object.")
    read_as(dict[str, str] | None, values.pop("__metadata__", None), "__metadata__")  # type: ignore[arg-type]
    return read_as(dict[str, TensorEntry], values)
