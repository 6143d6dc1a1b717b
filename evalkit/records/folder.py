"""The run folder: what was asked and answered, kept so that no interruption, at any moment, loses a finished sample.

    results/<name>/run.json            schema, arm, config, fingerprint parts and their hash, provenance
    results/<name>/predictions.jsonl   append-only, one fsync'd line per finished sample: the truth (see lines.py)
    results/<name>/scores.parquet      derived from it, rebuilt at will (see scores.py)
    results/<name>/prompts/            one whole prompt per cell, for a person to read

One process writes a folder at a time. Repeating a command resumes it: what is recorded is not asked again, unless it
failed for a reason that may have passed. A folder holds one run, so other settings (another fingerprint) are refused;
more lengths, subsets or samples of the same run (its scope) are not. A run that is refused before its first answer (by
an engine that cannot serve it) takes the folder that it made away again.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from evalkit.errors import BadInput, EngineError, RunFolderError
from evalkit.files import file_name, remove, write_whole
from evalkit.records import lines, scores
from evalkit.records.fingerprint import as_json, differences, fingerprint_sha
from evalkit.records.latest import MAX_ATTEMPTS, Latest, State
from evalkit.records.run_file import RUN, SCHEMA, read_run
from evalkit.types import Key, Prediction

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_PREDICTIONS, _SCORES, _PROMPTS = "predictions.jsonl", "scores.parquet", "prompts"
_LOCK, _WRITER = "run.lock", "writer.txt"
_LOOK_SECONDS = 0.05
"""For which a lock must be held to be a writer's: who looks takes it too, for a moment, and is none."""
_ENGINE = "engine."
"""What begins the names of those parts of the fingerprint that are known only once an engine runs."""


class RunFolder:
    """A run folder, opened to write (``start``, a context manager) or only to read (``open``)."""

    path: Path
    arm: str
    """The name under which the report compares this run."""
    config: dict[str, Any]
    """The settings of the latest invocation; ``config["scope"]`` is the union over all of them."""
    fingerprint: dict[str, Any]
    provenance: list[dict[str, Any]]
    """One entry per invocation, oldest first."""
    notices: list[str]
    """What a person should be told: a tail that was cut off."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self.arm = run["arm"]
        self.config = run["config"]
        self.fingerprint = run["fingerprint"]["parts"]
        self.provenance = run["provenance"]
        self.notices = []
        self._latest: dict[int, Latest] = {}  # by which time it was asked; nothing before it is read
        self._size = 0  # bytes of predictions.jsonl that hold sound lines
        self._file: BinaryIO | None = None  # open exactly while this object may write
        self._lock: Any = None
        self._is_new = False  # made by this object

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a run folder to read it; another process may be writing it.

        Raises:
            RunFolderError: no run folder, or one of another schema version, or one whose ``run.json`` is damaged.
        """
        path = Path(path)
        return cls(path, read_run(path))

    @classmethod
    def start(
        cls,
        path: Path | str,
        *,
        arm: str,
        config: Mapping[str, Any],
        fingerprint: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Self:
        """Create a run folder, or resume the one that is there, as its only writer until ``close``.

        Args:
            path: The folder; its parents are created.
            arm: The name under which the report compares this run.
            config: Settings for people and for the report. ``config["scope"]`` says what is asked, in mappings, lists
                and numbers; it becomes the union with what was asked before (lists joined, numbers the larger).
            fingerprint: Flat parts, JSON scalars or small lists, that decide the answers; see ``fingerprint.py``.
            provenance: This invocation: command, time, versions, machine, settings that cannot change a score.

        Raises:
            RunFolderError: the folder is being written by another process, holds another run or another schema
                version, is damaged before its last line, or cannot be written.
        """
        path = Path(path)
        is_new = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
            try:
                folder = cls._start_locked(path, lock, arm, as_json(config), as_json(fingerprint), as_json(provenance))
                folder._is_new = is_new
                return folder
            except BaseException:
                if is_new and not (path / RUN).exists():
                    remove(path)
                _unlock(path, lock)
                raise
        except OSError as error:
            raise _not_written(f"Run folder {path}", error) from error

    @classmethod
    def _start_locked(
        cls, path: Path, lock: Any, arm: str, config: dict[str, Any], parts: dict[str, Any], provenance: dict[str, Any]
    ) -> Self:
        for draft in (*path.glob(f"{RUN}*.tmp"), *(path / _PROMPTS).glob("*.tmp")):  # of a writer that was killed
            draft.unlink(missing_ok=True)
        (path / _WRITER).write_text(this_process(), encoding="utf-8")
        run: dict[str, Any] = {"schema": SCHEMA, "arm": arm, "config": config, "provenance": [provenance]}
        run["fingerprint"] = {"sha256": fingerprint_sha(parts), "parts": parts}
        if (path / RUN).exists():
            before = read_run(path)
            if before["schema"] != SCHEMA:
                raise RunFolderError(
                    f"Run folder {path} was written by an earlier evalkit (schema {before['schema']}, now {SCHEMA}), "
                    "which did not record what its engine was: it can be reported, not continued; use another --out."
                )
            recorded = before["fingerprint"]["parts"]
            engine = {name: value for name, value in recorded.items() if name.startswith(_ENGINE)}
            _refuse_another_run(path, {"arm": before["arm"], **recorded}, {"arm": arm, **parts, **engine})
            run["fingerprint"] = before["fingerprint"]
            run["config"] = {**before["config"], **config}
            run["config"]["scope"] = _union(before["config"].get("scope", {}), config.get("scope", {}))
            run["provenance"] = [*before["provenance"], provenance]
        else:
            _refuse_strangers(path)
            (path / _PREDICTIONS).touch()  # before run.json: a folder that has run.json always has both
        folder = cls(path, run)
        folder.recorded()
        if not any(name.startswith(_ENGINE) for name in folder.fingerprint):
            folder.accept()
        folder._lock = lock
        folder._file = (path / _PREDICTIONS).open("ab", buffering=0)
        folder._file.truncate(folder._size)
        os.fsync(folder._file.fileno())
        return folder

    def identify(self, engine: Mapping[str, Any]) -> None:
        """Complete the fingerprint with what the engine was found to be, before its first answer is recorded.

        Args:
            engine: ``Backend.identity()``.

        Raises:
            RunFolderError: the answers that are recorded came from another engine; the differences are named, and the
                folder stays as it was.
        """
        parts = {f"{_ENGINE}{name}": as_json(value) for name, value in engine.items()}
        known = {name: value for name, value in self.fingerprint.items() if name.startswith(_ENGINE)}
        if known and self.recorded():
            _refuse_another_run(self.path, known, parts)
        self.fingerprint = {name: value for name, value in self.fingerprint.items() if name not in known} | parts
        self.accept()

    def accept(self) -> None:
        """Write down this invocation: its settings, scope and provenance.

        ``start`` does so where no engine is known yet, ``identify`` once the engine proves to be the same.

        Raises:
            RunFolderError: it cannot be written.
        """
        fingerprint = {"sha256": fingerprint_sha(self.fingerprint), "parts": self.fingerprint}
        run = {"schema": SCHEMA, "arm": self.arm, "config": self.config, "provenance": self.provenance}
        try:
            write_whole(self.path / RUN, json.dumps(run | {"fingerprint": fingerprint}, indent=1, allow_nan=False))
        except OSError as error:
            raise _not_written(self.path / RUN, error) from error

    def add_provenance(self, facts: Mapping[str, Any]) -> None:
        """Add to what ``run.json`` says of this invocation: what is known only once a model is loaded.

        Raises:
            RunFolderError: it cannot be written.
        """
        self.provenance[-1] |= as_json(facts)
        self.accept()

    def close(self) -> None:
        """Let another writer in. Everything recorded is on the disk already."""
        if self._file is not None:
            self._file.close()
            self._file = None
            _unlock(self.path, self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_new and not self._size and isinstance(error, BadInput | EngineError):
            remove(self.path)
        self.close()

    @property
    def expected(self) -> int | None:
        """How many samples the run has in all, by its own count; None where it was not made by ``evalkit run``."""
        cells = self.config.get("scope", {}).get("cells")
        return sum(cells.values()) if cells else None

    def writer(self) -> str | None:
        """Return who is writing the folder now, such as "process 12 on node3"; None where nobody is.

        A writer's name that lies there is believed only while the lock is held: a killed process leaves its name.
        """
        from filelock import FileLock, Timeout

        try:
            name = (self.path / _WRITER).read_text(encoding="utf-8")
            with FileLock(self.path / _LOCK).acquire(timeout=_LOOK_SECONDS, poll_interval=_LOOK_SECONDS / 5):
                return None
        except Timeout:
            return name
        except OSError:  # nobody has begun to write, or the folder may only be read
            return None

    @property
    def is_closed(self) -> bool:
        """Whether its last writer came to the end: neither at work nor killed."""
        return not (self.path / _WRITER).exists()

    @property
    def published(self) -> bool:
        """True where the answers were published by others and imported, not made here."""
        return bool(self.config.get("published", False))

    def predictions(self) -> Iterator[Prediction]:
        """Stream every attempt in the order in which they finished; a bad last line is left out.

        Raises:
            RunFolderError: a damaged line with others after it, or no predictions file.
        """
        return (line.prediction for line in lines.read(self.path / _PREDICTIONS) if line.prediction)

    def require(self, parts: Mapping[str, Any], kinds: tuple[str, ...]) -> None:
        """Refuse a run of which some parts of the fingerprint are known already, and differ.

        Args:
            parts: those that are known.
            kinds: what their names begin with: all parts that are called so are known.

        Raises:
            RunFolderError: one differs.
        """
        recorded = {name: value for name, value in self.fingerprint.items() if name.startswith(kinds)}
        _refuse_another_run(self.path, recorded, as_json(parts))

    def recorded(self) -> Latest:
        """Return the latest attempt at every key; read once, then kept up to date with what this object appends.

        Repeats (``--repeat``) are not among them; see ``repeats``.

        Raises:
            RunFolderError: a damaged line with others after it, or no predictions file.
        """
        if not self._latest:
            self._latest[1] = Latest(self.path / _PREDICTIONS)
            for line in lines.read(self.path / _PREDICTIONS):
                if line.prediction is None:
                    self.notices.append(
                        f"The last line of {self.path / _PREDICTIONS} is unfinished or damaged "
                        f"({line.end - self._size} bytes) and cut off; its sample counts as not asked."
                    )
                    break
                self._remember(line.prediction, self._size)
                self._size = line.end
        return self._latest[1]

    def repeats(self) -> Mapping[int, Latest]:
        """Return the latest attempt at every repeat, by which time it was asked, from 2 on, and by key.

        Raises:
            RunFolderError: as ``recorded``.
        """
        self.recorded()
        return {repeat: latest for repeat, latest in self._latest.items() if repeat != 1}

    def states(self) -> Iterator[tuple[Key, State]]:
        """Yield the key and state of the latest attempt at every sample and every repeat; reads no answers.

        Raises:
            RunFolderError: as ``recorded``.
        """
        self.recorded()
        for latest in self._latest.values():
            yield from latest.states()

    def _remember(self, prediction: Prediction, start: int) -> None:
        if prediction.repeat not in self._latest:
            self._latest[prediction.repeat] = Latest(self.path / _PREDICTIONS)
        self._latest[prediction.repeat].remember(prediction, start)

    def state(self, key: Key, repeat: int = 1) -> State | None:
        """Return the state of the latest attempt at a sample, or at a repeat of it; None where there is none."""
        self.recorded()
        return self._latest[repeat].state(key) if repeat in self._latest else None

    def needs_asking(self, key: Key, repeat: int = 1, max_attempts: int = MAX_ATTEMPTS) -> bool:
        """Return whether ``key`` has no answer yet and may have one: never asked, or failed and retryable."""
        last = self.state(key, repeat)
        return last is None or last.may_be_asked(max_attempts)

    def next_attempt(self, key: Key, repeat: int = 1) -> int:
        """Return the number that another attempt at ``key`` has: 1 for the first."""
        last = self.state(key, repeat)
        return 1 if last is None else last.attempt + 1

    def append(self, prediction: Prediction) -> None:
        """Record one prediction; on return it is on the disk.

        Raises:
            RunFolderError: the disk is full or fails; the file then ends where it ended before.
        """
        self.extend([prediction])

    def extend(self, predictions: Sequence[Prediction]) -> None:
        """Record many predictions and force them to the disk once: for imports, where nothing is lost by repeating.

        Raises:
            RunFolderError: the disk is full or fails; none of them is recorded then.
        """
        assert self._file is not None, "a run folder is written between start and close"
        encoded = [lines.encode(prediction) for prediction in predictions]
        rest = memoryview(b"".join(encoded))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path / _PREDICTIONS, self._size)
            raise RunFolderError(
                f"{self.path / _PREDICTIONS} cannot be extended ({error.strerror}): the {len(self.recorded())} samples "
                f"recorded so far are safe; make room and repeat the command to go on from there."
            ) from error
        for prediction, line in zip(predictions, encoded, strict=True):
            self._remember(prediction, self._size)
            self._size += len(line)

    def score_table(self, score: scores.Scoring, scorer_version: str) -> "pa.Table":
        """Return the long table of all scores, sorted by key; see ``scores.table`` for its columns.

        The same answers give the same rows, in whatever order they finished.
        """
        recorded = self.recorded()
        source = scores.Source(scorer_version, self._size, scores.digest(self.path / _PREDICTIONS, self._size))
        return scores.table(recorded.values(), score, source)

    def keep_scores(self, table: "pa.Table") -> None:
        """Keep what ``score_table`` returned as ``scores.parquet``. Needs no lock.

        Raises:
            RunFolderError: the file cannot be written; the scores that were there stay.
        """
        try:
            scores.write(table, self.path / _SCORES)
        except OSError as error:
            raise _not_written(self.path / _SCORES, error) from error

    def read_scores(self, scorer_version: str, columns: Sequence[str] | None = None) -> "pa.Table | None":
        """Return the stored scores, or None when they must be computed again; never reads the predictions' text.

        None: there are none, or the file is damaged, of another scorer version, or not made from the predictions that
        the folder holds now.
        """
        return scores.read(self.path / _SCORES, self.path / _PREDICTIONS, scorer_version, columns)

    def has_other_scores(self, table: "pa.Table") -> bool:
        """Whether there is a file of scores, sound or not, made from other answers or by other rules than a table."""
        return (self.path / _SCORES).exists() and not scores.are_of(self.path / _SCORES, table)

    def frame(self) -> "pd.DataFrame":
        """Return the latest attempts, one row each, with the columns of ``Prediction``."""
        import pandas as pd

        latest = list(self.recorded().values())
        return pd.DataFrame({name: [getattr(p, name) for p in latest] for name in lines.FIELDS})

    def save_prompt(self, cell: str, text: str) -> None:
        """Keep one whole prompt of a cell (such as "qa1@16k") for a person to read; the first one stays.

        Raises:
            RunFolderError: it cannot be written.
        """
        path = self.path / _PROMPTS / f"{file_name(cell)}.txt"
        try:
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                write_whole(path, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise _not_written(path, error) from error


def this_process() -> str:
    """Return the name under which this process writes a folder."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def find_run_folders(root: Path | str) -> list[Path]:
    """Return the run folders at or below ``root``, sorted by path.

    Raises:
        BadInput: there is no such folder.
    """
    if not Path(root).is_dir():
        raise BadInput(f"There is no folder {root}.")
    return sorted(path.parent for path in Path(root).rglob(RUN))


def _not_written(what: Path | str, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"{what} cannot be written ({error.strerror or error}); the samples recorded so far are safe: make room, or "
        "use another folder, and repeat the command."
    )


def _lock(path: Path) -> Any:
    """Take the lock of a folder. The system frees it when its holder ends, however it ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(timeout=10 * _LOOK_SECONDS)
    except Timeout:
        holder = "another process"
        with suppress(OSError):
            holder = (path / _WRITER).read_text(encoding="utf-8") or holder
        raise RunFolderError(
            f"Run folder {path} is being written by {holder}; wait for it, end it, or use another folder."
        ) from None
    return lock


def _unlock(path: Path, lock: Any) -> None:
    (path / _WRITER).unlink(missing_ok=True)
    lock.release()


def _refuse_another_run(path: Path, recorded: dict[str, Any], asked: dict[str, Any]) -> None:
    if different := differences(recorded, asked):
        raise RunFolderError(
            f"Run folder {path} holds another run ({'; '.join(different)}); "
            f"use another --out for this one, or repeat the settings that the folder was made with."
        )


def _refuse_strangers(path: Path) -> None:
    """Refuse a folder that has no run.json and holds more than what a start that was killed leaves behind."""
    names = {entry.name for entry in path.iterdir()} - {_LOCK, _WRITER}
    if _PREDICTIONS in names and not (path / _PREDICTIONS).stat().st_size:
        names.remove(_PREDICTIONS)
    if names:
        raise RunFolderError(
            f"{path} has no {RUN} but holds {min(names)}, so it is not a run folder; name a new or empty folder."
        )


def _union(before: Any, now: Any) -> Any:
    """Return a scope that covers both."""
    if isinstance(before, dict) and isinstance(now, dict):
        return {**before, **{name: _union(before[name], now[name]) if name in before else now[name] for name in now}}
    if isinstance(before, list) and isinstance(now, list):
        return before + [item for item in now if item not in before]
    if isinstance(before, int) and isinstance(now, int):
        return max(before, now)
    return now
