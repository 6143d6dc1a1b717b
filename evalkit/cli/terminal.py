"""How commands print: text of strangers (paths, names, replies, messages of libraries) moves no cursor."""

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import click

from evalkit.escaping import for_terminal

_GAP = re.compile(r"(?<=\S) {2,}(?=\S)")
"""Between what stands in columns."""


def echo(message: Any = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text as ``click.echo`` does, with every control character written out; see ``for_terminal``."""
    click.echo(for_terminal(str(message)), err=err, nl=nl)


def echo_either(as_json: bool, to_json: Callable[[], Any], to_text: Callable[[], str]) -> None:
    """Print a report for programs, or for people."""
    if as_json:
        echo(json.dumps(to_json(), indent=1))
    else:
        echo_text(to_text())


def echo_wrapped(text: str, indent: int = 0, *, err: bool = False) -> None:
    """Print paragraphs in lines that are no wider than the terminal, all but the first of each indented."""
    for line in text.splitlines():
        echo(_wrapped(line, indent), err=err)


def _wrapped(line: str, indent: int) -> str:
    import shutil
    import textwrap

    width = max(shutil.get_terminal_size().columns, indent + 20)
    lines = textwrap.wrap(line, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)
    return "\n".join(lines)


def echo_text(text: str, *, err: bool = False) -> None:
    """Print sentences; see ``fitted``."""
    echo(fitted(text, err=err), err=err)


def fitted(text: str, *, err: bool = False) -> str:
    """Return a text whose sentences are no wider than the terminal; rows of tables and commands stay whole.

    Where there is none, as in a file whose lines are searched, all stays whole, unless COLUMNS says how wide it may be.
    """
    text = for_terminal(text)
    if "COLUMNS" not in os.environ and not (sys.stderr if err else sys.stdout).isatty():
        return text
    return "\n".join(map(_fitted, text.splitlines()))


def _fitted(line: str) -> str:
    gaps, begin = list(_GAP.finditer(line)), line.lstrip()
    if len(gaps) > 1 or begin.startswith(("evalkit ", "export ")):
        return line
    return _wrapped(line, gaps[0].end() if gaps else len(line) - len(begin) + 2)  # one gap: a word, and what it means
