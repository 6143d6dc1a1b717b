"""Spoilt data: rows of every layout, answers and counts of others, run folders."""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

from tests.fuzz.of_commands import odd_text
from tests.fuzz.sound import Commands, Sound
from tests.fuzz.spoiling import RAW, odd_value, spoil_bytes, spoil_json

_PROMPTS_PY = b"""
DEFAULT_TEMPLATE = "{instruction} {examples} {post_prompt} {context} {question}"
DEFAULT_PROMPTS = {"qa1": {"instruction": "a", "examples": "b", "post_prompt": "c"}}
"""


def rows(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """Published rows, bAbI files, background and wordings."""
    run = [
        "run",
        "--model",
        str(sound.checkpoint),
        "--backend",
        "scripted",
        "--out",
        str(folder / "out"),
        "--samples",
        "3",
    ]
    kind = rng.choice(["json", "parquet", "babi", "noise", "prompts", "mrcr", "google"])
    asked = ["--task", "babilong", "--subsets", "qa1", "--lengths", "1k"]
    table = [{"input": "Mary went to the kitchen. John left.", "question": "Where is Mary? ", "target": "kitchen"}] * 3
    data = folder / "data"
    data.mkdir()
    if kind == "json":
        (data / "qa1").mkdir()
        text = spoil_json(rng, table)
        (data / "qa1" / "1k.json").write_bytes(text if rng.random() < 0.7 else spoil_bytes(rng, text))
        return [[*run, *asked, "--source", str(data)]]
    if kind == "parquet":
        (data / "1k").mkdir()
        _write_parquet(rng, data / "1k" / "qa1-00000-of-00001.parquet", table)
        return [[*run, *asked, "--source", str(data)]]
    if kind == "babi":
        text = b"1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n" * 4
        (data / "qa1_single-supporting-fact_test.txt").write_bytes(spoil_bytes(rng, text))
        return [[*run, *asked, "--facts", str(data)]]
    if kind == "noise":
        text = (
            b'It was a dark night, and the rain fell. She had never seen anything like it before! "Why?" he said. ' * 60
        )
        (data / "novel.txt").write_bytes(spoil_bytes(rng, text))
        return [[*run, *asked, "--noise", str(data / "novel.txt")]]
    if kind == "prompts":
        wording = {
            "prompt": {
                "instruction": "i",
                "examples": "e",
                "post_prompt": "p",
                "template": "{instruction} {examples} {post_prompt} {context} {question}",
            }
        }
        if rng.random() < 0.5:
            text = spoil_json(rng, wording)
            text = text if rng.random() < 0.7 else spoil_bytes(rng, text)
            (data / "qa1_4k_instruction_yes_examples_yes_post_prompt_yes.json").write_bytes(text)
        else:
            (data / "prompts.py").write_bytes(spoil_bytes(rng, _PROMPTS_PY))
        path = next(data.iterdir())
        return [[*run, *asked, "--prompts", str(rng.choice([path, data]))]]
    asked = ["--task", "mrcr", "--subsets", "2needle", "--lengths", "1k", "--source", str(data)]
    if kind == "mrcr":
        turns = [{"role": "user", "content": "Examples"}]
        turns += [
            {"role": "user", "content": "write a poem about rain"},
            {"role": "assistant", "content": "rain " * 100},
        ] * 2
        turns.append({"role": "user", "content": "Prepend abc to the 1st poem about rain"})
        row = {"prompt": json.dumps(turns), "answer": "abc" + "rain " * 100, "random_string_to_prepend": "abc",
               "n_needles": 2, "desired_msg_index": 1, "total_messages": 6, "n_chars": 10, "date_added": "x",
               "bin": "1k"}  # fmt: skip
        if rng.random() < 0.4:
            row["prompt"] = spoil_json(rng, turns).decode("utf-8", "replace")
        _write_parquet(rng, data / "2needle.parquet", [row] * 3)
    else:
        row = {
            "queries": "User: poem\nAssistant: rain\nUser: again",
            "answer": "abcdefghijklrain",
            "view_ops": "q",
            "context_len": "900",
        }
        text = _to_csv([row] * 3)
        if rng.random() < 0.6:
            text = _to_csv([{**row, rng.choice(list(row)): str(odd_value(rng))}] * 2)
        (data / "mrcr_v2p1_2needle_in_(512,1024].csv").write_bytes(
            text if rng.random() < 0.4 else spoil_bytes(rng, text)
        )
    return [[*run, *asked]]


def answers(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """Answers that others published: CSV files with a recipe beside them, and tables of counts."""
    if rng.random() < 0.4:
        row = {"task": "babilong", "subset": "qa1", "arm": "Theirs", "length": "1k", "n": "100", "correct": "80",
               "mean": "", "source": "them", "zone": "", "questions": ""}  # fmt: skip
        if rng.random() < 0.3:
            row = {"task": "babilong", "subset": "qa1", "first": "A", "second": "B", "length": "1k", "n": "100",
                   "first_only": "10", "second_only": "5", "both": "70", "neither": "15", "source": "them"}  # fmt: skip
        elif rng.random() < 0.2:
            row = {"task": "mrcr", "arm": "A", "lengths": "1k,2k", "mean": "0.5", "source": "them"}
        table = [dict(row), {**row, "length": "2k"} if "length" in row else dict(row, arm="B")]
        if rng.random() < 0.7:
            table[0][rng.choice(list(row))] = str(odd_value(rng)).removeprefix(RAW)
        text = _to_csv(table)
        (folder / "counts.csv").write_bytes(text if rng.random() < 0.6 else spoil_bytes(rng, text))
        beside = rng.choice([[], [str(sound.folder / "runs")]])
        return [["report", *beside, "--published", str(folder / "counts.csv"), "--out", str(folder / "plots")]]
    model = folder / "answers" / rng.choice(["org/model", "org/$x^{$", "o\x1brg/=cmd", "a"])
    model.mkdir(parents=True)
    stem = rng.choice(
        [
            "qa1_1k_instruction_yes_examples_yes_post_prompt_yes",
            "qa1_1k",
            "qa2_0k_x",
            "qa1_1k_shard0of2",
            "qa99_1k",
            "qa1_999999999999m",
        ]
    )
    table = [{"target": "kitchen", "output": "in the kitchen", "question": "Where is Mary?"}] * 4
    if rng.random() < 0.5:
        table = [*table, {**table[0], rng.choice(list(table[0])): str(odd_value(rng)).removeprefix(RAW)}]
    text = _to_csv(table)
    (model / f"{stem}.csv").write_bytes(text if rng.random() < 0.5 else spoil_bytes(rng, text))
    if rng.random() < 0.7:
        recipe = spoil_json(
            rng, {"prompt": {"instruction": "i", "template": "{context}"}, "generate_kwargs": {"max_new_tokens": 20}}
        )
        (model / f"{stem}.json").write_bytes(recipe if rng.random() < 0.8 else spoil_bytes(rng, recipe))
    name = ["--arm", odd_text(rng)] if rng.random() < 0.2 else []
    commands = [
        ["import", str(folder / "answers"), "--out", str(folder / "runs"), *(w.replace("\x00", "") for w in name)]
    ]
    return (
        [*commands, ["report", str(folder / "runs"), "--out", str(folder / "plots")]]
        if rng.random() < 0.3
        else commands
    )


def run_folder(rng: random.Random, sound: Sound, folder: Path) -> Commands:
    """A run folder beside a sound one: run.json, a line with a right checksum, the bytes of a file."""
    from evalkit.records import lines
    from evalkit.records.fingerprint import fingerprint_sha

    runs = folder / "runs"
    (runs / "bad").mkdir(parents=True)
    source = sound.folder / "runs" / "a"
    for name in ("run.json", "predictions.jsonl", "scores.parquet"):
        (runs / "bad" / name).write_bytes((source / name).read_bytes())
    if rng.random() < 0.7:
        (runs / "good").symlink_to(sound.folder / "runs" / "b")
    how = rng.random()
    if how < 0.35:
        run = json.loads((source / "run.json").read_text())
        run["config"] |= {"shard": "1/2", "control": "no-context", "depths": [0.5]} if rng.random() < 0.2 else {}
        parts = run["fingerprint"]["parts"]
        text = spoil_json(rng, run)
        try:  # a hash that fits, so that it is not only that which is found
            spoilt = json.loads(text)
            spoilt["fingerprint"]["sha256"] = fingerprint_sha(spoilt["fingerprint"]["parts"])
            text = json.dumps(spoilt).encode()
        except (ValueError, TypeError, KeyError, RecursionError, IndexError):
            del parts
        (runs / "bad" / "run.json").write_bytes(text)
    elif how < 0.8:
        import zlib

        content = (source / "predictions.jsonl").read_bytes().splitlines(keepends=True)
        record = json.loads(content[0])
        del record["checksum"]
        body = spoil_json(rng, record).rstrip()[:-1]
        content[rng.choice([0, len(content) - 1])] = body + lines._CHECKSUM % zlib.crc32(body)
        (runs / "bad" / "predictions.jsonl").write_bytes(b"".join(content))
    else:
        name = rng.choice(["run.json", "predictions.jsonl", "scores.parquet"])
        (runs / "bad" / name).write_bytes(spoil_bytes(rng, (source / name).read_bytes()))
    bad = str(runs / "bad")
    return [
        rng.choice(
            [
                ["report", str(runs), "--out", str(folder / "plots")],
                ["report", str(runs), "--out", str(folder / "plots"), "--full", "--by", "hops"],
                ["score", bad],
                ["status", str(runs)],
                ["compare", bad, str(sound.folder / "runs" / "b")],
                ["show", bad, "qa1/1k/00000"],
                ["export", bad, str(folder / "export"), "--to", rng.choice(["csv", "lm-eval", "inspect", "babilong"])],
            ]
        ),
        *([["score", bad]] if rng.random() < 0.2 else []),
    ]


def _to_csv(table: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode("utf-8", "surrogatepass")


def _write_parquet(rng: random.Random, file: Path, table: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [row[name] for row in table] for name in table[0]}
    if rng.random() < 0.6:
        name = rng.choice(list(columns))
        columns[rng.choice([name, f"{name}2"])] = [rng.choice([None, 5, 1.5, True, b"\xff", ["a"], 2**62])] * len(table)
        if rng.random() < 0.3:
            columns.pop(name, None)
    pq.write_table(pa.table(columns), file)
    if rng.random() < 0.4:
        file.write_bytes(spoil_bytes(rng, file.read_bytes()))
