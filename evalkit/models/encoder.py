"""From text to the checkpoint's own token ids: one encoder for every backend.

Token ids, not text, go to the engines, so that a chat template is applied once, a BOS token is never doubled, and two
backends that are compared are asked the very same thing.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalkit.errors import BadInput
from evalkit.models.tokenizer import load_tokenizer
from evalkit.types import Message, TokenIds

_TODAY = datetime(2024, 7, 26)
"""The day for every template that asks for today's (Llama 3.2's): a prompt must be the same whenever it is built. It is
the one that Llama 3's templates name where there is no clock."""

_PLAIN_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


class Encoder:
    """The tokenizer and chat template of one checkpoint folder. Implements ``types.PromptEncoder``."""

    def __init__(self, tokenizer: Any, *, chat: bool, system_prompt: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self.system_prompt = system_prompt
        self._front = [] if chat else _front(tokenizer)
        self.identity = self._identity()

    @classmethod
    def open(cls, folder: Path, *, chat: bool | None = None, system_prompt: str | None = None) -> "Encoder":
        """Load the tokenizer of a checkpoint folder.

        Args:
            folder: a Hugging Face checkpoint or tokenizer folder.
            chat: wrap prompts in the chat template; None does so exactly when the checkpoint has one.
            system_prompt: content of a system message in front of every conversation.

        Raises:
            BadInput: there is no usable fast tokenizer, or a chat template is asked for and there is none.
        """
        tokenizer = load_tokenizer(folder)
        if chat and not tokenizer.chat_template:
            raise BadInput(f"{folder} has no chat template; add one, or ask for plain prompts with --no-chat-template.")
        chat = bool(tokenizer.chat_template) if chat is None else chat
        if system_prompt is not None and not chat:
            raise BadInput("A system prompt needs a chat template; drop --system-prompt, or --no-chat-template.")
        return cls(tokenizer, chat=chat, system_prompt=system_prompt)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the whole prompt text: the chat template's, or the bare text where no template is used.

        Without a template a single message stands as it is, ready to be continued, and a conversation is written out
        as "User: ...", "Assistant: ..." paragraphs that end with an open "Assistant:".

        Raises:
            BadInput: the template refuses the conversation (many demand strictly alternating roles).
        """
        if not self.chat:
            if len(messages) == 1:
                return messages[0]["content"]
            turns = [f"{_PLAIN_ROLES[m['role']]}: {m['content']}" for m in messages]
            return "\n\n".join([*turns, "Assistant:"])
        system: list[Message] = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        try:
            text = self.tokenizer.apply_chat_template(
                [*system, *messages], tokenize=False, add_generation_prompt=True, strftime_now=_TODAY.strftime
            )
        except Exception as error:
            roles = " ".join(m["role"][0] for m in [*system, *messages][:6])
            raise BadInput(
                f"The chat template refuses this conversation (roles {roles} ...): {_first_line(error)}; "
                "use a template that takes it, or --no-chat-template."
            ) from error
        return str(text)

    def encode_prompt(self, text: str) -> TokenIds:
        """Return the ids of a rendered prompt, shape (num_tokens,).

        With a chat template these are its text's ids and nothing else, as ``apply_chat_template`` gives them: the
        template decides about BOS. Without one, what the tokenizer puts in front of a text stands there, once.
        """
        ids = self._encode(text)
        if ids[: len(self._front)] != self._front:  # the text did not bring its own
            ids = self._front + ids
        return np.asarray(ids, dtype=np.int32)

    def encode_after(self, text: str, before: str = ".") -> TokenIds:
        """Return the ids that ``text`` has right after ``before``; see ``types.PromptEncoder``."""
        prefix, whole = self._encode(before), self._encode(before + text)
        if whole[: len(prefix)] != prefix:
            raise BadInput(
                f"This tokenizer joins {before!r} with what follows it ({text[:20]!r}), so prompts cannot be assembled "
                "from tokenized pieces; evalkit supports tokenizers that split between a full stop and a space."
            )
        return np.asarray(whole[len(prefix) :], dtype=np.int32)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a bare text has."""
        return len(self._encode(text))

    def encode_with_starts(self, text: str) -> tuple[TokenIds, NDArray[np.int64]]:
        """Return ids and the character at which each token starts; see ``types.PromptEncoder``."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.asarray(encoding.offset_mapping, dtype=np.int64).reshape(-1, 2)
        # Some tokenizers trim the space off a token's offsets: a token starts where the one before it ended.
        previous_ends = np.concatenate([[0], offsets[:-1, 1]])
        return np.asarray(encoding.input_ids, dtype=np.int32), np.minimum(offsets[:, 0], previous_ends)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of the ids, special tokens included."""
        return str(self.tokenizer.decode([int(i) for i in token_ids], skip_special_tokens=False))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _identity(self) -> str:
        parts = {
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "bos": self._front,  # its name in run folders since there was only a BOS
            "chat_template": self.tokenizer.chat_template if self.chat else None,
            "system_prompt": self.system_prompt,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _front(tokenizer: Any) -> list[int]:
    """Return the ids that the tokenizer puts in front of a text: none, BOS, or others (GLM has two, and no BOS).

    What some put behind it, an EOS, would end the prompt before its answer, and is left out.
    """
    bare, whole = tokenizer("x", add_special_tokens=False).input_ids, tokenizer("x").input_ids
    return next(whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
