"""Figures: every arm keeps its colour, files carry no date, and what is drawn is what the tables say."""

from pathlib import Path

import numpy as np
import pytest

from evalkit.models.training_record import TrainingRecord
from evalkit.report.analysis import Analysis, analyse
from evalkit.report.arms import make_arms
from evalkit.report.coverage import coverage
from evalkit.report.figures import all_drawings, curve, depth_heatmap
from evalkit.report.load import load_runs
from evalkit.report.style import looks, save
from tests.report_runs import holds_to, training, write_run

K = 1024


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    root = tmp_path_factory.mktemp("results")
    for recipe, hold in (("plain", 8 * K), ("rpe", 32 * K)):
        write_run(
            root / recipe, arm=recipe, accuracy=holds_to(hold), lengths=("8k", "32k", "128k"), training=training(recipe)
        )
    write_run(
        root / "mrcr", arm="plain", accuracy=holds_to(8 * K), task="mrcr", subsets=("2needle", "4needle"),
        lengths=("8k", "32k"), samples=10, training=training("plain"),
    )  # fmt: skip
    return analyse(load_runs([root]))


def test_there_is_a_figure_for_everything_the_data_allow(analysis: Analysis) -> None:
    assert [drawing.name for drawing in all_drawings(analysis)] == [
        "curve-babilong",
        "curve-babilong-subsets",
        "heatmap-babilong",
        "depth-babilong",
        "curve-mrcr",
        "curve-mrcr-subsets",
        "heatmap-mrcr",
        "depth-mrcr",
        "prefix-mrcr",
        "positions",
    ]


def test_files_are_the_same_bytes_again(analysis: Analysis, tmp_path: Path) -> None:
    name = "prefix-mrcr"  # the others are compared with the whole report, in test_report.py
    drawing = next(d for d in all_drawings(analysis) if d.name == name)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save(drawing.figure(), tmp_path / folder, name, "where it comes from")
    for kind in ("png", "svg", "pdf"):
        first, second = ((tmp_path / folder / f"{name}.{kind}").read_bytes() for folder in ("a", "b"))
        assert first == second
        assert len(first) > 1000


def test_a_curve_shows_the_scores_of_the_table_and_the_trained_length(analysis: Analysis) -> None:
    figure = curve(analysis, "babilong", "official").figure()
    top, below = figure.axes
    drawn = {line.get_label(): line for line in top.get_lines()}
    means = [
        100 * c.interval.mean for c in analysis.select("babilong", "official") if c.arm == "rpe" and c.subset == "avg"
    ]
    assert list(drawn["rpe"].get_ydata()) == pytest.approx(means)
    assert list(drawn["rpe"].get_xdata()) == [13, 15, 17]  # log2 of 8K, 32K, 128K
    assert [tick.get_text() for tick in below.get_xticklabels()] == ["8K", "32K", "128K"]
    assert any(line.get_linestyle() == "--" and set(line.get_xdata()) == {13.0} for line in top.get_lines())
    assert top.get_ylim()[0] == 0
    difference = analysis.comparisons[0].by_length["128k"].mean
    assert below.get_lines()[0].get_ydata()[-1] == pytest.approx(100 * difference)


def test_known_recipes_keep_their_colour_whatever_stands_beside_them(tmp_path: Path) -> None:
    for name in ("plain", "rpe", "yarn"):
        write_run(
            tmp_path / name, arm=name, accuracy=holds_to(8 * K), samples=2, lengths=("4k",), training=training(name)
        )
    write_run(tmp_path / "other", arm="other", accuracy=holds_to(8 * K), samples=2, lengths=("4k",))
    runs = load_runs([tmp_path]).runs
    everyone = looks(make_arms(runs, baseline=None, trained_length=None))
    two = looks(make_arms([r for r in runs if r.arm in ("rpe", "yarn")], baseline="yarn", trained_length=None))
    assert len({look.colour for look in everyone.values()}) == 4
    assert {name: two[name].colour for name in two} == {name: everyone[name].colour for name in two}


def test_the_depth_heatmap_puts_samples_where_their_needed_fact_stands(analysis: Analysis) -> None:
    frame = analysis.loaded.frame
    where = {"arm": "rpe", "task": "babilong", "scorer": "official", "length": "32k"}
    cell = frame[np.all([frame[name] == value for name, value in where.items()], axis=0)]
    inside = cell[(cell["depth"] >= 0.5) & (cell["depth"] < 0.6)]
    figure = depth_heatmap(analysis, "babilong", "official").figure()
    grid = figure.axes[1].get_images()[0].get_array()
    assert float(grid[5][1]) == pytest.approx(100 * inside["value"].mean())


def test_panels_of_arms_that_begin_alike_have_different_names_that_fit(tmp_path: Path) -> None:
    names = [f"organisation/model-128k-instruct (with {what})" for what in ("instruction and examples", "neither")]
    for i, name in enumerate(names):
        write_run(tmp_path / str(i), arm=name, accuracy=holds_to(8 * K), samples=2, lengths=("4k", "8k"))
    found = {d.name: d.figure() for d in all_drawings(analyse(load_runs([tmp_path])))}
    figure = found["heatmap-babilong"]
    panels, titles = figure.axes[:2], [axes.get_title(loc="left") for axes in figure.axes[:2]]
    assert ["".join(title.split()) for title in titles] == ["".join(name.split()) for name in names]
    assert {axes.get_xlabel() for axes in panels} == {"length (tokens)"}
    figure.draw_without_rendering()
    first, second = (axes._left_title.get_window_extent() for axes in panels)  # no public way to it
    assert first.x1 < second.x0


def test_positions_of_a_control_are_those_of_its_arm_and_not_drawn_again(tmp_path: Path) -> None:
    for name in ("none", "no-context"):
        write_run(
            tmp_path / name, arm="rpe", accuracy=holds_to(8 * K), samples=2, lengths=("8k",), training=training("rpe"),
            config={"control": None if name == "none" else name},
        )  # fmt: skip
    (axes,) = next(d for d in all_drawings(analyse(load_runs([tmp_path]))) if d.name == "positions").figure().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rpe"]


def test_coverage_of_training_positions_follows_the_schedule(analysis: Analysis) -> None:
    plain, rpe = (coverage(next(arm for arm in analysis.arms if arm.name == name)) for name in ("plain", "rpe"))
    assert plain is not None
    assert rpe is not None
    assert np.interp(4 * K, plain.positions, plain.share) == 1
    assert plain.positions[-1] == 8 * K
    # Stages 1, 1.25, 1.5, 2 and 2: a position below L is taken with probability 1 / ratio.
    assert np.interp(4 * K, rpe.positions, rpe.share) == pytest.approx((1 + 1 / 1.25 + 1 / 1.5 + 0.5 + 0.5) / 5)
    assert np.interp(15 * K, rpe.positions, rpe.share) == pytest.approx((0.5 + 0.5) / 5)


@pytest.mark.parametrize("kind", ["randomized", "pose"])
@pytest.mark.parametrize("mixed", [False, True])
def test_coverage_agrees_with_what_training_draws(analysis: Analysis, kind: str, mixed: bool) -> None:
    from dataclasses import replace

    from evalkit.train.positions import PositionRule, draw_positions

    length, rule = 200, PositionRule(kind=kind, stages=(1.0, 2.0), mixed=mixed)  # type: ignore[arg-type]
    rng, taken = np.random.default_rng(0), np.zeros(2 * length)
    draws = 2000
    for i in range(draws):
        taken[draw_positions(rule, length, range_length=length, progress=i / draws, rng=rng)] += 1 / draws
    arm = analysis.arms[0]
    positions = {"kind": kind, "stages": [1.0, 2.0], "mixed": mixed}
    record = {"recipe": "rpe", "trained_length": length, "positions": positions}
    run = replace(arm.runs[0], training=TrainingRecord.from_json(record, "here"))
    seen = coverage(replace(arm, runs=(run,)))
    assert seen is not None
    places = np.arange(5, 2 * length - 5)
    off = np.abs(np.interp(places + 0.5, seen.positions, seen.share) - taken[places])
    assert np.mean(off) < 0.03
