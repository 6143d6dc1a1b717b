"""The tokenizer of a checkpoint folder is what its own files say, for check, runs, training and backends alike."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from evalkit.errors import BadInput
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.tokenizer import chat_template, decode_answer, load_tokenizer, stop_token_ids
from evalkit.runs.check import CheckReport, check
from evalkit.runs.config import run_config
from tests.variants import variant

MESSAGES = [{"role": "user", "content": "Where is Mary?"}]


def settings(folder: Path, **values: Any) -> None:
    """Change ``tokenizer_config.json``."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def report(folder: Path) -> CheckReport:
    return check(run_config({"model": str(folder), "task": "babilong", "lengths": "1k", "backend": "hf"}))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json", "chat_template.json"])
@pytest.mark.parametrize("named", [False, True])
def test_a_template_is_found_where_it_lies_and_wraps_the_prompts_that_are_asked(copy: Path, file: str, named: bool):
    template = (copy / "chat_template.jinja").read_text()
    rendered = Encoder.open(copy).render(MESSAGES)
    (copy / "chat_template.jinja").unlink()
    assert not Checkpoint.open(copy).has_chat_template
    value = (
        [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}] if named else template
    )
    if file.endswith(".jinja"):
        (copy / file).write_text(template)
    elif file == "tokenizer_config.json":
        settings(copy, chat_template=value)
    else:
        (copy / file).write_text(json.dumps({"chat_template": value}))
    assert chat_template(copy) == template
    assert Checkpoint.open(copy).has_chat_template
    assert Encoder.open(copy).render(MESSAGES) == rendered != MESSAGES[0]["content"]


def test_several_templates_without_a_default_are_refused(copy: Path):
    (copy / "chat_template.jinja").unlink()
    settings(copy, chat_template=[{"name": "rag", "template": "a"}, {"name": "tool_use", "template": "b"}])
    with pytest.raises(BadInput, match=r"no default chat template \(it has: rag, tool_use\)"):
        Encoder.open(copy)


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", "Qwen2Tokenizer", "GemmaTokenizer"])
def test_a_tokenizer_class_does_not_replace_what_the_file_says(checkpoint: Path, tmp_path: Path, name: str):
    # Llama's class cuts at spaces that it never puts back: "Marywenttothekitchen."
    folder = variant(checkpoint, tmp_path / "c", model_type="llama", architectures=["LlamaForCausalLM"])
    settings(folder, tokenizer_class=name, legacy=True, bos_token="<|endoftext|>", unk_token=None)
    text = "Mary went to  the kitchen.\nJohn's 1984!"
    encoder = Encoder.open(folder)
    assert encoder.encode_after(text, "").tolist() == Encoder.open(checkpoint).encode_after(text, "").tolist()
    assert encoder.decode(encoder.encode_after(text, "")) == text


def test_a_config_that_adds_tokens_to_the_file_is_refused(copy: Path):
    added = {"content": " kitchen", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    settings(copy, added_tokens_decoder={"4096": added | {"special": False}})
    with pytest.raises(BadInput, match=r"two tokenizers: loaded with tokenizer_config\.json"):
        load_tokenizer(copy)


def stops(folder: Path, *, config: Any = None, generation: Any = None, eos: str = "<|endoftext|>") -> tuple[int, ...]:
    """Write where stop tokens are named (none where None), and return those that a run takes."""
    settings(folder, eos_token=eos)
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        values = json.loads((folder / name).read_text())
        values.pop("eos_token_id", None)
        (folder / name).write_text(json.dumps(values if value is None else values | {"eos_token_id": value}))
    return stop_token_ids(folder, load_tokenizer(folder))


def test_stop_tokens_are_gathered_from_all_places_that_name_them(copy: Path):
    assert stops(copy, config=[0, 2]) == (0, 2)
    assert stops(copy, generation=2) == (0, 2)
    assert stops(copy, config=2, generation=[7, 9], eos="<|im_end|>") == (2, 7, 9)
    values = json.loads((copy / "config.json").read_text()) | {"text_config": {"eos_token_id": 11}}
    (copy / "config.json").write_text(json.dumps(values))
    assert 11 in stop_token_ids(copy, load_tokenizer(copy))


def test_a_turn_that_ends_with_no_stop_token_is_warned_about(copy: Path):
    stops(copy, config=0)
    assert any("ends a turn with '<|im_end|>' (2), which is not among" in text for text in report(copy).warnings)
    stops(copy, config=[0, 2])
    assert Encoder.open(copy).warnings == ()
    # GLM's template writes nothing behind an answer: the next turn's opening ends it.
    (copy / "chat_template.jinja").write_text("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")
    assert "ends a turn with '<|im_start|>' (1)" in Encoder.open(copy).warnings[0]
    stops(copy, config=[0, 1])
    assert Encoder.open(copy).warnings == ()


WITH_DEFAULT = (
    "{% if messages[0]['role'] == 'system' %}[{{ messages[0]['content'] }}]{% else %}[You are a default helper.]"
    "{% endif %}{{ messages[-1]['content'] }}"
)


def test_an_empty_system_prompt_is_an_empty_message_and_not_the_templates_own(copy: Path):
    (copy / "chat_template.jinja").write_text(WITH_DEFAULT)
    assert Encoder.open(copy, system_prompt="").render(MESSAGES) == "[]Where is Mary?"
    assert Encoder.open(copy).render(MESSAGES) == "[You are a default helper.]Where is Mary?"


@pytest.mark.parametrize("prompt", ["", "Be brief."])
def test_a_system_prompt_that_the_template_does_not_write_is_refused(copy: Path, prompt: str):
    (copy / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    with pytest.raises(BadInput, match="makes the same prompt with the system prompt"):
        Encoder.open(copy, system_prompt=prompt)


def test_a_token_beyond_the_vocabulary_does_no_harm_until_a_prompt_uses_it(copy: Path):
    file = copy / "tokenizer.json"
    values = json.loads(file.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    values["added_tokens"].append({"id": 4096, "content": "<image_soft_token>", **flags})
    file.write_text(json.dumps(values))
    assert report(copy).ok
    encoder = Encoder.open(copy, vocab_size=4096)
    assert encoder.encode_prompt("Mary").size
    for encode in (encoder.encode_prompt, encoder.encode_after, encoder.encode_with_starts):
        with pytest.raises(BadInput, match=r"token 4,096 \('<image_soft_token>'\), and the model has only 4,096"):
            encode("a <image_soft_token>")
    (copy / "chat_template.jinja").write_text("<image_soft_token>{{ messages[-1]['content'] }}")
    assert "do not belong together" in report(copy).problems[0]


def test_marks_of_reasoning_stay_in_an_answer_though_they_are_special_tokens(copy: Path):
    file = copy / "tokenizer.json"
    values = json.loads(file.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    values["added_tokens"] += [{"id": 4096 + i, "content": c, **flags} for i, c in enumerate(("[THINK]", "[/THINK]"))]
    file.write_text(json.dumps(values))
    tokenizer = load_tokenizer(copy)
    ids = tokenizer("[THINK]Mary went.[/THINK] kitchen<|im_end|>", add_special_tokens=False).input_ids
    assert decode_answer(tokenizer, ids) == "[THINK]Mary went.[/THINK] kitchen"
    plain = tokenizer("Mary went to the  kitchen.<|im_end|><|endoftext|>", add_special_tokens=False).input_ids
    assert decode_answer(tokenizer, plain) == tokenizer.decode(plain, skip_special_tokens=True)


ENDING = {
    "plain": "",
    "opened": "<think>\n",
    "switch": "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
    "on by default": "{% if enable_thinking is not defined or enable_thinking %}<think>{% else %}</think>{% endif %}",
}


@pytest.mark.parametrize(
    ("ending", "args", "thinking"),
    [
        ("plain", {}, "none"),
        ("opened", {}, "open"),
        ("switch", {}, "possible"),
        ("switch", {"enable_thinking": True}, "possible"),
        ("switch", {"enable_thinking": False}, "none"),
        ("on by default", {}, "open"),
        ("on by default", {"enable_thinking": False}, "none"),
    ],
)
def test_it_is_known_whether_an_answer_begins_with_reasoning(
    copy: Path, ending: str, args: dict[str, Any], thinking: str
):
    (copy / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}\n" + ENDING[ending])
    encoder = Encoder.open(copy, template_args=args)
    assert encoder.thinking == thinking
    assert any("cut off in its thoughts" in text for text in encoder.warnings) is (thinking != "none")
    assert any("--template-arg enable_thinking=false" in text for text in encoder.warnings) is (
        thinking != "none" and ending != "opened"
    )


def test_template_arguments_reach_the_template_and_the_identity(copy: Path):
    (copy / "chat_template.jinja").write_text(
        "{% generation %}{% endgeneration %}{{ effort }} {{ messages[-1]['content'] }}"
    )
    low, high = (Encoder.open(copy, template_args={"effort": effort}) for effort in ("low", "high"))
    assert low.render(MESSAGES) == "low Where is Mary?"
    assert len({low.identity, high.identity, Encoder.open(copy).identity}) == 3


@pytest.mark.parametrize(
    ("args", "chat", "said"),
    [
        ({"enable_thinking": False}, None, r"ignores enable_thinking; .*it reads: no arguments"),
        ({"messages": []}, None, "messages is set by evalkit itself"),
        ({"enable_thinking": False}, False, "prompts are plain here"),
    ],
)
def test_a_template_argument_without_effect_is_refused(copy: Path, args: dict[str, Any], chat: bool | None, said: str):
    with pytest.raises(BadInput, match=said):
        Encoder.open(copy, chat=chat, template_args=args)


def test_a_file_at_which_the_library_panics_is_refused_in_a_sentence(copy: Path):
    values = json.loads((copy / "tokenizer.json").read_text())
    values["model"]["continuing_subword_prefix"] = "longer than any token"  # cut off the second of each merge
    (copy / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(BadInput, match=r"No tokenizer can be loaded from .*copy \(.* out of range"):
        load_tokenizer(copy)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"content": "<|endoftext|>", "\x1b[31mx": True}}}),
        (
            "tokenizer_config.json",
            {"extra_special_tokens": [{"__type": "AddedToken", "content": "<|im_end|>", "\x1b[31mx": 1}]},
        ),
        ("special_tokens_map.json", {"bos_token": {"content": "<|endoftext|>", "\x1b[31mx": 1}}),
    ],
)
def test_what_the_library_prints_past_python_of_a_field_it_does_not_know_reaches_nobody(
    copy: Path, capfd: pytest.CaptureFixture[str], file: str, values: dict[str, Any]
):
    before = json.loads((copy / file).read_text()) if (copy / file).exists() else {}
    (copy / file).write_text(json.dumps(before | values))
    AddedToken("x", **{"a new field": 1})  # what it does, for which JSON on stdout has no room
    assert capfd.readouterr().out == "Ignored unknown kwarg option a new field\n"
    load_tokenizer(copy)
    os.write(1, b"later")
    assert capfd.readouterr() == ("later", "")
