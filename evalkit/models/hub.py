"""What people type for a model, its base or an adapter: a folder, or a name on the hub.

    resolve("checkpoints/mine", None)                       a folder
    resolve("Qwen/Qwen2.5-7B-Instruct", "a09a354...")       from the hub's cache on this machine, else downloaded

Only what is needed is downloaded: configs, tokenizer, templates and safetensors. Pickles and code never are.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evalkit.errors import BadInput
from evalkit.files import first_line
from evalkit.models import tokenizer
from evalkit.models.weights import INDEX, SINGLE, weight_files, weight_map

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    *tokenizer.FILES,
    "preprocessor_config.json",  # vLLM wants these two of models that also take pictures
    "processor_config.json",
    "evalkit_training.json",
    ADAPTER_CONFIG,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model or adapter lies, and what it is called."""

    path: Path
    name: str
    """The folder's name, or the name on the hub."""
    commit: str | None
    """Of the hub's repository, 40 hex digits; None for a folder."""


def resolve(text: str, revision: str | None = None) -> ModelSource:
    """Return the folder that a model's name stands for, downloading it to the hub's cache where it is not there.

    What the cache has under a revision is taken without asking the hub. A download shows its progress on stderr, and
    one that was interrupted goes on when the command is repeated.

    Args:
        text: a folder, or owner/name on the hub.
        revision: branch, tag or commit on the hub; None is its main branch.

    Raises:
        BadInput: there is no such folder, model or revision; it is gated; it has no safetensors, or a config that
            needs code of its own; the disk is too small; or the hub cannot be reached.
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise BadInput(f"{text} is a folder, and a revision is one of a hub name; drop --revision {revision}.")
        return ModelSource(path=folder, name=folder.resolve().name, commit=None)
    if folder.suffix == ".gguf":
        raise BadInput(f"{text} is a GGUF file, which evalkit does not read; give the safetensors that it was made of.")
    if folder.exists():
        raise BadInput(f"{text} is a file; a checkpoint is a folder with config.json, weights and tokenizer.")
    if not _HUB_NAME.fullmatch(text):
        raise BadInput(f"There is no folder {text}, and it is no hub name either, which would be owner/name.")
    if (cached := _in_cache(text, revision)) is None:
        cached = _download(text, revision)
    return ModelSource(path=cached, name=text, commit=cached.name)


def local(text: str, revision: str | None = None) -> Path | None:
    """Return the folder that a model's name stands for if it lies on this machine, else None; downloads nothing."""
    if Path(text).expanduser().is_dir():
        return Path(text).expanduser()
    return _in_cache(text, revision) if _HUB_NAME.fullmatch(text) else None


def _in_cache(name: str, revision: str | None) -> Path | None:
    """Return the whole snapshot of a revision in the hub's cache, or None where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=list(_SMALL_FILES))
        snapshot = Path(found)
        if not (snapshot / ADAPTER_WEIGHTS).is_file():
            weight_files(snapshot)
            _require_small_files(name, {path.name for path in snapshot.iterdir()})
    except HFValidationError as error:
        raise BadInput(f"{name} is neither a folder nor a hub name ({first_line(error)}).") from error
    except (LocalEntryNotFoundError, BadInput):  # not there, or not whole
        return None
    return snapshot


def _download(name: str, revision: str | None) -> Path:
    """Look at what a repository has, refuse what could not be used, and download the rest."""
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE:
        raise BadInput(
            f"{_shown(name, revision)} is neither a folder nor whole in the hub's cache ({constants.HF_HUB_CACHE}), "
            f"and HF_HUB_OFFLINE is set; unset it, or type where there is a network: {_command(name, revision)}"
        )
    with _explained(name, revision):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        wanted = _needed(name, set(sizes), _indexed(name, info.sha) if INDEX in sizes else set())
        if ADAPTER_CONFIG not in wanted:
            _require_usable_config(name, info.sha)
        missing = [
            file for file in wanted if not isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)
        ]
        _require_space(name, sum(sizes[file] for file in missing), Path(constants.HF_HUB_CACHE))
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))


def _indexed(name: str, commit: str | None) -> set[str]:
    """Return the weight files that a repository's index names: every family calls its shards as it likes."""
    from huggingface_hub import hf_hub_download

    with tempfile.TemporaryDirectory() as folder:  # of its own, as for the config below
        hf_hub_download(name, INDEX, revision=commit, local_dir=folder)
        try:
            return set(weight_map(Path(folder)).values())
        except BadInput as error:
            raise BadInput(str(error).replace(folder, f"{name} on the hub")) from error


def _needed(name: str, there: set[str], indexed: set[str]) -> list[str]:
    """Return the files to download: small ones, and the safetensors of the model, or of the adapter.

    Args:
        name: of the repository.
        there: all its files.
        indexed: those that its index names; none where it has no index.
    """
    if indexed and (indexed <= there or SINGLE not in there):
        if missing := sorted(indexed - there):
            raise BadInput(
                f"{name} on the hub lacks {len(missing)} of the {len(indexed)} weight files that its {INDEX} names "
                f"({missing[0]}); give a revision that is whole, or another model."
            )
        weights = [INDEX, *indexed]
    elif SINGLE in there:
        weights = [SINGLE]
    elif ADAPTER_CONFIG in there and ADAPTER_WEIGHTS in there:
        return [ADAPTER_CONFIG, ADAPTER_WEIGHTS, *sorted(there & set(_SMALL_FILES) - {ADAPTER_CONFIG, "config.json"})]
    else:
        raise BadInput(_without_weights(name, sorted(there)))
    _require_small_files(name, there)
    return sorted([*weights, *(there & set(_SMALL_FILES) - {ADAPTER_CONFIG})])


def _without_weights(name: str, files: list[str]) -> str:
    for endings, what, way_out in (
        ((".gguf",), "only GGUF files", "give the model that they were made of"),
        (
            (".bin", ".pt", ".pth", ".pkl", ".ckpt"),
            "its weights only as pickles",
            "load them once where you trust them and save_pretrained() the model, which writes safetensors",
        ),
    ):
        if found := [file for file in files if file.endswith(endings)]:
            return f"{name} on the hub has {what} ({found[0]}), and evalkit reads safetensors only; {way_out}."
    return f"{name} on the hub has no {SINGLE} and no {ADAPTER_WEIGHTS}; it is neither a checkpoint nor a LoRA adapter."


def _require_small_files(name: str, there: set[str]) -> None:
    if "config.json" not in there:
        raise BadInput(f"{name} on the hub has no config.json, so it is not a checkpoint of transformers.")
    if not there & {"tokenizer.json", "tokenizer.model"} and not {"vocab.json", "merges.txt"} <= there:
        raise BadInput(f"{name} on the hub has no tokenizer (tokenizer.json); give a model that brings its own.")


def _require_usable_config(name: str, commit: str | None) -> None:
    """Read the config in a folder of its own, so that nothing of a model that cannot be used stays in the cache."""
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        hf_hub_download(name, "config.json", revision=commit, local_dir=folder)
        try:
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            code = "auto_map" in (Path(folder) / "config.json").read_text(encoding="utf-8", errors="replace")
            why = "it needs code of its own, which evalkit does not run" if code else first_line(error)
            raise BadInput(f"transformers cannot use config.json of {name} on the hub: {why}.") from error


def _require_space(name: str, num_bytes: int, cache: Path) -> None:
    begun = (cache / f"models--{name.replace('/', '--')}" / "blobs").glob("*.incomplete")  # these will be gone on with
    num_bytes -= sum(file.stat().st_size for file in begun)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if num_bytes > free:
        raise BadInput(
            f"{name} needs {_size(num_bytes)} more on the disk, and {cache} has {_size(free)} free; make room, or set "
            "HF_HUB_CACHE to a folder on a larger disk."
        )


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence each."""
    from huggingface_hub import constants, errors

    shown, page = _shown(name, revision), f"{constants.ENDPOINT}/{name}"
    try:
        yield
    except BadInput:
        raise
    except errors.GatedRepoError as error:
        raise BadInput(f"{shown} is gated: ask for access at {page}, then type: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput(
            f"There is no folder {name}, and no model of this name on the hub that you may see; look for it at "
            f"{constants.ENDPOINT}/models?search={name.partition('/')[2]}, or, where it is private, type: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(f"{name} has no revision {revision}; see {page}/tree/main, or drop --revision.") from error
    except Exception as error:  # of the network, the hub or the disk: the client's HTTP library has its own
        raise BadInput(
            f"{shown} is not whole in the hub's cache and cannot be downloaded ({type(error).__name__}: "
            f"{first_line(error)}); try again, or type where there is a network: {_command(name, revision)}"
        ) from error


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 10**9:.1f} GB" if num_bytes >= 10**9 else f"{num_bytes / 10**6:.1f} MB"


def _shown(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name} at {revision}"


def _command(name: str, revision: str | None) -> str:
    return f"hf download {name}" + (f" --revision {revision}" if revision else "")
