"""A small real HTTP server that speaks like vLLM's, and can misbehave in every way that was met or thought of."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WINDOW = 512

# What an answer may hold instead of what belongs there: (place, value). "*" is the text, wherever the API has it.
ODD_FIELDS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "text a list": (("*",), ["kitchen"]),
    "text a number": (("*",), 7),
    "text true": (("*",), True),
    "text an object": (("*",), {"text": "kitchen"}),
    "text null": (("*",), None),
    "ids of 2^40": (("choices", 0, "token_ids"), [2**40]),
    "ids below zero": (("choices", 0, "token_ids"), [-1]),
    "ids beyond the vocabulary": (("choices", 0, "token_ids"), [2**31 - 1]),
    "ids with fractions": (("choices", 0, "token_ids"), [1.5]),
    "ids as text": (("choices", 0, "token_ids"), "kitchen"),
    "ids true": (("choices", 0, "token_ids"), [True]),
    "log-probabilities as text": (
        ("choices", 0, "logprobs"),
        {"token_logprobs": ["-0.5"], "content": [{"logprob": ""}]},
    ),
    "log-probabilities NaN": (("choices", 0, "logprobs"), {"token_logprobs": [float("nan")], "content": [{}]}),
    "log-probabilities above 0": (("choices", 0, "logprobs"), {"token_logprobs": [3.5], "content": [{"logprob": 3.5}]}),
    "log-probabilities a list": (("choices", 0, "logprobs"), [1]),
    "finish_reason a number": (("choices", 0, "finish_reason"), 3),
    "finish_reason null": (("choices", 0, "finish_reason"), None),
    "finish_reason unknown": (("choices", 0, "finish_reason"), "content_filter"),
    "counts NaN": (("usage", "prompt_tokens"), float("nan")),
    "counts below zero": (("usage", "prompt_tokens"), -5),
    "counts of 5,000 digits": (("usage", "prompt_tokens"), 10**4000),
    "counts as text": (("usage", "completion_tokens"), "many"),
    "cached tokens a list": (("usage", "prompt_tokens_details"), {"cached_tokens": [1]}),
    "usage a list": (("usage",), [1, 2]),
    "choices an object": (("choices",), {"0": "kitchen"}),
    "choices null": (("choices",), None),
    "choices empty": (("choices",), []),
    "choice a text": (("choices",), ["kitchen"]),
}

# Whole bodies that are no answer.
ODD_BODIES: dict[str, bytes] = {
    "half json": b'{"choices": [{"te',
    "nothing": b"",
    "null": b"null",
    "a number": b"17",
    "a list": b"[]",
    "no UTF-8": b'{"choices": [{"text": "\xff\xfe", "finish_reason": "stop"}]}',
    "half a surrogate pair": b'{"choices": [{"text": "\\ud83d", "finish_reason": "stop"}]}',
    "200,000 levels of lists": b"[" * 200_000,
    "200,000 levels of objects": b'{"choices":' * 200_000,
    "deep inside": b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "two documents": b'{"choices": []}{"choices": []}',
    "html": b"<html>please log in</html>",
}

# What is done to the connection or to HTTP.
ODD_TRANSPORT = ("reset", "half body", "no HTTP", "badly packed", "redirects in circles", "endless")
STATUS = (
    "400",
    "401",
    "404",
    "429",
    "500",
    "503",
    "302",
    "500 deep",
    "400 list",
    "500 no UTF-8",
    "400 long",
    "429 later",
)

EVERY_TROUBLE = (*ODD_FIELDS, *ODD_BODIES, *ODD_TRANSPORT, *STATUS)
"""Each of these, dealt out in ``MisbehavingServer.trouble``, spoils one answer (not: "drip", which takes time)."""


class MisbehavingServer(ThreadingHTTPServer):
    """Answers "echo" and the last prompt id; ``trouble`` is dealt out first, one for each request that is an answer."""

    daemon_threads = True

    def __init__(self, tokenizer: Any, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.tokenizer = tokenizer
        self.models: Any = [{"id": "tiny", "object": "model", "owned_by": "vllm", "max_model_len": WINDOW}]
        self.replies: dict[str, bytes] = {}
        """Bodies to give for /v1/models, /version or /tokenize instead of the right ones."""
        self.trouble: list[str] = []
        self.spoil: Callable[[bytes], bytes] = lambda body: body
        """What becomes of the body of each answer that is no trouble."""
        self.key: str | None = None
        self.takes_ids = True
        self.counts = True
        self.cuts_prompts_to = 10**9
        self.adds_bos = False
        self.shifts_ids = 0
        self.template_tokens = 7
        self.message: dict[str, Any] = {}
        """What stands in a chat's message besides, or instead of, its content."""
        self.finish_reason = "stop"
        self.logprobs: dict[str, float | None] = {}
        """Of each token, by the model that is asked: -0.5 unless it is named here; None gives none."""
        self.written: int | None = None
        """Tokens of an answer, by its own count; None says nothing of them."""
        self.hangs = False
        """Whether it takes requests of any kind and answers none."""
        self.longer = 0
        """By so many tokens an answer is longer than it was ordered."""
        self.seconds = 0.02
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: set[str | None] = set()
        self.running = self.most_running = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that hang up on an endless answer."""


@contextmanager
def serving(tokenizer: Any, port: int = 0) -> Iterator[MisbehavingServer]:
    """Run a server in a thread, until the block ends or ``stop`` is called."""
    server = MisbehavingServer(tokenizer, port)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        stop(server)


def stop(server: MisbehavingServer) -> None:
    """Let nobody listen there any more. Connections that are open stay so until they are used."""
    server.hangs = False
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MisbehavingServer

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: Any, *, kind="application/json", headers=(), length=None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length or len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = length is not None

    def parse_request(self) -> bool:
        while self.server.hangs:
            threading.Event().wait(0.05)
        return super().parse_request()

    def do_GET(self) -> None:
        self.server.authorizations.add(self.headers["Authorization"])
        if self.path in self.server.replies:
            self.reply(200, self.server.replies[self.path])
        elif self.path == "/v1/models" and self.server.key in (None, self.headers["Authorization"]):
            self.reply(200, {"object": "list", "data": self.server.models})
        elif self.path == "/v1/models":
            self.reply(401, {"error": {"message": f"wrong key {self.headers['Authorization']}"}})
        elif self.path == "/version":
            self.reply(200, {"version": "0.32.0"})
        elif self.path == "/circle":
            self.reply(302, {}, headers=[("Location", "/circle")])
        else:
            self.reply(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path in self.server.replies:
            self.reply(200, self.server.replies[self.path])
            return
        if self.path == "/tokenize":
            ids = self.server.tokenizer(body["prompt"], add_special_tokens=False).input_ids
            self.reply(200, {"tokens": [i + self.server.shifts_ids for i in ids]})
            return
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
            asked = body["max_tokens"] > 1  # not a probe
            trouble = self.server.trouble.pop(0) if self.server.trouble and asked else ""
        try:
            if asked:
                threading.Event().wait(self.server.seconds)
            self.misbehave(trouble, body)
        finally:
            with self.server.lock:
                self.server.running -= 1

    def misbehave(self, trouble: str, body: dict[str, Any]) -> None:
        if trouble in ODD_BODIES:
            self.reply(200, ODD_BODIES[trouble], kind="text/html" if trouble == "html" else "application/json")
        elif trouble[:3].isdigit():
            self.reply_status(trouble)
        elif trouble == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif trouble in ("drip", "endless"):
            self.stream(b" " * 2**20 if trouble == "endless" else b" ", 0 if trouble == "endless" else 0.05)
        elif trouble == "half body":
            self.reply(200, b'{"choices": [{"te', length=500)
        elif trouble == "no HTTP":
            self.wfile.write(b"\x00\x01 mary went to the kitchen\r\n\r\n")
            self.close_connection = True
        elif trouble == "badly packed":
            self.reply(200, b"no gzip", headers=[("Content-Encoding", "gzip")])
        elif trouble == "redirects in circles":
            self.reply(302, {}, headers=[("Location", "/circle")])
        else:
            reply = self.answer(body)
            if trouble:
                _put(reply, *ODD_FIELDS[trouble], chat="messages" in body)
            self.reply(200 if "choices" in reply else 422, self.server.spoil(json.dumps(reply).encode()))

    def reply_status(self, trouble: str) -> None:
        status, _, how = trouble.partition(" ")
        said: Any = {"error": {"message": f"no {status}, key {self.headers['Authorization']}".replace("Bearer ", "")}}
        if how == "long":
            said["error"]["message"] = "x" * 290 + said["error"]["message"].rpartition(" ")[2]
        bodies = {"deep": b"[" * 200_000, "list": [["wrong"]], "no UTF-8": b"\xff\xfe wrong"}
        after = "nan" if how == "later" else "0"
        self.reply(int(status), bodies.get(how, said), headers=[("Retry-After", after)])

    def stream(self, piece: bytes, pause: float) -> None:
        """Write for ever, or until the client hangs up."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.close_connection = True
        while self.server.socket.fileno() >= 0:
            try:
                self.wfile.write(piece)
            except OSError:
                return
            threading.Event().wait(pause)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        def tokens(text: str) -> list[int]:
            return list(self.server.tokenizer(text, add_special_tokens=False).input_ids)

        logprob = self.server.logprobs.get(body["model"], -0.5)
        if "messages" in body:
            text = body["messages"][-1]["content"]
            message = {"content": f"echo {text[-7:]}", **self.server.message}
            choice: dict[str, Any] = {"message": message, "finish_reason": self.server.finish_reason}
            if body.get("logprobs") and logprob is not None:
                choice["logprobs"] = {"content": [{"logprob": logprob}] * len(tokens(message["content"] or ""))}
            read = len(tokens(text)) + self.server.template_tokens
        elif not self.server.takes_ids:
            return {"error": {"message": "prompt must be a string"}}
        else:
            ids = body["prompt"]
            read = len(ids) + self.server.adds_bos
            said = tokens(f"echo {ids[-1]}")[: body["max_tokens"]] + [1] * self.server.longer
            stop_ids = body.get("stop_token_ids", [])[:1]
            choice = {"text": "unused", "finish_reason": self.server.finish_reason, "token_ids": [*said, *stop_ids]}
            if "logprobs" in body and logprob is not None:
                choice["logprobs"] = {"token_logprobs": [logprob] * len(choice["token_ids"])}
        usage: dict[str, Any] = {
            "prompt_tokens": min(read, self.server.cuts_prompts_to),
            **({} if self.server.written is None else {"completion_tokens": self.server.written}),
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        return {"choices": [choice], **({"usage": usage} if self.server.counts else {})}


def _put(reply: Any, place: tuple[Any, ...], value: Any, *, chat: bool) -> None:
    if place == ("*",):
        place = ("choices", 0, "message", "content") if chat else ("choices", 0, "text")
    for step in place[:-1]:
        reply = reply[step]
    reply[place[-1]] = value
