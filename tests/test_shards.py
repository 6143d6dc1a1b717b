"""A run in parts: disjoint, together the whole, nested, resumed by the same command, and one run again in a report."""

import base64
import gzip
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.report.analysis import analyse
from evalkit.report.arms import make_arms
from evalkit.report.load import load_runs
from evalkit.report.mistakes import mistakes
from evalkit.report.samples import collect_samples
from evalkit.runs.shards import parse_shard, part_of
from evalkit.types import Sample


def ask(checkpoint: Path, out: Path | None, *more: object):
    words = ["run", "--model", checkpoint, "--task", "babilong", "--backend", "scripted", "--lengths", "1k,2k"]
    words += ["--subsets", "qa1,qa3", *(["--out", out] if out else []), *more]
    return CliRunner().invoke(main, [str(word) for word in words])


def done(checkpoint: Path, out: Path | None, *more: object) -> Path | None:
    result = ask(checkpoint, out, *more)
    assert result.exit_code == 0, result.output
    return out


def answers(folder: Path) -> list[tuple]:
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return [(a["subset"], a["length"], a["sample_id"], a["prompt_sha256"]) for a in map(json.loads, lines)]


@pytest.fixture(scope="module")
def shards(checkpoint, tmp_path_factory) -> Path:
    """Three shards of 7 samples a cell, and the whole run beside them."""
    root = tmp_path_factory.mktemp("shards")
    done(checkpoint, root / "whole" / "run", "--samples", 7)
    for number in (1, 2, 3):
        done(checkpoint, root / "parts" / f"s{number}", "--samples", 7, "--shard", f"{number}/3")
    return root


def test_shards_are_disjoint_and_together_ask_the_same_prompts_as_the_whole_run(shards):
    parts = [answers(shards / "parts" / f"s{n}") for n in (1, 2, 3)]
    whole = answers(shards / "whole" / "run")
    assert all(parts)
    assert sum(map(len, parts)) == len(whole)
    assert sorted(line for part in parts for line in part) == sorted(whole)


def test_a_report_counts_shards_as_one_run_with_the_rows_of_the_whole_one(shards):
    joined, whole = load_runs([shards / "parts"]), load_runs([shards / "whole"])
    assert joined.left_out == whole.left_out == ()
    assert len(joined.runs) == 1
    assert joined.runs[0].sha256 == whole.runs[0].sha256
    assert set(joined.frame["run"]) == {joined.runs[0].name}
    columns = ["subset", "length", "sample_id", "scorer", "value", "prompt_tokens"]
    rows = [sorted(loaded.frame[columns].astype(str).itertuples(index=False)) for loaded in (joined, whole)]
    assert rows[0] == rows[1]


def test_the_page_of_a_report_holds_the_samples_of_all_shards_and_says_in_which_folder_each_lies(shards):
    pages = [collect_samples(analyse(load_runs([shards / name]))) for name in ("parts", "whole")]
    joined, whole = ([json.loads(gzip.decompress(base64.b64decode(one))) for one in page.slices] for page in pages)
    folders = pages[0].index["runs"][0]["folders"]
    keys = [{line[:3] for line in answers(Path(folder))} for folder in folders]
    for cell, part, single in zip(pages[0].index["cells"], joined, whole, strict=True):
        assert part["samples"] == single["samples"]
        rows = part["runs"]["0"]
        assert [row[:-1] for row in rows] == [row[:-1] for row in single["runs"]["0"]]
        for (sample_id, *_), row in zip(part["samples"], rows, strict=True):
            assert (cell["subset"], cell["length"], sample_id) in keys[row[-1]]
    assert not pages[0].notes


def test_kinds_of_errors_are_counted_over_all_shards(shards):
    joined, whole = (mistakes(make_arms(load_runs([shards / name]).runs, baseline=None, trained_length=None))
                     for name in ("parts", "whole"))  # fmt: skip
    assert joined == whole
    assert sum(cell.answers for cell in joined) == 7 * 4


def test_a_missing_shard_is_named(shards, tmp_path):
    for number in (1, 3):
        shutil.copytree(shards / "parts" / f"s{number}", tmp_path / f"s{number}")
    loaded = load_runs([tmp_path])
    assert [text for text in loaded.left_out if "2/3" in text and "missing" in text]


def test_a_copy_and_a_shard_of_another_number_of_parts_are_left_out_and_named(checkpoint, shards, tmp_path):
    shutil.copytree(shards / "parts", tmp_path / "all")
    shutil.copytree(shards / "parts" / "s2", tmp_path / "all" / "copy")
    done(checkpoint, tmp_path / "all" / "half", "--samples", 7, "--shard", "1/2")
    loaded = load_runs([tmp_path / "all"])
    told = " ".join(loaded.left_out)
    assert "both are shard 2/3" in told
    assert "half is left out: it is shard 1/2" in told
    assert len(loaded.frame) == len(load_runs([shards / "whole"]).frame)


def test_a_shard_of_fewer_samples_is_joined_and_named(checkpoint, shards, tmp_path):
    for number in (1, 3):
        shutil.copytree(shards / "parts" / f"s{number}", tmp_path / f"s{number}")
    done(checkpoint, tmp_path / "s2", "--samples", 4, "--shard", "2/3")
    loaded = load_runs([tmp_path])
    assert [text for text in loaded.left_out if "s2 differs in its plan" in text and "samples 4, not 7" in text]
    assert not loaded.frame.duplicated(["subset", "length", "sample_id", "scorer"]).any()


def test_a_shard_is_resumed_and_grown_by_the_same_command(checkpoint, shards, tmp_path):
    small = done(checkpoint, tmp_path / "s", "--samples", 4, "--shard", "2/3")
    assert set(answers(small)) < set(answers(shards / "parts" / "s2"))
    grown = ask(checkpoint, tmp_path / "s", "--samples", 7, "--shard", "2/3")
    assert sorted(answers(small)) == sorted(answers(shards / "parts" / "s2"))
    assert "8 samples recorded, 4 asked now" in grown.output


@pytest.mark.parametrize("other", [("--shard", "1/3"), ()])
def test_a_folder_of_one_shard_takes_no_other(checkpoint, shards, other):
    refused = ask(checkpoint, shards / "parts" / "s2", "--samples", 7, *other)
    assert refused.exit_code == 2
    assert "holds shard 2/3" in refused.output


def test_every_shard_has_its_own_folder_by_default(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        done(checkpoint, None, "--samples", 2, "--shard", f"{number}/2")
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert [name[-9:] for name in names] == ["shard1of2", "shard2of2"]
    assert len({name[:-9] for name in names}) == 1


def test_more_shards_than_samples_are_refused_before_anything_is_written(checkpoint, tmp_path):
    refused = ask(checkpoint, tmp_path / "s", "--samples", 2, "--shard", "3/3")
    assert refused.exit_code == 2
    assert "no samples for babilong" in refused.output
    assert "shard 3/3" in refused.output
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(BadInput, match="write it like 3/8"):
        parse_shard(text)


def test_samples_of_one_story_stay_together_and_parts_are_nested():
    def samples(count: int) -> list[Sample]:
        return [
            Sample(task="t", subset="s", sample_id=f"{i}@{d}", story_id=str(i), question="?", target="!")
            for i in range(count)
            for d in (0, 1)
        ]

    parts = [list(part_of(samples(20), f"{n}/3")) for n in (1, 2, 3)]
    assert sorted(s.sample_id for part in parts for s in part) == sorted(s.sample_id for s in samples(20))
    for n, part in enumerate(parts, start=1):
        fewer = list(part_of(samples(10), f"{n}/3"))
        assert part[: len(fewer)] == fewer
        assert len(part) == 2 * len({s.story_id for s in part})
