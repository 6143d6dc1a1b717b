"""Published counts: what the paper's own figures say, how they stand beside runs, and what is refused."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.files import versions
from evalkit.report.analysis import analyse
from evalkit.report.build import build
from evalkit.report.load import load_runs
from evalkit.report.published import Count, read_published
from evalkit.report.published_figures import mean_over, published_drawings, unpaired_difference
from evalkit.report.published_pairs import compare_pairs, mcnemar
from evalkit.report.tables import score_table, summary_table
from tests.report_runs import holds_to, training, write_run

ROOT = Path(__file__).parents[1]
PLOTS = ROOT / "plots" / "reference" / "paper"
BEYOND = ("16k", "32k", "64k", "128k")
K = 1024


@pytest.fixture(scope="module")
def paper():
    return read_published(["paper"])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def counts_of(paper, **wanted: object) -> list[Count]:
    return [c for c in paper.counts if all(getattr(c, name) == value for name, value in wanted.items())]


# -- the paper's figures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arm", "mean", "at_128k"), [("Trained YaRN", 81.3, 67.2), ("Randomized YaRN", 90.3, 83.9)])
def test_the_printed_means_of_babilong_follow_from_the_counts(paper, arm, mean, at_128k):
    counts = counts_of(paper, task="babilong", questions="305 stories", arm=arm)
    found = mean_over(counts, BEYOND)
    assert round(100 * found.mean, 1) == mean
    assert round(100 * next(c.mean for c in counts if c.length == "128k"), 1) == at_128k
    printed = [m for m in paper.means if (m.task, m.arm, m.model) == ("babilong", arm, "Qwen2.5-7B-Instruct")]
    assert [(m.lengths, 100 * m.mean) for m in printed] == [(BEYOND, pytest.approx(mean))]


@pytest.mark.parametrize(
    ("arm", "setting", "mean"),
    [
        ("plain", "factor 1 → 1", 64.4),
        ("Trained YaRN", "factor 4 → 4", 59.3),
        ("RPE + YaRN", "range 32k, factor 1 → 4", 61.1),
        ("RPE, no curriculum + YaRN", "range 32k, factor 1 → 4", 57.0),
    ],
)
def test_the_printed_means_of_mrcr_follow_from_the_bins_8k_to_128k(paper, arm, setting, mean):
    counts = [c for c in counts_of(paper, task="mrcr", arm=arm) if c.setting == setting]
    assert round(100 * mean_over(counts, BEYOND).mean, 1) == mean
    assert all(c.quoted for c in counts)
    printed = [
        m for m in paper.means if m.task == "mrcr" and m.arm == arm.removesuffix(" + YaRN") and "Qwen2" in m.model
    ]
    assert [round(100 * m.mean, 1) for m in printed] == [mean]


def test_over_all_zones_trained_yarn_is_below_plain_with_yarn(paper):
    zones = [c for c in paper.counts if c.zone]
    means = {}
    for arm in ("plain + YaRN", "Trained YaRN", "Randomized YaRN"):
        own = [c for c in zones if c.arm == arm]
        means[arm] = round(100 * sum(c.correct for c in own) / sum(c.n for c in own), 1)
    assert means == {"plain + YaRN": 77.2, "Trained YaRN": 72.7, "Randomized YaRN": 79.9}
    assert sum(c.n for c in zones) == 15063


def test_pooled_over_the_zones_at_128k_randomized_is_above_trained_yarn(paper):
    arms = ("Randomized YaRN", "Trained YaRN")
    found = [p for p in compare_pairs(paper.pairs) if (p.pair.first, p.pair.second) == arms and p.pair.length == "128k"]
    pooled = next(p for p in found if p.pair.zone == "pooled")
    assert (pooled.pair.first_only, pooled.pair.second_only, pooled.pair.n) == (56 + 49 + 54, 21 + 28 + 13, 3 * 227)
    assert pooled.difference == pytest.approx(97 / 681)
    assert 0.05 < pooled.low < pooled.difference < pooled.high < 0.25
    assert pooled.p < 0.001
    assert pooled.p_mcnemar < 1e-9
    widths = [p.high - p.low for p in found if p.pair.zone != "pooled"]
    assert pooled.high - pooled.low == pytest.approx(
        sum(widths) / 3, rel=0.02
    )  # not narrower: the stories are the same


def test_mcnemars_test_is_the_exact_one():
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(0, 0) == 1
    assert mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)


def test_a_difference_of_published_scores_is_newcombes(paper):
    # Newcombe 1998, table II, 56/70 against 48/80: 0.2, from 0.0524 to 0.3339.
    first, second = (
        Count(task="t", subset="s", arm="a", length="1k", n=n, correct=c, mean=c / n, source="", where=str(n))
        for c, n in ((56, 70), (48, 80))
    )
    found = unpaired_difference(first, second)
    assert (found.mean, found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.0524, abs=1e-4),
                                                   pytest.approx(0.3339, abs=1e-4))  # fmt: skip


def test_the_kept_tables_print_every_count_and_pair_of_the_source():
    tables = ROOT / "evalkit" / "report" / "paper"
    pairs = {
        tuple(
            row[n] for n in ("zone", "first", "second", "length", "n", "first_only", "second_only", "both", "neither")
        )
        for row in rows_of(PLOTS / "pairs.csv")
        if row["zone"] != "pooled"
    }
    source = rows_of(tables / "zone_pairs.csv")
    assert pairs == {
        tuple(
            row[n] for n in ("zone", "first", "second", "length", "n", "first_only", "second_only", "both", "neither")
        )
        for row in source
    }
    assert len(pairs) == 72
    text = (PLOTS / "report.md").read_text()
    for row in source:
        numbers = " | ".join(row[n] for n in ("n", "first_only", "second_only", "both", "neither"))
        place = f"{row['first']} − {row['second']} | {row['zone']} | {row['length'].upper()} | {numbers} |"
        assert place in text, place
    counts = rows_of(PLOTS / "published.csv")
    assert len(counts) == sum(len(rows_of(tables / name)) for name in ("babilong.csv", "zones.csv", "mrcr.csv"))


def test_one_command_makes_the_kept_plots_of_the_paper_again(tmp_path):
    result = CliRunner().invoke(main, ["report", "--published", "paper", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    kept = json.loads((PLOTS / "report.json").read_text())
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in PLOTS.iterdir()}
    for path in sorted(tmp_path.iterdir()):
        same_library = (
            path.suffix == ".svg" and versions(["matplotlib"])["matplotlib"] == kept["libraries"]["matplotlib"]
        )
        if path.suffix in (".csv", ".md", ".tex") or same_library:
            assert path.read_bytes() == (PLOTS / path.name).read_bytes(), path.name


# -- beside runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for arm, recipe in (("plain", "plain"), ("Randomized YaRN", "randomized-yarn")):
        write_run(
            root / recipe, arm=arm, accuracy=holds_to(16 * K), subsets=("qa3",), lengths=("16k", "128k"), samples=20,
            training=training(recipe),
        )  # fmt: skip
    return root


def test_nothing_published_is_shown_unasked(runs):
    analysis = analyse(load_runs([runs]))
    assert not [r for r in score_table(analysis, "babilong", "official").rows if r.kind == "published"]
    assert not [r for r in summary_table(analysis, "babilong", "official").rows if r.kind == "published"]


def test_the_papers_quoted_arms_stand_beside_ours_marked_and_compared_by_no_test(runs, paper, tmp_path):
    alone = analyse(load_runs([runs]))
    analysis = analyse(load_runs([runs]), published=paper)
    rows = [row for row in score_table(analysis, "babilong", "official").rows if row.kind == "published"]
    assert [row.entries[1].text for row in rows] == [
        "Trained YaRN, Qwen2.5-7B-Instruct (published)",
        "Randomized YaRN, Qwen2.5-7B-Instruct (published)",
    ]
    assert [entry.text for entry in rows[0].entries[4:6]] == ["89.5", "67.2"]
    assert rows[0].entries[5].below == "[61.8, 72.2]"
    assert analysis.comparisons == alone.comparisons
    assert analysis.cells == alone.cells
    means = [row for row in summary_table(analysis, "babilong", "official").rows if row.kind == "published"]
    assert {row.entries[5].text for row in means} == {
        "83.6",
        "81.3",
        "79.7",
        "78.1",
        "90.3",
        "83.2",
        "88.0",
        "88.8",
        "92.6",
    }
    built = build([runs], tmp_path, published=["paper"])
    assert "(published)" in (tmp_path / "report.md").read_text()
    assert any("nothing here is paired" in note for note in built.notices)
    assert "--published paper" in json.loads((tmp_path / "report.json").read_text())["command"]
    assert b"67.2" in (tmp_path / "report.html").read_bytes()


def test_a_table_of_ones_own_is_shown_too_with_wilsons_interval(runs, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("task,subset,arm,length,n,correct,source\nbabilong,qa3,LongRoPE,128k,50,25,my thesis\n")
    analysis = analyse(load_runs([runs]), published=read_published([str(table)]))
    (row,) = (row for row in score_table(analysis, "babilong", "official").rows if row.kind == "published")
    assert row.entries[1].text == "LongRoPE (published)"
    assert (row.entries[5].text, row.entries[5].below) == ("50.0", "[36.6, 63.4]")
    assert "my thesis" in row.entries[5].explanation


# -- bad input -----------------------------------------------------------------------------------------------------

HEAD = "task,subset,arm,length,n,correct,source\n"
PAIRS = "task,subset,first,second,length,n,first_only,second_only,both,neither,source\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "babilong,qa3,a,16k,26,27,s\n", r"line 2: 27 correct answers are more than the 26 asked\.$"),
        (HEAD + "babilong,qa3,a,8k-16k,30,3,s\n", r"line 2: Length '8k-16k' is not a number of tokens"),
        (HEAD + "babilong,qa3,a,8k,30,3,s\nbabilong,qa3,a,8192,3,1,s\n", r"line 3: the same arm and cell .*line 2"),
        (HEAD + "babilong,qa3,a,8k,x,3,s\n", r"line 2: n is 'x', which is no whole number of 9 digits at most\.$"),
        (HEAD + "babilong,qa3,a,8k,3,,s\n", r"line 2: a count needs either 'correct' or 'mean'\.$"),
        (HEAD.replace("n,correct", "n,mean") + "mrcr,2needle,a,8k,30,81.3,s\n", r"line 2: mean is '81.3'; write"),
        (HEAD.replace(",source", "") + "babilong,qa3,a,8k,3,1\n", r"line 2: 'source' is missing"),
        (HEAD.replace("source", "source,colour") + "b,q,a,8k,3,1,s,red\n", r"line 2: column 'colour' is not known"),
        (HEAD + "babilong,qa3,a,8k,3\n", r"line 2: it has not as many cells"),
        (HEAD, r"has no row below its names\.$"),
        (PAIRS + "babilong,qa3,a,b,8k,30,5,5,5,5,s\n", r"line 2: both, .* come to 20 questions, and n is 30"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_right_is_refused_in_one_sentence_with_file_and_line(tmp_path, text, message):
    table = tmp_path / "counts.csv"
    table.write_text(text)
    with pytest.raises(BadInput, match=rf"^{table}.*{message}"):
        read_published([str(table)])


def test_a_pair_table_whose_margins_contradict_the_counts_is_refused(tmp_path):
    (tmp_path / "counts.csv").write_text(HEAD + "babilong,qa3,a,8k,20,12,s\n")
    (tmp_path / "pairs.csv").write_text(PAIRS + "babilong,qa3,a,b,8k,20,5,5,6,4,s\n")
    with pytest.raises(
        BadInput, match=r"pairs.csv, line 2: a has 11 of 20 right here, and 12 of 20 in .*counts.csv, line 2"
    ):
        read_published([str(tmp_path)])


def test_a_published_arm_named_like_ours_is_refused(runs, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text(HEAD + "babilong,qa3,plain,128k,50,25,s\n")
    with pytest.raises(BadInput, match=r"mine.csv, line 2: arm 'plain' has the name of an arm of the runs"):
        analyse(load_runs([runs]), published=read_published([str(table)]))


def test_a_table_that_shares_no_cell_with_the_runs_is_refused_with_both_sides_named(runs, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text(HEAD + "babilong,qa3,x,1k,50,25,s\n")
    with pytest.raises(BadInput, match=r"it has babilong qa3 at 1k, and they have babilong qa3 at 16k, 128k\.$"):
        analyse(load_runs([runs]), published=read_published([str(table)]))


def test_a_report_on_nothing_and_a_source_that_is_not_there_are_refused(tmp_path):
    assert "name run folders, or --published paper" in CliRunner().invoke(main, ["report"]).output
    with pytest.raises(BadInput, match=r"name a CSV file, a folder that holds some, or 'paper'"):
        read_published([str(tmp_path / "nothing.csv")])


@pytest.mark.parametrize("num_arms", [1, 2, 8])
def test_a_table_of_one_length_is_drawn_too(tmp_path, num_arms):
    table = tmp_path / "mine.csv"
    table.write_text(HEAD + "".join(f"babilong,qa1,arm {i},4k,20,{i},me\n" for i in range(num_arms)))
    built = build([], tmp_path / "plots", published=[str(table)])
    assert {path.suffix for path in built.files} >= {".svg", ".png", ".pdf", ".md", ".csv"}


def test_who_imports_a_table_of_counts_is_told_how_it_is_shown(tmp_path):
    table = tmp_path / "counts.csv"
    table.write_text(HEAD + "babilong,qa3,x,1k,50,25,s\n")
    result = CliRunner().invoke(main, ["import", str(table)])
    assert result.exit_code == 2
    assert f"evalkit report --published {table}" in result.output


def test_published_arms_of_one_name_are_told_apart_by_what_differs(paper):
    drawings = {d.name: d for d in published_drawings(paper, compare_pairs(paper.pairs))}
    assert list(drawings) == [
        "curve-babilong-qa3-305-stories",
        "curve-babilong-qa3-first-100-stories",
        "methods-mrcr-2needle",
        "zones-babilong-qa3-227-stories",
    ]
    panels = [axes.get_title(loc="left") for axes in drawings["zones-babilong-qa3-227-stories"].figure().axes[:4]]
    assert panels == ["facts at the beginning", "facts in the middle", "facts at the end", "zones pooled"]
