"""A report by a tag of the samples: the arms on the samples of each value, and how they differ there."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.records.folder import RunFolder
from evalkit.report.analysis import analyse
from evalkit.report.build import build
from evalkit.report.groups import _values, group_rows
from evalkit.report.load import load_runs
from tests.report_runs import holds_to, write_run


def tagged(folder: Path, arm: str, right) -> Path:
    """A run on qa3 whose samples have 1 or 2 entries, and are right where ``right(index)`` says so."""
    plain = write_run(
        folder / f"{arm}-untagged", arm=arm, accuracy=holds_to(8192), subsets=("qa3",), lengths=("4k", "8k"), samples=40
    )
    source = RunFolder.open(plain)
    made = []
    for p in source.predictions():
        index = int(p.sample_id)
        output = f"It is in the {p.target}." if right(index) else "I do not know."
        metadata = {
            "facts": ['He said "tags": {"entries": 9} there.'],
            **p.metadata,
            "tags": {"entries": 1 + index % 2},
        }
        made.append(replace(p, output=output, metadata=metadata))
    with RunFolder.start(
        folder / arm, arm=arm, config=source.config, fingerprint=source.fingerprint, provenance={"command": "x"}
    ) as run:
        run.extend(made)
    return folder / arm


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("tagged")
    return [tagged(root, "a", lambda i: i % 2 == 0), tagged(root, "b", lambda i: True)]


def test_each_value_has_its_own_scores_and_differences(runs, tmp_path):
    build(runs, tmp_path, by="entries")
    rows = list(csv.DictReader((tmp_path / "by.csv").open()))
    scores = {(r["arm"], r["value"], r["length"]): (float(r["score"]), r["n"]) for r in rows if not r["baseline"]}
    assert {key: value for key, value in scores.items() if key[2] == "4k"} == {
        ("a", "1", "4k"): (100.0, "20"),
        ("a", "2", "4k"): (0.0, "20"),
        ("b", "1", "4k"): (100.0, "20"),
        ("b", "2", "4k"): (100.0, "20"),
    }
    differences = {(r["value"], r["length"]): r for r in rows if r["baseline"] == "a"}
    assert float(differences["2", "8k"]["score"]) == 100
    assert float(differences["2", "8k"]["p"]) < 0.001
    assert float(differences["1", "8k"]["score"]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "official score by entries" in text
    assert "--by entries" in json.loads((tmp_path / "report.json").read_text())["command"]


def test_a_difference_that_is_only_the_rounding_of_a_sum_is_none(runs):
    group = analyse(load_runs(runs, tag="entries"), by="entries").groups[0]
    (compared,) = group.comparisons
    tiny = {length: found._replace(mean=-1e-17) for length, found in compared.by_length.items()}
    rows = [*group_rows([replace(group, comparisons=(replace(compared, by_length=tiny),))])]
    assert {str(row["score"]) for row in rows if "baseline" in row} == {"0.0"}


def test_a_tag_that_no_answer_has_is_refused_with_those_there_are(runs):
    with pytest.raises(BadInput, match=r"^--by hops: no answer of these runs has such a tag; the tags are entries\.$"):
        analyse(load_runs(runs, tag="hops"), by="hops")
    result = CliRunner().invoke(main, ["report", str(runs[0]), "--by", "hops"])
    assert result.exit_code == 2
    assert "the tags are entries" in result.output


def test_few_values_stand_alone_and_many_numbers_are_cut_into_quarters():
    assert _values(["10", "2", "", "2"]) == [("2", ["2"]), ("10", ["10"])]
    parts = _values([str(i) for i in range(40)])
    assert [name for name, _ in parts] == ["0–9", "10–19", "20–29", "30–39"]
    assert _values([f"w{i:02}" for i in range(12)])[3] == ("w03", ["w03"])
