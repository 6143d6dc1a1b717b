"""A name is what can be printed, and no output takes a name, a path or a reply for anything but text."""

import csv
import io
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import evalkit
from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.escaping import csv_cell, for_terminal, one_line, require_name
from evalkit.records.folder import RunFolder
from evalkit.records.imports import import_folder
from evalkit.report.load import load_runs
from evalkit.runs.config import run_config
from tests.report_runs import holds_to, training, write_run

ODD_NAMES = ["", "   ", "a\x1b[31mred", "\ud800", "a\rb", "a\nb", "x" * 201, "left\u202eright", "\x00", "a\u2028b"]
FINE_NAMES = [
    "$x^{$",
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "-1+2",
    "<script>",
    "50 % _of_ {it} \\ ~^&#",
    "Randomized YaRN – 雪",
]


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(one) for one in arguments])


def named(arm: str):
    return run_config({"model": "m", "task": "babilong", "lengths": "1k", "backend": "scripted", "arm": arm})


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_name_that_cannot_be_printed_is_refused_wherever_it_is_given(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput) as refused:
        require_name(name, "--arm")
    assert for_terminal(str(refused.value)) == str(refused.value)
    assert len(str(refused.value)) < 500
    with pytest.raises(BadInput, match=r"--arm has|arm is .*it should be text in UTF-8"):
        named(name)
    (tmp_path / "counts.csv").write_text(
        f'task,subset,arm,length,n,correct,source\nbabilong,qa1,"{name}",1k,10,5,us\n', errors="replace"
    )
    shown = invoke("report", "--published", tmp_path / "counts.csv", "--out", tmp_path / "plots")
    assert shown.exit_code in (0, 2)
    assert for_terminal(shown.output) == shown.output


@pytest.mark.parametrize("name", FINE_NAMES)
def test_a_name_of_printable_characters_is_taken_as_it_is(name: str) -> None:
    assert named(name).arm == name


def test_a_model_whose_folder_cannot_be_printed_is_left_out_of_an_import(tmp_path: Path) -> None:
    for organisation in ("fine", "o\x1b[31mrg"):
        folder = tmp_path / "answers" / organisation / "model"
        folder.mkdir(parents=True)
        (folder / "qa1_1k.csv").write_text("target,output,question\nkitchen,in the kitchen,Where is Mary?\n")
    shown = invoke("import", tmp_path / "answers", "--out", tmp_path / "runs")
    assert shown.exit_code == 0, shown.output
    assert "Left out: The model in" in shown.output
    assert "\x1b" not in shown.output
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["fine--model"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_name_for_an_import_is_refused_before_any_file_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "qa1_1k.csv").write_text("no answers")
    with pytest.raises(BadInput, match=r"^--arm has"):
        next(import_folder(tmp_path, tmp_path / "runs", arm=name))
    shown = invoke("import", tmp_path, "--out", tmp_path / "runs", "--arm", name)
    assert shown.exit_code == 2
    assert "evalkit: --arm has" in shown.output


def test_a_name_that_is_too_long_with_its_prompt_setting_is_not_the_files_fault(tmp_path: Path) -> None:
    (tmp_path / "qa1_1k_instruction_yes_examples_yes_post_prompt_yes.csv").write_text(
        "target,output,question\nkitchen,in the kitchen,Where is Mary?\n"
    )
    (refused,) = import_folder(tmp_path, tmp_path / "runs", arm="x" * 199)
    assert str(refused).startswith("--arm and the prompt setting of")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of runs under the oddest names that may be given."""
    folder = tmp_path_factory.mktemp("names")
    for i, arm in enumerate(FINE_NAMES[:3]):
        write_run(folder / f"run{i}", arm=arm, accuracy=holds_to(1024), lengths=("1k", "2k"), subsets=("qa1",),
                  samples=9, training=training("yarn"), reply=lambda p: f"{p.output} \ud800 \x1b[31m =1")  # fmt: skip
    shown = invoke("report", folder, "--out", folder / "plots", "--full")
    assert shown.exit_code == 0, shown.output
    assert "\x1b" not in re.sub(r"\x1b\[[012]m", "", shown.output)
    return folder / "plots"


def test_no_cell_of_a_csv_table_is_a_formula(report: Path) -> None:
    seen = set()
    for file in report.glob("*.csv"):
        for row in csv.reader(io.StringIO(file.read_text())):
            for cell in row:
                assert cell[:1] not in ("=", "+", "@", "\t", "\r"), (file, cell)
                assert cell[:1] != "-" or re.fullmatch(r"-[\d.e-]+", cell), (file, cell)
                seen.add(cell)
    assert {f"'{name}" for name in FINE_NAMES[1:3]} <= seen


def test_a_dollar_sign_is_no_mathematics_in_figures_and_in_latex(report: Path) -> None:
    assert list(report.glob("*.png"))
    latex = (report / "tables.tex").read_text()
    assert r"\$x\textasciicircum{}\{\$" in latex


def test_a_name_is_text_in_the_page(report: Path) -> None:
    page = next(report.glob("*.html")).read_text()
    assert "=cmd|" in page
    assert "\ud800" not in page
    assert "\x1b" not in page


def test_an_export_holds_no_formula_and_no_row_that_a_bare_return_ends(tmp_path: Path) -> None:
    write_run(tmp_path / "run", arm="=1+1", accuracy=holds_to(1024), lengths=("1k",), subsets=("qa1",), samples=2,
              reply=lambda p: "=cmd|' /C calc'!A0\rgarden")  # fmt: skip
    for layout in ("csv", "babilong"):
        shown = invoke("export", tmp_path / "run", tmp_path / layout, "--to", layout)
        assert shown.exit_code == 0, shown.output
        for file in (tmp_path / layout).rglob("*.csv"):
            rows = list(csv.DictReader(file.open(newline="")))
            assert {row["target"] for row in rows} <= {"garden", "kitchen"}
            if layout == "csv":
                assert rows[0]["arm"] == "'=1+1"
                assert rows[0]["output"] == "'=cmd|' /C calc'!A0\\rgarden"
            else:
                assert rows[0]["output"] == "=cmd|' /C calc'!A0\rgarden", "answers stay as they are"


def test_what_is_printed_goes_through_one_function_alone() -> None:
    cli = Path(evalkit.__file__).parent / "cli"
    for file in cli.glob("*.py"):
        assert "click.echo(" not in file.read_text() or file.name == "terminal.py", file


def test_a_terminal_gets_text_only() -> None:
    assert for_terminal("a\tb\nc\x1b[2J\x07é雪\xa0") == "a\tb\nc\\x1b[2J\\x07é雪\xa0"
    assert for_terminal("\x1b[1mbold\x1b[0m") == "\x1b[1mbold\x1b[0m"
    assert one_line("a " * 5000, most=100) == "a " * 25 + "[...]" + "a " * 25
    assert one_line("a\nb\r" + "x" * 1000) == "a\\nb\\r" + "x" * 94 + "[...]" + "x" * 60
    assert [csv_cell(value) for value in (-1.5, "-1.5", "-x", "=1", "a\rb", None, "+5")] == [
        -1.5, "-1.5", "'-x", "'=1", "a\\rb", None, "+5",
    ]  # fmt: skip


def test_a_path_of_thousands_of_characters_and_one_that_is_no_text_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for path in ("x/" * 2500, "0, " * 2000, "y" * 4000, "\udcff\udcfe", "\ud800"):
        for command in (
            ("check", "--model", path, "--lengths", "1k"),
            ("report", path, "--out", tmp_path / "p"),
            ("run", "--model", path, "--task", "babilong", "--lengths", "1k", "--backend", "scripted"),
            ("status", path),
        ):
            shown = invoke(*command)
            assert shown.exit_code == 2, (command[0], shown.output[-300:])
            assert len(shown.output.splitlines()[-1]) < (2100 if " " in path else 1000)  # of many words, or of one
            assert shown.exception is None or isinstance(shown.exception, SystemExit)


def test_a_run_folder_opens_whose_path_has_spaces_marks_and_a_line_break(tmp_path: Path) -> None:
    odd = tmp_path / "a run\nof 雪 \x1b[31m'\"$x"
    odd.mkdir()
    write_run(odd / "run", arm="a", accuracy=holds_to(1024), lengths=("1k",), subsets=("qa1",), samples=3)
    (tmp_path / "link").symlink_to(odd / "run")
    for path in (odd / "run", tmp_path / "link"):
        assert len(RunFolder.open(path).recorded()) == 3
        assert load_runs([path]).runs[0].arm == "a"
        for command in (("status", path), ("score", path), ("report", path, "--out", tmp_path / "plots")):
            shown = invoke(*command)
            assert shown.exit_code == 0, shown.output
            assert "\x1b" not in shown.output
