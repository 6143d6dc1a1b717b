"""Generated bAbI stories make sense to a reader who knows only the grammar, and look like the published files.

The table of docs/worlds.md is made here: python -m tests.test_babi
"""

import hashlib
import math
import statistics
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from evalkit.benchmarks.babilong import questions
from evalkit.benchmarks.babilong.files import read_babi
from evalkit.benchmarks.rows import row_number
from evalkit.errors import BadInput
from tests.babi_solver import solve

FILES = Path(__file__).parents[2] / "shared" / "data" / "babi"
WORLDS = Path(__file__).parents[1] / "docs" / "worlds.md"
needs_files = pytest.mark.skipif(not FILES.is_dir(), reason="the bAbI v1.2 text files are not beside the project")

# Measured on the published v1.2 files: facts before a question (least, mean, most), numbers of supporting facts, shares
# of answers in percent (one number: all answers of the task are about equally likely, that many of them).
PUBLISHED = {
    "qa1": ((2, 6, 10), {1}, 6),
    "qa2": ((2, 15.5, 88), {2}, 6),
    "qa3": ((4, 50, 228), {3}, 6),
    "qa4": ((2, 2, 2), {1}, 6),
    "qa5": ((2, 19.5, 126), {1}, {"Bill": 16, "Fred": 18, "Jeff": 14, "Mary": 18, "apple": 13, "football": 12}),
    "qa6": ((2, 6.3, 26), {1}, {"yes": 50, "no": 50}),
    "qa7": ((2, 8.6, 52), set(range(1, 11)), {"none": 47, "one": 49, "two": 4}),
    "qa8": ((2, 8.8, 58), set(range(1, 9)), {"nothing": 35, "apple": 20, "football": 19, "milk": 20}),
    "qa9": ((2, 6, 10), {1}, {"no": 63, "yes": 37}),
    "qa10": ((2, 6, 10), {1}, {"no": 47, "yes": 39, "maybe": 14}),
    "qa11": ((2, 6, 10), {2}, 6),
    "qa12": ((2, 6, 10), {1}, 6),
    "qa13": ((2, 6, 10), {2}, 6),
    "qa14": ((2, 7.8, 14), {2}, 6),
    "qa15": ((8, 8, 8), {2}, 4),
    "qa16": ((9, 9, 9), {3}, 4),
    "qa17": ((2, 2, 2), {2}, {"yes": 51, "no": 49}),
    "qa18": ((5, 6.2, 20), {2}, {"yes": 49, "no": 51}),
    "qa19": ((5, 5, 5), {2}, 12),
    "qa20": ((1, 5.9, 12), {1}, {"kitchen": 18, "bored": 16, "hungry": 15, "thirsty": 16, "tired": 16, "garden": 10}),
}

# How many of the 1,000 published test questions the solver answers. In qa5 two are about an earlier gift than the
# latest that matches; in qa8 four name the objects in another order than that of taking.
SOLVED = dict.fromkeys(questions.SUBSETS, 1000) | {"qa5": 998, "qa8": 996}

subsets = st.sampled_from(questions.SUBSETS)
seeds = st.integers(0, 2**31)
indices = st.integers(0, 10**6)


@cache
def generated(subset, count=500):
    return [questions.generate(subset, 11, index) for index in range(count)]


@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_a_reader_who_knows_only_the_grammar_answers_every_generated_question(subset):
    wrong = [s for s in generated(subset)[:200] if solve(s.facts, s.question) != s.target]
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_a_reader_answers_a_thousand_questions_of_another_seed(subset):
    samples = [questions.generate(subset, 2024, index) for index in range(1000)]
    assert sum(solve(s.facts, s.question) == s.target for s in samples) == 1000


@needs_files
@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_the_same_reader_answers_the_published_test_questions(subset):
    samples = read_babi(FILES, subset)
    assert len(samples) == 1000
    assert sum(solve(s.facts, s.question) == s.target for s in samples) == SOLVED[subset]


@needs_files
def test_as_sets_all_published_answers_about_what_is_carried_are_right():
    samples = read_babi(FILES, "qa8")
    assert all(set(solve(s.facts, s.question).split(",")) == set(s.target.split(",")) for s in samples)


@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_stories_are_as_long_as_the_published_ones(subset):
    (least, mean, most), _, _ = PUBLISHED[subset]
    counts = [len(sample.facts) for sample in generated(subset)]
    assert min(counts) == least
    assert statistics.mean(counts) == pytest.approx(mean, rel=0.15)
    assert max(counts) <= 1.5 * most


@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_answers_are_as_frequent_as_the_published_ones(subset):
    _, _, shares = PUBLISHED[subset]
    found = Counter(sample.target for sample in generated(subset))
    if isinstance(shares, int):
        assert len(found) == shares
        shares = dict.fromkeys(found, 100 / shares)
    for answer, share in shares.items():
        assert 100 * found[answer] / 500 == pytest.approx(share, abs=5), answer


def ks_distance(first, second):
    """Largest difference of two cumulative shares (Kolmogorov and Smirnov)."""
    values = sorted({*first, *second})
    shares = [np.searchsorted(np.sort(one), values, side="right") / len(one) for one in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def share_distance(first, second):
    """Half the sum of the differences of shares (total variation)."""
    counts = [Counter(one) for one in (first, second)]
    differences = (abs(counts[0][x] / len(first) - counts[1][x] / len(second)) for x in {*counts[0], *counts[1]})
    return math.fsum(differences) / 2


def words(samples):
    return [word for s in samples for text in (*s.facts, s.question) for word in text.lower().rstrip(".?").split()]


def distances(first, second):
    """How far two lists of samples are apart, in each column of the table."""
    structures = [
        [dict(s.metadata["tags"], first_needed=min(s.supporting)) for s in samples] for samples in (first, second)
    ]
    table = {
        name: ks_distance(*([one[name] for one in side] for side in structures))
        for name in ("facts", "distractors", "distance", "first_needed", "hops")
    }
    table["answers"] = share_distance([s.target for s in first], [s.target for s in second])
    return table | {"words": share_distance(words(first), words(second))}


@cache
def compared(subset):
    """How far 2,000 generated samples are from both files, how far these are from each other, and what chance makes."""
    train, test = (read_babi(FILES, subset, part=part) for part in ("train", "test"))
    ours = [questions.generate(subset, 0, index) for index in range(2000)]
    between_files = distances(test, train)
    # What chance alone makes (99.9 %, for there are 140 distances); questions to one story are alike, so stories count.
    stories = sum(len({s.story_id for s in samples}) for samples in (train, test))
    unit = (1 / stories + 1 / len(ours)) ** 0.5
    by_chance = dict.fromkeys(between_files, 1.95 * unit)
    by_chance["answers"] = (
        chi2.ppf(0.999, len({s.target for s in train}) - 1) ** 0.5 / 2 * unit
    )  # by Cauchy and Schwarz
    return distances(ours, [*train, *test]), between_files, by_chance


def table_row(subset):
    """The row of a task in docs/worlds.md."""
    ours, between_files, by_chance = compared(subset)
    cells = [f"{by_chance['facts']:.3f}, {by_chance['answers']:.3f}"]
    cells += [f"{ours[column]:.3f}, {between_files[column]:.3f}" for column in ours]
    return f"| {subset} | {' | '.join(cells)} |"


@needs_files
@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_generated_stories_are_no_further_from_the_files_than_these_are_from_each_other(subset):
    ours, between_files, by_chance = compared(subset)
    for column, distance in ours.items():
        assert distance <= max(between_files[column], by_chance[column]), column


@needs_files
def test_the_written_table_of_generated_and_real_worlds_is_what_is_measured():
    written = [line for line in WORLDS.read_text().splitlines() if line.startswith("| qa")]
    assert written == [table_row(subset) for subset in questions.SUBSETS]


@needs_files
def test_the_last_to_walk_are_asked_about_as_often_as_in_the_files():
    for subset, share in (("qa12", 0.72), ("qa13", 0.93)):
        real = [*read_babi(FILES, subset), *read_babi(FILES, subset, part="train")]
        for samples in (real, generated(subset, 2000)):
            last = sum(s.metadata["tags"]["distractors"] == 0 for s in samples) / len(samples)
            assert last == pytest.approx(share, abs=0.02)


def test_animals_of_a_kind_differ_in_color_as_rarely_as_in_the_files():
    conflicts = 0
    for sample in generated("qa16", 2000):
        told = [fact.rstrip(".").split() for fact in sample.facts]
        kind, color = {w[0]: w[3] for w in told if w[2] == "a"}, {w[0]: w[2] for w in told if w[2] != "a"}
        asked = sample.question.rstrip("?").split()[-1]
        conflicts += len({color[name] for name in color if kind[name] == kind[asked]}) > 1
    assert conflicts / 2000 == pytest.approx(150 / 2000, abs=0.02)


def test_stories_of_the_first_task_are_those_of_the_first_version():
    told = repr([(s.facts, s.question, s.target, s.supporting) for s in generated("qa1")])
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "ab41ef136478cc61"


@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_the_number_of_supporting_facts_is_that_of_the_task(subset):
    assert {len(sample.supporting) for sample in generated(subset)} <= PUBLISHED[subset][1]


@given(subset=subsets, seed=seeds, index=indices)
@settings(max_examples=100, deadline=None)
def test_every_sample_is_well_formed_and_its_answer_follows(subset, seed, index):
    sample = questions.generate(subset, seed, index)
    assert sample.question.endswith("?")
    assert all(fact.endswith(".") and fact == fact.strip() for fact in sample.facts)
    assert all(0 <= fact < len(sample.facts) for fact in sample.supporting)
    assert len(set(sample.supporting)) == len(sample.supporting)
    assert solve(sample.facts, sample.question) == sample.target
    assert 0 <= sample.seed < 2**48


# In the other tasks the supporting facts alone speak of objects that were never taken.
@given(subset=st.sampled_from(sorted(set(questions.SUBSETS) - {"qa2", "qa3", "qa5", "qa7", "qa8"})), index=indices)
@settings(max_examples=100, deadline=None)
def test_the_supporting_facts_alone_give_the_answer(subset, index):
    sample = questions.generate(subset, 3, index)
    told = [sample.facts[fact] for fact in sorted(sample.supporting)]
    assert solve(told, sample.question) == sample.target


@pytest.mark.parametrize(("subset", "moves"), [("qa2", 1), ("qa3", 2)])
def test_an_object_is_found_by_its_last_taking_or_leaving_and_moves(subset, moves):
    for sample in generated(subset)[:100]:
        first, *rest = (sample.facts[fact] for fact in sample.supporting)
        thing = sample.question.split()[3].rstrip("?")
        assert thing in first
        assert len(rest) == moves
        assert all(" to the " in fact for fact in rest)
        assert sample.target in rest[-1]


def test_a_sample_does_not_depend_on_what_else_is_generated():
    alone = questions.generate("qa3", 7, 41)
    assert [questions.generate("qa3", 7, index) for index in range(50)][41] == alone


def test_seeds_subsets_and_indices_give_different_stories():
    stories = [questions.generate("qa2", seed, index) for seed in range(3) for index in range(10)]
    assert len({(sample.facts, sample.question) for sample in stories}) == 30
    assert len({questions.generate(subset, 0, 0).seed for subset in questions.SUBSETS}) == 20


def test_every_generated_sample_is_its_own_story():
    samples = generated("qa1")
    assert len({sample.story_id for sample in samples}) == len({sample.sample_id for sample in samples}) == 500


def test_an_unknown_task_is_named():
    with pytest.raises(BadInput, match="no task 'qa21'"):
        questions.generate("qa21", 0, 0)


STORY = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Sandra moved to the garden.
6 Where is Daniel? \thallway\t4
1 John moved to the office.
2 Where is John?\toffice\t1
"""


def write(folder, name="qa1_single-supporting-fact_test.txt", text=STORY):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_facts_are_the_statements_before_a_question_without_earlier_questions(tmp_path):
    write(tmp_path)
    first, second, third = read_babi(tmp_path, "qa1")
    assert first.facts == ("Mary moved to the bathroom.", "John went to the hallway.")
    assert second.facts == (*first.facts, "Daniel went back to the hallway.", "Sandra moved to the garden.")
    assert (second.question, second.target, second.supporting) == ("Where is Daniel?", "hallway", (2,))
    assert [row_number(sample.sample_id) for sample in (first, second, third)] == ["00000", "00001", "00002"]
    assert first.story_id == second.story_id != third.story_id
    assert third.facts == ("John moved to the office.",)


def test_the_test_file_is_read_where_there_is_a_train_file_too(tmp_path):
    write(tmp_path, "qa1_single-supporting-fact_train.txt", "1 A b.\n2 Is b?\tyes\t1\n")
    assert [sample.target for sample in read_babi(tmp_path, "qa1")] == ["yes"]
    path = write(tmp_path)
    assert read_babi(tmp_path, "qa1") == read_babi(path, "qa1")
    assert len(read_babi(tmp_path, "qa1")) == 3


def test_windows_line_ends_and_a_missing_last_line_end_do_not_matter(tmp_path):
    expected = read_babi(write(tmp_path), "qa1")
    path = tmp_path / "qa1_test.txt"
    path.write_bytes(b"\xef\xbb\xbf" + STORY.rstrip().replace("\n", "\r\n").encode())  # with the mark of UTF-8
    assert read_babi(path, "qa1") == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "qa1_.*found none"),
        (["qa10_indefinite-knowledge_test.txt"], "qa1_.*found none"),
        (["qa1_a_test.txt", "qa1_b_test.txt"], r"found qa1_a_test\.txt, qa1_b_test\.txt"),
    ],
)
def test_an_absent_or_ambiguous_file_is_refused(tmp_path, names, message):
    for name in names:
        write(tmp_path, name)
    with pytest.raises(BadInput, match=message):
        read_babi(tmp_path, "qa1")


def test_a_file_of_another_task_is_refused(tmp_path):
    with pytest.raises(BadInput, match="not a file of qa2"):
        read_babi(write(tmp_path), "qa2")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (2, "1 A b.\n3 C d.\n"),
        (1, "Mary moved to the bathroom.\n"),
        (1, "2 Mary moved to the bathroom.\n"),
        (2, "1 A b.\n2\n"),
        (2, "1 A b.\n2 Is b?\tyes\n"),
        (2, "1 A b.\n2 Is b?\t\t1\n"),
        (2, "1 A b.\n2 Is b?\tyes\tone\n"),
        (2, "1 A b.\n2 Is b?\tyes\t3\n"),
        (3, "1 A b.\n2 Is b?\tyes\t1\n3 Is c?\tno\t2\n"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(tmp_path, line, text):
    path = write(tmp_path, text=text)
    with pytest.raises(BadInput, match=rf"{path.name}, line {line}:"):
        read_babi(path, "qa1")


def test_a_file_without_questions_or_text_is_refused(tmp_path):
    with pytest.raises(BadInput, match="holds no questions"):
        read_babi(write(tmp_path, text="1 A b.\n"), "qa1")
    binary = tmp_path / "qa2_binary_test.txt"
    binary.write_bytes(b"1 A b.\n2 \xff\xfe\n")
    with pytest.raises(BadInput, match="line 2: byte 0xff is not UTF-8"):
        read_babi(binary, "qa2")
    (tmp_path / "qa3_folder_test.txt").mkdir()
    with pytest.raises(BadInput, match=r"qa3_folder_test\.txt cannot be read"):
        read_babi(tmp_path, "qa3")


def test_a_question_is_another_sample_where_it_or_its_statements_change(tmp_path):
    write(tmp_path)
    before = [sample.sample_id for sample in read_babi(tmp_path, "qa1")]
    write(tmp_path, text=STORY.replace("2 John went to the hallway", "2 John went to the garden"))
    after = [sample.sample_id for sample in read_babi(tmp_path, "qa1")]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True]
    assert list(map(row_number, before)) == list(map(row_number, after))


if __name__ == "__main__":
    print("\n".join(map(table_row, questions.SUBSETS)))
