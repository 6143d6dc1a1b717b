"""What is made for papers compiles, and fits the column or page of text that it is made for."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from evalkit.errors import BadInput
from evalkit.report.analysis import Analysis, analyse
from evalkit.report.arms import chosen_arms, chosen_lengths
from evalkit.report.cells import Entry, Row, Table
from evalkit.report.latex import MOST_LINES, POINTS, appendix, appendix_table, paper_tables, text
from evalkit.report.load import load_runs
from evalkit.report.tables import all_tables
from tests.report_runs import LENGTHS, holds_to, training, write_run

K = 1024
TINY = Path(__file__).parents[1] / "results" / "reference" / "tiny"
ODD = '50% & up_to {8k} <b>\x1b[31m|$\\ ~^"#@ é…'
needs_tex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,longtable}
\begin{document}
\noindent\begin{minipage}{%spt}
\makeatletter\renewenvironment{table}{\def\@captype{table}}{}\makeatother
\input{column}
\end{minipage}
\clearpage
\input{text}
\clearpage
\input{appendix}
\end{document}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    root = tmp_path_factory.mktemp("tiny")
    for archive in TINY.glob("seed-*.tar.xz"):
        with tarfile.open(archive) as packed:
            packed.extractall(root, filter="data")
    return analyse(load_runs([root]))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Odd names, two subsets, two tasks, missing lengths, long names that begin alike."""
    root = tmp_path_factory.mktemp("odd")
    names = (ODD, "[first]", "*second*", "organisation/model-128k-instruct (with instruction)",
             "organisation/model-128k-instruct (without anything else)")  # fmt: skip
    write_run(root / "plain", arm="plain", accuracy=holds_to(8 * K), training=training("plain"), samples=10)
    for i, name in enumerate(names):
        write_run(root / str(i), arm=name, accuracy=holds_to(16 * K), samples=10, lengths=LENGTHS[: 6 - i])
    write_run(root / "mrcr", arm="plain", accuracy=holds_to(8 * K), task="mrcr", subsets=("2needle",), samples=5)
    return analyse(load_runs([root]))


def compiled(folder: Path, analysis: Analysis, **shown: tuple[str, ...]) -> str:
    """Compile all files and return the log."""
    for width in ("column", "text"):
        (folder / f"{width}.tex").write_text(paper_tables(analysis, width, "origin", **shown))
    (folder / "appendix.tex").write_text(appendix(all_tables(analysis), "origin"))
    (folder / "paper.tex").write_text(DOCUMENT % POINTS["column"])
    for _ in range(2):  # longtable learns its widths from the first
        subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
            cwd=folder, capture_output=True, check=True,
        )  # fmt: skip
    return (folder / "paper.log").read_text(errors="replace")


@needs_tex
@pytest.mark.parametrize("study", ["tiny", "odd", "many"])
def test_no_table_is_wider_than_the_text_it_is_made_for(
    study: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    log = compiled(tmp_path, request.getfixturevalue(study))
    assert "Overfull" not in log
    assert "multiply" not in log
    assert "too large" not in log


@needs_tex
def test_what_is_too_wide_is_reported_by_the_same_document(tiny: Analysis, tmp_path: Path) -> None:
    compiled(tmp_path, tiny)
    narrow = (tmp_path / "paper.tex").read_text().replace(str(POINTS["column"]), "150")
    (tmp_path / "paper.tex").write_text(narrow)
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "paper.tex"], cwd=tmp_path, capture_output=True, check=True)
    assert "Overfull" in (tmp_path / "paper.log").read_text(errors="replace")


def test_fewer_lengths_leave_room_for_the_difference_and_its_interval(tiny: Analysis) -> None:
    whole = paper_tables(tiny, "column", "origin")
    some = paper_tables(tiny, "column", "origin", lengths=("1k", "4k"), arms=("trained YaRN", "plain"))
    assert "Difference" not in whole
    assert "256" in whole
    assert "Difference" in some
    assert r"{\tiny [+25.2, +38.3]}" in some
    assert "& 1K & 4K &" in some
    assert some.index("trained YaRN &") < some.index("\nplain &")
    assert "zero-shot" not in some


def test_a_page_of_text_shows_every_interval(tiny: Analysis) -> None:
    wide = paper_tables(tiny, "text", "origin")
    assert wide.count(r"{\tiny [") == 15 * 7
    assert r"\label{tab:main-babilong-wide}" in wide


def test_detectable_differences_are_a_table_of_the_appendix(tiny: Analysis) -> None:
    assert "detectable" not in paper_tables(tiny, "text", "origin")
    assert r"\label{tab:detectable-babilong-official}" in appendix(all_tables(tiny), "origin")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """A leaderboard, whose arms have long names."""
    root = tmp_path_factory.mktemp("many")
    for i in range(60):
        write_run(
            root / str(i), arm=f"organisation-{i % 6}/Model-{i}B-128k-instruct", accuracy=holds_to(8 * K),
            lengths=("4k", "16k"), subsets=("qa1",), samples=4,
        )  # fmt: skip
    return analyse(load_runs([root]))


def test_more_arms_than_a_page_holds_are_cut_and_said(many: Analysis) -> None:
    for width in ("column", "text"):
        table = paper_tables(many, width, "origin")
        arms = sum("organ" in line for line in table.splitlines() if "&" in line)
        assert MOST_LINES / 2 - 1 <= arms <= MOST_LINES
        assert f"{61 - arms} more rows are left out" in table  # of 60 arms and the chance level


def test_the_best_arm_of_a_column_is_bold(odd: Analysis) -> None:
    assert r"\textbf{" in paper_tables(odd, "column", "origin")


def test_signs_are_set_as_signs_and_names_are_left_alone() -> None:
    entries = (Entry("Qwen2.5-7B - base"), Entry("-3.1", "[-5.0, +0.2]"), Entry(">=128K"))
    table = Table(
        name="t", title="T", caption="", columns=("Arm", "4K", "Effective"), num_labels=1,
        rows=(Row(group="g", entries=entries),),
    )  # fmt: skip
    found = appendix_table(table)
    assert r"Qwen2.5-7B - base & $-$3.1 & $\geq$128K \\" in found
    assert r"{\tiny [$-$5.0, +0.2]}" in found


def test_no_line_is_broken_inside_a_number_with_its_sign() -> None:
    assert text("95 % intervals; n = 100, p < 0.05") == r"95~\% intervals; n~=~100, p~$<$~0.05"


def test_every_row_has_as_many_cells_as_columns(odd: Analysis) -> None:
    for table in all_tables(odd):
        for part in appendix_table(table).split(r"\begin{longtable}")[1:]:
            columns = part.splitlines()[0].count("l") + part.splitlines()[0].count("r")
            for line in part.split(r"\endhead")[1].splitlines():
                if line.rstrip("*").endswith(r"\\"):
                    assert line.replace(r"\&", "").count("&") == columns - 1, line


def test_an_arm_may_have_a_comma_in_its_name_and_one_that_is_not_there_is_refused() -> None:
    known = ("plain", "Randomized YaRN", "Randomized YaRN, paper's range")
    assert chosen_arms(["Randomized YaRN, paper's range, plain"], known) == (known[2], "plain")
    assert chosen_arms(["plain", "Randomized YaRN,plain"], known) == ("plain", "Randomized YaRN")
    with pytest.raises(BadInput, match="No arm is named 'yarn'; the arms are 'plain'"):
        chosen_arms(["plain,yarn"], known)
    with pytest.raises(BadInput, match="No run was asked at 3k; the lengths are 1k, 2k"):
        chosen_lengths(["3k"], ["1k", "2k"])
