"""Published rows are read in both published layouts, in published order, and refused with their file named."""

import json

import pandas as pd
import pytest

from evalkit.benchmarks.babilong.published import published_samples
from evalkit.benchmarks.cards import load_card
from evalkit.benchmarks.mrcr.published import _parquet_rows
from evalkit.benchmarks.rows import row_number
from evalkit.errors import BadInput

ROWS = [
    {"input": "Noise. Mary went to the garden. Noise.", "question": "Where is Mary? ", "target": "garden"},
    {"input": "Noise. John took the milk.", "question": "Where is the milk? ", "target": "office"},
]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def read(folder, subset="qa1", length="4k"):
    return list(published_samples(load_card("babilong"), str(folder), subset, length))


def test_json_lists_of_the_small_set(tmp_path):
    path = tmp_path / "data" / "qa1" / "4k.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(ROWS))
    samples = read(tmp_path)
    assert [s.question for s in samples] == ["Where is Mary?", "Where is the milk?"]
    assert [row_number(s.sample_id) for s in samples] == ["00000", "00001"]
    assert samples[0].context == ROWS[0]["input"]


def test_parquet_files_of_the_large_set(tmp_path):
    (tmp_path / "4k").mkdir()
    for part in range(2):
        pd.DataFrame(ROWS[part:][:1]).to_parquet(tmp_path / "4k" / f"qa1-0000{part}-of-00002.parquet")
    samples = read(tmp_path)
    assert [(row_number(s.sample_id), s.target) for s in samples] == [("00000", "garden"), ("00001", "office")]


def test_a_row_is_named_by_what_it_says_and_not_by_where_it_lies(tmp_path):
    for place, rows in (("here", ROWS), ("there", ROWS), ("changed", [ROWS[0], {**ROWS[1], "input": "Noise."}])):
        (tmp_path / place / "qa1").mkdir(parents=True)
        (tmp_path / place / "qa1" / "4k.json").write_text(json.dumps(rows))
    here, there, changed = ([s.sample_id for s in read(tmp_path / place)] for place in ("here", "there", "changed"))
    assert here == there
    assert changed[0] == here[0]
    assert changed[1] != here[1]


def _numbered(folder, length, numbers):
    """Rows whose questions say which they are: five to a story, as in the published lists."""
    (folder / length).mkdir(parents=True)
    rows = [{"input": f"{length} {n}.", "question": f"Where is {n}? ", "target": "garden"} for n in numbers]
    pd.DataFrame(rows).to_parquet(folder / length / "qa1-00000-of-00001.parquet")


def test_questions_about_one_story_share_it_at_every_length_also_where_rows_are_left_out(tmp_path):
    """As qa3 at 1k: the rows that are there do not count to five, and only another length says whose they are."""
    fitting = [n for n in range(999) if n % 5 != 4 or n % 3]
    _numbered(tmp_path, "1k", fitting)
    _numbered(tmp_path, "2k", fitting[:-1])  # no whole list either
    _numbered(tmp_path, "4k", range(999))
    for length in ("1k", "4k"):
        of_story = {}
        for sample in read(tmp_path, length=length):
            number = int(sample.question.removeprefix("Where is ").removesuffix("?"))
            of_story.setdefault(sample.story_id, []).append(number)
        assert set(of_story) == {f"qa1-story-{story:04d}" for story in range(200)}
        assert all({number // 5 for number in numbers} == {int(name[-4:])} for name, numbers in of_story.items())


def test_a_row_whose_story_cannot_be_told_is_named_by_what_it_states_at_every_length(tmp_path):
    for length, rows in (("1k", [ROWS[1]]), ("4k", [{**row, "input": f"Other. {row['input']}"} for row in ROWS])):
        path = tmp_path / "qa1" / f"{length}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows))
    (short,), (other, same) = read(tmp_path, length="1k"), read(tmp_path)
    assert short.story_id == same.story_id != other.story_id
    assert short.sample_id != same.sample_id


def test_a_length_that_is_not_there_is_named_with_what_was_expected(tmp_path):
    with pytest.raises(BadInput, match=r"no rows for qa2 at 8k: expected qa2/8k\.json"):
        read(tmp_path, "qa2", "8k")


@pytest.mark.parametrize(
    "content",
    ["null", " \n null", 'null\n{"input": "x"}', "true", "", "\ufeffnull", '[ null, {"input": "x"}]', "[NaN]"],
)
def test_a_file_that_begins_with_no_row_never_reaches_the_reader_that_crashes_on_it(tmp_path, content):
    (tmp_path / "qa1").mkdir()
    (tmp_path / "qa1" / "4k.json").write_text(content)
    with pytest.raises(BadInput, match=r"4k\.json is not a json file of rows .*: it begins with b'"):
        read(tmp_path)


def test_a_line_that_is_no_row_never_reaches_that_reader_either_however_far_behind_the_first(tmp_path):
    (tmp_path / "qa1").mkdir()
    row = json.dumps(
        {"input": "Mary went to the kitchen. " * 430_000, "question": "Where is Mary?", "target": "kitchen"}
    )
    (tmp_path / "qa1" / "4k.json").write_text(f"{row}\n \nnull\n")  # it reads 10 MiB at a time
    with pytest.raises(BadInput, match=r"4k\.json is not a json file of rows .*: a line begins with b'null"):
        read(tmp_path)


def test_text_that_is_none_is_refused_with_the_file(tmp_path):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    rows = {name: pa.array([b"\xff\xfe"]).view(pa.string()) for name in ROWS[0]}
    for place, file in (("babilong/4k", "qa1.parquet"), ("mrcr", "2needle.parquet")):
        (tmp_path / place).mkdir(parents=True)
        write_table(pa.table(rows), tmp_path / place / file)
    with pytest.raises(BadInput, match=r"qa1\.parquet holds text that is not UTF-8"):
        read(tmp_path / "babilong")
    with pytest.raises(BadInput, match=r"2needle\.parquet cannot be read as parquet from row 0 on"):
        list(_parquet_rows(tmp_path / "mrcr" / "2needle.parquet"))


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "data" / "qa1" / "4k.json"
    path.parent.mkdir(parents=True)
    path.write_text('[{"input": "x"')
    with pytest.raises(BadInput, match=r"4k\.json is not a json file of rows .*: line 1, Expecting"):
        read(tmp_path)
    path.write_text("[]")
    with pytest.raises(BadInput, match="it holds no rows"):
        read(tmp_path)


def test_of_several_files_the_broken_one_is_named(tmp_path):
    (tmp_path / "4k").mkdir()
    pd.DataFrame(ROWS).to_parquet(tmp_path / "4k" / "qa1-00000-of-00002.parquet")
    (tmp_path / "4k" / "qa1-00001-of-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match=r"qa1-00001-of-00002\.parquet is not a parquet file"):
        read(tmp_path)


def test_a_row_without_a_column_is_named(tmp_path):
    path = tmp_path / "data" / "qa1" / "4k.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([ROWS[0], {"input": "x", "question": "y"}]))
    with pytest.raises(BadInput, match=r"4k\.json, row 1: no text in column target"):
        read(tmp_path)
