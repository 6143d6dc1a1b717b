"""Rope settings that vLLM takes the wrong way without a word: each ends in a right run, or in a refusal before one.

The table that a real engine loads (in this process, four seconds each) is compared with frequencies that the test
spells out itself.
"""

from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import BadInput
from evalkit.models.backends.vllm.backend import compare_tables
from evalkit.models.backends.vllm.engine import VLLMOptions, engine_config, usable_vllm
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.formulas import RopeScaling, frequencies, vllm_mapping
from evalkit.models.rope.readback import TOLERANCE
from evalkit.models.rope.served import RopeRequest, served_rope
from tests.variants import variant
from tests.vllm.conftest import WINDOW

pytestmark = pytest.mark.vllm

THETA = 1e4
YARN_4X = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": WINDOW, "rope_theta": THETA}
AS_STORED = RopeRequest()


def scaling(rule: str, factor: float = 1.0, **details: Any) -> RopeScaling:
    return RopeScaling(rule=rule, theta=THETA, rotary_dim=32, original_length=WINDOW, factor=factor, **details)


def loaded_tables(
    checkpoint: Checkpoint, request: RopeRequest, length: int, *, dtype: str = "auto"
) -> list[dict[str, Any]]:
    """Return the rotary tables of an engine in this process, started as the backend starts its own."""
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    served = served_rope(checkpoint, request, length)
    version, device = usable_vllm()
    release = tuple(int(part) for part in version.split(".")[:2])
    config = engine_config(
        checkpoint,
        overrides=vllm_mapping(served.mapping, release, length),
        max_model_len=length,
        options=VLLMOptions(max_num_seqs=2, dtype=dtype),
        device=device,
    )
    engine = LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)
    try:
        return [table for worker in engine.collective_rpc("evalkit_rope_tables") for table in worker]
    finally:
        engine.engine_core.shutdown()


@pytest.mark.parametrize(
    ("config", "request_", "length", "right"),
    [
        # Named on the command line.
        ({}, RopeRequest(rule="none"), 512, scaling("none")),
        ({}, RopeRequest(rule="linear", factor=4), 1024, scaling("linear", 4.0)),  # an int crashes vLLM's rule
        ({}, RopeRequest(rule="ntk", factor=4.0), 1024, scaling("ntk", 4.0)),  # its ntk type has too short a table
        ({}, RopeRequest(rule="ntk-by-parts", factor=4.0), 1024, scaling("ntk-by-parts", 4.0)),
        ({}, RopeRequest(rule="yarn"), 700, scaling("yarn", 700 / 256)),  # a factor that is no whole number
        (
            {},
            RopeRequest(rule="yarn", factor=4.0, attention_factor=1.5),
            1024,
            scaling("yarn", 4.0, attention_factor=1.5),
        ),
        # Stored in a config.
        ({"rope_parameters": YARN_4X}, AS_STORED, 1024, scaling("yarn", 4.0)),  # max_position_embeddings left at 256
        (
            {"rope_parameters": None, "rope_theta": THETA, "rope_scaling": {**YARN_4X, "type": "yarn"}},
            AS_STORED,
            1024,
            scaling("yarn", 4.0),
        ),
        ({"rope_parameters": None, "rope_theta": THETA}, RopeRequest(rule="yarn"), 512, scaling("yarn", 2.0)),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": THETA}},
            AS_STORED,
            512,
            scaling("linear", 2.0),
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": THETA}},
            AS_STORED,
            WINDOW,
            scaling("none"),
        ),
    ],
)
def test_the_engine_loads_the_table_that_was_meant(tiny, tmp_path, monkeypatch, config, request_, length, right):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    folder = variant(
        Path(tiny.path), tmp_path / "model", drop=tuple(k for k, v in config.items() if v is None), **config
    )
    tables = loaded_tables(Checkpoint.open(folder), request_, length)
    [compared] = compare_tables(tables, {"": frequencies(right)}, positions=length, tolerance=TOLERANCE)
    assert compared["rows"] >= length


@pytest.mark.parametrize(
    ("config", "request_", "length"),
    [
        ({}, AS_STORED, 257),
        ({}, RopeRequest(rule="yarn", factor=3.0), 1024),  # vLLM takes it and runs off its table
        ({}, RopeRequest(rule="yarn", factor=1.0), 512),
        ({}, RopeRequest(rule="ntk", factor=2.0), 1024),
        ({"rope_parameters": {**YARN_4X, "factor": 3.0}, "max_position_embeddings": 1024}, AS_STORED, 1024),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": THETA}}, AS_STORED, 1024),
        ({"rope_parameters": {"rope_type": "ntk", "factor": 4.0, "rope_theta": THETA}}, AS_STORED, 512),
        ({"rope_parameters": {"factor": 4.0, "rope_theta": THETA}}, AS_STORED, 512),
    ],
)
def test_what_would_run_off_the_table_is_refused_before_an_engine_starts(tiny, tmp_path, config, request_, length):
    folder = variant(Path(tiny.path), tmp_path / "model", **config)
    with pytest.raises(BadInput):
        served_rope(Checkpoint.open(folder), request_, length)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_table_is_read_back_as_exactly_as_any(tiny, monkeypatch, dtype):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    [table] = tables = loaded_tables(tiny, RopeRequest(rule="yarn", factor=4.0), 1024, dtype=dtype)
    assert table["dtype"] == dtype
    compare_tables(tables, {"": frequencies(scaling("yarn", 4.0))}, positions=1024, tolerance=TOLERANCE)
