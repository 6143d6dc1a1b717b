"""Background text in which BABILong hides its facts: read, cut into sentences, tokenized once, kept in a cache.

    text = read_noise([Path("novel.txt")])                          # or prose.generate_prose
    haystack = tokenize_haystack(text, encoder, user_cache())

``placement.py`` then cuts windows out of the haystack and puts facts into them.

The official generator works on the text as printed, with its line breaks. Here every run of white space becomes one
space, so that each seam between pieces is "end of a word | space, word": tokenizers split there, and pieces that were
tokenized apart join to the ids of the whole text.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evalkit.errors import BadInput
from evalkit.files import drafted
from evalkit.types import PromptEncoder, TokenIds

MIN_SENTENCE_TOKENS = 10
"""Shorter sentences are left out, as by the official generator: headings, and stubs of a wrong split."""

MAX_WORD_TOKENS = 48
"""Sentences with a longer word (what stands between two spaces) are left out: a window ends with a whole word, and
could miss its length by more than a prompt may."""

_MAX_SENTENCE_CHARS = 4_000
_CHUNK_CHARS = 200_000
_CACHE_FORMAT = "2"  # changes with anything that makes other arrays from the same text and encoder
_CACHED_ARRAYS = ("ids", "char_starts", "sentence_starts")

_GUTENBERG_START = re.compile(r"^\s*\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*$", re.M | re.I)
# Older files repeat the marker in plain words one line before it: "End of the Project Gutenberg EBook of ..."
_GUTENBERG_END = re.compile(r"^\s*(?:\*\*\* ?)?END OF (?:(?:THE|THIS) )?PROJECT GUTENBERG", re.M | re.I)

# Group 1 is the first character of what follows, behind any opening quotes, brackets and dashes.
_SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]_]* (?=["'“‘«(\[_—–-]*(\S))""")
_ABBREVIATION = re.compile(
    r"mr|mrs|ms|messrs|mme|mlle|dr|st|prof|rev|hon|capt|col|gen|lt|sgt|maj|esq|jr|sr|vs|etc|viz|cf|vol|fig|ch|p|pp|ed"
    r"|(?!i$)[a-z](?:\.[a-z])*"  # initials, "e.g."; but "It was I. He ..."
)


def read_noise(paths: Sequence[Path]) -> str:
    """Return the text of the files one after another; a folder stands for the ``.txt`` files in it.

    The licence pages in front of and behind a Project Gutenberg book are cut off.

    Raises:
        BadInput: a file is missing, empty, binary or not UTF-8, or a folder has no text files.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        if not found:
            raise BadInput(f"The background folder {path} has no .txt files; put the texts there, or name a file.")
        files += found
    return "\n\n".join(map(_read_book, files))


def _read_book(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"The background text {path} cannot be read ({error.strerror}); name a text file.") from error
    if b"\0" in raw:
        raise BadInput(f"The background text {path} is binary (byte {raw.index(0)} is NUL); name a UTF-8 text file.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"The background text {path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    start, end = _GUTENBERG_START.search(text), _GUTENBERG_END.search(text)
    text = text[start.end() if start else 0 : end.start() if end else None]
    if not text.strip():
        raise BadInput(f"The background text {path} is empty; name a file with prose in it.")
    return text


def normalise(text: str) -> str:
    """Return the text with every run of white space, line breaks included, as one space, and none at the ends."""
    return " ".join(text.split())


def split_sentences(text: str) -> list[str]:
    """Split normalised text into sentences; joining them with spaces gives the text back.

    A sentence ends at ".", "!", "?" or an ellipsis, with closing quotes or brackets, before a space and anything but
    a lower-case word; not after an abbreviation ("Mr.") or initials. Text without such ends is cut at a space at
    least every 4,000 characters, so that it too has places to start from and to put facts.
    """
    sentences = []
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if end[1].islower() or (end[0] == ". " and _is_abbreviation(text, end.start(), end[1])):
            continue
        sentences += _cut(text[start : end.end() - 1])
        start = end.end()
    return sentences + _cut(text[start:])


def _is_abbreviation(text: str, stop: int, following: str) -> bool:
    """Tell whether the full stop at ``stop`` belongs to the word before it; "No." does only before a number."""
    word = text[text.rfind(" ", 0, stop) + 1 : stop].lstrip("\"'“‘([_—").lower()
    return _ABBREVIATION.fullmatch(word) is not None or (word == "no" and following.isdigit())


def _cut(sentence: str) -> list[str]:
    pieces = []
    while len(sentence) > _MAX_SENTENCE_CHARS and (space := sentence.rfind(" ", 0, _MAX_SENTENCE_CHARS)) > 0:
        pieces.append(sentence[:space])
        sentence = sentence[space + 1 :]
    return [*pieces, sentence] if sentence else pieces


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedHaystack:
    """The sentences that are neither too short nor have too long a word, each with the space in front of it."""

    text: str
    ids: TokenIds
    """Shape (num_tokens,)."""
    char_starts: NDArray[np.int32]
    """Character of ``text`` at which each token starts, and the end; shape (num_tokens + 1,)."""
    sentence_starts: NDArray[np.int64]
    """First token of each sentence, and the end; shape (num_sentences + 1,)."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all sentences together."""
        return len(self.ids)

    @property
    def num_sentences(self) -> int:
        """Sentences that a window can start with."""
        return len(self.sentence_starts) - 1

    def text_of(self, start: int, stop: int) -> str:
        """Return the text of tokens start to stop - 1, without the space in front; both must start words."""
        return self.text[self.char_starts[start] : self.char_starts[stop]].removeprefix(" ")

    def starts_word(self, token: int) -> bool:
        """Tell whether the token starts with the space in front of a word (the end of the text counts)."""
        return token == self.num_tokens or self.text[self.char_starts[token]] == " "


def tokenize_haystack(text: str, encoder: PromptEncoder, cache_dir: Path | None) -> TokenizedHaystack:
    """Tokenize a text once, or fetch it from the cache, where its arrays stay on disk until they are used.

    Args:
        text: any prose; white space is normalised here.
        encoder: decides the ids. Its identity, the text and the format version make the key in the cache.
        cache_dir: where to keep the result; None keeps nothing. A damaged entry is made anew, and a folder that
            cannot be written only costs time.

    Raises:
        BadInput: no sentence has MIN_SENTENCE_TOKENS tokens, and words of at most MAX_WORD_TOKENS.
    """
    if cache_dir is None:
        return _tokenize(text, encoder)
    key = hashlib.sha256(f"{_CACHE_FORMAT}\n{encoder.identity}\n{text}".encode()).hexdigest()
    folder = cache_dir / "haystack" / key
    cached = _load(folder)
    if cached is not None:
        return cached
    haystack = _tokenize(text, encoder)
    _save(haystack, folder)
    return _load(folder) or haystack


def _tokenize(text: str, encoder: PromptEncoder) -> TokenizedHaystack:
    chunks = _chunks(split_sentences(normalise(text)))
    haystack = _join([part for chunk in chunks if (part := _tokenize_chunk(chunk, encoder)).num_tokens])
    if not haystack.num_tokens:
        raise BadInput(
            f"The background text has no sentence of {MIN_SENTENCE_TOKENS} tokens or more in words of at most "
            f"{MAX_WORD_TOKENS}; give prose with spaces between its words, and with at least as many tokens as the "
            "longest length."
        )
    return haystack


def _chunks(sentences: list[str]) -> Iterator[list[str]]:
    """Group sentences, so that memory stays bounded however long the text is."""
    chunk: list[str] = []
    size = 0
    for sentence in sentences:
        chunk.append(sentence)
        size += len(sentence)
        if size > _CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _tokenize_chunk(sentences: list[str], encoder: PromptEncoder) -> TokenizedHaystack:
    """Return the sentences that are of use; one that does not start at a token belongs to the one before it."""
    text = "." + "".join(f" {sentence}" for sentence in sentences)  # the "." gives the first one a space to follow
    ids, starts = encoder.encode_with_starts(text)
    starts = np.append(starts, len(text))
    spaces = np.cumsum([1, *(len(sentence) + 1 for sentence in sentences)])
    tokens = np.searchsorted(starts, spaces)
    aligned = tokens[starts[tokens] == spaces]
    word_starts = np.array([token for token, start in enumerate(starts) if start == len(text) or text[start] == " "])

    def longest_word(first: int, stop: int) -> int:
        begin, end = np.searchsorted(word_starts, [first, stop])
        return int(np.diff(word_starts[begin : end + 1]).max())

    return _join(
        [
            TokenizedHaystack(
                text=text[starts[first] : starts[stop]],
                ids=ids[first:stop],
                char_starts=(starts[first : stop + 1] - starts[first]).astype(np.int32),
                sentence_starts=np.array([0, stop - first], np.int64),
            )
            for first, stop in pairwise(aligned)
            if stop - first >= MIN_SENTENCE_TOKENS and longest_word(first, stop) <= MAX_WORD_TOKENS
        ]
    )


def _join(parts: Sequence[TokenizedHaystack]) -> TokenizedHaystack:
    chars = np.cumsum([0, *(len(part.text) for part in parts)])
    tokens = np.cumsum([0, *(part.num_tokens for part in parts)])
    char_starts = [part.char_starts[:-1] + char for part, char in zip(parts, chars, strict=False)]
    sentence_starts = [part.sentence_starts[:-1] + token for part, token in zip(parts, tokens, strict=False)]
    return TokenizedHaystack(
        text="".join(part.text for part in parts),
        ids=np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)]),
        char_starts=np.concatenate([*char_starts, chars[-1:]]).astype(np.int32),
        sentence_starts=np.concatenate([*sentence_starts, tokens[-1:]]).astype(np.int64),
    )


def _save(haystack: TokenizedHaystack, folder: Path) -> None:
    with contextlib.suppress(OSError):  # a full or read-only disk: the text is tokenized again next time
        folder.parent.mkdir(parents=True, exist_ok=True)
        with drafted(folder, folder=True) as part:  # only a damaged entry can be there already
            for name in _CACHED_ARRAYS:
                np.save(part / f"{name}.npy", getattr(haystack, name), allow_pickle=False)
            (part / "text.txt").write_text(haystack.text, encoding="utf-8", newline="")
            (part / "sha256").write_text(_digests(part), encoding="ascii")


def _load(folder: Path) -> TokenizedHaystack | None:
    """Return the cached haystack with its arrays memory-mapped; None when there is none or it is damaged."""
    try:
        if (folder / "sha256").read_bytes() != _digests(folder).encode():
            return None
        with open(folder / "text.txt", encoding="utf-8", newline="") as file:
            text = file.read()
        maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _CACHED_ARRAYS}
    except OSError:
        return None
    # Plain arrays over the same mapping: slicing an np.memmap is many times slower.
    return TokenizedHaystack(text=text, **{name: np.asarray(array) for name, array in maps.items()})


def _digests(folder: Path) -> str:
    lines = []
    for name in (*(f"{name}.npy" for name in _CACHED_ARRAYS), "text.txt"):
        with open(folder / name, "rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)
