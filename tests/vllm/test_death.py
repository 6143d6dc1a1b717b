"""SIGKILL and SIGSTOP: an engine that dies or hangs holds nothing up and loses nothing, and a harness that dies leaves
no engine behind."""

import subprocess
import sys
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path

import psutil
import pytest

from evalkit.errors import EngineError
from evalkit.models.backends.vllm import engine as vllm_engine
from evalkit.models.rope.served import served_rope
from tests.backends import vllm
from tests.vllm.asking import random_prompt
from tests.vllm.conftest import YARN

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def engine_processes(harness: psutil.Process | None = None) -> set[psutil.Process]:
    """Return the engines that are children of a process, or of this one."""
    found = set()
    for child in (harness or psutil.Process()).children():
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if "EngineCor" in child.name() and child.status() != psutil.STATUS_ZOMBIE:
                found.add(child)
    return found


def test_an_engine_that_dies_or_hangs_is_noticed_started_again_and_asked_again_until_it_does_so_too_often(tiny):
    others = engine_processes()
    backend = vllm(tiny, YARN, 1024, max_num_seqs=4, max_restarts=1, stall_seconds=20)
    try:
        backend.switch_to(served_rope(tiny, YARN, 512))
        prompts = [random_prompt(n, 400, max_new_tokens=30) for n in range(24)]
        reference = {p.key: c.token_ids for p, c in backend.generate(prompts[:6])}
        run = backend.generate(prompts)
        answered = list(islice(run, 5))
        [hanging] = engine_processes() - others
        hanging.suspend()
        answered += list(run)  # a second engine takes over
        assert sorted(p.key for p, _ in answered) == sorted(p.key for p in prompts), "each once, none lost"
        assert all(c.error is None for _, c in answered)
        assert {p.key: c.token_ids for p, c in answered if p.key in reference} == reference
        assert backend.read_back[0]["attention_factor"] == pytest.approx(1.0693147, abs=1e-6), "factor 2, as switched"

        run = backend.generate(prompts)
        next(run)
        [dying] = engine_processes() - others  # the one that hung is gone
        dying.kill()
        killed = time.monotonic()
        with pytest.raises(EngineError, match="died, or did nothing for 20 s, 2 times"):
            list(run)
        assert time.monotonic() - killed < vllm_engine.DEATH_NOTICED_SECONDS + 10, "closing a dead engine included"
    finally:
        backend.close()


def test_an_engine_that_dies_before_any_answer_is_not_started_again(tiny):
    others = engine_processes()
    backend = vllm(tiny, max_num_seqs=4)
    try:
        [dying] = engine_processes() - others
        dying.kill()
        with pytest.raises(EngineError, match="before its first answer; it left no error, as a process that is killed"):
            list(backend.generate([random_prompt(1, 40)]))
        assert engine_processes() == others
    finally:
        backend.close()


@pytest.mark.parametrize("when", ["it answers", "its workers start"])
def test_the_engine_ends_when_the_harness_is_killed_while(tiny, when):
    script = Path(__file__).with_name("hold_an_engine.py")
    with subprocess.Popen([sys.executable, script, tiny.path], stdout=subprocess.PIPE, text=True) as harness:
        process = psutil.Process(harness.pid)
        if when == "it answers":
            assert "ready\n" in harness.stdout
        else:
            while not any(engine.children() for engine in engine_processes(process)):
                time.sleep(0.1)
        family = process.children(recursive=True)
        assert engine_processes(process)
        harness.kill()
    _, alive = psutil.wait_procs(family, timeout=300)  # of what is importing vLLM, once it is imported
    assert not alive
