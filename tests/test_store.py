"""The run folder: nothing recorded is ever lost, asked twice, mixed with another run, or guessed."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.errors import BadInput, EngineError, RunFolderError
from evalkit.records import lines
from evalkit.records.fingerprint import differences, fingerprint_sha
from evalkit.records.folder import RunFolder, find_run_folders, this_process
from evalkit.records.latest import MAX_ATTEMPTS, Latest, State
from evalkit.runs.show import _find
from evalkit.types import Key, Prediction, Score

PARTS = {"weights": "sha256:1f", "rope": "yarn", "seed": 7, "lengths_seen": [1, 2]}


def prediction(number: int = 0, **changes: object) -> Prediction:
    made = Prediction(
        task="babilong",
        subset="qa1",
        length="1k",
        sample_id=f"{number:04d}",
        story_id=f"{number // 5:04d}",
        question="Where is Mary?",
        target="garden",
        prompt_tokens=1000 + number,
        prompt_sha256="ab" * 32,
        max_new_tokens=20,
        fact_positions=(3, 500),
        output=f"In the garden, she says — for the {number}th time.\n",
        output_tokens=9,
        finish_reason="stop",
        seconds=0.25,
        metadata={"depth": 0.5},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def failed(number: int = 0, **changes: object) -> Prediction:
    error = {"output": None, "finish_reason": "error", "error": "engine: out of memory", "output_tokens": 0}
    return prediction(number, **{**error, **changes})


def start(path: Path, **changes: object) -> RunFolder:
    arguments = {"arm": "plain", "config": {}, "fingerprint": PARTS, "provenance": {"command": "evalkit run"}}
    return RunFolder.start(path, **{**arguments, **changes})  # type: ignore[arg-type]


def filled(path: Path, count: int) -> Path:
    with start(path) as folder:
        folder.extend([prediction(n) for n in range(count)])
    return path / "predictions.jsonl"


def scores_of(p: Prediction) -> list[Score]:
    value = None if p.output is None else float(len(p.output) % 2)
    return [Score(key=p.key, scorer=scorer, value=value, detail="é") for scorer in ("official", "corrected")]


# Recording and resuming


@pytest.mark.parametrize("error", [BadInput, EngineError])
def test_a_run_that_is_refused_before_its_first_answer_takes_its_folder_away(tmp_path: Path, error: type) -> None:
    folder = start(tmp_path / "r")
    folder.identify({"name": "hf"})
    folder.save_prompt("qa1@1k", "Where is Mary?")
    with pytest.raises(error), folder:
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [BadInput, EngineError])
def test_a_folder_that_was_there_or_holds_an_answer_stays_when_its_run_is_refused(tmp_path: Path, error: type) -> None:
    (tmp_path / "empty").mkdir()
    start(tmp_path / "killed").close()
    for name in ("empty", "killed"):
        with pytest.raises(error), start(tmp_path / name):
            raise error
    folder = start(tmp_path / "answered")
    folder.append(failed())
    with pytest.raises(error), folder:
        raise error
    assert find_run_folders(tmp_path) == [tmp_path / name for name in ("answered", "empty", "killed")]


def test_an_interrupted_run_leaves_its_folder_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), start(tmp_path / "r"):
        raise KeyboardInterrupt
    assert RunFolder.open(tmp_path / "r").is_closed


def test_what_is_appended_reads_back_the_same_and_repeating_the_command_resumes(tmp_path: Path) -> None:
    odd = prediction(
        1, output='lone \ud800, quotes ", line\u2028separator, tab\t, \x00', metadata={"a": [1, {"b": None}]}
    )
    with start(tmp_path / "run") as folder:
        folder.append(prediction(0))
        folder.append(odd)
        folder.append(failed(2))
    with start(tmp_path / "run") as folder:
        assert list(folder.recorded().values()) == [prediction(0), odd, failed(2)]
        assert not folder.notices
        assert len(folder.provenance) == 2
        folder.append(prediction(3))
    assert list(RunFolder.open(tmp_path / "run").predictions()) == [prediction(0), odd, failed(2), prediction(3)]


def test_what_was_recorded_is_known_without_keeping_it_in_memory(tmp_path: Path) -> None:
    with start(tmp_path) as folder:
        folder.extend([prediction(0), failed(1, retryable=True), failed(2), prediction(3)])
        folder.append(prediction(1, attempt=2))
        folder.append(prediction(4, finish_reason="unfinished_reasoning"))
        folder.append(prediction(0, repeat=2))
        kept = dict(folder.states())
    again = RunFolder.open(tmp_path)
    assert dict(again.states()) == kept
    known = [again.state(prediction(n).key) for n in range(6)]
    assert [state and (state.attempt, bool(state.error), state.unfinished) for state in known] == [
        (1, False, False), (2, False, False), (1, True, False), (1, False, False), (1, False, True), None
    ]  # fmt: skip
    assert again.state(prediction(0).key, repeat=2) == again.state(prediction(0).key)
    assert [key.sample_id for key in again.recorded()] == ["0000", "0001", "0002", "0003", "0004"]
    assert again.recorded()[prediction(1).key] == prediction(1, attempt=2)
    with pytest.raises(KeyError):
        again.recorded()[prediction(9).key]
    (tmp_path / "predictions.jsonl").write_text("")
    with pytest.raises(RunFolderError, match="was changed while it was being read"):
        again.recorded()[prediction(3).key]


@given(st.lists(st.tuples(st.sampled_from(["1k", "2k"]), st.integers(0, 2000)), max_size=40))
def test_whatever_is_recorded_in_whatever_order_the_latest_attempts_are_known(recorded: list[tuple[str, int]]) -> None:
    latest, starts = Latest(Path("nowhere")), {}
    for start, (length, number) in enumerate(recorded):
        answer = prediction(number, length=length)
        latest.remember(answer, start)
        starts[answer.key] = start
    assert list(latest) == sorted(starts)
    assert len(latest) == len(starts)
    assert [latest._start(key) for key in latest] == [starts[key] for key in latest]
    assert {latest.state(key) for key in latest} <= {State(1, None, False, False)}
    absent = prediction(2001, length="1k").key
    assert not any(key in latest for key in (absent, absent._replace(length="4k")))
    assert latest.state(absent) is None


def test_memory_hardly_grows_with_the_answers_of_samples_that_are_asked_in_many_cells() -> None:
    latest = Latest(Path("nowhere"))
    for number in range(1000):
        latest.remember(prediction(number), 0)
    tracemalloc.start()
    for length in range(1, 26):
        for number in range(1000):
            latest.remember(prediction(number, length=f"{length}k"), 10**9 + number)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(latest) == 25_000
    assert kept < 25_000 * 12  # bytes; with an object for each key more than ten times that


def test_a_sample_that_is_shown_is_found_by_its_key_without_reading_other_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 30)
    folder, read = RunFolder.open(tmp_path), []
    folder.recorded()
    decode = lines.decode
    monkeypatch.setattr(lines, "decode", lambda line: read.append(line) or decode(line))
    assert _find(folder, "qa1/1024/27") == prediction(27)
    assert len(read) == 1
    with pytest.raises(BadInput, match="no record 'qa1/1k/31'"):
        _find(folder, "qa1/1k/31")


def test_a_line_holds_the_promised_fields_and_ends_with_its_checksum(tmp_path: Path) -> None:
    line = json.loads(filled(tmp_path, 1).read_text())
    promised = "task subset length sample_id story_id prompt_tokens prompt_sha256 max_new_tokens output output_tokens"
    assert set(f"{promised} finish_reason target fact_positions attempt error".split()) <= set(line)
    assert list(line)[-1] == "checksum"


def test_numpy_numbers_are_recorded_as_numbers(tmp_path: Path) -> None:
    positions = tuple(np.array([3, 500]))
    with start(tmp_path) as folder:
        folder.append(
            prediction(fact_positions=positions, prompt_tokens=np.int32(5), metadata={"depth": np.float32(0.5)})
        )
    assert list(RunFolder.open(tmp_path).predictions()) == [prediction(prompt_tokens=5)]


@pytest.mark.parametrize("bad", [{"seconds": float("nan")}, {"output": None}, {"error": "engine: x"}])
def test_what_must_never_be_recorded_is_refused_and_leaves_no_trace(tmp_path: Path, bad: dict[str, object]) -> None:
    with start(tmp_path) as folder:
        with pytest.raises(ValueError, match=r"."):
            folder.append(prediction(**bad))
        folder.append(prediction(1))
    assert [p.sample_id for p in RunFolder.open(tmp_path).predictions()] == ["0001"]


def test_only_what_may_still_be_answered_is_asked_again(tmp_path: Path) -> None:
    with start(tmp_path) as folder:
        assert folder.needs_asking(prediction(0).key)
        assert folder.next_attempt(prediction(0).key) == 1
        folder.append(prediction(0))
        folder.append(failed(1))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            folder.append(failed(2, retryable=True, attempt=attempt))
            assert folder.needs_asking(prediction(2).key) == (attempt < MAX_ATTEMPTS)
            assert folder.next_attempt(prediction(2).key) == attempt + 1
        assert folder.needs_asking(prediction(2).key, max_attempts=MAX_ATTEMPTS + 1)
        assert not folder.needs_asking(prediction(0).key)
        assert not folder.needs_asking(prediction(1).key)
        folder.append(prediction(2, attempt=MAX_ATTEMPTS + 1))
        assert folder.recorded()[prediction(2).key].error is None
    assert len(list(RunFolder.open(tmp_path).predictions())) == MAX_ATTEMPTS + 3


def test_the_scope_grows_and_everything_else_is_that_of_the_last_invocation(tmp_path: Path) -> None:
    asked = {"lengths": ["1k", "2k"], "samples": 50, "cells": {"qa1/1k": 50}}
    with start(tmp_path, config={"batch": 4, "scope": asked}):
        pass
    asked = {"lengths": ["2k", "4k"], "samples": 20, "cells": {"qa1/1k": 20, "qa1/4k": 20}}
    with start(tmp_path, config={"batch": 8, "scope": asked}):
        pass
    folder = RunFolder.open(tmp_path)
    cells = {"qa1/1k": 50, "qa1/4k": 20}
    assert folder.config == {"batch": 8, "scope": {"lengths": ["1k", "2k", "4k"], "samples": 50, "cells": cells}}
    assert not folder.published


def test_one_prompt_per_cell_is_kept_for_a_person(tmp_path: Path) -> None:
    with start(tmp_path) as folder:
        folder.save_prompt("qa1@16k", "first \ud800")
        folder.save_prompt("qa1@16k", "second")
        folder.save_prompt("../8 needles@1M", "third")
    kept = {path.name: path.read_text() for path in (tmp_path / "prompts").iterdir()}
    assert kept == {"qa1@16k.txt": "first \\ud800", ".._8_needles@1M.txt": "third"}


def test_run_folders_are_found_at_and_below_a_folder(tmp_path: Path) -> None:
    filled(tmp_path / "b" / "c", 0)
    filled(tmp_path / "a", 0)
    assert find_run_folders(tmp_path) == [tmp_path / "a", tmp_path / "b" / "c"]
    assert find_run_folders(tmp_path / "a") == [tmp_path / "a"]
    with pytest.raises(BadInput, match=r"There is no folder .*nowhere"):
        find_run_folders(tmp_path / "nowhere")


# Damage


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_the_file_is_cut_every_complete_line_survives(tmp_path: Path, data: st.DataObject) -> None:
    content = b"".join(lines.encode(prediction(n)) for n in range(4))
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path / f"run{cut}"
    if not path.exists():
        filled(path, 0)
    (path / "predictions.jsonl").write_bytes(content[:cut])
    complete = content[:cut].count(b"\n")
    whole = cut == 0 or content[:cut].endswith(b"\n")
    assert len(RunFolder.open(path).recorded()) == complete
    with start(path) as folder:
        assert [p.sample_id for p in folder.predictions()] == [f"{n:04d}" for n in range(complete)]
        assert len(folder.notices) == (0 if whole else 1)
        folder.append(prediction(9))
    assert len(RunFolder.open(path).recorded()) == complete + 1


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_is_found_and_its_line_named(tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "run.json").exists():
        filled(tmp_path, 0)
    encoded = [lines.encode(prediction(n)) for n in range(4)]
    content = bytearray(b"".join(encoded))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "predictions.jsonl").write_bytes(content)
    number = next(n for n in range(4) if at < sum(map(len, encoded[: n + 1]))) + 1
    if number < 4 or b"\n" in content[sum(map(len, encoded[:3])) : -1]:
        with pytest.raises(RunFolderError, match=rf"Line {number} of .*predictions.jsonl is damaged"):
            start(tmp_path)
        assert (tmp_path / "predictions.jsonl").read_bytes() == content  # left as it is, for a person to look at
    else:
        with start(tmp_path) as folder:
            assert len(folder.recorded()) == 3
            assert "cut off" in folder.notices[0]


def test_a_damaged_folder_is_not_left_locked(tmp_path: Path) -> None:
    path = filled(tmp_path, 3)
    path.write_bytes(path.read_bytes().replace(b"garden", b"kitchen", 1))
    for _ in range(2):
        with pytest.raises(RunFolderError, match=r"Line 1 .* restore the file from a backup, or delete that line"):
            start(tmp_path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with start(tmp_path) as folder:
        assert len(folder.recorded()) == 2


def test_a_full_disk_loses_nothing_and_leaves_no_torn_line(tmp_path: Path) -> None:
    with start(tmp_path) as folder:
        folder.append(prediction(0))
        before = (tmp_path / "predictions.jsonl").read_bytes()
        real = folder._file
        assert real is not None

        class Full:
            def write(self, content: bytes) -> int:
                if len(content) < 100:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real.write(content[: len(content) // 2])  # what fits

            fileno = staticmethod(real.fileno)

        folder._file = Full()  # type: ignore[assignment]
        with pytest.raises(RunFolderError, match=r"No space left on device.* 1 samples recorded so far are safe"):
            folder.append(prediction(1))
        assert (tmp_path / "predictions.jsonl").read_bytes() == before
        folder._file = real
        folder.append(prediction(1))
    assert len(RunFolder.open(tmp_path).recorded()) == 2


# Refusals


def test_another_run_is_refused_naming_every_part_that_differs(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    run = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunFolderError) as refusal:
        start(tmp_path, arm="random", fingerprint={**PARTS, "seed": 8, "rope": None, "template": "chatml"})
    message = str(refusal.value)
    for part in ('arm is "plain" there and "random" now', "seed is 7 there and 8 now", 'rope is "yarn" there and null'):
        assert part in message
    assert 'template is absent there and "chatml" now' in message
    assert "another --out" in message
    assert "weights" not in message
    assert (tmp_path / "run.json").read_bytes() == run


def test_a_fingerprint_does_not_depend_on_order_or_on_tuples(tmp_path: Path) -> None:
    same = {"lengths_seen": (1, 2), "seed": np.int64(7), "rope": "yarn", "weights": "sha256:1f"}
    assert fingerprint_sha(PARTS) == fingerprint_sha(same)
    assert fingerprint_sha(PARTS) != fingerprint_sha({**PARTS, "seed": 8})
    assert differences(PARTS, PARTS) == []
    filled(tmp_path, 1)
    start(tmp_path, fingerprint=same).close()
    with pytest.raises(ValueError, match="JSON"):
        start(tmp_path / "nan", fingerprint={"seed": float("nan")})


def test_folders_that_are_no_sound_run_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match=r"holds thesis\.tex, so it is not a run folder"):
        start(tmp_path / "notes")
    with pytest.raises(RunFolderError, match=r"not a run folder: it has no run.json"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"cannot be written .* use another folder"):
        start(tmp_path / "notes" / "thesis.tex")

    run = filled(tmp_path / "run", 2).with_name("run.json")
    sound = run.read_text()
    for broken in (sound[:-3], sound.replace('"yarn"', '"none"'), sound.replace('"plain"', "[]"), "[]"):
        run.write_text(broken)
        for opened in (RunFolder.open, start):
            with pytest.raises(RunFolderError, match=r"run.json is damaged or was edited"):
                opened(tmp_path / "run")
    run.write_text(sound.replace('"schema": 2', '"schema": 3'))
    for opened in (RunFolder.open, start):
        with pytest.raises(RunFolderError, match="has schema version 3, and this evalkit writes version 2"):
            opened(tmp_path / "run")
    run.write_text(sound)
    run.with_name("predictions.jsonl").unlink()
    with pytest.raises(RunFolderError, match="cannot be read"):
        start(tmp_path / "run")


def test_a_folder_of_an_earlier_schema_is_read_and_not_continued(tmp_path: Path) -> None:
    run = filled(tmp_path, 2).with_name("run.json")
    run.write_text(run.read_text().replace('"schema": 2', '"schema": 1'))
    lines_ = run.with_name("predictions.jsonl")
    with lines_.open("wb") as file:
        for number in range(2):
            body = lines.encode(failed(number, retryable=True)).replace(b'"retryable"', b'"passing"')
            body = body[: body.index(b',"checksum"')]
            file.write(body + b',"checksum":"%08x"}\n' % zlib.crc32(body))
    assert [p.retryable for p in RunFolder.open(tmp_path).recorded().values()] == [True, True]
    with pytest.raises(RunFolderError, match=r"written by an earlier evalkit .* can be reported, not continued"):
        start(tmp_path)


def test_answers_of_another_engine_are_not_continued_and_the_difference_is_named(tmp_path: Path) -> None:
    with start(tmp_path) as folder:
        folder.identify({"dtype": "float32", "versions": {"vllm": "0.32.0"}})
        folder.identify({"dtype": "bfloat16", "versions": {"vllm": "0.32.0"}})  # nothing is recorded yet
        folder.append(prediction(1))
    with start(tmp_path) as folder:
        folder.identify({"dtype": "bfloat16", "versions": {"vllm": "0.32.0"}})
        with pytest.raises(RunFolderError, match=r'engine\.dtype is "bfloat16" there and "float32" now'):
            folder.identify({"dtype": "float32", "versions": {"vllm": "0.32.0"}})
    assert RunFolder.open(tmp_path).fingerprint["engine.dtype"] == "bfloat16"


def test_a_start_that_was_killed_half_way_does_not_block_the_next(tmp_path: Path) -> None:
    for leftover in ("run.lock", "writer.txt", "run.json.4711.tmp", "predictions.jsonl"):
        (tmp_path / leftover).touch()
    start(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.jsonl", "run.json", "run.lock"]


# Real processes

WRITER = """
import sys, time
from pathlib import Path
from evalkit.records import lines
from evalkit.records.folder import RunFolder
todo, run, asked, linger = sys.argv[1:]
folder = RunFolder.start(run, arm="plain", config={}, fingerprint={}, provenance={})
with open(asked, "w", buffering=1) as log:
    for line in lines.read(Path(todo)):
        if folder.needs_asking(line.prediction.key):
            log.write(line.prediction.sample_id + "\\n")
            time.sleep(0.001)
            folder.append(line.prediction)
print("done", flush=True)
time.sleep(float(linger))
"""


def writer(folder: Path, count: int, linger: float = 0) -> "subprocess.Popen[str]":
    """Start a process that asks ``count`` samples, writes to ``folder/run``, and logs whom it asked."""
    (folder / "todo").write_bytes(b"".join(lines.encode(prediction(n)) for n in range(count)))
    (folder / "asked").write_text("")
    arguments = [folder / "todo", folder / "run", folder / "asked", str(linger)]
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_run_killed_again_and_again_ends_as_one_that_was_not_and_asks_nothing_twice(tmp_path: Path) -> None:
    chance = random.Random(5)
    kills, output = 0, ""
    while "done" not in output:
        recorded = set()
        if (tmp_path / "run" / "run.json").exists():
            recorded = {key.sample_id for key in RunFolder.open(tmp_path / "run").recorded()}
        process = writer(tmp_path, 600)
        enough = chance.choice([0, 1, 5, 15])  # asked in this life; then a moment that nobody chose
        while process.poll() is None and not (
            (tmp_path / "run" / "run.lock").exists() and (tmp_path / "asked").read_text().count("\n") >= enough
        ):
            time.sleep(0.001)
        time.sleep(chance.random() * 0.01)
        if kills < 5 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        output, _ = process.communicate()
        assert not recorded & set((tmp_path / "asked").read_text().split())
    filled(tmp_path / "whole", 600)
    killed, whole = RunFolder.open(tmp_path / "run"), RunFolder.open(tmp_path / "whole")
    assert kills >= 3
    assert killed.recorded() == whole.recorded()
    assert len(list(killed.predictions())) == 600
    assert killed.score_table(scores_of, "1").equals(whole.score_table(scores_of, "1"))


def test_a_second_writer_is_refused_until_the_first_is_gone_even_by_kill(tmp_path: Path) -> None:
    process = writer(tmp_path, 2, linger=60)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        with pytest.raises(RunFolderError, match=rf"being written by process {process.pid} on "):
            start(tmp_path / "run")
        assert len(RunFolder.open(tmp_path / "run").recorded()) == 2  # readers are welcome
    finally:
        process.kill()
        process.communicate()
    with (
        start(tmp_path / "run", fingerprint={}),
        pytest.raises(RunFolderError, match=f"being written by process {os.getpid()} on "),
    ):
        start(tmp_path / "run", fingerprint={})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_who_looks_whether_a_folder_is_written_hinders_no_start_and_is_taken_for_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalkit.records.folder._LOOK_SECONDS", 5.0)

    def looked_at() -> None:
        lock = FileLock(tmp_path / "run.lock", thread_local=False)
        lock.acquire(timeout=0)
        threading.Timer(0.01, lock.release).start()

    filled(tmp_path, 2)
    (tmp_path / "writer.txt").write_text("process 12 on node3")  # it was killed
    looked_at()
    assert RunFolder.open(tmp_path).writer() is None
    looked_at()
    with start(tmp_path):
        assert RunFolder.open(tmp_path).writer() == this_process()


def test_an_engine_process_that_outlives_its_killed_writer_does_not_hold_the_folder(tmp_path: Path) -> None:
    parent = (
        "import os, sys, time\nfrom evalkit.records.folder import RunFolder\n"
        "folder = RunFolder.start(sys.argv[1], arm='plain', config={}, fingerprint={}, provenance={})\n"
        "if not os.fork():\n    print(os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", parent, tmp_path / "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        start(tmp_path / "run", fingerprint={}).close()
    finally:
        os.kill(orphan, signal.SIGKILL)
        process.stdout.close()


def test_a_frame_has_a_row_per_key_with_its_latest_attempt(tmp_path: Path) -> None:
    with start(tmp_path) as folder:
        folder.append(failed(0, retryable=True))
        folder.append(prediction(1))
        folder.append(prediction(0, attempt=2))
        frame = folder.frame()
    assert frame["attempt"].tolist() == [2, 1]
    assert frame["output"].tolist() == [prediction(0).output, prediction(1).output]
    assert Key(*frame.loc[0, ["task", "subset", "length", "sample_id"]]) == prediction(0).key
