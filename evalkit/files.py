"""What several wings do with files, texts and processes."""

import errno
import glob
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_MOST_TRIES = 500
"""To make a draft, 10 ms apart: removing a large one that was left takes a while."""


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file that is, after any interruption, either the old one or the new one as a whole.

    Halves of surrogate pairs, which replies and names of files may hold and UTF-8 has not, stand there as \\udc80.

    Raises:
        OSError: it cannot be written; the old one stays, and no draft of the new one.
    """
    with drafted(path) as draft, draft.open("wb") as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


@contextmanager
def drafted(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a draft to write, which takes the place of a file, or of a folder, once all of it was written.

    Each process has its own, should two write the same file. Its lock is held until the end, and the system frees it
    when the process is killed: that tells a draft that is being written from litter, which the next writer of the same
    file removes.

    Raises:
        OSError: it cannot be written; what was there stays, and no draft.
    """
    for litter in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            if (descriptor := _locked(litter)) is not None:
                remove(litter)
                os.close(descriptor)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    descriptor = _made_and_locked(draft, folder=folder)
    try:
        yield draft
        if folder:
            remove(path)
        draft.replace(path)
    except BaseException:
        remove(draft)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, where it is there and may be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def is_draft_of(path: Path, name: str) -> bool:
    """Tell whether a killed process left this file while ``drafted`` wrote one of a name beside it."""
    return re.fullmatch(rf"{re.escape(name)}\.\d+\.tmp", path.name) is not None and path.is_file()


def is_draft_of_weights(path: Path) -> bool:
    """Tell whether a killed process left this file while safetensors wrote one beside it, as .tmpAb12Cd."""
    return re.fullmatch(r"\.tmp\w{6}", path.name) is not None and path.is_file()


def _made_and_locked(draft: Path, *, folder: bool) -> int | None:
    """Make a draft and take its lock; once more where another writer took it for litter before it was locked."""
    for _ in range(_MOST_TRIES):
        if folder:
            draft.mkdir(exist_ok=True)
        else:
            draft.touch()
        try:
            return _locked(draft)
        except (BlockingIOError, FileNotFoundError):
            time.sleep(0.01)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(draft))


def _locked(path: Path) -> int | None:
    """Take the lock of a file or folder, and return the descriptor that holds it.

    None where there are no such locks, on Windows and in some file systems: there nothing is taken for litter.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: there is no such file, or another one has taken its place meanwhile.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, (BlockingIOError, FileNotFoundError)):
            raise
        return None
    return descriptor


def _sync_folder(path: Path) -> None:
    """Make new names in a folder durable; Windows does so by itself and cannot open a folder."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def slug(name: str) -> str:
    """Return a name as it stands in file names: "Randomized YaRN, paper's range" is "randomized-yarn-paper-s-range"."""
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-.")


def file_name(name: str, odd: str = r"[^\w.@+-]", instead: str = "_") -> str:
    """Return somebody's name for something as that of one file or folder, which is in no other folder: ".." is "__".

    Args:
        name: of an arm, a model, a subset.
        odd: regular expression of what is replaced.
        instead: what it is replaced by.
    """
    return re.sub(odd, instead, name) if name.strip(".") else "_" * len(name)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none, without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def user_cache() -> Path:
    """Return $EVALKIT_CACHE, or evalkit's folder in the user's cache ($XDG_CACHE_HOME, else ~/.cache)."""
    if chosen := os.environ.get("EVALKIT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evalkit"
