"""Files that others wrote: what is no file of its kind is refused in one sentence with file and field, and no more."""

import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import evalkit
from evalkit.errors import BadInput, RunFolderError
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.reading import parse_json, read_json, read_toml
from evalkit.records import lines
from evalkit.records.folder import RunFolder
from evalkit.records.scoring import score_folder, score_folders
from evalkit.report.load import load_runs
from evalkit.runs.config import run_config
from tests.report_runs import holds_to, write_run
from tests.test_checkpoint import write_adapter
from tests.variants import variant


def raw(place: str, value: str) -> bytes:
    """A JSON object in which a text stands as it is: what Python would not write."""
    return json.dumps({place: "@"}).replace('"@"', value).encode()


def one_sentence(error: BaseException, *named: str) -> None:
    said = str(error)
    assert "\n" not in said
    assert len(said) < 700
    for name in named:
        assert name in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 200_000, "nested deeper than 100 levels"),
        ('{"a":' * 200_000, "nested deeper than 100 levels"),
        ('{"a":' + "[" * 150 + "]" * 150 + "}", "nested deeper than 100 levels"),
        ('{"a": ' + "9" * 5000 + "}", "a whole number of 5,000 digits"),
        ('{"a": ' + "9" * 61 + "}", "a whole number of 61 digits"),
        ('{"a": 1,}', "is not JSON: line 1"),
        ("", "is not JSON: line 1"),
        ("[1]", "holds list; it should be a JSON object"),
        ("null", "holds NoneType; it should be a JSON object"),
    ],
)
def test_json_beyond_all_bounds_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BadInput, match=said) as refused:
        read_json(tmp_path / "a.json")
    one_sentence(refused.value, str(tmp_path / "a.json"))


def test_json_within_bounds_is_read_and_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    deep = "[" * 99 + "]" * 99
    assert parse_json(deep, "it") == json.loads(deep)
    assert parse_json('{"limit": ' + "9" * 60 + "}", "it") == {"limit": int("9" * 60)}
    assert read_json(tmp_path / "none.json") is None
    with pytest.raises(BadInput, match="is no regular file"):
        read_json(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(BadInput, match="not text in UTF-8"):
        read_json(tmp_path / "latin.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "nested deeper"),
        ("a = " + "[" * 200 + "]" * 200, "nested deeper"),
        ("a = " + "9" * 5000, "is not a TOML file"),
        ("a = " + "9" * 400, "a whole number of 4"),
        ("a = ", "is not a TOML file"),
        ("a = '\udcff'", "not text in UTF-8"),
    ],
)
def test_toml_beyond_all_bounds_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.toml").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match=said) as refused:
        read_toml(tmp_path / "a.toml")
    one_sentence(refused.value, str(tmp_path / "a.toml"))


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"text_config": "qwen"}, "text_config is 'qwen'"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
    ({"hidden_size": [64]}, "hidden_size is [64]"),
    ({"vocab_size": 2**50}, "vocab_size is 1125899906842624"),
    ({"max_position_embeddings": 2.5}, "max_position_embeddings is 2.5"),
    ({"eos_token_id": "stop"}, "eos_token_id"),
    ({"eos_token_id": [2, -1]}, "eos_token_id"),
    ({"architectures": "Qwen2ForCausalLM"}, "architectures is 'Qwen2ForCausalLM'"),
    ({"quantization_config": []}, "quantization_config is []"),
    ({"quantization_config": {"quant_method": ["fp8"]}}, "quantization_config.quant_method is ['fp8']"),
    ({"rope_parameters": [1]}, "rope_parameters"),
    ({"rope_parameters": {"rope_type": ["yarn"], "rope_theta": 1e4}}, "rope_type"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": float("nan"), "factor": 2.0}}, "rope_theta"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": float("inf")}}, "factor"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": [2.0]}}, "factor"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 10**50}}, "factor"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "truncate": "no"}}, "truncate"),
    ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": "1"}}, "short_factor"),
    ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, -0.0]}}, "short_factor"),
    ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": "1"}}}, "rope_theta"),
]


@pytest.mark.parametrize(("config", "field"), CONFIGS, ids=[field for _, field in CONFIGS])
def test_a_config_with_a_value_of_the_wrong_kind_is_refused_with_the_field(
    checkpoint: Path, tmp_path: Path, config: dict[str, Any], field: str
) -> None:
    folder = variant(checkpoint, tmp_path / "c", **config)
    with pytest.raises(BadInput) as refused:
        Checkpoint.open(folder)
    one_sentence(refused.value, "config.json", field)


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("generation_config.json", b'{"eos_token_id": {"a": 1}}', "eos_token_id"),
        ("generation_config.json", raw("eos_token_id", "9" * 5000), "5,000 digits"),
        ("generation_config.json", b"[]", "should be a JSON object"),
        ("tokenizer_config.json", b'{"model_max_length": "long"}', "model_max_length is 'long'"),
        ("tokenizer_config.json", raw("model_max_length", "NaN"), "model_max_length"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"0": "x"}}', "added_tokens_decoder.0"),
        ("config.json", raw("rope_theta", "9" * 5000), "5,000 digits"),
        ("config.json", b'{"a":' * 200_000, "nested deeper"),
    ],
)
def test_the_small_files_beside_the_config_are_read_as_strictly(
    checkpoint: Path, tmp_path: Path, name: str, content: bytes, field: str
) -> None:
    folder = variant(checkpoint, tmp_path / "c")
    (folder / name).write_bytes(content)
    with pytest.raises(BadInput) as refused:
        Encoder.open(Checkpoint.open(folder).path)
    one_sentence(refused.value, name, field)


def with_header(folder: Path, change: Any) -> None:
    content = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


NORM, BIAS = "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h[NORM].update(dtype="F17"), "the dtype 'F17', which safetensors does not have"),
        (lambda h: h[NORM].update(dtype=5), f"{NORM}.dtype is 5"),
        (lambda h: h[NORM].update(shape=[32]), f"{NORM} .* cannot lie in the bytes"),
        (lambda h: h[NORM].update(shape=[-64]), f"{NORM}.shape.0 is -64"),
        (lambda h: h[NORM].update(shape="64"), f"{NORM}.shape is '64'"),
        (lambda h: h[NORM].update(shape=[2**30, 2**30, 2**30]), f"{NORM} .* cannot lie"),
        (lambda h: h[BIAS].update(data_offsets=h[BIAS]["data_offsets"][::-1]), "cannot lie in the bytes"),
        (lambda h: h[BIAS].update(data_offsets=[0, 256]), "cannot lie in the bytes"),
        (lambda h: h[NORM].update(data_offsets=[0]), f"{NORM}.data_offsets.1 is missing"),
        (lambda h: h[NORM].update(data_offsets=[0, 10**50]), "bytes where its header says"),
        (lambda h: h[NORM].pop("dtype"), f"{NORM}.dtype is missing"),
        (lambda h: h.update({NORM: None}), f"{NORM} is None"),
        (lambda h: h.update(__metadata__=[1]), "__metadata__ is"),
        (lambda h: h.update(__metadata__={"format": 1}), "__metadata__.format is 1"),
    ],
)
def test_weights_whose_header_is_wrong_are_refused_before_anybody_loads_them(
    checkpoint: Path, tmp_path: Path, change: Any, said: str
) -> None:
    folder = variant(checkpoint, tmp_path / "c")
    with_header(folder, change)
    with pytest.raises(BadInput, match=said) as refused:
        Checkpoint.open(folder)
    one_sentence(refused.value, "model.safetensors")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "weight_map is missing"),
        ({"weight_map": {}}, "weight_map is {}"),
        ({"weight_map": {NORM: 1}}, "weight_map.model.norm.weight is 1"),
        ({"weight_map": {NORM: "../model.safetensors"}}, "which is no file beside it"),
        ({"weight_map": {NORM: "model-2.safetensors"}}, "lacks 1 of its 1 weight files"),
        ({"weight_map": {"model.other": "model.safetensors"}}, "says that model.other lies in model.safetensors"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(
    checkpoint: Path, tmp_path: Path, index: dict[str, Any], said: str
) -> None:
    folder = variant(checkpoint, tmp_path / "c")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput) as refused:
        Checkpoint.open(folder)
    one_sentence(refused.value, said)


def test_a_tensor_in_two_files_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = variant(checkpoint, tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    save_file({NORM: np.ones_like(tensors[NORM])}, folder / "second.safetensors", metadata={"format": "pt"})
    places = dict.fromkeys(tensors, "model.safetensors") | {NORM: "second.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(BadInput, match=f"both hold the tensor {NORM}"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": "4"}, "r is '4'"),
        ({"r": 2**40}, "r is 1099511627776"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'"),
        ({"target_modules": [1]}, "target_modules"),
        ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path is ['a']"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern.q_proj is -1"),
        ({"peft_type": ["LORA"]}, "of type ['LORA']"),
        ({"use_dora": "yes"}, "use_dora is 'yes'"),
        ({"task_type": []}, "peft cannot use"),
        ({"target_modules": ["Q_PROJ"]}, "Target modules {'Q_PROJ'} not found"),
        ({"target_modules": "(("}, "peft cannot use"),
        ({"lora_alpha": 0}, "its lora_alpha is 0"),
        ({"bias": "NONE"}, "bias is 'NONE'"),
    ],
)
def test_an_adapter_config_of_other_types_is_refused_with_the_field(
    checkpoint: Path, tmp_path: Path, settings: dict[str, Any], field: str
) -> None:
    adapter = write_adapter(tmp_path / "a", **settings)
    with pytest.raises(BadInput) as refused:
        Checkpoint.open(checkpoint, adapter=adapter)
    one_sentence(refused.value, str(adapter), field)


# Run folders

MOMENT = "2026-01-01T00:00:00+00:00"
PACE = {"samples": 1, "prompt_tokens": 1000, "seconds": 2.0}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for arm in ("good", "bad"):
        write_run(tmp_path / arm, arm=arm, accuracy=holds_to(1024), lengths=("1k",), subsets=("qa1",), samples=3)
    return tmp_path


def rewrite_line(folder: Path, **changes: Any) -> None:
    """Change fields of the first line (None: take it out), with a checksum that fits."""
    file = folder / "predictions.jsonl"
    first, rest = file.read_bytes().split(b"\n", 1)
    record = json.loads(first)
    del record["checksum"]
    for name, value in changes.items():
        if value is ...:
            del record[name]
        else:
            record[name] = value
    body = json.dumps(record).encode()[:-1]
    file.write_bytes(body + lines._CHECKSUM % zlib.crc32(body) + rest)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"question": ...}, "question is missing"),
        ({"output": ["garden"]}, "output is ['garden']; it should be text or null"),
        ({"output": None}, "of output and error exactly one should be null"),
        ({"output": None, "error": ": no kind"}, "error is ': no kind'; it should begin with its kind"),
        ({"prompt_tokens": True}, "prompt_tokens is True"),
        ({"prompt_tokens": 2**31}, "prompt_tokens is 2147483648"),
        ({"seconds": 10**400}, "seconds is 1000000000"),
        ({"seconds": -1.0}, "seconds is -1.0"),
        ({"answer_logprob": {"target": 10**400, "tokens": 1, "wrong": {}}}, "answer_logprob.target is 1000000000"),
        ({"attempt": -1}, "attempt is -1"),
        ({"fact_positions": [1.5]}, "fact_positions is 1.5"),
        ({"fact_positions": None}, "fact_positions is None"),
        ({"length": "long"}, "Length 'long' is not a number of tokens"),
        ({"metadata": []}, "metadata is []"),
        ({"metadata": {"supporting": ["a"]}}, "metadata.supporting is 'a'"),
        ({"metadata": {"facts": "Mary"}}, "metadata.facts is 'Mary'"),
        ({"metadata": {"tags": [1]}}, "metadata.tags is [1]"),
        ({"seconds": float("nan")}, "NaN is no number of JSON"),
    ],
)
def test_a_line_that_fits_its_checksum_and_is_no_prediction_leaves_out_its_folder_alone(
    runs: Path, changes: dict[str, Any], said: str
) -> None:
    rewrite_line(runs / "bad", **changes)
    with pytest.raises(RunFolderError) as refused:
        RunFolder.open(runs / "bad").recorded()
    one_sentence(refused.value, "Line 1 of", said)
    loaded = load_runs([runs])
    assert [run.arm for run in loaded.runs] == ["good"]
    assert any("bad is left out" in note for note in loaded.left_out)


def test_a_field_of_a_later_version_is_passed_over_and_stays_in_the_file(runs: Path) -> None:
    rewrite_line(runs / "bad", entropy=[0.5])
    folder = RunFolder.open(runs / "bad")
    assert len(folder.recorded()) == 3
    score_folder(folder)
    assert b'"entropy": [0.5]' in (runs / "bad" / "predictions.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("arm",), "", "arm is ''"),
        (("arm",), "a\x1b[31m", "cannot be printed"),
        (("arm",), "\ud800", "cannot be printed"),
        (("config", "scope"), [], "config.scope is []"),
        (("config", "scope", "lengths"), "1k", "config.scope.lengths is '1k'"),
        (("config", "scope", "lengths"), ["long"], "is not a number of tokens"),
        (("config", "scope", "samples"), "3", "config.scope.samples is '3'"),
        (("config", "scope", "repeat"), "2", "config.scope.repeat is '2'"),
        (("config", "scope", "repeat"), None, "config.scope.repeat is None"),
        (("config", "shard"), "1", "config.shard is '1'"),
        (("config", "trained_length"), "8k", "config.trained_length is '8k'"),
        (("config", "task"), 5, "config.task is 5"),
        (("provenance",), [5], "provenance.0 is 5"),
        (("provenance",), [{"answering": {"since": "today"}}], "provenance.0.answering.since"),
        (("provenance",), [{"started": "today"}], "provenance.0.started is 'today'"),
        (("provenance",), [{"engine": None}], "provenance.0.engine is None"),
        (("provenance",), [{"started": MOMENT, "pace": None}], "provenance.0.pace is None"),
        (("provenance",), [{"pace": {"loading_seconds": 1, "by_length": {"1k": PACE}}}], "says when it started"),
        (("provenance",), [{"started": MOMENT, "pace": {"by_length": {}}}], "pace.loading_seconds is missing"),
        (
            ("provenance",),
            [{"started": MOMENT, "pace": {"loading_seconds": 1, "by_length": {"1k": {"seconds": 2.0}}}}],
            "pace.by_length.1k.samples is missing",
        ),
        (("schema",), "2", "no object with a schema"),
    ],
)
def test_a_run_json_with_a_field_of_another_type_leaves_out_its_folder_alone(
    runs: Path, place: tuple[str, ...], value: Any, said: str
) -> None:
    file = runs / "bad" / "run.json"
    run = holder = json.loads(file.read_text())
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = value
    file.write_text(json.dumps(run))
    with pytest.raises(RunFolderError) as refused:
        RunFolder.open(runs / "bad")
    one_sentence(refused.value, "run.json is damaged or was edited by hand", said)
    assert [run.arm for run in load_runs([runs]).runs] == ["good"]
    found = list(score_folders([runs]))
    assert [isinstance(one, RunFolder) for one in found] == [False, True]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name",
    [
        "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors",
        "model.safetensors.index.json", "evalkit_training.json", "chat_template.jinja", "special_tokens_map.json",
        "added_tokens.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/nowhere/there")], ids=["pipe", "link"])
def test_a_pipe_or_a_link_to_nothing_in_the_place_of_a_file_is_refused(
    checkpoint: Path, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    folder = variant(checkpoint, tmp_path / "c")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(BadInput) as refused:
        Encoder.open(Checkpoint.open(folder).path)
    one_sentence(refused.value, str(folder))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["run.json", "predictions.jsonl"])
def test_a_pipe_in_a_run_folder_leaves_out_that_folder_alone(runs: Path, name: str) -> None:
    (runs / "bad" / name).unlink()
    os.mkfifo(runs / "bad" / name)
    loaded = load_runs([runs])
    assert [run.arm for run in loaded.runs] == ["good"]
    assert any("is no regular file" in note for note in loaded.left_out)


def test_a_file_larger_than_any_of_its_kind_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BadInput, match="1,099,511,627,776 bytes"):
        read_json(tmp_path / "a.json")


def test_json_and_toml_of_others_are_parsed_in_one_place() -> None:
    own = {  # what these parse they wrote themselves in the same breath, or a line with a checksum, or what was typed
        "reading.py", "fingerprint.py", "lines.py", "load.py", "training_record.py", "encoder.py",
    }  # fmt: skip
    for file in Path(evalkit.__file__).parent.rglob("*.py"):
        if file.name not in own:
            assert not re.search(r"\bjson\.loads?\(|\btomllib\b", file.read_text()), file


@pytest.mark.parametrize("settings", [{"task": []}, {"task": {"a": 1}}, {"backend": ["hf"]}, {"backend": 1}])
def test_a_task_or_backend_that_is_no_name_is_refused(settings: dict[str, Any]) -> None:
    given = {"model": "m", "task": "babilong", "lengths": "1k", "backend": "scripted"} | settings
    with pytest.raises(BadInput, match=f"There is no {next(iter(settings))} "):
        run_config(given, "study.toml")
