"""Rebuild a recorded prompt from its recipe, prove that it is the one that was asked, and mark its facts."""

from contextlib import suppress
from pathlib import Path

from evalkit.errors import BadInput
from evalkit.lengths import format_length, parse_length
from evalkit.records.fingerprint import differences
from evalkit.records.folder import RunFolder
from evalkit.runs.config import recorded_config
from evalkit.runs.plan import Plan, make_plan
from evalkit.types import Prediction, Prompt


def show(run: Path, key: str, *, depth: float | None = None, width: int = 400) -> str:
    """Return a recorded sample: its prompt with facts marked, target, reply.

    Args:
        run: a run folder made by ``evalkit run``, with checkpoint and data files where they were.
        key: subset/length/sample, such as "qa3/16k/17" or "qa3/16384/00017".
        depth: print only the part around this depth (0 top, 1 end); None prints the whole prompt.
        width: tokens on each side of ``depth``.

    Raises:
        BadInput: there is no such record, or the prompt can no longer be rebuilt; the message names what changed.
    """
    folder = RunFolder.open(run)
    prediction = _find(folder, key)
    plan = make_plan(recorded_config(folder))
    prompt = _rebuild(plan, folder, prediction)
    start, stop = 0, len(prompt.token_ids)
    if depth is not None:
        middle = int(depth * stop)
        start, stop = max(0, middle - width), min(stop, middle + width)
    lines = [
        f"{prediction.subset} at {prediction.length}, sample {prediction.sample_id}: {prediction.prompt_tokens:,} "
        f"prompt tokens, sha256 {prediction.prompt_sha256[:16]} (rebuilt: the same)",
        "",
        ("... " if start else "")
        + _marked(plan, prompt, start, stop)
        + (" ..." if stop < len(prompt.token_ids) else ""),
        "",
        f"target: {prediction.target}",
        f"reply:  {prediction.output if prediction.error is None else prediction.error}",
    ]
    if prediction.finish_reason == "unfinished_reasoning":
        lines.append("(cut off inside its reasoning: neither right nor wrong)")
    return "\n".join(lines)


def _find(folder: RunFolder, key: str) -> Prediction:
    recorded = folder.recorded()
    for found in recorded:  # their answers stay in the file
        if _named(key) == _named("/".join(found[1:])):
            return recorded[found]
    example = "/".join(next(iter(recorded))[1:]) if recorded else "qa1/16k/0"
    raise BadInput(f"{folder.path} has no record {key!r}; a key is subset/length/sample, such as {example}.")


def _named(key: str) -> tuple[str, ...]:
    """Return a key's parts in one form, whether it says 16k or 16384, 17 or 00017."""
    subset, *rest = key.split("/")
    if len(rest) != 2:
        return (key,)
    length, sample = rest
    with suppress(BadInput):
        length = format_length(parse_length(length))
    return subset, length, sample.lstrip("0") or "0"


def _rebuild(plan: Plan, folder: RunFolder, prediction: Prediction) -> Prompt:
    for sample in plan.benchmark.samples(prediction.subset, prediction.length, plan.samples):
        if sample.sample_id == prediction.sample_id:
            prompt = plan.build(sample, prediction.length)
            if prompt.sha256 == prediction.prompt_sha256:
                return prompt
            break
    static = {name: value for name, value in folder.fingerprint.items() if name in plan.fingerprint}
    changed = "; ".join(differences(static, plan.fingerprint)) or "this evalkit makes other prompts"
    raise BadInput(
        f"The prompt of {prediction.subset}/{prediction.length}/{prediction.sample_id} cannot be rebuilt as it was "
        f"asked: {changed}."
    )


def _marked(plan: Plan, prompt: Prompt, start: int, stop: int) -> str:
    """Return the text of tokens start to stop, with each fact between marks that carry its number."""
    facts = prompt.sample.facts
    lengths = [len(plan.encoder.encode_after(f" {fact}")) for fact in facts]
    marks: dict[int, str] = {}
    for number, position in enumerate(prompt.fact_positions):
        marks[position] = marks.get(position, "") + f"⟦{number + 1}:"
        if lengths:
            end = position + lengths[number]
            marks[end] = "⟧" + marks.get(end, "")
    text, last = "", start
    for place in sorted(p for p in marks if start <= p <= stop):
        text += plan.encoder.decode(prompt.token_ids[last:place]) + marks[place]
        last = place
    return text + plan.encoder.decode(prompt.token_ids[last:stop])
