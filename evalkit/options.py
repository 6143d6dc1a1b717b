"""How a setting is written: declared once, at its field, for the command line, TOML, run.json and printed commands.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        depths: tuple[float, ...] = option("--depth", "Facts at 0,0.25,... depth.", default=())

Outside, a setting goes by its *key*, the flag without dashes: ``--depth 0,0.5`` on the command line is
``depth = [0, 0.5]`` in TOML and ``"depth": [0, 0.5]`` in run.json. Settings of several classes lie flat side by side.
``read`` makes an instance of what was written; ``write``, ``words`` and ``to_toml`` write it down, each the way back.
"""

import json
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from inspect import get_annotations
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from evalkit.errors import BadInput
from evalkit.reading import shown

T = TypeVar("T")
_MOST = 2**63
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class Option:
    """How one field is written."""

    flag: str
    """Such as ``--depth``; of a yes-or-no setting the form that says yes."""
    help: str
    parse: Callable[[str], Any] | None = None
    """Makes a value of a text, where the type alone does not say how ("16k" for 16384)."""
    repeat: bool = False
    """Of several values each has its own flag, instead of one list with commas."""
    secret: bool = False
    """An address that may hold a password: it is written down without, and no repr shows it."""
    group: str = ""
    """The heading in --help under which it stands; "": that of its class, its ``GROUP``."""

    @property
    def key(self) -> str:
        """The name outside the command line."""
        return self.flag.removeprefix("--").replace("-", "_")


class Setting(NamedTuple):
    """One field of a class of options."""

    name: str
    option: Option
    hint: Any
    """Its type."""
    default: Any
    """``MISSING`` where it must be given."""
    group: str = ""
    """Heading in --help."""


def option(
    flag: str,
    help: str,
    *,
    default: Any = MISSING,
    parse: Callable[[str], Any] | None = None,
    repeat: bool = False,
    secret: bool = False,
    group: str = "",
) -> Any:
    """Return a dataclass field that can be written; see ``Option``."""
    metadata = {"option": Option(flag=flag, help=help, parse=parse, repeat=repeat, secret=secret, group=group)}
    return field(default=default, metadata=metadata, repr=not secret)


def settings(cls: type) -> Mapping[str, Setting]:
    """Return the settings of a class by key, those of nested classes (RopeRequest in RunConfig) among them."""
    return _settings(cls)


@cache
def _settings(cls: Any) -> Mapping[str, Setting]:
    found: dict[str, Setting] = {}
    hints = get_type_hints(cls)
    for one in fields(cls):
        if "option" in one.metadata:
            how: Option = one.metadata["option"]
            found[how.key] = Setting(one.name, how, hints[one.name], _default(one), how.group or _group(cls, one.name))
        elif is_dataclass(hints[one.name]) and one.init:
            found |= settings(hints[one.name])
    return found


def read(cls: type[T], values: Mapping[str, Any], where: str, **chosen: Any) -> T:
    """Make an instance of the values that belong to a class; others are left alone (``refuse_unknown`` names them).

    Args:
        cls: a class of options.
        values: by key, as TOML, JSON or the command line give them.
        where: the file, or "the command line", for messages.
        chosen: fields that are given ready made (whose class hangs on another setting).

    Raises:
        BadInput: a value is missing or of another type; names file and key. Whatever the class itself refuses.
    """
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = dict(chosen)
    for one in fields(cls):  # type: ignore[arg-type]
        if one.name in arguments:
            continue
        if "option" in one.metadata:
            setting = settings(cls)[one.metadata["option"].key]
            if setting.option.key in values:
                arguments[one.name] = _typed(setting, values[setting.option.key], where)
            elif setting.default is MISSING:
                raise BadInput(f"{where} has no {setting.option.key}: {setting.option.help}")
        elif is_dataclass(hints[one.name]) and one.init:
            arguments[one.name] = read(hints[one.name], values, where)
    return cls(**arguments)


def refuse_unknown(values: Mapping[str, Any], where: str, *classes: type) -> None:
    """Refuse a key that no class has.

    Raises:
        BadInput: the key, and the one that may have been meant.
    """
    from difflib import get_close_matches

    known = [key for cls in classes for key in settings(cls)]
    for key in values:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(set(known)))}."
            raise BadInput(f"{where} has the unknown setting {key}; {hint}")


def write(config: Any) -> dict[str, Any]:
    """Return all settings of an instance by key, as JSON values."""
    return {setting.option.key: _as_json(setting, value) for setting, value in _values(config)}


def words(config: Any) -> list[str]:
    """Return what is to be typed for an instance: every setting that is not the default."""
    typed: list[str] = []
    for setting, value in _chosen(config):
        flag = setting.option.flag
        if isinstance(value, bool):
            typed.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif setting.option.repeat:
            typed += [word for one in value for word in (flag, _text(one))]
        else:
            typed += [flag, ",".join(map(_text, value)) if isinstance(value, tuple) else _text(value)]
    return typed


def to_toml(config: Any) -> str:
    """Return the same as TOML, which ``read_toml`` and ``read`` turn into an equal instance; secrets are masked."""
    lines = []
    for setting, value in _chosen(config):
        text = json.dumps(_as_json(setting, value), ensure_ascii=False)
        lines.append(f"{setting.option.key} = {text}\n".replace("\x7f", "\\u007f"))  # the one that JSON lets pass
    return "".join(lines)


def from_text(setting: Setting, text: str) -> Any:
    """Make a value of what was typed behind a flag.

    Raises:
        BadInput: it is none; the flag, the text and what it should be.
    """
    kind = _without_none(setting.hint)
    if setting.option.parse is not None:
        return setting.option.parse(text)
    if get_origin(kind) is tuple and not setting.option.repeat:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(_scalar(setting, get_args(kind)[0], part) for part in parts)
    return _scalar(setting, get_args(kind)[0] if get_origin(kind) is tuple else kind, text)


def choices(setting: Setting) -> tuple[str, ...]:
    """Return the words that a setting may have; none where it may have others."""
    kind = _without_none(setting.hint)
    return get_args(kind) if get_origin(kind) is Literal else ()


def is_switch(setting: Setting) -> bool:
    """Tell whether a setting is yes or no."""
    return _without_none(setting.hint) is bool


def without_credentials(text: str) -> str:
    """Return a text with user names, passwords and keys in its addresses masked."""
    text = re.sub(r"(\w+://)[^/\s'\"]*@", r"\1***@", text)
    return re.sub(r"(?i)([?&][^=&\s'\"]*(?:key|token|secret|sig|password|auth)[^=&\s'\"]*=)[^&\s'\"]+", r"\1***", text)


def _values(config: Any) -> list[tuple[Setting, Any]]:
    found: list[tuple[Setting, Any]] = []
    own = settings(type(config))
    for one in fields(config):
        value = getattr(config, one.name)
        if "option" in one.metadata:
            found.append((own[one.metadata["option"].key], value))
        elif is_dataclass(value):
            found += _values(value)
    return found


def _chosen(config: Any) -> list[tuple[Setting, Any]]:
    """Return the settings that are not the default."""
    return [(how, value) for how, value in _values(config) if how.default is MISSING or value != how.default]


def _group(cls: type, name: str) -> str:
    """Return the heading that the class which declares a field gives to its options."""
    declaring = next(one for one in cls.__mro__ if name in get_annotations(one))
    return str(getattr(declaring, "GROUP", ""))


def _default(one: "Field[Any]") -> Any:
    return one.default_factory() if one.default_factory is not MISSING else one.default


def _typed(setting: Setting, value: Any, where: str) -> Any:
    """Return a value in the field's own type; strict, but a list is a tuple and a whole number a float."""
    from pydantic import ValidationError

    try:
        if setting.option.parse is not None and isinstance(value, (str, list)):
            value = setting.option.parse(value if isinstance(value, str) else ",".join(map(str, value)))
        _require_writable(value)
        return _adapter(setting.hint).validate_json(json.dumps(value, default=_plain), strict=True)
    except (ValidationError, BadInput, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error).rstrip(".")
        raise BadInput(
            f"{where}: {setting.option.key} is {shown(value)}; {reason[:1].lower() + reason[1:]}."
        ) from error


def _require_writable(value: Any) -> None:
    """Refuse what no TOML, no run.json and no file system could hold.

    Raises:
        ValueError: what it is.
    """
    if isinstance(value, (list, tuple, dict)):
        for one in [*value.values(), *value] if isinstance(value, dict) else value:
            _require_writable(one)
    elif isinstance(value, int) and abs(value) >= _MOST:
        raise ValueError(f"a whole number should be below {_MOST:,}")
    elif isinstance(value, (str, Path)) and (odd := _NO_TEXT.search(str(value))):
        raise ValueError(f"it should be text in UTF-8 without the character {odd[0]!r}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else str(value)


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def _scalar(setting: Setting, kind: Any, text: str) -> Any:
    try:
        return Path(text) if kind is Path else kind(text) if kind in (int, float) else text
    except ValueError as error:  # also of more digits than Python reads
        name = {int: "a whole number", float: "a number"}[kind]
        raise BadInput(f"{setting.option.flag} takes {name}; got {text[:80]!r}.") from error


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def _as_json(setting: Setting, value: Any) -> Any:
    """Return a value as JSON has it, a secret masked."""
    plain = _adapter(setting.hint).dump_python(value, mode="json")
    return _masked(plain) if setting.option.secret else plain


def _masked(value: Any) -> Any:
    if isinstance(value, list):
        return [without_credentials(one) for one in value]
    return value if value is None else without_credentials(value)


def _without_none(hint: Any) -> Any:
    """Return the type of a setting that may be left open."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint
