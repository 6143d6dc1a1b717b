"""Watch what a command writes below a folder, system call by system call, and kill it at one of them.

What runs is traced (ptrace) with all processes that it starts; a seccomp filter lets it stop only at calls that change
files, so that also those of C++ and Rust are seen (parquet, safetensors, torch). Linux on x86-64.
"""

import ctypes
import os
import platform
import re
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

Mode = Literal["before", "half", "after"]

# Numbers of calls (asm/unistd_64.h), and where their target stands: the argument with a descriptor, or with a path and
# the one with the folder that the path begins in.
_OF_DESCRIPTORS = {
    "write": (1, 0), "pwrite64": (18, 0), "writev": (20, 0), "pwritev": (296, 0), "sendfile": (40, 0), "fsync": (74, 0),
    "fdatasync": (75, 0), "ftruncate": (77, 0), "fallocate": (285, 0), "copy_file_range": (326, 2),
}  # fmt: skip
_OF_PATHS = {
    "truncate": (76, 0, None), "rename": (82, 0, None), "mkdir": (83, 0, None), "rmdir": (84, 0, None),
    "link": (86, 0, None), "unlink": (87, 0, None), "mkdirat": (258, 1, 0), "unlinkat": (263, 1, 0),
    "renameat": (264, 1, 0), "renameat2": (316, 1, 0), "open": (2, 0, None), "openat": (257, 1, 0),
}  # fmt: skip
_FLAGS = {"open": 1, "openat": 2}
"""The argument with the flags: an open that only reads is let pass."""
_LENGTHS = {"write": 2, "pwrite64": 2, "writev": 2, "pwritev": 2, "sendfile": 3, "copy_file_range": 4}
"""The argument that says how much is written."""
_NAMES = {call[0]: name for name, call in (_OF_DESCRIPTORS | _OF_PATHS).items()}
_ARGUMENTS = (14, 13, 12, 7, 9, 8)
"""Places in the registers (struct user_regs_struct of sys/user.h)."""
_NUMBER = 15

_TRACEME, _CONT, _GETREGS, _SETREGS, _SYSCALL, _SETOPTIONS = 0, 7, 12, 13, 24, 0x4200
_FOLLOW = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000  # SYSGOOD, FORK, VFORK, CLONE, EXEC, SECCOMP, EXITKILL
_EVENT_SECCOMP, _WALL = 7, 0x40000000
_NEVER = 10**9


class Call(NamedTuple):
    """A call that changes files."""

    name: str
    path: str
    """Below the folder, with a hash sign for each number and "" for the folder itself."""


@dataclass(frozen=True)
class Kill:
    """When to kill."""

    number: int = _NEVER
    """Which call, counted from 0."""
    mode: Mode = "before"
    everything: bool = False
    """All processes, or only the one that makes the call."""
    seconds: float = _NEVER
    """After so long, whatever goes on."""


@dataclass(frozen=True)
class Life:
    """What was seen of a command from its start to its end."""

    calls: tuple[Call, ...]
    killed: bool
    code: int
    """The exit code, below zero for a signal."""
    hung: bool
    """It, or a process that it had started, was still there after the patience."""


def missing() -> str | None:
    """Return why nothing can be traced here; None where it can."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "system calls are traced on Linux and x86-64 only"
    try:
        live(lambda: None, Path.cwd(), Path(os.devnull))
    except OSError as error:
        return f"no process may be traced here ({error.strerror})"
    return None


def live(
    act: Callable[[], None], folder: Path, output: Path, kill: Kill | None = None, patience: float = 240.0
) -> Life:
    """Do something in a process of its own, until it and all that it has started have ended.

    Args:
        act: what is done; it may become another program (``os.exec``).
        folder: where it is done; calls on files below it are counted.
        output: the file that output and errors go to.
        kill: when it is killed; None: never.
        patience: seconds after which everything is killed and counts as hung.

    Raises:
        OSError: it cannot be traced.
    """
    kill = kill or Kill()
    main = _start(act, folder, output)
    alive = {main}
    told: dict[str, bool] = {"hung": False, "killed": False}

    def end(why: str) -> None:
        told[why] = True
        for pid in tuple(alive):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    timers = [threading.Timer(patience, end, ["hung"]), threading.Timer(min(kill.seconds, 1e6), end, ["killed"])]
    for timer in timers:
        timer.daemon = True
        timer.start()
    calls: list[Call] = []
    code = 0
    root = os.path.realpath(folder)
    while alive:
        try:
            pid, status = os.waitpid(-1, _WALL)
        except ChildProcessError:
            break
        if not os.WIFSTOPPED(status):
            alive.discard(pid)
            if pid == main:
                code = os.waitstatus_to_exitcode(status)
            continue
        request, deliver, stopped = _CONT, 0, os.WSTOPSIG(status)
        with suppress(ProcessLookupError):  # it was killed
            if pid not in alive:  # new, and stopped because it is traced
                alive.add(pid)
            elif status >> 16 == _EVENT_SECCOMP:
                registers = _registers(pid)
                call = _call(pid, registers, root)
                if call is not None:
                    if len(calls) == kill.number:
                        request = _at_the_call(pid, registers, call, kill, end, told)
                    calls.append(call)
            elif stopped == signal.SIGTRAP | 0x80:
                _kill(pid, kill, end, told)
            elif status >> 16 == 0:
                deliver = stopped
            _ptrace(request, pid, 0, deliver)
    for timer in timers:
        timer.cancel()
    return Life(tuple(calls), told["killed"], code, told["hung"])


def _at_the_call(pid: int, registers: Any, call: Call, kill: Kill, end: Any, told: dict[str, bool]) -> int:
    """Kill before the call, or return the request that lets it be made, whole or half, and stops behind it."""
    if kill.mode == "before":
        _kill(pid, kill, end, told)
        return _CONT
    if kill.mode == "half" and call.name in _LENGTHS:
        registers[_ARGUMENTS[_LENGTHS[call.name]]] //= 2
        _ptrace(_SETREGS, pid, 0, ctypes.addressof(registers))
    return _SYSCALL


def _kill(pid: int, kill: Kill, end: Any, told: dict[str, bool]) -> None:
    if kill.everything:
        end("killed")
    else:
        told["killed"] = True
        os.kill(pid, signal.SIGKILL)


def _start(act: Callable[[], None], folder: Path, output: Path) -> int:
    """Start a traced process, which waits before it acts, and return its id."""
    program = _filter()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.chdir(folder)
            for descriptor in (1, 2):
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644), descriptor)
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # which a test runner may have replaced
            _ptrace(_TRACEME, 0, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            for order in ((38, 1, 0, 0, 0), (22, 2, ctypes.addressof(program), 0, 0)):  # no new privileges; the filter
                if _libc.prctl(*map(ctypes.c_ulong, order)):
                    os._exit(126)
            act()
            sys.stdout.flush()
        except BaseException as error:  # noqa: BLE001  # nothing of the parent's may be unwound
            _end_as_python_does(error)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSTOPPED(status):
        raise OSError(1, "the system refuses ptrace")
    _ptrace(_SETOPTIONS, child, 0, _FOLLOW)
    _ptrace(_CONT, child, 0, 0)
    return child


def _end_as_python_does(error: BaseException) -> None:
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_libc: Any = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if _libc.ptrace(request, pid, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _filter() -> Any:
    """Return the program (linux/seccomp.h) that stops at the calls of interest and lets all others pass."""
    load, equal, any_bit, end = 0x20, 0x15, 0x45, 0x06
    stop, allow = (end, 0, 0, 0x7FF00000), (end, 0, 0, 0x7FFF0000)
    code = [(load, 0, 0, 4), (equal, 1, 0, 0xC000003E), allow, (load, 0, 0, 0)]
    for name, call in (_OF_DESCRIPTORS | _OF_PATHS).items():
        if name in _FLAGS:
            flags = (load, 0, 0, 16 + 8 * _FLAGS[name])
            writes = (any_bit, 0, 1, os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            code += [(equal, 0, 4, call[0]), flags, writes, stop, allow]
        else:
            code += [(equal, 0, 1, call[0]), stop]
    code.append(allow)
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(packed)))
    program.code = packed  # keeps it
    return program


def _registers(pid: int) -> Any:
    registers = (ctypes.c_ulonglong * 27)()
    _ptrace(_GETREGS, pid, 0, ctypes.addressof(registers))
    return registers


def _call(pid: int, registers: Any, root: str) -> Call | None:
    """Return the call that a process is about to make, where it is on a file below a folder."""
    name = _NAMES[registers[_NUMBER]]
    try:
        path = _target(pid, name, [registers[place] for place in _ARGUMENTS])
    except OSError:  # a descriptor that is not open: the call fails
        return None
    inside = os.path.relpath(path, root)
    if inside.startswith(".."):
        return None
    return Call(name, re.sub(r"\d+", "#", inside))


def _target(pid: int, name: str, arguments: Sequence[int]) -> str:
    if name in _OF_DESCRIPTORS:
        return os.readlink(f"/proc/{pid}/fd/{arguments[_OF_DESCRIPTORS[name][1]] & 0xFFFFFFFF}")
    _, place, beginning = _OF_PATHS[name]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(arguments[place])
        path = os.fsdecode(memory.read(4096).partition(b"\0")[0])
    if os.path.isabs(path):
        return path
    descriptor = 0xFFFFFF9C if beginning is None else arguments[beginning] & 0xFFFFFFFF
    start = "cwd" if descriptor == 0xFFFFFF9C else f"fd/{descriptor}"
    return os.path.join(os.readlink(f"/proc/{pid}/{start}"), path)
