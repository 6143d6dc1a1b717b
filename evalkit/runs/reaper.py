"""Ends the processes of a folder, and removes it, once the process that made it is gone: run as a program, beside it.

Ray's own way takes a minute where its driver is killed: two of its agents wait for a head that is gone with them.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AT_MOST_SECONDS = 5.0


@contextmanager
def reaped_folder() -> Iterator[Path]:
    """Give a folder for the logs of other processes; those that still have it open at the end, however it comes, die.

    It lies in /tmp: names of sockets in it may have about a hundred characters in all.
    """
    folder = tempfile.mkdtemp(prefix="evalkit-", dir="/tmp" if os.path.isdir("/tmp") else None)
    # Our end of the pipe closes with us; in a session of its own, no signal to all of us (Ctrl-C, timeout) reaches it.
    beside = subprocess.Popen([sys.executable, __file__, folder], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield Path(folder)
    finally:
        beside.communicate()


def _processes(folder: str, but: int) -> list[int]:
    """Return the processes but one that have a file of a folder open (Linux alone tells)."""
    found = set[int]()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # gone, or not ours
            if os.readlink(descriptor).startswith(f"{folder}/"):
                found.add(int(descriptor.parts[2]))
    return sorted(found - {but})


def _end(folder: str, maker: int) -> None:
    until = time.monotonic() + _AT_MOST_SECONDS
    while (left := _processes(folder, but=maker)) and time.monotonic() < until:
        for process in left:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)  # some may have been about to start others
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    maker = os.getppid()
    sys.stdin.read()
    _end(sys.argv[1], maker)
