"""vLLM's own OpenAI-compatible server, in a process of its own, asked by the server backend."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from itertools import islice
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

from evalkit.errors import BadInput, EngineError
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.served import served_rope
from tests.backends import crosscheck, hf
from tests.backends import server as serving
from tests.vllm.asking import random_prompt
from tests.vllm.conftest import LONGEST, WINDOW, YARN
from tests.vllm.test_adapter import write_adapter

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@contextlib.contextmanager
def started(tiny, folder, *more):
    """A server, and its process; its log goes to a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(tiny.path), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", str(LONGEST)),
        *("--kv-cache-memory-bytes", str(64 * 2**20)),
        *more,
    ]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (URLError, TimeoutError, ConnectionError):
                time.sleep(1)
        family = psutil.Process(process.pid).children(recursive=True)
        yield f"http://127.0.0.1:{port}", process
        for child in family:  # a killed server leaves its engine behind
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    """A server that serves YaRN at factor 4, and its process."""
    rule = json.dumps(served_rope(tiny, YARN, LONGEST).mapping)
    with started(tiny, tmp_path_factory.mktemp("server"), "--hf-overrides", rule) as (url, process):
        yield url, process


def opened(tiny, url, **options):
    encoder = Encoder.open(tiny.path)
    return serving(tiny, encoder, url, WINDOW if tiny.adapter else LONGEST, logprobs=True, **options)


def test_a_server_answers_as_the_engine_in_our_own_process_does(tiny, server, backend):
    client = opened(tiny, server[0])
    try:
        prompts = [random_prompt(n, length) for n, length in enumerate([1000, 700, 400, 250, 40])]
        report = crosscheck(client, backend, prompts)
        identity, settings = client.identity(), client.settings()
        overflow = next(c for _, c in client.generate([random_prompt(1, 1020)]))
    finally:
        client.close()
    assert report.agreeing >= report.compared - 1 == 4, report.to_text()
    assert report.largest_logprob_gap < 5e-3
    assert (identity["model"], identity["software"], identity["versions"]) == ("tiny", "vllm", {"server": "0.32.0"})
    assert settings["max_model_len"] == LONGEST
    assert [w for w in client.warnings if "tokenizer" in w] == []
    assert overflow.error.startswith("context_overflow"), "the server would answer with 4 tokens and HTTP 200"


def test_the_server_is_asked_what_it_serves_before_any_work(tiny, server):
    with pytest.raises(BadInput, match="does not serve 'huge'; it serves tiny"):
        opened(tiny, server[0], model="huge")


def test_the_adapter_is_told_from_its_base_and_from_one_that_changes_nothing(tiny, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", tiny.path, rank=4)
    idle = write_adapter(tmp_path / "idle", tiny.path, rank=4, a=0.0)
    adapted = Checkpoint.open(tiny.path, adapter=adapter)
    served = ("--enable-lora", "--lora-modules", f"lo={adapter}", f"idle={idle}")
    with started(tiny, tmp_path, "--max-model-len", str(WINDOW), *served) as (url, _):
        client = opened(adapted, url, model="lo")
        try:
            asked = [random_prompt(0, 40)]
            report = crosscheck(client, hf(tiny.path, adapter=adapter), asked)
            settings = client.settings()
        finally:
            client.close()
        assert report.agreeing == 1, report.to_text()
        assert (settings["adapter_shown"], settings["max_model_len"]) == (True, WINDOW)
        assert not any("adapter" in warning or "cut short" in warning for warning in client.warnings)
        with pytest.raises(BadInput, match=r"changes nothing: .* at http://.* \(as idle and tiny\)"):
            opened(Checkpoint.open(tiny.path, adapter=idle), url, model="idle")
        with pytest.raises(BadInput, match="serves tiny as a base, without the adapter"):
            opened(adapted, url, model="tiny")


def test_a_killed_server_ends_the_run_with_what_was_answered_kept(tiny, server):
    url, process = server
    client = opened(tiny, url, max_retries=3, concurrency=2)
    try:
        run = client.generate(random_prompt(n, 300, max_new_tokens=40) for n in range(40))
        answered = list(islice(run, 3))
        process.kill()
        killed = time.monotonic()
        with pytest.raises(EngineError, match="No server answers at"):
            answered.extend(run)
        assert time.monotonic() - killed < 60
    finally:
        client.close()
    assert all(completion.error is None for _, completion in answered)
