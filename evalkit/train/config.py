"""What one training is asked for: checked settings, from flags or from TOML."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from evalkit import options
from evalkit.benchmarks import task
from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.benchmarks.options import TaskOptions
from evalkit.errors import BadInput
from evalkit.lengths import parse_length
from evalkit.models.training_record import TrainedPositions
from evalkit.options import option
from evalkit.train.data import DataRecipe, OnLeak
from evalkit.train.positions import PAPER_STAGES
from evalkit.train.recipes import RECIPES, Recipe, make_recipe

Precision: TypeAlias = Literal["float32", "bfloat16"]

_OPTIMIZATION = (
    "epochs", "batch_size", "accumulation", "learning_rate", "warmup", "final_rate", "weight_decay", "adam_beta2",
    "max_gradient_norm", "lm_weight",
)  # fmt: skip

_POSITIONS = "Recipe and positions"
ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Asked(NamedTuple):
    """What settings alone say of a training record: its fields, and some of two fields that hold more."""

    fields: dict[str, Any]
    data: dict[str, Any]
    optimization: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One arm. Two arms that differ in ``recipe`` and ``out`` alone see the same samples in the same order."""

    GROUP: ClassVar[str] = "Optimization"

    base: str = option("--base", "Checkpoint to start from: a folder, or a hub name.", group="Base")
    revision: str | None = option(
        "--revision", "Branch, tag or commit of a hub name [main].", default=None, group="Base"
    )
    out: Path = option("--out", "Folder of the trained checkpoint.", group="Output")
    recipe: str = option("--recipe", f"One of {', '.join(RECIPES)}.", group=_POSITIONS)
    """One of ``recipes.RECIPES``."""
    data: DataRecipe = field(default_factory=DataRecipe)
    options: TaskOptions = field(default_factory=BABILongOptions)
    """Of the benchmark that gives the data."""
    chat: bool | None = option(
        "--chat-template", "Use it; default: if the base has one.", default=None, group="Wording"
    )
    """Use the chat template; None: exactly when the base has one."""
    system_prompt: str | None = option(
        "--system-prompt", "System message in front of every prompt.", default=None, group="Wording"
    )
    template_args: tuple[str, ...] = option(
        "--template-arg",
        "Variable of the chat template, such as enable_thinking=false.",
        default=(),
        repeat=True,
        group="Wording",
    )
    against: tuple[Path, ...] = option(
        "--against",
        "Run folder, or TOML file of a run, whose questions are held out (repeatable).",
        default=(),
        repeat=True,
        group="Data",
    )
    """Run folders, or TOML files of a run's settings."""
    on_leak: OnLeak = option("--on-leak", "Items that evaluation asks too [refuse].", default="refuse", group="Data")

    factor: float = option(
        "--factor", "Factor of YaRN in training, where the recipe has it on [2].", default=2.0, group=_POSITIONS
    )
    """s of YaRN in training, for the recipes that train under it."""
    stages: tuple[float, ...] = option(
        "--stages",
        "Ranges of random positions by stage, x --range-length [1,1.25,1.5,2,2].",
        default=PAPER_STAGES,
        group=_POSITIONS,
    )
    range_length: int | None = option(
        "--range-length",
        "Tokens that the stages are multiples of; a longer sample has its own length for a range [--longest].",
        default=None,
        parse=parse_length,
        group=_POSITIONS,
    )
    mixed: bool = option(
        "--mixed", "Draw each sample's range log-uniformly up to the stage's [no].", default=False, group=_POSITIONS
    )
    per_batch: bool = option(
        "--per-batch", "One draw of positions for a whole batch [no].", default=False, group=_POSITIONS
    )

    epochs: float = option("--epochs", "Passes over the data [5].", default=5.0)
    batch_size: int = option("--batch-size", "Samples per device and step [1].", default=1)
    """Samples per device and step."""
    accumulation: int = option("--accumulation", "Batches per optimizer step [8].", default=8)
    """Batches per optimizer step."""
    learning_rate: float = option("--learning-rate", "[1e-4]", default=1e-4)
    warmup: float = option("--warmup", "Part of the steps over which the rate rises [0.05].", default=0.05)
    """Part of the steps over which the learning rate rises."""
    final_rate: float = option(
        "--final-rate", "Where the cosine of the rate ends, as a share of its highest; 0 is plain cosine [0.1].",
        default=0.1,
    )  # fmt: skip
    weight_decay: float = option("--weight-decay", "[0.01]", default=0.01)
    adam_beta2: float = option(
        "--adam-beta2", "AdamW's mean of squared gradients reaches back some 1 / (1 - this) steps [0.95].", default=0.95
    )
    max_gradient_norm: float = option("--max-gradient-norm", "Longer gradients are scaled down [1].", default=1.0)
    lm_weight: float = option(
        "--lm-weight", "Weight of the loss on the prompt, beside that on the answer [0].", default=0.0
    )
    """Weight of the language-model loss on the prompt, beside the loss on the answer."""
    lora_rank: int = option("--lora-rank", "0 trains all weights [0].", default=0, group="LoRA")
    """0 trains all weights."""
    lora_alpha: float = option("--lora-alpha", "[32]", default=32.0, group="LoRA")
    lora_dropout: float = option("--lora-dropout", "[0]", default=0.0, group="LoRA")
    lora_targets: tuple[str, ...] = option(
        "--lora-targets", "Module names [attention and MLP projections].", default=ATTENTION_AND_MLP, group="LoRA"
    )
    merge: bool = option(
        "--merge", "Merge the adapter into the weights, or write it beside [merge].", default=True, group="LoRA"
    )
    gradient_checkpointing: bool = option(
        "--gradient-checkpointing", "Less memory [no].", default=False, group="Device"
    )
    precision: Precision | Literal["auto"] = option(
        "--precision", "[auto: bfloat16 on a GPU; on a CPU as 'run --dtype auto']", default="auto", group="Device"
    )
    """Of the arithmetic."""
    seed: int = option("--seed", "Of weights, order and positions [0].", default=0)
    save_every: int = option("--save-every", "Steps between checkpoints [five in all].", default=0, group="Output")
    """Optimizer steps between checkpoints; 0: five in all."""

    def __post_init__(self) -> None:
        """Refuse what no training can use.

        Raises:
            BadInput: a value out of its range, an unknown recipe or task, or options of another task.
        """
        for key in ("batch_size", "accumulation", "epochs", "learning_rate", "lora_alpha", "max_gradient_norm"):
            self._require(key, getattr(self, key) > 0, "positive")
        for key in ("lora_rank", "lm_weight", "weight_decay", "save_every"):
            self._require(key, getattr(self, key) >= 0, "0 or more")
        for key in ("warmup", "final_rate"):
            self._require(key, 0 <= getattr(self, key) <= 1, "between 0 and 1")
        self._require("adam_beta2", 0 <= self.adam_beta2 < 1, "0 or more and below 1")
        self._require("lora_dropout", 0 <= self.lora_dropout < 1, "0 or more and below 1")
        self._require("seed", 0 <= self.seed < 2**32, "a whole number from 0 to 4294967295")
        self._require("range_length", self.range_length is None or self.range_length > 0, "positive")
        if not isinstance(self.options, task(self.data.task).options):
            raise BadInput(f"The data are of the task {self.data.task}, and the options of another.")
        self.make_recipe()

    def _require(self, key: str, holds: bool, rule: str) -> None:
        if not holds:
            raise BadInput(f"--{key.replace('_', '-')} is {getattr(self, key)}; it is {rule}.")

    def make_recipe(self) -> Recipe:
        """Return the arm's recipe with this training's schedule."""
        return make_recipe(self.recipe, stages=self.stages, mixed=self.mixed, per_batch=self.per_batch)

    @property
    def stage_length(self) -> int:
        """Tokens that the stages of random positions are multiples of."""
        return self.range_length or self.data.longest

    def asked(self) -> Asked:
        """Return what a record of this training holds, as far as it is known before base and data are opened."""
        rule = self.make_recipe().positions
        lora = {name: getattr(self, f"lora_{name}") for name in ("rank", "alpha", "dropout", "targets")}
        return Asked(
            {
                "recipe": self.recipe,
                "trained_length": self.data.longest,
                "seed": self.seed,
                "positions": TrainedPositions(**asdict(rule), range_length=self.stage_length),
                "largest_position": rule.largest_range(self.stage_length, self.data.longest) - 1,
                "lora": lora | {"merged": self.merge} if self.lora_rank else None,
            },
            data={one.name: getattr(self.data, one.name) for one in fields(self.data)}
            | {"options": options.write(self.options)},
            optimization={name: getattr(self, name) for name in _OPTIMIZATION},
        )


def train_config(values: Mapping[str, Any], where: str = "The command line") -> TrainConfig:
    """Make a training's configuration of flat settings; see ``runs.config.run_config``.

    Raises:
        BadInput: a setting that is missing, unknown or of another type.
    """
    data = task(values.get("task", DataRecipe().task)).options
    options.refuse_unknown(values, where, TrainConfig, data)
    return options.read(TrainConfig, values, where, options=options.read(data, values, where))
