"""Prompt wording of BABILong: the project's own from the task card, or the official one, read where the user has it.

The official texts are not part of this project. They are loaded at run time from the result JSON files that the
benchmark's authors publish beside their predictions, or from ``babilong/prompts.py`` of a checkout, which is parsed and
never executed.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Any

from evalkit.benchmarks.cards import TaskCard
from evalkit.errors import BadInput
from evalkit.reading import parse_json, read_text, shown

OFFICIAL_RESULTS = "RMT-team/babilong_evals"
_FIELDS = ("instruction", "examples", "post_prompt")
_TODAYS = "<context>"
"""Stands in the template of the authors' code since they put tags around the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The texts around context and question for one subset."""

    instruction: str
    examples: str
    post_prompt: str
    template: str
    """Format string with {instruction} {examples} {post_prompt} {context} {question}."""

    def fill(self, context: str, question: str) -> str:
        """Return the user's message. As in the official rule, context and result are stripped at both ends."""
        return self.template.format(
            instruction=self.instruction,
            examples=self.examples,
            post_prompt=self.post_prompt,
            context=context.strip(),
            question=question,
        ).strip()

    def without(self, parts: Iterable[str]) -> "Wording":
        """Return the wording with the named parts (instruction, examples, post_prompt) left empty."""
        return replace(self, **{part: "" for part in parts})


def load_wording(source: str, card: TaskCard) -> dict[str, Wording]:
    """Return the wording of each subset that ``source`` has.

    Args:
        source: "own" for the task card's; "official" to fetch the authors' result files from the hub; or a path: a
            folder of such files (searched at any depth), one such file, or a ``prompts.py``.
        card: the BABILong task card.

    Raises:
        BadInput: the path does not exist, or holds no wording.
    """
    if source == "own":
        return {
            name: Wording(
                instruction=subset.instruction,
                examples=subset.examples,
                post_prompt=subset.post_prompt,
                template=card.template,
            )
            for name, subset in card.subsets.items()
        }
    path = _fetch_official() if source == "official" else Path(source)
    if not path.exists():
        raise BadInput(f"--prompts {source!r} is neither 'own' nor 'official' nor a path that exists.")
    wording = _from_python(path) if path.suffix == ".py" else _from_results(path)
    for subset, texts in wording.items():
        _check_template(f"{path}, {subset}", texts)
    if not wording:
        raise BadInput(
            f"No prompt wording in {path}: expected result files such as qa1_0k_instruction_yes_examples_yes_"
            "post_prompt_yes.json, or babilong/prompts.py."
        )
    return wording


def _check_template(where: str, wording: Wording) -> None:
    """Refuse a template that cannot be filled in, or in which a text of the wording has no place."""
    for name in ("template", *_FIELDS):
        if not isinstance(getattr(wording, name), str):
            raise BadInput(f"{where}: {name} is {shown(getattr(wording, name))}; it should be text.")
    try:
        for _, slot, layout, conversion in Formatter().parse(wording.template):
            if slot is not None and (slot not in (*_FIELDS, "context", "question") or layout or conversion):
                raise ValueError(f"{{{slot}}}")  # a layout, such as {context:>99999999999}, could fill the memory
    except ValueError as error:
        raise BadInput(f"{where}: the template has a placeholder that is not known ({error}).") from error
    needed = [*(name for name in _FIELDS if getattr(wording, name)), "context", "question"]
    slots = _slots(wording.template)
    if missing := [f"{{{name}}}" for name in needed if name not in slots]:
        raise BadInput(f"{where}: the template has no {' and no '.join(missing)}; {wording.template[:80]!r} drops it.")


def _from_results(source: Path) -> dict[str, Wording]:
    """Read the complete wording of each subset among the authors' result files: the first in the order of their names.

    Older files have a template of "Context: ..."; one of today's, which puts the context between tags, comes before it.
    """
    wording: dict[str, Wording] = {}
    complete = "qa*_instruction_yes_examples_yes_post_prompt_yes*.json"
    for path in [source] if source.is_file() else sorted(source.rglob(complete)):
        subset = path.name.split("_")[0]
        if subset in wording and _TODAYS in str(wording[subset].template):
            continue
        try:
            prompt = parse_json(read_text(path), str(path))["prompt"]
            found = Wording(template=prompt["template"], **{name: prompt[name] for name in _FIELDS})
            if subset not in wording or _TODAYS in str(found.template):
                wording[subset] = found
        except (OSError, ValueError, KeyError, TypeError) as error:  # ValueError: no JSON, or no UTF-8
            raise BadInput(
                f'{path}: expected JSON with "prompt": {{instruction, examples, post_prompt, template}} ({error}).'
            ) from error
    return wording


def _from_python(path: Path) -> dict[str, Wording]:
    """Read the template and the dictionary of prompts by subset that ``prompts.py`` assigns."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: a NUL, or no UTF-8
        raise BadInput(f"{path} is not a Python file that can be parsed ({error}).") from error
    assigned: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            with suppress(ValueError, RecursionError):  # what is no text is not the wording
                value = _text_of(node.value, assigned)
                assigned |= {name.id: value for name in node.targets if isinstance(name, ast.Name)}
    templates = [
        text for text in assigned.values() if isinstance(text, str) and {"context", "question"} <= _slots(text)
    ]
    template = assigned.get("DEFAULT_TEMPLATE", templates[-1] if templates else None)
    if not isinstance(template, str):
        raise BadInput(f"{path} assigns no template string with {{context}} and {{question}}.")
    dictionaries = (value for value in assigned.values() if isinstance(value, dict))
    prompts = next((x for x in dictionaries if any(re.fullmatch(r"qa\d+", str(key)) for key in x)), {})
    if not all(isinstance(texts, dict) for texts in prompts.values()):
        raise BadInput(f"{path}: each subset should have a dictionary with {', '.join(_FIELDS)}.")
    return {
        subset: Wording(template=template, **{name: texts.get(name, "") for name in _FIELDS})
        for subset, texts in prompts.items()
    }


def _text_of(node: ast.expr, assigned: Mapping[str, Any]) -> Any:
    """Evaluate texts, sums of texts, f-strings of names, and dictionaries of these; nothing is executed.

    The authors' template is an f-string of two texts that were assigned before.

    Raises:
        ValueError: the expression holds anything else.
    """
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.Name(id=name) if name in assigned:
            return assigned[name]
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            return _text_of(value, assigned)
        case ast.JoinedStr(values=parts):
            return "".join(str(_text_of(part, assigned)) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return str(_text_of(left, assigned)) + str(_text_of(right, assigned))
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_text_of(key, assigned): _text_of(value, assigned) for key, value in pairs if key is not None}
    raise ValueError(f"line {node.lineno} is not a text")


def _slots(template: str) -> set[str | None]:
    try:
        return {slot for _, slot, _, _ in Formatter().parse(template)}
    except ValueError:  # a text with braces of its own
        return set()


def _fetch_official() -> Path:
    """Download the small result files that carry the wording, one complete setting per subset."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                OFFICIAL_RESULTS,
                repo_type="dataset",
                allow_patterns="*qa*_0k_instruction_yes_examples_yes_post_prompt_yes*.json",
            )
        )
    except Exception as error:  # the hub client raises errors of several libraries
        raise BadInput(
            f"The official wording cannot be fetched from the hub data set {OFFICIAL_RESULTS} "
            f"({type(error).__name__}); give a local folder of result JSON files instead: --prompts DIR."
        ) from error
