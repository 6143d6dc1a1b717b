"""What a planned run will cost, and whether its answers can decide anything: known before a model is loaded."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.lengths import parse_length
from evalkit.machine import describe
from evalkit.models.backends.prefix import common_prefix
from evalkit.models.checkpoint import Checkpoint
from evalkit.reading import read_json
from evalkit.records.folder import find_run_folders
from evalkit.report.resampling import Observations
from evalkit.report.stats import contrast
from evalkit.runs.answers import MAX_FACT_CHARS
from evalkit.runs.pace import MeasuredPace, measured_pace
from evalkit.runs.plan import Cell, Plan
from evalkit.study.calibration import answers_folder
from evalkit.study.experiment import Rate
from evalkit.types import Prompt, Sample

BUILDING_SECONDS = 60.0
"""Prompts are built one and all for about so long; of those left over the size is estimated."""
BEGINNING_SECONDS = 2.0
"""As long before a run, which builds them anew."""
_MOST_ROWS = 12
"""Cells that a run begins with a row for; of more, it has one for each length."""
DISCORDANT = 0.3
"""Assumed share of questions that two arms answer differently (one right, one wrong). Between pairs of arms of the
tiny study (results/reference/tiny) the median is 22, 26 and 33 % at 1k, 2k and 4k, trained at 128 tokens."""
COARSE = 0.20
"""A plan that can only show larger differences than this between two arms hardly answers its question."""
_LINE_BYTES = 700
"""Of a line of predictions.jsonl and its rows of scores.parquet, without the texts in them."""
_TOKEN_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class CellCost:
    """One (subset, length) of a plan."""

    subset: str
    length: str
    rope: str
    samples: int
    """Questions."""
    contexts: int
    """What they are asked of: as many, or fewer with ``--questions-per-context``."""
    stories: int
    """Independent ones, which count as one in every interval whatever is asked of them: the effective sample size."""
    unfitting: int
    """Samples that do not fit, or that the chat template refuses: recorded as such, never asked."""
    unfitting_example: str
    prompt_tokens: int
    """Of all samples together, repeats among them (``--repeat``), as of all that follows but memory and scoring, which
    is done once."""
    prefilled_tokens: int
    """Of these, what is computed where a context that several samples share is computed once."""
    scoring_tokens: int
    """Computed behind the prompts for the right answer and the wrong labels (``--answer-logprob``); else 0."""
    estimated: bool
    """Not all prompts were built; tokens and unfitting samples are scaled up from those that were."""
    answer_tokens: int
    """At most, of all samples together."""
    prefill_flops: float
    """Of the prompts, and of the answers that are scored behind them."""
    kv_bytes: int
    """Of the longest request, prompt and answer, as vLLM keeps it in the weights' dtype."""
    disk_bytes: int
    seconds: float | None
    """Without loading the engine; None where no earlier run on this machine tells."""
    detectable_difference: float
    """Smallest paired difference (0 to 1) between two arms that this cell shows with 80 % power; see DISCORDANT."""


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """A whole plan."""

    arm: str
    task: str
    backend: str
    out: str
    parameters: int
    weight_bytes: int
    engines: tuple[dict[str, Any], ...]
    """One per rope rule: ``rope``, ``lengths``, ``positions`` (at most: of published rows the longest decides)."""
    cells: tuple[CellCost, ...]
    detectable_by_length: dict[str, float]
    """Of the mean over subsets."""
    rate_from: str | None
    """The run folder whose pace ``seconds`` are taken from."""
    machine: str
    """This one, which is not where a server's engine runs."""
    tokens_per_second: dict[str, float]
    """Prompt tokens by length, as that run answered them."""
    loading_seconds: float | None
    """Of all engines, as that run measured it."""
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """Of all cells, without loading; None where it is not known."""
        known = [cell.seconds for cell in self.cells if cell.seconds is not None]
        return sum(known) if len(known) == len(self.cells) else None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "seconds": self.seconds}

    def to_text(self) -> str:
        """Return a table, one line per cell, and the sums."""
        return "\n".join([self._head(), *self._table(), *self._sums(), *(f"warning: {text}" for text in self.warnings)])

    def to_brief(self) -> str:
        """Return what a run begins with: a table of at most a few rows, and the same sums."""
        table = self._table() if len(self.cells) <= _MOST_ROWS else self._table_of_lengths()
        return "\n".join([self._head(), *table, *self._sums(), *(f"warning: {text}" for text in self.warnings)])

    def _head(self) -> str:
        return f"{self.arm}: {self.task}, backend {self.backend}, into {self.out}"

    def _table(self) -> list[str]:
        return [_HEAD, *(_row(cell.subset, [cell], cell.detectable_difference) for cell in self.cells)]

    def _table_of_lengths(self) -> list[str]:
        lines = [_HEAD]
        for length, detectable in self.detectable_by_length.items():
            cells = [cell for cell in self.cells if cell.length == length]
            lines.append(_row(f"{len(cells)} cells", cells, detectable))
        return lines

    def _sums(self) -> list[str]:
        cells = self.cells
        about = "about " if any(cell.estimated for cell in cells) else ""
        engines = "; ".join(f"{one['rope']} for {', '.join(one['lengths'])}" for one in self.engines)
        lines = [
            f"In all {sum(cell.samples for cell in cells):,} samples, {about}{sum(c.prompt_tokens for c in cells):,} "
            f"prompt tokens, at most {sum(c.answer_tokens for c in cells):,} answer tokens, "
            f"{sum(c.prefill_flops for c in cells):.2e} FLOP of prefill, about "
            f"{sum(c.disk_bytes for c in cells) / 2**20:,.1f} MiB on disk.",
            f"Engine loads, at most one per rope rule: {len(self.engines)} ({engines}).",
        ]
        if self.seconds is None:
            lines.append(
                "Time: not known; no run of this checkpoint with this backend and its settings recorded its pace on "
                f"this machine ({self.machine}). --dry-run --calibrate asks a few questions to know it."
            )
        else:
            loading = f" and {duration(self.loading_seconds)} of loading" if self.loading_seconds else ""
            rates = ", ".join(f"{rate:,.0f} at {length}" for length, rate in self.tokens_per_second.items())
            lines.append(
                f"Time: about {duration(self.seconds)}{loading} on {self.machine}, by the pace of {self.rate_from} "
                f"(prompt tokens/s: {rates})."
            )
        if scoring := sum(cell.scoring_tokens for cell in cells):
            lines.append(
                f"Log-probabilities of right answers and wrong labels: {about}{scoring:,} tokens behind the prompts, "
                "counted in FLOP and time."
            )
        return [*lines, difference_text(self.detectable_by_length), *self._contexts()]

    def _contexts(self) -> list[str]:
        """Say what several questions for one prefill save and what they are worth; nothing where each has its own."""
        samples, contexts, stories, prefilled = (
            sum(getattr(cell, name) for cell in self.cells)
            for name in ("samples", "contexts", "stories", "prefilled_tokens")
        )
        if contexts == samples:
            return []
        return [
            f"The {samples:,} questions are about {contexts:,} contexts: {prefilled:,} tokens are prefilled where each "
            "is computed once. The differences above count questions about one story as one, as if they were right or "
            f"wrong together: {stories:,} independent samples. A report's intervals are clustered by story."
        ]


_HEAD = (
    f"{'length':>6} {'subset':>8} {'samples':>7} {'prompt tokens':>13} {'answer':>9} {'FLOP':>7} {'KV MiB':>8} "
    f"{'time':>7} {'detects':>7}"
)


def _row(subset: str, cells: Sequence[CellCost], detectable: float) -> str:
    """Return a line about cells of one length; KV is of the longest request, ``detects`` in points."""
    about = "~" * any(cell.estimated for cell in cells)
    known = [cell.seconds for cell in cells if cell.seconds is not None]
    return (
        f"{cells[0].length:>6} {subset:>8} {sum(cell.samples for cell in cells):>7,} "
        f"{about + f'{sum(cell.prompt_tokens for cell in cells):,}':>13} {sum(c.answer_tokens for c in cells):>9,} "
        f"{sum(cell.prefill_flops for cell in cells):>7.1e} {max(cell.kv_bytes for cell in cells) / 2**20:>8,.0f} "
        f"{duration(sum(known)) if len(known) == len(cells) else '?':>7} {100 * detectable:>7.1f}"
    )


def difference_text(detectable_by_length: Mapping[str, float]) -> str:
    """Return the sentence on what two arms show, of the mean over subsets (0 to 1) at each length."""
    by_length = ", ".join(f"{length} {100 * value:.1f}" for length, value in detectable_by_length.items())
    return (
        f"Smallest difference of the mean over subsets, in points, that two arms show with 80 % power if they disagree "
        f"on {100 * DISCORDANT:.0f} % of the questions: {by_length}."
    )


def run_cost(plan: Plan, building_seconds: float = BUILDING_SECONDS) -> RunCost:
    """Build the prompts of a plan, for ``building_seconds`` at most, and count what they cost.

    Those about the first context of each cell are built in any case, and of others all or none: of several questions
    about one context only the first costs what it is long.

    Raises:
        BadInput: the data do not suffice for a length, or this tokenizer does not split where prompts are joined.
    """
    earlier = find_run_folders("results") if Path("results").is_dir() else []
    folders = {
        *earlier,
        *(run.parent for place in (plan.out.parent, answers_folder()) for run in place.glob("*/run.json")),
    }
    paced = measured_pace(plan, sorted(folders))
    cells, stories = [], dict[Cell, list[str]]()
    planned, deadline = plan.cells(plan.config.lengths), time.monotonic() + building_seconds
    for number, cell in enumerate(planned):
        share = max(0.0, deadline - time.monotonic()) / (len(planned) - number)
        cost, stories[cell] = _cell_cost(plan, cell, paced, share)
        cells.append(cost)
    lengths = dict.fromkeys(cell.length for cell in planned)
    detectable = {
        length: detectable_difference([own for cell, own in stories.items() if cell.length == length])
        for length in lengths
    }
    return RunCost(
        arm=plan.arm,
        task=f"{plan.card.task} (card v{plan.card.version})",
        backend=plan.config.backend,
        out=str(plan.out),
        parameters=plan.checkpoint.num_parameters,
        weight_bytes=plan.checkpoint.weight_bytes,
        engines=tuple(
            {"rope": group.rope.label, "lengths": list(group.lengths), "positions": group.window}
            for group in plan.groups
        ),
        cells=tuple(cells),
        detectable_by_length=detectable,
        rate_from=str(paced.folder) if paced else None,
        machine=describe(),
        tokens_per_second={
            length: own["prompt_tokens"] / own["seconds"]
            for length, own in (paced.by_length if paced else {}).items()
            if own["seconds"]
        },
        loading_seconds=paced.loading_seconds if paced else None,
        warnings=(
            *plan.warnings,
            *cannot_answer(detectable, len(plan.subsets), plan.config.data.questions_per_context),
            *_unfitting(cells),
        ),
    )


def _cell_cost(
    plan: Plan, cell: Cell, paced: MeasuredPace | None, building_seconds: float
) -> tuple[CellCost, list[str]]:
    """Return the cost of a cell, and the story of each sample that will be asked."""
    samples = list(plan.samples_of(cell))
    if not samples:
        raise plan.no_samples(cell)
    until, sizes, answers, disk = time.monotonic() + building_seconds, list[int](), list[int](), 0
    cached, before, scored = list[int](), None, list[tuple[int, int]]()
    stories, example, num_tried = list[str](), "", 0
    context: str | None = None
    for sample in samples:
        if num_tried and time.monotonic() > until and not (sample.context_id and sample.context_id == context):
            break
        context = sample.context_id
        num_tried += 1
        prompt = plan.attempt(sample, cell.length)
        disk += _disk_bytes(sample)
        if not isinstance(prompt, Prompt):
            example = example or str(prompt)
            continue
        stories.append(sample.story_id)
        sizes.append(len(prompt.token_ids))
        cached.append(_computed_already(prompt, before))
        before = prompt
        answers.append(prompt.max_new_tokens)
        scored += [
            (sizes[-1] + len(ids), plan.config.engine.scoring_tokens(sizes[-1], len(ids)))
            for ids in prompt.candidates.values()
        ]
    scale, times = len(samples) / num_tried, plan.config.repeat
    if num_tried < len(samples) and sizes:
        stories += [sample.story_id for sample in samples[num_tried:]]
    computed = sum(prefill_flops(plan.checkpoint, size) for size in sizes)
    computed -= sum(prefill_flops(plan.checkpoint, size) for size in cached)
    flops = times * scale * computed
    scoring_flops = scale * sum(
        prefill_flops(plan.checkpoint, end) - prefill_flops(plan.checkpoint, end - tokens) for end, tokens in scored
    )
    paced_flops = flops if paced and paced.scored else flops + scoring_flops  # the measured time holds it, or does not
    cost = CellCost(
        subset=cell.subset,
        length=cell.length,
        rope=plan.rope_for(cell.length).label,
        samples=len(samples),
        contexts=len({sample.context_id or sample.sample_id for sample in samples}),
        stories=len(set(stories)),
        unfitting=round(scale * (num_tried - len(sizes))),
        unfitting_example=example,
        prompt_tokens=round(times * scale * sum(sizes)),
        prefilled_tokens=round(times * scale * (sum(sizes) - sum(cached))),
        scoring_tokens=round(scale * sum(tokens for _, tokens in scored)),
        estimated=num_tried < len(samples),
        answer_tokens=round(times * scale * sum(answers)),
        prefill_flops=flops + scoring_flops,
        kv_bytes=plan.checkpoint.kv_bytes(max(map(sum, zip(sizes, answers, strict=True)), default=0)),
        disk_bytes=round(times * scale * (disk + _TOKEN_BYTES * sum(answers))),
        seconds=_seconds(plan.checkpoint, cell.length, paced_flops, paced.by_length if paced else {}),
        detectable_difference=detectable_difference([stories]),
    )
    return cost, stories


def _computed_already(prompt: Prompt, before: Prompt | None) -> int:
    """Count the tokens that a prompt has in common with the one in front of it, where both are about one context."""
    name = prompt.sample.context_id
    return common_prefix([before, prompt]) if before and name and name == before.sample.context_id else 0


def prefill_flops(checkpoint: Checkpoint, num_tokens: int) -> float:
    """Return the floating-point operations of computing one prompt, without its answer.

    Two per weight that a token passes through, of a mixture of experts only those that are chosen; the embedding is
    looked up, the output head is needed once. Attention: four per dimension of all heads and pair of query and visible
    key (two for the scores, two for the values). Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, with the causal
    half counted exactly.
    """
    pairs = 0
    for layer in checkpoint.cache:
        seen = min(num_tokens, layer.window or num_tokens)
        pairs += (seen * (seen + 1) // 2 + (num_tokens - seen) * seen) if layer.values_per_token else 0
    attention = 4.0 * checkpoint.num_heads * checkpoint.head_dim * pairs
    return 2.0 * _weights_per_token(checkpoint) * num_tokens + attention


def _weights_per_token(checkpoint: Checkpoint) -> float:
    config = read_json(checkpoint.path / "config.json") or {}
    text = config.get("text_config") or config
    experts = next((text[n] for n in ("num_experts", "num_local_experts", "n_routed_experts") if text.get(n)), None)
    chosen = (text.get("num_experts_per_tok") or experts) / experts if experts else 1.0
    tables = (checkpoint.vocab_size, checkpoint.hidden_size)
    return sum(
        float(np.prod(tensor.shape)) * (chosen if ".experts." in tensor.name else 1.0)
        for tensor in checkpoint.tensors.values()
        if tuple(tensor.shape) != tables
    )


def reading_seconds(cost: RunCost, checkpoint: Checkpoint, rate: Rate) -> float | None:
    """Return what reading the prompts of a run takes on a device; None where its rate is not stated.

    At a rate that was seen with prompts of one length, operations count and not tokens: at 128K most are attention's,
    and a shorter prompt goes faster. So the rate that the paper's authors state at 128K makes 36 minutes of their 100
    prompts at each of nine lengths, for which they state 34; the tokens alone would make 46.
    """
    if rate.eval_tokens_per_second is None:
        return None
    if rate.eval_length is None:
        tokens = sum(cell.prefilled_tokens + cell.scoring_tokens for cell in cost.cells)
        return tokens / rate.eval_tokens_per_second
    seconds = rate.eval_length / rate.eval_tokens_per_second
    return seconds * sum(cell.prefill_flops for cell in cost.cells) / prefill_flops(checkpoint, rate.eval_length)


def detectable_difference(cells: Sequence[Sequence[str]]) -> float:
    """Return the smallest paired difference of the mean over cells that two arms would show with 80 % power.

    It is what the report calls so (``stats.contrast``), of two arms that disagree on ``DISCORDANT`` of the stories, as
    often in one direction as in the other; questions about one story fall together, so they count as one. Scores
    between right and wrong vary less: for them it is an upper bound.

    Args:
        cells: the story of each sample, per cell. Cells do not share stories.
    """
    cells = [own for own in cells if own]
    if not cells:
        return 1.0
    values, places, clusters, num_clusters = [], [], [], 0
    for place, own in enumerate(cells):
        num_stories = len(set(own))
        index = np.arange(num_stories)
        num_differ = round(DISCORDANT * num_stories)
        values.append(np.where(index < num_differ, np.where(index % 2, -1.0, 1.0), 0.0))
        places.append(np.full(num_stories, place))
        clusters.append(index + num_clusters)
        num_clusters += num_stories
    observed = Observations(
        parts=(np.concatenate(values)[None, :],),
        cell=np.concatenate(places),
        cluster=np.concatenate(clusters),
        lowest=-1.0,
    )
    return contrast(observed, np.full(len(cells), 1 / len(cells))).detectable


def samples_needed(num_cells: int, difference: float) -> int:
    """Return about how many samples of each cell show a difference of the mean over cells with 80 % power."""

    def suffice(samples: int) -> bool:
        return detectable_difference([[str(i) for i in range(samples)]] * num_cells) <= difference

    high = 2
    while not suffice(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffice(middle) else (middle, high)
    return high


def _seconds(
    checkpoint: Checkpoint, length: str, flops: float, pace: Mapping[str, Mapping[str, float]]
) -> float | None:
    """Scale the measured time of the same length, else of the one nearest to it, by what is computed."""
    measured = [name for name, own in pace.items() if own["samples"] and own["prompt_tokens"]]
    if not measured:
        return None
    own = pace[min(measured, key=lambda name: abs(parse_length(name) - parse_length(length)))]
    mean = round(own["prompt_tokens"] / own["samples"])
    cached = min(own.get("cached_tokens", 0), own["prompt_tokens"] - own["samples"])  # the last token never is
    computed = own["samples"] * prefill_flops(checkpoint, mean) * (1 - cached / own["prompt_tokens"])
    if computed <= 0:
        return None
    return flops * own["seconds"] / computed


def _disk_bytes(sample: Sample) -> int:
    facts = sum(map(len, sample.facts))
    texts = len(sample.question) + len(sample.target) + len(str(dict(sample.metadata)))
    return _LINE_BYTES + texts + (facts if facts <= MAX_FACT_CHARS else 0)


def cannot_answer(detectable: Mapping[str, float], num_subsets: int, questions_per_context: int) -> list[str]:
    """Return a warning where a plan can hardly show anything at some length, with the samples that would; else none."""
    coarse = [length for length, value in detectable.items() if value > COARSE]
    if not coarse:
        return []
    # Questions about one context count as one.
    fair, fine = (questions_per_context * samples_needed(num_subsets, goal) for goal in (COARSE, COARSE / 2))
    return [
        f"At {', '.join(coarse)} two arms must differ by up to {100 * max(detectable.values()):.0f} points to be told "
        f"apart; --samples {fair} would show {100 * COARSE:.0f} points, --samples {fine} half of that."
    ]


def _unfitting(cells: Sequence[CellCost]) -> list[str]:
    return [
        f"{'about ' * cell.estimated}{cell.unfitting:,} of {cell.samples:,} samples of {cell.subset} at {cell.length} "
        f"cannot be asked: {cell.unfitting_example}"
        for cell in cells
        if cell.unfitting
    ]


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 100 else f"{hours:.0f} h"
