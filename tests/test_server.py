"""The server backend against a small real HTTP server that can misbehave in every way we have met."""

import json
import re
import socket
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.benchmarks.reasoning import is_unfinished
from evalkit.errors import BadInput, EngineError
from evalkit.models.backends import server as server_module
from evalkit.models.backends import server_client, server_connection
from evalkit.models.backends.server import ServerBackend, ServerOptions
from evalkit.models.backends.server_connection import Trouble
from evalkit.models.backends.server_replies import read_chat, read_completion
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.types import Prompt, Sample
from tests.backends import server as serving
from tests.misbehaving_server import EVERY_TROUBLE, ODD_BODIES, WINDOW, stop
from tests.misbehaving_server import serving as misbehaving
from tests.test_checkpoint import write_adapter


@pytest.fixture(scope="module")
def served(checkpoint) -> Checkpoint:
    return Checkpoint.open(checkpoint)


@pytest.fixture(scope="module")
def encoder(checkpoint) -> Encoder:
    return Encoder.open(checkpoint)


@pytest.fixture(scope="module")
def plain_encoder(checkpoint) -> Encoder:
    return Encoder.open(checkpoint, chat=False)


@pytest.fixture
def server(encoder):
    with misbehaving(encoder.tokenizer) as fake:
        yield fake


@pytest.fixture(autouse=True)
def _no_keys_no_waiting(monkeypatch):
    for name in server_connection.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server_module, "_FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def opened(server, served, encoder):
    backends = []

    def open_(
        *, max_model_len=WINDOW, url=None, logprobs=False, encoder=encoder, checkpoint=served, **options
    ) -> ServerBackend:
        backends.append(serving(checkpoint, encoder, url or server.url, max_model_len, logprobs=logprobs, **options))
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
    stop(server)
    with pytest.raises(EngineError, match="No server answers at http://127"):
        list(run)


def test_a_server_that_falls_silent_ends_the_run_instead_of_keeping_every_prompt_waiting(opened, server, encoder):
    backend = opened(max_retries=1, concurrency=1, timeout_seconds=2)
    run = backend.generate(prompts(encoder, 5))
    next(run)
    server.hangs = True
    with pytest.raises(EngineError, match=r"gave no answer within 2 s"):
        list(run)


def test_an_answer_that_the_server_cut_short_is_a_failure(opened, server, encoder):
    backend = opened()
    server.finish_reason = "length"
    completion = answer_of(backend, prompts(encoder)[0])
    assert re.fullmatch(r"server: the answer was cut at \d of 20 tokens", completion.error)


def test_an_answer_that_is_longer_than_ordered_is_a_failure(opened, server, encoder):
    backend = opened()
    server.longer = 40
    completion = answer_of(backend, prompts(encoder)[0])
    assert re.fullmatch(r"server: the answer has \d\d tokens where 20 were ordered", completion.error)


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
        "stop_ids": list(backend._form.stop_ids),
    }
    assert backend.settings()["base_url"] == [server.url]
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
        BadInput, match=r"takes no token ids at /completions \(HTTP 422: prompt must be a string\); use --server-chat"
    ):
        opened()


def test_a_server_that_adds_tokens_of_its_own_is_refused(opened, server):
    server.adds_bos = True
    with pytest.raises(BadInput, match=r"counts \d+ tokens where \d+ ids were sent"):
        opened()


def test_no_server_and_a_wrong_path_are_named_for_what_they_are(opened, server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(EngineError, match="No server answers at http://127"):
            opened(url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
    with pytest.raises(EngineError, match="HTTP 404"):
        opened(url=f"{server.url}/wrong")


def test_an_address_without_a_path_means_v1(opened, server):
    assert opened(url=server.url.removesuffix("/v1")).settings()["base_url"] == [server.url]


def test_the_api_key_is_sent_and_never_shown(opened, server, encoder, monkeypatch):
    server.key = "Bearer sk-very-secret"
    with pytest.raises(BadInput, match="EVALKIT_API_KEY or OPENAI_API_KEY"):
        opened()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    monkeypatch.setenv("EVALKIT_API_KEY", "sk-very-secret")
    backend = opened(max_retries=0)
    server.trouble += ["400", "503", "400 long"]
    errors = [answer_of(backend, prompt).error for prompt in prompts(encoder, 3)]
    assert errors[0] == "server: HTTP 400: no 400, key ***"
    assert errors[2] == f"server: HTTP 400: {'x' * 290}***", "masked before it was cut"
    assert "secret" not in f"{errors}{backend!r}{backend.options!r}{backend.settings()}{backend.warnings}"


def test_a_key_that_the_server_repeats_in_a_sound_answer_is_not_recorded(opened, server, plain_encoder, monkeypatch):
    monkeypatch.setenv("EVALKIT_API_KEY", "sk-very-secret")
    server.models[0]["root"] = "/keys/sk-very-secret/tiny"
    server.message = {"content": "garden, said sk-very-secret"}
    backend = opened(chat=True, encoder=plain_encoder)
    assert backend.settings()["root"] == "/keys/***/tiny"
    assert answer_of(backend, prompts(plain_encoder)[0]).text == "garden, said ***"


def test_a_key_that_is_a_mere_word_changes_no_answer(opened, server, plain_encoder, monkeypatch):
    monkeypatch.setenv("EVALKIT_API_KEY", "none")
    server.message = {"content": "none"}
    assert answer_of(opened(chat=True, encoder=plain_encoder), prompts(plain_encoder)[0]).text == "none"


def test_a_key_that_no_header_can_hold_is_refused(opened, monkeypatch):
    monkeypatch.setenv("EVALKIT_API_KEY", "sk-sécret")
    with pytest.raises(BadInput, match="EVALKIT_API_KEY holds marks"):
        opened()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs an address"),
        ({"base_url": ("localhost:8000",)}, "is not a server's address"),
        ({"base_url": ("http://a..b/v1",)}, "is not a server's address"),
        ({"base_url": ("http://h",), "concurrency": 0}, "concurrency is 0"),
        ({"base_url": ("http://h",), "timeout_seconds": 0}, "timeout_seconds is 0"),
        ({"base_url": ("http://h",), "max_retries": -1}, "max_retries is -1"),
    ],
)
def test_impossible_options_are_refused(options, said):
    with pytest.raises(BadInput, match=said):
        ServerOptions(**options)


# Misbehaviour: whatever comes, a prompt ends as an answer or as an error, and nothing of it breaks what reads it later.


@pytest.mark.parametrize("chat", [False, True])
def test_an_odd_reply_ends_as_an_error_in_words_and_the_next_prompt_is_answered(
    chat, server, encoder, plain_encoder, opened, monkeypatch
):
    monkeypatch.setattr(server_connection, "LARGEST_REPLY_BYTES", 2**20)
    monkeypatch.setattr(server_client, "_REST_SECONDS", 0.0)
    encoder = plain_encoder if chat else encoder
    backend = opened(chat=chat, encoder=encoder, max_retries=0, logprobs=True)
    odd, sound = prompts(encoder, 2)
    for trouble in EVERY_TROUBLE:
        server.trouble.append(trouble)
        completion = answer_of(backend, odd)
        assert not server.trouble
        if chat and trouble.startswith("ids"):  # a chat's text counts, whatever ids are beside it
            assert completion.text == "echo ary?  0", trouble
        else:
            assert re.match("server: [^ ]", completion.error or ""), trouble
            assert completion.error.isprintable(), trouble
            assert len(completion.error) < 400, trouble
            assert completion.retryable == (trouble not in ("302", "400", "400 list", "400 long")), trouble
        assert answer_of(backend, sound).error is None, trouble


def test_a_byte_at_a_time_does_not_stretch_an_attempt_beyond_its_timeout(opened, server, encoder):
    backend = opened(max_retries=0)
    backend._servers[0].connection.timeout_seconds = 0.5
    server.trouble.append("drip")
    started = time.monotonic()
    completion = answer_of(backend, prompts(encoder)[0])
    assert completion.error == "server: no answer within 0.5 s (attempt 1, the last)"
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/tokenize", "/v1/completions"])
def test_odd_answers_to_the_first_questions_are_refused_or_warned_of(path, opened, server):
    asked_of_all = path.startswith("/v1")
    for body in ODD_FIRST_ANSWERS:
        server.replies = {path: body}
        if asked_of_all:
            with pytest.raises(EngineError, match="so no OpenAI-compatible server is there; check the address"):
                opened()
        else:
            backend = opened()
            assert backend.identity()["versions"] == {"server": None if path == "/version" else "0.32.0"}
            assert any("/tokenize gave an answer that cannot be used" in w for w in backend.warnings) == (
                path == "/tokenize"
            )


ODD_FIRST_ANSWERS = (
    *(ODD_BODIES[name] for name in ("nothing", "null", "a list", "no UTF-8", "deep inside")),
    b'{"data": {"id": "tiny"}}',
    b'{"data": [{"id": ["tiny"]}]}',
    b'{"data": [{"id": ""}]}',
    b'{"data": [{"id": "tiny", "max_model_len": "4096"}]}',
    b'{"data": [{"id": "tiny", "max_model_len": -1}]}',
    b'{"data": [{"id": "tiny", "max_model_len": 1e400}]}',
    b'{"data": [{"id": "tiny", "owned_by": {}}]}',
    b'{"data": [{"id": "tiny", "root": 3}]}',
    b'{"version": ["0.32.0"], "tokens": ["Mary"], "choices": "none"}',
    b'{"version": 3.2, "tokens": [1e3], "choices": [[]]}',
)


def test_a_server_that_comes_back_in_the_middle_of_a_run_is_asked_the_rest(opened, server, encoder, monkeypatch):
    monkeypatch.setattr(server_module, "_FIRST_WAIT_SECONDS", 0.1)
    backend = opened(concurrency=2)
    answered = backend.generate(prompts(encoder, 8))
    next(answered)
    server.trouble += ["reset"] * 2
    stop(server)

    def come_back():
        time.sleep(0.5)
        with misbehaving(encoder.tokenizer, port=server.server_port) as again:
            returned.append(again)
            done.wait(30)

    returned, done = [], threading.Event()
    thread = threading.Thread(target=come_back)
    thread.start()
    rest = [completion for _, completion in answered]
    done.set()
    thread.join()
    assert [completion.error for completion in rest] == [None] * 7
    assert returned[0].bodies, "the second server answered"


def test_a_server_that_comes_back_as_another_ends_the_run(opened, server, encoder, monkeypatch):
    backend = opened(concurrency=1)
    answered = backend.generate(prompts(encoder, 5))
    next(answered)
    server.models[0]["max_model_len"] = WINDOW * 2
    server.trouble.append("reset")
    with pytest.raises(EngineError, match=r"became another: http.* serves tiny \(vllm, version 0.32.0, 1024 tokens\)"):
        list(answered)


# Several servers of one length.


@pytest.fixture
def second(encoder):
    with misbehaving(encoder.tokenizer) as fake:
        yield fake


def test_several_servers_share_the_prompts_and_the_quicker_gets_more(opened, server, second, encoder):
    server.seconds, second.seconds = 0.02, 0.2
    backend = opened(url=(server.url, second.url), concurrency=2)
    answered = list(backend.generate(prompts(encoder, 40)))
    assert all(c.text == f"echo {p.token_ids[-1]}" for p, c in answered)
    quick, slow = (len(one.bodies) - 1 for one in (server, second))  # less the probe
    assert quick + slow == 40
    assert quick > 2 * slow > 0
    assert (server.most_running, second.most_running) == (2, 2)
    assert backend.settings()["base_url"] == [server.url, second.url]


def test_when_one_of_several_servers_is_gone_the_others_answer_everything(opened, server, second, encoder):
    backend = opened(url=(server.url, second.url), concurrency=2)
    answered = backend.generate(prompts(encoder, 20))
    next(answered)
    second.trouble += ["reset"] * 20
    stop(second)
    assert [completion.error for _, completion in answered] == [None] * 19


def test_servers_of_one_length_must_serve_the_same(opened, server, second):
    second.replies["/version"] = b'{"version": "0.31.0"}'
    with pytest.raises(BadInput, match=rf"{second.url} serves tiny \(vllm, version 0.31.0.* and {server.url} tiny"):
        opened(url=(server.url, second.url))


def test_bare_addresses_serve_every_length_and_labelled_ones_their_own():
    options = ServerOptions(base_url=("16k=http://a", "16k=http://b:1/v2/", "http://c", "http://c/v1"))
    assert [one.root for one in options.addresses_of(["16k"], 1)] == ["http://a/v1", "http://b:1/v2"]
    assert [one.root for one in options.addresses_of(["32k"], 1)] == ["http://c/v1"]
    with pytest.raises(BadInput, match="need the same servers"):
        options.addresses_of(["16k", "32k"], 1)


# An adapter must be what answers.


@pytest.fixture
def adapted(checkpoint, server, tmp_path) -> Checkpoint:
    """A checkpoint with an adapter, and both at the server as vLLM lists them."""
    base = {"id": "base", "owned_by": "vllm", "root": "/elsewhere/base", "max_model_len": WINDOW}
    server.models = [base, {"id": "lo", "owned_by": "vllm", "root": "/elsewhere/lo", "parent": "base"}]
    return Checkpoint.open(checkpoint, adapter=write_adapter(tmp_path / "adapter"))


FORMS = pytest.mark.parametrize("chat", [False, True])


@FORMS
def test_an_adapter_is_in_use_where_it_answers_the_probe_otherwise_than_its_base(
    chat, opened, server, adapted, encoder, plain_encoder
):
    server.logprobs["lo"] = -0.25
    backend = opened(checkpoint=adapted, encoder=plain_encoder if chat else encoder, model="lo", chat=chat)
    assert {body["model"] for body in server.bodies} == {"base", "lo"}
    assert backend.settings()["adapter_shown"] is True
    assert not any("adapter" in warning for warning in backend.warnings)
    assert backend.settings()["max_model_len"] == WINDOW, "of its base: vLLM tells no other"


@FORMS
def test_an_adapter_that_changes_nothing_at_the_server_is_refused(chat, opened, adapted, encoder, plain_encoder):
    with pytest.raises(BadInput, match=r"changes nothing: .* at http://.*/v1 \(as lo and base\)"):
        opened(checkpoint=adapted, encoder=plain_encoder if chat else encoder, model="lo", chat=chat)


@pytest.mark.parametrize("told_by", ["parent", "root"])
def test_the_base_alone_is_not_asked_in_place_of_the_adapter(told_by, opened, server, adapted):
    if told_by == "root":
        server.models = [server.models[0] | {"root": str(adapted.path)}]
    with pytest.raises(BadInput, match=r"serves base as a base, without the adapter .*with --served-model, or leave"):
        opened(checkpoint=adapted, model="base")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda server: server.models.pop(0), "does not say which of its models is the base of lo"),
        (lambda server: server.models[1].pop("parent"), "does not say which of its models is the base of lo"),
        (lambda server: server.logprobs.update(base=None), "gives no log-probabilities"),
        (lambda server: server.trouble.append("400"), "answered the probe with HTTP 400: no 400"),
    ],
)
def test_an_adapter_whose_use_a_server_does_not_show_earns_a_warning(change, said, opened, server, adapted):
    change(server)
    backend = opened(checkpoint=adapted, model="lo")
    [warning] = [warning for warning in backend.warnings if "adapter" in warning]
    assert "is in use could not be shown" in warning
    assert said in warning
    assert backend.settings()["adapter_shown"] is False


def test_an_adapter_at_the_server_that_the_run_does_not_name_earns_a_warning(opened, adapted):
    assert not any("adapter" in warning for warning in opened(model="base").warnings)
    [warning] = [warning for warning in opened(model="lo").warnings if "adapter" in warning]
    assert "serves lo as an adapter of base, and the run records the base's weights alone" in warning


# A prompt or an answer that is not what was ordered has no score.


def test_a_server_that_reads_less_than_it_was_sent_did_not_answer_the_question(opened, server, encoder):
    backend = opened()
    [prompt] = prompts(encoder, words="very " * 60)
    server.cuts_prompts_to = 40
    completion = answer_of(backend, prompt)
    assert completion.error == f"context_overflow: the server read 40 of {len(prompt.token_ids)} prompt tokens"
    assert not completion.retryable
    server.cuts_prompts_to, server.adds_bos = 10**9, True
    assert answer_of(backend, prompt).error.startswith("server: it read ")


def test_a_chat_that_reads_less_than_text_and_template_did_not_answer_the_question(opened, server, plain_encoder):
    server.template_tokens = 30
    backend = opened(chat=True, encoder=plain_encoder)
    [prompt] = prompts(plain_encoder, words="very " * 60)
    whole = len(prompt.token_ids) + 30
    for counted in (whole, whole - 2):  # one token may be joined with the template's at each end
        server.cuts_prompts_to = counted
        assert answer_of(backend, prompt).error is None
    server.cuts_prompts_to = whole - 10  # more than the text alone has
    assert answer_of(backend, prompt).error.startswith(
        f"context_overflow: the server read {whole - 10} tokens where text"
    )


def test_a_server_that_does_not_count_earns_a_warning(opened, server):
    server.counts = False
    assert any("does not count the tokens of a prompt" in warning for warning in opened().warnings)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("content", [None, ""])
def test_reasoning_without_an_answer_is_no_answer(field, content, opened, server, plain_encoder):
    server.message = {"content": content, field: "Mary went first to the garden, and then"}
    backend = opened(chat=True, encoder=plain_encoder)
    server.finish_reason = "length"
    completion = answer_of(backend, prompts(plain_encoder)[0])
    assert completion.error is None
    assert is_unfinished(completion.text)
    server.finish_reason = "stop"
    assert answer_of(backend, prompts(plain_encoder)[0]).error.startswith("reasoning: the server gave reasoning and")


def test_the_content_beside_reasoning_is_the_answer(opened, server, plain_encoder):
    server.message = {"content": "garden", "reasoning": "Mary went first to the garden."}
    assert answer_of(opened(chat=True, encoder=plain_encoder), prompts(plain_encoder)[0]).text == "garden"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_reply_made_of_json_gets_past_the_types(data):
    odd = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
        max_leaves=12,
    )
    choice = st.fixed_dictionaries({"finish_reason": odd | st.just("stop")}, optional=dict.fromkeys(NAMES, odd))
    usage = st.dictionaries(st.sampled_from(NAMES), odd, max_size=3)
    reply = data.draw(st.fixed_dictionaries({"choices": st.lists(choice, max_size=2) | odd}, optional={"usage": usage}))
    for read in (read_completion, read_chat):
        try:
            answer = read(json.dumps(reply).encode())
        except Trouble:
            continue
        assert isinstance(answer.text, str | None)
        assert isinstance(answer.finish_reason, str | None)
        assert all(type(i) is int and 0 <= i < 2**31 for i in (*answer.token_ids, answer.num_cached))
        assert all(p <= 1e-3 for p in answer.logprobs)
        assert all(count is None or 0 <= count < 2**31 for count in (answer.num_read, answer.num_written))


def test_of_a_million_wrong_things_in_a_reply_the_first_is_enough():
    with pytest.raises(Trouble) as raised:
        read_completion(b'{"choices": [' + b"[]," * 10**6 + b"[]]}")
    assert raised.value.__cause__.error_count() <= 2, "a record of each would take a kilobyte"


NAMES = ("text", "message", "content", "reasoning", "token_ids", "logprobs", "token_logprobs", "logprob")
NAMES += ("prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens")
