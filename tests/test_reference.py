"""The committed reference of the tiny study: its numbers are those of its records, and say what is said of them."""

import csv
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "tiny"
TABLES = ("summary.csv", "curves.csv", "comparisons.csv", "arms.csv")


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["Nehalem", "Haswell", None])  # OpenBLAS sums in another order in each
def test_the_tables_are_recomputed_from_the_records_whatever_the_processor(kernels, tmp_path):
    for archive in sorted(REFERENCE.glob("seed-*.tar.xz")):
        with tarfile.open(archive) as packed:
            packed.extractall(tmp_path / "tiny", filter="data")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    environment |= {"OPENBLAS_CORETYPE": kernels} if kernels else {}
    command = [sys.executable, "-m", "evalkit", "report", str(tmp_path / "tiny"), "--out", str(tmp_path / "plots")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for name in TABLES:
        assert (tmp_path / "plots" / name).read_text() == (REFERENCE / name).read_text(), name


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
