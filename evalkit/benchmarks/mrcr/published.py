"""Published MRCR rows: openai/mrcr from the hub or from a folder, and Google's MRCR v2 as CSV files.

    {n}needle/{n}needle_0.parquet, ..._1.parquet     openai/mrcr since December 2025
    {n}needle.parquet                                openai/mrcr before
    mrcr_v2*_{n}needle_*.csv                         Google's

A row of openai/mrcr is a conversation that begins with two user turns, worked examples and the first request; it is
asked exactly so, and a chat template that refuses that makes the sample an error. A row of Google's is one text. Rows
keep their published bins, upper edge included: "8k" is 4,096 to 8,192 tokens, "16k" is 8,193 to 16,384, and so on.
These are o200k tokens of all contents and the answer (openai/mrcr), or the file's own ``context_len`` (Google).

Of the rows before December 2025 about one in ten holds too many of the requests and one in twenty a wrong answer: files
of openai/mrcr that are not of the card's revision are refused if any row contradicts itself.
"""

import csv
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from evalkit.benchmarks.cards import TaskCard
from evalkit.benchmarks.mrcr.options import MRCROptions
from evalkit.benchmarks.options import Part
from evalkit.errors import BadInput
from evalkit.files import first_line
from evalkit.lengths import format_length, parse_length
from evalkit.reading import parse_json, shown
from evalkit.types import Message, Sample, TokenCounter

Row = Mapping[str, Any]

_BIN_COLUMNS = ("bin", "length")  # repacked copies of the rows name their bins
_O200K_FILE = "fb374d419588a4632f3f557e76b4b70aebbca790"  # the name under which tiktoken keeps o200k_base
_CHARS_PER_TOKEN = (1, 12)  # of a row's JSON text, about 5: rows far outside a bin need not be counted
_BATCH_ROWS = 8  # a row has up to 5 million characters


class PublishedRows:
    """The rows of one source."""

    def __init__(
        self,
        card: TaskCard,
        source: str,
        count_tokens: TokenCounter | None = None,
        options: MRCROptions | None = None,
        *,
        part: Part = "test",
    ) -> None:
        """Find the files.

        Args:
            card: names the hub data set and its revision.
            source: a data set of the card ("hub"), a folder in one of the three layouts, or a CSV file.
            count_tokens: the checkpoint's own count, which decides the bins where no o200k encoding is at hand: without
                tiktoken, and without its encoding on this machine unless the hub is named.
            options: by what rows fall into bins; of a split only one part of each bin is read, and rows about one
                conversation stay together.
            part: which.

        Raises:
            BadInput: the source is neither in the card nor a path with such files, or its rows bring their bins.
        """
        self.card = card
        self.source = source
        self._count_checkpoint_tokens = count_tokens
        options = options or MRCROptions(source=source)
        self._split, self._part, self._by_prompt = options.parts, part, options.bins == "prompt"
        self._is_hub = source in card.source
        self._files = {} if self._is_hub else _find_files(Path(source), tuple(card.subsets))
        self._num_tokens: dict[tuple[str, int], int] = {}
        self._sound: set[str] = set()
        self._is_google = any(path.suffix == ".csv" for files in self._files.values() for path in files)
        if self._by_prompt and self._is_google:
            raise BadInput(f"The rows of {source} bring their bins (context_len); leave out --bins prompt.")

    def recipe(self) -> dict[str, Any]:
        """Return which rows these are, and by which count they fall into bins."""
        bins = "context_len" if self._is_google else "the prompt's tokens" if self._by_prompt else self._counter[0]
        recipe = {"source": self._revision, "bins": bins}
        if self._split:
            recipe["split"] = f"{self._part} of {self._split.train} % to train, seed {self._split.seed}"
        return recipe

    def samples(self, subset: str, length: str) -> Iterator[Sample]:
        """Yield the rows of one subset in the bin that ends at ``length``, in published order.

        Raises:
            BadInput: there are none, rows contradict themselves, or one cannot be read; names file and row or line.
        """
        label = format_length(parse_length(length))
        self._refuse_faulty(subset)
        if self._split is None:
            yield from self._bin(subset, label)
            return
        stories = list(dict.fromkeys(sample.story_id for sample in self._bin(subset, label)))
        chosen = self._split.part(stories, self._part)
        yield from (sample for sample in self._bin(subset, label) if sample.story_id in chosen)

    def _refuse_faulty(self, subset: str) -> None:
        """Refuse all rows of a subset if some are not what they say; those of the card's revision all are."""
        if subset in self._sound or self._is_google or self._revision == _pinned(self.card, "hub"):
            return
        number, faults = 0, list[str]()
        for place, row in self._rows(subset):
            number += 1
            if fault := _fault(place, row, int(subset.removesuffix("needle"))):
                faults.append(fault)
        if faults:
            raise BadInput(
                f"{len(faults):,} of {number:,} {subset} rows of --source {self.source} contradict themselves, as some "
                f"do of before December 2025 (the first: {faults[0]}); use {_pinned(self.card, 'hub')} (--source hub)."
            )
        self._sound.add(subset)

    def _bin(self, subset: str, label: str) -> Iterator[Sample]:
        is_empty = True
        for number, (place, row) in enumerate(self._rows(subset)):
            if "queries" in row:
                tokens, make = _whole_number(place, row, "context_len"), _google_sample
            else:
                tokens, make = self._row_tokens(place, row, (subset, number), label), _openai_sample
            if bin_label(tokens) == label:
                is_empty = False
                yield make(self.card.task, subset, f"{number:05d}", label, place, row)
        if is_empty:
            raise BadInput(
                f"--source {self.source} has no {subset} rows in a bin that ends at {label}; the published bins end at "
                "8k, 16k, 32k and so on to 1M (8M in Google's data)."
            )

    def _row_tokens(self, place: str, row: Row, key: tuple[str, int], label: str) -> int:
        """Return a number that lies in the row's bin; 0 where it cannot be the bin ``label``."""
        for column in () if self._by_prompt else _BIN_COLUMNS:
            if row.get(column) is not None:
                numbers = re.findall(r"\d+(?:\.\d+)?[kKmM]?", str(row[column]).replace(",", ""))
                if not numbers:
                    raise BadInput(f"{place}: {row[column]!r} in column {column!r} names no length.")
                return parse_length(numbers[-1])
        fewest, most = (len(_text(place, row, "prompt")) // n for n in reversed(_CHARS_PER_TOKEN))
        edge = parse_length(label)
        if fewest > edge or most < edge // 2:
            return 0
        if key not in self._num_tokens:
            self._num_tokens[key] = self._count(_messages(place, row), _text(place, row, "answer"))
        return self._num_tokens[key]

    def _count(self, messages: Sequence[Message], answer: str) -> int:
        if not self._by_prompt:
            return sum(map(self._counter[1], [*(message["content"] for message in messages), answer]))
        if self._count_checkpoint_tokens is None:
            raise BadInput("--bins prompt counts in a checkpoint's tokens, and there is no checkpoint here.")
        return self._count_checkpoint_tokens(messages)

    @cached_property
    def _counter(self) -> tuple[str, Callable[[str], int]]:
        if count := _o200k_counter(may_download=self._is_hub):
            return "o200k_base", count
        if self._count_checkpoint_tokens:
            return "the checkpoint's tokens", self._count_checkpoint_tokens
        raise BadInput(
            "The bins of openai/mrcr are counted in o200k tokens: install tiktoken, and put its o200k_base encoding "
            "where TIKTOKEN_CACHE_DIR points."
        )

    @cached_property
    def _revision(self) -> str:
        """The data set and its revision; files of a folder that hash to the card's values are that revision."""
        if self._is_hub:
            return _pinned(self.card, self.source)
        hashes = {f"{path.parent.name}/{path.name}": _sha256(path) for files in self._files.values() for path in files}
        if hashes.items() <= self.card.settings["sha256"].items():
            return _pinned(self.card, "hub")
        return "local files, sha256 " + hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()

    def _rows(self, subset: str) -> Iterator[tuple[str, Row]]:
        """Yield each row with its place, for error messages."""
        if self._is_hub:
            yield from _hub_rows(self.card, self.source, subset)
        for path in self._files.get(subset, []):
            yield from _csv_rows(path) if path.suffix == ".csv" else _parquet_rows(path)


def bin_label(num_tokens: int) -> str:
    """Return the upper edge of a published bin as a length label.

    >>> bin_label(4096), bin_label(8192), bin_label(8193)
    ('8k', '8k', '16k')
    """
    edge = 1 << max(num_tokens - 1, 0).bit_length()
    return format_length(8192 if num_tokens == 4096 else edge)  # the first bin includes its lower edge


def _find_files(root: Path, subsets: tuple[str, ...]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for subset in subsets:
        parquet = sorted(root.glob(f"{subset}/{subset}_*.parquet")) or sorted(root.glob(f"{subset}.parquet"))
        tables = [root] if root.suffix == ".csv" and root.is_file() else sorted(root.glob("*.csv"))
        found = parquet or [path for path in tables if f"_{subset}_" in f"_{path.stem}_"]
        if found:
            files[subset] = found
    if not files:
        raise BadInput(
            f"{root} has no published MRCR rows: expected 2needle/2needle_0.parquet, 2needle.parquet, or a CSV file "
            "whose name has 2needle, 4needle or 8needle in it."
        )
    return files


def _hub_rows(card: TaskCard, name: str, subset: str) -> Iterator[tuple[str, Row]]:
    from datasets import load_dataset

    data_set, revision = card.source[name]["id"], card.source[name]["revision"]
    try:
        try:
            files = f"{subset}/{subset}_*.parquet"
            rows = load_dataset(data_set, data_files=files, split="train", revision=revision)
        except FileNotFoundError:  # a revision before December 2025
            rows = load_dataset(data_set, data_files=f"{subset}.parquet", split="train", revision=revision)
    except Exception as error:  # the hub client raises errors of several libraries
        raise BadInput(
            f"The hub data set {data_set} (revision {revision}) has no files for {subset}, or cannot be reached "
            f"({type(error).__name__}: {first_line(error.__cause__ or error)}); a local copy is --source DIR."
        ) from error
    for number, row in enumerate(rows):
        yield f"{data_set}, {subset}, row {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} cannot be read as parquet from row {number} on: {first_line(error.__cause__ or error)}."
        ) from error


def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(2**31 - 1)  # a prompt is one field; the default limit is 131,072 characters
    line = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            line += 1
            for row in reader:
                if None in row or None in row.values():
                    raise BadInput(f"{path}, line {line}: {len(reader.fieldnames or ())} columns were expected.")
                yield f"{path}, line {line}", row
                line = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise BadInput(
            f"{path} cannot be read as CSV from line {line} on: {first_line(error.__cause__ or error)}."
        ) from error


def _openai_sample(task: str, subset: str, sample_id: str, label: str, place: str, row: Row) -> Sample:
    messages = _messages(place, row)
    prefix, answer = _text(place, row, "random_string_to_prepend"), _text(place, row, "answer")
    index, asked = _requests(place, row, messages)
    return Sample(
        task=task,
        subset=subset,
        sample_id=sample_id,
        story_id=f"{subset}-{sample_id}",
        question=messages[-1]["content"],
        target=answer,
        facts=tuple(messages[i + 1]["content"] for i in asked),
        supporting=(asked.index(index),),
        messages=messages,
        metadata={
            "rule": "openai",
            "prefix": prefix,
            "wanted": asked.index(index) + 1,
            "num_needles": len(asked),
            "published_length": label,
            "date_added": str(row.get("date_added", "")),
        },
    )


def _requests(place: str, row: Row, messages: Sequence[Message]) -> tuple[int, list[int]]:
    """Return which message is the request that is asked for, and all that equal it."""
    index = _whole_number(place, row, "desired_msg_index")
    if not 0 < index < len(messages) - 2:
        raise BadInput(f"{place}: desired_msg_index is {index}, and there are {len(messages)} messages.")
    # The examples in the first message can hold the same request; they are not part of the conversation.
    return index, [i for i in range(1, len(messages) - 1) if messages[i] == messages[index]]


def _fault(place: str, row: Row, num_needles: int) -> str | None:
    """Say what in a row of openai/mrcr contradicts the rest of it; None where all agrees."""
    messages = _messages(place, row)
    index, asked = _requests(place, row, messages)
    if len(asked) != num_needles:
        return f"the request that {place} asks about occurs {len(asked)} x in it, not {num_needles} x"
    if _text(place, row, "answer") != _text(place, row, "random_string_to_prepend") + messages[index + 1]["content"]:
        return f"{place} has an answer other than random_string_to_prepend and the reply to the request"
    return None


def _google_sample(task: str, subset: str, sample_id: str, label: str, place: str, row: Row) -> Sample:
    answer, text = _text(place, row, "answer").strip(), _text(place, row, "queries")
    transcript = text.rpartition("User:")[0]  # several questions are asked about one
    return Sample(
        task=task,
        subset=subset,
        sample_id=sample_id,
        story_id=f"{subset}-{hashlib.sha256(transcript.encode()).hexdigest()[:16]}",
        question=str(row.get("view_ops", "")),
        target=answer,
        messages=({"role": "user", "content": text},),
        metadata={
            "rule": "google",
            "prefix": answer[:12],  # as in the official metric
            "num_needles": int(subset.removesuffix("needle")),
            "published_length": label,
            "context_len": _whole_number(place, row, "context_len"),
        },
    )


def _messages(place: str, row: Row) -> tuple[Message, ...]:
    """Return the conversation in the column "prompt"."""
    try:
        turns = parse_json(_text(place, row, "prompt"), f"{place}: column 'prompt'")
        messages: tuple[Message, ...] = tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)
    except (TypeError, KeyError) as error:
        raise BadInput(f"{place}: column 'prompt' is not a JSON list of messages ({error}).") from error
    if not all(isinstance(message[field], str) for message in messages for field in ("role", "content")):
        raise BadInput(f"{place}: a message in column 'prompt' has a role or content that is not text.")
    return messages


def _text(place: str, row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{place}: no text in column {column!r}; the columns are {', '.join(map(str, row))}.")
    return value


def _whole_number(place: str, row: Row, column: str) -> int:
    try:
        number = float(row[column])  # "5000.0", as a table with an empty cell in it is written
        if not 0 <= number < 2**31 or number != int(number):
            raise ValueError(column)
        return int(number)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{place}: no whole number in column {column!r} ({shown(row.get(column))}).") from error


def _o200k_counter(*, may_download: bool) -> Callable[[str], int] | None:
    """Return a token counter, or None where tiktoken is missing or would have to fetch its encoding unasked."""
    try:
        import tiktoken
    except ImportError:
        return None
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default
    if not may_download and not (Path(cache) / _O200K_FILE).is_file():
        return None
    encoding = tiktoken.get_encoding("o200k_base")
    return lambda text: len(encoding.encode_ordinary(text))


def _pinned(card: TaskCard, name: str) -> str:
    return f"{card.source[name]['id']}@{card.source[name]['revision']}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
