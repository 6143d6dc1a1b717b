"""What a terminal shows: short, as wide as it is and never wider, and no two arms by one name."""

import csv
import re
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from evalkit.cli.commands import main
from evalkit.report.cells import Entry, Row, Table
from evalkit.report.naming import short_names
from evalkit.report.terminal import terminal, terminal_width
from tests.report_runs import holds_to, training, write_run

K = 1024
TINY = Path(__file__).parents[1] / "results" / "reference" / "tiny"
NAMES = (
    "microsoft/Phi-3-mini-128k-instruct (instruction+examples)",
    "microsoft/Phi-3-mini-128k-instruct (none)",
    "Randomized YaRN, paper's range, no curriculum",
    "50% & up_to {8k} <b>\x1b[31m|$\\",
    "plain",
)


def plain(text: str) -> list[str]:
    return re.sub(r"\x1b\[\d+m", "", text).splitlines()


def table_of(names: tuple[str, ...], *, columns: int = 6, below: str = "[10.0, 20.0]") -> Table:
    rows = [Row(group="g", entries=(Entry(name), *[Entry("15.0", below)] * columns)) for name in names]
    lengths = (f"{2**i}K" for i in range(columns))
    return Table(name="t", title="A title", caption="A caption. n: samples.", columns=("Arm", *lengths), num_labels=1,
                 rows=tuple(rows))  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    for archive in TINY.glob("seed-*.tar.xz"):
        with tarfile.open(archive) as packed:
            packed.extractall(root, filter="data")
    return root


@pytest.fixture(scope="module")
def two_arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    for recipe in ("plain", "yarn"):
        write_run(root / recipe, arm=recipe, accuracy=holds_to(8 * K), samples=10, training=training(recipe))
    return root


def report(*words: str, columns: int, out: Path) -> Result:
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(main, ["report", *words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_report_on_the_tiny_study_is_short_and_as_wide_as_the_terminal(
    tiny: Path, columns: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from evalkit.report import build

    monkeypatch.setattr(build, "all_drawings", lambda analysis: [])  # they are the same at every width, and take long
    lines = plain(report(str(tiny), columns=columns, out=tmp_path).output)
    assert max(map(len, lines)) <= columns
    assert len(lines) <= 60
    text = " ".join(" ".join(lines).split())
    assert text.startswith(
        "BABILong Better than plain at 256 to 4K: YaRN + PoSE, paper's range +52.2 [+47.2, +56.8]; Randomized YaRN, "
        "paper's range +51.4 [+46.7, +55.6]"
    )
    assert f"{tmp_path}/: report.html" in text.replace("/ ", "/")
    assert "Randomized YaRN, paper's range is better" not in text, "a sentence per arm is for --full"


@pytest.mark.parametrize("columns", [80, 100])
def test_three_seeds_fit_one_screen_with_their_notes_and_files(
    tiny: Path, columns: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from evalkit.report import build

    monkeypatch.setattr(build, "all_drawings", lambda analysis: [])
    done = report(*(str(tiny / f"seed-{seed}") for seed in range(3)), columns=columns, out=tmp_path)
    assert f"{tmp_path}/:report.html" in "".join(done.stderr.split()), "wherever a line ends"
    assert len(done.stdout.splitlines()) + len(done.stderr.splitlines()) <= 60


@pytest.fixture(scope="module")
def many_arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """58 arms with long names: a baseline, then better and better ones."""
    root = tmp_path_factory.mktemp("many")
    for i in range(58):
        name = f"organization-{i % 7}/Some-Model-{i}B-Instruct (instruction+examples)" if i else "plain"
        write_run(
            root / f"run-{i}", arm=name, accuracy=holds_to(4 * K, best=0.35 + i / 100), samples=10, subsets=("qa1",)
        )
    return root


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_of_many_arms_the_best_are_shown_and_how_many_are_left_out_is_said(
    many_arms: Path, columns: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from evalkit.report import build

    monkeypatch.setattr(build, "all_drawings", lambda analysis: [])
    done = report(str(many_arms), columns=columns, out=tmp_path)
    lines = plain(done.stdout)
    assert len(lines) + len(done.stderr.splitlines()) <= 60
    found = re.search(r"(\d+) of 58 arms are left out; the (\d+) are plain and those with the", " ".join(lines))
    assert found
    assert int(found[1]) + int(found[2]) == 58
    assert int(found[2]) >= 3
    assert "--full and the CSV files have all." in " ".join(lines)
    assert any(line.startswith("plain ") for line in lines), "the baseline, though it is the worst of all"
    with (tmp_path / "arms.csv").open() as file:
        assert len({row["arm"] for row in csv.DictReader(file)}) == 58


def test_arms_that_are_named_are_all_shown(many_arms: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from evalkit.report import build

    monkeypatch.setattr(build, "all_drawings", lambda analysis: [])
    names = [f"organization-{i % 7}/Some-Model-{i}B-Instruct (instruction+examples)" for i in range(1, 58)]
    done = report(str(many_arms), *(word for name in names for word in ("--arms", name)), columns=200, out=tmp_path)
    assert all(done.stdout.count(name) >= 1 for name in names)
    assert "are left out" not in done.stdout


def test_the_whole_report_has_every_table_no_line_too_wide_and_no_explanation_twice(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from evalkit.report import build

    monkeypatch.setattr(build, "all_drawings", lambda analysis: [])
    lines = plain(report(str(tiny), "--full", columns=80, out=tmp_path).output)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    titles = re.findall(r"^### (.*)$", (tmp_path / "report.md").read_text(), re.MULTILINE)
    assert len(titles) >= 6
    assert all(title in text for title in titles)
    assert "Randomized YaRN, paper's range is better: 51.4 points" in text
    assert text.count("Effective: the longest length up to which the interval stays above") == 1


def test_without_a_terminal_a_report_has_a_hundred_columns_or_what_columns_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.get_terminal_size", lambda fd: (_ for _ in ()).throw(OSError()))
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal_width() == 100
    monkeypatch.setenv("COLUMNS", "133")
    assert terminal_width() == 133


def test_quiet_prints_notes_alone(two_arms: Path, tmp_path: Path) -> None:
    done = report(str(two_arms), "--quiet", columns=100, out=tmp_path)
    assert done.stdout == ""
    assert done.stderr.startswith("note: ")
    assert {line[:4] for line in done.stderr.splitlines()} <= {"note", "    "}
    assert (tmp_path / "report.html").exists()


def test_a_quiet_study_prints_the_notes_of_its_report_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evalkit.cli.progress import StudyProgress
    from evalkit.study.experiment import load_experiment
    from evalkit.study.steps import plan_steps
    from evalkit.study.study import Study

    steps = plan_steps(Study(experiment=load_experiment("tiny"), root=tmp_path, plots=tmp_path), [0])
    with StudyProgress(steps, quiet=True) as progress:
        progress.is_finished(steps[0], "written")
        progress.is_finished(
            steps[-1], "BABILong\n  Better than plain\nnote: one run is left out,\n    since it is damaged"
        )
    assert capsys.readouterr() == ("", "note: one run is left out,\n    since it is damaged\n")
    assert "--quiet" in CliRunner().invoke(main, ["reproduce", "--help"]).output


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_of_a_table_is_wider_than_the_terminal_and_no_number_is_lost(width: int) -> None:
    table = table_of(NAMES)
    lines = plain(terminal(table, width))
    assert max(map(len, lines)) <= width
    assert " ".join(lines).count("[10.0, 20.0]") == len(NAMES) * 6
    headings = [word for line in lines if line.startswith("Arm") for word in line.split()[1:]]
    assert headings == list(table.columns[1:])


def test_columns_line_up() -> None:
    rows = (
        Row(group="a", entries=(Entry("arm"), Entry("9.5", "[1.0, 20.0]", best=True))),
        Row(group="b", entries=(Entry("a longer arm"), Entry("100.0"))),
    )
    table = Table(name="t", title="T", caption="", columns=("Arm", "4K"), num_labels=1, rows=rows)
    ends = {len(line) for line in plain(terminal(table, 80))[2:] if line}
    assert ends == {len("a longer arm") + 2 + len("[1.0, 20.0]")}


def test_a_terminal_is_not_driven_by_the_name_of_an_arm() -> None:
    assert "\x1b[31m" not in terminal(table_of(NAMES), 100)


@pytest.mark.parametrize("limit", [8, 16, 24, 40])
def test_what_tells_names_apart_stays_when_they_are_shortened(limit: int) -> None:
    short = short_names(NAMES, limit)
    assert max(map(len, short.values())) <= limit
    assert len(set(short.values())) == len(NAMES)
    if limit >= 24:
        assert "none" in short[NAMES[1]]
        assert "examples" in short[NAMES[0]]
    assert short["plain"] == "plain"


@given(st.lists(st.text(max_size=60), max_size=60), st.integers(6, 40))
@example(["a\x00", "a\x01", "a�"], 8)
@example(["x" * 50 + "1", "x" * 50 + "2"], 8)
@example(["a − b", "a − c", "a"], 10)
def test_no_two_names_are_ever_shown_alike(names: list[str], limit: int) -> None:
    whole = [name for name in names if " − " not in name]
    short = short_names(whole, limit)
    assert len(set(short.values())) == len(set(whole))
    assert all(len(text) <= limit for text in short.values())
    assert len(set(short_names(names, limit).values())) == len(set(names))


def test_both_sides_of_a_difference_are_shortened() -> None:
    short = short_names([f"{first} − {second}" for first in NAMES for second in NAMES if first != second], 30)
    assert max(map(len, short.values())) <= 30
    assert len(set(short.values())) == len(short)
    assert all(text.count(" − ") == 1 for text in short.values())


def is_text(line: str) -> bool:
    """Neither a row of a table nor a command to be copied: a break would spoil these."""
    return len(re.findall(r"\S {2,}\S", line)) < 2 and not line.strip().startswith(("evalkit ", "export "))


@pytest.mark.parametrize(
    "words",
    [
        "run {study} --dry-run",
        "run --model {ckpt} --task babilong --lengths 64k",
        "run --model {ckpt} --rope unknown",
        "check {ckpt} --lengths 1k,64k",
        "reproduce",
        "reproduce tiny --dry-run",
        "tasks",
        "tasks mrcr",
        "report {nowhere}",
        "compare {runs}/plain {runs}/yarn",
    ],
)
def test_no_sentence_is_wider_than_the_terminal_and_in_a_file_each_stays_whole(
    words: str, checkpoint: Path, two_arms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "study.toml"
    study.write_text(
        f'model = "{checkpoint}"\ntask = "babilong"\nlengths = ["1k"]\nsubsets = ["qa1"]\nsamples = 3\nbackend = "hf"\n'
    )
    for name, path in (("ckpt", checkpoint), ("runs", two_arms)):
        (tmp_path / name).symlink_to(path)
    typed = words.format(study="study.toml", ckpt="ckpt", runs="runs", nowhere="a/folder/that/is/not/there").split()
    narrow = CliRunner(env={"COLUMNS": "80"}).invoke(main, typed).output.splitlines()
    assert [line for line in plain("\n".join(narrow)) if len(line) > 80 and is_text(line)] == []
    if words.startswith(("run", "check", "reproduce")):
        whole = CliRunner(env={"COLUMNS": None}).invoke(main, typed).output
        assert max(map(len, whole.splitlines())) > 80
        assert "".join(whole.split()) == "".join(" ".join(narrow).split())
