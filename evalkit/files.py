"""What several wings do with files, texts and processes."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file that is, after any interruption, either the old one or the new one as a whole.

    Halves of surrogate pairs, which replies and names of files may hold and UTF-8 has not, stand there as \\udc80.

    Raises:
        OSError: it cannot be written; the old one stays, and no draft of the new one.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # of its own, should two processes write the same file
    try:
        with draft.open("wb") as file:
            file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


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
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-")


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
