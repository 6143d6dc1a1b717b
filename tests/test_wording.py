"""Prompt wording comes from the card, from the authors' result files or from their prompts.py, which is never run."""

import json
import re
from pathlib import Path

import pytest

from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.babilong.task import BABILong
from evalkit.benchmarks.babilong.wording import Wording, load_wording
from evalkit.benchmarks.cards import load_card
from evalkit.errors import BadInput
from evalkit.models.encoder import Encoder
from tests.tiny_tokenizers import CHATML, tiny_tokenizer

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


def test_todays_template_is_taken_before_an_older_one_whatever_the_files_are_called(tmp_path):
    prompt = {"instruction": "Read.", "examples": "Ex.", "post_prompt": "Say."}
    older = "{instruction}\n{examples}\n{post_prompt}\nContext: {context}\n\nQuestion: {question}"
    for model, template in (("a", older), ("b", TEMPLATE), ("c", older)):
        (tmp_path / model).mkdir()
        file = tmp_path / model / "qa3_0k_instruction_yes_examples_yes_post_prompt_yes.json"
        file.write_text(json.dumps({"prompt": {**prompt, "template": template}}))
    assert load_wording(str(tmp_path), load_card("babilong"))["qa3"].template == TEMPLATE
    assert load_wording(str(tmp_path / "a"), load_card("babilong"))["qa3"].template == older


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
        ("qa1_0k_instruction_yes_examples_yes_post_prompt_yes.json", "{", "is not JSON: line 1"),
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
        ("qa1_0k_instruction_yes_examples_yes_post_prompt_yes.json", b"\xff{}", "is not text in UTF-8"),
        ("prompts.py", b"\xff", "not a Python file"),
        ("prompts.py", b"X = 1\0", "not a Python file"),
        (
            "prompts.py",
            b"T = '{context} {question}'\nP = {'qa1': 'Read.'}",
            "should have a dictionary with instruction",
        ),
        ("novel.txt", b"It was a dark night.", "is not JSON: line 1"),
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


# The form of the authors' file since June 2024: the template is put together from two texts.
AUTHORS_FORM = """
TASK_TEMPLATE = {task!r}
USER_TEMPLATE = {user!r}
DEFAULT_TEMPLATE = f'{{TASK_TEMPLATE}}{seam}{{USER_TEMPLATE}}'

CUSTOM_SYSTEM_PROMPTS = {{
    # a remark
    'SOME_MODEL':
        'You are a model. '
        'Say {{what}} you don\\'t know.'
}}


def get_formatted_input(context, question, examples, instruction, post_prompt, template=DEFAULT_TEMPLATE):
    return template.format(instruction=instruction, context=context.strip(), question=question).strip()


DEFAULT_PROMPTS = {prompts!r}
"""
TASK, USER = "{instruction}\n\n{examples}\n\n{post_prompt}", "<context>\n{context}\n</context>\n\nQuestion: {question}"


def authors_file(
    folder: Path, prompts: dict[str, dict[str, str]], task: str = TASK, user: str = USER, seam: str = "\\n\\n"
) -> Path:
    path = folder / "prompts.py"
    path.write_text(AUTHORS_FORM.format(task=task, user=user, seam=seam, prompts=prompts), encoding="utf-8")
    return path


def test_a_template_put_together_from_two_texts_is_read_whole(tmp_path):
    prompts = {"qa1": {"instruction": "Read.", "examples": "Ex.", "post_prompt": "Say."}}
    loaded = load_wording(str(authors_file(tmp_path, prompts)), load_card("babilong"))
    assert loaded["qa1"].template == TEMPLATE
    assert loaded["qa1"].fill("facts", "Where?").startswith("Read.\n\nEx.\n\nSay.\n\n<context>\nfacts")


@pytest.mark.parametrize(
    ("task", "user", "dropped"),
    [
        ("{instruction}\n\n{post_prompt}", USER, "{examples}"),
        ("", USER, "{instruction} and no {examples} and no {post_prompt}"),
        (TASK, "{context}", "{question}"),
        (TASK, "{question}", "{context}"),
    ],
)
def test_a_template_that_drops_a_text_of_the_wording_is_refused(tmp_path, task, user, dropped):
    prompts = {"qa1": {"instruction": "Read.", "examples": "Ex.", "post_prompt": "Say."}}
    with pytest.raises(BadInput, match=re.escape(f"prompts.py, qa1: the template has no {dropped}; ")):
        load_wording(str(authors_file(tmp_path, prompts, task, user)), load_card("babilong"))


def test_a_template_that_only_running_the_file_would_give_is_refused(tmp_path):
    path = authors_file(tmp_path, {"qa1": {"instruction": "Read.", "examples": "", "post_prompt": ""}})
    path.write_text(path.read_text().replace("f'{TASK_TEMPLATE}", "make(TASK_TEMPLATE) + f'{TASK_TEMPLATE}"))
    with pytest.raises(BadInput, match=r"the template has no \{instruction\}"):
        load_wording(str(path), load_card("babilong"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the published predictions are not beside this checkout")
def test_the_authors_file_and_their_result_files_give_the_same_ids(tmp_path):
    results = load_wording(str(REAL), load_card("babilong"))
    texts = {n: {f: getattr(w, f) for f in ("instruction", "examples", "post_prompt")} for n, w in results.items()}
    task, seam, user = results["qa1"].template.partition("{post_prompt}\n")
    file = authors_file(tmp_path, texts, task + seam.strip(), user, seam="\\n")
    encoder = Encoder(tiny_tokenizer("llama3", template=CHATML, add_bos=False), chat=True)
    card = load_card("babilong")
    by_file, by_results = (BABILong(card, BABILongOptions(prompts=str(source))) for source in (file, REAL))
    assert by_file.recipe()["wording"] == by_results.recipe()["wording"]
    for subset in results:
        for sample in by_file.samples(subset, "0k", 3):
            ids = [benchmark.prompt(sample, "0k", encoder, 10**6).sha256 for benchmark in (by_file, by_results)]
            assert ids[0] == ids[1]
