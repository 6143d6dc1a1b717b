"""The built-in background prose: never repeats itself, never mentions a task's words, and is the same for a seed."""

import hashlib
import re

import pytest

from evalkit.benchmarks.babilong.haystack import split_sentences
from evalkit.benchmarks.babilong.prose import MAX_SENTENCE_WORDS, MIN_SENTENCE_WORDS, generate_prose

# Persons, places, objects, animals, colours, shapes, directions, times and answers of the twenty tasks, and the words
# that mark the parts of a prompt.
TASK_WORDS = """
    mary john daniel sandra bill fred jeff julie gertrude winona jessica emily lily bernhard greg julius brian
    sumit yann antoine jason bathroom bedroom garden hallway kitchen office cinema park school
    apple football milk pajamas square sphere rectangle triangle box boxes chocolate container suitcase chest
    mouse mice sheep wolf wolves cat swan lion frog rhino gray grey white yellow green red blue pink
    north south east west left right above below bigger afraid either yesterday morning afternoon evening
    yes no maybe none one two three nothing hungry thirsty bored tired n e s w question answer context example
"""


@pytest.fixture(scope="module")
def prose() -> str:
    return generate_prose(seed=0, num_words=260_000)


@pytest.fixture(scope="module")
def sentences(prose) -> list[str]:
    return split_sentences(" ".join(prose.split()))


def test_no_sentence_repeats_in_more_than_a_128k_prompt_needs(sentences):
    assert len(sentences) > 12_000
    assert len(set(sentences)) == len(sentences)


def test_sentences_are_of_plain_length_and_form(sentences):
    for sentence in sentences:
        assert MIN_SENTENCE_WORDS <= len(sentence.split()) <= MAX_SENTENCE_WORDS
        assert re.fullmatch(r"[A-Z\"].*\.\"?", sentence)
        assert sentence.count('"') % 2 == 0
        assert not re.search(r"[{}]|  |\b[Aa] [aeiou]", sentence)


def test_no_word_of_any_task_occurs(prose):
    words = set(re.findall(r"[a-z]+", prose.lower()))
    for word in TASK_WORDS.split():
        assert not words & {word, word + "s"}


def test_other_seeds_share_no_sentence(sentences):
    for seed in (1, 2, 1_000_000):
        other = split_sentences(" ".join(generate_prose(seed, 260_000).split()))
        assert not set(sentences) & set(other)


def test_shorter_text_is_the_beginning_of_a_longer_one(prose):
    short = generate_prose(seed=0, num_words=5_000)
    assert prose.startswith(short)
    assert 5_000 <= len(short.split()) < 5_000 + 11 * MAX_SENTENCE_WORDS


def test_the_text_of_a_seed_never_changes():
    # Every recorded prompt depends on it: a new hash here means old run folders cannot be continued.
    assert (
        hashlib.sha256(generate_prose(0, 10_000).encode()).hexdigest()
        == "cf6c9680a09423331b695c7991f5a27d02b41fc2641b410408dfff05fffd873d"
    )
