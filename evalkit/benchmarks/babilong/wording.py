"""Prompt wording of BABILong: the project's own from the task card, or the official one, read where the user has it.

The official texts are not part of this project. They are loaded at run time from the result JSON files that the
benchmark's authors publish beside their predictions, or from ``babilong/prompts.py`` of a checkout, which is parsed and
never executed.
"""

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit.benchmarks.cards import TaskCard
from evalkit.errors import BadInput

OFFICIAL_RESULTS = "RMT-team/babilong_evals"
_FIELDS = ("instruction", "examples", "post_prompt")


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
        try:
            texts.fill("", "")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise BadInput(
                f"{path}: the template of {subset} has a placeholder that is not known ({error})."
            ) from error
    if not wording:
        raise BadInput(
            f"No prompt wording in {path}: expected result files such as qa1_0k_instruction_yes_examples_yes_"
            "post_prompt_yes.json, or babilong/prompts.py."
        )
    return wording


def _from_results(source: Path) -> dict[str, Wording]:
    """Read the first complete wording of each subset among the authors' result files, in the order of their names."""
    wording: dict[str, Wording] = {}
    complete = "qa*_instruction_yes_examples_yes_post_prompt_yes*.json"
    for path in [source] if source.is_file() else sorted(source.rglob(complete)):
        subset = path.name.split("_")[0]
        if subset in wording:
            continue
        try:
            prompt = json.loads(path.read_text(encoding="utf-8"))["prompt"]
            wording[subset] = Wording(template=prompt["template"], **{name: prompt[name] for name in _FIELDS})
        except (OSError, ValueError, KeyError, TypeError) as error:  # ValueError: no JSON, or no UTF-8
            raise BadInput(
                f'{path}: expected JSON with "prompt": {{instruction, examples, post_prompt, template}} ({error}).'
            ) from error
    return wording


def _from_python(path: Path) -> dict[str, Wording]:
    """Read the two literals of ``prompts.py``: a template, and a dictionary of prompts by subset."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:  # ValueError: a NUL, or no UTF-8
        raise BadInput(f"{path} is not a Python file that can be parsed ({error}).") from error
    literals: list[Any] = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            try:
                literals.append(ast.literal_eval(node.value))
            except ValueError:
                continue  # an expression, not a literal: not the wording
    template = next((x for x in literals if isinstance(x, str) and "{context}" in x and "{question}" in x), None)
    prompts = next((x for x in literals if isinstance(x, dict) and any(re.fullmatch(r"qa\d+", str(k)) for k in x)), {})
    if template is None:
        raise BadInput(f"{path} assigns no template string with {{context}} and {{question}}.")
    if not all(isinstance(texts, dict) for texts in prompts.values()):
        raise BadInput(f"{path}: each subset should have a dictionary with {', '.join(_FIELDS)}.")
    return {
        subset: Wording(template=template, **{name: texts.get(name, "") for name in _FIELDS})
        for subset, texts in prompts.items()
    }


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
