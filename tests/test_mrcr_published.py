"""Published MRCR rows, written here in the published layouts: both of openai/mrcr, and Google's CSV."""

import csv
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from evalkit.benchmarks.cards import load_card
from evalkit.benchmarks.mrcr.options import MRCROptions
from evalkit.benchmarks.mrcr.published import bin_label
from evalkit.benchmarks.mrcr.task import MRCR
from evalkit.errors import BadInput, ContextOverflow
from evalkit.models.encoder import Encoder
from tests.tiny_tokenizers import ALTERNATING, CHATML, tiny_tokenizer

CARD = load_card("mrcr")
WINDOW = 32_768


def words(text: str) -> int:
    return len(text.split())


def row(size: int = 5000, *, wanted: int = 2, needles: int = 2, **columns) -> dict:
    """A row of openai/mrcr with ``size`` words of filler."""
    request = {"role": "user", "content": "write a poem about tea"}
    messages = [{"role": "user", "content": "Examples: User: write a poem about tea\nAssistant: ..."}]
    for number in range(1, needles + 1):
        messages += [request, {"role": "assistant", "content": f"☕ poem {number} about tea"}]
    filler = " ".join(f"w{i}" for i in range(size))
    messages += [{"role": "user", "content": "write a song about salt"}, {"role": "assistant", "content": filler}]
    messages += [{"role": "user", "content": f"Prepend abcdefghij to poem {wanted}."}]
    values = {
        "prompt": json.dumps(messages),
        "answer": f"abcdefghij☕ poem {wanted} about tea",
        "random_string_to_prepend": "abcdefghij",
        "n_needles": needles,
        "desired_msg_index": 2 * wanted - 1,
        "total_messages": len(messages),
        "n_chars": sum(len(message["content"]) for message in messages),
        "date_added": "12-05-2025",
    }
    return {name: value for name, value in (values | columns).items() if value is not None}


def write_parquet(path: Path, rows: list[dict]) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read_parquet(path: Path) -> list[dict]:
    from pyarrow.parquet import read_table

    return read_table(path).to_pylist()


def read(folder: Path | str, length: str, subset: str = "2needle", card=CARD, count: int = 100) -> list:
    return [*MRCR(card, MRCROptions(source=str(folder)), count_tokens=words).samples(subset, length, count)]


@pytest.fixture
def current(tmp_path: Path) -> Path:
    folder = tmp_path / "mrcr"
    write_parquet(folder / "2needle" / "2needle_0.parquet", [row(5000), row(9000), row(5001)])
    write_parquet(folder / "2needle" / "2needle_1.parquet", [row(5002, wanted=1), row(30_000)])
    write_parquet(folder / "8needle" / "8needle_0.parquet", [row(5000, needles=8, wanted=8)])
    return folder


# Rows and bins


@pytest.mark.parametrize(("rows", "trained"), [(86, 60), (100, 70), (1, 0)])
def test_a_split_parts_each_bin_as_its_percent_and_seed_say(tmp_path, rows, trained):
    """The paper's sizes: of 86 rows of 4K to 8K 60 are trained on and 26 asked, of 100 of a longer bin 30 are asked."""
    write_parquet(tmp_path / "2needle.parquet", [row(5000) for _ in range(rows)] + [row(9000) for _ in range(4)])

    def ids(split: str, part: str, length: str = "8k") -> list[str]:
        options = MRCROptions(source=str(tmp_path), split=split)
        benchmark = MRCR(CARD, options, part=part, count_tokens=words)
        return [sample.sample_id for sample in benchmark.samples("2needle", length, 1000)]

    train, test = ids("70/30:42", "train"), ids("70/30:42", "test")
    assert (len(train), len(test)) == (trained, rows - trained)
    assert sorted(train + test) == [f"{number:05d}" for number in range(rows)]
    assert train == sorted(train)
    assert ids("70/30:42", "train") == train
    assert (len(ids("70/30:42", "train", "16k")), len(ids("70/30:42", "test", "16k"))) == (2, 2)
    if rows > 1:
        assert ids("70/30:43", "train") != train


def test_rows_can_be_binned_by_the_prompt_that_the_checkpoint_is_asked(tmp_path):
    """As the paper bins them: another tokenizer, and its template, move rows over an edge."""
    encoder = Encoder(tiny_tokenizer("llama3", template=CHATML), chat=True)
    file = write_parquet(tmp_path / "2needle.parquet", [row(1500 + 20 * number, bin="4k-8k") for number in range(100)])
    sizes = [encoder.count_tokens(json.loads(one["prompt"])) for one in read_parquet(file)]
    assert min(sizes) < 8192 < max(sizes)
    options = MRCROptions(source=str(tmp_path), bins="prompt")
    benchmark = MRCR(CARD, options, count_tokens=encoder.count_tokens)
    samples = list(benchmark.samples("2needle", "8k", 100))
    assert len(samples) == sum(4096 <= size <= 8192 for size in sizes)
    for sample in samples:
        assert 4096 <= len(benchmark.prompt(sample, "8k", encoder, WINDOW).token_ids) <= 8192
    assert benchmark.recipe()["bins"] == "the prompt's tokens"
    assert len(read(tmp_path, "8k", count=200)) == 100


def test_bins_that_a_row_brings_are_not_counted_anew(tmp_path):
    write_csv(tmp_path / "mrcr_v2p1_2needle_in_(4096,8192).csv", [google_row(1)])
    with pytest.raises(BadInput, match=r"bring their bins \(context_len\); leave out --bins prompt"):
        MRCR(CARD, MRCROptions(source=str(tmp_path), bins="prompt"), count_tokens=words)


def test_questions_about_one_conversation_are_not_parted(tmp_path):
    conversations = [f"User: poem {number}\nAssistant: ...\n" for number in range(10)]
    write_csv(
        tmp_path / "mrcr_v2p1_2needle_in_(4096,8192).csv",
        [google_row(k) | {"queries": f"{text}User: question {k}"} for text in conversations for k in range(3)],
    )
    parts = {}
    for part in ("train", "test"):
        benchmark = MRCR(CARD, MRCROptions(source=str(tmp_path), split="50/50:0"), part=part)
        parts[part] = [sample.story_id for sample in benchmark.samples("2needle", "8k", 100)]
        assert len(parts[part]) == 15
    assert not set(parts["train"]) & set(parts["test"])


def test_the_part_that_is_asked_is_part_of_a_runs_identity(current):
    recipes = [
        MRCR(CARD, MRCROptions(source=str(current), split=split), part=part, count_tokens=words).recipe()
        for split, part in ((None, "test"), ("70/30:42", "test"), ("70/30:42", "train"), ("70/30:1", "test"))
    ]
    assert len({json.dumps(recipe) for recipe in recipes}) == 4
    assert "split" not in recipes[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": "rows", "split": "70/40:1"}, "'70/40:1'; write two percents that make 100"),
        ({"source": "rows", "split": "70:1"}, "like 70/30:42"),
        ({"split": "70/30:42"}, "generated ones are parted by their seeds"),
    ],
)
def test_a_split_that_is_none_is_refused(options, says):
    with pytest.raises(BadInput, match=says):
        MRCROptions(**options)


def test_rows_of_the_current_layout_are_read_in_order_and_keep_their_number(current):
    samples = read(current, "8k")
    assert [sample.sample_id for sample in samples] == ["00000", "00002", "00003"]
    assert [sample.metadata["wanted"] for sample in samples] == [2, 2, 1]
    assert [sample.sample_id for sample in read(current, "16k")] == ["00001"]
    assert [sample.sample_id for sample in read(current, "8k", count=2)] == ["00000", "00002"]
    (sample,) = read(current, "8k", "8needle")
    assert sample.metadata["num_needles"] == 8
    assert sample.supporting == (7,)
    assert sample.metadata == {
        "rule": "openai",
        "prefix": "abcdefghij",
        "wanted": 8,
        "num_needles": 8,
        "published_length": "8k",
        "date_added": "12-05-2025",
    }
    assert sample.target == "abcdefghij☕ poem 8 about tea"


def test_the_old_layout_gives_the_same_samples(current, tmp_path):
    old = tmp_path / "old"
    write_parquet(old / "2needle.parquet", [row(5000), row(9000), row(5001), row(5002, wanted=1), row(30_000)])
    assert read(old, "8k") == read(current, "8k")


def test_bins_are_the_published_ones():
    edges = {4096: "8k", 8192: "8k", 8193: "16k", 131_072: "128k", 131_073: "256k", 1_048_576: "1M"}
    assert {tokens: bin_label(tokens) for tokens in edges} == edges
    assert bin_label(4095) == "4k", "a row below the published bins falls into none of them"


@pytest.mark.parametrize("label", ["8k", "8192", "4096-8192", "(4096, 8192]", 8192, 6000])
def test_a_row_that_names_its_bin_is_not_counted(tmp_path, label):
    write_parquet(tmp_path / "2needle.parquet", [row(100, bin=label)])
    assert len(read(tmp_path, "8k")) == 1
    with pytest.raises(BadInput, match="no 2needle rows in a bin that ends at 16k; the published bins end at 8k, 16k"):
        read(tmp_path, "16k")


def test_bins_are_counted_in_o200k_where_tiktoken_has_the_encoding_on_this_machine(current, monkeypatch, tmp_path):
    encoding = SimpleNamespace(encode_ordinary=lambda text: text.split() * 2)
    tiktoken = ModuleType("tiktoken")
    tiktoken.get_encoding = {"o200k_base": encoding}.__getitem__
    monkeypatch.setitem(sys.modules, "tiktoken", tiktoken)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert (
        MRCR(CARD, MRCROptions(source=str(current)), count_tokens=words).recipe()["bins"] == "the checkpoint's tokens"
    )
    (tmp_path / "fb374d419588a4632f3f557e76b4b70aebbca790").write_text("")
    assert MRCR(CARD, MRCROptions(source=str(current)), count_tokens=words).recipe()["bins"] == "o200k_base"
    assert [sample.sample_id for sample in read(current, "16k")] == ["00000", "00002", "00003"]


def test_without_any_count_the_bins_cannot_be_told(current, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(BadInput, match="install tiktoken"):
        MRCR(CARD, MRCROptions(source=str(current))).recipe()


# Revisions


def test_local_files_are_named_by_their_hash_or_by_the_revision_they_are(current):
    recipe = MRCR(CARD, MRCROptions(source=str(current)), count_tokens=words).recipe()
    assert recipe["source"].startswith("local files, sha256 ")
    write_parquet(current / "8needle" / "8needle_0.parquet", [row(5003, needles=8)])
    changed = MRCR(CARD, MRCROptions(source=str(current)), count_tokens=words).recipe()
    assert changed["source"] != recipe["source"]
    hashes = {
        str(path.relative_to(current)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in current.rglob("*.parquet")
    }
    pinned = dataclasses.replace(CARD, settings={**CARD.settings, "sha256": hashes})
    source = MRCR(pinned, MRCROptions(source=str(current)), count_tokens=words).recipe()["source"]
    assert source == "openai/mrcr@f4c69fae7cf81f7ca26b9fee34b392a50f6b8a1d"


@pytest.mark.parametrize("layout", ["current", "old"])
def test_the_hub_is_read_at_the_cards_revision_in_either_layout(layout, current, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("evalkit.benchmarks.mrcr.published._o200k_counter", lambda **_: None)
    if layout == "old":
        write_parquet(tmp_path / "old" / "2needle.parquet", [row(5000), row(5001)])
    folder = current if layout == "current" else tmp_path / "old"
    card = dataclasses.replace(CARD, source={"hub": {"id": str(folder), "revision": "abc"}})
    samples = read("hub", "8k", card=card)
    assert len(samples) == (3 if layout == "current" else 2)
    assert samples == read(folder, "8k")[: len(samples)]
    assert MRCR(card, MRCROptions(source="hub"), count_tokens=words).recipe()["source"] == f"{folder}@abc"


def test_a_hub_that_cannot_be_reached_is_told_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("offline")))
    with pytest.raises(BadInput, match=r"openai/mrcr \(revision f4c69fae.*offline.*--source DIR"):
        read("hub", "8k")


# Prompts


def test_the_double_user_turn_is_asked_as_published_and_needles_are_found(current):
    encoder = Encoder(tiny_tokenizer("gpt2", template=CHATML), chat=True)
    benchmark = MRCR(CARD, MRCROptions(source=str(current)), count_tokens=words)
    sample = next(benchmark.samples("2needle", "8k", 1))
    prompt = benchmark.prompt(sample, "8k", encoder, WINDOW)
    text = encoder.decode(prompt.token_ids)
    assert text.count("<|im_start|>user") == 5
    assert "Assistant: ...<|im_end|>\n<|im_start|>user\nwrite a poem about tea<|im_end|>" in text
    for position, needle in zip(prompt.fact_positions, sample.facts, strict=True):
        assert encoder.decode(prompt.token_ids[position:]).startswith(needle)
    assert prompt.max_new_tokens == len(encoder.encode_prompt(sample.target)) + CARD.settings["answer_margin"]


def test_a_template_that_demands_alternation_refuses_the_row_in_words(current):
    encoder = Encoder(tiny_tokenizer("gpt2", template=ALTERNATING), chat=True)
    benchmark = MRCR(CARD, MRCROptions(source=str(current)), count_tokens=words)
    with pytest.raises(BadInput, match=r"chat template refuses .*roles u u a.*must alternate"):
        benchmark.prompt(next(benchmark.samples("2needle", "8k", 1)), "8k", encoder, WINDOW)


def test_the_window_bounds_a_published_row_and_not_its_label(current):
    encoder = Encoder(tiny_tokenizer("gpt2", template=CHATML), chat=True)
    benchmark = MRCR(CARD, MRCROptions(source=str(current)), count_tokens=words)
    sample = next(benchmark.samples("2needle", "8k", 1))
    assert len(benchmark.prompt(sample, "8k", encoder, WINDOW).token_ids) > 8192
    with pytest.raises(ContextOverflow, match=r"[\d,]+ prompt tokens \+ \d+ for the answer > 9,000\."):
        benchmark.prompt(sample, "8k", encoder, 9000)


# Google's rows


def write_csv(path: Path, rows: list[dict], cut: int | None = None) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    return path


def google_row(question: int, context_len: int = 8000) -> dict:
    text = "User: Write a poem about tea in a calm style.\n\nAssistant: poem one\n\n" + "x" * 200_000
    return {
        "queries": f"{text}User: Prepend a1b2c3d4e5f6 to poem {question}.\n\nAssistant:",
        "answer": "a1b2c3d4e5f6 poem one",
        "context_len": context_len,
        "view_ops": f"Prepend a1b2c3d4e5f6 to poem {question}.",
    }


def test_googles_rows_are_one_message_scored_by_googles_rule(tmp_path):
    path = write_csv(
        tmp_path / "mrcr_v2p1_8needle_upto_128K_dynamic_fewshot_text_style_fast.csv",
        [google_row(1), google_row(2), google_row(3, context_len=9000)],
    )
    for source in (path, tmp_path):
        samples = read(source, "8k", "8needle")
        assert [sample.sample_id for sample in samples] == ["00000", "00001"]
        assert samples[0].story_id == samples[1].story_id, "they share one transcript"
        assert [message["role"] for message in samples[0].messages] == ["user"]
        assert samples[0].metadata == {
            "rule": "google",
            "prefix": "a1b2c3d4e5f6",
            "num_needles": 8,
            "published_length": "8k",
            "context_len": 8000,
        }
    assert MRCR(CARD, MRCROptions(source=str(path))).recipe()["bins"] == "context_len"
    encoder = Encoder(tiny_tokenizer("gpt2", template=CHATML), chat=True)
    prompt = MRCR(CARD, MRCROptions(source=str(path))).prompt(samples[0], "8k", encoder, 10**6)
    assert prompt.fact_positions == ()
    assert encoder.decode(prompt.token_ids).count("<|im_start|>user") == 1


# Bad input


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "[{"}, r"2needle.parquet, row 1: column 'prompt' is not JSON"),
        ({"prompt": '{"role": 1}'}, r"row 1: column 'prompt' is not a JSON list"),
        ({"prompt": '[{"role": "user", "content": 3}]'}, r"row 1: .*not text"),
        ({"answer": None}, r"row 1: no text in column 'answer'"),
        ({"desired_msg_index": 99}, r"row 1: desired_msg_index is 99, and there are 8 messages"),
        ({"desired_msg_index": None}, r"row 1: no whole number in column 'desired_msg_index'"),
        ({"bin": "long"}, r"row 1: 'long' in column 'bin' names no length"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, columns, message):
    good = row(9000, bin="16k") if "bin" in columns else row(9000)
    write_parquet(tmp_path / "2needle.parquet", [good, row(5000, **columns)])
    if "prompt" in columns:  # too short to be counted, so the row names its bin
        write_parquet(tmp_path / "2needle.parquet", [row(9000, bin="16k"), row(5000, **columns, bin="8k")])
    with pytest.raises(BadInput, match=message):
        read(tmp_path, "8k")


@pytest.mark.parametrize(
    ("faulty", "says"),
    [
        (row(5000, needles=3), "row 1 asks about occurs 3 x in it, not 2 x"),
        (row(5000, answer="abcdefghij☕ poem 1 about tea"), "row 1 has an answer other than random_string_to_prepend"),
        (row(5000, answer="☕ poem 2 about tea"), "row 1 has an answer other than random_string_to_prepend"),
        (row(30_000, needles=1, wanted=1), "row 1 asks about occurs 1 x in it, not 2 x"),
    ],
)
def test_a_file_with_rows_that_contradict_themselves_is_refused_whole(tmp_path, faulty, says):
    """As those of before December 2025: also where the bin that is asked for holds none of them."""
    write_parquet(tmp_path / "2needle.parquet", [row(5000), faulty, row(5001), faulty])
    for length in ("8k", "16k"):
        with pytest.raises(BadInput) as refused:
            read(tmp_path, length)
        assert f"2 of 4 2needle rows of --source {tmp_path} contradict themselves" in str(refused.value)
        assert says in str(refused.value)
        assert "use openai/mrcr@f4c69fae7cf81f7ca26b9fee34b392a50f6b8a1d (--source hub)." in str(refused.value)


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    (tmp_path / "2needle.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(BadInput, match=r"2needle.parquet cannot be read as parquet from row 0 on"):
        read(tmp_path, "8k")


def test_a_mark_of_utf_8_in_front_of_a_csv_is_no_part_of_its_first_column(tmp_path):
    path = write_csv(tmp_path / "8needle.csv", [google_row(1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read(path, "8k", "8needle")) == 1


@pytest.mark.parametrize(
    ("rows", "cut", "message"),
    [
        (
            [google_row(1), google_row(2)],
            100,
            r"2needle.csv cannot be read as CSV from line 9 on: unexpected end of data",
        ),
        ([google_row(1), {**google_row(3), "context_len": "many"}], 0, r"line 9: no whole number in .*'many'"),
        ([{"queries": "a", "context_len": 8000}], 0, r"2needle.csv, line 2: no text in column 'answer'"),
        ([{"queries": "a", "answer": "b", "context_len": 8000}], 7, r"line 2: 3 columns were expected"),
    ],
)
def test_malformed_csv_is_named_with_its_line(tmp_path, rows, cut, message):
    write_csv(tmp_path / "mrcr_v2p1_2needle.csv", rows, cut)
    with pytest.raises(BadInput, match=message):
        read(tmp_path, "8k")


def test_a_folder_without_published_rows_and_a_control_over_them_are_refused(tmp_path, current):
    with pytest.raises(BadInput, match=r"has no published MRCR rows: expected 2needle/2needle_0\.parquet"):
        MRCR(CARD, MRCROptions(source=str(tmp_path / "nothing")))
    with pytest.raises(BadInput, match="drop --control facts-only"):
        MRCR(CARD, MRCROptions(source=str(current), control="facts-only"))
