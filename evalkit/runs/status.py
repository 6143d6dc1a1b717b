"""How far runs are: what is recorded, how fast, how much is left, and whether anything is still writing."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

from evalkit.errors import BadInput, RunFolderError
from evalkit.lengths import parse_length
from evalkit.records.folder import RunFolder, find_run_folders

State: TypeAlias = Literal["running", "stopped", "finished", "idle", "imported", "damaged"]
"""stopped: nothing writes it, and samples are left that the same command asks; idle: nothing writes it, and it does not
say how many samples were asked for."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """One run folder at one moment."""

    path: Path
    arm: str
    state: State
    done: int
    """Samples with a final record: an answer, or an error that no other attempt would mend. Repeats count too."""
    expected: int | None
    """None where the folder does not say."""
    failed: int
    """Samples whose record is an error."""
    rate: float | None
    """Samples per second since this invocation began to answer; None where nothing runs or none is answered yet."""
    seconds_left: float | None
    """By prompt tokens, since a sample at 128k takes longer than one at 1k; None where there is no rate."""
    writer: str | None
    """The process that writes the folder."""
    problem: str = ""
    """Of a damaged folder."""


def run_status(path: Path) -> Status:
    """Return how far one run is. Reads only; another process may be writing the folder."""
    try:
        folder = RunFolder.open(path)
        latest = list(folder.states())
    except RunFolderError as error:
        return Status(
            path=path, arm="", state="damaged", done=0, expected=None, failed=0, rate=None, seconds_left=None,
            writer=None, problem=str(error),
        )  # fmt: skip
    writer = folder.writer()
    done = [key for key, state in latest if not state.may_be_asked()]
    repeat = folder.config.get("scope", {}).get("repeat", 1)
    left = Counter({cell: n * repeat for cell, n in (folder.config.get("scope", {}).get("cells") or {}).items()})
    left.subtract(f"{key.subset}/{key.length}" for key in done)
    tokens_left = sum(_tokens(cell.rpartition("/")[2]) * n for cell, n in left.items() if n > 0)
    rate, token_rate = _rates(folder, writer) if writer else (None, None)
    return Status(
        path=path,
        arm=folder.arm,
        state="running" if writer else _state_at_rest(folder, len(done), repeat),
        done=len(done),
        expected=None if folder.expected is None else folder.expected * repeat,
        failed=sum(state.error is not None for _, state in latest),
        rate=rate,
        seconds_left=tokens_left / token_rate if token_rate else None,
        writer=writer,
    )


def _state_at_rest(folder: RunFolder, done: int, repeat: int) -> State:
    if folder.published:
        return "imported"
    if folder.expected is None:
        return "idle"
    return "finished" if done >= folder.expected * repeat else "stopped"


def all_status(root: Path) -> list[Status]:
    """Return the status of every run folder at or below a folder, sorted by path.

    Raises:
        BadInput: there is none.
    """
    found = find_run_folders(root)
    if not found:
        raise BadInput(f"There is no run folder (one with a run.json) at or below {root}; make one with evalkit run.")
    return [run_status(path) for path in found]


def describe(statuses: list[Status], root: Path) -> str:
    """Return one line per run: name, state, samples done, failures, rate, time left."""
    rows = [_row(one, root) for one in statuses]
    widths = [max(map(len, column)) for column in zip(*[row for row in rows if len(row) == _COLUMNS], strict=True)]
    widths = widths or [max(len(row[0]) for row in rows), 0]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


_COLUMNS = 6


def _row(one: Status, root: Path) -> list[str]:
    name = str(one.path.relative_to(root)) if one.path != root else one.path.name
    if one.state == "damaged":
        return [name, "damaged", one.problem]
    return [
        name,
        one.state,
        f"{one.done}/{one.expected}" if one.expected is not None else str(one.done),
        f"{one.failed} failed" if one.failed else "",
        f"{one.rate:.2f} samples/s" if one.rate else "",
        f"{duration(one.seconds_left)} left" if one.seconds_left is not None else one.writer or "",
    ]


def duration(seconds: float) -> str:
    """Return a time in two parts at most: "45 s", "12 min", "3 h 05 min"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _rates(folder: RunFolder, writer: str) -> tuple[float | None, float | None]:
    """Return samples and prompt tokens per second of the invocation that is running; it is known once it answers."""
    answering = folder.provenance[-1].get("answering") if folder.provenance else None
    if not answering or answering["writer"] != writer:
        return None, None
    new = [_tokens(one.length) for one in islice(folder.predictions(), answering["after"], None)]
    seconds = max((datetime.now(UTC) - datetime.fromisoformat(answering["since"])).total_seconds(), 1.0)
    return (len(new) / seconds, sum(new) / seconds) if new else (None, None)


def _tokens(length: str) -> int:
    return max(1, parse_length(length))
