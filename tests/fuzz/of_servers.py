"""A server whose replies are spoilt: a value, bytes, or one of the modes of ``misbehaving_server``."""

import json
import random
from pathlib import Path
from typing import Any

from tests.fuzz.sound import Commands, Sound
from tests.fuzz.spoiling import spoil_bytes, spoil_json
from tests.misbehaving_server import EVERY_TROUBLE, MisbehavingServer, serving

_started: dict[str, Any] = {}


def server(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """Ask a server three questions; each reply may be spoilt, and so may what it says of itself."""
    fake = _server(sound)
    fake.replies.clear()
    fake.bodies.clear()
    fake.spoil = lambda body: _spoilt(rng, body)
    fake.trouble = [rng.choice(EVERY_TROUBLE) for _ in range(rng.randrange(3))] if rng.random() < 0.4 else []
    fake.trouble = [trouble for trouble in fake.trouble if trouble != "endless"]  # a mebibyte at a time, for ever
    about: dict[str, Any] = {
        "/v1/models": {"object": "list", "data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": 4096}]},
        "/version": {"version": "0.32.0"},
        "/tokenize": {"tokens": [1, 2, 3], "count": 3},
    }
    for path in about:
        if rng.random() < 0.15:
            fake.replies[path] = _spoilt(rng, json.dumps(about[path]).encode())
    given = ["--model", str(sound.checkpoint), "--task", "babilong", "--subsets", "qa1", "--lengths", "1k"]
    given += ["--backend", "server", "--base-url", fake.url, "--samples", "3", "--max-retries", "0", "--timeout", "5"]
    chat = ["--server-chat"] if rng.random() < 0.3 else []
    out = str(folder / "out")
    commands = [["run", *given, *chat, "--out", out]]
    if rng.random() < 0.3:
        commands.insert(0, ["check", *given, *chat])
    return [*commands, ["score", out], ["report", out, "--out", str(folder / "plots")]][: rng.choice([1, 2, 3, 4])]


def _spoilt(rng: random.Random, body: bytes) -> bytes:
    how = rng.random()
    if how < 0.4:
        return body
    return spoil_json(rng, json.loads(body)) if how < 0.8 else spoil_bytes(rng, body)


def _server(sound: Sound) -> MisbehavingServer:
    """Return the server of this process, started with its first input."""
    if "server" not in _started:
        from evalkit.models.backends import server as backend
        from evalkit.models.encoder import Encoder

        backend._FIRST_WAIT_SECONDS = 0.001
        _started["context"] = serving(Encoder.open(sound.checkpoint).tokenizer)
        _started["server"] = _started["context"].__enter__()
        _started["server"].seconds = 0
        _started["server"].models[0]["max_model_len"] = 4096
    found: MisbehavingServer = _started["server"]
    return found
