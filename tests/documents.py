"""What the documents tell people to type: blocks of commands, taken out of Markdown and run as they are written."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page in one language; "" for those that name none."""
    found = re.findall(r"^```([\w{}-]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for named, text in found if named == language]


def typed(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block, and what is shown below it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def shell(folder: Path, command: str) -> "subprocess.CompletedProcess[str]":
    """Type a command in a folder in which ``evalkit`` is this one, also as ``.venv/bin/evalkit``."""
    program = folder / ".venv" / "bin" / "evalkit"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m evalkit "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def run_as_written(page: Path, folder: Path) -> list[tuple[str, str]]:
    """Run the console blocks of a page in a folder, with the files that stand in TOML blocks; return what each said.

    Commands under ``scripts/`` make what is there already. A command may refuse where the page shows that it does.
    """
    for text in blocks(page, "toml"):
        name = re.match(r"# (\S+\.toml)\n", text)
        assert name, f"a file in {page.name} that does not say its name: {text[:60]}"
        (folder / name[1]).write_text(text, encoding="utf-8")
    said = []
    for block in blocks(page, "console"):
        for command, shown in typed(block):
            if command.startswith("scripts/"):
                continue
            done = shell(folder, command)
            refused = "would be refused" in shown or shown.startswith("evalkit: ")
            assert done.returncode == (2 if refused else 0), f"{command}\n{done.stdout}{done.stderr}"
            said.append((command, done.stdout + done.stderr))
    assert said, f"{page.name} has nothing to type"
    return said
