"""What a person reads who asks for help, and what the shell completes."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from evalkit import options
from evalkit.cli.commands import main
from evalkit.cli.options import run_classes
from evalkit.report.load import load_runs
from tests.report_runs import holds_to, write_run


def shown(*arguments: object, columns: int = 80) -> str:
    done = CliRunner().invoke(main, list(map(str, arguments)), terminal_width=columns)
    assert done.exit_code == 0, done.output
    return done.output


def sections(text: str) -> dict[str, str]:
    """The parts of a help text by heading."""
    found: dict[str, str] = {}
    title = ""
    for line in text.splitlines():
        if line and not line.startswith(" ") and line.endswith(":"):
            title = line.removesuffix(":")
        found[title] = found.get(title, "") + line + "\n"
    return found


def test_the_options_of_run_stand_in_groups_each_once_and_the_output_last():
    help_text = shown("run", "--help")
    parts = sections(help_text)
    expected = {
        "What is asked": "--lengths",
        "Data": "--source",
        "Data of BABILong": "--depth",
        "Data of MRCR": "--needles",
        "Wording": "--examples",
        "Rope": "--factor",
        "Backend": "--dtype",
        "Backend vllm": "--tensor-parallel",
        "Backend hf": "--batch-tokens",
        "Backend server": "--base-url",
        "Backend scripted": "--script",
        "Output": "--quiet",
    }
    for title, flag in expected.items():
        assert f"  {flag} " in parts[title], title
    assert list(parts)[-1] == "Output"
    flags = [setting.option.flag for cls in run_classes() for setting in options.settings(cls).values()]
    for flag in set(flags):
        assert help_text.count(f"\n  {flag} ") == 1, flag


def test_every_option_of_a_run_belongs_to_a_group():
    for cls in run_classes():
        assert [key for key, setting in options.settings(cls).items() if not setting.group] == []


def test_no_first_sentence_of_a_command_is_cut():
    listing = sections(shown("--help"))["Commands"]
    assert "..." not in listing
    words = " ".join(listing.split())
    for name, command in main.commands.items():
        assert f"{name} {command.get_short_help_str(10**6)}" in words


def test_no_example_is_wider_than_a_terminal_of_100_columns():
    for name in main.commands:
        assert max(map(len, shown(name, "--help", columns=100).splitlines())) <= 100, name


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_tasks_are_listed_no_wider_than_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for arguments in ([], ["babilong"], ["mrcr"]):
        lines = shown("tasks", *arguments).splitlines()
        assert max(map(len, lines)) <= columns
    assert "qa20" in shown("tasks", "babilong")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell):
    assert f"_EVALKIT_COMPLETE={shell}_complete" in shown("completion", shell)


def test_the_options_that_settings_make_are_completed():
    asked = {"_EVALKIT_COMPLETE": "bash_complete", "COMP_WORDS": "evalkit run --dep", "COMP_CWORD": "2"}
    code = "from evalkit.cli.commands import main; main(prog_name='evalkit')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked})
    assert done.stdout.splitlines() == ["plain,--depth"]


def test_a_path_that_does_not_exist_is_refused_although_another_is_good(tmp_path):
    write_run(tmp_path / "a", arm="a", accuracy=holds_to(8192), lengths=("4k",), samples=4)
    assert len(load_runs([tmp_path / "a"]).runs) == 1
    done = CliRunner().invoke(main, ["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "o")])
    assert done.exit_code == 2
    assert f"There is no folder {tmp_path / 'b'}." in done.output
    assert not (tmp_path / "o").exists()
