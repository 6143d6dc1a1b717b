"""``evalkit_training.json``: how a checkpoint came to be. One type, read and written here and nowhere else.

It lies beside the weights and says what they were trained on and under which rope rule; runs serve by it, reports name
arms and lengths by it. It is written last, so its presence is the end of a training. While a training goes on, the
same record without its results is ``plan.json``.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from evalkit.errors import BadInput
from evalkit.files import write_whole
from evalkit.models.rope.formulas import RopeScaling
from evalkit.models.rope.stored import KeptRule, KnownRule
from evalkit.reading import read_as, read_json

TRAINING_RECORD = "evalkit_training.json"
SCHEMA = 2
"""1 held neither what ``precision`` came to, nor the machine, nor how many samples fitted no length."""

_RESULTS = ("schema", "environments", "steps", "tokens", "final_loss")
"""What does not decide the weights: two records that agree in all else are of one training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPositions:
    """The positions that samples were shown at; see ``train.positions.PositionRule``."""

    kind: str = "contiguous"
    stages: tuple[float, ...] = (1.0,)
    range_length: int | None = None
    """Tokens that the stages are multiples of; None: the trained length."""
    mixed: bool = False
    per_batch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedLeakage:
    """What the comparison of training and evaluation items found; see ``train.data.Leakage``."""

    trained: int
    evaluated: int
    shared: int
    dropped: int = 0
    trained_untold: int = 0
    evaluated_untold: int = 0
    found: str = ""
    """The same in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedData:
    """The samples; see ``train.data.DataRecipe``."""

    task: str
    subsets: tuple[str, ...]
    samples: int
    """Asked for."""
    examples: int
    """Trained on."""
    unfitting: int = 0
    """Drawn, but longer than the trained length."""
    shortest: int
    longest: int
    seed: int
    rows: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    sha256: str
    """Over all token ids in order; see ``train.data.data_hash``."""
    leakage: TrainedLeakage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """How one checkpoint was trained. What a record on file lacks has its default here."""

    schema: int = SCHEMA
    recipe: str
    trained_length: int
    """Longest sample, tokens with answer."""
    rope: KnownRule | None = None
    """The rule that was on; None: not recorded."""
    rope_warnings: tuple[str, ...] = ()
    """What was said about it."""
    seed: int | None = None
    positions: TrainedPositions | None = None
    largest_position: int | None = None
    base: Mapping[str, Any] | None = None
    """Name and hashes of the checkpoint that it started from; None: random weights."""
    data: TrainedData | None = None
    optimization: Mapping[str, Any] = field(default_factory=dict)
    """Schedule, batches, precision and device kind, as they were resolved."""
    lora: Mapping[str, Any] | None = None
    environments: tuple[Mapping[str, Any], ...] = ()
    """Processor and versions that it was trained with; several, where it went on elsewhere."""
    steps: int | None = None
    """Of the optimizer."""
    tokens: int | None = None
    """Seen in all, epochs counted."""
    final_loss: float | None = None
    """Mean over the last steps that were logged together; None: not finite, or not recorded."""

    def __post_init__(self) -> None:
        if not 0 < self.trained_length < 2**40:
            raise BadInput("trained_length is no number of tokens from 1 up")

    @classmethod
    def read(cls, file: Path) -> "TrainingRecord | None":
        """Return the record in a file, or None where there is no such file.

        Raises:
            BadInput: it cannot be read, or is no training record; names file and field.
        """
        try:
            values = read_json(file)
        except BadInput as error:
            raise BadInput(f"{str(error).rstrip('.')}; restore it, or train again.") from error
        return None if values is None else cls.from_json(values, str(file))

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> "TrainingRecord":
        """Return the record that ``to_json`` gave.

        Args:
            values: a JSON object; fields that are not known are left out.
            where: the file, for messages.

        Raises:
            BadInput: a field is missing or of another type, or a later evalkit wrote it; names file and field.
        """
        if isinstance(values.get("schema"), int) and values["schema"] > SCHEMA:
            raise BadInput(f"{where} has schema {values['schema']}; this evalkit reads up to {SCHEMA}: update it.")
        try:
            rope = values.get("rope")
            record = read_as(cls, {name: value for name, value in values.items() if name != "rope"})
            if rope is None:
                return record
            kept = isinstance(rope, Mapping) and rope.get("rule") == "as stored"
            rule: KnownRule = read_as(KeptRule, rope, "rope") if kept else read_as(RopeScaling, rope, "rope")
            return replace(record, rope=rule)
        except BadInput as error:
            raise BadInput(f"{where} is no training record: {str(error).rstrip('.')}.") from error

    @property
    def found(self) -> str:
        """What the comparison of training and evaluation items found, in a sentence; empty where there was none."""
        return self.data.leakage.found if self.data and self.data.leakage else ""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that ``from_json`` reads back."""
        rope = self.rope.to_json() if self.rope else None
        values: dict[str, Any] = json.loads(json.dumps(asdict(self) | {"rope": rope}))
        return values

    def write(self, file: Path) -> None:
        """Write it, whole or not at all."""
        write_whole(file, json.dumps(self.to_json(), indent=2) + "\n")

    def difference(self, other: "TrainingRecord") -> str | None:
        """Say in which deciding field two trainings differ first ("its seed is 0, not 1"); None: they are one."""
        mine, theirs = _flat(self.to_json()), _flat(other.to_json())
        for name in [*mine, *(theirs.keys() - mine.keys())]:
            if name.partition(".")[0] not in _RESULTS and mine.get(name) != theirs.get(name):
                return f"its {name} is {mine.get(name)!r}, not {theirs.get(name)!r}"
        return None


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    return dict(_walk(values, before))


def _walk(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
