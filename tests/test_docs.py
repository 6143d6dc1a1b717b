"""The documents say what the code does: names, files and commands are looked up, and the site builds."""

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from evalkit import __version__
from evalkit.cli.commands import main
from evalkit.study.evaluation import load_evaluation
from evalkit.study.experiment import load_experiment
from tests.documents import PAGES, ROOT, blocks, typed

DOCS = ROOT / "docs"


def script(name: str):
    """A Python file of docs/, imported."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(page: Path) -> list[str]:
    """Every evalkit command in a page's blocks; a run of which only a part is shown is completed."""
    lines = [line for text in blocks(page) for line in text.replace("\\\n", " ").splitlines()]
    lines += [command for text in blocks(page, "console") for command, _ in typed(text)]
    shown = [line.partition("  #")[0].strip() for line in lines if line.startswith("evalkit ")]
    whole = [line.replace("evalkit run ...", "evalkit run --model ckpt --task babilong --lengths 1k") for line in shown]
    return [re.sub(r"\$\w+", "1", line) for line in whole]


def refusal(command: click.Command, words: list[str]) -> str:
    """Why click refuses what is typed; "" where it does not, or only for want of a folder."""
    try:
        command.make_context(command.name, words)
    except click.UsageError as error:
        return "" if "does not exist" in error.message else error.format_message()
    return ""


# Names


def test_the_reference_names_every_setting_file_and_column_that_evalkit_has():
    """After a change: python docs/reference.py."""
    assert script("reference").text() == (DOCS / "reference.md").read_text()


def test_a_column_without_a_meaning_and_a_meaning_without_a_column_are_errors():
    reference = script("reference")
    meanings = tomllib.loads((DOCS / "meanings.toml").read_text())
    names = {file: list(columns) for file, columns in meanings.items()}
    assert reference.described(names) == meanings
    names["summary.csv"].append("colour")
    names["arms.csv"].remove("area")
    with pytest.raises(SystemExit, match=r"arms\.csv: area is described and not there; summary\.csv: colour is not"):
        reference.described(names)


def test_the_pictures_are_those_that_their_script_draws(tmp_path, monkeypatch):
    """After a change: python docs/pictures.py."""
    pictures = script("pictures")
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    pictures.main()
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (DOCS / "pictures").iterdir()}
    assert sum(map(len, drawn.values())) < 100_000


# Commands and files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_can_be_typed(page):
    for line in commands(page):
        words = shlex.split(re.split(r" [>|] ", line)[0])[1:]
        assert words[0] in main.commands, line
        wrong = refusal(main.commands[words[0]], [word for word in words[1:] if word != "..."])
        assert not wrong, f"{line}: {wrong}"


def test_readmes_table_names_every_command_and_no_other():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (`evalkit .*?) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(?:evalkit )?([a-z-]+)[^`]*`", row)}
    assert named == set(main.commands) - {"completion"}
    assert "evalkit completion" in text, "below the table"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_study_files_that_are_shown_can_be_read(tmp_path):
    evaluation, experiment = blocks(DOCS / "studies.md", "toml")
    (tmp_path / "study.toml").write_text(evaluation)
    (tmp_path / "mine.toml").write_text(experiment)
    runs = load_evaluation(tmp_path / "study.toml", {}).runs
    assert [(run.arm, run.task) for run in runs] == [
        (arm, task) for task in ("babilong", "mrcr") for arm in ("Qwen2.5 7B", "Qwen2.5 7B, YaRN", "mine")
    ]
    assert [curve.arm for curve in load_experiment(str(tmp_path / "mine.toml")).curves] == ["plain", "Randomized YaRN"]


def test_citations_name_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{__version__}}}" in (DOCS / "cite.md").read_text()


def test_nothing_in_the_code_can_run_what_a_checkpoint_brings_along():
    """SECURITY.md says so: no code of a checkpoint's is trusted, no pickle is read, no text is run."""
    for file in (ROOT / "evalkit").rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            where, called = f"{file.name}:{call.lineno}", ast.unparse(call.func)
            settings = {one.arg: ast.unparse(one.value) for one in call.keywords}
            assert settings.get("trust_remote_code", "False") == "False", where
            assert settings.get("allow_pickle", "False") == "False", where
            assert called not in ("eval", "exec", "compile", "pickle.load", "pickle.loads", "torch.load"), where
            assert called != "np.load" or "allow_pickle" in settings, where


# The site


def test_the_notebook_is_kept_without_outputs():
    notebook = json.loads((DOCS / "notebook.ipynb").read_text())
    assert not [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_the_notebook_runs(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-d", tmp_path / "trees", DOCS, tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site" / "notebook.html").read_text()
    assert "8k = 8,192 tokens are not covered" in page, "the notebook's outputs are shown"
    assert "<img" in page, "and its figure"
    assert (tmp_path / "site" / "reference.html").is_file()
