"""A chat template is a program that a stranger wrote: it may not keep us for ever, nor take all memory."""

import os
import time
from pathlib import Path

import psutil
import pytest

from evalkit.errors import BadInput
from evalkit.models import bounded
from evalkit.models.encoder import Encoder
from tests.variants import variant

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}" + "{% endfor %}" * 2
DOUBLES = "{% set ns = namespace(x='x') %}{% for a in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"


@pytest.fixture(autouse=True)
def _one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CPU_SECONDS", 1)
    monkeypatch.setattr(bounded, "MEMORY_BYTES", 2**28)


def with_template(checkpoint: Path, folder: Path, template: str) -> Path:
    copy = variant(checkpoint, folder)
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.jinja").write_text(template)
    return copy


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOPS, "does not come to an end within 1 s"),
        ("{{ 9 ** (9 ** 9) }}", "does not come to an end within 1 s"),
        (DOUBLES, "fills more than 0.25 GiB"),
        ("{{ 'x' * 10**10 }}", "fills more than 0.25 GiB"),
        ("{{ 'x' * 10**7 }}", "makes more than 1,000,000 characters"),
    ],
)
def test_a_template_without_an_end_is_refused_by_name_and_leaves_no_process(
    checkpoint: Path, tmp_path: Path, template: str, said: str
) -> None:
    folder = with_template(checkpoint, tmp_path / "c", template)
    before = set(psutil.Process().children())
    with pytest.raises(BadInput, match=f"The chat template of {folder} {said}"):
        Encoder.open(folder)
    assert set(psutil.Process().children()) <= before


def test_a_template_that_refuses_its_conversation_is_explained_by_who_renders_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = with_template(checkpoint, tmp_path / "c", "{{ raise_exception('no questions') }}")
    with pytest.raises(BadInput, match=r"refuses this conversation .*: no questions"):
        Encoder.open(folder).render([{"role": "user", "content": "Where is Mary?"}])


def test_the_child_is_never_taken_for_its_parent(tmp_path: Path) -> None:
    marks = tmp_path / "marks"

    def leaves() -> str:
        raise SystemExit(7)

    bounded.require_bounded(leaves, "It")
    with marks.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.2)
    assert marks.read_text() == f"{os.getpid()}\n"
