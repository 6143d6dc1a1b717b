"""What can be chosen about the questions of BABILong."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from evalkit.benchmarks.babilong.structure import Condition
from evalkit.benchmarks.options import GENERATED, TaskOptions
from evalkit.errors import BadInput
from evalkit.options import option


@dataclass(frozen=True, kw_only=True)
class BABILongOptions(TaskOptions):
    """Facts, background, placement and wording."""

    GROUP: ClassVar[str] = "Data of BABILong"

    facts: Path | None = option("--facts", "Folder of bAbI v1.2 text files instead of generated worlds.", default=None)
    noise: tuple[Path, ...] = option("--noise", "Background text file (repeatable).", default=(), repeat=True)
    """Text files that replace the built-in prose."""
    depths: tuple[float, ...] = option("--depth", "Ask each sample with its facts at 0,0.25,... depth.", default=())
    """0 is the top, 1 the end; empty: official random placement."""
    only: tuple[str, ...] = option(
        "--only", "Only stories of this structure, such as 'entries>=2' (repeatable).", default=(), repeat=True
    )
    """Conditions on the tags of ``structure.py``; a sample meets all of them."""
    prompts: str = option("--prompts", "'own', 'official' (hub), or a local path.", default="own", group="Wording")
    instruction: bool = option("--instruction", "The instruction in front.", default=True, group="Wording")
    examples: bool = option("--examples", "The worked examples.", default=True, group="Wording")
    post_prompt: bool = option("--post-prompt", "The sentence on how to answer.", default=True, group="Wording")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source != GENERATED and (self.facts or self.noise or self.depths):
            raise BadInput(f"Published rows (--source {self.source}) come with their facts and background ready made.")
        _ = self.conditions
        if wrong := [depth for depth in self.depths if not 0 <= depth <= 1]:
            raise BadInput(f"Depth {wrong[0]:g} is not between 0 and 1; 0 puts the facts first, 1 last.")

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions of ``only``.

        Raises:
            BadInput: one has another form, or names a tag or an operator that there is not.
        """
        return tuple(map(Condition.parse, self.only))

    @property
    def left_out(self) -> tuple[str, ...]:
        """Parts of the wording that are not shown."""
        return tuple(name for name in ("instruction", "examples", "post_prompt") if not getattr(self, name))
