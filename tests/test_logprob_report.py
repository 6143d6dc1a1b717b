"""What recorded log-probabilities of right answers say about arms: means, margins, what the context adds."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from evalkit.records.folder import RunFolder
from evalkit.report.analysis import analyse
from evalkit.report.build import build
from evalkit.report.load import load_runs
from evalkit.report.logprobs import log_probabilities
from evalkit.report.resampling import single
from evalkit.report.stats import estimate
from evalkit.types import AnswerLogprob
from tests.report_runs import holds_to, training, write_run

LENGTHS = ("8k", "32k")


def value(arm: str, p, *, alone: bool = False) -> float:
    """A right answer's log-probability: stories are more or less hard for all arms, and b is better at 32k."""
    hardness = -3 - 2 * np.random.default_rng([7, int(p.sample_id)]).random()
    noise = 0.2 * np.random.default_rng([sum(arm.encode()), int(p.sample_id), len(p.length)]).random()
    return hardness + noise + (1.0 if arm == "b" and p.length == "32k" else 0.0) - (2.0 if alone else 0.0)


def write(root: Path, arm: str, *, control: str | None = None, subsets=("qa1",), samples: int = 30, seed: int = 0):
    source = RunFolder.open(
        write_run(
            root / "source" / f"{arm}-{control}-{seed}", arm=arm, accuracy=holds_to(8192), subsets=subsets,
            lengths=LENGTHS, samples=samples, training=training("plain" if arm == "a" else "yarn", seed=seed),
            config={"answer_logprob": True, "control": control}, fingerprint={"data.control": control},
        )
    )  # fmt: skip
    made = []
    for p in source.predictions():
        target = value(arm, p, alone=control is not None)
        found = AnswerLogprob(target=target, tokens=1, wrong={"attic": target - 0.5, "roof": target - 4})
        made.append(replace(p, answer_logprob=found))
    folder = root / "runs" / f"{arm}-{control}-{seed}"
    with RunFolder.start(
        folder, arm=arm, config=source.config, fingerprint=source.fingerprint, provenance={"command": "x"}
    ) as run:
        run.extend(made)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("logprobs")
    for arm in ("a", "b"):
        write(root, arm)
    write(root, "b", control="no-context")
    return root / "runs"


@pytest.fixture(scope="module")
def cells(runs):
    found = log_probabilities(analyse(load_runs([runs])))
    return {(c.measure, c.arm, c.baseline, c.length): c for c in found}


def recorded(runs: Path, name: str, length: str) -> np.ndarray:
    rows = [p for p in RunFolder.open(runs / name).predictions() if p.length == length]
    return np.array([p.answer_logprob.target for p in sorted(rows, key=lambda p: p.sample_id)])


def test_the_mean_of_an_arm_has_a_t_interval_over_its_stories(cells, runs):
    own = recorded(runs, "a-None-0", "32k")
    found = cells["log-probability", "a", "", "32k"].estimate
    low, high = scipy_stats.t.interval(0.95, len(own) - 1, own.mean(), scipy_stats.sem(own))
    assert (found.mean, found.low, found.high) == pytest.approx((own.mean(), low, high))
    assert (found.n, found.num_clusters) == (30, 30)


def test_arms_are_compared_on_the_same_answers_and_thirty_suffice(cells, runs):
    a, b = (recorded(runs, name, "32k") for name in ("a-None-0", "b-None-0"))
    found = cells["log-probability", "b", "a", "32k"]
    tested = scipy_stats.ttest_rel(b, a)
    ends = tested.confidence_interval()
    assert found.estimate[:4] == pytest.approx(((b - a).mean(), ends.low, ends.high, tested.pvalue))
    assert found.p_holm < 0.001
    unpaired = scipy_stats.ttest_ind(b, a).confidence_interval()
    assert found.estimate.high - found.estimate.low < (unpaired.high - unpaired.low) / 3, "pairing is what helps"
    assert cells["log-probability", "b", "a", "8k"].p_holm > 0.05


def test_the_margin_is_over_the_best_wrong_label(cells):
    assert cells["margin", "a", "", "8k"].estimate.mean == pytest.approx(0.5)


def test_the_same_model_without_context_is_subtracted_question_by_question(cells):
    found = {key for key in cells if key[0] == "context"}
    assert found == {("context", "b", "", length) for length in LENGTHS}, "a was not asked without"
    assert cells["context", "b", "", "32k"].estimate.mean == pytest.approx(2.0)
    assert ("log-probability", "b, no context", "", "8k") in cells
    assert ("log-probability", "b, no context", "a", "8k") not in cells, "a control is compared with nothing"


def test_questions_about_one_story_count_as_little_as_they_tell(tmp_path):
    values = np.random.default_rng(3).normal(size=20)
    each, thrice = single(values), single(np.repeat(values, 3), np.repeat(np.arange(20), 3))
    alone, together = (estimate(obs, np.ones(1)) for obs in (each, thrice))
    assert together[:4] == pytest.approx(alone[:4])
    assert (together.n, together.num_clusters) == (60, 20)


def test_what_one_story_or_equal_values_say_has_no_interval_and_no_difference_is_none():
    assert estimate(single([-2.0]), np.ones(1))[:4] == (-2.0, None, None, None)
    assert estimate(single([-2.0, -2.0, -2.0]), np.ones(1))[:4] == (-2.0, None, None, None)
    assert estimate(single([0.0, 0.0, 0.0]), np.ones(1))[:4] == (0.0, 0.0, 0.0, 1.0)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth_for_skewed_values_of_thirty():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = estimate(single(-rng.gamma(2.0, 1.0, size=30)), np.ones(1))
        held += found.low <= -2.0 <= found.high
    assert 0.91 <= held / 400 <= 0.98


def test_seeds_of_an_arm_are_averaged_and_several_subsets_too(tmp_path):
    for seed in (0, 1):
        for arm in ("a", "b"):
            write(tmp_path, arm, seed=seed, subsets=("qa1", "qa2"))
    found = log_probabilities(analyse(load_runs([tmp_path / "runs"])))
    cell = next(
        c for c in found if (c.measure, c.baseline, c.subset, c.length) == ("log-probability", "a", "avg", "32k")
    )
    assert cell.num_models == 2
    assert (cell.estimate.n, cell.estimate.num_clusters) == (60, 60)
    assert cell.estimate.p < 0.001


def test_the_report_writes_them_down_and_nothing_where_no_run_has_any(runs, tmp_path):
    built = build([runs], tmp_path / "with")
    assert tmp_path / "with" / "logprobs.csv" in built.files
    rows = list(csv.DictReader((tmp_path / "with" / "logprobs.csv").open()))
    assert {row["measure"] for row in rows} == {"log-probability", "margin", "context"}
    means = [row for row in rows if not row["baseline"] and row["measure"] == "log-probability"]
    assert means
    assert not any(row["p"] for row in means)
    for name in ("report.md", "report.html"):
        text = (tmp_path / "with" / name).read_text()
        assert "log-probability of the right answer" in text
        assert "b − a" in text

    write_run(tmp_path / "r" / "a", arm="a", accuracy=holds_to(8192), subsets=("qa1",), lengths=("8k",), samples=5)
    build([tmp_path / "r"], tmp_path / "none")
    assert not (tmp_path / "none" / "logprobs.csv").exists()
    assert "log-probability" not in (tmp_path / "none" / "report.md").read_text()
