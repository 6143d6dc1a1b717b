import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import BadInput
from evalkit.lengths import format_length, parse_length, parse_lengths


@given(st.integers(0, 10**8))
def test_a_label_reads_back_as_the_number_it_was_made_from(tokens):
    assert parse_length(format_length(tokens)) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"), [("16k", 16384), ("128K", 131072), ("1M", 2**20), ("1.5k", 1536), ("0k", 0)]
)
def test_labels_mean_binary_thousands(text, tokens):
    assert parse_length(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "16kb", "-1k", "1.0001k", "sixteen"])
def test_what_is_no_length_is_refused_by_name(text):
    with pytest.raises(BadInput, match="is not a number of tokens"):
        parse_length(text)


def test_a_list_is_sorted_and_free_of_repeats():
    assert parse_lengths("64k, 16384,16k,1M") == ("16k", "64k", "1M")
