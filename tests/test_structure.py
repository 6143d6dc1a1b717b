"""The structure of a story is recorded with its answer, agrees with bAbI's own file, and can be asked for."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from evalkit.benchmarks.babilong import questions, structure
from evalkit.benchmarks.babilong.files import read_babi
from evalkit.benchmarks.babilong.haystack import read_noise, tokenize_haystack
from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.babilong.placement import draw_window, official_gaps, weave_text
from evalkit.benchmarks.babilong.structure import Condition, select, tags, tags_of_text, told_in
from evalkit.benchmarks.babilong.task import BABILong
from evalkit.benchmarks.cards import load_card
from evalkit.errors import BadInput
from tests.test_haystack import encoder_of

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_files = pytest.mark.skipif(not DATA.is_dir(), reason="bAbI's text files and a novel are not beside the project")

STORY = (
    "Mary went to the garden.",
    "Mary took the milk there.",
    "Mary went to the kitchen.",  # entry 1
    "John went to the kitchen.",
    "Mary went back to the garden.",
    "Mary journeyed to the kitchen.",  # entry 2
    "Mary left the milk.",
    "Mary went to the garden.",
    "Mary moved to the kitchen.",  # without the milk
    "Mary got the milk.",  # taken in the room: no entry
    "Mary grabbed the apple there.",
)


def benchmark(**options) -> BABILong:
    return BABILong(load_card("babilong"), BABILongOptions(**options))


def test_an_entry_is_a_walk_into_the_asked_room_with_the_object_in_hand():
    found = tags("qa3", STORY, "Where was the milk before the kitchen? ", (9, 5, 4))
    assert found == {"facts": 11, "hops": 3, "distance": 5, "distractors": 1, "entries": 2}


def test_only_qa3_counts_entries():
    assert "entries" not in tags("qa2", STORY, "Where is the milk?", (9, 8))


@needs_files
def test_the_entries_of_the_published_questions_are_as_their_authors_count_them():
    samples = read_babi(DATA / "babi", "qa3")
    entries = [sample.metadata["tags"]["entries"] for sample in samples]
    assert Counter(entries[:999]) == {1: 694, 2: 242, 3: 54, 4: 8, 5: 1}
    asked = benchmark(facts=DATA / "babi", only=("entries>=2",))
    chosen = list(asked.samples("qa3", "4k", 10**6))
    assert len(chosen) == 306
    assert sum(sample.sample_id < "00999" for sample in chosen) == 305
    things = Counter(sample.question.split()[3] for sample in chosen if sample.sample_id < "00999")
    assert things == {"football": 102, "apple": 107, "milk": 96}
    assert [sample.sample_id for sample in asked.samples("qa3", "4k", 50)] == [s.sample_id for s in chosen[:50]]


@needs_files
@pytest.mark.parametrize(("most_facts", "count", "left"), [(211, 998, 304), (86, 863, 225)])
def test_so_many_of_them_fit_the_published_short_splits(most_facts, count, left):
    found = [
        s.metadata["tags"] for s in read_babi(DATA / "babi", "qa3")[:999] if s.metadata["tags"]["facts"] <= most_facts
    ]
    assert (len(found), sum(one["entries"] >= 2 for one in found)) == (count, left)


@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_every_generated_story_has_its_structure(subset):
    for sample in benchmark().samples(subset, "1k", 20):
        found = sample.metadata["tags"]
        assert found["facts"] == len(sample.facts)
        assert found["hops"] == len(sample.supporting)
        needed = sorted(sample.supporting)
        assert found["distance"] == needed[-1] - needed[0]
        assert found["distractors"] == len(sample.facts[needed[-1] + 1 :])
        assert set(found) == {*structure.TAGS} - (set() if subset == "qa3" else {"entries"})


def test_depths_keep_the_structure():
    (sample,) = benchmark(depths=(0.5,)).samples("qa3", "1k", 1)
    assert sample.metadata["depth"] == 0.5
    assert sample.metadata["tags"]["hops"] == 3


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("facts=11", True),
        ("facts!=11", False),
        ("facts >= 11", True),
        ("facts<=10", False),
        ("facts>10", True),
        ("facts<11", False),
    ],
)
def test_operators(condition, expected):
    sample = questions.generate("qa1", 0, 0)
    sample.metadata["tags"]["facts"] = 11
    assert Condition.parse(condition).holds(sample) == expected


def test_several_conditions_hold_together_and_are_part_of_the_recipe():
    asked = benchmark(only=("entries>=2", "facts<40"))
    chosen = [sample.metadata["tags"] for sample in asked.samples("qa3", "1k", 20)]
    assert len(chosen) == 20
    assert all(one["entries"] >= 2 and one["facts"] < 40 for one in chosen)
    assert asked.recipe()["only"] == "entries>=2 and facts<40"
    assert benchmark().recipe()["only"] is None


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            "entrances>=2",
            r"there is no tag 'entrances'; the tags of a story are facts, hops, distance, distractors, entri",
        ),
        ("entries=>2", r"there is no operator '=>'; choose of >= <= != = > <"),
        ("entries", r"is no condition; write a tag, an operator and a number, like entries>=2"),
        ("entries>=many", r"is no condition"),
        ("entries>=-1", r"there is no operator '>=-'"),
    ],
)
def test_a_condition_that_means_nothing_is_refused_at_once(condition, message):
    with pytest.raises(BadInput, match=message):
        BABILongOptions(only=(condition,))


def test_a_tag_that_a_task_does_not_have_is_refused():
    with pytest.raises(BadInput, match="there is no entries here; these qa1 samples have facts, hops, distance, distr"):
        next(benchmark(only=("entries>=2",)).samples("qa1", "1k", 1))


def test_a_selection_that_leaves_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(structure, "MAX_MISSES", 50)
    with pytest.raises(BadInput, match="--only facts>=1000 leaves no samples: 50 in a row are others"):
        next(benchmark(only=("facts>=1000",)).samples("qa1", "1k", 1))
    (tmp_path / "qa1_test.txt").write_text("1 Mary moved to the garden.\n2 Where is Mary?\tgarden\t1\n")
    with pytest.raises(BadInput, match="--only facts>=2 leaves no samples: 1 in a row are others"):
        next(benchmark(only=("facts>=2",), facts=tmp_path).samples("qa1", "1k", 1))


def test_a_finite_list_may_end_in_samples_that_are_passed_over():
    samples = [questions.generate("qa3", 0, index) for index in range(200)]
    chosen = list(select(samples, [Condition.parse("entries>=2")]))
    assert 20 < len(chosen) < 100
    assert list(islice(select(samples, []), 3)) == samples[:3]


@needs_files
@pytest.mark.parametrize("subset", ["qa1", "qa2", "qa3", "qa4", "qa5", "qa6", "qa7", "qa8"])
def test_statements_are_told_from_a_novel_around_them(subset):
    haystack = tokenize_haystack(read_noise([next((DATA / "books").glob("*.txt"))]), encoder_of(), None)
    for number, sample in enumerate(read_babi(DATA / "babi", subset)[::25]):
        rng = np.random.default_rng(number)
        window = draw_window(haystack, rng, 20_000)
        context = weave_text(window, official_gaps(window, rng.random(len(sample.facts))), sample.facts)
        assert told_in(subset, context) == list(sample.facts)
        expected = {
            name: sample.metadata["tags"][name] for name in ("facts", "entries") if name in sample.metadata["tags"]
        }
        assert tags_of_text(subset, context, sample.question) == expected


def test_rows_of_other_tasks_have_no_structure_to_be_told():
    assert told_in("qa15", "Wolves are afraid of mice.") is None
    assert tags_of_text("qa15", "Wolves are afraid of mice.", "What is gertrude afraid of?") == {}
