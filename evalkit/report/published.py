"""What others published as counts or means, read from CSV tables, and how it stands beside runs.

Three kinds of tables, told apart by their columns:

    counts   task subset arm length n, correct or mean, source; questions zone recipe model range train_factor
             serve_factor quoted, where they are needed to tell arms apart or to choose among them
    pairs    task subset first second length n first_only second_only both neither source; questions zone: on how many
             of the same questions both arms, one or none was right
    means    task arm lengths mean source; model trained_length: means without any n

Shares are from 0 to 1. The samples are other people's, so nothing here enters a paired comparison with a run.
"""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from evalkit.errors import BadInput
from evalkit.escaping import require_name
from evalkit.lengths import format_length, parse_length, parse_lengths
from evalkit.reading import shown
from evalkit.report import stats
from evalkit.report.stats import Interval
from evalkit.train.recipes import RECIPES

PAPER = "paper"
"""Name of the tables that ship with the package: arXiv 2606.23687 and its authors' repository."""
ZONES = ("beginning", "middle", "end")
_MOST_DIGITS = 9
_NAMES = {"task", "subset", "arm", "first", "second", "model", "questions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One arm in one cell: right answers, or a mean, of n."""

    task: str
    subset: str
    arm: str
    """As in the table; ``arm_names`` tells those apart that share it."""
    length: str
    n: int
    correct: int | None
    """None where the table has a mean of shares."""
    mean: float
    source: str
    where: str
    """File and line."""
    questions: str = ""
    """Which questions were asked, where a task has several sets."""
    zone: str = ""
    """Where in the prompt the facts stood, where that was fixed."""
    recipe: str = ""
    """Name of the training recipe, for its colour."""
    model: str = ""
    range: str = ""
    """Positions that training drew from."""
    train_factor: str = ""
    serve_factor: str = ""
    quoted: bool = True
    """Stands beside runs."""

    @property
    def setting(self) -> str:
        """Range of positions and rope factors, such as "range 16k, factor 2 → 4"."""
        factors = " → ".join(part for part in (self.train_factor, self.serve_factor) if part)
        return ", ".join(f"{word} {part}" for word, part in (("range", self.range), ("factor", factors)) if part)

    @property
    def interval(self) -> Interval:
        """Wilson's interval; of a mean of shares, as if each were 0 or 1: no shares with this mean vary more."""
        method = "wilson" if self.correct is not None else "wilson, at the largest variance of such a mean"
        return Interval(self.mean, *stats.wilson(self.mean, self.n), method)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two arms on the same questions of one cell."""

    task: str
    subset: str
    first: str
    second: str
    length: str
    n: int
    first_only: int
    second_only: int
    both: int
    neither: int
    source: str
    where: str
    questions: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedMean:
    """A mean over lengths of which no n is known."""

    task: str
    arm: str
    lengths: tuple[str, ...]
    mean: float
    source: str
    where: str
    model: str = ""
    trained_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """All that some tables say."""

    counts: tuple[Count, ...] = ()
    pairs: tuple[Pair, ...] = ()
    means: tuple[PublishedMean, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by name."""

    @property
    def sources(self) -> str:
        """Whose figures these are."""
        rows: Sequence[Count | Pair | PublishedMean] = (*self.counts, *self.pairs, *self.means)
        return " and ".join(sorted({row.source for row in rows}))


def read_published(sources: Sequence[str]) -> Published:
    """Read tables: "paper", CSV files, or folders of them.

    Raises:
        BadInput: a source does not exist, or a row cannot be right; the message names file and line.
    """
    counts: list[Count] = []
    pairs: list[Pair] = []
    means: list[PublishedMean] = []
    files = {}
    for source in sources:
        for path in _tables(source):
            name = f"{source}/{path.name}" if path.name != Path(source).name else source
            content, rows = _rows(path, name)
            files[name] = hashlib.sha256(content).hexdigest()
            columns = rows[0][1].keys()
            if "first_only" in columns:
                pairs += _each(rows, name, _pair)
            elif "lengths" in columns:
                means += _each(rows, name, _published_mean)
            else:
                counts += _each(rows, name, _count)
    _refuse_repeats(counts, lambda c: (*_cell_of(c), c.arm, c.model, c.setting))
    _refuse_repeats(pairs, lambda p: (*_cell_of(p), p.first, p.second))
    _refuse_repeats(means, lambda m: (m.task, m.arm, m.model, m.lengths))
    _refuse_contradictions(counts, pairs)
    return Published(counts=tuple(counts), pairs=tuple(pairs), means=tuple(means), files=files)


def arm_names(counts: Iterable[Count], always: Sequence[str] = ()) -> dict[str, str]:
    """Return the full name of each count's arm, by ``where``: with as many columns as tell it from its namesakes.

    Args:
        counts: those that are shown together.
        always: columns that are named in any case, where the table has them.
    """
    counts = list(counts)
    values: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    columns = ("model", "questions", "setting")
    for c in counts:
        for column in columns:
            values[c.task, c.arm, column].add(getattr(c, column))
    names = {}
    for c in counts:
        told = [x for x in columns if x in always or len(values[c.task, c.arm, x]) > 1]
        names[c.where] = ", ".join([c.arm, *(text for x in told if (text := getattr(c, x)))])
    return names


# -- reading -------------------------------------------------------------------------------------------------------

Row = Mapping[str, str]
T = TypeVar("T")
Kind = TypeVar("Kind", Count, Pair, PublishedMean)

_COUNT_COLUMNS = ("task", "subset", "arm", "length", "n", "source")
_COUNT_OPTIONS = ("correct", "mean", "questions", "zone", "recipe", "model", "range", "train_factor", "serve_factor",
                  "quoted")  # fmt: skip
_PAIR_NUMBERS = ("n", "first_only", "second_only", "both", "neither")
_PAIR_COLUMNS = ("task", "subset", "first", "second", "length", *_PAIR_NUMBERS, "source")
_MEAN_COLUMNS = ("task", "arm", "lengths", "mean", "source")


def _tables(source: str) -> list[Path]:
    path = Path(__file__).with_name(PAPER) if source == PAPER else Path(source)
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.csv"))
    if not found:
        raise BadInput(f"{source} is no published table: name a CSV file, a folder that holds some, or {PAPER!r}.")
    return found


def _rows(path: Path, name: str) -> tuple[bytes, list[tuple[int, Row]]]:
    """Return a table's bytes and its rows with their line numbers."""
    try:
        content = path.read_bytes()
        reader = csv.DictReader(content.decode("utf-8-sig").splitlines(), strict=True)
        rows: list[tuple[int, Row]] = []
        for row in reader:
            if None in row or None in row.values():
                raise BadInput(f"{name}, line {reader.line_num}: it has not as many cells as the first line has names.")
            rows.append((reader.line_num, {key.strip(): value.strip() for key, value in row.items()}))
    except OSError as error:
        raise BadInput(f"{name} cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{name} is not a CSV table in UTF-8 ({error}).") from error
    if not rows:
        raise BadInput(f"{name} has no row below its names.")
    return content, rows


def _each(rows: Sequence[tuple[int, Row]], name: str, read: Callable[[Row, str], T]) -> list[T]:
    found = []
    for line, row in rows:
        where = f"{name}, line {line}"
        try:
            for column in _NAMES & row.keys():
                if row[column]:
                    require_name(row[column], f"column {column}")
            found.append(read(row, where))
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from error
    return found


def _count(row: Row, where: str) -> Count:
    _refuse_columns(row, _COUNT_COLUMNS, _COUNT_OPTIONS)
    if bool(row.get("correct")) == bool(row.get("mean")):
        raise BadInput("a count needs either 'correct' or 'mean'.")
    n = _whole(row, "n")
    if n < 1:
        raise BadInput("n is 0; leave out what was not asked.")
    correct = _whole(row, "correct") if row.get("correct") else None
    if correct is not None and correct > n:
        raise BadInput(f"{correct} correct answers are more than the {n} asked.")
    if (recipe := row.get("recipe", "")) not in ("", *RECIPES):
        raise BadInput(f"recipe {recipe!r} is none of {', '.join(RECIPES)}; leave it empty for another method.")
    if (quoted := row.get("quoted", "yes")) not in ("yes", "no"):
        raise BadInput(f"quoted is {quoted!r}; write yes or no.")
    if (zone := row.get("zone", "")) not in ("", *ZONES):
        raise BadInput(f"zone {zone!r} is none of {', '.join(ZONES)}.")
    words = {name: row.get(name, "") for name in ("questions", "model", "range", "train_factor", "serve_factor")}
    return Count(
        task=row["task"],
        subset=row["subset"],
        arm=row["arm"],
        length=format_length(parse_length(row["length"])),
        n=n,
        correct=correct,
        mean=_share(row["mean"]) if correct is None else correct / n,
        source=row["source"],
        where=where,
        zone=zone,
        recipe=recipe,
        quoted=quoted == "yes",
        **words,
    )


def _pair(row: Row, where: str) -> Pair:
    _refuse_columns(row, _PAIR_COLUMNS, ("questions", "zone"))
    numbers = {name: _whole(row, name) for name in _PAIR_NUMBERS}
    parts = sum(numbers.values()) - numbers["n"]
    if parts != numbers["n"] or not parts:
        raise BadInput(f"both, one or none right come to {parts} questions, and n is {numbers['n']}.")
    if (zone := row.get("zone", "")) not in ("", *ZONES):
        raise BadInput(f"zone {zone!r} is none of {', '.join(ZONES)}.")
    return Pair(
        task=row["task"],
        subset=row["subset"],
        first=row["first"],
        second=row["second"],
        length=format_length(parse_length(row["length"])),
        source=row["source"],
        where=where,
        questions=row.get("questions", ""),
        zone=zone,
        **numbers,
    )


def _published_mean(row: Row, where: str) -> PublishedMean:
    _refuse_columns(row, _MEAN_COLUMNS, ("model", "trained_length"))
    trained = row.get("trained_length", "")
    lengths = parse_lengths(row["lengths"])
    if not lengths:
        raise BadInput("'lengths' names none; write them like 16k,32k.")
    return PublishedMean(
        task=row["task"],
        arm=row["arm"],
        lengths=lengths,
        mean=_share(row["mean"]),
        source=row["source"],
        where=where,
        model=row.get("model", ""),
        trained_length=parse_length(trained) if trained else None,
    )


def _refuse_columns(row: Row, needed: Sequence[str], others: Sequence[str]) -> None:
    for name in needed:
        if not row.get(name):
            raise BadInput(f"{name!r} is missing; such a table needs {', '.join(needed)}.")
    for name in row:
        if name not in needed and name not in others:
            raise BadInput(f"column {shown(name)} is not known; known are {', '.join((*needed, *others))}.")


def _whole(row: Row, name: str) -> int:
    if not row[name].isdecimal() or len(row[name]) > _MOST_DIGITS:
        raise BadInput(f"{name} is {shown(row[name])}, which is no whole number of {_MOST_DIGITS} digits at most.")
    return int(row[name])


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise BadInput(f"mean is {shown(text)}; write a share from 0 to 1 (0.813 for 81.3 %).")
    return value


def _cell_of(row: Count | Pair) -> tuple[str, ...]:
    return (row.task, row.subset, row.questions, row.zone, row.length)


def _refuse_repeats(rows: Sequence[Kind], key: Callable[[Kind], tuple[Any, ...]]) -> None:
    seen: dict[tuple[Any, ...], str] = {}
    for row in rows:
        first = seen.setdefault(key(row), row.where)
        if first != row.where:
            raise BadInput(f"{row.where}: the same arm and cell stand in {first} already; keep one of them.")


def _refuse_contradictions(counts: Sequence[Count], pairs: Sequence[Pair]) -> None:
    """Compare how many each arm of a pair has right, and of how many, with its own count."""
    known: dict[tuple[str, ...], list[Count]] = defaultdict(list)
    for c in counts:
        known[(*_cell_of(c), c.arm)].append(c)
    for p in pairs:
        for arm, alone in ((p.first, p.first_only), (p.second, p.second_only)):
            own = known[(*_cell_of(p), arm)]
            if own and all((c.n, c.correct) != (p.n, p.both + alone) for c in own):
                raise BadInput(
                    f"{p.where}: {arm} has {p.both + alone} of {p.n} right here, and {own[0].correct} of {own[0].n} in "
                    f"{own[0].where}."
                )
