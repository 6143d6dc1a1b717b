"""Settings: declared once, written in three ways, and read back as what they were."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import BadInput
from evalkit.lengths import parse_length
from evalkit.options import (
    choices,
    from_text,
    option,
    read,
    refuse_unknown,
    settings,
    without_credentials,
    words,
    write,
)


@dataclass(frozen=True, kw_only=True)
class Rope:
    rule: Literal["none", "yarn"] = option("--rope", "The rule.", default="none")


@dataclass(frozen=True, kw_only=True)
class Config:
    model: Path = option("--model", "A folder.")
    names: tuple[str, ...] = option("--names", "Names.", default=())
    depths: tuple[float, ...] = option("--depth", "Depths.", default=())
    noise: tuple[Path, ...] = option("--noise", "Files.", default=(), repeat=True)
    longest: int = option("--longest", "Tokens.", default=8192, parse=parse_length)
    chat: bool | None = option("--chat-template", "Use it.", default=None)
    url: str | None = option("--url", "An address.", default=None, secret=True)
    rope: Rope = field(default_factory=Rope)


def typed(arguments: list[str]) -> dict[str, object]:
    """What the command line makes of words."""
    known, values, rest = settings(Config), {}, list(arguments)
    while rest:
        flag = rest.pop(0)
        key = flag.removeprefix("--no-").removeprefix("--").replace("-", "_")
        if key == "chat_template":
            values[key] = not flag.startswith("--no-")
            continue
        value = from_text(known[key], rest.pop(0))
        values[key] = (*values.get(key, ()), value) if known[key].option.repeat else value
    return values


name = st.text("abcqa123_-.", min_size=1, max_size=5)


@hypothesis.settings(deadline=None)
@given(
    config=st.builds(
        Config,
        model=name.map(Path),
        names=st.lists(name).map(tuple),
        depths=st.lists(st.floats(0, 1)).map(tuple),
        noise=st.lists(name.map(Path)).map(tuple),
        longest=st.integers(0, 2**31 - 1),
        chat=st.sampled_from([None, True, False]),
        url=st.sampled_from([None, "http://localhost:8000/v1"]),
        rope=st.builds(Rope, rule=st.sampled_from(["none", "yarn"])),
    )
)
def test_what_is_written_as_json_or_typed_reads_back_as_the_same(config):
    assert read(Config, write(config), "run.json") == config
    assert read(Config, typed(words(config)), "the command line") == config


def test_defaults_are_not_typed_and_keys_are_the_flags():
    assert words(Config(model=Path("m"), rope=Rope(rule="yarn"))) == ["--model", "m", "--rope", "yarn"]
    assert set(settings(Config)) == {"model", "names", "depth", "noise", "longest", "chat_template", "url", "rope"}
    assert choices(settings(Config)["rope"]) == ("none", "yarn")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "study.toml has no model"),
        ({"model": 3}, "study.toml: model is 3"),
        ({"model": "m", "depth": [0, "x"]}, "study.toml: depth is"),
        ({"model": "m", "depth": [float("nan")]}, "study.toml: depth is"),
        ({"model": "m", "longest": "8q"}, "study.toml: longest is '8q'; length '8q' is not a number of tokens"),
        ({"model": "m", "longest": True}, "study.toml: longest is True"),
        ({"model": "m", "rope": "yarm"}, "study.toml: rope is 'yarm'"),
        ({"model": "m", "chat_template": "yes"}, "study.toml: chat_template is 'yes'"),
    ],
)
def test_a_value_of_another_type_is_refused_with_file_and_key(values, message):
    with pytest.raises(BadInput) as refused:
        read(Config, values, "study.toml")
    assert message in str(refused.value)


def test_an_unknown_key_is_refused_and_the_nearest_one_named():
    with pytest.raises(BadInput, match=r"study\.toml has the unknown setting lonquest; did you mean longest\?"):
        refuse_unknown({"lonquest": 1}, "study.toml", Config)


def test_passwords_and_keys_in_addresses_are_not_written_down():
    config = Config(model=Path("m"), url="http://me:secret@host:80/v1?api-key=hidden&x=1")
    assert write(config)["url"] == "http://***@host:80/v1?api-key=***&x=1"
    assert without_credentials("evalkit run --base-url 4k=https://a:b@c/v1 x@y") == (
        "evalkit run --base-url 4k=https://***@c/v1 x@y"
    )
