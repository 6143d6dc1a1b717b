"""What it takes to build training prompts: seconds of one core for each thousand, for generated and published rows.

Needs the tokenizer of a small checkpoint, which is written into a temporary folder; loads no weights.
"""

import json
import tempfile
import time
from pathlib import Path

from evalkit.benchmarks import open_benchmark
from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.mrcr.options import MRCROptions
from evalkit.benchmarks.options import TaskOptions
from evalkit.models.encoder import Encoder
from evalkit.models.new_checkpoint import write_checkpoint
from evalkit.train.data import DataRecipe, choose_samples, make_examples


def main() -> None:
    """Print a line for each kind of data."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, rows = Path(folder) / "checkpoint", Path(folder) / "rows"
        write_checkpoint(checkpoint, window=16_384, num_layers=1)
        _write_rows(rows / "qa1")
        generated, published = BABILongOptions(), BABILongOptions(source=str(rows))
        measure(checkpoint, DataRecipe(subsets=("qa1",), samples=500, shortest=1024, longest=1024), generated)
        measure(checkpoint, DataRecipe(subsets=("qa3",), samples=200, shortest=0, longest=8192), generated)
        measure(checkpoint, DataRecipe(subsets=("qa1",), samples=600, rows=("1k", "2k", "4k")), published)
        measure(checkpoint, DataRecipe(task="mrcr", subsets=("2needle",), samples=60, shortest=4096), MRCROptions())


def measure(checkpoint: Path, recipe: DataRecipe, options: TaskOptions) -> None:
    """Build the prompts twice and print what the second time took: the first tokenizes the background."""
    encoder = Encoder.open(checkpoint)
    for _ in range(2):
        benchmark = open_benchmark(
            recipe.task, options, seed=recipe.seed, part="train", count_tokens=encoder.count_tokens
        )
        samples, _ = choose_samples(benchmark, recipe)
        start = time.process_time()
        examples, _ = make_examples(samples, benchmark, encoder, recipe, stop_id=0)
        seconds = time.process_time() - start
    what = f"{recipe.task} {','.join(recipe.subsets)} {','.join(recipe.rows)}"
    tokens = sum(len(example.prompt_ids) for example in examples) / len(examples)
    print(f"{what:24} {tokens:7,.0f} tokens each  {1000 * seconds / len(examples):7.2f} s per 1,000 prompts")


def _write_rows(folder: Path) -> None:
    folder.mkdir(parents=True)
    for label, sentences in (("1k", 60), ("2k", 120), ("4k", 240)):
        text = " ".join(f"The lamp of room {i} was old." for i in range(sentences))
        rows = [{"input": f"{i} {text}", "question": "Where is Mary?", "target": "garden"} for i in range(200)]
        (folder / f"{label}.json").write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
