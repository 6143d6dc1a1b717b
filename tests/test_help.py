"""What a person reads who asks for help, and what the shell completes."""

import os
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from evalkit import options
from evalkit.cli.commands import main
from evalkit.cli.options import run_classes, train_classes
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


@pytest.mark.parametrize("classes", [run_classes, train_classes])
def test_every_setting_belongs_to_a_group(classes):
    for cls in classes():
        assert [key for key, setting in options.settings(cls).items() if not setting.group] == []


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train", {"Base": "--base", "Recipe and positions": "--stages", "Data": "--longest",
                   "Wording": "--system-prompt", "Optimization": "--epochs", "LoRA": "--lora-rank",
                   "Device": "--precision", "Data of BABILong": "--noise", "Data of MRCR": "--split",
                   "Output": "--out"}),
        ("report", {"What is compared": "--margin", "What is shown": "--by", "Output": "--out"}),
        ("plot", {"What is compared": "--baseline", "What is shown": "--kind", "Look": "--width", "Output": "--out"}),
    ],
)  # fmt: skip
def test_the_options_of_other_commands_stand_in_groups_too(command, expected):
    parts = sections(shown(command, "--help"))
    assert {title for title, text in parts.items() if title and "\n  -" in text} == expected.keys()
    for title, flag in expected.items():
        assert f"  {flag} " in parts[title], title
    assert list(parts)[-1] == "Output"


def test_in_train_what_is_like_a_setting_of_a_run_stands_under_the_same_heading():
    of_runs = {key: one.group for cls in run_classes() for key, one in options.settings(cls).items()}
    of_trainings = {key: one.group for cls in train_classes() for key, one in options.settings(cls).items()}
    for key in ("chat_template", "system_prompt", "template_arg", "source", "noise", "needles", "out"):
        assert of_trainings[key] == of_runs[key]


def test_every_row_of_every_help_text_is_an_option_whose_value_goes_by_the_word_of_its_flag():
    odd = {"--ylim": "LOW,HIGH", "--published": "paper|FILE.csv", "--by": "TAG", "--to": "LAYOUT"}
    for name in main.commands:
        for title, text in sections(shown(name, "--help", columns=100)).items():
            if title in ("", "Examples", "Example"):
                continue
            for row in re.findall(r"^  (\S.*?)(?:  .*)?$", text, re.MULTILINE):
                flag, _, value = row.partition(" ")
                assert flag.startswith("-"), (name, row)
                if value and not value.startswith(("/", "-", "[")):
                    assert value == odd.get(flag, flag.rpartition("-")[2].upper()), (name, row)


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


def test_what_an_answer_has_room_for_is_told_of_every_task(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert "100 samples a cell; 20 new tokens.\n" in shown("tasks", "babilong")
    assert "100 samples a cell; room for each answer's own length, and more.\n" in shown("tasks", "mrcr")


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
