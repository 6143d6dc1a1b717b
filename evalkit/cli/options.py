"""The command line's options, made of the settings that the wings declare (``evalkit/options.py``)."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from evalkit import options
from evalkit.errors import BadInput
from evalkit.lengths import parse_length, parse_lengths
from evalkit.options import Setting

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)
_LAST = "Output"


class GroupedOption(click.Option):
    """An option under a heading of --help, whose value goes by the last word of its flag unless it has a metavar."""

    def __init__(self, *args: Any, group: str = _LAST, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group
        if self.metavar is None and not isinstance(self.type, click.Choice):
            self.metavar = self.opts[0].rpartition("-")[2].upper()


def option(*flags: str, **how: Any) -> Callable[[Any], Any]:
    """Return what adds an option that is no setting to a command: ``click.option`` with a ``group``."""
    return click.option(*flags, cls=GroupedOption, **how)


quiet_option = option("--quiet", is_flag=True, help="Print nothing but warnings and failures.")


# Types of options that belong to one command alone: click calls them with what was typed.


def lengths(text: str) -> tuple[str, ...]:
    """Turn "16k,4096" into ("4k", "16k")."""
    return parse_lengths(text)


def token_count(text: str) -> int:
    """Turn "8k" into 8192."""
    return parse_length(text)


def names(text: str) -> tuple[str, ...]:
    """Turn "qa1,qa2" into ("qa1", "qa2")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


class _Typed(click.ParamType[Any]):
    """What is typed behind the flag of a setting."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.name = "value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return options.from_text(self.setting, value) if isinstance(value, str) else value


class GroupedCommand(click.Command):
    """A command whose options stand in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings; the output comes last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(param, "group", _LAST), []).append(record)  # click's own --help has none
        for title in sorted(groups, key=_LAST.__eq__):  # stable: the others stay as they are declared
            with formatter.section(title):
                formatter.write_dl(groups[title])


class SettingsCommand(GroupedCommand):
    """A command whose options are the settings of some classes, found when it is first used: that imports the wings.

    The callback gets what was typed, by key, as ``values``, and the command's other options as they are.
    """

    def __init__(self, *args: Any, classes: Callable[[], Iterable[type]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._classes = classes

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all options, those of the settings first."""
        return [*map(_option, self._settings().values()), *super().get_params(ctx)]

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command with the settings that were typed gathered in ``values``."""
        given = {key: ctx.params.pop(key) for key in self._settings()}
        ctx.params["values"] = {key: value for key, value in given.items() if value is not None and value != ()}
        return super().invoke(ctx)

    def _settings(self) -> dict[str, Setting]:
        return {key: setting for cls in self._classes() for key, setting in options.settings(cls).items()}


def _option(setting: Setting) -> click.Option:
    flag, key = setting.option.flag, setting.option.key
    how: dict[str, Any] = {"help": setting.option.help, "group": setting.group or "Options"}
    if options.is_switch(setting):
        return GroupedOption([f"{flag}/--no-{flag.removeprefix('--')}", key], default=None, **how)
    chosen = options.choices(setting)
    kind = click.Choice(chosen) if chosen else _Typed(setting)
    return GroupedOption([flag, key], type=kind, multiple=setting.option.repeat, **how)


def run_classes() -> list[type]:
    """Return the classes of all settings that a run can have."""
    from evalkit.benchmarks import TASKS
    from evalkit.models.backends import BACKENDS
    from evalkit.runs.config import RunConfig

    return [RunConfig, *(task.options for task in TASKS.values()), *(kind.options for kind in BACKENDS.values())]


def train_classes() -> list[type]:
    """Return the classes of all settings that a training can have."""
    from evalkit.benchmarks import TASKS
    from evalkit.train.config import TrainConfig

    return [TrainConfig, *(task.options for task in TASKS.values())]


def of_backend(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a run's settings without those that only other backends have."""
    from evalkit.models.backends import BACKENDS, backend_kind

    own = options.settings(backend_kind(name).options)
    others = {key for kind in BACKENDS.values() for key in options.settings(kind.options)} - own.keys()
    return {key: value for key, value in values.items() if key not in others} | {"backend": name}


def refuse_missing(values: Mapping[str, Any], *keys: str) -> None:
    """Refuse a command line that lacks an option.

    Raises:
        BadInput: the option.
    """
    if missing := [key for key in keys if key not in values]:
        raise BadInput(f"Missing option --{missing[0].replace('_', '-')}; see --help.")
