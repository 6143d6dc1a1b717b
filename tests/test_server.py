"""The server backend against a small real HTTP server that can misbehave in every way we have met."""

import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from evalkit.benchmarks.reasoning import is_unfinished
from evalkit.errors import BadInput, EngineError
from evalkit.models.backends import server as server_module
from evalkit.models.backends.server import ServerBackend, ServerOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.types import Prompt, Sample
from tests.backends import server as serving

WINDOW = 512


class FakeServer(ThreadingHTTPServer):
    """Answers "echo" and the last prompt id, the way vLLM's server does; ``trouble`` is dealt out first."""

    def __init__(self, tokenizer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokenizer = tokenizer
        self.models = [{"id": "tiny", "object": "model", "owned_by": "vllm", "max_model_len": WINDOW}]
        self.trouble: list[str] = []
        self.key: str | None = None
        self.takes_ids = True
        self.adds_bos = False
        self.shifts_ids = 0
        self.bodies: list[dict] = []
        self.running = self.most_running = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *_) -> None:
        pass

    def reply(self, status: int, body, *, kind="application/json", headers=(), length=None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length or len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = length is not None

    def misbehave(self) -> bool:
        with self.server.lock:
            trouble = self.server.trouble.pop(0) if self.server.trouble else ""
        if trouble == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif trouble == "silence":
            threading.Event().wait(1)
            self.close_connection = True
        elif trouble == "half body":
            self.reply(200, b'{"choices": [{"te', length=500)
        elif trouble == "half json":
            self.reply(200, b'{"choices": [{"te')
        elif trouble == "no choices":
            self.reply(200, {"choices": []})
        elif trouble == "only thoughts":
            message = {"content": None, "reasoning_content": "Mary went first to"}
            self.reply(200, {"choices": [{"message": message, "finish_reason": "length"}]})
        elif trouble == "html":
            self.reply(200, b"<html>please log in</html>", kind="text/html")
        elif trouble.isdigit():
            said = f"no {trouble}, key {self.headers['Authorization'].removeprefix('Bearer ')}"
            self.reply(int(trouble), {"error": {"message": said}}, headers=[("Retry-After", "0")])
        return bool(trouble)

    def do_GET(self) -> None:
        if self.path == "/v1/models" and self.server.key in (None, self.headers["Authorization"]):
            if not self.misbehave():
                self.reply(200, {"object": "list", "data": self.server.models})
        elif self.path == "/v1/models":
            self.reply(401, {"error": {"message": f"wrong key {self.headers['Authorization']}"}})
        elif self.path == "/version":
            self.reply(200, {"version": "0.32.0"})
        else:
            self.reply(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokenizer = self.server.tokenizer
        if self.path == "/tokenize":
            ids = tokenizer(body["prompt"], add_special_tokens=False).input_ids
            self.reply(200, {"tokens": [i + self.server.shifts_ids for i in ids]})
            return
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
        if not self.misbehave():
            self.answer(body)
        with self.server.lock:
            self.server.running -= 1

    def answer(self, body: dict) -> None:
        if self.path == "/v1/chat/completions":
            said = f"echo {body['messages'][-1]['content'][-7:]}"
            self.reply(200, {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]})
            return
        if not self.server.takes_ids:
            self.reply(422, {"error": {"message": "prompt must be a string"}})
            return
        ids = body["prompt"]
        if body["max_tokens"] > 1:
            threading.Event().wait(0.02)
        answer = self.server.tokenizer(f"echo {ids[-1]}", add_special_tokens=False).input_ids[: body["max_tokens"]]
        stop = body.get("stop_token_ids", [])[:1]
        choice = {"text": "unused", "finish_reason": "stop", "token_ids": [*answer, *stop]}
        if "logprobs" in body:
            choice["logprobs"] = {"token_logprobs": [-0.5] * len(choice["token_ids"])}
        usage = {"prompt_tokens": len(ids) + self.server.adds_bos, "prompt_tokens_details": {"cached_tokens": 3}}
        self.reply(200, {"choices": [choice], "usage": usage})


@pytest.fixture(scope="module")
def served(checkpoint) -> Checkpoint:
    return Checkpoint.open(checkpoint)


@pytest.fixture(scope="module")
def encoder(checkpoint) -> Encoder:
    return Encoder.open(checkpoint)


@pytest.fixture
def server(encoder):
    fake = FakeServer(encoder.tokenizer)
    threading.Thread(target=fake.serve_forever, args=(0.01,), daemon=True).start()
    yield fake
    fake.shutdown()
    fake.server_close()


@pytest.fixture(autouse=True)
def _no_keys_no_waiting(monkeypatch):
    for name in server_module.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server_module, "_FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def opened(server, served, encoder):
    backends = []

    def open_(*, max_model_len=WINDOW, url=None, logprobs=False, encoder=encoder, **options) -> ServerBackend:
        backends.append(serving(served, encoder, url or server.url, max_model_len, logprobs=logprobs, **options))
        return backends[-1]

    yield open_
    for backend in backends:
        backend.close()


def prompts(encoder, count=1, *, max_new_tokens=20, words=""):
    made = []
    for number in range(count):
        sample = Sample(task="t", subset="s", sample_id=str(number), story_id="0", question="?", target="!")
        ids = encoder.encode_prompt(f"Where is Mary? {words} {number}")
        made.append(Prompt(sample=sample, length="0k", token_ids=ids, max_new_tokens=max_new_tokens))
    return made


def answer_of(backend, prompt):
    [(_, completion)] = backend.generate([prompt])
    return completion


def test_ids_go_out_as_they_are_and_the_answer_comes_back_without_its_stop_token(opened, server, encoder):
    [prompt] = prompts(encoder)
    completion = answer_of(opened(logprobs=True), prompt)
    assert server.bodies[-1]["prompt"] == prompt.token_ids.tolist()
    assert completion.text == f"echo {prompt.token_ids[-1]}"
    assert completion.finish_reason == "stop"
    assert completion.token_ids == tuple(encoder.tokenizer(completion.text).input_ids)
    assert completion.logprobs == (-0.5,) * len(completion.token_ids)
    assert completion.num_cached_tokens == 3


def test_defaults_that_a_server_took_from_a_checkpoint_are_overruled(opened, server, encoder):
    answer_of(opened(), prompts(encoder)[0])
    body = server.bodies[-1]
    assert (body["temperature"], body["repetition_penalty"]) == (0, 1.0)
    assert body["stop_token_ids"], "the checkpoint's own stop ids"


def test_another_vendors_server_gets_standard_fields_only(opened, server, encoder):
    server.models[0]["owned_by"] = "somebody"
    answer_of(opened(), prompts(encoder)[0])
    assert set(server.bodies[-1]) == {"model", "temperature", "max_tokens", "prompt"}


def test_as_many_requests_are_in_flight_as_asked_for(opened, server, encoder):
    answered = list(opened(concurrency=4).generate(iter(prompts(encoder, 24))))
    assert len(answered) == 24
    assert 2 <= server.most_running <= 4
    assert all(c.text == f"echo {p.token_ids[-1]}" for p, c in answered), "each answer stays with its prompt"


def test_prompts_are_pulled_lazily(opened, encoder):
    pulled = []
    run = opened(concurrency=2).generate(pulled.append(p) or p for p in prompts(encoder, 10))
    next(run)
    assert len(pulled) <= 4
    run.close()


@pytest.mark.parametrize("trouble", ["429", "500", "503", "reset", "half body", "half json", "no choices", "html"])
def test_trouble_that_passes_is_met_by_asking_again(opened, server, encoder, trouble):
    backend = opened()
    server.trouble += [trouble, trouble]
    completion = answer_of(backend, prompts(encoder)[0])
    assert completion.error is None
    assert completion.text.startswith("echo")


@pytest.mark.parametrize("trouble", ["503", "half json", "reset"])
def test_trouble_that_stays_fails_the_prompt_which_may_be_asked_another_time(opened, server, encoder, trouble):
    backend = opened(max_retries=2)
    server.trouble += [trouble] * 3
    completion = answer_of(backend, prompts(encoder)[0])
    assert completion.error.startswith("server: ")
    assert completion.error.endswith("(attempt 3, the last)")
    assert completion.retryable
    assert not server.trouble, "three attempts"


def test_a_request_that_the_server_rejects_is_not_sent_again(opened, server, encoder):
    backend = opened()
    server.trouble += ["400", "400"]
    completion = answer_of(backend, prompts(encoder)[0])
    assert completion.error.startswith("server: HTTP 400: no 400")
    assert not completion.retryable
    assert server.trouble == ["400"]


def test_a_server_that_is_gone_ends_the_run_instead_of_failing_every_prompt(opened, server, encoder):
    backend = opened(max_retries=2, concurrency=1)
    run = backend.generate(prompts(encoder, 5))
    next(run)
    server.trouble.append("reset")  # the connection that is open; new ones find nobody listening
    server.shutdown()
    server.server_close()
    with pytest.raises(EngineError, match="No server answers at http://127"):
        list(run)


def test_a_server_that_falls_silent_ends_the_run_instead_of_keeping_every_prompt_waiting(opened, server, encoder):
    backend = opened(max_retries=1, concurrency=1, timeout_seconds=0.3)
    run = backend.generate(prompts(encoder, 5))
    next(run)
    server.trouble += ["silence"] * 10
    with pytest.raises(EngineError, match=r"gave no answer within 0.3 s"):
        list(run)


def test_an_answer_that_the_server_cut_short_is_a_failure(opened, server, encoder, monkeypatch):
    backend = opened()
    reply = {"choices": [{"text": "ech", "finish_reason": "length", "token_ids": [5, 6]}]}
    monkeypatch.setattr(_Handler, "answer", lambda self, _: self.reply(200, reply))
    completion = answer_of(backend, prompts(encoder)[0])
    assert completion.error == "server: the answer was cut at 2 of 20 tokens"


def test_a_prompt_beyond_the_servers_window_is_not_sent(opened, server, encoder):
    backend = opened(max_model_len=10)
    sent = len(server.bodies)
    completion = answer_of(backend, prompts(encoder, max_new_tokens=WINDOW)[0])
    assert completion.error.startswith("context_overflow: ")
    assert len(server.bodies) == sent


def test_chat_mode_sends_the_text_as_one_user_message(opened, server, checkpoint):
    plain = Encoder.open(checkpoint, chat=False)
    server.takes_ids = False
    [prompt] = prompts(plain)
    completion = answer_of(opened(chat=True, encoder=plain), prompt)
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "Where is Mary?  0"}]
    assert completion.text == "echo ary?  0"
    assert completion.token_ids == tuple(plain.tokenizer(completion.text).input_ids)


def test_a_chat_answer_that_is_all_reasoning_is_kept_as_reasoning_that_never_ended(opened, server, checkpoint):
    plain = Encoder.open(checkpoint, chat=False)
    backend = opened(chat=True, encoder=plain)
    server.trouble = ["only thoughts"]
    completion = answer_of(backend, prompts(plain)[0])
    assert (completion.error, completion.text) == (None, "<think>Mary went first to")
    assert is_unfinished(completion.text)


def test_chat_mode_refuses_prompts_that_carry_a_template_already(opened):
    with pytest.raises(BadInput, match="carry one already"):
        opened(chat=True)


def test_what_is_served_is_recorded_without_credentials(opened, server):
    backend = opened(url=server.url.replace("http://", "http://user:secret@"))
    assert backend.identity() == {
        "name": "server",
        "model": "tiny",
        "software": "vllm",
        "versions": {"server": "0.32.0"},
        "prompt_form": "ids",
        "stop_ids": list(backend._stops),
    }
    assert backend.settings()["base_url"] == server.url
    assert backend.settings()["max_model_len"] == WINDOW


def test_the_only_model_is_taken_and_several_must_be_named(opened, server):
    server.models.append({**server.models[0], "id": "other"})
    with pytest.raises(BadInput, match="serves tiny, other; name one"):
        opened()
    with pytest.raises(BadInput, match="does not serve 'third'; it serves tiny, other"):
        opened(model="third")
    assert opened(model="other").identity()["model"] == "other"


def test_a_smaller_window_is_refused_before_any_work(opened):
    with pytest.raises(BadInput, match="with 512 tokens and the run needs 513"):
        opened(max_model_len=WINDOW + 1)


def test_a_server_that_does_not_tell_its_window_earns_a_warning(opened, server):
    del server.models[0]["max_model_len"]
    assert any("how many tokens" in warning for warning in opened().warnings)


def test_another_tokenizer_earns_a_warning(opened, server):
    assert not any("tokenizer" in warning for warning in opened().warnings)
    server.shifts_ids = 1
    assert any("tokenizer differs" in warning for warning in opened().warnings)


def test_a_server_that_takes_no_ids_is_refused_before_any_work(opened, server):
    server.takes_ids = False
    with pytest.raises(
        BadInput, match=r"takes no token ids at /completions \(prompt must be a string\); use --server-chat"
    ):
        opened()


def test_a_server_that_adds_tokens_of_its_own_is_refused(opened, server):
    server.adds_bos = True
    with pytest.raises(BadInput, match=r"counts \d+ tokens where \d+ ids were sent"):
        opened()


def test_no_server_html_and_half_documents_are_named_for_what_they_are(opened, server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(EngineError, match="No server answers at http://127"):
            opened(url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
    server.trouble = ["html"]
    with pytest.raises(EngineError, match="does not answer with a list of models"):
        opened()
    server.trouble = ["half json"]
    with pytest.raises(EngineError, match="half a JSON document"):
        opened()
    with pytest.raises(EngineError, match="HTTP 404"):
        opened(url=f"{server.url}/wrong")


def test_an_address_without_a_path_means_v1(opened, server):
    assert opened(url=server.url.removesuffix("/v1")).settings()["base_url"] == server.url


def test_the_api_key_is_sent_and_never_shown(opened, server, encoder, monkeypatch):
    server.key = "Bearer sk-very-secret"
    with pytest.raises(BadInput, match="EVALKIT_API_KEY or OPENAI_API_KEY"):
        opened()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    monkeypatch.setenv("EVALKIT_API_KEY", "sk-very-secret")
    backend = opened(max_retries=0)
    server.trouble += ["400", "503"]
    errors = [answer_of(backend, prompt).error for prompt in prompts(encoder, 2)]
    assert errors[0] == "server: HTTP 400: no 400, key ***"
    assert "secret" not in f"{errors}{backend!r}{backend.options!r}{backend.settings()}{backend.warnings}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs an address"),
        ({"base_url": ("localhost:8000",)}, "is not a server's address"),
        ({"base_url": ("http://h",), "concurrency": 0}, "concurrency is 0"),
        ({"base_url": ("http://h",), "timeout_seconds": 0}, "timeout_seconds is 0"),
        ({"base_url": ("http://h",), "max_retries": -1}, "max_retries is -1"),
    ],
)
def test_impossible_options_are_refused(options, said):
    with pytest.raises(BadInput, match=said):
        ServerOptions(**options)
