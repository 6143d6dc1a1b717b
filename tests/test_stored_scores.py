"""Stored scores: all that a report counts by, and never taken for more than what they were made from."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from evalkit.errors import RunFolderError
from evalkit.records.folder import RunFolder
from tests.test_store import failed, filled, prediction, scores_of, start


def test_scores_hold_what_a_report_counts_by_sorted_by_key(tmp_path: Path) -> None:
    with start(tmp_path) as folder:
        folder.append(prediction(1))
        folder.append(failed(0, length="128k", error="context_overflow: 9 + 2 > 10"))
        written = folder.score_table(scores_of, "3")
        folder.keep_scores(written)
    table = RunFolder.open(tmp_path).read_scores("3")
    assert table is not None
    assert table.equals(written)
    row = table.to_pylist()[0]
    assert (row["length"], row["scorer"], row["value"], row["error"]) == ("128k", "official", None, "context_overflow")
    assert row["fact_positions"] == [3, 500]
    assert json.loads(row["metadata"]) == {"depth": 0.5}
    assert table.column("scorer").to_pylist() == ["official", "corrected"] * 2
    columns = "task subset length sample_id story_id prompt_tokens output_tokens attempt finish_reason error seconds"
    assert list(row) == f"{columns} scorer value detail fact_positions metadata".split()
    few = RunFolder.open(tmp_path).read_scores("3", columns=["subset", "value"])
    assert few is not None
    assert few.column_names == ["subset", "value"]


def test_seconds_that_somebody_wrote_as_a_large_whole_number_are_held(tmp_path: Path) -> None:
    with start(tmp_path) as folder:
        folder.append(replace(prediction(0), seconds=2**31 + 1))
    folder = RunFolder.open(tmp_path)
    assert folder.score_table(scores_of, "1").column("seconds").to_pylist() == [2.0**31] * 2


def test_scores_are_computed_again_when_anything_they_were_made_from_has_changed(tmp_path: Path) -> None:
    def kept(version: str = "1") -> bool:
        return RunFolder.open(tmp_path).read_scores(version) is not None

    path = filled(tmp_path, 2)
    assert not kept()
    reader = RunFolder.open(tmp_path)
    reader.keep_scores(reader.score_table(scores_of, "1"))
    assert kept()
    assert not kept("2")
    with start(tmp_path) as folder:
        assert kept()
        folder.append(prediction(2))
        assert not kept()
        folder.keep_scores(folder.score_table(scores_of, "1"))
        assert kept()
    content = path.read_bytes()
    path.write_bytes(content.replace(b"0.25", b"0.75", 1))  # as long as before
    assert not kept()
    path.write_bytes(content + b'{"task":')
    assert not kept()
    path.write_bytes(content)
    assert kept()
    scores = bytearray((tmp_path / "scores.parquet").read_bytes())
    scores[40] ^= 1
    (tmp_path / "scores.parquet").write_bytes(scores)
    assert not kept()
    (tmp_path / "scores.parquet").write_bytes(b"")
    assert not kept()


def test_no_prediction_can_vanish_from_the_scores(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    folder = RunFolder.open(tmp_path)
    with pytest.raises(ValueError, match="1 predictions have no score"):
        folder.score_table(lambda one: [] if one.sample_id == "0001" else scores_of(one), "1")
    assert folder.read_scores("1") is None
    assert [path.name for path in tmp_path.glob("scores*")] == []


def test_scores_that_cannot_be_written_say_so_and_leave_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 1)
    folder = RunFolder.open(tmp_path)
    folder.keep_scores(folder.score_table(scores_of, "1"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunFolderError, match=r"scores.parquet cannot be written \(No space left.* are safe: make room"):
        folder.keep_scores(folder.score_table(scores_of, "2"))
    assert folder.read_scores("1") is not None
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_an_empty_folder_has_scores_and_frames_without_rows(tmp_path: Path) -> None:
    filled(tmp_path, 0)
    folder = RunFolder.open(tmp_path)
    folder.keep_scores(folder.score_table(scores_of, "1"))
    table = folder.read_scores("1")
    assert table is not None
    assert table.num_rows == 0
    assert len(folder.frame()) == 0
