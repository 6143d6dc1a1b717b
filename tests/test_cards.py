"""Task cards are complete, refuse what is wrong by name, and ask for answers that the scorers accept."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from evalkit.benchmarks import cards
from evalkit.benchmarks.babilong import questions
from evalkit.benchmarks.babilong.files import read_babi
from evalkit.benchmarks.babilong.scorers import corrected, official
from evalkit.benchmarks.cards import card_names, load_card, read_card
from evalkit.errors import BadInput
from tests.babi_solver import solve

FILES = Path(__file__).parents[2] / "shared" / "data" / "babi"

CARD = """
task = "quiz"
title = "A quiz"
version = 3
description = "Two questions."
paper = "none"
default_subsets = ["easy"]
default_samples = 10

[subsets.easy]
chance = 0.5
labels = ["yes", "no"]
"""

EXAMPLE = re.compile(r"Example (\d)\nText: (.+)\nQuestion: (.+\?)\nAnswer: (.+)")
BABILONG = load_card("babilong")

# What a model says that keeps to the format which the card asks for; other tasks ask for the bare label.
REPLIES = {
    "qa1": "{person} is in the {target}.",
    "qa2": "The {thing} is in the {target}.",
    "qa3": "The {thing} was in the {target} before the {place}.",
}


def write(folder, text=CARD, name="quiz.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def obedient_reply(sample):
    words = sample.question.rstrip("?").split()
    parts = {"person": words[-1], "thing": words[-1], "target": sample.target}
    if sample.subset == "qa3":
        parts |= {"thing": words[3], "place": words[-1]}
    return REPLIES.get(sample.subset, "{target}").format(**parts)


def test_both_benchmarks_have_cards():
    assert {"babilong", "mrcr"} <= set(card_names())
    assert [load_card(name).task for name in card_names()] == list(card_names())


def test_an_unknown_task_is_told_the_known_ones():
    with pytest.raises(BadInput, match=r"no task 'babylon'; the tasks are babilong, .*mrcr"):
        load_card("babylon")


def test_cards_of_an_installed_package_come_before_those_of_a_project(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "__file__", str(tmp_path / "evalkit" / "benchmarks" / "cards.py"))
    with pytest.raises(BadInput, match="task cards are missing"):
        card_names()
    (tmp_path / "tasks").mkdir()
    write(tmp_path / "tasks")
    with pytest.raises(BadInput, match="task cards are missing"):
        card_names()  # a folder called tasks beside any package is not ours
    (tmp_path / "pyproject.toml").touch()
    assert card_names() == ("quiz",)
    (tmp_path / "evalkit" / "_tasks").mkdir(parents=True)
    assert card_names() == ()


def test_fields_and_defaults_of_a_card(tmp_path):
    card = read_card(write(tmp_path))
    assert (card.version, card.default_subsets, card.default_samples) == (3, ("easy",), 10)
    assert card.subsets["easy"].labels == ("yes", "no")
    assert (card.max_new_tokens, card.template, card.source, card.settings) == (None, "", {}, {})
    assert card.subsets["easy"].instruction == ""


@pytest.mark.parametrize(
    ("old", "new", "moves_a_score"),
    [
        ("", "# A remark.\r\n", False),
        ("A quiz", "The quiz", False),
        ("Two questions", "A question", False),
        ('paper = "none"', 'paper = "arXiv"', False),
        ("version = 3", "version = 4", False),  # it stands beside the hash
        ("default_samples = 10", "default_samples = 20", False),
        ("chance = 0.5", "chance = 0.25", False),
        ('["yes", "no"]', '["yes", "no", "maybe"]', True),
        ("chance = 0.5", 'chance = 0.5\ninstruction = "Say yes."', True),
        ("default_samples = 10", 'default_samples = 10\ntemplate = "{question}"', True),
        ("default_samples = 10", "default_samples = 10\nmax_new_tokens = 5", True),
        ("[subsets.easy]", "[settings]\nmargin = 1\n[subsets.easy]", True),
    ],
)
def test_the_hash_is_of_what_moves_an_answer_or_a_score(tmp_path, old, new, moves_a_score):
    plain = read_card(write(tmp_path)).sha256
    changed = CARD.replace(old, new) if old else new + CARD
    assert (read_card(write(tmp_path, changed)).sha256 != plain) == moves_a_score


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 3", "", "the field 'version' is missing"),
        ("version = 3", 'version = "3"', "'version' must be of type int"),
        ("version = 3", "version = true", "'version' must be of type int"),
        ("version = 3", "version = 3\nauthor = 'me'", "the field 'author' is unknown"),
        ("version = 3", "version = ", "not a TOML file"),
        ('task = "quiz"', 'task = "riddle"', "task is 'riddle', which must be the name of the file"),
        ('["easy"]', '["hard"]', "default_subsets names hard"),
        ('["easy"]', "[]", "default_subsets is empty"),
        ("default_samples = 10", "default_samples = 0", "default_samples is 0"),
        ("default_samples = 10", "default_samples = 10\nmax_new_tokens = 0", "max_new_tokens must be"),
        ("chance = 0.5", "", r"subsets\.easy: the field 'chance' is missing"),
        ("chance = 0.5", "chance = 50", r"subsets\.easy: chance is 50"),
        ("chance = 0.5", "chance = 0.5\nmax_new_tokens = 0", r"subsets\.easy: max_new_tokens"),
        ("chance = 0.5", "chance = 0.5\nhint = ''", r"subsets\.easy: the field 'hint' is unknown"),
        ('["yes", "no"]', '["yes", 0]', r"subsets\.easy: labels"),
        ("[subsets.easy]", "[source.hub]\nid = 'a/b'\n[subsets.easy]", r"source\.hub: the field 'revision'"),
        ("[subsets.easy]", "[subsets]\nhard = 1\n[subsets.easy]", r"subsets\.hard: expected a table"),
    ],
)
def test_a_wrong_card_is_refused_with_file_and_field(tmp_path, old, new, message):
    assert old in CARD
    path = write(tmp_path, CARD.replace(old, new))
    with pytest.raises(BadInput, match=message) as refusal:
        read_card(path)
    assert str(path) in str(refusal.value)


def test_published_data_sets_are_pinned_to_a_whole_commit():
    for name in card_names():
        for data_set in load_card(name).source.values():
            assert re.fullmatch(r"[0-9a-f]{40}", data_set["revision"])
            assert "/" in data_set["id"]


def test_the_babilong_card_covers_all_tasks_with_wording_and_labels():
    assert tuple(BABILONG.subsets) == questions.SUBSETS
    for subset in BABILONG.subsets.values():
        assert all((subset.title, subset.labels, subset.instruction, subset.examples, subset.post_prompt))


def test_the_context_stands_in_the_middle_of_the_prompt_and_the_question_last():
    parts = re.findall(r"\{(\w+)\}", BABILONG.template)
    assert parts == ["instruction", "examples", "post_prompt", "context", "question"]
    assert BABILONG.template.rstrip().endswith("{question}")


@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_labels_are_exactly_the_answers_that_occur(subset):
    answers = {questions.generate(subset, 5, index).target for index in range(1000)}
    words = answers if subset == "qa19" else {word for answer in answers for word in answer.split(",")}
    assert words == set(BABILONG.subsets[subset].labels)


@pytest.mark.skipif(not FILES.is_dir(), reason="the bAbI v1.2 text files are not beside the project")
@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_chance_is_the_share_of_the_most_frequent_published_answer(subset):
    answers = Counter(sample.target for sample in read_babi(FILES, subset))
    assert BABILONG.subsets[subset].chance == pytest.approx(max(answers.values()) / 1000, abs=0.0005)


@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_worked_examples_are_right_and_scored_as_right(subset):
    card = BABILONG.subsets[subset]
    examples = EXAMPLE.findall(card.examples)
    assert [number for number, *_ in examples] == ["1", "2"]
    for _, text, question, answer in examples:
        facts = [f"{sentence}." for sentence in text.rstrip(".").split(". ")]
        target = solve(facts, question)
        assert corrected(answer, question, target, card.labels, subset)
        # The official rule finds "one" inside "none": no answer to qa7 that says none can count.
        assert official(answer, question, target, card.labels) == (target != "none")


@pytest.mark.parametrize("subset", questions.SUBSETS)
def test_a_reply_in_the_format_asked_for_is_scored_as_right(subset):
    labels = BABILONG.subsets[subset].labels
    for index in range(100):
        sample = questions.generate(subset, 6, index)
        reply = obedient_reply(sample)
        assert corrected(reply, sample.question, sample.target, labels, subset), reply
        assert official(reply, sample.question, sample.target, labels) == (sample.target != "none"), reply


def test_placeholders_of_the_wording_cannot_be_mistaken_for_format_fields():
    with (Path(__file__).parents[1] / "tasks" / "babilong.toml").open("rb") as file:
        values = tomllib.load(file)
    for subset in values["subsets"].values():
        assert not re.search(r"[{}]", subset["instruction"] + subset["examples"] + subset["post_prompt"])
