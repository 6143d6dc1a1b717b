"""The same story at several depths: where it is right, and how that differs between arms."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evalkit.records.folder import RunFolder
from evalkit.report.analysis import analyse
from evalkit.report.build import build
from evalkit.report.figures import all_drawings
from evalkit.report.load import load_runs
from tests.report_runs import holds_to, training, write_run

DEPTHS = (0.0, 0.5, 1.0)


def at_depths(folder: Path, arm: str, right, samples: int = 40, lengths=("8k", "32k")) -> Path:
    """A run whose story ``i`` at depth ``d`` and a length is right where ``right(i, d, length)`` says so."""
    plain = write_run(
        folder / f"{arm}-source", arm=arm, accuracy=holds_to(8192), subsets=("qa1",), lengths=lengths,
        samples=samples, training=training("plain" if arm == "a" else "yarn"),
    )  # fmt: skip
    source = RunFolder.open(plain)
    made = []
    for p in source.predictions():
        for depth in DEPTHS:
            ok = right(int(p.sample_id), depth, p.length)
            place = int(depth * (p.prompt_tokens - 1))
            made.append(
                replace(
                    p,
                    sample_id=f"{p.sample_id}@{depth:g}",
                    output=p.target if ok else "nowhere",
                    fact_positions=(place, place),
                    metadata={"supporting": [1], "depth": depth},
                )
            )
    with RunFolder.start(
        folder / "runs" / arm, arm=arm, config=source.config, fingerprint=source.fingerprint,
        provenance={"command": "x"},
    ) as run:  # fmt: skip
        run.extend(made)
    return folder / "runs" / arm


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """At 32k: "a" is right only at the end in every second story, "b" everywhere."""
    root = tmp_path_factory.mktemp("depths")
    at_depths(root, "a", lambda i, d, length: length == "8k" or i % 4 == 0 or (i % 2 == 0 and d == 1.0))
    at_depths(root, "b", lambda i, d, length: True)
    return root / "runs"


@pytest.fixture(scope="module")
def analysis(runs):
    return analyse(load_runs([runs]))


def test_each_story_is_right_at_all_depths_at_one_end_only_or_at_none(analysis):
    (flips,) = analysis.flips
    assert flips.depths == DEPTHS
    at_32k = {(g.value, c.arm): (c.interval.mean, c.n) for g in flips.patterns for c in g.cells if c.length == "32k"}
    assert at_32k == {
        ("right at all depths", "a"): (0.25, 40),
        ("right at all depths", "b"): (1.0, 40),
        ("right at both ends", "a"): (0.25, 40),
        ("right at both ends", "b"): (1.0, 40),
        ("at the end only (1)", "a"): (0.25, 40),
        ("at the end only (1)", "b"): (0.0, 40),
        ("at the beginning only (0)", "a"): (0.0, 40),
        ("at the beginning only (0)", "b"): (0.0, 40),
        ("at none", "a"): (0.5, 40),
        ("at none", "b"): (0.0, 40),
    }


def test_patterns_are_compared_between_arms_on_the_same_stories(analysis):
    pattern = analysis.flips[0].patterns[0]
    (compared,) = pattern.comparisons
    assert (compared.arm, compared.baseline) == ("b", "a")
    assert compared.by_length["32k"].mean == 0.75
    assert compared.by_length["32k"].n == 40
    assert compared.by_length["32k"].p < 0.001
    assert compared.by_length["8k"].mean == 0


def test_each_depth_has_its_own_retention(analysis):
    found = {(arm, depth): interval.mean for arm, depth, interval in analysis.flips[0].retention}
    assert found == {
        ("a", 0.0): 0.25, ("a", 0.5): 0.25, ("a", 1.0): 0.5, ("b", 0.0): 1.0, ("b", 0.5): 1.0, ("b", 1.0): 1.0,
    }  # fmt: skip


def test_retentions_are_compared_depth_by_depth_on_the_same_stories(analysis):
    found = {one.depth: one for one in analysis.flips[0].retention_differences}
    assert {(one.arm, one.baseline) for one in found.values()} == {("b", "a")}
    assert [found[depth].estimate.mean for depth in DEPTHS] == pytest.approx([0.75, 0.75, 0.5])
    assert all(one.estimate.low < one.estimate.mean < one.estimate.high for one in found.values())
    assert all(one.p_holm < 0.001 for one in found.values())
    assert {one.estimate.n for one in found.values()} == {80}, "40 stories at two lengths"


def imperfect(arm: str):
    """Within the trained length half of the stories right, beyond a part of these: fewer for "a"."""
    limit = {"a": 8, "b": 14}[arm]
    return lambda i, d, length: i % 2 == 0 and (length == "8k" or i < 2 * limit)


def test_the_interval_of_a_difference_of_retentions_is_that_of_resampled_stories(tmp_path):
    for arm in ("a", "b"):
        at_depths(tmp_path, arm, imperfect(arm))
    (flips,) = analyse(load_runs([tmp_path / "runs"])).flips
    found = flips.retention_differences[0].estimate
    assert found.mean == pytest.approx(14 / 20 - 8 / 20)
    within = np.arange(40) % 2 == 0
    rng, drawn = np.random.default_rng(0), []
    for _ in range(4000):
        pick = rng.integers(0, 40, 40)
        rates = [(within & (np.arange(40) < 2 * limit))[pick].sum() / within[pick].sum() for limit in (14, 8)]
        drawn.append(rates[0] - rates[1])
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)


def test_arms_that_hardly_differ_have_a_difference_without_an_interval(tmp_path):
    for arm in ("a", "b"):
        at_depths(tmp_path, arm, lambda i, d, length, arm=arm: i >= 3 or arm == "b" or length == "8k")
    (flips,) = analyse(load_runs([tmp_path / "runs"])).flips
    found = flips.retention_differences[0]
    assert found.estimate.mean == pytest.approx(3 / 40)
    assert (found.estimate.low, found.estimate.high, found.estimate.p, found.p_holm) == (None, None, None, None)


def test_a_story_with_a_failed_depth_counts_as_unscored(tmp_path):
    run = at_depths(tmp_path, "a", lambda i, d, length: True, samples=6, lengths=("8k",))
    lines = []
    source = RunFolder.open(run)
    for p in source.predictions():
        failed = p.sample_id == "00002@0.5"
        lines.append(replace(p, output=None, error="engine: it died", finish_reason="error") if failed else p)
    with RunFolder.start(
        tmp_path / "failed", arm="a", config=source.config, fingerprint=source.fingerprint, provenance={"command": "x"}
    ) as again:
        again.extend(lines)
    (flips,) = analyse(load_runs([tmp_path / "failed"])).flips
    cell = flips.patterns[0].cells[0]
    assert (cell.n, cell.n_unscored) == (5, 1)


def test_runs_at_one_depth_or_none_have_no_flips(tmp_path):
    write_run(tmp_path / "a", arm="a", accuracy=holds_to(8192), subsets=("qa1",), lengths=("8k",), samples=5)
    assert analyse(load_runs([tmp_path])).flips == ()


def test_the_report_writes_the_flips_down(runs, tmp_path):
    build([runs], tmp_path)
    rows = list(csv.DictReader((tmp_path / "depths.csv").open()))
    assert {row["value"] for row in rows} >= {"right at all depths", "0", "0.5", "1", "retention at 0"}
    (kept,) = (row for row in rows if (row["value"], row["baseline"]) == ("retention at 1", "a"))
    assert (kept["arm"], kept["score"], kept["n"]) == ("b", "50.0", "80")
    text = (tmp_path / "report.md").read_text()
    for title in ("the same story at all depths", "official score by depth", "retention by depth"):
        assert title in text


def test_the_depth_heat_map_shows_n_and_fades_thin_cells(tmp_path):
    at_depths(tmp_path, "a", lambda i, d, length: True, samples=9, lengths=("8k", "16k"))
    write_run(
        tmp_path / "runs" / "more", arm="a", accuracy=lambda *_: 2.0, subsets=("qa2",), lengths=("8k",), samples=300
    )
    drawing = next(d for d in all_drawings(analyse(load_runs([tmp_path / "runs"]))) if d.name == "depth-babilong")
    assert "fewer than 10" in drawing.description
    axes = drawing.figure().axes[0]
    alpha = np.asarray(axes.images[0].get_alpha())
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("9") == 3  # 16k: nine stories at each depth
    assert (alpha[[0, 5, 9], 1] < 1).all()
    assert (alpha[5, 0], alpha.max()) == (1.0, 1.0)
