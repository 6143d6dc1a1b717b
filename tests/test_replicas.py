"""Several engines on Ray answer what one engine answers, and whatever is killed, no answer is lost or asked twice.

The clusters are real: several nodes, each with processes of its own, on this machine.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from evalkit.cli.commands import main
from evalkit.errors import BadInput
from evalkit.runs.answers import Ask, Name
from evalkit.runs.cluster import Needs, Node, needs
from evalkit.runs.work import Work, contexts
from evalkit.types import Key, Prediction, Sample
from tests.test_run import lines


def key(number: int) -> Name:
    return Key("t", "s", "1k", str(number)), 1


def work(number: int, rules: int = 1) -> Work:
    return Work([([(key(n),) for n in range(number * rule, number * (rule + 1))], number) for rule in range(rules)])


# What is asked next (no Ray)


def test_an_engine_holds_a_part_of_what_is_left_that_shrinks_to_the_end_and_nothing_is_given_twice():
    plan, held = work(100), {0: list[Name](), 1: list[Name]()}
    plan.rules[0].engines = 2
    sizes, given = [], list[Name]()
    while plan.left:
        for engine in held:
            taken = plan.take(0, held[engine])
            held[engine] += taken
            given += taken
            sizes.append(len(held[engine]))
            if held[engine]:
                plan.done(0, held[engine].pop(0))
    assert sizes[0] == 25
    assert max(sizes[-4:]) == 1
    assert given == [key(n) for n in range(100)]
    assert plan.rule_for(0) is None


def test_questions_to_one_context_stay_together_and_others_do_not():
    def ask(number: int, context: str) -> Ask:
        sample = Sample(
            task="t", subset="s", sample_id=str(number), story_id="", context_id=context, question="", target=""
        )
        return Ask(sample, "1k")

    shared = [ask(n, f"context {n // 4}") for n in range(8)]
    plan = Work([(contexts([*shared, ask(8, ""), ask(9, "")]), 10)])
    plan.rules[0].engines = 10
    assert [[k.sample_id for k, _ in plan.take(0, [])] for _ in range(4)] == [list("0123"), list("4567"), ["8"], ["9"]]


def test_a_rule_is_left_when_its_queue_is_empty_and_taken_up_again_for_what_was_lost():
    plan = work(2, rules=2)
    first = plan.take(0, [])
    first += plan.take(0, [])
    assert plan.rule_for(0) == 1
    plan.lost(0, first, blameless=True)
    assert plan.rule_for(1) == 1
    assert plan.rule_for(None) == 0


def test_what_a_lost_engine_held_is_asked_again_alone_and_given_up_after_two_more_engines():
    plan = work(4)
    held = plan.take(0, [])
    assert held == [key(0), key(1)]
    assert plan.lost(0, held, blameless=False) == []
    others = plan.take(0, [])
    assert others == [key(2), key(3)]
    for innocent in others:
        plan.done(0, innocent)
    assert plan.take(0, []) == [key(0)]
    assert plan.take(0, [key(0)]) == []  # nothing beside it
    assert plan.lost(0, [key(0)], blameless=False) == []
    assert plan.take(0, []) == [key(1)]
    plan.done(0, key(1))
    assert plan.take(0, []) == [key(0)]
    assert plan.lost(0, [key(0)], blameless=False) == [key(0)]
    assert plan.left == 0


def test_an_engine_that_is_lost_while_it_holds_nothing_costs_nothing():
    plan = work(4)
    assert [plan.lost(0, [], blameless=blameless) for blameless in (True, False)] == [[], []]
    assert plan.take(0, []) == [key(0), key(1)]


def test_many_that_a_lost_engine_held_are_asked_again_in_groups_until_the_cause_is_alone():
    plan, losses = work(400), 0
    cause = key(77)
    while plan.left:
        held = plan.take(0, [])
        if cause in held:
            losses += 1
            assert plan.lost(0, held, blameless=False) in ([], [cause])
        else:
            for innocent in held:
                plan.done(0, innocent)
    assert losses == 5  # among 200, 25, 4, and twice alone
    assert plan.rules[0].waiting == 0


def test_a_key_is_not_blamed_for_its_node():
    plan = work(1)
    for _ in range(5):
        assert plan.lost(0, plan.take(0, []), blameless=True) == []
    assert plan.left == 1


# What is refused


def test_engines_take_gpus_where_there_are_any_and_else_cores_in_equal_parts():
    gpus, cores = [Node("a", 4, 32), Node("b", 3, 8)], [Node("a", 0, 4), Node("b", 0, 2)]
    assert needs(gpus, None, 2) == Needs(2, 1)
    assert needs(gpus, None, 2).fit(gpus) == 3
    assert needs(gpus, 2, 0) == Needs(0, 16)  # both on the larger one
    assert needs(cores, 2, 1) == Needs(0, 2)
    assert needs(cores, 3, 1) == Needs(0, 2)
    assert needs(cores, 5, 1) == Needs(0, 1)


@pytest.mark.parametrize(
    ("nodes", "replicas", "gpus", "said"),
    [
        ([Node("a", 4, 8), Node("b", 1, 8)], 3, 2, "3 engines of 2 GPUs each do not fit on 2 machines with 4, 1 GPUs"),
        ([Node("a", 1, 8)], None, 2, "room for 0"),
        ([Node("a", 0, 2)], 3, 1, "--replicas is 3 and there are 2 processor cores"),
        ([Node("a", 0, 2)], None, 1, "say how many with --replicas"),
    ],
)
def test_more_engines_than_devices_are_refused_with_the_numbers(nodes, replicas, gpus, said):
    with pytest.raises(BadInput, match=said):
        needs(nodes, replicas, gpus)


def evalkit(checkpoint: Path, out: Path, *more: object, script: str | None = "oracle", lengths: str = "1k,2k") -> Any:
    backend = ("--backend", "scripted", "--script", script) if script else ("--backend", "hf")
    given = ("run", "--model", checkpoint, "--task", "babilong", *backend, "--lengths", lengths, "--out", out)
    return CliRunner().invoke(main, [str(word) for word in (*given, "--subsets", "qa1,qa3", "--quiet", *more)])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--replicas", 0), "--replicas is 0"),
        (("--ray", "somewhere"), "write the address of the head like 10.0.0.1:6379"),
        (("--ray", "127.0.0.1:1"), "No Ray answers at 127.0.0.1:1"),
    ],
)
def test_an_address_without_ray_is_refused_in_one_sentence(checkpoint, tmp_path, more, said):
    pytest.importorskip("ray")
    shown = evalkit(checkpoint, tmp_path / "r", *more)
    assert shown.exit_code == 2
    assert said in shown.output
    assert "Traceback" not in shown.output
    assert not (tmp_path / "r").exists()


def test_something_else_than_ray_at_an_address_is_refused(checkpoint, tmp_path):
    pytest.importorskip("ray")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    shown = evalkit(checkpoint, tmp_path / "r", "--ray", f"127.0.0.1:{port}")
    assert shown.exit_code == 2
    assert "No Ray answers" in shown.output


def test_where_ray_is_missing_the_line_that_installs_it_is_said(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    shown = evalkit(checkpoint, tmp_path / "r", "--replicas", 2)
    assert shown.exit_code == 2
    assert "pip install 'ray>=2.48'" in shown.output
    assert not (tmp_path / "r").exists()


def test_nothing_is_started_where_all_is_answered(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert evalkit(checkpoint, tmp_path / "r").exit_code == 0
    recorded = (tmp_path / "r" / "predictions.jsonl").read_bytes()
    again = evalkit(checkpoint, tmp_path / "r", "--replicas", 2)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "r" / "predictions.jsonl").read_bytes() == recorded


def test_a_backend_that_starts_no_engines_has_no_replicas(checkpoint, tmp_path, monkeypatch):
    from tests.misbehaving_server import serving

    with serving(tokenizer=None) as server:
        given = ("run", "--model", checkpoint, "--task", "babilong", "--lengths", "1k", "--out", tmp_path / "r")
        more = ("--backend", "server", "--base-url", server.url, "--replicas", 2)
        shown = CliRunner().invoke(main, [str(word) for word in (*given, *more)])
    assert shown.exit_code == 2
    assert "the server backend has none to start" in shown.output


# On Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes with a core each on this machine, the head among them."""
    pytest.importorskip("ray")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": "300"}
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def asked(folder: Path) -> list[tuple[str, str, str]]:
    return [(line["subset"], line["length"], line["sample_id"]) for line in lines(folder)]


def predictions(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What is recorded by key, but for what hangs on the clock."""
    found = {}
    for line in lines(folder):
        kept = {name: value for name, value in line.items() if name not in ("seconds", "cached_tokens", "checksum")}
        found[line["subset"], line["length"], line["sample_id"]] = kept
    return found


def scores(folder: Path) -> Any:
    import pandas as pd

    return pd.read_parquet(folder / "scores.parquet").sort_values(["subset", "length", "sample_id", "scorer"])


@pytest.mark.slow
@pytest.mark.parametrize("script", ["oracle", "failing", None])
def test_several_engines_answer_what_one_engine_answers(cluster, checkpoint, tmp_path, script):
    samples = 12 if script else 3
    one = evalkit(checkpoint, tmp_path / "one", "--samples", samples, script=script)
    more = ("--samples", samples, "--ray", cluster.address, "--replicas", 2)
    several = evalkit(checkpoint, tmp_path / "several", *more, script=script)
    assert several.exit_code == one.exit_code, several.output
    ours, theirs = predictions(tmp_path / "several"), predictions(tmp_path / "one")
    assert len(asked(tmp_path / "several")) == len(ours) == len(theirs)
    if script == "failing":  # which prompts are third hangs on the engine
        assert ours.keys() == theirs.keys()
        return
    assert ours == theirs
    left, right = (scores(tmp_path / name) for name in ("several", "one"))
    assert left["value"].to_numpy().tobytes() == right["value"].to_numpy().tobytes()


@pytest.mark.slow
def test_each_rope_rule_is_served_and_read_back_by_the_engines(cluster, checkpoint, tmp_path):
    more = ("--samples", 2, "--rope", "yarn", "--factor", "auto")
    for name, where in (("one", ()), ("several", ("--ray", cluster.address, "--replicas", 2))):
        shown = evalkit(checkpoint, tmp_path / name, *more, *where, script=None, lengths="1k,4k,8k")
        assert shown.exit_code == 0, shown.output
    ours, theirs = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("several", "one"))
    assert ours["fingerprint"] == theirs["fingerprint"]
    assert ours["provenance"][-1]["rope"] == theirs["provenance"][-1]["rope"]
    assert predictions(tmp_path / "several") == predictions(tmp_path / "one")


@pytest.mark.slow
def test_a_node_that_differs_is_refused_by_name_before_anything_is_written(cluster, checkpoint, tmp_path, monkeypatch):
    from evalkit.runs import replicas

    here = replicas.software()
    for name in ("evalkit", "source of evalkit"):
        monkeypatch.setattr(replicas, "software", lambda name=name: here | {name: "0.0.1"})
        shown = evalkit(checkpoint, tmp_path / "r", "--ray", cluster.address, "--replicas", 1)
        assert shown.exit_code == 2
        assert f"in {name}: {here[name]} there, 0.0.1 here" in shown.output
        assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_checkpoint_that_a_node_does_not_have_is_refused_with_its_name(cluster, checkpoint, tmp_path):
    from evalkit.runs.config import run_config
    from evalkit.runs.plan import make_plan
    from evalkit.runs.run import run

    given = {"model": str(shutil.copytree(checkpoint, tmp_path / "ckpt")), "task": "babilong", "backend": "scripted"}
    given |= {"lengths": ("1k",), "samples": 1, "out": str(tmp_path / "r"), "ray": cluster.address, "replicas": 1}
    plan = make_plan(run_config(given))
    (tmp_path / "ckpt").rename(tmp_path / "moved")  # as if only this machine had it
    with pytest.raises(BadInput, match=r"On .* \(.*\): There is no folder"):
        run(plan)
    assert not (tmp_path / "r").exists()


def actors(of: Path) -> list[int]:
    """Processes of engines, as Ray names them, whose logs lie in a folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::Replica") and any(
                os.readlink(file).startswith(str(of)) for file in (folder / "fd").iterdir()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until(true: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_that_dies_or_falls_silent_costs_no_answer(cluster, checkpoint, tmp_path, monkeypatch, signal_):
    from evalkit.runs import replicas
    from evalkit.runs.config import run_config
    from evalkit.runs.plan import make_plan
    from evalkit.runs.run import Observer, run

    monkeypatch.setattr(replicas, "SILENT_SECONDS", 30.0)
    monkeypatch.setattr(replicas, "_PING_SECONDS", 0.5)
    hit: list[int] = []

    class Hits(Observer):
        def answered(self, prediction: Prediction) -> None:
            if not hit and len(found := actors(Path(cluster.head_node.get_session_dir_path()))) == 2:
                hit.append(found[0])
                os.kill(found[0], signal_)

    given = {"model": str(checkpoint), "task": "babilong", "backend": "hf", "lengths": ("1k", "2k"), "samples": 10}
    given |= {"subsets": ("qa1",), "max_new_tokens": 40}
    several = run_config(given | {"out": str(tmp_path / "several"), "ray": cluster.address, "replicas": 2})
    result = run(make_plan(several), Hits())
    assert hit
    assert "1 engine was lost on the way" in result.notices[-1]
    run(make_plan(run_config(given | {"out": str(tmp_path / "one")})))
    assert len(asked(tmp_path / "several")) == 20
    assert predictions(tmp_path / "several") == predictions(tmp_path / "one")
    wait_until(lambda: not Path(f"/proc/{hit[0]}").exists())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_over_random_kills_of_actors_nodes_and_driver_nothing_is_lost_or_asked_twice():
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "tests.kills", "--commands", "run-ray", "--kills", "5", "--seed", "3"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.endswith("seed 3: 5 kills, 0 faults\n")


def reaped_folders(driver: subprocess.Popen[bytes]) -> list[Path]:
    """Return the folder that a run which starts Ray has for it, once it is there."""
    children = (one.info for one in psutil.process_iter(["cmdline", "ppid"]) if one.info["ppid"] == driver.pid)
    commands = [child["cmdline"] or [] for child in children]
    return [Path(words[-1]) for words in commands if any(word.endswith("reaper.py") for word in words)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_when_the_driver_is_killed_the_ray_that_it_started_is_gone_and_the_same_command_goes_on(checkpoint, tmp_path):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "evalkit", "run", "--model", str(checkpoint), "--task", "babilong", "--quiet"]
    command += ["--backend", "scripted", "--script", "slow", "--lengths", "1k", "--subsets", "qa1", "--samples", "60"]
    command += ["--out", str(tmp_path / "r"), "--replicas", "2"]
    process = subprocess.Popen(command, start_new_session=True)
    file = tmp_path / "r" / "predictions.jsonl"
    wait_until(lambda: file.exists() and file.read_bytes().count(b"\n") > 3)
    [folder] = reaped_folders(process)
    assert folder.exists()
    os.killpg(process.pid, signal.SIGKILL)  # and whatever is of its group
    process.wait()
    wait_until(lambda: not folder.exists() and not actors(folder), 30)
    had = asked(tmp_path / "r")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as again:
        wait_until(lambda: reaped_folders(again))
        [folder] = reaped_folders(again)
        assert again.wait() == 0
    assert not folder.exists()
    assert asked(tmp_path / "r")[: len(had)] == had
    assert len(asked(tmp_path / "r")) == len(set(asked(tmp_path / "r"))) == 60
