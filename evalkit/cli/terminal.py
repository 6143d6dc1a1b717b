"""How commands print: text of strangers (paths, names, replies, messages of libraries) moves no cursor."""

from typing import Any

import click

from evalkit.escaping import for_terminal


def echo(message: Any = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text as ``click.echo`` does, with every control character written out; see ``for_terminal``."""
    click.echo(for_terminal(str(message)), err=err, nl=nl)


def echo_wrapped(text: str, indent: int = 0, *, err: bool = False) -> None:
    """Print paragraphs in lines that are no wider than the terminal, all but the first of each indented."""
    import shutil
    import textwrap

    width = max(shutil.get_terminal_size().columns, indent + 20)
    for line in text.splitlines():
        wrapped = textwrap.wrap(
            line, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
        )
        echo("\n".join(wrapped), err=err)
