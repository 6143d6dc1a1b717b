"""From run folders to a report: what is read, what is left out, what is compared, and that it can be made again."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from evalkit import benchmarks
from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.records.folder import RunFolder
from evalkit.report.analysis import Analysis, analyse
from evalkit.report.build import SUMMARY_COLUMNS, build, load_runs
from evalkit.report.compare import compare
from evalkit.report.provenance import provenance
from evalkit.report.tables import comparison_table
from evalkit.report.words import compared_sentence, findings
from evalkit.types import Prediction, Score
from tests.report_runs import LENGTHS, Accuracy, holds_to, training, write_run

K = 1024


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms on both tasks; the second holds further out."""
    root = tmp_path_factory.mktemp("results")
    for recipe, hold in (("plain", 8 * K), ("randomized-yarn", 64 * K)):
        for task, subsets in (("babilong", ("qa1", "qa2")), ("mrcr", ("2needle",))):
            write_run(
                root / f"{recipe}-{task}",
                arm=recipe.replace("-", " "),
                accuracy=holds_to(hold),
                task=task,
                subsets=subsets,
                lengths=LENGTHS if task == "babilong" else ("8k", "32k"),
                samples=30,
                training=training(recipe),
            )
    return root


@pytest.fixture(scope="module")
def analysis(results: Path) -> Analysis:
    return analyse(load_runs([results]))


@pytest.fixture(scope="module")
def report(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plots")
    build([results], out)
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_summary_csv_is_long_form_with_the_agreed_columns_first(report: Path, results: Path) -> None:
    rows = rows_of(report / "summary.csv")
    assert list(rows[0]) == list(SUMMARY_COLUMNS)
    assert " ".join(SUMMARY_COLUMNS[:11]) == "run arm task subset length scorer n n_unscored score ci_low ci_high"
    cell = next(
        row
        for row in rows
        if (row["run"], row["subset"], row["length"], row["scorer"]) == ("plain-babilong", "qa1", "64k", "official")
    )
    predictions = RunFolder.open(results / "plain-babilong").predictions()
    scored = [benchmarks.score(p)[0].value for p in predictions if (p.subset, p.length) == ("qa1", "64k")]
    assert float(cell["score"]) == pytest.approx(100 * float(np.mean(scored)), abs=1e-9)
    assert float(cell["ci_low"]) < float(cell["score"]) < float(cell["ci_high"])
    assert (cell["n"], cell["n_unscored"]) == ("30", "0")


def test_the_average_is_the_plain_mean_of_the_subsets(report: Path) -> None:
    rows = [r for r in rows_of(report / "summary.csv") if (r["run"], r["scorer"]) == ("plain-babilong", "official")]
    for length in ("4k", "32k"):
        scores = {row["subset"]: float(row["score"]) for row in rows if row["length"] == length}
        assert scores["avg"] == pytest.approx((scores["qa1"] + scores["qa2"]) / 2)


def test_curves_csv_has_an_arms_score_over_all_its_seeds_as_the_figure_draws_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(
            tmp_path / f"plain-{seed}", arm="plain", accuracy=holds_to(8 * K), subsets=("qa1",), lengths=("4k", "32k"),
            samples=20, training={**training("plain"), "seed": seed},
        )  # fmt: skip
    build([tmp_path], tmp_path / "plots")
    curves = {row["length"]: row for row in rows_of(tmp_path / "plots" / "curves.csv") if row["scorer"] == "official"}
    seeds = [row for row in rows_of(tmp_path / "plots" / "summary.csv") if row["scorer"] == "official"]
    for length, cell in curves.items():
        own = [float(row["score"]) for row in seeds if row["length"] == length]
        assert (len(own), cell["models"]) == (2, "2")
        assert float(cell["score"]) == pytest.approx(sum(own) / 2)
        assert float(cell["ci_low"]) <= float(cell["score"]) <= float(cell["ci_high"])


def test_the_same_runs_give_the_same_bytes(report: Path, results: Path, tmp_path: Path) -> None:
    # In another process, where sets come in another order.
    code = "import sys; from evalkit.report.build import build; build([sys.argv[1]], sys.argv[2])"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code, str(results), str(tmp_path)], check=True, env=environment)
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) > 20
    assert names == {path.name for path in report.iterdir()}
    assert not [name for name in names if (tmp_path / name).read_bytes() != (report / name).read_bytes()]


def test_the_order_in_which_runs_are_named_does_not_matter(results: Path) -> None:
    folders = sorted(results.iterdir())
    forward, backward = load_runs(folders), load_runs(folders[::-1])
    assert forward.runs == backward.runs
    assert forward.frame.equals(backward.frame)
    assert provenance(forward.runs, folders, {}) == provenance(backward.runs, folders[::-1], {})


def test_every_artefact_says_which_runs_it_is_made_of(report: Path) -> None:
    record = json.loads((report / "report.json").read_text())
    identity = record["runs"][0]["fingerprint"][:12]
    for name in ("report.md", "tables.tex", "curve-babilong.svg", "report.html", "curve-babilong.png"):
        assert identity.encode() in (report / name).read_bytes(), name
    assert (
        identity.encode("utf-16-be") in (report / "curve-babilong.pdf").read_bytes()
        or identity.encode() in (report / "curve-babilong.pdf").read_bytes()
    )


def test_a_pdf_holds_one_face_which_takes_time_to_cut_to_size(report: Path) -> None:
    faces = [set(re.findall(rb"/BaseFont /[A-Z]+[+](\S+)", path.read_bytes())) for path in report.glob("*.pdf")]
    assert faces
    assert all(one == {b"DejaVuSans"} for one in faces)


def test_the_primary_endpoint_is_the_mean_paired_difference_beyond_the_trained_length(analysis: Analysis) -> None:
    comparison = next(c for c in analysis.comparisons if (c.task, c.scorer) == ("babilong", "official"))
    assert (comparison.arm, comparison.baseline) == ("randomized yarn", "plain")
    assert comparison.lengths == ("16k", "32k", "64k", "128k")
    each = [comparison.by_length[length].mean for length in comparison.lengths]
    assert comparison.primary is not None
    assert comparison.primary.mean == pytest.approx(np.mean(each))
    assert comparison.primary.low > 0.1
    assert comparison.primary.p < 0.001


def test_an_arm_that_holds_everywhere_has_a_censored_effective_length(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm="a", accuracy=lambda *_: 2.0, training=training("plain"))
    write_run(tmp_path / "b", arm="b", accuracy=lambda *_: 0.0, training=training("yarn"))
    summaries = {s.arm: s for s in analyse(load_runs([tmp_path])).summaries if s.scorer == "official"}
    assert summaries["a"].effective == (128 * K, ">=")
    assert summaries["a"].retention.mean == pytest.approx(1.0)
    assert summaries["a"].area.mean == pytest.approx(1.0)
    assert summaries["b"].effective is None  # 0.85 of nothing is nothing
    assert summaries["b"].effective_ruler == (4 * K, "<")


def test_all_right_and_all_wrong_still_have_intervals(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm="a", accuracy=lambda *_: 2.0, samples=20, lengths=("4k",), subsets=("qa1",))
    write_run(tmp_path / "b", arm="b", accuracy=lambda *_: 2.0, samples=20, lengths=("4k",), subsets=("qa1",))
    found = analyse(load_runs([tmp_path]))
    assert all(0.01 < 1 - cell.interval.low < 0.3 for cell in found.cells)
    difference = found.comparisons[0].by_length["4k"]
    assert difference.mean == 0
    assert difference.low < -0.01
    assert difference.high > 0.01
    assert difference.p == 1


def test_one_sample_in_a_cell_is_reported_with_all_its_doubt(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm="a", accuracy=lambda *_: 2.0, samples=1, lengths=("4k",), subsets=("qa1",))
    interval = analyse(load_runs([tmp_path])).cells[0].interval
    assert interval.mean == 1
    assert interval.low < 0.3


def test_several_seeds_make_one_arm_and_one_seed_is_called_a_checkpoint(tmp_path: Path) -> None:
    for recipe, hold in (("plain", 8 * K), ("yarn", 32 * K)):
        for seed in range(3):
            name = f"{recipe}-{seed}"
            write_run(
                tmp_path / name,
                arm=recipe,
                accuracy=holds_to(hold),
                samples=40,
                subsets=("qa1",),
                training=training(recipe, seed=seed),
            )
    several = analyse(load_runs([tmp_path]))
    assert {cell.num_models for cell in several.cells} == {3}
    assert several.comparisons[0].num_models == (3, 3)
    assert "training seeds (3" in " ".join(findings(several)[0].caveats)
    assert len({cell.run for cell in several.run_cells}) == 6
    one = analyse(load_runs([tmp_path / "plain-0", tmp_path / "yarn-0"]))
    assert "these two checkpoints" in " ".join(findings(one)[0].caveats)


def test_arms_of_one_checkpoint_are_named_beside_arms_of_several_seeds(tmp_path: Path) -> None:
    for seed in range(2):
        for recipe in ("plain", "yarn"):
            name = f"{recipe}-{seed}"
            write_run(tmp_path / name, arm=recipe, accuracy=holds_to(8 * K), training=training(recipe, seed=seed))
    write_run(tmp_path / "zero-shot", arm="zero-shot", accuracy=holds_to(4 * K))
    seeds, alone = findings(analyse(load_runs([tmp_path])))[0].caveats
    assert seeds == "The intervals are over training seeds (2 to an arm) and questions."
    assert alone == "One checkpoint only: zero-shot. What is said of it is about checkpoints, not methods."


def test_one_sample_shows_no_difference_and_does_not_say_what_it_could_have_seen(tmp_path: Path) -> None:
    for arm in ("a", "b"):
        write_run(tmp_path / arm, arm=arm, accuracy=lambda *_: 2.0, samples=1, lengths=("4k",), subsets=("qa1",))
    sentence = findings(analyse(load_runs([tmp_path])))[0].each[0]
    assert sentence.endswith(
        "from too few samples for any true difference to be seen; effective length undecided against undecided."
    )


def arms_of(folder: Path, samples: int, **accuracies: Accuracy) -> Path:
    for arm, accuracy in accuracies.items():
        write_run(folder / arm, arm=arm, accuracy=accuracy, samples=samples, lengths=("4k", "8k"), subsets=("qa1",))
    return folder


@pytest.mark.parametrize(
    ("samples", "accuracy", "verdict", "sentence"),
    [
        (200, lambda *_: 0.9, "better", r"^b is better: \d+\.\d points \[.*\] above a at 4K to 8K; effective"),
        (200, lambda *_: 0.1, "worse", r"^b is worse: \d+\.\d points \[.*\] below a at 4K to 8K; effective"),
        (
            30,
            lambda *_: 0.5,
            "undecided",
            r"^b against a is undecided at 4K to 8K: .* points \[.*\], neither different",
        ),
    ],
)
def test_a_comparison_ends_in_one_word(
    tmp_path: Path, samples: int, accuracy: Accuracy, verdict: str, sentence: str
) -> None:
    found = analyse(load_runs([arms_of(tmp_path, samples, a=lambda *_: 0.5, b=accuracy)]))
    assert found.comparisons[0].verdict == verdict
    assert re.match(sentence, findings(found)[0].each[0])
    table = comparison_table(found, "babilong", "official")
    assert dict(zip(table.columns, table.rows[0].entries, strict=True))["Verdict"].text == verdict


def test_arms_are_equivalent_within_a_margin_and_not_within_a_narrower_one(tmp_path: Path) -> None:
    arms_of(tmp_path, 400, a=lambda *_: 0.98, b=lambda *_: 0.98)
    wide, narrow = (compare(tmp_path / "b", tmp_path / "a", margin=margin) for margin in (3.0, 0.1))
    assert [c.analysis.comparisons[0].verdict for c in (wide, narrow)] == ["equivalent", "undecided"]
    said = [" ".join(c.text.split()) for c in (wide, narrow)]
    assert "b and a are equivalent within 3 points at 4K to 8K" in said[0]
    assert "neither different nor equivalent within 0.1 points" in said[1]


def test_a_verdict_needs_significance_after_the_correction_for_all_pairs(tmp_path: Path) -> None:
    arms = {name: (lambda *_: 0.5) for name in ("a", "c", "d", "e", "f")} | {"b": lambda *_: 0.62}
    found = analyse(load_runs([arms_of(tmp_path, 60, **arms)]))
    for c in (*found.comparisons, *found.pairs):
        assert c.primary is not None
        assert c.primary_p_holm is not None
        assert (c.verdict in ("better", "worse")) == (c.primary_p_holm < 0.05)
    lost = [c for c in (*found.comparisons, *found.pairs) if c.primary.p < 0.05 <= c.primary_p_holm]
    assert "leaves out 0, but not after correction for all comparisons" in compared_sentence(lost[0], {}, 3.0)


@pytest.mark.parametrize(
    ("b", "word", "sentence"),
    [
        (
            lambda _, tokens: 0.9,
            "holds",
            "The order holds over 4K to 8K: b is above a at 4K, 8K (significantly at 4K, 8K).",
        ),
        (
            lambda _, tokens: 0.9 if tokens < 8 * K else 0.1,
            "changes",
            "The order changes over 4K to 8K: b is above a at 4K (significantly at 4K) and below a at 8K "
            "(significantly at 8K).",
        ),
        (
            lambda _, tokens: 0.9 if tokens < 8 * K else 0.495,
            "undecided",
            "Undecided whether the order holds over 4K to 8K: b is above a at 4K (significantly at 4K) and below a at "
            "8K (significantly at none).",
        ),
    ],
)
def test_whether_the_order_of_two_arms_holds_over_lengths_is_one_line(
    tmp_path: Path, b: Accuracy, word: str, sentence: str
) -> None:
    found = analyse(load_runs([arms_of(tmp_path, 200, a=lambda *_: 0.5, b=b)]))
    order = found.comparisons[0].order
    assert order is not None
    assert order.word == word
    assert sentence in findings(found)[0].each
    row = comparison_table(found, "babilong", "official").rows[0]
    assert word in [entry.text for entry in row.entries]


def test_every_pair_of_arms_has_its_verdict_and_its_order(tmp_path: Path) -> None:
    arms_of(tmp_path / "runs", 30, a=lambda *_: 0.5, b=lambda *_: 0.6, c=lambda *_: 0.9)
    build([tmp_path / "runs"], tmp_path / "plots")
    rows = [row for row in rows_of(tmp_path / "plots" / "comparisons.csv") if row["endpoint"] == "primary"]
    official = {(row["arm"], row["baseline"]): row for row in rows if row["scorer"] == "official"}
    assert set(official) == {("b", "a"), ("c", "a"), ("c", "b")}
    assert all(row["verdict"] and row["order"] for row in official.values())


def test_arms_that_share_lengths_only_in_some_subsets_are_said_to_share_no_whole_length(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm="a", accuracy=holds_to(8 * K), training=training("plain"))
    for subset, lengths in (("qa1", LENGTHS), ("qa2", ("8k",))):
        write_run(tmp_path / subset, arm="b", accuracy=holds_to(8 * K), subsets=(subset,), lengths=lengths)
    sentence = findings(analyse(load_runs([tmp_path])))[0].each[0]
    assert (
        sentence == "b and a have no length beyond the trained 8K with scores of both in every subset that they share."
    )


def test_facts_alone_are_no_length_to_hold_to(tmp_path: Path) -> None:
    better = lambda subset, tokens: 0.3 if tokens == 0 else 2.0  # noqa: E731
    write_run(tmp_path / "a", arm="a", accuracy=better, lengths=("0k", "1k", "2k"))
    write_run(tmp_path / "b", arm="b", accuracy=better, lengths=("0k",))
    effective = {s.arm: s.effective for s in analyse(load_runs([tmp_path])).summaries if s.scorer == "official"}
    assert effective == {"a": (2 * K, ">="), "b": None}


def test_what_training_saw_of_the_evaluation_is_said_once_for_all_arms(tmp_path: Path) -> None:
    for recipe in ("plain", "yarn"):
        write_run(tmp_path / recipe, arm=recipe, accuracy=holds_to(8 * K), training=training(recipe))
    control = {"control": "no-context"}
    write_run(tmp_path / "c", arm="plain", accuracy=holds_to(8 * K), training=training("plain"), config=control)
    notes = [note for note in analyse(load_runs([tmp_path])).notes if "Training data" in note]
    assert notes == [
        "Training data of 'plain', 'yarn' against the evaluation: no story of the evaluation is in the training data."
    ]


def test_arms_that_another_engine_or_precision_answered_are_said_to_differ_in_it(tmp_path: Path) -> None:
    engines = {
        "plain": {"engine.name": "hf", "engine.dtype": "float32", "engine.stop_ids": [2], "rope.rule": "none"},
        "yarn": {"engine.name": "vllm", "engine.dtype": "bfloat16", "engine.stop_ids": [2], "rope.rule": "yarn"},
    }
    for arm, parts in engines.items():
        for task, subset in (("babilong", "qa1"), ("mrcr", "2needle")):
            write_run(
                tmp_path / f"{arm}-{task}", arm=arm, accuracy=holds_to(8 * K), task=task, subsets=(subset,),
                samples=10, fingerprint={**parts, "backend": None},
            )  # fmt: skip
    expected = [
        "Besides weights and rope the arms differ in engine.dtype: float32 for plain; bfloat16 for yarn.",
        "Besides weights and rope the arms differ in engine.name: hf for plain; vllm for yarn.",
    ]
    for notes in (
        analyse(load_runs([tmp_path])).notes,
        compare(tmp_path / "yarn-babilong", tmp_path / "plain-babilong").notices,
    ):
        assert [note for note in notes if note.startswith("Besides")] == expected


def test_an_older_folder_names_its_backend_and_script_otherwise_and_is_compared_by_them(tmp_path: Path) -> None:
    older = {"backend": "scripted", "script": "oracle", "dtype": "auto"}
    newer = {"backend": None, "engine.name": "hf", "engine.dtype": "auto", "engine.version": "5.1"}
    for arm, parts in (("a", older), ("b", newer)):
        write_run(tmp_path / arm, arm=arm, accuracy=holds_to(8 * K), samples=10, fingerprint=parts)
    notes = [note for note in analyse(load_runs([tmp_path])).notes if note.startswith("Besides")]
    assert [note.removeprefix("Besides weights and rope the arms differ in ") for note in notes] == [
        "engine.name: scripted for a; hf for b.",
        "engine.script: oracle for a; not recorded for b.",
        "engine.version: not recorded for a; 5.1 for b.",
    ]


def test_two_runs_of_the_same_model_show_the_noise_floor(tmp_path: Path) -> None:
    for name, hold in (("first", 8 * K), ("second", 16 * K)):
        write_run(tmp_path / name, arm="plain", accuracy=holds_to(hold), training=training("plain"))
    notes = analyse(load_runs([tmp_path])).notes
    assert any("asked the same model the same questions" in note for note in notes)


def test_controls_are_arms_of_their_own_and_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm="plain", accuracy=holds_to(8 * K))
    write_run(
        tmp_path / "b",
        arm="plain",
        accuracy=lambda *_: 0.2,
        config={"control": "no-context"},
        fingerprint={"data.control": "no-context"},
    )
    found = analyse(load_runs([tmp_path]))
    assert [arm.name for arm in found.arms] == ["plain", "plain, no context"]
    assert not found.comparisons


# -- bad input -----------------------------------------------------------------------------------------------------


def test_runs_that_cannot_be_used_are_refused_with_what_is_wrong_with_them(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm="a", accuracy=holds_to(8 * K), samples=0)
    with pytest.raises(BadInput, match=r"^No run folder can be used\. a is left out: it has no answers yet\.$"):
        load_runs([tmp_path])


def test_no_runs_are_refused_with_the_place_that_was_searched(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run folder"):
        load_runs([tmp_path])


def test_a_damaged_run_is_left_out_and_named(tmp_path: Path) -> None:
    write_run(tmp_path / "good", arm="good", accuracy=holds_to(8 * K))
    write_run(tmp_path / "bad", arm="bad", accuracy=holds_to(8 * K))
    file = tmp_path / "bad" / "predictions.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[:300] + b"XX" + content[302:])
    loaded = load_runs([tmp_path])
    assert [run.name for run in loaded.runs] == ["good"]
    assert any(note.startswith("bad is left out") and "damaged" in note for note in loaded.left_out)


def test_a_torn_tail_and_an_unfinished_run_are_reported_on_and_said(tmp_path: Path) -> None:
    write_run(tmp_path / "half", arm="half", accuracy=holds_to(8 * K))
    file = tmp_path / "half" / "predictions.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * 0.6)])
    loaded = load_runs([tmp_path])
    assert any("cut off" in note for note in loaded.left_out)
    assert any("samples are recorded so far" in note for note in loaded.left_out)
    assert analyse(loaded).cells


@pytest.mark.parametrize(
    ("config", "note"),
    [
        ({"depths": [0.0, 1.0]}, "half: 80 of 160 samples are recorded so far."),
        ({"scope": {"cells": {"qa1/4k": 50, "qa1/8k": 40}}}, "half: 80 of 90 samples are recorded so far."),
        ({"scope": {"cells": {"qa1/4k": 40, "qa1/8k": 40}, "samples": 90}}, None),  # published rows: fewer than asked
        ({"source": "published"}, None),  # an older folder, which does not say how many rows there are
    ],
)
def test_a_run_is_unfinished_where_it_has_fewer_samples_than_its_cells_count(
    tmp_path: Path, config: dict[str, object], note: str | None
) -> None:
    lengths = ("4k", "8k")
    write_run(tmp_path / "half", arm="half", accuracy=holds_to(8 * K), subsets=("qa1",), lengths=lengths, config=config)
    assert load_runs([tmp_path]).left_out == ((note,) if note else ())


def test_a_run_without_answers_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "good", arm="good", accuracy=holds_to(8 * K))
    write_run(tmp_path / "empty", arm="empty", accuracy=holds_to(8 * K), samples=0)
    assert any("empty is left out: it has no answers" in note for note in load_runs([tmp_path]).left_out)


def test_scores_that_do_not_fit_their_predictions_are_computed_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", arm="a", accuracy=lambda *_: 0.0)
    with_scores = load_runs([folder]).frame
    other = write_run(tmp_path / "b", arm="b", accuracy=lambda *_: 2.0)
    load_runs([other])
    (folder / "scores.parquet").write_bytes((other / "scores.parquet").read_bytes())
    again = load_runs([folder])
    assert again.frame["value"].equals(with_scores["value"])
    assert any("computed again" in note for note in again.left_out)


def test_values_that_are_no_scores_count_as_unscored(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", arm="a", accuracy=lambda *_: 2.0, samples=10, lengths=("4k",), subsets=("qa1",))
    with RunFolder.start(folder, **reopened(folder)) as run:
        odd = dict(zip(sorted(run.recorded()), (float("nan"), 7.0), strict=False))

        def score(prediction: Prediction) -> list[Score]:
            first, *others = benchmarks.score(prediction)
            return [replace(first, value=odd.get(prediction.key, first.value)), *others]

        run.keep_scores(run.score_table(score, benchmarks.scorer_version("babilong")))
    found = analyse(load_runs([folder]))
    official = next(cell for cell in found.cells if cell.scorer == "official")
    assert (official.n, official.n_unscored, official.interval.mean) == (8, 2, 1.0)
    assert any("not a number from 0 to 1" in note for note in found.notes)


def test_failures_are_counted_and_left_out_of_the_mean(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", arm="a", accuracy=lambda *_: 2.0, samples=10, lengths=("4k",), subsets=("qa1",))
    failed = Prediction(
        task="babilong",
        subset="qa1",
        length="4k",
        sample_id="99999",
        story_id="x",
        question="?",
        target="garden",
        prompt_tokens=0,
        prompt_sha256="",
        max_new_tokens=0,
        fact_positions=(),
        output=None,
        output_tokens=0,
        finish_reason="error",
        error="context_overflow: too long",
    )
    with RunFolder.start(folder, **reopened(folder)) as run:
        run.append(failed)
    cell = next(c for c in analyse(load_runs([folder])).cells if c.scorer == "official")
    assert (cell.n, cell.n_unscored, cell.interval.mean) == (10, 1, 1.0)


def test_answers_cut_off_in_their_reasoning_are_counted_apart_from_failures_and_once_for_all_seeds(
    tmp_path: Path,
) -> None:
    cut = {"finish_reason": "unfinished_reasoning", "output": "<think>Mary"}
    failed = {"finish_reason": "error", "output": None, "error": "engine: lost"}
    shape: dict[str, Any] = {"samples": 10, "lengths": ("4k",), "subsets": ("qa1",)}
    folders = [
        write_run(tmp_path / f"a{n}", arm="a", accuracy=lambda *_: 2.0, training=training("plain", seed=n), **shape)
        for n in (0, 1)
    ]
    for folder in folders:
        with RunFolder.start(folder, **reopened(folder)) as run:
            first, second, *_ = run.recorded().values()
            run.extend([replace(first, attempt=2, **cut), replace(second, attempt=2, **failed)])
    found = analyse(load_runs(folders))
    for cell in (*found.cells, *found.run_cells):
        assert (cell.n, cell.n_unscored, cell.n_unfinished) == (8, 2, 1)


def test_runs_on_different_data_are_shown_but_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm="a", accuracy=holds_to(8 * K))
    write_run(tmp_path / "b", arm="b", accuracy=holds_to(32 * K), data_seed=1)
    found = analyse(load_runs([tmp_path]))
    assert {cell.arm for cell in found.cells} == {"a", "b"}
    assert not found.comparisons
    assert any("different data (data.seed is" in note for note in found.notes)


def test_arms_without_common_samples_are_shown_and_the_report_says_why_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm="a", accuracy=holds_to(8 * K), lengths=("4k", "8k"))
    write_run(tmp_path / "b", arm="b", accuracy=holds_to(8 * K), lengths=("64k",))
    report = build([tmp_path], tmp_path / "plots")
    assert any("no samples in common" in note for note in report.notices)
    assert (tmp_path / "plots" / "report.html").exists()


def test_an_unknown_baseline_is_refused_with_the_arms_there_are(results: Path) -> None:
    with pytest.raises(BadInput, match=r"'nobody'.*'plain'"):
        analyse(load_runs([results]), baseline="nobody")


def reopened(folder: Path) -> dict[str, object]:
    run = RunFolder.open(folder)
    return {"arm": run.arm, "config": run.config, "fingerprint": run.fingerprint, "provenance": {}}


# -- compare -------------------------------------------------------------------------------------------------------


def test_compare_ends_with_a_plain_sentence(results: Path) -> None:
    compared = compare(results / "randomized-yarn-babilong", results / "plain-babilong")
    last = " ".join(compared.text.rpartition("\n\n")[2].split())
    assert "randomized yarn is" in last
    assert "above plain at 16K to 128K" in last
    assert "these two checkpoints" in last


def test_compare_refuses_different_data_and_names_the_field(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm="a", accuracy=holds_to(8 * K))
    write_run(tmp_path / "b", arm="b", accuracy=holds_to(8 * K), data_seed=1)
    with pytest.raises(BadInput, match=r"data\.seed is 0 in a and 1 in b"):
        compare(tmp_path / "a", tmp_path / "b")


def test_compare_refuses_a_control_and_says_that_the_other_has_none(tmp_path: Path) -> None:
    for name, control in (("a", None), ("b", "no-context")):
        write_run(
            tmp_path / name,
            arm="plain",
            accuracy=holds_to(8 * K),
            config={"control": control},
            fingerprint={"data.control": control},
        )
    with pytest.raises(BadInput, match=r"data\.control is absent in a and no-context in b"):
        compare(tmp_path / "a", tmp_path / "b")


def test_compare_tells_two_runs_of_the_same_arm_apart_by_their_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "one", arm="same", accuracy=holds_to(8 * K))
    write_run(tmp_path / "two", arm="same", accuracy=holds_to(32 * K), fingerprint={"backend": "vllm"})
    assert [arm.name for arm in compare(tmp_path / "one", tmp_path / "two").analysis.arms] == ["two", "one"]


def test_compare_refuses_a_run_and_itself(results: Path) -> None:
    with pytest.raises(BadInput, match="the same run"):
        compare(results / "plain-mrcr", results)


def test_compare_refuses_runs_that_share_no_sample(results: Path) -> None:
    with pytest.raises(BadInput, match="no sample in common"):
        compare(results / "plain-mrcr", results / "plain-babilong")


def test_the_margin_is_given_in_points_on_the_command_line_and_recorded(results: Path, tmp_path: Path) -> None:
    folders = [str(results / "randomized-yarn-babilong"), str(results / "plain-babilong")]
    refused = CliRunner().invoke(main, ["compare", *folders, "--margin", "0"])
    assert refused.exit_code == 2
    assert "--margin" in refused.output
    assert "is better" in CliRunner().invoke(main, ["compare", *folders, "--margin", "0.5"]).output
    CliRunner().invoke(main, ["report", *folders, "--margin", "0.5", "--out", str(tmp_path)])
    assert "--margin 0.5" in json.loads((tmp_path / "report.json").read_text())["command"]
    assert "within 0.5 points" in (tmp_path / "report.md").read_text()
