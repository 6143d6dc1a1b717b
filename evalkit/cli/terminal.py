"""How commands print: text of strangers (paths, names, replies, messages of libraries) moves no cursor."""

from typing import Any

import click

from evalkit.escaping import for_terminal


def echo(message: Any = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text as ``click.echo`` does, with every control character written out; see ``for_terminal``."""
    click.echo(for_terminal(str(message)), err=err, nl=nl)
