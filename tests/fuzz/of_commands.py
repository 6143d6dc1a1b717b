"""Odd command lines, and experiments with odd settings."""

import json
import random
from pathlib import Path

from tests.fuzz.sound import ASK, Commands, Sound
from tests.fuzz.spoiling import RAW, odd_value, spoil_bytes

_COMMANDS = ["check", "run", "run", "run", "train", "report", "crosscheck", "reproduce", "show", "export", "compare"]
_COMMANDS += ["plot", "score", "status", "tasks", "import", "new-checkpoint"]
_ODD_TEXTS = ["1e400", "9" * 400, "9" * 400 + "k", "0", "-5", "inf", "1k,2k", "qa1,qa99", "a=b", "\udcff", "x/" * 2500]
_ODD_TEXTS += ["x" * 300, "1/0", "9/3", "70/30:1", "hops>=" + "9" * 20, "2:1", "~", "", ".", "0.5,2"]


def flags(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """Options with values that are none, beyond any range, or paths to nowhere."""
    import click

    from evalkit.cli.commands import main

    name = rng.choice(_COMMANDS)
    command = main.commands[name]
    given: dict[str, list[str]] = {
        "check": ["--model", str(sound.checkpoint), "--lengths", "1k"],
        "run": ["--model", str(sound.checkpoint), *ASK, "--backend", "scripted", "--out", str(folder / "out")],
        "train": ["--base", str(sound.checkpoint), "--out", str(folder / "out"), "--recipe", "plain", "--longest", "0"],
        "report": [str(sound.folder / "runs"), "--out", str(folder / "plots")],
        "plot": [str(sound.folder / "runs"), "--out", str(folder / "plots")],
        "crosscheck": ["--model", str(sound.checkpoint), "--backends", "scripted,scripted", "--subsets", "qa1"],
        "reproduce": ["tiny", "--dry-run", "--out", str(folder / "out")],
        "show": [str(sound.folder / "runs" / "a"), "qa1/1k/00000"],
        "export": [str(sound.folder / "runs" / "a"), str(folder / "out"), "--to", "csv"],
        "compare": [str(sound.folder / "runs" / "a"), str(sound.folder / "runs" / "b")],
        "score": [str(sound.folder / "runs" / "a")],
        "status": [str(sound.folder / "runs")],
        "tasks": [],
        "import": [str(folder)],
        "new-checkpoint": [str(folder / "new")],
    }
    line = list(given[name])
    with click.Context(command) as context:
        options = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    for param in rng.sample(options, k=min(len(options), rng.choice([1, 1, 2, 3]))):
        if param.name in ("watch", "help", "base_url"):
            continue
        flag = rng.choice(param.opts)
        line += [flag] if param.is_flag else [flag, odd_text(rng)]
    if line and rng.random() < 0.3:
        at = rng.randrange(len(line))
        if not line[at].startswith("--"):
            line[at] = odd_text(rng)
    if name == "train" and "--longest" not in line[-2:]:
        line += ["--longest", "0"]  # refused at last, whatever the rest: no training
    if name == "run" and rng.random() < 0.5:
        line.append("--dry-run")
    return [[name, *(word.replace("\x00", "") for word in line)]]


def experiment(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """An experiment's TOML."""
    import evalkit.study.experiment as module

    files = sorted((Path(module.__file__).parent / "experiments").glob("*.toml"))
    (folder / "study.toml").write_bytes(_spoil_toml(rng, rng.choice(files).read_bytes()))
    paths = ["--out", str(folder / "o"), "--plots", str(folder / "p")]
    return [["reproduce", str(folder / "study.toml"), "--dry-run", *paths]]


def _spoil_toml(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.3:
        return spoil_bytes(rng, content)
    lines = content.decode().splitlines()
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randrange(len(lines))
        key, equals, _ = lines[at].partition("=")
        if equals and rng.random() < 0.8:
            lines[at] = f"{key}= {_odd_toml(rng)}"
        else:
            lines[at] = rng.choice(["", f"x = {_odd_toml(rng)}", "[arms]", "[[curves]]", "[[evaluation]]"])
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def odd_text(rng: random.Random) -> str:
    text = odd_value(rng)
    text = text if isinstance(text, str) else json.dumps(text)
    return rng.choice([text.removeprefix(RAW)[:6000], rng.choice(_ODD_TEXTS)])


_EVALUATION = """
[arms]
"plain" = { model = "CKPT" }
"long $YaRN" = { model = "CKPT", rope = "yarn", factor = 2 }
[[evaluation]]
task = "babilong"
subsets = ["qa1"]
lengths = ["1k"]
samples = 1
backend = "scripted"
[[evaluation]]
task = "mrcr"
subsets = ["2needle"]
lengths = ["1k"]
samples = 1
backend = "scripted"
"""


def evaluation(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """Several checkpoints and tasks from one file."""
    text = _EVALUATION.replace("CKPT", str(sound.checkpoint))
    (folder / "study.toml").write_bytes(_spoil_toml(rng, text.encode()))
    return [["run", str(folder / "study.toml"), "--dry-run", "--out", str(folder / "out")]]


def _odd_toml(rng: random.Random) -> str:
    deep = ["[" * 3000 + "]" * 3000, "{ a = " * 500 + "1" + "}" * 500]
    texts = ['""', '"x"', '"\\u0000"', '"\\u001b[31m"', '"$x^{$"', '"/nowhere"', '"16k"', '"999999999999999k"']
    numbers = ["nan", "inf", "-1", "0", "2.5", "1e400", "9" * 300, "9" * 5000]
    return rng.choice([*deep, *texts, *numbers, "[]", "[[1]]", "[1, 'a']", "{}", "{a = 1}", "true", "1979-05-27"])
