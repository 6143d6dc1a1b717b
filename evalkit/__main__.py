"""``python -m evalkit``."""

from evalkit.cli.commands import main

main()
