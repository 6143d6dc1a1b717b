"""The tokenizer of a checkpoint folder, as its files say: how text is cut, the chat template, the stop tokens.

Everything that loads a tokenizer (prompts, backends, training, check) does so here, so that all have the same one.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from evalkit.benchmarks.reasoning import is_mark
from evalkit.errors import BadInput
from evalkit.files import first_line
from evalkit.models.layouts import ConfigFile, GenerationFile, TokenizerFile, read_file
from evalkit.reading import read_text, require_readable

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of a checkpoint folder that make its tokenizer and chat template."""
_PROBES = (
    "Mary went back to the kitchen. Where's  Mary?\n\n\tJohn's 1,984 apples -- 12:30!",
    " Émile saw 雪 there; naïve café 🙂 <context>\r\n{'a': [1, 2]}",
)
"""Words, spaces, newlines, digits, marks and bytes: what a replaced pre-tokenizer or normalizer cuts otherwise."""

_STDOUT = Lock()
"""Held while descriptor 1 is another's."""


def load_tokenizer(folder: Path) -> Any:
    """Return a checkpoint folder's tokenizer as ``tokenizer.json`` has it, with the chat template of the folder.

    transformers' classes build some tokenizers anew from their vocabulary: with ``"tokenizer_class":
    "LlamaTokenizerFast"`` in its config, a byte-level tokenizer gets Llama's pre-tokenizer and loses every space. The
    file itself says how the model was trained to read, so it is loaded whatever the class is called. Only a folder
    without that file (``tokenizer.model``, or ``vocab.json`` and ``merges.txt``) is left to its class.

    Raises:
        BadInput: there is no usable fast tokenizer, or the loaded one does not cut text as the file does.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for name in FILES:  # what the library could not read it would go on without
        with suppress(FileNotFoundError, NotADirectoryError):
            require_readable(folder / name)
    file = folder / "tokenizer.json"
    loader = PreTrainedTokenizerFast if file.is_file() else AutoTokenizer
    try:
        with _silent_stdout():
            tokenizer = loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            as_stored = Tokenizer.from_file(str(file)) if file.is_file() else None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust's is no Exception
        raise BadInput(
            f"No tokenizer can be loaded from {folder} ({first_line(error)}); save it beside the weights."
        ) from error
    if not tokenizer.is_fast:
        raise BadInput(f"The tokenizer in {folder} has no tokenizer.json; save its fast version beside the weights.")
    if as_stored is not None:
        _require_same_ids(tokenizer, as_stored, folder)
    tokenizer.chat_template = chat_template(folder)
    return tokenizer


def chat_template(folder: Path) -> str | None:
    """Return the chat template of a checkpoint folder, or None where there is none.

    It is looked for where transformers looks, in its order, and then in ``chat_template.json``, where checkpoints that
    also take pictures have it. Of several named templates, the one called "default" is for plain conversations.

    Raises:
        BadInput: a file is not what its name says, or none of several templates is the default.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        return read_text(folder / "chat_template.jinja") or None
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = read_file(TokenizerFile, folder / name)
        template = found[0].chat_template if found else None
        if isinstance(template, str):
            return template or None
        if template is not None:
            return _default_template(template, folder / name)
    return None


def stop_token_ids(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end an answer: all that config.json, generation_config.json or the tokenizer call EOS.

    No one place has them all: chat models end a turn with another token than a document, and some name it in
    ``config.json`` only, others in the generation config only.
    """
    stops: set[int] = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    config = read_file(ConfigFile, folder / "config.json")
    generation = read_file(GenerationFile, folder / "generation_config.json")
    for values in (config and config[0], config and config[0].text_config, generation and generation[0]):
        named = values.eos_token_id if values else None
        stops.update(named if isinstance(named, list) else [named] if named is not None else [])
    return tuple(sorted(stops))


def decode_answer(tokenizer: Any, token_ids: Iterable[int]) -> str:
    """Return an answer's text without its special tokens, but with those that are marks of reasoning.

    Without these nobody could tell the answer from what was thought aloud.
    """
    dropped = {
        token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and not is_mark(token.content)
    }
    return str(tokenizer.decode([int(i) for i in token_ids if i not in dropped], skip_special_tokens=False))


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Drop what is printed past Python: tokenizers names fields that it does not know there, raw, beside our JSON."""
    with _STDOUT, open(os.devnull, "wb") as nowhere:
        try:
            kept = os.dup(1)
        except OSError:  # it is closed
            yield
            return
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _require_same_ids(tokenizer: Any, as_stored: Any, folder: Path) -> None:
    as_stored.no_truncation()
    as_stored.no_padding()
    for text in _PROBES:
        loaded = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        stored = as_stored.encode(text, add_special_tokens=False).ids
        if loaded != stored:
            here, place = next(_differences(loaded, stored, tokenizer))
            raise BadInput(
                f"{folder} has two tokenizers: loaded with tokenizer_config.json (class {type(tokenizer).__name__}), "
                f"token {place} of {text[:20]!r}... is {here!r}, which it is not in tokenizer.json alone; take out of "
                "tokenizer_config.json what is not in tokenizer.json (such as added_tokens_decoder)."
            )


def _differences(loaded: list[int], stored: list[int], tokenizer: Any) -> Iterator[tuple[str, int]]:
    for place, token in enumerate(loaded):
        if stored[place : place + 1] != [token]:
            yield str(tokenizer.decode([token])), place
    yield "the end", len(loaded)


def _default_template(named: Any, file: Path) -> str:
    if isinstance(named, list):
        named = {entry.get("name"): entry.get("template") for entry in named if isinstance(entry, Mapping)}
    default = named.get("default") if isinstance(named, Mapping) else None
    if not isinstance(default, str):
        names = ", ".join(map(str, named)) if isinstance(named, Mapping) else type(named).__name__
        raise BadInput(
            f"{file} has no default chat template (it has: {names}); save the one to use as chat_template.jinja."
        )
    return default
