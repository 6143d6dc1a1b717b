"""The committed reference of the tiny study: its numbers are those of its records, and say what is said of them."""

import csv
import tarfile
from pathlib import Path

import pytest

from evalkit.report.build import build

REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "tiny"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of the records, made anew."""
    root = tmp_path_factory.mktemp("reference")
    for archive in sorted(REFERENCE.glob("seed-*.tar.xz")):
        with tarfile.open(archive) as packed:
            packed.extractall(root / "tiny", filter="data")
    return build([root / "tiny"], root / "plots")


@pytest.mark.slow
def test_the_tables_are_recomputed_from_the_records(report):
    made = {path.name: path for path in report.files}
    for name in ("summary.csv", "comparisons.csv"):
        assert made[name].read_text() == (REFERENCE / name).read_text(), name


def test_the_tables_show_three_seeds_of_every_arm_and_every_sample_scored():
    rows = list(csv.DictReader((REFERENCE / "summary.csv").open()))
    official = [row for row in rows if row["scorer"] == "official" and row["length"] != "avg"]
    arms = {row["arm"] for row in official}
    assert len(arms) >= 10
    assert all(len({row["run"] for row in official if row["arm"] == arm}) == 3 for arm in arms)
    assert {row["n"] for row in official} == {"100"}
    assert {row["n_unscored"] for row in official} == {"0"}


def test_in_every_seed_random_positions_hold_better_than_their_twin_as_the_text_says():
    scores = {}
    for row in csv.DictReader((REFERENCE / "summary.csv").open()):
        if (row["scorer"], row["subset"]) == ("official", "qa1"):
            scores.setdefault((row["arm"], row["length"]), []).append(float(row["score"]))
    for arm, twin in (
        ("Randomized YaRN", "trained YaRN"),
        ("Randomized YaRN, paper's range", "trained YaRN, factor 2"),
    ):
        for length in ("1k", "2k"):
            assert min(scores[arm, length]) > max(scores[twin, length])
    assert min(scores["plain", "64"] + scores["plain", "128"]) >= 99, "every base knows its task at the trained length"
