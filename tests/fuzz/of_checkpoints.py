"""Spoilt checkpoints: config, tokenizer, weights, adapter, chat template."""

import json
import random
import struct
from pathlib import Path
from typing import Any

from tests.fuzz.sound import ASK, Commands, Sound
from tests.fuzz.spoiling import odd_value, spoil_bytes, spoil_json, to_json


def config(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """A checkpoint's config, with one of several rope rules."""
    values = json.loads((sound.checkpoint / "config.json").read_text())
    rope: dict[str, Any] = rng.choice(
        [
            {},
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}},
            {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_parameters": None, "rope_theta": 1e4},
            {
                "rope_parameters": {
                    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
                }
            },
            {
                "rope_parameters": {
                    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 16, "long_factor": [2.0] * 16,
                    "original_max_position_embeddings": 1024,
                }
            },
            {"text_config": {"vocab_size": 100}},
            {"quantization_config": {"quant_method": "fp8"}},
            {"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"], "head_dim": 32},
        ]
    )  # fmt: skip
    return _checkpoint_commands(rng, sound, folder, {"config.json": spoil_json(rng, {**values, **rope})})


def tokenizer(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """The small files beside it: tokenizer, its config, generation config, further ones."""
    name = rng.choice(["tokenizer_config.json", "generation_config.json", "tokenizer.json", "special_tokens_map.json",
                       "added_tokens.json", "chat_template.json"])  # fmt: skip
    further = {"added_tokens_decoder": {"0": {"content": "<|x|>", "special": True}}, "model_max_length": 1e30,
               "chat_template": [{"name": "default", "template": "{{ messages }}"}]}  # fmt: skip
    file = sound.checkpoint / name
    values = json.loads(file.read_text()) if file.exists() else {"bos_token": "<s>", "chat_template": "{{ messages }}"}
    if name == "tokenizer_config.json" and rng.random() < 0.5:
        values |= further
    if name == "tokenizer.json":  # a small part of a large file, else all goes into the vocabulary
        model = values.pop("model")
        if rng.random() < 0.3:
            model[rng.choice(list(model))] = odd_value(rng)
            content = to_json({**values, "model": model})
        else:
            spoilt = spoil_json(rng, values).rstrip()
            content = spoilt[:-1] + b', "model": ' + to_json(model) + b"}" if spoilt.endswith(b"}") else spoilt
    else:
        content = spoil_json(rng, values)
    if rng.random() < 0.15:
        content = spoil_bytes(rng, content)
    return _checkpoint_commands(rng, sound, folder, {name: content})


def weights(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """The header of the weights, the index of several files, or the bytes themselves."""
    content = (sound.checkpoint / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    files: dict[str, bytes] = {}
    how = rng.random()
    if how < 0.5:
        text = spoil_json(rng, header)
        size = rng.choice([len(text)] * 8 + [len(text) - 1, 0, 2**63, len(text) + 1])
        files["model.safetensors"] = struct.pack("<Q", size) + text + data
    elif how < 0.7:
        files["model.safetensors"] = spoil_bytes(rng, content)
    else:
        name = rng.choice(["model.safetensors", "model-00001-of-00002.safetensors"])
        index = {
            "metadata": {"total_size": len(data)},
            "weight_map": dict.fromkeys([k for k in header if k != "__metadata__"], name),
        }
        files["model.safetensors.index.json"] = (
            spoil_json(rng, index) if rng.random() < 0.8 else spoil_bytes(rng, to_json(index))
        )
        if name != "model.safetensors":
            files[name] = content
    return _checkpoint_commands(rng, sound, folder, files)


def adapter(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """An adapter's config, weights or training record."""
    own = folder / "adapter"
    own.mkdir()
    for file in (sound.folder / "adapter").iterdir():
        (own / file.name).symlink_to(file)
    name = rng.choice(
        ["adapter_config.json", "adapter_config.json", "adapter_model.safetensors", "evalkit_training.json"]
    )
    content = (sound.folder / "adapter" / name).read_bytes()
    (own / name).unlink()
    if name.endswith(".json"):
        values = json.loads(content)
        values |= {"rank_pattern": {}, "modules_to_save": None, "use_dora": False} if name.startswith("adapter") else {}
        (own / name).write_bytes(spoil_json(rng, values) if rng.random() < 0.85 else spoil_bytes(rng, content))
    elif rng.random() < 0.5:
        length = struct.unpack("<Q", content[:8])[0]
        text = spoil_json(rng, json.loads(content[8 : 8 + length]))
        (own / name).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    else:
        (own / name).write_bytes(spoil_bytes(rng, content))
    given = ["--model", str(sound.checkpoint), "--adapter", str(own)]
    return _then_run(rng, folder, given)


def template(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """A chat template: broken ones, endless ones, ones that reach for what they must not have."""
    sound_one = (sound.checkpoint / "chat_template.jinja").read_text()
    odd = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3,
        "{% set ns = namespace(x='x') %}{% for a in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'x' * 10**10 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages[0]['content'] ",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ raise_exception('no\n\x1b[31mred') }}",
        "{{ messages | tojson }}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% include '/etc/passwd' %}",
        "{{ '\ud800' }}",
        "",
        "\x00",
        "{{ strftime_now('%Y') }}{{ bos_token }}{{ messages[0].content }}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{{ range(10**9) | list }}",
        "{{ '%1000000000d' % 1 }}",
        "<think>{{ messages[0].content }}<think>",
    ]
    if rng.random() < 0.5:
        text = rng.choice(odd).encode("utf-8", "surrogatepass")
    else:
        pieces = [rng.choice(odd) for _ in range(rng.randrange(1, 3))]
        at = rng.randrange(len(sound_one))
        text = (sound_one[:at] + rng.choice(["", *pieces]) + sound_one[at + rng.randrange(4) :]).encode(
            "utf-8", "surrogatepass"
        )
    given = [
        ["--system-prompt", "Be brief."],
        ["--template-arg", "enable_thinking=false"],
        ["--thinking-tokens", "64"],
        [],
    ]
    return _checkpoint_commands(rng, sound, folder, {"chat_template.jinja": text}, rng.choice(given))


def _checkpoint_commands(
    rng: random.Random, sound: Sound, folder: Path, files: dict[str, bytes], more: list[str] | None = None
) -> Commands:
    own = folder / "ckpt"
    own.mkdir()
    for file in sound.checkpoint.iterdir():
        if file.name not in files:
            (own / file.name).symlink_to(file)
    for name, content in files.items():
        (own / name).write_bytes(content)
    return _then_run(rng, folder, ["--model", str(own), *(more or [])])


def _then_run(rng: random.Random, folder: Path, given: list[str]) -> Commands:
    """Check, and for some also run with the model loaded: what the one lets pass the other must not refuse."""
    rope = rng.choice([[], [], ["--rope", "yarn", "--factor", "2"], ["--rope", "none"]])
    memory = ["--gpu-memory", "80"] if rng.random() < 0.2 else []
    commands = [["check", *given, *ASK, *rope, *memory, "--backend", "hf"]]
    if rng.random() < 0.3:
        commands.append(
            ["run", *given, *ASK, *rope, "--backend", "hf", "--max-new-tokens", "2", "--out", str(folder / "out")]
        )
    return commands
