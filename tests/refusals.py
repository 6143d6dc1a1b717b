"""Refusals in the first second: by a process that has loaded neither torch nor transformers."""

import subprocess
import sys
from collections.abc import Sequence

_SCRIPT = """
import sys
from evalkit.cli.commands import main
try:
    main(sys.argv[1:])
finally:
    print("loaded", {"transformers", "torch"} & sys.modules.keys())
"""


def refused_at_once(words: Sequence[object]) -> str:
    """Return what a command says that ends with exit code 2 and has loaded nothing heavy until then."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *map(str, words)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert "loaded set()" in done.stdout
    return done.stderr
