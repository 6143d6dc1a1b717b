"""Steps of a study side by side on Ray: what is lost on the way is done again, and the rest stands."""

import os
import signal
from pathlib import Path

import pytest

from evalkit.errors import BadInput, EngineError
from evalkit.study.experiment import load_experiment
from evalkit.study.on_ray import Devices
from evalkit.study.steps import Report
from evalkit.study.study import Study

pytestmark = pytest.mark.slow


class Dies(Report):
    """A step whose process is killed until it was begun so often."""

    def __init__(self, study: Study, times: int):
        super().__init__(study=study, seeds=(times,))

    def carry_out(self, on_part):
        begun = self.study.root / "begun"
        with begun.open("a") as file:
            file.write("x")
        on_part(1, 2)
        if begun.stat().st_size <= self.seeds[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(experiment=load_experiment("tiny"), root=tmp_path / "r", plots=tmp_path / "p")


def test_a_torn_step_is_done_again_but_not_for_ever(study):
    pytest.importorskip("ray")
    study.root.mkdir()
    said = []
    with Devices(1, None, study) as devices:
        devices.carry_out([Dies(study, 2)], on_step=lambda step, what: said.append(what), on_share=lambda *_: None)
        (study.root / "begun").unlink()
        with pytest.raises(EngineError, match="its process was lost 3 times"):
            devices.carry_out([Dies(study, 9)], on_step=lambda *_: None, on_share=lambda *_: None)
    assert said == ["done"]
    assert (study.root / "begun").read_text() == "xxx"


def test_more_steps_side_by_side_than_cores_are_refused(study):
    pytest.importorskip("ray")
    with pytest.raises(BadInput, match="--replicas is 999"):
        Devices(999, None, study)
