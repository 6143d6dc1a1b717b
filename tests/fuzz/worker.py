"""One process of a campaign: reads names of inputs, tries each in this process, and answers what happened."""

import faulthandler
import gc
import json
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.inputs import KINDS
from tests.fuzz.sound import Sound

SECONDS = 60
BYTES = 2 * 2**30
_SMALL = 200_000


def main() -> None:
    """Answer each name on stdin with a line "@@[name, fault]" on stdout."""
    seed, keep, show = sys.argv[1], Path(sys.argv[2]), "--show" in sys.argv
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    sys.stdout = sys.stderr
    with tempfile.TemporaryDirectory(prefix="evalkit-fuzz-") as place:
        _quiet(Path(place))
        sound = Sound.make(Path(place) / "sound")
        _bound_memory()
        for line in sys.stdin:
            name = line.strip()
            folder = Path(place) / "input"
            folder.mkdir()
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            fault = try_input(name, seed, sound, folder, keep, show)
            faulthandler.cancel_dump_traceback_later()
            shutil.rmtree(folder)
            print(f"@@{json.dumps([name, fault])}", file=answers)


def try_input(name: str, seed: str, sound: Sound, folder: Path, keep: Path, show: bool = False) -> str | None:
    """Make an input, run its commands, and return what was wrong; None where nothing was."""
    kind, number = name.split(":")
    commands = KINDS[kind][1](random.Random(f"{seed}:{kind}:{number}"), sound, folder)
    before = ""
    for command in commands:
        fault, output = run_command(command)
        passed = kind != "server" and before.startswith("check 0") and command[0] == "run"
        if fault is None and passed and output.startswith("exit 2"):
            fault = f"check passed, and run said: {_reason(output, folder)}"
        if show:
            print(f"{command}\n{output}\n{fault or ''}")
        if fault:
            _save(keep / f"{kind}-{seed}-{number}", command, output, folder, sound)
            return fault
        before = f"{command[0]} {output.removeprefix('exit ')}"
    return None


def run_command(command: list[str]) -> tuple[str | None, str]:
    """Run evalkit's command in this process; return what was wrong, and what it printed."""
    from click.testing import CliRunner

    from evalkit.cli.commands import main as evalkit

    with tempfile.TemporaryFile() as raw, _stdout_in(raw.fileno()):
        result = CliRunner().invoke(evalkit, command)
        raw.seek(0)
        past_python = raw.read().decode("utf-8", "replace")
    code, error = result.exit_code, result.exception
    printed = past_python + result.output
    output = f"exit {code}\n{printed}"
    if error is not None and not isinstance(error, SystemExit):
        trace = "".join(traceback.format_exception(error))
        fault = f"{type(error).__name__} at {_where(error)}"
        result = None
        error.__traceback__ = None
        gc.collect()  # a traceback holds what was loaded
        return fault, f"{output}\n{trace[-8000:]}"
    if code not in (0, 1, 2):
        return f"exit code {code}", output
    if bad := sorted({c for c in printed if not (c.isprintable() or c in "\n\t" or ord(c) > 0x3000)} - _PRINTED):
        return f"{bad[0]!r} reaches the terminal", output
    if code == 2 and (wrong := _no_sentence(result.stderr, command)):
        return wrong, output
    return None, output


@contextmanager
def _stdout_in(descriptor: int) -> Iterator[None]:
    """Let what libraries in other languages print past Python go to a file meanwhile."""
    kept = os.dup(1)
    os.dup2(descriptor, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


_PRINTED = {"\u2009", "\u202f", "\xa0", "\u2028"}


def _no_sentence(stderr: str, command: list[str]) -> str | None:
    """Say why a refusal is not one sentence; None where it is."""
    if command[0] == "check" and "evalkit: " not in stderr and "Error: " not in stderr:
        return None  # its report names the problems
    said = [line for line in stderr.splitlines() if line.startswith(("evalkit: ", "Error: "))]
    if len(said) != 1:
        return f"exit 2 with {len(said)} sentences"
    if stderr.rstrip().splitlines()[-1] != said[0]:
        return "a refusal of several lines"
    return f"a refusal of {len(said[0]) // 1000},000 characters" if len(said[0]) > 3000 else None


def _reason(output: str, folder: Path) -> str:
    lines = output.replace(str(folder), "").strip().splitlines()
    return lines[-1][:90]


def _where(error: BaseException) -> str:
    """Return the innermost place in the project's own code, and the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/evalkit/" in frame.filename and "site-packages" not in frame.filename]
    place = own[-1] if own else frames[-1]
    return f"{'/'.join(Path(place.filename).parts[-2:])}:{place.lineno} ({place.name})"


def _save(keep: Path, command: list[str], output: str, folder: Path, sound: Sound) -> None:
    """Keep what is spoilt, the command and what it printed, as small files."""
    shutil.rmtree(keep, ignore_errors=True)
    keep.mkdir(parents=True)
    (keep / "command.json").write_text(json.dumps(command))
    (keep / "output.txt").write_text(output.encode("utf-8", "backslashreplace").decode()[-20_000:])
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_size < _SMALL and "plots" not in file.parts:
            target = keep / "files" / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _quiet(place: Path) -> None:
    """Keep caches in the campaign's own folder, and take what every command imports out of the time of the first."""
    os.environ |= {"EVALKIT_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"HF_HOME": str(place / "hf"), "HF_DATASETS_CACHE": str(place / "datasets"), "MPLBACKEND": "agg"}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(place)
    import warnings

    warnings.simplefilter("ignore")
    import matplotlib.pyplot  # noqa: F401
    import torch  # noqa: F401

    import evalkit.report.build
    import evalkit.study.steps  # noqa: F401
    from evalkit.models import bounded
    from evalkit.study import cost

    _hear_transformers()
    bounded.CPU_SECONDS = 1  # so that many endless templates can be tried
    cost.run_cost.__defaults__ = (2.0,)  # seconds of building prompts for --dry-run, instead of 60


def _hear_transformers() -> None:
    """Let what transformers prints reach the stderr of each command, which is looked at, and not that of this process.

    It is imported behind evalkit here, as in the product, which sets how much it says.
    """
    from transformers import logging as of_transformers

    of_transformers.disable_default_handler()
    of_transformers.add_handler(logging.lastResort)


def _bound_memory() -> None:
    """Let this process take 2 GiB more than it has: what needs more fails with a MemoryError, which is a fault."""
    used = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData")
    )
    resource.setrlimit(resource.RLIMIT_DATA, (used + BYTES, used + BYTES))


if __name__ == "__main__":
    main()
