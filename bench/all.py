"""Every comparison of speed in one run: the two sides of a pair take turns, and what counts is the ratio.

    python bench/all.py [--quick] [--only prompts,store] [--model CKPT] [--write]

Each pair takes five turns, and each turn gives a ratio of its own, so that other work on the machine slows down both
sides; printed is the median ratio with the lowest and the highest. --quick shows that everything works, on
small inputs; --write puts the table into bench/README.md. What needs vLLM or Ray is left out where they are missing;
vLLM's pairs ask --model, by default a small random one.
Each pair has a process of its own, whose memory is shown.
"""

import argparse
import difflib
import json
import os
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.babilong.task import BABILong
from evalkit.benchmarks.cards import load_card
from evalkit.machine import describe
from evalkit.models.backends import Backend
from evalkit.models.backends.hf import HFBackend, HFOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.new_checkpoint import write_checkpoint
from evalkit.models.rope.served import RopeRequest, served_rope
from evalkit.records import lines
from evalkit.records.folder import RunFolder
from evalkit.types import Prediction, Prompt

TURNS = 5
_MODEL = "EVALKIT_BENCH_MODEL"
"""Says to the process of a pair what --model says."""
_START, _END = "<!-- bench/all.py -->", "<!-- end -->"
Sides = tuple[Callable[[], object], Callable[[], object]]


class Pair(NamedTuple):
    """Two ways to the same end. The ratio is the time of the first over that of the second."""

    name: str
    what: str
    sides: Callable[[Path, bool], AbstractContextManager[Sides]]
    """Of a scratch folder and whether it should be quick."""
    needs: str = ""
    """A package that may be missing."""
    minutes: bool = False
    """Too long for --quick whatever its input: every turn starts Ray."""


def tiny(folder: Path, window: int = 4096) -> Path:
    """Return a small random checkpoint, written once."""
    if not (folder / f"tiny-{window}").exists():
        write_checkpoint(folder / f"tiny-{window}", window=window)
    return folder / f"tiny-{window}"


def babilong_prompts(checkpoint: Path, length: str, samples: int, **options: Any) -> list[Prompt]:
    benchmark, encoder = BABILong(load_card("babilong"), BABILongOptions(**options)), Encoder.open(checkpoint)
    return [benchmark.prompt(s, length, encoder, 10**9) for s in benchmark.samples("qa1", length, samples)]


def hf(checkpoint: Path, length: int) -> HFBackend:
    opened = Checkpoint.open(checkpoint)
    backend = HFBackend(opened, Encoder.open(checkpoint).tokenizer, HFOptions())
    backend.serve(served_rope(opened, RopeRequest(), length), (), length)
    return backend


def predictions(number: int) -> Iterator[Prediction]:
    for i in range(number):
        yield Prediction(
            task="babilong",
            subset=f"qa{1 + i % 5}",
            length="4k",
            sample_id=f"{i // 5:06d}",
            story_id=f"{i // 5:06d}",
            question="Where is Mary?",
            target="garden",
            prompt_tokens=4000,
            prompt_sha256=f"{i:064x}",
            max_new_tokens=20,
            fact_positions=(17, 1234, 2345),
            output="Mary is in the garden.",
            output_tokens=6,
            finish_reason="stop",
            metadata={"facts": ["Mary went to the garden."] * 6, "supporting": [1, 2], "tags": {"facts": 6, "hops": 2}},
        )


@contextmanager
def prompts(scratch: Path, quick: bool) -> Iterator[Sides]:
    length, number = ("4k", 20) if quick else ("128k", 10)
    benchmark, encoder = BABILong(load_card("babilong")), Encoder.open(tiny(scratch))
    samples = list(benchmark.samples("qa3", length, number))
    texts = [encoder.decode(benchmark.prompt(sample, length, encoder, 10**9).token_ids) for sample in samples]
    yield (
        lambda: [encoder.encode_prompt(text) for text in texts],
        lambda: [benchmark.prompt(sample, length, encoder, 10**9) for sample in samples],
    )


def one_cell(scratch: Path, model: Path, samples: int) -> tuple[Callable[[Backend], None], list[Prompt]]:
    """Return what a run does with a backend, prompts built and each answer forced to the disk, and the prompts."""
    from evalkit.runs.answers import Ask, predictions
    from evalkit.runs.config import run_config
    from evalkit.runs.plan import make_plan

    asked = {"model": str(model), "task": "babilong", "lengths": ["1k"], "subsets": ["qa1"], "backend": "hf"}
    plan = make_plan(run_config({**asked, "samples": samples}))
    (cell,) = plan.cells(["1k"])
    folders = (scratch / f"{samples} of {model.name}-{number}" for number in count())

    def answer(backend: Backend) -> None:
        asks = (Ask(sample, "1k") for sample in plan.samples_of(cell))
        with RunFolder.start(next(folders), arm="a", config={}, fingerprint={}, provenance={}) as folder:
            for prediction in predictions(plan, backend, asks):
                if prediction.error is not None:
                    raise SystemExit(f"bench: {prediction.error}")
                folder.append(prediction)

    return answer, [plan.build(sample, "1k") for sample in plan.samples_of(cell)]


@contextmanager
def harness_hf(scratch: Path, quick: bool) -> Iterator[Sides]:
    answer, built = one_cell(scratch, tiny(scratch), 10 if quick else 100)
    with closing(hf(tiny(scratch), 4096)) as backend:
        yield lambda: answer(backend), lambda: list(backend.generate(built))


@contextmanager
def questions(scratch: Path, quick: bool) -> Iterator[Sides]:
    built = babilong_prompts(tiny(scratch), "4k", 4 if quick else 40, questions_per_context=4)
    with closing(hf(tiny(scratch), 4096)) as backend:
        yield (
            lambda: [list(backend.generate([prompt])) for prompt in built],
            lambda: list(backend.generate(built)),
        )


@contextmanager
def likeness(scratch: Path, quick: bool) -> Iterator[Sides]:
    from evalkit.benchmarks.mrcr.scorers import SequenceMatcher

    rng = random.Random(0)
    letters = string.ascii_letters + string.digits + string.punctuation
    frequent = [1 / rank for rank, _ in enumerate(letters, 1)]  # about as in prose
    texts = ["".join(rng.choices(letters, frequent, k=2500)) for _ in range(10 if quick else 200)]
    replies = ["".join(c if rng.random() < 0.9 else rng.choice(letters) for c in text) for text in texts]

    def graded(matcher: type[difflib.SequenceMatcher[str]]) -> list[float]:
        return [matcher(None, reply, text).ratio() for reply, text in zip(replies, texts, strict=True)]

    assert graded(SequenceMatcher) == graded(difflib.SequenceMatcher)
    yield lambda: graded(difflib.SequenceMatcher), lambda: graded(SequenceMatcher)


@contextmanager
def store(scratch: Path, quick: bool) -> Iterator[Sides]:
    some = list(predictions(200 if quick else 2000))
    encoded = [lines.encode(prediction) for prediction in some]
    names = count()

    def bare() -> None:
        with (scratch / f"bare-{next(names)}").open("ab", buffering=0) as file:
            for line in encoded:
                file.write(line)
                os.fsync(file.fileno())

    def folder() -> None:
        path = scratch / f"store-{next(names)}"
        with RunFolder.start(path, arm="a", config={}, fingerprint={}, provenance={}) as opened:
            for prediction in some:
                opened.append(prediction)

    yield folder, bare


def large_folder(scratch: Path, quick: bool) -> Path:
    """Return a folder of many answers (20,000 or 1,000,000), written once."""
    path = scratch / "large"
    if not path.exists():
        with RunFolder.start(
            path, arm="a", config={"task": "babilong"}, fingerprint={"card": "babilong"}, provenance={}
        ) as folder:
            part: list[Prediction] = []
            for prediction in predictions(20_000 if quick else 1_000_000):
                part.append(prediction)
                if len(part) == 20_000:
                    folder.extend(part)
                    part = []
    return path


@contextmanager
def resume(scratch: Path, quick: bool) -> Iterator[Sides]:
    path = large_folder(scratch, quick)

    def bare() -> None:
        with (path / "predictions.jsonl").open("rb") as file:
            for line in file:
                zlib.crc32(line)
                json.loads(line)

    yield lambda: len(RunFolder.open(path).recorded()), bare


@contextmanager
def report(scratch: Path, quick: bool) -> Iterator[Sides]:
    import pyarrow.parquet as pq

    from evalkit.records.scoring import score_folder
    from evalkit.report.load import load_runs

    path = large_folder(scratch, quick)
    score_folder(RunFolder.open(path))
    yield lambda: load_runs([path]), lambda: pq.read_table(path / "scores.parquet").to_pandas()


@contextmanager
def help_page(scratch: Path, quick: bool) -> Iterator[Sides]:
    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    yield lambda: python("-m", "evalkit", "--help"), lambda: python("-c", "import click")


def asked_of_vllm(scratch: Path) -> Checkpoint:
    return Checkpoint.open(Path(os.environ.get(_MODEL) or tiny(scratch, 1024)))


@contextmanager
def harness_vllm(scratch: Path, quick: bool) -> Iterator[Sides]:
    import engines  # beside this file, needs vLLM

    checkpoint = asked_of_vllm(scratch)
    answer, built = one_cell(scratch, checkpoint.path, 20 if quick else 200)
    backend = engines.VLLMBackend(checkpoint, Encoder.open(checkpoint.path).tokenizer, _engine_options())
    backend.serve(served_rope(checkpoint, RopeRequest(), 1024), (), 1024)
    with closing(backend):
        yield (
            lambda: engines.with_empty_cache(backend, answer),
            lambda: engines.with_empty_cache(backend, lambda _: engines.ask_bare(backend, built)),
        )


@contextmanager
def in_flight(scratch: Path, quick: bool) -> Iterator[Sides]:
    import engines

    from evalkit.models.backends.server import ServerBackend, ServerOptions

    checkpoint = asked_of_vllm(scratch)
    answer, _ = one_cell(scratch, checkpoint.path, 16 if quick else 96)
    url, process = engines.serve(checkpoint, 1024, _engine_options())

    def opened(concurrency: int) -> ServerBackend:
        options = ServerOptions(base_url=(url,), concurrency=concurrency)
        server = ServerBackend(checkpoint, Encoder.open(checkpoint.path), options, groups=[("1k",)])
        server.serve(served_rope(checkpoint, RopeRequest(), 1024), ("1k",), 1024)
        return server

    try:
        with closing(opened(1)) as one, closing(opened(32)) as many:
            yield lambda: answer(one), lambda: answer(many)
    finally:
        process.terminate()
        process.wait()


def _engine_options() -> Any:
    from evalkit.models.backends.vllm.engine import VLLMOptions

    return VLLMOptions(kv_cache_memory_bytes=2**30)


@contextmanager
def replicas(scratch: Path, quick: bool) -> Iterator[Sides]:
    from evalkit.runs.config import run_config
    from evalkit.runs.plan import make_plan
    from evalkit.runs.run import run

    asked = {"model": str(tiny(scratch)), "task": "babilong", "lengths": ["4k"], "subsets": ["qa1"], "backend": "hf"}
    config, numbers = run_config({**asked, "samples": 8 if quick else 200}), count()

    def ask(engines: int) -> None:
        run(make_plan(replace(config, replicas=engines, out=scratch / f"replicas-{next(numbers)}")))

    yield lambda: ask(1), lambda: ask(2)


PAIRS = (
    Pair("prompts", "tokenizing a prompt anew / assembling it", prompts),
    Pair("harness-hf", "building, answering and recording / the bare hf backend", harness_hf),
    Pair("questions", "4 questions, 4 prefills / 4 questions, 1 prefill (hf)", questions),
    Pair("likeness", "difflib / cdifflib, texts of 2,500 characters", likeness, "cdifflib"),
    Pair("store", "recording answers / bare writes, each forced to the disk", store),
    Pair("resume", "taking up a large folder / reading its lines as JSON", resume),
    Pair("report", "loading a large run for a report / reading its Parquet file", report),
    Pair("help", "evalkit --help / a bare Python with click", help_page),
    Pair("harness-vllm", "building, answering and recording / the bare vLLM engine", harness_vllm, "vllm"),
    Pair("in-flight", "a run, one request at a time / 32 in flight (vLLM's server)", in_flight, "vllm"),
    Pair("replicas", "one engine / two engines on Ray, starts included", replicas, "ray", minutes=True),
)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(pair: Pair, scratch: Path, quick: bool) -> dict[str, Any]:
    """Let the sides of a pair take turns, each being first as often as the other; a first turn is not counted."""
    with pair.sides(scratch, quick) as sides:
        turns = []
        for turn in range(-1, TURNS):
            order = (0, 1) if turn % 2 else (1, 0)
            taken = dict(sorted((side, seconds(sides[side])) for side in order))
            if turn >= 0:
                turns.append((taken[0], taken[1]))
    ratios = [first / second for first, second in turns]
    first, second = (statistics.median(side) for side in zip(*turns, strict=True))
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "s": (first, second)}


def measured_apart(pair: Pair, scratch: Path, quick: bool) -> dict[str, Any]:
    """Measure a pair in a process of its own, whose memory is the pair's."""
    command = [sys.executable, __file__, "--one", pair.name, "--scratch", str(scratch), *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or ["it failed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table(rows: list[tuple[Pair, dict[str, Any]]], quick: bool) -> str:
    when = f"load {os.getloadavg()[0]:.0f}, {date.today().isoformat()}{', --quick' if quick else ''}"
    lines = [
        f"{describe()}, {when}; medians of {TURNS} turns, lowest and highest in brackets.",
        "",
        "| pair | first / second | ratio | seconds | peak MiB |",
        "|---|---|---|---|---|",
    ]
    for pair, found in rows:
        if "missing" in found:
            lines.append(f"| {pair.name} | {pair.what} | not measured: {found['missing'].replace('|', '/')} | | |")
        else:
            ratio = f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
            first, second = found["s"]
            lines.append(f"| {pair.name} | {pair.what} | {ratio} | {first:.3g}, {second:.3g} | {found['mib']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help=f"of {', '.join(pair.name for pair in PAIRS)}")
    parser.add_argument("--model", type=Path, help="for vLLM's pairs")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = [name for name in arguments.only.split(",") if name]
    if unknown := set(names) - {pair.name for pair in PAIRS}:
        raise SystemExit(f"bench: there is no pair {min(unknown)!r}; see --help.")
    if arguments.one:
        import resource

        pair = next(pair for pair in PAIRS if pair.name == arguments.one)
        found = measure(pair, arguments.scratch, arguments.quick)
        print(json.dumps({**found, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}))
        return
    if arguments.model:
        os.environ[_MODEL] = str(arguments.model.resolve())
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["EVALKIT_CACHE"] = f"{scratch}/cache"
        for pair in [pair for pair in PAIRS if pair.name in names or not names]:
            missing = f"{pair.needs} is not installed" if pair.needs and find_spec(pair.needs) is None else ""
            missing = missing or ("too long for --quick" if pair.minutes and arguments.quick else "")
            found = {"missing": missing} if missing else measured_apart(pair, Path(scratch), arguments.quick)
            rows.append((pair, found))
            print(f"{pair.name}: {rows[-1][1]}", file=sys.stderr, flush=True)
    shown = table(rows, arguments.quick)
    print(shown)
    if arguments.write:
        readme = Path(__file__).with_name("README.md")
        before, _, rest = readme.read_text(encoding="utf-8").partition(_START)
        after = rest.partition(_END)[2]
        readme.write_text(f"{before}{_START}\n{shown}\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
