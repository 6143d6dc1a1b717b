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

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
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
    if (index := folder / INDEX).is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{index} is not a weight index ({error}); copy the checkpoint again.") from error
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing or not shards:
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


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Return every tensor of the files by name, sorted, from their headers alone.

    Raises:
        BadInput: a file is not safetensors or has been cut short.
    """
    tensors = {tensor.name: tensor for file in files for tensor in _read_header(file)}
    return dict(sorted(tensors.items()))


def sampled_hash(tensors: Iterable[StoredTensor]) -> str:
    """Return a hash over each tensor's name, dtype, shape and 4 KiB from its middle, whatever file it lies in.

    Every tensor is looked at, because fine-tuning may leave the first and the last ones of a file as they were (LoRA
    touches neither embeddings nor norms). Reads about 1.5 MB of a 7B model; a change of single values elsewhere in a
    tensor escapes it and takes ``full_hash`` to see.
    """
    return _hash(tensors, _SAMPLE_BYTES)


def full_hash(tensors: Iterable[StoredTensor]) -> str:
    """Return a hash over every byte of every tensor: reads the whole checkpoint."""
    return _hash(tensors, None)


def is_zero(tensor: StoredTensor) -> bool:
    """Whether every byte of a tensor is zero; reads it until one is not."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        return not any(block.strip(b"\0") for block in _blocks(stream, tensor.num_bytes))


def _hash(tensors: Iterable[StoredTensor], limit: int | None) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode())
        length = tensor.num_bytes if limit is None else min(limit, tensor.num_bytes)
        start = tensor.start + (tensor.num_bytes - length) // 2
        with tensor.file.open("rb") as stream:
            stream.seek(start)
            for block in _blocks(stream, length):
                digest.update(block)
    return digest.hexdigest()


def _blocks(stream: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0:
        block = stream.read(min(length, _BLOCK_BYTES))
        if not block:
            raise BadInput(f"{stream.name} ended while it was read; is it still being written?")
        length -= len(block)
        yield block


def _read_header(file: Path) -> Iterator[StoredTensor]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        entries = [(name, e["dtype"], tuple(e["shape"]), *map(int, e["data_offsets"])) for name, e in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is not a safetensors file ({error}); copy it again.") from error
    data = 8 + length
    whole = data + max((end for *_, end in entries), default=0)
    if whole != size:
        raise BadInput(f"{file} has {size:,} bytes where its header says {whole:,}; copy it again.")
    for name, dtype, shape, start, end in entries:
        yield StoredTensor(name=name, dtype=dtype, shape=shape, file=file, start=data + start, num_bytes=end - start)


def num_parameters(tensors: Iterable[StoredTensor]) -> int:
    """Return how many values the tensors hold together."""
    return sum(math.prod(tensor.shape) for tensor in tensors)
