"""Whole commands against a server: one that misbehaves, one that is gone, one that needs a password."""

import json
import logging
import socket
import sys
from base64 import b64encode
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.models.backends import server as server_module
from evalkit.models.backends import server_connection
from evalkit.models.encoder import Encoder
from tests.misbehaving_server import EVERY_TROUBLE, ODD_BODIES, serving

RUN = ("--task", "babilong", "--subsets", "qa1", "--lengths", "1k", "--backend", "server")


def evalkit(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def values(folder: Path) -> dict[str, list[float | None]]:
    """Scores by sample."""
    from pyarrow import parquet

    found: dict[str, list[float | None]] = {}
    for row in parquet.read_table(folder / "scores.parquet").to_pylist():
        found.setdefault(row["sample_id"], []).append(row["value"])
    return found


@pytest.fixture
def server(checkpoint):
    with serving(Encoder.open(checkpoint).tokenizer) as fake:
        fake.models[0]["max_model_len"] = 4096
        fake.seconds = 0
        yield fake


@pytest.fixture(autouse=True)
def _no_keys_no_waiting(monkeypatch):
    for name in server_connection.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server_module, "_FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def dead() -> str:
    """An address where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{unused.getsockname()[1]}/v1"


def test_a_run_survives_every_misbehaviour_and_asks_again_what_may_be_answered(checkpoint, server, tmp_path):
    troubles = [trouble for trouble in EVERY_TROUBLE if trouble != "endless"]
    given = ("--model", checkpoint, *RUN, "--base-url", server.url, "--samples", len(troubles) + 2)
    given += ("--concurrency", 1, "--max-retries", 0, "--out", tmp_path / "r")
    server.trouble = list(troubles)
    shown = evalkit("run", *given)
    assert shown.exit_code == 1, shown.output
    first = records(tmp_path / "r")
    assert len(first) == len(troubles) + 2
    assert sum(record["error"] is None for record in first) == 2
    for command in (("score", tmp_path / "r"), ("report", tmp_path / "r", "--out", tmp_path / "plots")):
        shown = evalkit(*command)
        assert shown.exit_code == 0, shown.output
    failed = {record["sample_id"] for record in first if record["error"]}
    assert {sample for sample, each in values(tmp_path / "r").items() if set(each) == {None}} == failed

    assert evalkit("run", *given).exit_code == 1, "what the server rejected stays rejected"
    last = {record["sample_id"]: record["error"] for record in records(tmp_path / "r")}
    assert sorted(error.partition(":")[2][:9] for error in last.values() if error) == [" HTTP 302", *[" HTTP 400"] * 3]


def asked_for_models(body: bytes):
    return lambda server: server.replies.update({"/v1/models": body})


MISFITS = {  # what a server is or says before anything is asked of it; what a run, and so check, says of it
    **{f"models: {name}": (asked_for_models(body), "/models gives an answer that cannot be used")
       for name, body in ODD_BODIES.items()},
    "models: 17 MiB": (asked_for_models(b" " * 17 * 2**20), "/models gives an answer of more than 16 MiB"),
    "no model": (lambda server: server.models.clear(), "serves no model; name one of them with --served-model"),
    "a short window": (lambda server: server.models[0].update(max_model_len=512), "with 512 tokens and the run needs"),
    "ids are no prompt": (lambda server: setattr(server, "takes_ids", False), "prompt must be a string"),
    "a BOS more": (lambda server: setattr(server, "adds_bos", True), "counts 18 tokens where 17 ids were sent"),
    "prompts cut": (lambda server: setattr(server, "cuts_prompts_to", 3), "counts 3 tokens where 17 ids were sent"),
    "another key": (lambda server: setattr(server, "key", "Bearer x"), "wants another API key; set EVALKIT_API_KEY"),
    "silence": (lambda server: setattr(server, "hangs", True), "no answer within 1 s; is the server ready?"),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
def test_check_meets_a_server_as_a_run_does_and_ends_in_the_same_sentence(misfit, checkpoint, server, tmp_path):
    misbehave, said = MISFITS[misfit]
    misbehave(server)
    given = ("--model", checkpoint, *RUN, "--base-url", server.url, "--samples", 1, "--timeout", 1)
    checked, run = evalkit("check", *given), evalkit("run", *given, "--out", tmp_path / "r")
    server.hangs = False
    assert (checked.exit_code, run.exit_code) == (2, 2), checked.output
    (problem,) = (line for line in checked.output.splitlines() if line.startswith("problem: "))
    assert said in problem
    assert run.output.splitlines()[-1] == problem.replace("problem:", "evalkit:")


def test_check_passes_a_server_that_misbehaves_only_when_it_is_asked(checkpoint, server):
    server.trouble = list(EVERY_TROUBLE)
    server.replies["/version"] = ODD_BODIES["deep inside"]
    checked = evalkit("check", "--model", checkpoint, *RUN, "--base-url", server.url, "--samples", 1)
    assert checked.exit_code == 0, checked.output
    assert server.trouble == list(EVERY_TROUBLE)


def test_a_crosscheck_says_which_prompts_a_misbehaving_server_did_not_answer(checkpoint, server):
    server.trouble = ["text a list", "ids of 2^40"]
    given = ("--base-url", server.url, "--subsets", "qa1", "--samples", 3, "--max-retries", 0, "--concurrency", 1)
    shown = evalkit("crosscheck", checkpoint, "--backends", "scripted,server", *given)
    assert shown.exit_code == 0, shown.output
    assert "of 1 prompts" in shown.output
    assert shown.output.count("not compared, server: an answer that cannot be used (choices.0.") == 2


@pytest.mark.parametrize("form", [(), ("--server-chat", "--no-chat-template")])
def test_a_prompt_that_the_server_cuts_has_no_score(form, checkpoint, server, tmp_path):
    server.models[0] = {"id": "m", "owned_by": "library"}
    server.cuts_prompts_to = 600
    shown = evalkit(
        *("run", "--model", checkpoint, *RUN, "--base-url", server.url, *form, "--samples", 2, "--out", tmp_path / "r")
    )
    assert "2 samples do not fit their length and stay unscored" in shown.output
    for record in records(tmp_path / "r"):
        assert record["error"].startswith("context_overflow: the server read 600 ")
    assert set(map(tuple, values(tmp_path / "r").values())) == {(None, None)}


@pytest.mark.parametrize("counts", ["rightly", "wrongly"])
@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": "Mary went first to the garden, and then"},
        {"content": "<think>Mary went first to the garden, and then"},
    ],
)
def test_reasoning_that_never_ended_is_not_scored_as_an_empty_answer(counts, message, checkpoint, server, tmp_path):
    server.message = message
    if counts == "wrongly":
        server.cuts_prompts_to, server.written = 600, 2
    server.finish_reason = "length"
    given = ("--model", checkpoint, *RUN, "--base-url", server.url, "--server-chat", "--no-chat-template")
    shown = evalkit("run", *given, "--samples", 2, "--out", tmp_path / "r")
    assert shown.exit_code == 0, shown.output
    assert {record["finish_reason"] for record in records(tmp_path / "r")} == {"unfinished_reasoning"}
    assert set(map(tuple, values(tmp_path / "r").values())) == {(None, None)}


@pytest.mark.parametrize("trouble", ["", "400", "dead"])
def test_credentials_in_an_address_reach_no_file_no_message_and_no_log(
    trouble, checkpoint, server, dead, tmp_path, monkeypatch, caplog
):
    for name in ("httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    server.trouble = [trouble] * 2 if trouble else []
    host = dead if trouble == "dead" else server.url.removeprefix("http://")
    address = f"http://user:se%40cret-pass@{host}"
    given = ("run", "--model", checkpoint, *RUN, "--base-url", f"1k={address}", "--samples", 2, "--max-retries", 0)
    command = [*map(str, given), "--out", str(tmp_path / "r")]
    monkeypatch.setattr(sys, "argv", ["evalkit", *command])
    shown = evalkit(*command)
    assert shown.exit_code == (2 if trouble == "dead" else 1 if trouble else 0), shown.output
    text = shown.output + caplog.text
    if trouble != "dead":
        basic = "Basic " + b64encode(b"user:se@cret-pass").decode()
        assert server.authorizations >= {basic}
        assert evalkit("report", tmp_path / "r", "--out", tmp_path / "plots").exit_code == 0
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {"run.json", "predictions.jsonl", "report.html"} <= {path.name for path in files}
        text += "".join(path.read_bytes().decode("latin-1") for path in files)
    for secret in ("cret-pass", b64encode(b"user:se@cret-pass").decode()):
        assert secret not in text


@pytest.mark.parametrize(
    "address",
    [
        "http://user:se cret@h/v1",
        "http://user:se/cret@h/v1",
        "http://user:12/secret@h/v1",
        "http://user:se'cret@h/v1",
        "http://user:se?cret@h",
        "http://user:se#cret@h",
        "http://h/v1?api_key=secret",
        "user:secret@h:8000",
        "ftp://user:secret@h",
        "http://user:secret@",
        "http://user:secret@h:port/v1",
        "http://user:secret@[::1/v1",
    ],
)
def test_an_address_whose_password_could_be_misread_is_refused_without_showing_it(address, checkpoint, tmp_path):
    shown = evalkit("run", "--model", checkpoint, *RUN, "--base-url", address, "--out", tmp_path / "r")
    assert shown.exit_code == 2
    assert "is not a server's address" in shown.output
    assert "cret" not in shown.output
    assert not (tmp_path / "r").exists()


def test_a_dead_server_is_refused_before_anything_is_loaded_and_leaves_no_folder(dead, tmp_path):
    given = ("--model", tmp_path / "no checkpoint is there", *RUN, "--out", tmp_path / "r")
    shown = evalkit("run", *given, "--base-url", f"http://{dead}", "--base-url", f"2k=http://{dead}")
    assert shown.exit_code == 2
    assert f"No server answers at http://{dead}" in shown.output
    assert not (tmp_path / "r").exists()
    shown = evalkit("crosscheck", tmp_path, "--backends", "hf,server", "--base-url", f"http://{dead}")
    assert f"No server answers at http://{dead}" in shown.output


def test_one_server_of_several_lengths_is_enough_to_start(checkpoint, server, dead, tmp_path):
    given = ("--model", checkpoint, *RUN, "--base-url", f"1k={server.url}", "--base-url", f"2k=http://{dead}")
    shown = evalkit("run", *given, "--samples", 1, "--out", tmp_path / "r")
    assert shown.exit_code == 0, shown.output


def test_published_rows_need_a_server_as_wide_as_the_longest_of_them_and_no_wider(
    checkpoint, server, tmp_path, monkeypatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"input": f"{'A quiet day. ' * n}Mary went to the garden.", "question": "Where is Mary?", "target": "garden"}
        for n in (3, 40, 10)
    ]
    (tmp_path / "rows" / "qa1").mkdir(parents=True)
    (tmp_path / "rows" / "qa1" / "2k.json").write_text(json.dumps(rows))
    server.models[0]["max_model_len"] = 1000
    asked = (*RUN[:4], "--lengths", "2k", *RUN[6:], "--model", checkpoint, "--base-url", server.url)
    shown = evalkit("run", *asked, "--source", tmp_path / "rows", "--out", tmp_path / "r")
    assert shown.exit_code == 0, shown.output
    longest = max(one["prompt_tokens"] + one["max_new_tokens"] for one in records(tmp_path / "r"))
    assert len(records(tmp_path / "r")) == 3
    server.models[0]["max_model_len"] = longest - 1
    refused = evalkit("run", *asked, "--source", tmp_path / "rows", "--out", tmp_path / "again")
    assert refused.exit_code != 0
    assert f"with {longest - 1:,} tokens and the run needs {longest:,}" in " ".join(refused.output.split())
