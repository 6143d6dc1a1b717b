"""Background text: what is read, where sentences end, and that pieces join to the ids of the whole prompt."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.benchmarks.babilong import haystack as haystack_module
from evalkit.benchmarks.babilong.haystack import (
    MIN_SENTENCE_TOKENS,
    TokenizedHaystack,
    normalise,
    read_noise,
    split_sentences,
    tokenize_haystack,
)
from evalkit.benchmarks.babilong.placement import Woven, depth_gaps, draw_window, official_gaps, weave, weave_text
from evalkit.benchmarks.babilong.prose import generate_prose
from evalkit.errors import BadInput
from evalkit.files import user_cache
from evalkit.models.encoder import Encoder
from tests.tiny_tokenizers import STYLES, tiny_tokenizer

BOOK = Path(__file__).parents[2] / "shared" / "data" / "books" / "pride-and-prejudice.txt"
needs_book = pytest.mark.skipif(not BOOK.is_file(), reason="the novel is not beside the project")

HEAD = "Answer with a place.\n\n<context>\n"
TAIL = "\n</context>\n\nQuestion: Where is Mary?"
FACTS = ("Mary went to the kitchen.", "John got the milk there.", "Émile is no longer in the 2nd park.", "Is it 12:30?")


def encoder_of(style: str = "llama3") -> Encoder:
    return Encoder(tiny_tokenizer(style), chat=False)


def haystack_of(num_words: int = 1_000, style: str = "llama3") -> TokenizedHaystack:
    return tokenize_haystack(generate_prose(0, num_words), encoder_of(style), None)


def sentences_of(haystack: TokenizedHaystack) -> list[str]:
    starts = haystack.sentence_starts.tolist()
    return [haystack.text_of(*span) for span in pairwise(starts)]


# ---- sentences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentences",
    [
        ["It was late.", "He slept."],
        ["“You must know,” said she.", "“I do not!”", "‘Why?’ he asked.", "Nobody knew."],
        ["Mr. Bennet spoke to Mrs. Long of St. Ives, i.e. the town, at No. 5 Dr. Smith's.", "Then he went."],
        ["J. R. Smith came.", "It was I.", "He left (at 3.15 p. m.)", "[It rained.]", "_So it goes!_", "The end"],
        ["Wait... what?", "She ran…", "— And then?", "1984 was cold.", "“12 men!”", "Élan."],
    ],
)
def test_sentences_end_where_a_reader_ends_them(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


@given(st.text(max_size=500))
@settings(max_examples=200, deadline=None)
def test_splitting_loses_nothing(text):
    text = normalise(text)
    sentences = split_sentences(text)
    assert " ".join(sentences) == text
    assert all(sentences)


def test_text_without_full_stops_is_cut_into_pieces():
    text = " ".join(["word"] * 20_000)
    sentences = split_sentences(text)
    assert len(sentences) > 20
    assert " ".join(sentences) == text
    assert split_sentences("x" * 10_000) == ["x" * 10_000]


def test_hard_wrapped_lines_become_flowing_text():
    assert normalise("  It was\r\na\u00a0cold\tday.\n\n\n") == "It was a cold day."
    assert normalise(" \n") == ""


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_reads_files_and_folders_and_cuts_the_licence(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfSecond book.")
    (tmp_path / "a.txt").write_text(
        "The Project Gutenberg eBook of X\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\nFirst book.\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK X ***\nLicence.\n*** START: FULL LICENSE ***\n"
    )
    (tmp_path / "notes.md").write_text("not a book")
    assert normalise(read_noise([tmp_path])) == "First book. Second book."
    assert normalise(read_noise([tmp_path / "notes.md", tmp_path / "b.txt"])) == "not a book Second book."


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n*** END OF THIS PROJECT GUTENBERG EBOOK X ***", "is empty"),
        (b"text\0text", r"is binary \(byte 4"),
        ("Müller".encode("latin-1"), r"is not UTF-8 \(byte 1\)"),
        ("Müller".encode("utf-16"), "is binary|is not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_unusable_file_is_named(tmp_path, content, problem):
    path = tmp_path / "book.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"book\.txt {problem}"):
        read_noise([path])


def test_folder_without_texts_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"has no \.txt files"):
        read_noise([tmp_path])


# ---- tokenizing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_haystack_holds_the_long_sentences_with_their_ids(style, monkeypatch):
    monkeypatch.setattr(haystack_module, "_CHUNK_CHARS", 700)  # several chunks
    encoder = encoder_of(style)
    text = (
        generate_prose(3, 600)
        + " Too short. Émile said: “1984 naïve men — and 雪!” and then walked home, over 2.5 hills."
    )
    kept = [s for s in split_sentences(normalise(text)) if len(encoder.encode_after(f" {s}")) >= MIN_SENTENCE_TOKENS]
    assert "Too short." not in kept
    haystack = tokenize_haystack(text, encoder, None)
    assert sentences_of(haystack) == kept
    assert haystack.ids.tolist() == [i for s in kept for i in encoder.encode_after(f" {s}").tolist()]
    assert haystack.ids.dtype == np.int32
    assert haystack.num_tokens == len(haystack.ids) == haystack.sentence_starts[-1]
    for token in range(0, haystack.num_tokens, 7):
        stop = min(token + 5, haystack.num_tokens)
        if haystack.starts_word(token) and haystack.starts_word(stop):
            again = encoder.encode_after(" " + haystack.text_of(token, stop))
            assert haystack.ids[token:stop].tolist() == again.tolist()


class JoiningEncoder:
    """Tokens of four characters, whatever they are: words and sentences start inside them."""

    identity = "joining"

    def encode_with_starts(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        starts = np.arange(0, len(text), 4)
        return starts.astype(np.int32), starts


def test_sentence_that_starts_inside_a_token_stays_with_the_one_before():
    sentences = [f"{'The long road went on and on over the hills' + 'x' * (i % 5)}." for i in range(40)]
    haystack = tokenize_haystack(" ".join(sentences), JoiningEncoder(), None)
    assert 1 < haystack.num_sentences < 40
    assert "on over the hills. The long" in haystack.text
    assert all(text.startswith("The long road") and text.endswith(".") for text in sentences_of(haystack))


def test_text_of_short_sentences_only_is_refused():
    with pytest.raises(BadInput, match="no sentence of 10 tokens"):
        tokenize_haystack("It rained. He slept. No.", encoder_of(), None)


def test_sentences_with_a_word_too_long_to_end_a_window_exactly_are_left_out():
    rule = "The clerk drew a line across the page: " + "=-" * 200 + " and went home."
    text = generate_prose(3, 300)
    kept = tokenize_haystack(text, encoder_of(), None)
    assert sentences_of(tokenize_haystack(f"{text} {rule} {text}", encoder_of(), None)) == 2 * sentences_of(kept)
    with pytest.raises(BadInput, match="give prose with spaces between its words"):
        tokenize_haystack("天地玄黄宇宙洪荒" * 500, encoder_of(), None)


class CountingEncoder(Encoder):
    calls = 0

    def encode_with_starts(self, text):
        self.calls += 1
        return super().encode_with_starts(text)


def same(one: TokenizedHaystack, other: TokenizedHaystack) -> bool:
    return one.text == other.text and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("ids", "char_starts", "sentence_starts")
    )


def test_cache_saves_tokenizing_again_and_depends_on_text_and_encoder(tmp_path):
    encoder = CountingEncoder(tiny_tokenizer("llama3"), chat=False)
    text = generate_prose(0, 500) + " “Émile, 雪 and all the others have gone home at last.”"
    fresh = tokenize_haystack(text, encoder, None)
    assert encoder.calls == 1
    for expected_calls in (2, 2, 2):
        assert same(tokenize_haystack(text, encoder, tmp_path), fresh)
        assert encoder.calls == expected_calls
    tokenize_haystack(text + " And so on.", encoder, tmp_path)
    assert encoder.calls == 3
    encoder.identity = "another"
    tokenize_haystack(text, encoder, tmp_path)
    assert encoder.calls == 4
    assert len(list((tmp_path / "haystack").iterdir())) == 3  # nothing half-written is left


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "garbage"])
@pytest.mark.parametrize("name", ["ids.npy", "char_starts.npy", "sentence_starts.npy", "text.txt", "sha256"])
def test_damaged_cache_is_rebuilt(tmp_path, name, damage):
    encoder = CountingEncoder(tiny_tokenizer("llama3"), chat=False)
    text = generate_prose(0, 300)
    fresh = tokenize_haystack(text, encoder, tmp_path)
    expected = tokenize_haystack(text, encoder_of(), None)
    assert same(fresh, expected)
    (path,) = tmp_path.glob(f"haystack/*/{name}")
    content = bytearray(path.read_bytes())
    path.unlink()  # not in place: the arrays of ``fresh`` are mapped from the file
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-3] ^= 1
        path.write_bytes(content)
    elif damage == "garbage":
        path.write_bytes(b"\x93NUMPY\xff")
    assert same(tokenize_haystack(text, encoder, tmp_path), expected)
    assert encoder.calls == 2
    assert same(tokenize_haystack(text, encoder, tmp_path), expected)
    assert encoder.calls == 2


def test_cache_folder_that_cannot_be_written_is_no_obstacle(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert tokenize_haystack(generate_prose(0, 300), encoder_of(), tmp_path / "file").num_sentences > 5


def test_default_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "own"))
    assert user_cache() == tmp_path / "own"
    monkeypatch.delenv("EVALKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "evalkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path.home() / ".cache" / "evalkit"


# ---- windows ---------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_window_is_filled_to_within_a_word_and_repeats_nothing(seed, share):
    haystack = haystack_for_windows()
    asked = round(share * haystack.num_tokens)
    window = draw_window(haystack, np.random.default_rng(seed), asked)
    assert asked - 12 <= window.num_tokens <= asked
    every = range(window.num_sentences)
    assert sum(map(len, window.ids(every))) == window.num_tokens
    rolled = np.roll(haystack.ids, -window.start)[: window.num_tokens]
    assert np.concatenate([np.empty(0), *window.ids(every)]).tolist() == rolled.tolist()
    texts = [window.text(range(i, i + 1)) for i in every]
    assert " ".join(texts) == window.text(every)
    assert len(set(texts)) == len(texts)
    whole = sentences_of(haystack)
    assert all(text in whole for text in texts[:-1])
    if texts:
        assert (texts[-1] not in whole) == window.ends_mid_sentence
        assert any(sentence == texts[-1] or sentence.startswith(texts[-1] + " ") for sentence in whole)


_HAYSTACKS: dict[str, TokenizedHaystack] = {}


def haystack_for_windows(style: str = "llama3") -> TokenizedHaystack:
    return _HAYSTACKS.setdefault(style, haystack_of(style=style))


def test_shorter_window_of_a_seed_is_the_beginning_of_a_longer_one():
    haystack = haystack_for_windows()
    short, long = (draw_window(haystack, np.random.default_rng(5), n) for n in (500, 2_000))
    assert short.start == long.start
    assert long.text(range(long.num_sentences)).startswith(short.text(range(short.num_sentences)))


def test_haystack_that_is_too_small_says_how_much_is_needed():
    haystack = haystack_for_windows()
    with pytest.raises(BadInput, match=rf"has {haystack.num_tokens:,} tokens .* needs 99,999; .*--noise"):
        draw_window(haystack, np.random.default_rng(0), 99_999)


# ---- placement -------------------------------------------------------------------------------------------------------


def test_official_gaps_are_uniform_with_replacement_and_in_order():
    window = draw_window(haystack_for_windows(), np.random.default_rng(0), 200)
    num_gaps = window.num_sentences + 1
    counts = np.zeros(num_gaps)
    rng = np.random.default_rng(1)
    for _ in range(4_000):
        gaps = official_gaps(window, rng.random(3))
        assert (np.diff(gaps) >= 0).all()
        counts += np.bincount(gaps, minlength=num_gaps)
    # mean 12,000 / num_gaps per gap; five standard deviations
    assert len(counts) == num_gaps
    assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


def test_official_gaps_keep_their_relative_depth_at_every_length():
    haystack = haystack_for_windows()
    u = np.array([0.9, 0.1, 0.5])
    for num_tokens in (500, 1_200, 2_000):
        window = draw_window(haystack, np.random.default_rng(0), num_tokens)
        depths = official_gaps(window, u) / (window.num_sentences + 1)
        assert np.allclose(depths, np.sort(u), atol=1 / (window.num_sentences + 1))


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_facts_at_a_depth_stand_together_at_the_nearest_gap(depth):
    haystack = haystack_for_windows()
    window = draw_window(haystack, np.random.default_rng(3), 2_000)
    assert window.ends_mid_sentence
    gaps = depth_gaps(window, depth, 3)
    assert len(set(gaps.tolist())) == 1
    longest_sentence = np.diff(window.bounds).max()
    assert abs(window.bounds[gaps[0]] - depth * window.num_tokens) <= longest_sentence
    assert gaps[0] < window.num_sentences  # a fact never continues half a sentence
    woven = weave(window, gaps, FACTS[:3], fact_ids(FACTS[:3], encoder_of()))
    assert woven.fact_offsets[1] - woven.fact_offsets[0] == len(encoder_of().encode_after(f" {FACTS[0]}"))


def test_depth_one_is_the_very_end_where_the_last_sentence_is_whole():
    haystack = haystack_for_windows()
    window = draw_window(haystack, np.random.default_rng(3), haystack.num_tokens)
    assert not window.ends_mid_sentence
    assert depth_gaps(window, 1.0, 2).tolist() == [window.num_sentences] * 2


@pytest.mark.parametrize("depth", [-0.1, 1.5, float("nan")])
def test_depth_outside_the_text_is_refused(depth):
    window = draw_window(haystack_for_windows(), np.random.default_rng(3), 100)
    with pytest.raises(BadInput, match=r"Depth .* is not between 0 and 1"):
        depth_gaps(window, depth, 1)


# ---- joining ---------------------------------------------------------------------------------------------------------


def join(woven: Woven, encoder: Encoder) -> tuple[list[int], list[int]]:
    """Put head and tail around the pieces as benchmarks do; return the ids and the position of each fact."""
    if not woven.last:
        return encoder.encode_prompt(HEAD + woven.first + TAIL).tolist(), [len(encoder.encode_prompt(HEAD))] * len(
            woven.fact_offsets
        )
    head = encoder.encode_prompt(HEAD + woven.first)
    ids = [*head.tolist(), *woven.middle.tolist(), *encoder.encode_after(f" {woven.last}{TAIL}").tolist()]
    return ids, (len(head) + woven.fact_offsets).tolist()


def fact_ids(facts: Sequence[str], encoder: Encoder) -> list[np.ndarray]:
    return [encoder.encode_after(f" {fact}") for fact in facts]


@pytest.mark.parametrize("style", STYLES)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_woven_pieces_have_the_ids_of_the_whole_text(style, data):
    encoder, haystack = encoder_of(style), haystack_for_windows(style)
    num_tokens = data.draw(st.one_of(st.integers(0, 40), st.integers(0, haystack.num_tokens)))
    window = draw_window(haystack, np.random.default_rng(data.draw(st.integers(0, 999))), num_tokens)
    facts = tuple(data.draw(st.lists(st.sampled_from(FACTS), max_size=6)))
    gaps = np.sort([data.draw(st.integers(0, window.num_sentences)) for _ in facts]).astype(np.int64)
    ids, positions = join(weave(window, gaps, facts, fact_ids(facts, encoder)), encoder)
    text = HEAD + weave_text(window, gaps, facts) + TAIL
    assert ids == encoder.encode_prompt(text).tolist()
    assert len(positions) == len(facts)
    assert positions == sorted(positions)
    for fact, position in zip(facts, positions, strict=True):
        # A fact without a space in front may take a few tokens more than one with it, but it starts where it should.
        near = encoder.decode(ids[max(position - 1, 0) : position + len(encoder.encode_after(f" {fact}")) + 8])
        assert fact in near


@needs_book
@pytest.mark.parametrize("style", STYLES)
def test_a_real_novel_joins_to_the_ids_of_the_whole_text(style):
    encoder = encoder_of(style)
    text = read_noise([BOOK])
    assert "Gutenberg" not in text
    haystack = tokenize_haystack(normalise(text)[:150_000], encoder, None)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        window = draw_window(haystack, rng, 4_000)
        gaps = official_gaps(window, rng.random(len(FACTS)))
        ids, _ = join(weave(window, gaps, FACTS, fact_ids(FACTS, encoder)), encoder)
        assert ids == encoder.encode_prompt(HEAD + weave_text(window, gaps, FACTS) + TAIL).tolist()
