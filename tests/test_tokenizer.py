"""The tokenizer of a checkpoint folder is what its own files say, for check, runs, training and backends alike."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import BadInput
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.tokenizer import chat_template, load_tokenizer
from tests.variants import variant

MESSAGES = [{"role": "user", "content": "Where is Mary?"}]


def settings(folder: Path, **values: Any) -> None:
    """Change ``tokenizer_config.json``."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


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
