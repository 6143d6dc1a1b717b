"""What this machine is, as far as numbers hang on it, and how it gets what it lacks."""

import os
import platform
import re
from pathlib import Path

_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


def processor() -> dict[str, str]:
    """Return the processor's model, and those of its instruction sets by which kernels are chosen.

    A training's seed names its result only on processors that take the same kernels: sums in another order part the
    weights within a few hundred steps.
    """
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return {"model": platform.processor() or platform.machine(), "instructions": ""}
    model = re.search(r"^model name\s*:\s*(.+)$", said, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", said, re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    return {
        "model": model[1].strip() if model else platform.machine(),
        "instructions": " ".join(name for name in _INSTRUCTION_SETS if name in has),
    }


def how_to_install(package: str) -> str:
    """Return the command for a package that is missing, in the versions that evalkit declares: "pip install 'x>=1'".

    It names the package and never an extra of evalkit's: on the package index that name is another project's.
    """
    from importlib import metadata

    try:
        declared = metadata.requires("evalkit") or []
    except metadata.PackageNotFoundError:  # run from its folder, not installed
        declared = []
    wanted = (line.partition(";")[0].strip() for line in declared if re.match(rf"{package}\b", line))
    return f"pip install '{next(wanted, package)}'"


def describe() -> str:
    """Return one line: system, cores, processor."""
    found = processor()
    instructions = f" ({found['instructions']})" if found["instructions"] else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {found['model']}{instructions}"
