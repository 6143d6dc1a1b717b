"""Published BABILong predictions become run folders that score as their publishers' own table says."""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from evalkit.benchmarks.babilong.files import read_babi
from evalkit.benchmarks.babilong.scorers import score_official
from evalkit.errors import BadInput
from evalkit.records import folder as store
from evalkit.records.folder import RunFolder
from evalkit.records.imports import import_folder
from evalkit.types import Prediction

PHI3 = "microsoft/Phi-3-mini-128k-instruct"
DATA = Path(__file__).parents[2] / "shared" / "data"
FULL = "instruction_yes_examples_yes_post_prompt_yes"
ROWS = [("garden", "In the garden.", "Where is Mary? "), ("office", "", "Where is John? ")]
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
LABELS = dict.fromkeys(("qa1", "qa2", "qa3", "qa4"), PLACES)
LABELS["qa5"] = ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk")


def publish(folder: Path, name: str, rows: Iterable[tuple[str, str, str]] = ROWS, index: str | None = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*([] if index is None else [index]), "target", "output", "question"])
        for number, row in enumerate(rows):
            table.writerow([*([] if index is None else [number]), *row])
    return path


def imported(folder: Path, out: Path) -> list[Path]:
    """Import what must all be sound."""
    found = list(import_folder(folder, out))
    assert not [fault for fault in found if isinstance(fault, BadInput)]
    return sorted(run.path for run in found if isinstance(run, RunFolder))


def faults(folder: Path, out: Path) -> list[str]:
    return [str(fault) for fault in import_folder(folder, out) if isinstance(fault, BadInput)]


def predictions(path: Path) -> list[Prediction]:
    return list(RunFolder.open(path).predictions())


def test_an_import_that_was_killed_at_its_very_end_is_closed_by_the_next(tmp_path: Path) -> None:
    publish(tmp_path / "evals" / "model-7b", f"qa1_16k_{FULL}")
    [run] = imported(tmp_path / "evals", tmp_path / "out")
    whole = sorted(path.name for path in run.iterdir())
    (run / "writer.txt").write_text("process 4711 on node3")
    [again] = imported(tmp_path / "evals", tmp_path / "out")
    assert sorted(path.name for path in again.iterdir()) == whole
    assert len(predictions(again)) == len(ROWS)


def test_one_model_under_one_prompt_setting_becomes_one_run_folder(tmp_path: Path) -> None:
    bare = "instruction_no_examples_no_post_prompt_no_chat_template_yes_system_prompt_no"
    model = tmp_path / "evals" / "org" / "model-7b"
    for setting in (FULL, bare, "with-rag"):
        publish(model, f"qa1_16k_{setting}")
        publish(model, f"qa2_10M_{setting}")
    publish(model, "qa3_0k")
    publish(tmp_path / "evals" / "org" / "model-1b", f"qa1_0k_{FULL}")
    (model / "summary.csv").write_text("task,0k\nqa1,97\n")

    paths = imported(tmp_path / "evals", tmp_path / "results")
    assert [path.parent for path in paths] == [tmp_path / "results"] * 5
    runs = {RunFolder.open(path).arm: RunFolder.open(path) for path in paths}
    assert set(runs) == {
        "org/model-7b (instruction+examples+post_prompt)",
        "org/model-7b (chat_template, no instruction+examples+post_prompt+system_prompt)",
        "org/model-7b (with-rag)",
        "org/model-7b",
        "org/model-1b (instruction+examples+post_prompt)",
    }
    run = runs["org/model-7b (instruction+examples+post_prompt)"]
    assert run.path.name == f"org--model-7b--{FULL}"
    assert run.published
    assert run.config["setting"] == FULL
    assert run.config["scope"] == {"lengths": ["16k", "10M"], "subsets": ["qa1", "qa2"], "samples": 2}
    assert run.provenance[0]["source"] == str(model.resolve())
    assert [(p.subset, p.length, p.target, p.output) for p in run.predictions()] == [
        ("qa1", "16k", "garden", "In the garden."),
        ("qa1", "16k", "office", ""),
        ("qa2", "10M", "garden", "In the garden."),
        ("qa2", "10M", "office", ""),
    ]
    assert {p.task for p in run.predictions()} == {"babilong"}
    assert all(p.metadata == {"published": True} and p.prompt_tokens == 0 for p in run.predictions())


@pytest.mark.parametrize("index", [None, "", "Unnamed: 0"])
def test_replies_are_kept_to_the_letter_whatever_the_table_looks_like(tmp_path: Path, index: str | None) -> None:
    outputs = ["NA", "None", "nan", "", " ", '"quoted", and\n\nnew lines\r\n', "a\u2028b\x0bc\x85d", "1", "é" * 200_000]
    publish(tmp_path / "org" / "m", "qa7_1k_x", [("none", output, "How many?") for output in outputs], index)
    (path,) = imported(tmp_path / "org" / "m", tmp_path / "out")
    assert [p.output for p in predictions(path)] == outputs


def test_columns_may_stand_in_any_order_behind_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    content = "\ufeffquestion,seconds,output,target\r\nWhere is Mary?,3,kitchen,garden\r\n\r\n"
    (tmp_path / "m" / "qa1_1k.csv").write_bytes(content.encode())
    (path,) = imported(tmp_path, tmp_path / "out")
    (only,) = predictions(path)
    assert (only.question, only.output, only.target) == ("Where is Mary?", "kitchen", "garden")


def test_a_file_with_only_a_header_is_named(tmp_path: Path) -> None:
    publish(tmp_path / "m", "qa1_1k_x", [])
    (fault,) = faults(tmp_path, tmp_path / "out")
    assert fault.endswith("qa1_1k_x.csv has a header and no rows.")


def test_what_the_publisher_says_of_prompt_and_decoding_is_kept_and_may_be_missing(tmp_path: Path) -> None:
    recipe = {"prompt": {"instruction": "…"}, "generate_kwargs": {"max_new_tokens": 20, "top_p": float("nan")}}
    publish(tmp_path / "m", "qa1_1k_x").with_suffix(".json").write_text(json.dumps(recipe), encoding="utf-8")
    publish(tmp_path / "m", "qa1_2k_x").with_suffix(".json").write_text('{"generate_kwargs": {"max_output_tokens": 7}}')
    publish(tmp_path / "m", "qa1_4k_x").with_suffix(".json").write_text('{"generate_kwargs": null}')
    publish(tmp_path / "m", "qa1_8k_x")
    (path,) = imported(tmp_path, tmp_path / "out")
    assert [p.max_new_tokens for p in predictions(path)] == [20, 20, 7, 7, 0, 0, 0, 0]
    assert RunFolder.open(path).config["recipes"]["qa1_1k_x"]["prompt"] == {"instruction": "…"}


def test_rows_pair_between_models_only_where_they_ask_the_same_question_of_the_same_set(tmp_path: Path) -> None:
    def questions(first: int, count: int) -> list[tuple[str, str, str]]:
        return [
            (PLACES[n % 6], "x", f"Where is {('Mary', 'John', 'Daniel', 'Sandra')[n % 4]}? ")
            for n in range(first, first + count)
        ]

    published = {"large": questions(0, 1000), "part": questions(0, 30), "small": questions(5, 100)}
    published["other"] = [*published["large"][:500], *published["large"][501:]]
    for model, rows in published.items():
        publish(tmp_path / "in" / model, "qa1_1k_x", rows)
    paths = imported(tmp_path / "in", tmp_path / "out")
    ids = {path.name.split("--")[1]: [p.sample_id for p in predictions(path)] for path in paths}
    assert all(len(set(names)) == len(names) and names == sorted(names) for names in ids.values())
    assert ids["part"] == ids["large"][:30]
    assert not set(ids["small"]) & set(ids["large"])
    assert ids["other"][:500] == ids["large"][:500]
    assert not set(ids["other"][500:]) & set(ids["large"])


def test_importing_again_continues_adds_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = tmp_path / "org" / "m", tmp_path / "out"
    publish(model, "qa1_1k_x")
    publish(model, "qa1_2k_x")
    extend = RunFolder.extend

    def interrupted(self: RunFolder, new: list[Prediction]) -> None:
        extend(self, new[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(store.RunFolder, "extend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imported(model, out)
    monkeypatch.undo()
    (path,) = imported(model, out)
    assert imported(tmp_path, tmp_path / "afresh")[0].name == path.name
    assert predictions(path) == predictions(tmp_path / "afresh" / path.name)

    files = {file: file.read_bytes() for file in path.iterdir()}
    assert imported(tmp_path / "org", out) == [path]
    assert {file: file.read_bytes() for file in path.iterdir()} == files

    publish(model, "qa1_4k_x")
    (model / "qa1_1k_x.csv").unlink()
    assert imported(model, out) == [path]
    assert [p.length for p in predictions(path)] == ["1k", "1k", "2k", "2k", "4k", "4k"]
    assert RunFolder.open(path).config["scope"] == {"lengths": ["1k", "2k", "4k"], "subsets": ["qa1"], "samples": 2}

    publish(model, "qa1_1k_x", reversed(ROWS))
    (fault,) = faults(model, out)
    assert "qa1_1k_x.csv has other content than when it was imported" in fault


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"line 1: no column 'target' among none"),
        (b"target,question\na,b\n", r"line 1: no column 'output' among 'target', 'question'"),
        (b'target,output,question\na,"two\nlines",c\na,b\n', r"line 4: 2 fields where the header names 3"),
        (b"target,output,question\na,b,c,d\n", r"line 2: 4 fields where the header names 3"),
        (b'target,output,question\na,b,c\na,"cut of', r"line 3: unexpected end of data"),
        (b"target,output,question\na,b,c\na,\xff,c\n", r"line 3: byte 0xff is not UTF-8 text"),
    ],
)
def test_a_malformed_table_is_named_with_its_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    publish(tmp_path / "m", "qa2_1k_x")
    publish(tmp_path / "m2", "qa2_1k_x")
    (tmp_path / "m" / "qa1_1k_x.csv").write_bytes(content)
    fault, *runs = import_folder(tmp_path, tmp_path / "out")
    assert isinstance(fault, BadInput)
    assert re.search(rf"qa1_1k_x\.csv, {complaint}", str(fault))
    kept = [{p.subset for p in run.recorded().values()} for run in runs if isinstance(run, RunFolder)]
    assert kept == [{"qa2"}, {"qa2"}], "what is sound is imported, of this model and of others"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [('{\n"prompt": ', " is not JSON: line 2, Expecting value"), ("[]", ", line 1: a JSON object")],
)
def test_a_malformed_recipe_is_named_with_its_line(tmp_path: Path, content: str, complaint: str) -> None:
    publish(tmp_path / "m", "qa1_1k_x").with_suffix(".json").write_text(content)
    (fault,) = faults(tmp_path, tmp_path / "out")
    assert re.search(rf"qa1_1k_x\.json{complaint}", fault)


@pytest.mark.parametrize("name", ["qa21_1k_x", "qa1_x", "qa1_1.0001k_x"])
def test_a_name_that_is_almost_right_is_named_rather_than_left_out_in_silence(tmp_path: Path, name: str) -> None:
    publish(tmp_path / "m", "qa1_1k_x")
    publish(tmp_path / "m", name)
    (fault,) = faults(tmp_path, tmp_path / "out")
    assert f"{name}.csv" in fault


def test_a_folder_without_predictions_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadInput, match="No published answers in"):
            imported(folder, tmp_path / "out")


needs_data = pytest.mark.skipif(
    not (DATA / "babilong").exists(), reason="needs the published predictions in ../shared/data, which are not shipped"
)


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = imported(DATA / "babilong" / "predictions" / PHI3, tmp_path_factory.mktemp("results"))
    assert [path.name.split("--")[2] for path in paths] == [FULL.replace("yes", "no"), FULL]
    return paths[1]


@needs_data
def test_real_predictions_score_exactly_as_in_the_table_that_their_authors_published(phi3: Path) -> None:
    assert RunFolder.open(phi3).arm == f"{PHI3} (instruction+examples+post_prompt)"
    correct: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for prediction in predictions(phi3):
        value = score_official(prediction, LABELS[prediction.subset]).value
        assert value is not None
        correct[prediction.subset, prediction.length].append(value)
    assert {len(values) for values in correct.values()} == {100, 862, 997, 998, 999, 1000}
    with (DATA / "babilong" / "golden" / "all_results.csv").open() as file:
        golden = [row for row in csv.DictReader(file) if row["model_name"] == PHI3 and row["task"] in LABELS]
    cells = {(row["task"], length): float(row[length]) for row in golden for length in ("0k", "1k", "2k", "4k", "8k")}
    assert len(cells) == 25
    for cell, expected in cells.items():
        assert 100 * sum(correct[cell]) / len(correct[cell]) == pytest.approx(expected, abs=1e-9)


@needs_data
def test_rows_of_the_large_set_are_given_their_stories(phi3: Path) -> None:
    answers: defaultdict[tuple[str, str], list[Prediction]] = defaultdict(list)
    for prediction in predictions(phi3):
        answers[prediction.subset, prediction.length].append(prediction)
    for task in LABELS:
        (file,) = (DATA / "babi").glob(f"{task}_*_test.txt")
        story, asked = -1, []
        for line in file.read_text().splitlines():
            story += line.startswith("1 ")
            if "\t" in line:
                question, answer, _ = line.split(" ", 1)[1].split("\t")
                asked.append((question.strip(), answer, f"{task}-story-{story:04d}"))
        cell = answers[task, "4k"]
        assert [(p.question.strip(), p.target, p.story_id) for p in cell] == asked[: len(cell)]


@needs_data
@pytest.mark.parametrize(
    ("task", "length", "most_facts", "count"),
    [("qa2", "1k", 86, 999), ("qa3", "1k", 86, 862), ("qa3", "2k", 211, 998), ("qa5", "1k", 86, 997)],
)
def test_rows_of_a_filtered_list_are_given_their_stories_by_their_questions(
    phi3: Path, task: str, length: str, most_facts: int, count: int
) -> None:
    rows = [p for p in predictions(phi3) if (p.subset, p.length) == (task, length)]
    # bAbI's own file says which questions are left where longer stories do not fit.
    kept = [s for s in read_babi(DATA / "babi", task) if len(s.facts) <= most_facts][:count]
    assert [(p.question.strip(), p.target) for p in rows] == [(s.question.strip(), s.target) for s in kept]
    told = [(p, s) for p, s in zip(rows, kept, strict=True) if p.story_id != p.sample_id]
    assert len(told) == count
    assert all(int(p.story_id.rpartition("-")[2]) == int(s.story_id.rpartition("-")[2]) for p, s in told)


def shards(folder: Path, length: str, number: int, rows: list[tuple[str, str, str]]) -> None:
    for shard in range(number):
        part = f"_shard{shard}of{number}" if number > 1 else ""
        publish(folder / f"step500_{length}", f"qa1_{length}_{FULL}{part}", rows[shard::number])


def test_shards_and_a_folder_per_length_are_put_together_and_said(tmp_path: Path) -> None:
    rows = [(PLACES[n % 6], f"{n}", "Where is Mary? ") for n in range(40)]
    for length, number in (("4k", 1), ("8k", 2), ("16k", 4)):
        shards(tmp_path / "results", length, number, rows)
    (run,) = import_folder(tmp_path / "results", tmp_path / "out")
    assert isinstance(run, RunFolder)
    assert run.arm == "step500 (instruction+examples+post_prompt)"
    answers = defaultdict(list)
    for prediction in run.predictions():
        answers[prediction.length].append(prediction.output)
    assert answers == {length: [f"{n}" for n in range(40)] for length in ("4k", "8k", "16k")}
    assert re.search("folders step500_16k, step500_4k, step500_8k are one model's", run.notices[0])
    assert "6 files with parts of the rows" in run.notices[1]


def test_rows_that_would_count_twice_and_shards_that_are_missing_are_refused(tmp_path: Path) -> None:
    rows = [(PLACES[n % 6], "x", "Where is Mary? ") for n in range(8)]
    shards(tmp_path, "8k", 2, rows)
    publish(tmp_path / "step500_8k", f"qa1_8k_{FULL}", rows)
    shards(tmp_path, "4k", 2, rows)
    (tmp_path / "step500_4k" / f"qa1_4k_{FULL}_shard0of2.csv").unlink()
    shards(tmp_path, "16k", 1, rows)
    missing, twice = faults(tmp_path, tmp_path / "out")
    assert re.search(r"of the 2 files .* number 0 is missing", missing)
    assert re.search("both hold qa1 at 8k of the same model and setting", twice)


def test_a_model_of_one_length_keeps_its_name(tmp_path: Path) -> None:
    publish(tmp_path / "org" / "yarn-7b-128k", "qa1_128k_x")
    (path,) = imported(tmp_path, tmp_path / "out")
    assert RunFolder.open(path).config["model"] == "org/yarn-7b-128k"


@pytest.mark.parametrize("collection", ["results", "predictions", "babilong_evals", "my-runs"])
def test_a_folder_that_holds_models_is_no_organisation(tmp_path: Path, collection: str) -> None:
    publish(tmp_path / collection / "model-7b", "qa1_1k_x")
    publish(tmp_path / collection / "org" / "model-1b", "qa1_1k_x")
    paths = imported(tmp_path / collection, tmp_path / "out")
    assert {RunFolder.open(path).config["model"] for path in paths} == {"model-7b", "org/model-1b"}


def test_an_arm_named_dot_dot_has_a_folder_below_the_one_that_was_given(tmp_path: Path) -> None:
    publish(tmp_path / "m", "qa1_1k")
    (found,) = import_folder(tmp_path / "m", tmp_path / "out", arm="..")
    assert isinstance(found, RunFolder)
    assert (found.arm, found.path) == ("..", tmp_path / "out" / "__")


def test_an_arm_can_be_named_where_there_is_one_model(tmp_path: Path) -> None:
    publish(tmp_path / "results" / "one", "qa1_1k_x")
    (run,) = import_folder(tmp_path, tmp_path / "out", arm="my model")
    assert isinstance(run, RunFolder)
    assert (run.arm, run.path.name) == ("my model (x)", "my_model--x")
    publish(tmp_path / "results" / "two", "qa1_1k_x")
    with pytest.raises(BadInput, match="--arm 'my model' would name 2 models"):
        list(import_folder(tmp_path, tmp_path / "other", arm="my model"))
