"""A model's name is a folder, in the hub's cache, or on the hub; what cannot be used is refused before its download."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants

from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.hub import ModelSource, resolve
from evalkit.records.folder import RunFolder
from tests.test_checkpoint import write_adapter

COMMIT, OLDER = "a" * 40, "b" * 40
NAME = "some-lab/tiny-model"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into_cache(cache: Path, model: Path, *, commit: str = COMMIT, ref: str = "main", leave_out: str = "") -> Path:
    """Lay a model out as the hub's client does: blobs, snapshots that link to them, refs that name commits."""
    repository = cache / f"models--{NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted(model.iterdir())):
        if file.name != leave_out:
            blob = repository / "blobs" / f"{commit[0]}{number}"
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(blob)
    (repository / "refs" / ref).write_text(commit)
    return snapshot


class Hub(NamedTuple):
    """What the stand-in for the hub has, and which files it was asked for."""

    repositories: dict[str, dict[str, bytes]]
    gated: set[str]
    asked: list[str]


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server on this machine that speaks as much of the hub's HTTP interface as its client needs for a download."""
    served = Hub({}, set(), [])

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path.removeprefix("/api/models").strip("/").split("/")
            name, what, rest = "/".join(path[:2]), path[2:3], path[3:]
            files = served.repositories.get(name)
            if files is None:
                return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            if rest and rest[0] not in ("main", COMMIT):
                return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            if what == ["resolve"]:
                served.asked.append(rest[1])
                if name in served.gated:
                    return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
                return self.answer(200, files[rest[1]], {"X-Repo-Commit": COMMIT, "ETag": f'"{hash(files[rest[1]])}"'})
            if what == ["tree"]:
                tree = [{"type": "file", "path": f, "size": len(c), "oid": str(hash(c))} for f, c in files.items()]
                return self.answer(200, json.dumps(tree).encode())
            listed = [{"rfilename": file, "size": len(content), "blobId": "x"} for file, content in files.items()]
            return self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": listed}).encode())

        def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for header, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(header, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield served
    server.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_a_folder_is_itself(checkpoint: Path):
    assert resolve(str(checkpoint)) == ModelSource(path=checkpoint, name="tiny", commit=None)


def test_a_model_in_the_cache_is_taken_from_there_under_any_name_of_its_commit(cache: Path, checkpoint: Path):
    snapshot = put_into_cache(cache, checkpoint)
    older = put_into_cache(cache, checkpoint, commit=OLDER, ref="v1")
    for revision, found in ((None, snapshot), ("main", snapshot), (COMMIT, snapshot), ("v1", older), (OLDER, older)):
        assert resolve(NAME, revision) == ModelSource(path=found, name=NAME, commit=found.name)
    assert Checkpoint.open(resolve(NAME).path).window == 2048


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_part_of_a_model_in_the_cache_is_not_taken_for_the_whole(cache: Path, checkpoint: Path, missing: str):
    put_into_cache(cache, checkpoint, leave_out=missing)
    with pytest.raises(BadInput, match="nor whole in the hub's cache"):
        resolve(NAME)


def test_without_a_network_the_command_to_type_elsewhere_is_named(cache: Path):
    with pytest.raises(BadInput, match=rf"HF_HUB_OFFLINE is set; .*: hf download {NAME} --revision v2$"):
        resolve(NAME, "v2")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("text", "revision", "said"),
    [
        ("tiny-model", None, "no folder tiny-model, and it is no hub name either, which would be owner/name"),
        ("./some/where", None, "no folder"),
        ("some..lab/model", None, "neither a folder nor a hub name"),
        ("FOLDER", "main", "a revision is one of a hub name; drop --revision main"),
        ("FOLDER/config.json", None, "is a file; a checkpoint is a folder"),
        ("model-Q4_K_M.gguf", None, "is a GGUF file, which evalkit does not read"),
    ],
)
def test_what_is_no_model_is_named(cache: Path, checkpoint: Path, text: str, revision: str | None, said: str):
    with pytest.raises(BadInput, match=said):
        resolve(text.replace("FOLDER", str(checkpoint)), revision)


def test_only_what_is_needed_is_downloaded_and_found_in_the_cache_from_then_on(
    hub: Hub, cache: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    useless = (
        "pytorch_model.bin",
        "modeling_tiny.py",
        "consolidated.safetensors",
        "README.md",
        "model.fp16.safetensors",
    )
    hub.repositories[NAME] = contents(checkpoint) | dict.fromkeys(useless, b"x")
    source = resolve(NAME)
    assert (source.name, source.commit) == (NAME, COMMIT)
    assert contents(source.path) == contents(checkpoint)
    assert not set(useless) & set(hub.asked)
    Checkpoint.open(source.path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(NAME) == resolve(NAME, COMMIT) == source


def sharded(checkpoint: Path, *shards: str) -> dict[str, bytes]:
    """A repository whose tensors lie in the first of these files; its index names one in each of the others too."""
    files = contents(checkpoint)
    weights = files.pop("model.safetensors")
    names = dict.fromkeys(Checkpoint.open(checkpoint).tensors, shards[0]) | {shard: shard for shard in shards[1:]}
    index = json.dumps({"metadata": {}, "weight_map": names}).encode()
    return files | dict.fromkeys(shards, weights) | {"model.safetensors.index.json": index}


@pytest.mark.parametrize(
    "shard",
    [
        "model-00001-of-00001.safetensors",
        "model.safetensors-00001-of-00001.safetensors",  # of Qwen3.5
        "pytorch_model-00001-of-00001.safetensors",
        "weights.safetensors",
    ],
)
def test_shards_are_those_that_the_index_names_whatever_they_are_called(
    hub: Hub, cache: Path, checkpoint: Path, shard: str, monkeypatch: pytest.MonkeyPatch
):
    useless = {"model-00001-of-00002.safetensors": b"x", "model.fp16.safetensors": b"x"}
    hub.repositories[NAME] = sharded(checkpoint, shard) | useless
    usage = shutil.disk_usage(checkpoint)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=500_000))
    with pytest.raises(BadInput, match=r"needs [1-9]\.\d MB more"):
        resolve(NAME)
    assert not cache.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert Checkpoint.open(resolve(NAME).path).num_parameters == Checkpoint.open(checkpoint).num_parameters
    assert not set(useless) & set(hub.asked)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a.safetensors": None}, r"lacks 1 of the 2 weight files that its model.*json names \(a.safetensors\)"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../a"}}'},
            rf"{NAME} on the hub/.*index.json: weight_map names '../a', which is no file",
        ),
        ({"model.safetensors.index.json": b"{"}, rf"{NAME} on the hub/.*index.json"),
    ],
)
def test_an_index_that_cannot_be_used_is_refused_before_weights_are_downloaded(
    hub: Hub, cache: Path, checkpoint: Path, change: dict[str, bytes | None], said: str
):
    files = sharded(checkpoint, "b.safetensors", "a.safetensors") | change
    hub.repositories[NAME] = {name: content for name, content in files.items() if content is not None}
    with pytest.raises(BadInput, match=said):
        resolve(NAME)
    assert not cache.exists()


def test_an_adapter_is_downloaded_without_its_checkpoints(hub: Hub, cache: Path):
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x", "adapter_model.bin": b"x"}
    hub.repositories[NAME] = adapter | {"checkpoint-1/adapter_model.safetensors": b"x", "tokenizer.json": b"{}"}
    found = contents(resolve(NAME).path)
    assert set(found) == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}


def config_with_code(files: dict[str, bytes]) -> dict[str, bytes]:
    config = json.loads(files["config.json"]) | {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.A"}}
    return files | {"config.json": json.dumps(config).encode()}


def only(*names: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {"config.json": files["config.json"]} | dict.fromkeys(names, b"x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (only("pytorch_model.bin"), r"its weights only as pickles \(pytorch_model.bin\)"),
        (only("m-Q4.gguf", "m-Q8.gguf"), r"only GGUF files \(m-Q4.gguf\)"),
        (only("README.md"), "neither a checkpoint nor a LoRA adapter"),
        (only("model.safetensors"), "has no tokenizer"),
        (lambda files: {k: v for k, v in files.items() if k != "config.json"}, "has no config.json"),
        (config_with_code, "it needs code of its own, which evalkit does not run"),
    ],
)
def test_what_cannot_be_used_is_refused_and_leaves_nothing_behind(
    hub: Hub, cache: Path, checkpoint: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], said: str
):
    hub.repositories[NAME] = change(contents(checkpoint))
    with pytest.raises(BadInput, match=said):
        resolve(NAME)
    assert not cache.exists()
    assert set(hub.asked) <= {"config.json"}


def test_a_disk_that_is_too_small_for_what_is_missing_is_named_with_both_sizes(
    hub: Hub, cache: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.repositories[NAME] = contents(checkpoint)
    usage = shutil.disk_usage(checkpoint)._replace(free=500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(
        BadInput, match=r"needs [1-9]\.\d MB more .*hub has 0\.5 MB free; make room, or set HF_HUB_CACHE"
    ):
        resolve(NAME)
    assert not cache.exists()
    put_into_cache(cache, checkpoint, leave_out="tokenizer_config.json")
    (cache / "models--some-lab--tiny-model" / "snapshots" / COMMIT / "tokenizer.json").unlink()
    assert resolve(NAME).commit == COMMIT, "the weights are there, and the rest fits"


def test_a_mistyped_gated_or_unknown_name_or_revision_is_told_apart(hub: Hub, cache: Path, checkpoint: Path):
    hub.repositories[NAME] = contents(checkpoint)
    with pytest.raises(BadInput, match=r"no model of this name on the hub .*models\?search=tinny-model,"):
        resolve("some-lab/tinny-model")
    with pytest.raises(BadInput, match=rf"{NAME} has no revision v7; see .*{NAME}/tree/main"):
        resolve(NAME, "v7")
    hub.gated.add(NAME)
    with pytest.raises(BadInput, match=rf"{NAME} is gated: ask for access at .*{NAME}, then type: hf auth login"):
        resolve(NAME)
    assert not cache.exists()


def test_a_hub_that_does_not_answer_is_named_with_the_command(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=rf"cannot be downloaded \(.*: hf download {NAME}$"):
        resolve(NAME)
    assert not cache.exists()


def evalkit(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def asked(*more: object) -> tuple[object, ...]:
    common = ("--task", "babilong", "--subsets", "qa1", "--lengths", "1k", "--samples", 2, "--backend", "scripted")
    return ("run", *common, *more)


def test_a_run_names_its_arm_after_the_hub_name_and_is_bound_to_the_commit(
    cache: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    put_into_cache(cache, checkpoint)
    put_into_cache(cache, checkpoint, commit=OLDER, ref="v1")
    shown = evalkit(*asked("--model", NAME))
    assert shown.exit_code == 0, shown.output
    (out,) = (tmp_path / "results").iterdir()
    folder = RunFolder.open(out)
    assert out.name.startswith("some-lab-tiny-model-")
    assert folder.arm == f"{NAME} (scripted: oracle)"
    assert (folder.config["model"], folder.config["revision"]) == (NAME, None)
    assert folder.fingerprint["checkpoint.commit"] == COMMIT
    assert "2 samples recorded, 0 asked now" in evalkit(*asked("--model", NAME, "--revision", COMMIT)).output
    older = evalkit(*asked("--model", NAME, "--revision", "v1", "--out", out))
    assert older.exit_code == 2
    assert f'checkpoint.commit is "{COMMIT}" there and "{OLDER}" now' in older.output
    (cache / "models--some-lab--tiny-model" / "refs" / "main").write_text(OLDER)
    for key in ("qa1/1k/00000", "qa1/1k/0", "qa1/1024/00"):
        assert "rebuilt: the same" in evalkit("show", out, key).output, "of the commit that was asked"


def test_check_crosscheck_and_train_take_a_hub_name_as_run_does(cache: Path, checkpoint: Path, tmp_path: Path):
    put_into_cache(cache, checkpoint)
    checked = evalkit("check", NAME, "--lengths", "1k")
    assert checked.exit_code == 0, checked.output
    assert f"commit: {COMMIT}" in checked.output
    data = ("--subsets", "qa1", "--samples", 2, "--longest", 512, "--epochs", 1, "--accumulation", 1)
    trained = evalkit("train", "--base", NAME, "--out", tmp_path / "trained", "--recipe", "plain", *data)
    assert trained.exit_code == 0, trained.output
    record = json.loads((tmp_path / "trained" / "evalkit_training.json").read_text())
    assert (record["base"]["name"], record["base"]["commit"]) == (NAME, COMMIT)
    crossed = evalkit(
        "crosscheck", NAME, "--backends", "hf,scripted", "--lengths", "512", "--subsets", "qa1", "--samples", 1
    )
    assert "hf and scripted give the same answer to 0 of 1 prompts" in crossed.output


def test_an_adapter_may_be_a_hub_name_too(cache: Path, checkpoint: Path, tmp_path: Path):
    adapter = write_adapter(tmp_path / "adapter")
    put_into_cache(cache, adapter)
    checked = evalkit("check", checkpoint, "--adapter", NAME, "--lengths", "1k")
    assert f"adapter commit: {COMMIT}" in checked.output
    lost = evalkit("check", checkpoint, "--adapter", NAME, "--adapter-revision", "v9", "--lengths", "1k")
    assert "HF_HUB_OFFLINE is set" in lost.output
    alone = evalkit("check", checkpoint, "--adapter-revision", "v9", "--lengths", "1k")
    assert "--adapter-revision v9 needs --adapter" in alone.output


@pytest.mark.parametrize(
    "command",
    [
        asked("--model", NAME, "--out", "out"),
        ("check", "--model", NAME, "--lengths", "1k"),
        ("crosscheck", NAME, "--backends", "hf,scripted"),  # one that is not installed is refused before it
        ("train", "--base", NAME, "--out", "out", "--recipe", "plain"),
    ],
)
def test_a_model_that_is_not_there_is_refused_in_one_sentence_and_leaves_no_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...]
):
    monkeypatch.chdir(tmp_path)
    shown = evalkit(*command)
    assert shown.exit_code == 2
    assert shown.output.startswith(f"evalkit: {NAME} is neither a folder nor whole in the hub's cache")
    assert shown.output.endswith(f"type where there is a network: hf download {NAME}\n")
    assert list(tmp_path.iterdir()) == []
