"""Figures for papers: their size, what has a colour, what is cut, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from matplotlib.text import Annotation, Text

from evalkit.cli.commands import main
from evalkit.report.analysis import Analysis, analyse
from evalkit.report.drawing import Drawing
from evalkit.report.load import load_runs
from evalkit.report.plot import SIZES, Shown, of_subset, paper_curve, paper_heatmap
from evalkit.report.published import read_published
from evalkit.report.style import FAINT
from tests.report_runs import holds_to, training, write_run

K = 1024
ARMS = ("plain", "yarn", "rpe", "randomized-yarn", "pose", "another, with a comma", "one more")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    for i, arm in enumerate(ARMS):
        record = training(arm) if i < 4 else None
        write_run(
            root / str(i), arm=arm, accuracy=holds_to((8 << i) * K), lengths=("4k", "8k", "32k", "128k"), samples=20,
            subsets=("qa1",), training=record,
        )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def analysis(results: Path) -> Analysis:
    return analyse(load_runs([results]))


def plot(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(main, ["plot", *words])


@pytest.mark.parametrize(("width", "inches"), [("column", 3.25), ("text", 6.75)])
@pytest.mark.parametrize("kind", ["curve", "heatmap"])
def test_a_figure_is_as_wide_as_the_column_or_the_page_it_is_for(
    kind: str, width: str, inches: float, results: Path, tmp_path: Path
) -> None:
    done = plot(str(results), "--kind", kind, "--width", width, "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    pdf = (tmp_path / f"plot-{kind}-babilong.pdf").read_bytes()
    assert f"/MediaBox [ 0 0 {72 * inches:g} ".encode() in pdf
    assert {path.suffix for path in tmp_path.iterdir()} == {".pdf", ".png", ".svg"}
    assert done.stdout.startswith(f"plot-{kind}-babilong: ")
    assert max(map(len, done.output.splitlines())) <= 100


@pytest.mark.parametrize("width", ["column", "text"])
def test_names_stand_within_the_figure_and_not_on_each_other(analysis: Analysis, width: str) -> None:
    figure = paper_curve(analysis, "babilong", Shown(width=width)).figure()
    figure.draw_without_rendering()
    (axes,) = figure.axes
    names = [t for t in axes.texts if isinstance(t, Annotation) and t.anncoords == "axes fraction"]
    boxes = [Text.get_window_extent(name) for name in names]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    assert axes.get_title(loc="left") == ""
    assert axes.get_legend() is None
    assert SIZES[width].names / SIZES[width].width < 0.3


@pytest.mark.parametrize("draw", [paper_curve, paper_heatmap])
def test_a_long_title_is_broken_and_stands_within_the_figure(analysis: Analysis, draw: Callable[..., Drawing]) -> None:
    title = "What holds beyond the trained length, by arm and by the number of tokens asked"
    figure = draw(analysis, "babilong", Shown(title=title)).figure()
    figure.draw_without_rendering()
    (axes,) = figure.axes
    text = axes._left_title if draw is paper_curve else figure._suptitle  # no public way to them
    assert " ".join(text.get_text().split()) == title
    box = text.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert axes.get_window_extent().y1 < box.y0 < box.y1 <= figure.bbox.y1


def test_five_arms_have_a_colour_of_their_own_and_the_others_are_grey(analysis: Analysis) -> None:
    drawing = paper_curve(analysis, "babilong", Shown())
    colours = {line.get_label(): line.get_color() for line in drawing.figure().axes[0].get_lines()}
    grey = [name for name in ARMS if colours[name] == FAINT]
    assert len(grey) == 2
    assert len({colours[name] for name in ARMS}) == 6
    assert "The other 2 arms are grey." in drawing.description
    assert colours["plain"] != FAINT, "the baseline, whatever its score"


def test_arms_are_highlighted_by_name_and_keep_the_colour_of_their_recipe(analysis: Analysis) -> None:
    shown = Shown(highlight=("yarn", "another, with a comma"))
    colours = {
        line.get_label(): line.get_color()
        for line in paper_curve(analysis, "babilong", shown).figure().axes[0].get_lines()
    }
    assert [name for name in ARMS if colours[name] != FAINT] == ["yarn", "another, with a comma"]
    assert colours["yarn"] == "#0072B2"


def test_only_the_arms_and_lengths_that_are_named_are_drawn(analysis: Analysis) -> None:
    shown = Shown(arms=("rpe", "plain"), lengths=("8k", "128k"), bands=False)
    (axes,) = paper_curve(analysis, "babilong", shown).figure().axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["8K", "128K"]
    assert {line.get_label() for line in axes.get_lines() if line.get_label()[0] != "_"} == {"plain", "rpe"}
    assert not [c for c in axes.collections if c.get_alpha() == 0.15], "no bands"
    (grid,) = paper_heatmap(analysis, "babilong", shown).figure().axes
    assert [tick.get_text() for tick in grid.get_yticklabels()] == ["rpe", "plain"]
    assert [tick.get_text() for tick in grid.get_xticklabels()] == ["8K", "128K"]


def test_a_zoom_cuts_lines_but_no_markers_and_says_which_arm_ends_below(analysis: Analysis) -> None:
    (axes,) = paper_curve(analysis, "babilong", Shown(arms=("plain", "one more"), ylim=(50, 100))).figure().axes
    assert axes.get_ylim() == (50, 100)
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["plain"].get_clip_on()
    markers = [line for line in axes.get_lines() if line.get_linestyle() == "None" and line.get_color() == "#000000"]
    (inside,) = markers
    assert not inside.get_clip_on()
    assert all(50 <= y <= 100 for y in inside.get_ydata())
    assert "plain ↓" in {text.get_text() for text in axes.texts}


def test_points_of_two_arms_at_one_length_stand_apart(analysis: Analysis) -> None:
    (axes,) = paper_curve(analysis, "babilong", Shown(arms=("plain", "rpe", "one more"))).figure().axes
    places = [line.get_xdata()[0] for line in axes.get_lines() if line.get_label() in ARMS]
    assert len(set(places)) == 3
    assert max(places) - min(places) < 0.4


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two subsets at lengths that the paper's counts have too."""
    root = tmp_path_factory.mktemp("several")
    for arm in ("plain", "yarn"):
        write_run(
            root / arm, arm=arm, accuracy=holds_to(8 * K), lengths=("8k", "32k", "128k"), samples=10,
            subsets=("qa1", "qa3"), training=training(arm),
        )  # fmt: skip
    return root


@pytest.mark.parametrize("kind", ["curve", "heatmap"])
def test_published_counts_stand_beside_runs_where_one_subset_is_drawn(kind: str, several: Path, tmp_path: Path) -> None:
    words = (str(several), "--kind", kind, "--width", "text", "--published", "paper")
    done = plot(*words, "--subset", "qa3", "--no-bands", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert ", qa3" in said
    assert "Published (authors' repository): other people's checkpoints and samples." in said
    svg = (tmp_path / "out" / f"plot-{kind}-babilong.svg").read_text()
    assert f"evalkit plot {several.as_posix()} " in svg, "the figure names the command that makes it"
    assert all(option in svg for option in ("--subset qa3", "--no-bands", "--width text", "--published paper"))
    averaged = plot(*words, "--out", str(tmp_path / "none"))
    assert averaged.exit_code == 2
    assert "they are of qa3, and the figures average over several subsets; --subset qa3 draws one" in " ".join(
        averaged.output.split()
    )
    assert not (tmp_path / "none").exists()


def test_a_published_arm_is_drawn_with_its_own_counts(several: Path) -> None:
    published = read_published(["paper"])
    analysis = analyse(of_subset(load_runs([several]), "qa3"), published=published)
    (arm,) = [arm.name for arm in analysis.arms if arm.published and arm.name.startswith("Trained YaRN")]
    (axes,) = paper_curve(analysis, "babilong", Shown(arms=("plain", arm))).figure().axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    (drawn,) = [line for label, line in lines.items() if "(published)" in label]
    assert (lines["plain"].get_linestyle(), drawn.get_linestyle()) == ("-", "--"), "told apart from runs"
    counts = [c for c in published.counts if c.arm == "Trained YaRN" and c.quoted and c.questions == "305 stories"]
    expected = [100 * next(c.mean for c in counts if c.length == length) for length in ("8k", "32k", "128k")]
    assert list(drawn.get_ydata()) == pytest.approx(expected)
    ours = [c.interval.mean for c in analysis.cells if (c.arm, c.subset, c.scorer) == ("plain", "qa3", "official")]
    assert list(lines["plain"].get_ydata()) == pytest.approx([100 * mean for mean in ours])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--subset", "qa9"], "No run was asked the subset 'qa9'; there are qa1"),
        (["--published", "paper"], "No figure shows a published count: the tables have none for these runs"),
        (["--arms", "nobody"], "No arm is named 'nobody'; the arms are"),
        (["--highlight", "nobody"], "No arm is named 'nobody'"),
        (["--arms", "plain,yarn", "--highlight", "rpe"], "--highlight names 'rpe', which --arms leaves out"),
        (["--highlight", "plain,yarn,rpe,pose,one more,randomized-yarn"], "6 arms are to be highlighted; more than 5"),
        (["--lengths", "3k"], "No run was asked at 3k; the lengths are 4k, 8k, 32k, 128k"),
        (["--ylim", "80,20"], "--ylim is 80,20; scores are from 0 to 100"),
        (["--ylim", "high"], "'high' is not two numbers"),
        (["--task", "mrcr"], "No run is of the task 'mrcr'; there are babilong"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_leaves_nothing(
    words: list[str], said: str, results: Path, tmp_path: Path
) -> None:
    done = plot(str(results), *words, "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert said in done.output
    assert not (tmp_path / "out").exists()
