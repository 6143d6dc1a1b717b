"""The right answer and the wrong ones as a model is to write them: what is taught, and whose probability is asked."""

from evalkit.benchmarks import task
from evalkit.types import Prompt, PromptEncoder, Sample, TokenIds, prediction_of


def candidates(prompt: Prompt, encoder: PromptEncoder) -> dict[str, TokenIds]:
    """Return the texts whose log-probability is asked behind a prompt, with their ids: the target, then wrong labels.

    All in the form in which trainings teach the target (``answer_ids``): the bare answer, whatever form of reply the
    prompt asks for; of MRCR the prefix and the text. Empty where one does not fit into the answer's room together with
    the token that ends it.
    """
    sample = prompt.sample
    wrong = [label for label in task(sample.task).labels(sample) if label.lower() != sample.target.lower()]
    found = {text: answer_ids(sample, text, encoder) for text in (sample.target, *wrong)}
    return found if max(map(len, found.values())) < prompt.max_new_tokens else {}


def answer_ids(sample: Sample, text: str, encoder: PromptEncoder) -> TokenIds:
    """Encode an answer as a model is to write it: after a template's line break, or after bare text and a space.

    A rule that takes the answer as it stands (MRCR's asks how it begins) does not forgive that space; there the answer
    follows the colon of "Assistant:" at once.
    """
    if encoder.render([{"role": "user", "content": "?"}]) != "?":
        return encoder.encode_after(text, before="\n")
    if _official_score(sample, f" {sample.target}") < _official_score(sample, sample.target):
        return encoder.encode_after(text, before=":")
    return encoder.encode_after(f" {text}", before="?")


def _official_score(sample: Sample, output: str) -> float:
    """Return what the official rule gives for an answer, 0 to 1."""
    official = next(iter(task(sample.task).scorers.values()))
    answered = prediction_of(sample, "", output=output, finish_reason="stop", metadata=sample.metadata)
    return official(answered).value or 0.0
