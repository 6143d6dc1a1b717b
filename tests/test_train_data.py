"""Training examples come from the evaluation's own prompt builder, and share no item with it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evalkit.benchmarks import open_benchmark, score
from evalkit.benchmarks.babilong import questions
from evalkit.benchmarks.babilong.files import read_babi
from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.mrcr.options import MRCROptions
from evalkit.errors import BadInput, ContextOverflow
from evalkit.models.encoder import Encoder
from evalkit.train.data import (
    TRAINING_SEED,
    DataRecipe,
    Leakage,
    choose_samples,
    data_hash,
    item_fingerprint,
    leakage,
    make_examples,
)
from evalkit.types import Prediction, Prompt, Sample
from tests.test_mrcr_published import row, write_parquet
from tests.tiny_tokenizers import CHATML, tiny_tokenizer

BABI_FILES = Path(__file__).parents[2] / "shared" / "data" / "babi"


class Letters:
    """An encoder that makes a token of every character."""

    identity = "letters"

    def render(self, messages):
        return messages[0]["content"]

    def encode_prompt(self, text):
        return np.frombuffer(text.encode("latin-1"), np.uint8).astype(np.int32)

    def encode_after(self, text, before="."):
        return self.encode_prompt(text)

    def decode(self, token_ids):
        return bytes(int(i) for i in token_ids).decode("latin-1")


class Stories:
    """Generated stories without background; the prompt is padded to its length with dots."""

    task = "babilong"
    generated = True

    def __init__(self, seed):
        self.seed = seed

    def samples(self, subset, length, count):
        return (questions.generate(subset, self.seed, index) for index in range(count))

    def prompt(self, sample, length, encoder, window):
        text = f"{' '.join(sample.facts)} {sample.question}"
        room = window if length == "0k" else int(length)
        if len(text) + 12 > room:
            raise ContextOverflow("too long")
        return Prompt(
            sample=sample,
            length=length,
            token_ids=encoder.encode_prompt(text.rjust(0 if length == "0k" else room - 12, ".")),
            max_new_tokens=12,
        )


def training(data, **options):
    """BABILong as it is trained on."""
    return open_benchmark("babilong", BABILongOptions(**options), seed=data.seed, part="train")


def fingerprints(samples):
    return [item_fingerprint(sample) for sample in samples]


def recipe(**changes):
    return replace(DataRecipe(subsets=("qa1",), samples=40, shortest=400, longest=700), **changes)


def examples_of(data):
    benchmark = Stories(data.seed)
    samples, _ = choose_samples(benchmark, data)
    return make_examples(samples, benchmark, Letters(), data, stop_id=0)[0]


def test_a_prompt_is_the_evaluations_own_and_ends_with_answer_and_stop():
    examples = examples_of(recipe())
    asked = {Letters().decode(e.prompt_ids).lstrip("."): Letters().decode(e.answer_ids[:-1]) for e in examples}
    for sample in choose_samples(Stories(TRAINING_SEED), recipe())[0]:
        assert asked[f"{' '.join(sample.facts)} {sample.question}"] == f" {sample.target}"
    assert {int(e.answer_ids[-1]) for e in examples} == {0}


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
@pytest.mark.parametrize("name", ["babilong", "mrcr", "mrcr, published", "mrcr, no context"])
def test_the_taught_answer_replied_exactly_is_all_that_the_official_rule_wants(checkpoint, tmp_path, name, chat):
    options = {
        "babilong": BABILongOptions(instruction=False, examples=False, control="facts-only"),
        "mrcr": MRCROptions(),
        "mrcr, no context": MRCROptions(control="no-context"),
        "mrcr, published": MRCROptions(source=str(tmp_path)),
    }[name]
    write_parquet(tmp_path / "2needle.parquet", [row(1500)])
    kind = name.partition(",")[0]
    length = {"babilong": 1024, "mrcr": 2048, "mrcr, published": 8192, "mrcr, no context": 1024}[name]
    data = DataRecipe(
        task=kind, subsets=("qa1",) if kind == "babilong" else ("2needle",), samples=4, shortest=length, longest=length
    )
    encoder = Encoder.open(checkpoint, chat=chat)
    benchmark = open_benchmark(kind, options, seed=data.seed, part="train", count_tokens=encoder.count_tokens)
    for sample in choose_samples(benchmark, data)[0]:
        [example], _ = make_examples([sample], benchmark, encoder, data, stop_id=encoder.tokenizer.eos_token_id)
        *reply, end = example.answer_ids.tolist()
        assert end == encoder.tokenizer.eos_token_id
        answered = Prediction(
            task=kind, subset=sample.subset, length="1k", sample_id="0", story_id="0", question=sample.question,
            target=sample.target, prompt_tokens=1, prompt_sha256="", max_new_tokens=1, fact_positions=(),
            output=encoder.decode(reply), output_tokens=1, finish_reason="stop", metadata=sample.metadata,
        )  # fmt: skip
        assert [one.value for one in score(answered)][:2] == [1, 1]


class Counting(Stories):
    """Counts the prompts that are built."""

    built = 0

    def prompt(self, sample, length, encoder, window):
        prompt = super().prompt(sample, length, encoder, window)
        self.built += 1
        return prompt


def test_a_prompt_is_built_once():
    for shortest, longest in ((700, 700), (0, 700), (0, 300)):
        data = recipe(shortest=shortest, longest=longest)
        benchmark = Counting(data.seed)
        examples, _ = make_examples(choose_samples(benchmark, data)[0], benchmark, Letters(), data, stop_id=0)
        assert benchmark.built == len(examples)


def test_lengths_are_drawn_from_the_whole_range_and_never_exceed_it():
    lengths = [len(e.prompt_ids) + 12 for e in examples_of(recipe(samples=300))]
    assert 400 <= min(lengths) < 430
    assert 670 < max(lengths) <= 700
    assert np.histogram(lengths, bins=3)[0].min() > 70


def test_a_sample_that_needs_more_than_its_drawn_length_gets_what_it_needs():
    texts = [Letters().decode(e.prompt_ids) for e in examples_of(recipe(shortest=0, longest=450))]
    assert sum(not text.startswith(".") for text in texts) > 10
    assert max(map(len, texts)) <= 450 - 12


def test_a_sample_that_fits_no_length_is_left_out_even_where_its_drawn_length_is_below_the_wording(
    tmp_path, checkpoint
):
    (tmp_path / "noise.txt").write_text(" ".join(f"The lamp of room {i} was old." for i in range(200)))
    data, encoder = recipe(subsets=("qa3",), samples=60, shortest=0, longest=400), Encoder.open(checkpoint)
    benchmark = training(data, noise=(tmp_path / "noise.txt",), instruction=False, examples=False, post_prompt=False)
    samples, _ = choose_samples(benchmark, data)
    examples, fitting = make_examples(samples, benchmark, encoder, data, stop_id=0)
    assert 5 < len(examples) == len(fitting) < 50


def test_a_published_row_is_trained_on_where_it_fits_with_its_answer_and_end(tmp_path):
    """The room that an evaluation leaves a reply is 32 tokens more: that is no reason to leave a row out."""
    write_parquet(tmp_path / "2needle.parquet", [row(1500, bin="8k")])
    benchmark = open_benchmark("mrcr", MRCROptions(source=str(tmp_path)), seed=0, part="train")
    encoder = Encoder(tiny_tokenizer("gpt2", template=CHATML), chat=True)
    data = DataRecipe(task="mrcr", subsets=("2needle",), rows=("8k",), samples=1, longest=10**6)
    samples, _ = choose_samples(benchmark, data)
    (example,), _ = make_examples(samples, benchmark, encoder, data, stop_id=0)
    fits = replace(data, longest=len(example.prompt_ids) + len(example.answer_ids))
    assert len(make_examples(samples, benchmark, encoder, fits, stop_id=0)[0]) == 1
    with pytest.raises(BadInput, match="None of 1 samples of mrcr 2needle fits"):
        make_examples(samples, benchmark, encoder, replace(fits, longest=fits.longest - 1), stop_id=0)


def test_subsets_take_turns_and_the_recipe_alone_decides():
    data = recipe(subsets=("qa1", "qa2"), longest=5000)
    chosen, _ = choose_samples(Stories(data.seed), data)
    assert [sample.subset for sample in chosen[:4]] == ["qa1", "qa2", "qa1", "qa2"]
    assert data_hash(examples_of(data)) == data_hash(examples_of(data))
    assert data_hash(examples_of(data)) != data_hash(examples_of(replace(data, seed=5)))


def test_training_and_evaluation_seeds_give_other_stories():
    asked = list(Stories(0).samples("qa3", "1k", 200))
    trained = list(Stories(TRAINING_SEED).samples("qa3", "1k", 200))
    assert leakage(trained, fingerprints(asked)).shared == 0


def test_stories_that_recur_in_the_evaluation_are_refused_unless_told():
    asked = fingerprints(Stories(TRAINING_SEED).samples("qa1", "1k", 3))
    with pytest.raises(BadInput, match=r"share stories: 3 of 3 evaluation items recur among 40 training items"):
        choose_samples(Stories(TRAINING_SEED), recipe(), asked)
    kept, dropped = choose_samples(Stories(TRAINING_SEED), recipe(), asked, "allow")
    assert (len(kept), leakage(kept, asked).shared, dropped) == (40, 3, 0)
    left, dropped = choose_samples(Stories(TRAINING_SEED), recipe(), asked, "drop")
    assert (len(left), leakage(left, asked).shared, dropped) == (40, 0, 3)
    said = leakage(left, asked, dropped).describe()
    assert said == "3 training items that recur in 3 evaluation items were dropped; 40 remain."


def test_an_evaluation_with_the_training_seed_cannot_be_dropped_around():
    asked = fingerprints(Stories(TRAINING_SEED).samples("qa1", "1k", 200))
    with pytest.raises(BadInput, match="Most training items recur"):
        choose_samples(Stories(TRAINING_SEED), recipe(), asked, "drop")


def test_published_rows_are_drawn_from_all_lengths_that_are_named(tmp_path):
    for length in ("1k", "2k", "4k"):
        file = tmp_path / "data" / "qa1" / f"{length}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"input": f"{length} noise {i}.", "question": "Where is Mary?", "target": "garden"} for i in range(3)]
        file.write_text(json.dumps(rows))
    data = recipe(rows=("1k", "4k"), longest=4096)
    samples, _ = choose_samples(training(data, source=str(tmp_path)), data)
    assert [s.context for s in samples] == [f"{n} noise {i}." for i in range(3) for n in ("1k", "4k")]
    examples, _ = make_examples(samples, training(data, source=str(tmp_path)), Letters(), data, stop_id=0)
    assert len(examples) == 6


def test_of_published_rows_each_length_and_subset_gives_the_same_number(tmp_path):
    """As the paper's 1,000 rows each of 0k, 2k, 4k, 8k; a length that has fewer is not made up for by others."""
    for length, number in (("0k", 9), ("2k", 1), ("4k", 9)):
        for subset in ("qa1", "qa2"):
            file = tmp_path / subset / f"{length}.json"
            file.parent.mkdir(exist_ok=True)
            rows = [
                {"input": f"{length} {i}.", "question": "Where is Mary?", "target": "garden"} for i in range(number)
            ]
            file.write_text(json.dumps(rows))
    data = recipe(rows=("0k", "2k", "4k"), subsets=("qa1", "qa2"), samples=12, longest=4096)
    samples, _ = choose_samples(training(data, source=str(tmp_path)), data)
    counts = Counter((sample.subset, sample.metadata["published_length"]) for sample in samples)
    assert counts == {(subset, n): min(2, {"2k": 1}.get(n, 9)) for subset in ("qa1", "qa2") for n in ("0k", "2k", "4k")}


@pytest.mark.skipif(not BABI_FILES.is_dir(), reason="the bAbI text files are not beside this checkout")
def test_of_babi_files_training_reads_the_train_files_and_evaluation_the_test_files():
    data = recipe(subsets=("qa4",), samples=1000)
    trained, _ = choose_samples(training(data, facts=BABI_FILES), data)
    asked = read_babi(BABI_FILES, "qa4")
    assert [s.facts for s in trained] == [s.facts for s in read_babi(next(BABI_FILES.glob("qa4_*_train.txt")), "qa4")]
    assert leakage(trained, fingerprints(asked)).shared == 134


def test_a_fingerprint_covers_what_is_told_and_asked_and_nothing_else():
    told = Sample(
        task="babilong", subset="qa1", sample_id="1", story_id="1", question="Where is Mary? ", target="garden",
        facts=("Mary went to the garden.",),
    )  # fmt: skip
    same = replace(told, sample_id="2", question="Where is Mary?", seed=9)
    assert item_fingerprint(told) == item_fingerprint(same)
    for other in (
        replace(told, target="office"),
        replace(told, facts=(*told.facts, "John left.")),
        replace(told, facts=(), messages=({"role": "user", "content": "hello"},)),
        replace(told, facts=(), context="Noise. Mary went to the garden. More of it. John went to the garden."),
    ):
        assert item_fingerprint(other) != item_fingerprint(told)


def _published(folder, length, subset, stories, noise):
    """Write stories as rows of the published layout, each statement with background of its own behind it."""
    file = folder / subset / f"{length}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "input": " ".join(text for i, fact in enumerate(story.facts) for text in (fact, *[f"{noise} {i}."] * 3)),
            "question": f"{story.question} ",
            "target": story.target,
        }
        for story in stories
    ]
    file.write_text(json.dumps(rows))


@pytest.mark.parametrize("subset", ["qa1", "qa3", "qa4", "qa5", "qa8"])
def test_a_published_row_recurs_where_its_story_does_whatever_the_background_and_the_length(subset, tmp_path):
    stories = [questions.generate(subset, 0, index) for index in range(6)]
    _published(tmp_path / "train", "1k", subset, stories[:4], "A whale blows")
    _published(tmp_path / "asked", "2k", subset, stories[2:], "It rained in Oslo")
    data = recipe(subsets=(subset,), rows=("1k",), samples=4)
    trained, _ = choose_samples(training(data, source=str(tmp_path / "train")), data)
    asked = list(training(data, source=str(tmp_path / "asked")).samples(subset, "2k", 4))
    assert leakage(trained, fingerprints(asked)).shared == 2
    assert leakage(trained, fingerprints(stories)).shared == 4, "and so does the story itself"
    with pytest.raises(BadInput, match="2 of 4 evaluation items recur"):
        choose_samples(training(data, source=str(tmp_path / "train")), data, fingerprints(asked))


def test_rows_whose_statements_cannot_be_told_are_said_not_to_be_compared(tmp_path):
    stories = [questions.generate("qa15", 0, index) for index in range(3)]
    _published(tmp_path, "1k", "qa15", stories, "A whale blows")
    data = recipe(subsets=("qa15",), rows=("1k",), samples=3)
    trained, _ = choose_samples(training(data, source=str(tmp_path)), data)
    found = leakage(trained, fingerprints(stories))
    assert found.describe() == (
        "3 of 3 training items cannot be compared: what they state cannot be told from the text around it."
    )
    kept, dropped = choose_samples(training(data, source=str(tmp_path)), data, [None] * 3, "drop")
    assert (len(kept), dropped) == (3, 0)


def test_rows_without_background_are_compared_whatever_their_task(tmp_path):
    stories = [questions.generate("qa15", 0, index) for index in range(3)]
    file = tmp_path / "qa15" / "0k.json"
    file.parent.mkdir()
    rows = [{"input": " ".join(s.facts), "question": s.question, "target": s.target} for s in stories]
    file.write_text(json.dumps(rows))
    data = recipe(subsets=("qa15",), rows=("0k",), samples=3)
    trained, _ = choose_samples(training(data, source=str(tmp_path)), data)
    assert leakage(trained, fingerprints(stories)).shared == 3


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (
            Leakage(trained=1, evaluated=0, shared=0),
            "No evaluation was named to compare 1 training item with (--against).",
        ),
        (Leakage(trained=8, evaluated=1, shared=0), "0 of 1 evaluation item recur among 8 training items."),
        (
            Leakage(trained=4800, evaluated=100, shared=0, dropped=1),
            "1 training item that recurs in 100 evaluation items was dropped; 4,800 remain.",
        ),
        (
            Leakage(trained=8, evaluated=5, shared=1, evaluated_untold=2),
            "1 of 3 evaluation items recur among 8 training items. 2 of 5 evaluation items cannot be compared: what "
            "they state cannot be told from the text around it.",
        ),
    ],
)
def test_what_the_comparison_found_is_said_in_a_sentence(found, says):
    assert found.describe() == says


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DataRecipe(samples=0), "at least one subset and one sample"),
        (lambda: DataRecipe(shortest=9, longest=8), "from 9 to 8"),
        (lambda: examples_of(recipe(shortest=0, longest=20)), "None of 40 samples of babilong qa1 fits 20 tokens"),
    ],
)
def test_data_that_cannot_be_made_are_refused(make, says):
    with pytest.raises(BadInput, match=says):
        make()


@pytest.mark.skipif(not BABI_FILES.is_dir(), reason="the bAbI text files are not beside this checkout")
@pytest.mark.parametrize(("subset", "shared"), [("qa1", 2), ("qa3", 0), ("qa4", 134), ("qa17", 16), ("qa20", 119)])
def test_the_published_train_files_share_items_with_the_test_files(subset, shared):
    """Counted over the files of 1,000 questions; of the larger train file of qa4, 741 test items are known to recur."""
    files = {part: next(BABI_FILES.glob(f"{subset}_*_{part}.txt")) for part in ("train", "test")}
    asked = fingerprints(read_babi(files["test"], subset))
    found = leakage(read_babi(files["train"], subset), asked)
    assert (found.evaluated, found.shared) == (1000, shared)


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ({"longest": 0}, "The trained length, --longest, is 0 tokens; no sample fits"),
        ({"shortest": 600, "longest": 512}, "Training lengths run from 600 to 512; the first is the smaller one"),
    ],
)
def test_lengths_that_no_sample_has_are_refused_before_any_is_made(lengths, said):
    with pytest.raises(BadInput, match=said):
        DataRecipe(**lengths)
