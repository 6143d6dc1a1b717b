"""Prompt wording comes from the card, from the authors' result files or from their prompts.py, which is never run."""

import json
from pathlib import Path

import pytest

from evalkit.benchmarks.babilong.wording import Wording, load_wording
from evalkit.benchmarks.cards import load_card
from evalkit.errors import BadInput

REAL = Path(__file__).parents[2] / "shared" / "data" / "babilong" / "predictions"
TEMPLATE = "{instruction}\n\n{examples}\n\n{post_prompt}\n\n<context>\n{context}\n</context>\n\nQuestion: {question}"


def wording(**texts: str) -> Wording:
    return Wording(**{"instruction": "I", "examples": "E", "post_prompt": "P", "template": TEMPLATE, **texts})


def test_blanks_of_parts_left_out_stay_and_only_the_ends_are_stripped():
    bare = wording().without(["instruction", "examples", "post_prompt"])
    assert bare.fill(" facts \n", "Where? ") == "<context>\nfacts\n</context>\n\nQuestion: Where?"
    assert wording().without(["examples"]).fill("facts", "Where?").startswith("I\n\n\n\nP\n\n<context>")


def test_braces_in_context_or_question_are_text():
    assert "{x} {instruction}" in wording().fill("{x} {instruction}", "Where is {y}?")


def test_own_wording_covers_every_subset_of_the_card():
    card = load_card("babilong")
    own = load_wording("own", card)
    assert set(own) == set(card.subsets)
    assert all(w.instruction and w.examples and w.post_prompt for w in own.values())


def test_wording_is_read_from_result_files_at_any_depth(tmp_path):
    folder = tmp_path / "org" / "model"
    folder.mkdir(parents=True)
    prompt = {"instruction": "Read.", "examples": "Ex.", "post_prompt": "Say.", "template": TEMPLATE}
    complete = folder / "qa3_0k_instruction_yes_examples_yes_post_prompt_yes.json"
    complete.write_text(json.dumps({"prompt": prompt, "generate_kwargs": {}}))
    bare = folder / "qa3_0k_instruction_no_examples_no_post_prompt_no.json"
    bare.write_text(json.dumps({"prompt": dict.fromkeys(prompt, ""), "generate_kwargs": {}}))
    for source in (tmp_path, complete):
        assert load_wording(str(source), load_card("babilong")) == {"qa3": Wording(**prompt)}


def test_a_prompts_file_is_parsed_and_never_executed(tmp_path):
    path = tmp_path / "prompts.py"
    prompts = {"qa1": {"instruction": "Read.", "examples": "Ex.", "post_prompt": "Say."}}
    bomb = f"open({str(tmp_path / 'executed')!r}, 'w')"
    path.write_text(f"import os\nX = {bomb}\nTEMPLATE = {TEMPLATE!r}\nPROMPTS = {prompts!r}\n")
    loaded = load_wording(str(path), load_card("babilong"))
    assert loaded["qa1"].fill("facts", "Where?").endswith("Question: Where?")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qa1_0k_instruction_yes_examples_yes_post_prompt_yes.json", "{", "expected JSON with"),
        ("qa1_0k_instruction_yes_examples_yes_post_prompt_yes.json", '{"prompt": {}}', "expected JSON with"),
        ("readme.txt", "nothing", "No prompt wording in"),
    ],
)
def test_a_folder_without_usable_wording_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=message):
        load_wording(str(tmp_path), load_card("babilong"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qa1_0k_instruction_yes_examples_yes_post_prompt_yes.json", b"\xff{}", "expected JSON with"),
        ("prompts.py", b"\xff", "not a Python file"),
        ("prompts.py", b"X = 1\0", "not a Python file"),
        (
            "prompts.py",
            b"T = '{context} {question}'\nP = {'qa1': 'Read.'}",
            "should have a dictionary with instruction",
        ),
        ("novel.txt", b"It was a dark night.", "expected JSON with"),
    ],
)
def test_a_file_that_is_no_wording_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"{name}.* {message}"):
        load_wording(str(tmp_path / name), load_card("babilong"))


def test_a_template_with_an_unknown_placeholder_is_refused(tmp_path):
    prompt = {"instruction": "", "examples": "", "post_prompt": "", "template": "{context} {question} {answer}"}
    path = tmp_path / "qa1_0k_instruction_yes_examples_yes_post_prompt_yes.json"
    path.write_text(json.dumps({"prompt": prompt}))
    with pytest.raises(BadInput, match="placeholder that is not known"):
        load_wording(str(tmp_path), load_card("babilong"))


def test_a_path_that_does_not_exist_is_refused():
    with pytest.raises(BadInput, match="neither 'own' nor 'official'"):
        load_wording("no/such/folder", load_card("babilong"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the published predictions are not beside this checkout")
def test_the_real_result_files_give_all_twenty_subsets():
    loaded = load_wording(str(REAL), load_card("babilong"))
    assert set(loaded) == {f"qa{n}" for n in range(1, 21)}
    assert all("{context}" in w.template for w in loaded.values())
