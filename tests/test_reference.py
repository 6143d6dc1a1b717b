"""The committed references of studies: their numbers are those of their records, and say what is said of them."""

import csv
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from evalkit.benchmarks import open_benchmark
from evalkit.models.encoder import Encoder
from evalkit.train.tiny import BASES, task_options, write_noise, write_untrained

REFERENCES = Path(__file__).parents[1] / "results" / "reference"
REFERENCE = REFERENCES / "tiny"
TABLES = ("summary.csv", "curves.csv", "comparisons.csv", "arms.csv")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "kernels"),  # OpenBLAS sums in another order in each
    [("tiny", "Nehalem"), ("tiny", "Haswell"), ("tiny", None), ("smollm2-cpu", "Nehalem"), ("smollm2-cpu", None)],
)
def test_the_tables_are_recomputed_from_the_records_whatever_the_processor(study, kernels, tmp_path):
    for archive in sorted((REFERENCES / study).glob("seed-*.tar.xz")):
        with tarfile.open(archive) as packed:
            packed.extractall(tmp_path / study, filter="data")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    environment |= {"OPENBLAS_CORETYPE": kernels} if kernels else {}
    command = [sys.executable, "-m", "evalkit", "report", str(tmp_path / study), "--out", str(tmp_path / "plots")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for name in TABLES:
        assert (tmp_path / "plots" / name).read_text() == (REFERENCES / study / name).read_text(), name


def test_the_prompts_of_the_records_are_built_anew_token_for_token(tmp_path):
    with tarfile.open(REFERENCE / "seed-0.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    write_untrained(tmp_path / "base", BASES["tiny"], seed=0)
    write_noise(tmp_path / "noise.txt", seed=1)
    encoder = Encoder.open(tmp_path / "base")
    benchmark = open_benchmark("babilong", task_options(tmp_path / "noise.txt"), seed=20)
    samples = {sample.sample_id: sample for sample in benchmark.samples("qa1", "64", 100)}
    records = map(json.loads, (tmp_path / "seed-0" / "runs" / "plain" / "predictions.jsonl").open())
    hashes = {(r["sample_id"], r["length"]): r["prompt_sha256"] for r in records}
    assert len(hashes) == 700
    for (sample_id, length), sha256 in hashes.items():
        assert benchmark.prompt(samples[sample_id], length, encoder, 10**6).sha256 == sha256


def test_the_tables_show_ten_seeds_of_every_arm_and_every_sample_scored():
    rows = list(csv.DictReader((REFERENCE / "summary.csv").open()))
    official = [row for row in rows if row["scorer"] == "official" and row["length"] != "avg"]
    arms = {row["arm"] for row in official}
    assert len(arms) == 15
    assert all(len({row["run"] for row in official if row["arm"] == arm}) == 10 for arm in arms)
    assert {row["n"] for row in official} == {"100"}
    assert {row["n_unscored"] for row in official} == {"0"}


def test_in_every_seed_random_positions_hold_better_than_their_twin_as_the_text_says():
    scores = {}
    for row in csv.DictReader((REFERENCE / "summary.csv").open()):
        if (row["scorer"], row["subset"]) == ("official", "qa1"):
            scores.setdefault((row["arm"], row["length"]), {})[row["run"].partition("/")[0]] = float(row["score"])
    for arm, twin, seeds in (
        ("Randomized YaRN", "trained YaRN", (10, 10, 10)),
        ("Randomized YaRN, paper's range", "trained YaRN, factor 2", (10, 9, 9)),
        ("YaRN + PoSE", "trained YaRN", (10, 10, 10)),
    ):
        for length, number in zip(("1k", "2k", "4k"), seeds, strict=True):
            one, other = scores[arm, length], scores[twin, length]
            assert sum(one[seed] > other[seed] for seed in one) == number
    in_distribution = [*scores["plain", "64"].values(), *scores["plain", "128"].values()]
    assert min(in_distribution) >= 99, "every base knows its task at the trained length"
