"""Runs in the layouts of other tools, read back with what reads them: the tool itself where it is installed."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.records.folder import RunFolder
from evalkit.records.scoring import scored

HALF = "\ud83d"  # of a surrogate pair, as a model may reply it


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory) -> Path:
    """Twelve samples on two subsets and two lengths; four have failed."""
    out = tmp_path_factory.mktemp("results") / "r"
    words = f"run --model {checkpoint} --task babilong --subsets qa1,qa7 --lengths 1k,2k --samples 3 --arm my/arm"
    words += f" --backend scripted --script failing --chat-template --out {out}"
    assert CliRunner().invoke(main, words.split()).exit_code == 1
    return out


def exported(run: Path, to: str, out: Path) -> list[Path]:
    shown = CliRunner().invoke(main, ["export", str(run), "--to", to, str(out)])
    assert shown.exit_code == 0, shown.output
    paths = [Path(line) for line in shown.stdout.splitlines()]
    assert sorted(paths) == sorted(path for path in out.rglob("*") if path.is_file())
    return paths


def means(run: Path, subset: str, length: str) -> dict[str, float]:
    frame = scored(RunFolder.open(run)).table.to_pandas()
    cell = frame[(frame["subset"] == subset) & (frame["length"] == length)]
    return cell.groupby("scorer", observed=True)["value"].mean().to_dict()


def test_a_csv_has_a_row_per_answer_and_scorer_and_no_score_for_a_failure(run, tmp_path):
    (path,) = exported(run, "csv", tmp_path)
    rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    recorded = RunFolder.open(run).recorded()
    assert len(rows) == 2 * len(recorded) == 24
    for row in rows:
        key = next(key for key in recorded if list(key) == [row[n] for n in ("task", "subset", "length", "sample_id")])
        assert row["arm"] == "my/arm"
        assert row["output"] == (recorded[key].output or "")
        assert (row["value"] == "") == (recorded[key].error is not None)
    assert sum(row["value"] == "" for row in rows) == 8


def test_babilongs_layout_is_imported_again_as_the_same_answers(run, tmp_path):
    paths = exported(run, "babilong", tmp_path / "evals")
    names = {path.relative_to(tmp_path / "evals").as_posix() for path in paths}
    assert "my_arm/qa1_1k_instruction_yes_examples_yes_post_prompt_yes_chat_template_yes.csv" in names
    shown = CliRunner().invoke(main, ["import", str(tmp_path / "evals"), "--out", str(tmp_path / "again")])
    assert shown.exit_code == 0, shown.output
    (folder,) = [path.parent for path in (tmp_path / "again").rglob("run.json")]

    def answers(path: Path) -> list[tuple[str, ...]]:
        recorded = RunFolder.open(path).recorded().values()
        return sorted((p.subset, p.length, p.question, p.target, p.output) for p in recorded if p.error is None)

    assert answers(folder) == answers(run)
    assert len(answers(folder)) == 8
    assert means(folder, "qa1", "1k") == means(run, "qa1", "1k")


def test_the_harness_layout_has_means_errors_and_a_line_per_answered_sample(run, tmp_path):
    paths = exported(run, "lm-eval", tmp_path)
    (results,) = [path for path in paths if path.name.startswith("results_")]
    assert results.parent == tmp_path / "my__arm"
    found = json.loads(results.read_text())
    cell = found["results"]["babilong_qa7_2k"]
    expected = means(run, "qa7", "2k")
    assert cell["official,none"] == pytest.approx(expected["official"])
    assert cell["corrected,none"] == pytest.approx(expected["corrected"])
    assert found["n-samples"]["babilong_qa7_2k"] == {"original": 3, "effective": 2}
    (samples,) = [path for path in paths if "_babilong_qa7_2k_" in path.name]
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(lines) == 2
    assert all(line["resps"] == [[line["target"]]] for line in lines)
    assert [line["official"] for line in lines] == [line[line["metrics"][0]] for line in lines]


def test_the_harness_itself_prints_the_table_of_an_export(run, tmp_path):
    utils = pytest.importorskip("lm_eval.utils")
    pytest.importorskip("pytablewriter")
    paths = [str(path) for path in exported(run, "lm-eval", tmp_path)]
    (results,) = utils.get_results_filenames(paths)
    assert len(utils.get_sample_results_filenames(paths)) == 4
    sample = utils.get_latest_filename([p for p in utils.get_sample_results_filenames(paths) if "qa1_1k" in p])
    assert utils.get_file_task_name(Path(sample).name) == "babilong_qa1_1k"
    table = utils.make_table(json.loads(Path(results).read_text()))
    assert "babilong_qa1_1k" in table
    assert "official" in table


def test_inspect_itself_reads_the_log_of_an_export(run, tmp_path):
    log = pytest.importorskip("inspect_ai.log")
    (path,) = exported(run, "inspect", tmp_path)
    (listed,) = log.list_eval_logs(str(tmp_path))
    assert listed.task == "babilong"
    read = log.read_eval_log(str(path))
    assert read.status == "success"
    assert read.eval.model == "evalkit/my/arm"
    assert len(read.samples) == 12
    failed = [sample for sample in read.samples if sample.error]
    assert len(failed) == 4
    assert all(not sample.scores for sample in failed)
    recorded = {f"{k.subset}/{k.length}/{k.sample_id}": p for k, p in RunFolder.open(run).recorded().items()}
    assert all(s.output.completion == recorded[s.id].output for s in read.samples if not s.error)
    official = next(score for score in read.results.scores if score.name == "official")
    values = [s.scores["official"].value for s in read.samples if s.scores]
    assert official.metrics["mean"].value == pytest.approx(sum(values) / len(values))
    assert (official.scored_samples, official.unscored_samples) == (8, 4)


@pytest.mark.parametrize("to", ["lm-eval", "inspect", "babilong", "csv"])
def test_a_reply_that_is_no_sound_text_can_be_exported(tmp_path, to):
    from tests.report_runs import holds_to, write_run

    write_run(tmp_path / "r", arm="a", accuracy=holds_to(8192), lengths=("4k",), samples=2, reply=lambda p: HALF)
    for path in exported(tmp_path / "r", to, tmp_path / "out"):
        path.read_text(encoding="utf-8")


def test_what_a_layout_has_no_place_for_is_refused(tmp_path):
    from tests.report_runs import holds_to, write_run

    common = {"task": "mrcr", "subsets": ("2needle",), "lengths": ("4k",), "samples": 2}
    write_run(tmp_path / "r", arm="a", accuracy=holds_to(8192), **common)
    for to, message in (("babilong", "is of mrcr"), ("xls", "the layouts are lm-eval, inspect, babilong, csv")):
        shown = CliRunner().invoke(main, ["export", str(tmp_path / "r"), "--to", to, str(tmp_path / "out")])
        assert shown.exit_code == 2
        assert message in shown.output
    assert len(exported(tmp_path / "r", "lm-eval", tmp_path / "out")) == 2
