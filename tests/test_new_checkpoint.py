"""The small random checkpoint: written the same every time, loaded like any other."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.new_checkpoint import write_checkpoint


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_equal_seeds_write_equal_files_and_others_do_not(tmp_path: Path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_checkpoint(tmp_path / name, seed=seed, window=512)
    first, second, other = (contents(tmp_path / name) for name in "abc")
    assert first == second
    assert {name for name in first if first[name] != other[name]} >= {"model.safetensors", "tokenizer.json"}


def test_it_loads_and_answers_in_transformers(checkpoint: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model, loading = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.config.vocab_size == len(tokenizer)
    ids = tokenizer("Mary went to the kitchen. Where is Mary?", return_tensors="pt").input_ids
    top = model(ids).logits[0, -1].topk(2).values
    assert top[0] - top[1] > 1e-3, "answers should not hang on the last bits of a sum"
    with torch.no_grad():
        swapped = model(torch.cat([ids[:, 3:6], ids[:, :3], ids[:, 6:]], dim=1)).logits[0, -1]
    assert not torch.allclose(swapped, model(ids).logits[0, -1], atol=1e-2), "answers should hang on positions"


def test_its_tokenizer_knows_the_tasks_words_and_gives_every_text_back(checkpoint: Path):
    encoder = Encoder.open(checkpoint)
    for word in ("kitchen", "Mary", "garden", "football"):
        assert len(encoder.encode_after(f" {word}")) == 1
    text = "Ünïcode, 12 emoji 🙂\n\n\ttabs  and   spaces"
    assert encoder.decode(encoder.encode_after(text)) == text


def test_its_template_wraps_a_conversation(checkpoint: Path):
    encoder = Encoder.open(checkpoint)
    rendered = encoder.render(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    )
    assert rendered == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert encoder.decode(encoder.encode_prompt(rendered)) == rendered
    assert len(encoder.encode_prompt("<|im_end|>")) == 1


def test_sizes_are_as_asked(tmp_path: Path):
    write_checkpoint(
        tmp_path / "a", window=100, hidden_size=96, num_layers=3, num_kv_heads=3, vocab_size=500, rope_theta=1e4
    )
    opened = Checkpoint.open(tmp_path / "a")
    assert (opened.window, opened.hidden_size, opened.num_layers, opened.num_kv_heads) == (100, 96, 3, 3)
    assert opened.vocab_size == 500
    assert opened.rope is not None
    assert opened.rope.theta == 1e4


def test_a_list_of_windows_is_refused(tmp_path: Path):
    said = CliRunner().invoke(main, ["new-checkpoint", str(tmp_path / "a"), "--window", "4k,8k"])
    assert said.exit_code == 2
    assert "'4k,8k' is not a number of tokens" in said.output
    assert not (tmp_path / "a").exists()


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(BadInput, match="not an empty folder"):
        write_checkpoint(tmp_path)
    with pytest.raises(BadInput, match="not an empty folder"):
        write_checkpoint(tmp_path / "note.txt")
    assert contents(tmp_path) == {"note.txt": b"mine"}


@pytest.mark.parametrize("sizes", [{"hidden_size": 48}, {"hidden_size": 0}, {"num_kv_heads": 3}, {"window": 0}])
def test_impossible_sizes_are_refused(tmp_path: Path, sizes: dict[str, int]):
    with pytest.raises(BadInput):
        write_checkpoint(tmp_path / "a", **sizes)
    assert not (tmp_path / "a").exists()


def test_a_full_disk_is_said_in_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from evalkit.models.new_checkpoint import write_checkpoint; from evalkit.errors import BadInput\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try: write_checkpoint(Path(sys.argv[1]), vocab_size=600)\n"
        "except BadInput as error: print(error)"
    )
    for num_bytes in (1_000, 20_000, 100_000):
        words = [sys.executable, "-c", code, str(tmp_path / "new"), str(num_bytes)]
        said = subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
        assert said.startswith(f"{tmp_path / 'new'} cannot be written ("), said
        assert said.count("\n") == 1
        assert not (tmp_path / "new").exists()


def test_what_a_kill_left_is_written_anew_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{")
    (folder / "config.json.17.tmp").write_text('{"architectures": [')
    write_checkpoint(folder, vocab_size=600)
    assert not list(folder.glob("*.tmp"))
    assert Checkpoint.open(folder).vocab_size <= 600
    with pytest.raises(BadInput, match="is not an empty folder"):
        write_checkpoint(folder, vocab_size=600)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("precious")
    with pytest.raises(BadInput, match="is not an empty folder"):
        write_checkpoint(tmp_path / "d")
    assert (tmp_path / "d" / "thesis.tex").read_text() == "precious"
