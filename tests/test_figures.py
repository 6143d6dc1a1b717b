"""Figures: every arm keeps its colour, files carry no date, and what is drawn is what the tables say."""

import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from evalkit.models.training_record import TrainingRecord
from evalkit.records.folder import RunFolder
from evalkit.report.analysis import Analysis, analyse
from evalkit.report.arms import make_arms
from evalkit.report.coverage import coverage
from evalkit.report.curves import FEW, spread
from evalkit.report.drawing import fitted_names, wrapped
from evalkit.report.figures import all_drawings, curve
from evalkit.report.heatmaps import MOST_ROWS, depth_heatmap, heatmap
from evalkit.report.load import load_runs
from evalkit.report.main_table import main_table
from evalkit.report.style import looks, save
from evalkit.report.tables import summary_table
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


def test_a_trained_arm_asked_without_background_alone_has_no_figure_of_depths_or_positions(tmp_path: Path) -> None:
    source = RunFolder.open(
        write_run(tmp_path / "none", arm="plain", accuracy=holds_to(8 * K), lengths=("0k",), training=training("plain"))
    )
    asked = [replace(p, prompt_tokens=80, fact_positions=(20, 40)) for p in source.predictions()]
    with RunFolder.start(
        tmp_path / "0k", arm="plain", config=source.config, fingerprint=source.fingerprint, provenance={"command": "x"}
    ) as run:
        run.extend(asked)
    analysis = analyse(load_runs([tmp_path / "0k"]))
    assert analysis.loaded.frame["depth"].notna().all()
    drawings = all_drawings(analysis)
    assert [one.name for one in drawings] == ["curve-babilong", "curve-babilong-subsets", "heatmap-babilong"]
    for drawing in drawings:
        drawing.figure()


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
    assert list(drawn["rpe"].get_xdata()) == pytest.approx([13.025, 15.025, 17.025])  # log2 of 8K, 32K, 128K, and apart
    assert list(drawn["plain"].get_xdata()) == pytest.approx([12.975, 14.975, 16.975])
    assert [tick.get_text() for tick in below.get_xticklabels()] == ["8K", "32K", "128K"]
    assert any(line.get_linestyle() == "--" and set(line.get_xdata()) == {13.0} for line in top.get_lines())
    assert top.get_ylim() == (0, 100)
    assert not any(drawn[name].get_clip_on() for name in ("plain", "rpe")), "markers at 0 and 100 are whole"
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
    for name in ("heatmap-babilong", "depth-babilong"):
        panels = found[name].axes[:2]
        first, second = (axes.get_title(loc="left") for axes in panels)
        assert first != second
        assert all(title.startswith("organisation/") and title.count("\n") <= 2 for title in (first, second))
        assert {axes.get_xlabel() for axes in panels} == {"length (tokens)"}
        found[name].draw_without_rendering()
        assert panels[0]._left_title.get_window_extent().x1 < panels[1]._left_title.get_window_extent().x0


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


# -- names, colours and lengths --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """A leaderboard: 58 arms, of which every fourth was asked more subsets."""
    root = tmp_path_factory.mktemp("many")
    for i in range(58):
        subsets = ("qa1", "qa2", "qa3") if i % 4 else ("qa1", "qa2")
        write_run(
            root / str(i), arm=f"organisation-{i % 6}/Model-{i}B-128k-instruct", lengths=("4k", "16k"), samples=4,
            subsets=subsets, accuracy=holds_to(2 * K * (1 + i)),
        )  # fmt: skip
    return analyse(load_runs([root]))


@pytest.fixture(scope="module")
def long_names(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """As many arms as are told apart, with names that have no room anywhere."""
    root = tmp_path_factory.mktemp("long")
    for i in range(12):
        name = f"{'W' * 40}_{'and'.join(str(k) for k in range(20))} an/arm of many words, number-{i}, " + "as it is" * 4
        for task, subsets in (("babilong", ("qa1", "qa2")), ("mrcr", ("2needle",))):
            write_run(
                root / f"{task}-{i}", arm=name, accuracy=holds_to(8 * K), task=task, subsets=subsets, samples=3,
                lengths=("8k", "32k"), training=training("plain", seed=i) if i % 2 else None,
            )  # fmt: skip
    return analyse(load_runs([root]))


BESIDE = {"positions": 1.7, "prefix-mrcr": 2.7}
"""Inches that names take beside a figure."""


@pytest.mark.parametrize("arms", ["many", "long_names"])
def test_no_text_makes_a_figure_wider_than_its_lines_and_cells_do(arms: str, request: pytest.FixtureRequest) -> None:
    drawings = all_drawings(request.getfixturevalue(arms))
    assert len(drawings) == (4 if arms == "many" else 9)
    for drawing in drawings:
        figure = drawing.figure()
        figure.draw_without_rendering()
        meant = max(figure.get_figwidth(), 3.25) + BESIDE.get(drawing.name, 0.2)
        assert figure.get_tightbbox().width <= meant <= 10.2, drawing.name
        assert all(place.get_window_extent().height > 0.5 * figure.dpi for place in figure.axes), drawing.name


@pytest.mark.parametrize("arms", ["many", "long_names"])
def test_no_title_of_a_panel_lies_on_another(arms: str, request: pytest.FixtureRequest) -> None:
    analysis = request.getfixturevalue(arms)
    for drawing in (depth_heatmap(analysis, "babilong", "official"), heatmap(analysis, "babilong", "official")):
        figure = drawing.figure()
        figure.draw_without_rendering()
        titled = [axes for axes in figure.axes if axes.get_title(loc="left")]
        assert len(titled) == (0 if arms == "many" and drawing.name.startswith("heatmap") else 12)
        assert not overlaps([axes._left_title.get_window_extent() for axes in titled])  # no public way to it
        assert len({axes.get_title(loc="left") for axes in titled}) == len(titled)


@pytest.mark.parametrize("columns", [1, 2])
def test_a_map_of_few_lengths_is_no_wider_than_its_title(tmp_path: Path, columns: int) -> None:
    for i in range(columns):
        write_run(tmp_path / f"{i}", arm=f"{i}", accuracy=holds_to(8 * K), lengths=("4k",), subsets=("qa1",), samples=4)
    analysis = analyse(load_runs([tmp_path]))
    for drawing in (heatmap(analysis, "babilong", "official"), depth_heatmap(analysis, "babilong", "official")):
        figure = drawing.figure()
        figure.draw_without_rendering()
        assert figure.get_tightbbox().width <= max(3.25, figure.get_figwidth()) <= 4.2


def test_a_title_of_many_arms_says_over_how_many_subsets_and_its_caption_of_which_arms(many: Analysis) -> None:
    drawing = heatmap(many, "babilong", "official")
    assert " ".join(drawing.figure().get_suptitle().split()) == (
        "BABILong, official score, averaged over 2 to 3 subsets"
    )
    assert "averaged over 3 subsets (over 2 for organisation-0/Model-0B-128k-instruct" in drawing.description


@given(st.text("abWé -/_.", max_size=60), st.integers(20, 200))
def test_a_text_is_broken_where_it_may_be_and_loses_nothing(text: str, room: int) -> None:
    lines = wrapped(text, room, 9).split("\n")
    assert "".join("".join(lines).split()) == "".join(text.split())
    for line, after in pairwise(lines):
        whole = len(line) > 1 and line[-1] not in "-/_" and after and f"{line} " not in text
        assert not whole or wrapped(line + after[0], room, 9) != line + after[0], "only a word without room is cut"


def test_names_that_fit_stay_whole_and_others_still_differ() -> None:
    names = ["short", *(f"organisation/Model-{size}B-instruct-of-many-words" for size in (7, 70))]
    found = fitted_names(names, 80, 9, lines=2)
    assert found["short"] == "short"
    assert len(set(found.values())) == 3
    assert max(text.count("\n") for text in found.values()) == 1
    assert fitted_names(names, 2000, 9, lines=1) == {name: name for name in names}


def overlaps(boxes: list[Bbox]) -> bool:
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def names_of(axes: Axes) -> list[Annotation]:
    return [text for text in axes.texts if isinstance(text, Annotation) and text.anncoords == "axes fraction"]


def test_lines_are_named_at_their_ends_and_no_name_lies_on_another(analysis: Analysis) -> None:
    figure = curve(analysis, "babilong", "official").figure()
    figure.draw_without_rendering()
    names = names_of(figure.axes[0])
    assert {text.get_text() for text in names} == {"plain", "rpe"}
    assert not overlaps([Text.get_window_extent(text) for text in names])
    assert figure.axes[0].get_legend() is None


def test_of_many_arms_a_few_have_a_colour_and_the_caption_says_which(many: Analysis) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, of a legend that has no room
        found = {drawing.name: (drawing, drawing.figure()) for drawing in all_drawings(many)}
        for _, figure in found.values():
            figure.draw_without_rendering()
    drawing, figure = found["curve-babilong"]
    lines = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith("organisation")]
    assert len(lines) == 58
    assert len({line.get_color() for line in lines}) == FEW + 1
    assert not overlaps([Text.get_window_extent(text) for text in names_of(figure.axes[0])])
    assert "The other 53 arms are grey." in drawing.description
    assert all(many.arms[0].name in text for text in (drawing.description, drawing.description.split("In colour:")[1]))
    (legend,) = found["curve-babilong-subsets"][1].legends
    assert legend.get_texts()[-1].get_text() == "53 other arms"
    panels = [axes.get_window_extent() for axes in found["curve-babilong-subsets"][1].axes]
    assert not any(legend.get_window_extent().overlaps(panel) for panel in panels)


def test_a_caption_says_over_how_many_subsets_each_arm_is_averaged(many: Analysis, analysis: Analysis) -> None:
    first = "organisation-0/Model-0B-128k-instruct, organisation-0/Model-12B-128k-instruct"
    said = curve(many, "babilong", "official").description
    assert f"averaged over 3 subsets (over 2 for {first}" in said
    assert "averaged over 2 subsets;" in curve(analysis, "babilong", "official").description


def test_the_baseline_of_differences_is_named_in_whole_words(many: Analysis) -> None:
    _, below = curve(many, "babilong", "official").figure().axes
    assert below.get_ylabel() == "minus organisation-0/\nModel-0B-128k-instruct"


def test_a_caption_says_of_lines_and_shades_only_what_is_drawn(
    many: Analysis, analysis: Analysis, tmp_path: Path
) -> None:
    said = curve(many, "babilong", "official").description
    assert not any(word in said.lower() for word in ("dashed", "dotted", "shaded", "chance"))
    said = curve(analysis, "babilong", "official").description
    assert "Dashed: the trained length; shaded: within the trained length; dotted across: chance." in said
    for name, record, window in (
        ("beyond", 128 * K, 0),
        ("below", K, 0),
        ("window", None, 8 * K),
        ("both", 8 * K, 16 * K),
    ):
        write_run(
            tmp_path / name / "a", arm="a", accuracy=holds_to(K), lengths=("4k", "32k"), subsets=("qa1",), samples=4,
            training=training("plain", trained_length=record) if record else None, config={"window": window or None},
        )  # fmt: skip
    captions = {
        folder.name: curve(analyse(load_runs([folder])), "babilong", "official").description
        for folder in tmp_path.iterdir()
    }
    assert ". Shaded: within the trained length; dotted across: chance." in captions["beyond"]
    assert ". Dotted across: chance." in captions["below"]
    assert ". Dotted upwards: the base's own window; shaded: within the base's own window; dotted" in captions["window"]
    assert (
        ". Dashed: the trained length; dotted upwards: the base's own window; shaded: within the trained length, paler "
        "within the base's own window; dotted across: chance."
    ) in captions["both"]


def test_many_arms_are_one_heat_map_with_arms_down(many: Analysis) -> None:
    drawing = heatmap(many, "babilong", "official")
    axes = drawing.figure().axes[0]
    assert len(axes.get_yticklabels()) == 58 <= MOST_ROWS
    means = {
        c.arm: c.interval.mean for c in many.select("babilong", "official") if (c.subset, c.length) == ("avg", "16k")
    }
    grid = axes.get_images()[0].get_array()
    assert [float(row[1]) for row in grid] == pytest.approx([100 * means[arm.name] for arm in many.arms])


def test_one_subset_is_one_heat_map_with_arms_down(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, arm=name, accuracy=holds_to(8 * K), subsets=("qa1",), lengths=("4k",), samples=4)
    figure = heatmap(analyse(load_runs([tmp_path])), "babilong", "official").figure()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_cells_of_few_samples_are_pale_and_the_fewer_the_paler(analysis: Analysis) -> None:
    image = depth_heatmap(analysis, "mrcr", "official").figure().axes[0].get_images()[0]
    frame = analysis.loaded.frame
    own = frame[(frame["task"] == "mrcr") & (frame["scorer"] == "official") & (frame["length"] == "8k")]
    counts, _ = np.histogram(own["depth"], bins=np.linspace(0, 1, 11))
    opacity = np.asarray(image.get_alpha())[:, 0]
    assert len(set(counts)) > 2
    assert list(np.argsort(opacity, kind="stable")) == list(np.argsort(np.minimum(counts, 10), kind="stable"))


def test_the_trained_length_and_the_window_of_the_base_are_both_marked(tmp_path: Path) -> None:
    lengths = ("1k", "2k", "4k", "8k", "16k")
    for name, record in (("base", None), ("plain", training("plain", trained_length=2 * K))):
        write_run(
            tmp_path / name, arm=name, accuracy=holds_to(8 * K), lengths=lengths, subsets=("qa1",), samples=4,
            training=record, config={"window": 8 * K},
        )  # fmt: skip
    found = analyse(load_runs([tmp_path]))
    figure = curve(found, "babilong", "official").figure()
    said = {
        text.get_text(): text.xy[0] for text in figure.axes[0].texts if text.get_text()[:7] in ("trained", "window ")
    }
    assert said == {"trained 2K": 11.0, "window 8K": 13.0}
    table = summary_table(found, "babilong", "official")
    windows = {row.entries[0].text: [row.entries[i].text for i in (1, 2)] for row in table.rows}
    assert windows == {"plain": ["2K", "8K"], "base": ["-", "8K"]}


def test_a_window_that_is_the_trained_length_is_marked_once(analysis: Analysis, tmp_path: Path) -> None:
    write_run(
        tmp_path / "a", arm="a", accuracy=holds_to(8 * K), lengths=("4k", "8k", "16k"), subsets=("qa1",), samples=4,
        training=training("plain"), fingerprint={"rope.original_length": 8 * K},
    )  # fmt: skip
    figure = curve(analyse(load_runs([tmp_path])), "babilong", "official").figure()
    assert [t.get_text() for t in figure.axes[0].texts if "8K" in t.get_text()] == ["trained 8K"]


def test_arms_that_were_asked_other_questions_are_marked_and_said(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_run(
            tmp_path / name, arm=name, accuracy=holds_to(8 * K), lengths=("4k", "8k"), subsets=("qa1",), samples=4,
            data_seed=seed,
        )  # fmt: skip
    found = analyse(load_runs([tmp_path]))
    drawing = curve(found, "babilong", "official")
    assert {text.get_text() for text in names_of(drawing.figure().axes[0])} == {"a", "b", "c †"}
    assert "† Asked other questions, which nothing pairs: data.seed is 0 in a and 1 in c." in drawing.description
    table = main_table(found, "babilong")
    assert [row.entries[0].text for row in table.rows[:3]] == ["a", "b", "c †"]
    assert "† Asked other questions" in table.caption


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(1, 30)), max_size=12))
def test_labels_are_spread_without_overlap_in_their_order_and_inside_where_there_is_room(
    labels: list[tuple[float, float]],
) -> None:
    wanted, heights = sorted(place for place, _ in labels), [height for _, height in labels]
    places = spread(wanted, heights, 100)
    for (a, b), (low, high) in zip(pairwise(places), pairwise(heights), strict=True):
        assert b - a >= (low + high) / 2 - 1e-6
    if labels and sum(heights) < 100:
        assert places[0] >= -1e-6
        assert places[-1] <= 100 + 1e-6


def test_labels_that_have_room_stay_where_their_lines_end() -> None:
    assert spread([10, 50, 90], [8, 8, 8], 100) == [10, 50, 90]
    assert spread([50, 50], [10, 10], 100) == [45, 55]


def test_a_name_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    write_run(
        tmp_path / "a", arm="$x^{$ and $y", accuracy=holds_to(8 * K), lengths=("4k", "8k"), subsets=("qa1",), samples=4
    )
    for drawing in all_drawings(analyse(load_runs([tmp_path]))):
        save(drawing.figure(), tmp_path, drawing.name, "here")
