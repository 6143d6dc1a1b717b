"""What README and tutorial tell a newcomer to type does what they say, as it is written, one after the other."""

from pathlib import Path

import pytest

from tests.documents import ROOT, run_as_written

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]


def test_the_newcomers_path_runs_as_it_is_written(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "smollm2").symlink_to(smollm2.resolve())
    first = run_as_written(ROOT / "README.md", tmp_path)
    assert "60 samples recorded, 60 asked now" in first[-1][1]
    then = dict(run_as_written(ROOT / "docs" / "tutorial.md", tmp_path))
    assert "60 samples recorded, 0 asked now" in then[first[-1][0]], "the same command, repeated"
    assert (tmp_path / "plots" / "report.html").is_file()
