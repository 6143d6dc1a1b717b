"""Why prompts cannot be asked: what a run refuses and ``evalkit check`` shows."""

from collections.abc import Sequence

from evalkit.benchmarks.options import TaskOptions
from evalkit.lengths import parse_length
from evalkit.models.encoder import Encoder
from evalkit.types import Message

EXAMPLE: tuple[Message, ...] = (
    {"role": "user", "content": "Mary went to the kitchen. John went to the garden. Where is Mary?"},
)


def prompt_problems(encoder: Encoder, max_new_tokens: int | None, thinking_tokens: int) -> list[str]:
    """Return why the prompts of this tokenizer and template cannot be asked; empty where they can.

    Args:
        encoder: the tokenizer and template.
        max_new_tokens: the answer's limit; None where nobody named one.
        thinking_tokens: room for reasoning in front of the answer.

    Raises:
        BadInput: they cannot even be encoded.
    """
    problems = []
    bos = encoder.tokenizer.bos_token_id
    if bos is not None and encoder.encode_prompt(encoder.render(EXAMPLE))[:2].tolist() == [bos, bos]:
        problems.append(
            f"The prompt begins with BOS {encoder.tokenizer.bos_token!r} twice; take it out of the template."
        )
    if encoder.thinking == "open" and not thinking_tokens and max_new_tokens is None:
        switch = encoder.thinking_switch
        problems.append(
            "The chat template opens a think block, and the usual answer room (20 tokens in BABILong) ends inside of "
            f"it; give --thinking-tokens 2048{f', or --template-arg {switch}=false' if switch else ''}, or name the "
            "limit yourself with --max-new-tokens."
        )
    return problems


def budget_problems(data: TaskOptions, lengths: Sequence[str]) -> list[str]:
    """Return a sentence for each length that reasoning alone would fill; controls have no length to fill."""
    thinking_tokens = data.thinking_tokens
    return [
        f"--thinking-tokens {thinking_tokens} is more than {length} leaves beside prompt and answer; give less, or ask "
        "for longer lengths."
        for length in lengths
        if not data.control and 0 < parse_length(length) <= thinking_tokens
    ]
