"""safetensors files without loading them: what tensors there are, that every file is whole, and who they are.

A file is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte offsets), then the tensors.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from evalkit.errors import BadInput
from evalkit.models.layouts import IndexFile, TensorEntry, read_file, read_tensor_entries
from evalkit.reading import shown

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
_BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32}
_BITS |= {"F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
"""Of one value, by the names that safetensors has for dtypes."""
_MAX_HEADER_BYTES = 100_000_000  # safetensors reads no longer one
_SAMPLE_BYTES = 4096
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    """As safetensors writes it: BF16, F32, ..."""
    shape: tuple[int, ...]
    file: Path
    start: int
    """First byte, from the beginning of the file."""
    num_bytes: int


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a checkpoint folder: all shards of its index, or the single file.

    Raises:
        BadInput: there are none, a shard is missing, or the weights are pickles, which can run code when loaded.
    """
    if shards := sorted(set(weight_map(folder).values())):
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise BadInput(
                f"{folder} lacks {len(missing)} of its {len(shards)} weight files ({', '.join(missing[:3])}); "
                "copy the checkpoint again."
            )
        return tuple(folder / name for name in shards)
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise BadInput(
            f"{folder} has its weights as pickles ({pickles[0]}), which can run code when they are loaded; load them "
            "once where you trust them and save_pretrained() the model, which writes safetensors."
        )
    raise BadInput(f"{folder} has no weights; a checkpoint has {SINGLE}, or {INDEX} with its shards.")


def checkpoint_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a checkpoint folder by name, sorted; each lies in the file that the index names.

    Raises:
        BadInput: as ``weight_files`` and ``stored_tensors``, or the index names a tensor that its file lacks.
    """
    tensors = stored_tensors(weight_files(folder))
    for name, file in weight_map(folder).items():
        if name not in tensors or tensors[name].file != folder / file:
            raise BadInput(
                f"{folder / INDEX} says that {name} lies in {file}, which has no such tensor; copy both again."
            )
    return tensors


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Return every tensor of the files by name, sorted, from their headers alone.

    Raises:
        BadInput: a file is not safetensors or has been cut short, or two of them hold one tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    for tensor in (tensor for file in files for tensor in _read_header(file)):
        if (other := tensors.setdefault(tensor.name, tensor)) is not tensor:
            raise BadInput(f"{other.file} and {tensor.file} both hold the tensor {tensor.name}; remove one of them.")
    return dict(sorted(tensors.items()))


def sampled_hash(tensors: Iterable[StoredTensor]) -> str:
    """Return a hash over each tensor's name, dtype, shape and 4 KiB from its middle, whatever file it lies in.

    Every tensor is looked at, because fine-tuning may leave the first and the last ones of a file as they were (LoRA
    touches neither embeddings nor norms). Reads about 1.5 MB of a 7B model; a change of single values elsewhere in a
    tensor escapes it.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode())
        length = min(_SAMPLE_BYTES, tensor.num_bytes)
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start + (tensor.num_bytes - length) // 2)
            digest.update(stream.read(length))
    return digest.hexdigest()


def is_zero(tensor: StoredTensor) -> bool:
    """Whether every byte of a tensor is zero; reads it until one is not."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        return not any(block.strip(b"\0") for block in _blocks(stream, tensor.num_bytes))


def _blocks(stream: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0:
        block = stream.read(min(length, _BLOCK_BYTES))
        if not block:
            raise BadInput(f"{stream.name} ended while it was read; is it still being written?")
        length -= len(block)
        yield block


def weight_map(folder: Path) -> dict[str, str]:
    """Return which file of the folder holds which tensor, by its index; empty where it has none.

    Raises:
        BadInput: it is no index, or names a file outside of the folder.
    """
    found = read_file(IndexFile, folder / INDEX)
    if found is None:
        return {}
    names = found[0].weight_map
    if strange := next((name for name in names.values() if Path(name).name != name or "\0" in name), None):
        raise BadInput(f"{folder / INDEX}: weight_map names {strange[:80]!r}, which is no file beside it.")
    return names


def _read_header(file: Path) -> Iterator[StoredTensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(size - 8, _MAX_HEADER_BYTES):
                raise BadInput(f"it begins with a header of {length:,} bytes, and has {size:,}")
            entries = read_tensor_entries(stream.read(length), "its header")
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}).") from error
    except BadInput as error:
        reason = str(error).rstrip(".").removesuffix("; copy it again")
        raise BadInput(f"{file} is not a safetensors file ({reason}); copy it again.") from error
    data = 8 + length
    whole = data + max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if whole != size:
        raise BadInput(f"{file} has {size:,} bytes where its header says {whole:,}; copy it again.")
    before = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, end = entry.data_offsets
        _require_in_place(file, name, entry, before)
        before = end
        yield StoredTensor(
            name=name, dtype=entry.dtype, shape=entry.shape, file=file, start=data + start, num_bytes=end - start
        )


def _require_in_place(file: Path, name: str, entry: TensorEntry, before: int) -> None:
    """Refuse a tensor that is not as long as its shape says, or does not begin where the one in front ends.

    Raises:
        BadInput: as safetensors itself would refuse the file, when it is loaded.
    """
    start, end = entry.data_offsets
    bits = _BITS.get(entry.dtype)
    if bits is None:
        raise BadInput(f"{file}: the tensor {name} has the dtype {entry.dtype!r}, which safetensors does not have.")
    if start != before or (end - start) * 8 != math.prod(entry.shape) * bits:
        raise BadInput(
            f"{file}: the tensor {name} ({entry.dtype}, shape {shown(list(entry.shape))}) cannot lie in the bytes "
            f"{start:,} to {end:,}; copy the file again."
        )


def num_parameters(tensors: Iterable[StoredTensor]) -> int:
    """Return how many values the tensors hold together."""
    return sum(math.prod(tensor.shape) for tensor in tensors)
