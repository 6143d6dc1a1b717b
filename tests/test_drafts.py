"""Files and folders that are whole or not there, and drafts that killed processes left."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from evalkit.files import drafted, is_draft_of_weights, remove, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_fails_half_way_leaves_the_old_one_and_no_draft(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.csv", "old")
    with suppress(RuntimeError), drafted(tmp_path / "a.csv") as draft:
        draft.write_text("half")
        assert (tmp_path / "a.csv").read_text() == "old"
        raise RuntimeError
    assert (names(tmp_path), (tmp_path / "a.csv").read_text()) == (["a.csv"], "old")


def test_a_folder_takes_the_place_of_a_damaged_one_at_once(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "half").touch()
    with drafted(tmp_path / "cache", folder=True) as draft:
        (draft / "whole").write_text("all of it")
        assert names(tmp_path / "cache") == ["half"]
    assert (names(tmp_path), names(tmp_path / "cache")) == (["cache"], ["whole"])


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_litter_of_a_killed_process_is_removed_and_the_draft_of_one_that_writes_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from evalkit.files import drafted\n"
        "with drafted(Path(sys.argv[1])) as draft:\n"
        "    draft.write_text('half'); print(draft.name, flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.csv")]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    draft = writer.stdout.readline().strip()
    write_whole(tmp_path / "a.csv", "ours")
    assert names(tmp_path) == ["a.csv", draft]
    writer.kill()
    writer.communicate()
    write_whole(tmp_path / "b.csv", "another file")
    assert names(tmp_path) == ["a.csv", draft, "b.csv"]
    write_whole(tmp_path / "a.csv", "ours again")
    assert names(tmp_path) == ["a.csv", "b.csv"]


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
@pytest.mark.parametrize("method", ["touch", "mkdir"])
def test_a_draft_that_another_writer_takes_for_litter_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    import fcntl

    make, made = getattr(Path, method), []

    def make_and_lose_the_first(self: Path, **options: Any) -> None:
        make(self, **options)
        made.append(self)
        if len(made) == 1:
            remove(self)

    monkeypatch.setattr(Path, method, make_and_lose_the_first)
    with drafted(tmp_path / "a", folder=method == "mkdir") as draft:
        assert made == [draft, draft]
        descriptor = os.open(draft, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
    assert names(tmp_path) == ["a"]


def test_a_draft_of_weights_is_known_by_its_name(tmp_path: Path) -> None:
    for name in (".tmpAb12Cd", ".tmp", ".tmpfile.txt", "a.tmpAb12Cd"):
        (tmp_path / name).touch()
    (tmp_path / ".tmpFolder").mkdir()
    assert [path.name for path in tmp_path.iterdir() if is_draft_of_weights(path)] == [".tmpAb12Cd"]
