"""Tables say the same in every form, and a checkpoint may be called anything."""

from pathlib import Path

import pytest

from evalkit.report.analysis import Analysis, analyse
from evalkit.report.build import terminal_tables
from evalkit.report.cells import Row, Table
from evalkit.report.load import load_runs
from evalkit.report.published import read_published
from evalkit.report.render import markdown
from evalkit.report.tables import all_tables, score_table, summary_table
from tests.report_runs import holds_to, training, write_run

K = 1024
ODD = "50% & up_to {8k} <b>|$\\"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    write_run(root / "plain", arm="plain", accuracy=holds_to(8 * K), training=training("plain"))
    write_run(root / "yarn", arm=ODD, accuracy=holds_to(64 * K), training=training("yarn"), lengths=("4k", "16k"))
    return root


@pytest.fixture(scope="module")
def analysis(results: Path) -> Analysis:
    return analyse(load_runs([results]))


def row_of(table: Table, subset: str, arm: str) -> Row:
    return next(row for row in table.rows if row.group == subset and row.entries[1].text == arm)


def test_lengths_stand_from_left_to_right_with_avg_and_effective_last(analysis: Analysis) -> None:
    columns = score_table(analysis, "babilong", "official").columns
    assert columns == ("Subset", "Arm", "n", "Unscored", "4K", "8K", "16K", "32K", "64K", "128K", "Avg", "Effective")


def test_what_was_not_run_is_a_dash_and_has_no_average(analysis: Analysis) -> None:
    row = row_of(score_table(analysis, "babilong", "official"), "qa1", ODD)
    by_column = dict(zip(score_table(analysis, "babilong", "official").columns, row.entries, strict=True))
    assert by_column["32K"].text == "-"
    assert by_column["Avg"].text == "-"
    assert by_column["16K"].text != "-"


def test_the_best_arm_of_a_column_is_bold(analysis: Analysis) -> None:
    table = score_table(analysis, "babilong", "official")
    at = table.columns.index("16K")
    best = [row.entries[1].text for row in table.rows if row.group == "qa1" and row.entries[at].best]
    scores = {
        row.entries[1].text: row.entries[at].number for row in table.rows if row.group == "qa1" and row.kind == "arm"
    }
    assert best == [max(scores, key=lambda arm: scores[arm] or 0)]
    text = row_of(table, "qa1", best[0]).entries[at].text
    assert f"**{text}** [" in markdown(table)


def test_a_control_is_never_the_best_arm(tmp_path: Path) -> None:
    for name, control in (("a", None), ("b", None), ("c", "facts-only")):
        write_run(
            tmp_path / name, arm=name, accuracy=lambda *_: 2.0, samples=5, lengths=("4k",), subsets=("qa1",),
            config={"control": control},
        )  # fmt: skip
    rows = score_table(analyse(load_runs([tmp_path])), "babilong", "official").rows
    assert [row.kind for row in rows if any(entry.best for entry in row.entries)] == ["arm", "arm"]


def test_chance_stands_below_the_arms(analysis: Analysis) -> None:
    rows = [row for row in score_table(analysis, "babilong", "official").rows if row.kind == "chance"]
    assert {row.group for row in rows} == {"avg", "qa1", "qa2"}
    assert all(0 < (row.entries[4].number or 0) < 60 for row in rows)


def test_scores_have_one_decimal_and_an_interval(analysis: Analysis) -> None:
    entry = row_of(score_table(analysis, "babilong", "official"), "qa2", "plain").entries[4]
    whole, _, decimals = entry.text.partition(".")
    assert whole.isdigit()
    assert len(decimals) == 1
    assert entry.below.startswith("[")
    assert "n = 40, 0 unscored" in entry.explanation


def test_a_caption_names_only_intervals_there_are_and_explains_only_lengths_that_need_it(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm="a", accuracy=holds_to(8 * K), lengths=("512",), subsets=("qa1",))
    analysis = analyse(load_runs([tmp_path]))
    caption = score_table(analysis, "babilong", "official").caption
    assert "95 % intervals (wilson)" in caption
    assert "Lengths are tokens. n:" in caption
    assert "131,072" not in caption


def test_published_means_are_left_out_where_no_length_meets_theirs(tmp_path: Path) -> None:
    write_run(tmp_path / "small", arm="small", accuracy=holds_to(128), lengths=("64", "1k"), subsets=("qa3",))
    table = summary_table(analyse(load_runs([tmp_path]), published=read_published(["paper"])), "babilong", "official")
    assert not [row for row in table.rows if row.kind == "published"]


def test_odd_names_are_escaped_in_markdown(analysis: Analysis) -> None:
    for table in all_tables(analysis):
        assert "<b>" not in markdown(table).replace("\\<b\\>", "")


def test_run_tables_need_no_second_arm(results: Path) -> None:
    text = terminal_tables(load_runs([results / "plain"]))
    assert "BABILong" in text
    assert "plain" in text
