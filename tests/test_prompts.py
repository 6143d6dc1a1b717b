"""Token ids are what the checkpoint's own tokenizer gives: nothing doubled, nothing lost, whole or in pieces."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import BadInput
from evalkit.models.encoder import Encoder
from tests.tiny_tokenizers import ALTERNATING, CHATML, STYLES, tiny_tokenizer

SENTENCES = [
    "Mary went to the kitchen.",
    '"Well," she said, "1984!"',
    "The old clock said 12:30.",
    "Émile saw 雪 there.",
]


@pytest.mark.parametrize("style", STYLES)
def test_a_chat_prompt_has_the_ids_of_its_rendered_text(style):
    tokenizer = tiny_tokenizer(style, template=CHATML)
    messages = [{"role": "user", "content": "Where is Mary?"}]
    encoder = Encoder(tokenizer, chat=True)
    text = encoder.render(messages)
    assert encoder.encode_prompt(text).tolist() == tokenizer(text, add_special_tokens=False).input_ids
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encoder.encode_prompt(text).tolist() == whole


@pytest.mark.parametrize("style", STYLES)
def test_a_plain_prompt_starts_with_one_bos_even_when_the_text_brings_its_own(style):
    tokenizer = tiny_tokenizer(style, add_bos=True)
    encoder = Encoder(tokenizer, chat=False)
    for text in ("Where is Mary?", "<s>Where is Mary?"):
        ids = encoder.encode_prompt(text).tolist()
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
    assert encoder.encode_prompt("Where?").tolist() == tokenizer("Where?").input_ids


def test_a_plain_prompt_has_all_that_the_tokenizer_puts_in_front_and_nothing_of_what_it_puts_behind():
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_tokenizer("llama3"))
    ends = [("<unk>", 0), ("<s>", 1), ("<|im_end|>", 3)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> <s> $A <|im_end|>", special_tokens=ends
    )
    tokenizer.bos_token = None
    ids = Encoder(tokenizer, chat=False).encode_prompt("Where is Mary?").tolist()
    assert ids == tokenizer("Where is Mary?").input_ids[:-1]
    assert ids[:2] == [0, 1]


def test_a_template_that_asks_for_the_date_gives_the_same_prompt_on_every_day():
    template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    encoder = Encoder(tiny_tokenizer("llama3", template=template), chat=True)
    assert encoder.render([{"role": "user", "content": "Hello."}]) == "26 Jul 2024 Hello."


def test_a_template_that_writes_bos_does_not_get_a_second_one():
    tokenizer = tiny_tokenizer("llama3", template="{{ bos_token }}" + CHATML, add_bos=True)
    encoder = Encoder(tokenizer, chat=True)
    ids = encoder.encode_prompt(encoder.render([{"role": "user", "content": "Hello."}])).tolist()
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=60, deadline=None)
@given(chosen=st.lists(st.sampled_from(SENTENCES), min_size=2, max_size=8))
def test_sentences_encoded_apart_join_to_the_ids_of_the_whole(style, chosen):
    encoder = Encoder(tiny_tokenizer(style), chat=False)
    pieces = [encoder.encode_prompt(chosen[0]), *(encoder.encode_after(f" {sentence}") for sentence in chosen[1:])]
    assert np.concatenate(pieces).tolist() == encoder.encode_prompt(" ".join(chosen)).tolist()


@pytest.mark.parametrize("style", STYLES)
def test_token_starts_cover_the_text_and_give_each_space_to_the_word_behind_it(style):
    encoder = Encoder(tiny_tokenizer(style), chat=False)
    text = " ".join(SENTENCES)
    ids, starts = encoder.encode_with_starts(text)
    assert len(ids) == len(starts)
    assert starts[0] == 0
    assert (np.diff(starts) >= 0).all()
    for place, character in enumerate(text):
        if character == " " and text[place + 1].isalpha():
            assert place in starts, f"no token starts at the space before {text[place + 1 : place + 6]!r}"


def test_identity_follows_the_template_and_the_system_prompt():
    tokenizer = tiny_tokenizer("llama3", template=CHATML)
    encoders = [
        Encoder(tokenizer, chat=True),
        Encoder(tokenizer, chat=False),
        Encoder(tokenizer, chat=True, system_prompt="Be brief."),
        Encoder(tiny_tokenizer("gpt2", template=CHATML), chat=True),
        Encoder(tiny_tokenizer("llama3", template=ALTERNATING), chat=True),
    ]
    assert len({encoder.identity for encoder in encoders}) == len(encoders)


def test_a_template_that_refuses_a_conversation_is_named_as_the_reason():
    encoder = Encoder(tiny_tokenizer("llama3", template=ALTERNATING), chat=True)
    twice = [{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}]
    with pytest.raises(BadInput, match=r"refuses this conversation .*roles must alternate"):
        encoder.render(twice)


def test_a_checkpoint_folder_without_tokenizer_or_template_is_refused(tmp_path):
    with pytest.raises(BadInput, match="No tokenizer can be loaded"):
        Encoder.open(tmp_path)
    tiny_tokenizer("llama3").save_pretrained(tmp_path)
    assert not Encoder.open(tmp_path).chat
    with pytest.raises(BadInput, match="has no chat template"):
        Encoder.open(tmp_path, chat=True)
