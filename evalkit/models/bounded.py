"""The first run of what a checkpoint brings along as a program, its chat template: in a child, within bounds.

Jinja's sandbox keeps a template from files and from Python's own objects; it does not keep one from looping for ever or
from filling the memory, even while it is compiled (``{{ 9 ** (9 ** 9) }}``). A forked child costs a few milliseconds.
"""

import os
import select
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

from evalkit.errors import BadInput

CPU_SECONDS = 5
"""A template takes milliseconds for a short conversation."""
MEMORY_BYTES = 2**30
"""Beyond what the process has."""
MAX_CHARACTERS = 1_000_000
"""Of the prompt of one short question; system prompts of templates have some thousands."""
_WALL_SECONDS = 60  # of a machine that is so busy that CPU_SECONDS of it take longer
_TOO_LONG, _TOO_LARGE = b"l", b"m"


def require_bounded(render: Callable[[], str], what: str) -> None:
    """Render once in a child process, and refuse what does not come to an end there.

    An error of the template itself is let pass: whoever renders next meets and explains it. Where a system cannot fork
    (Windows), nothing is tried.

    Args:
        render: makes a prompt; it must use nothing that threads of this process hold.
        what: "The chat template of ...", for messages.

    Raises:
        BadInput: it needs too much time or memory, or makes a text that no model would read.
    """
    if not hasattr(os, "fork"):
        return
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads; the child only runs Jinja
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _render_and_exit(render, writing)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], _WALL_SECONDS)
        said = os.read(reading, 1) if ready else b""
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)  # does nothing to one that has ended: it stays to be waited for
        _, status = os.waitpid(child, 0)
    if said == _TOO_LARGE or (ready and not said and os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGXCPU):
        raise BadInput(f"{what} fills more than {MEMORY_BYTES / 2**30:g} GiB for one short question; use another one.")
    if said == _TOO_LONG:
        raise BadInput(f"{what} makes more than {MAX_CHARACTERS:,} characters of one short question; use another one.")
    if not said:
        raise BadInput(
            f"{what} does not come to an end within {CPU_SECONDS} s for one short question; use another one."
        )


def _render_and_exit(render: Callable[[], str], writing: int) -> None:
    """Be the child: report in one byte how the rendering ended, and never return."""
    said = b"x"  # also for an error of the template's own
    try:
        _set_limits()
        said = b"." if len(render()) <= MAX_CHARACTERS else _TOO_LONG
    except MemoryError:
        said = _TOO_LARGE
    except BaseException:  # noqa: BLE001 - whatever it is, the child must not go on as its parent
        said = b"x"
    finally:
        os.write(writing, said)
        os._exit(0)


def _set_limits() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    # at the first limit SIGXCPU ends it, also inside of a single multiplication
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, used + CPU_SECONDS + 1))
    status = Path("/proc/self/status")
    if status.exists():  # Linux
        held = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData"))
        most = held * 1024 + MEMORY_BYTES
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
