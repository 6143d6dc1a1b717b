"""Figures for papers: their size, what has a colour, what is cut, and what is refused."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from matplotlib.text import Annotation, Text

from evalkit.cli.commands import main
from evalkit.report.analysis import Analysis, analyse
from evalkit.report.load import load_runs
from evalkit.report.plot import SIZES, Shown, paper_curve, paper_heatmap
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
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
