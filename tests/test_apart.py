"""Two models under one name are never averaged: 100 and 0 are not 50."""

from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import BadInput
from evalkit.report.analysis import Analysis, analyse
from evalkit.report.load import load_runs
from tests.report_runs import holds_to, training, write_run

K = 1024


def right(subset: str, tokens: int) -> float:
    return 2.0


def wrong(subset: str, tokens: int) -> float:
    return -1.0


def write(folder: Path, accuracy: Any = right, **more: Any) -> None:
    write_run(
        folder, **{"arm": "mine", "lengths": ("4k",), "subsets": ("qa1",), "samples": 10, **more}, accuracy=accuracy
    )


def scores(found: Analysis) -> dict[str, float | None]:
    return {c.arm: c.interval.mean for c in found.cells if c.scorer == "official"}


def notes_of(found: Analysis) -> list[str]:
    return [note for note in found.notes if "have the name" in note]


def test_two_models_of_one_name_are_shown_by_their_folders_and_the_report_says_why(tmp_path: Path) -> None:
    write(tmp_path / "one", right, fingerprint={"checkpoint.weights": "a"})
    write(tmp_path / "two", wrong, fingerprint={"checkpoint.weights": "b"})
    found = analyse(load_runs([tmp_path]))
    assert scores(found) == {"mine (one)": 1.0, "mine (two)": 0.0}
    assert set(found.loaded.frame["arm"]) == {"mine (one)", "mine (two)"}
    assert notes_of(found) == [
        "2 arms have the name 'mine' and are shown as 'mine (one)', 'mine (two)', since they are not seeds of one "
        "training (checkpoint.weights is a in one and b in two); run them with an --arm of their own."
    ]


def test_seeds_of_one_training_are_one_arm(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path / str(seed), right if seed else wrong, training=training("plain", seed=seed))
    found = analyse(load_runs([tmp_path]))
    assert scores(found) == {"mine": 0.5}
    assert not notes_of(found)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"recipe": "yarn"}, "training.recipe is plain in 0 and yarn in 1"),
        ({"trained_length": 4 * K}, "training.trained_length is 8192 in 0 and 4096 in 1"),
        ({"optimization": {"learning_rate": 0.1}}, "training.learning_rate is absent in 0 and 0.1 in 1"),
        ({"base": {"name": "other", "config": "c"}}, "training.base.config is absent in 0 and c in 1"),
    ],
)
def test_trainings_that_differ_in_more_than_their_seed_are_two_arms(
    change: dict[str, Any], why: str, tmp_path: Path
) -> None:
    write(tmp_path / "0", training=training("plain"))
    write(tmp_path / "1", training=training("plain", seed=1) | change)
    found = analyse(load_runs([tmp_path]))
    assert len(found.arms) == 2
    assert why in notes_of(found)[0]


def test_the_machine_of_a_training_and_the_draw_of_its_data_do_not_part_its_seeds(tmp_path: Path) -> None:
    for seed, machine in ((0, "cpu"), (1, "cuda")):
        record = training("plain", seed=seed) | {"optimization": {"device": machine, "epochs": 1}}
        record["data"] |= {"seed": seed, "sha256": f"{seed:02}"}
        write(tmp_path / str(seed), training=record)
    assert len(analyse(load_runs([tmp_path])).arms) == 1


def test_one_seed_trained_twice_to_other_weights_is_two_arms(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / name, training=training("plain"), fingerprint={"checkpoint.weights": name})
    found = analyse(load_runs([tmp_path]))
    assert [arm.name for arm in found.arms] == ["mine (first)", "mine (second)"]
    assert not any("asked the same model" in note for note in found.notes)


def test_one_model_served_in_two_ways_is_two_arms_where_both_were_asked_the_same(tmp_path: Path) -> None:
    for rule, lengths in (("none", ("4k",)), ("yarn", ("4k", "8k"))):
        write(tmp_path / rule, lengths=lengths, fingerprint={"rope.rule": rule})
    found = analyse(load_runs([tmp_path]))
    assert [arm.name for arm in found.arms] == ["mine (none)", "mine (yarn)"]
    assert "rope.rule is none in none and yarn in yarn" in notes_of(found)[0]


def test_one_model_served_in_two_ways_at_different_lengths_is_one_arm_and_said(tmp_path: Path) -> None:
    for rule, length in (("none", "4k"), ("yarn", "8k")):
        write(tmp_path / rule, lengths=(length,), fingerprint={"rope.rule": rule})
    found = analyse(load_runs([tmp_path]))
    assert [arm.name for arm in found.arms] == ["mine"]
    assert any("joins runs that differ: rope.rule" in note for note in found.notes)


def test_parts_of_a_run_and_repeats_of_it_are_one_arm(tmp_path: Path) -> None:
    for name, lengths in (("short", ("4k",)), ("long", ("8k",)), ("again", ("4k",))):
        write(tmp_path / name, lengths=lengths)
    write(tmp_path / "mrcr", task="mrcr", subsets=("2needle",), fingerprint={"checkpoint.weights": "trained for it"})
    assert [arm.name for arm in analyse(load_runs([tmp_path])).arms] == ["mine"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere", "There is no folder .*nowhere"), ("empty", "no run folder .* at or below .*empty; leave")],
)
def test_a_path_without_runs_is_refused_although_others_have_some(name: str, said: str, tmp_path: Path) -> None:
    write(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=said):
        load_runs([tmp_path / "good", tmp_path / name])


def test_cells_without_a_score_count_from_none_in_words(tmp_path: Path) -> None:
    from evalkit.report.tables import score_table

    write_run(tmp_path / "a", arm="a", accuracy=holds_to(8 * K), lengths=("4k", "8k"), subsets=("qa1",), samples=4)
    write_run(tmp_path / "b", arm="a", accuracy=holds_to(8 * K), lengths=("16k",), subsets=("qa1",), samples=9)
    table = score_table(analyse(load_runs([tmp_path])), "babilong", "official")
    assert table.rows[0].entries[2].text == "4 to 9"
    assert "Chance: the score of always giving the most frequent answer" in table.caption
