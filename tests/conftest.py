"""Shared by all tests: one small checkpoint, and caches that stay inside the test's own folders."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with random weights, window 2k, as ``evalkit new-checkpoint`` writes it."""
    from evalkit.models.new_checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_checkpoint(folder, window=2048, seed=0)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep haystack caches away from the user's, and fail instead of reaching for a hub; no terminal is there."""
    import os

    os.environ["EVALKIT_CACHE"] = str(tmp_path_factory.mktemp("evalkit-cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # readline, which pytest loads, sets the width of a terminal for all children, past os.environ: sentences would be
    # broken to it.
    os.environ.pop("COLUMNS", None)
    os.unsetenv("COLUMNS")
