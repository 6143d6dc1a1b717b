"""From text to the checkpoint's own token ids: one encoder for every backend.

Token ids, not text, go to the engines, so that a chat template is applied once, a BOS token is never doubled, and two
backends that are compared are asked the very same thing.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evalkit.benchmarks.reasoning import is_closed, is_mark, is_unfinished, mentions_reasoning
from evalkit.errors import BadInput
from evalkit.files import first_line
from evalkit.models.bounded import require_bounded
from evalkit.models.tokenizer import load_tokenizer, stop_token_ids
from evalkit.types import Message, TokenIds

_TODAY = datetime(2024, 7, 26)
"""The day for every template that asks for today's (Llama 3.2's): a prompt must be the same whenever it is built. It is
the one that Llama 3's templates name where there is no clock."""

Thinking: TypeAlias = Literal["none", "possible", "open"]

_QUESTION: tuple[Message, ...] = ({"role": "user", "content": "Where is Mary?"},)
_EXCHANGE: tuple[Message, ...] = (*_QUESTION, {"role": "assistant", "content": "Mary is in the garden."})
_OWN_VARIABLES = {"messages", "add_generation_prompt", "strftime_now", "raise_exception", "namespace", "range"}
_OWN_VARIABLES |= {"bos_token", "eos_token", "unk_token", "pad_token"}
_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_PLAIN_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


class Encoder:
    """The tokenizer and chat template of one checkpoint folder. Implements ``types.PromptEncoder``."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat: bool,
        system_prompt: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        vocab_size: int | None = None,
        stop_ids: Collection[int] = (),
    ) -> None:
        """Take a loaded tokenizer; see ``open``.

        Args:
            tokenizer: of transformers, fast.
            chat: wrap prompts in its chat template.
            system_prompt: content of a system message; "" is an empty message, None is none.
            template_args: further variables of the chat template.
            vocab_size: tokens that the model knows; None does not compare.
            stop_ids: ids that end an answer; where there are none, they are not compared with the template's.
        """
        self.tokenizer = tokenizer
        self.chat = chat
        self.system_prompt = system_prompt
        self.template_args = dict(template_args or {})
        self._vocab_size = vocab_size
        self._front = [] if chat else _front(tokenizer)
        self.identity = self._identity()
        self.thinking: Thinking = self._thinking() if chat else "none"
        """Whether an answer begins with reasoning: "open" where the prompt ends inside of it, "possible" where the
        template knows marks of it and leaves it to the model."""
        self.warnings = tuple(self._warnings(stop_ids)) if chat else ()
        """What a person should know before trusting the answers."""

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        chat: bool | None = None,
        system_prompt: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        vocab_size: int | None = None,
    ) -> "Encoder":
        """Load the tokenizer of a checkpoint folder.

        Args:
            folder: a Hugging Face checkpoint or tokenizer folder.
            chat: wrap prompts in the chat template; None does so exactly when the checkpoint has one.
            system_prompt: content of a system message in front of every conversation; "" is an empty message.
            template_args: further variables of the chat template, such as ``{"enable_thinking": False}``.
            vocab_size: tokens that the model knows; prompts that need others are refused when they are encoded.

        Raises:
            BadInput: there is no usable fast tokenizer, a chat template is asked for and there is none, or the
                template ignores the system prompt or an argument.
        """
        tokenizer = load_tokenizer(folder)
        if chat and not tokenizer.chat_template:
            raise BadInput(f"{folder} has no chat template; add one, or ask for plain prompts with --no-chat-template.")
        chat = bool(tokenizer.chat_template) if chat is None else chat
        if system_prompt is not None and not chat:
            raise BadInput("A system prompt needs a chat template; drop --system-prompt, or --no-chat-template.")
        if template_args and not chat:
            raise BadInput(
                f"{next(iter(template_args))} is an argument of a chat template, and prompts are plain here; drop "
                "--template-arg, or --no-chat-template."
            )
        if chat:
            _require_bounded(tokenizer, system_prompt, template_args or {}, folder)
            _require_known(template_args or {}, tokenizer.chat_template, folder)
        encoder = cls(
            tokenizer,
            chat=chat,
            system_prompt=system_prompt,
            template_args=template_args,
            vocab_size=vocab_size,
            stop_ids=stop_token_ids(folder, tokenizer),
        )
        if system_prompt is not None and encoder.render(_QUESTION) == encoder._apply(_QUESTION):
            raise BadInput(
                f"The chat template of {folder} makes the same prompt with the system prompt {system_prompt[:40]!r} as "
                "without one; drop --system-prompt, or use a template that writes it."
            )
        return encoder

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
        system: list[Message] = []
        if self.system_prompt is not None:
            system = [{"role": "system", "content": self.system_prompt}]
        return self._apply([*system, *messages])

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

    def count_tokens(self, what: str | Sequence[Message]) -> int:
        """Return how many tokens a bare text has, or the prompt of a conversation."""
        return len(self._encode(what) if isinstance(what, str) else self.encode_prompt(self.render(what)))

    def encode_with_starts(self, text: str) -> tuple[TokenIds, NDArray[np.int64]]:
        """Return ids and the character at which each token starts; see ``types.PromptEncoder``."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        self._require_known_to_model(encoding.input_ids)
        offsets = np.asarray(encoding.offset_mapping, dtype=np.int64).reshape(-1, 2)
        # Some tokenizers trim the space off a token's offsets: a token starts where the one before it ended.
        previous_ends = np.concatenate([[0], offsets[:-1, 1]])
        return np.asarray(encoding.input_ids, dtype=np.int32), np.minimum(offsets[:, 0], previous_ends)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of the ids, special tokens included."""
        return str(self.tokenizer.decode([int(i) for i in token_ids], skip_special_tokens=False))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        self._require_known_to_model(ids)
        return ids

    def _require_known_to_model(self, ids: list[int]) -> None:
        """Refuse ids beyond the model's vocabulary; that the tokenizer has such tokens does no harm until one is used
        (Gemma 3 1B has one for pictures)."""
        if self._vocab_size is not None and ids and (highest := max(ids)) >= self._vocab_size:
            raise BadInput(
                f"A prompt needs token {highest:,} ({self.decode([highest])!r}), and the model has only "
                f"{self._vocab_size:,} tokens; tokenizer and weights do not belong together."
            )

    def _apply(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        try:
            text = _render(self.tokenizer, messages, self.template_args, generation=generation)
        except Exception as error:
            roles = " ".join(m["role"][0] for m in messages[:6])
            raise BadInput(
                f"The chat template refuses this conversation (roles {roles} ...): {first_line(error)}; "
                "use a template that takes it, or --no-chat-template."
            ) from error
        return text

    def _thinking(self) -> Thinking:
        try:
            _, _, end = self.render(_QUESTION).rpartition(_QUESTION[0]["content"])
        except BadInput:
            return "none"  # the run's own conversations will be refused, with the reason
        if is_unfinished(end):
            return "open"
        return "possible" if mentions_reasoning(self.tokenizer.chat_template) and not is_closed(end) else "none"

    def _warnings(self, stop_ids: Collection[int]) -> Iterator[str]:
        end = self._end_of_turn()
        if stop_ids and end is not None and end not in stop_ids:
            stops = ", ".join(f"{i} {self.decode([i])!r}" for i in stop_ids)
            yield (
                f"The chat template ends a turn with {self.decode([end])!r} ({end}), which is not among the tokens "
                f"that end an answer ({stops}): answers may run on behind it; add it to eos_token_id in "
                "generation_config.json."
            )
        if self.thinking != "none":
            how = "opens a think block" if self.thinking == "open" else "lets the model think before it answers"
            off = f"--template-arg {self.thinking_switch}=false asks for none; else " if self.thinking_switch else ""
            yield (
                f"The chat template {how}, and an answer that is cut off in its thoughts is none: {off}give it room "
                "with --thinking-tokens."
            )

    @property
    def thinking_switch(self) -> str | None:
        """The variable of the chat template that turns reasoning off; None where no such name is known."""
        known = template_variables(self.tokenizer.chat_template) & {"enable_thinking", "thinking"}
        return min(known, default=None)

    def _end_of_turn(self) -> int | None:
        """Return the first added token behind an assistant's message; None where the template marks no end.

        Some templates (GLM's) write none: there the next turn's opening ends the answer.
        """
        for messages in (_EXCHANGE, [*_EXCHANGE, *_QUESTION]):
            try:
                text = self._apply(messages, generation=False)
            except BadInput:
                continue
            end = text.rpartition(_EXCHANGE[1]["content"])[2]
            added = self.tokenizer.added_tokens_decoder
            for token in self._encode(end):
                if token in added and not is_mark(added[token].content):
                    return token
        return None

    def _identity(self) -> str:
        parts = {
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "bos": self._front,  # its name in run folders since there was only a BOS
            "chat_template": self.tokenizer.chat_template if self.chat else None,
            "system_prompt": self.system_prompt,
        }
        if self.template_args:  # not named where there are none: older run folders go on
            parts["template_args"] = self.template_args
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def template_arguments(typed: Sequence[str]) -> dict[str, Any]:
    """Return the variables that "enable_thinking=false" and the like stand for: JSON values, else the text itself.

    Raises:
        BadInput: one has no name or no "=", or two have the same name.
    """
    found: dict[str, Any] = {}
    for text in typed:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise BadInput(f"--template-arg is {text!r}; it is NAME=VALUE, such as enable_thinking=false.")
        if name in found:
            raise BadInput(f"--template-arg names {name} twice; give it one value.")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or as many brackets
            raise BadInput(f"--template-arg {name} has a value beyond all bounds ({first_line(error)}).") from error
    return found


def template_variables(template: str) -> set[str]:
    """Return the names of the variables that a chat template reads from outside.

    Raises:
        BadInput: it is not a Jinja template.
    """
    from jinja2 import Environment, TemplateError, meta

    # {% generation %} is an extension of transformers' own, which marks what is trained on and reads nothing.
    source = _GENERATION_TAG.sub("", template)
    try:
        return meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source))
    except TemplateError as error:
        raise BadInput(f"The chat template cannot be read ({first_line(error)}).") from error


def _render(tokenizer: Any, messages: Sequence[Message], args: Mapping[str, Any], *, generation: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            [*messages],
            tokenize=False,
            add_generation_prompt=generation,
            strftime_now=_TODAY.strftime,
            **args,
        )
    )


def _require_bounded(tokenizer: Any, system_prompt: str | None, args: Mapping[str, Any], folder: Path) -> None:
    """Refuse a template that does not come to an end, before it runs in this process; see ``require_bounded``."""
    system: list[Message] = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    conversations = ([*system, *_QUESTION], [*system, *_EXCHANGE, *_QUESTION])

    def render() -> str:
        return "".join(_render(tokenizer, messages, args, generation=True) for messages in conversations)

    require_bounded(render, f"The chat template of {folder}")


def _require_known(template_args: Mapping[str, Any], template: str, folder: Path) -> None:
    if not template_args:
        return
    reads = template_variables(template) - _OWN_VARIABLES
    for name in template_args:
        if name in _OWN_VARIABLES:
            raise BadInput(f"{name} is set by evalkit itself for every prompt; drop --template-arg {name}.")
        if name not in reads:
            raise BadInput(
                f"The chat template of {folder} ignores {name}; drop --template-arg {name} (it reads: "
                f"{', '.join(sorted(reads)) or 'no arguments'})."
            )


def _front(tokenizer: Any) -> list[int]:
    """Return the ids that the tokenizer puts in front of a text: none, BOS, or others (GLM has two, and no BOS).

    What some put behind it, an EOS, would end the prompt before its answer, and is left out.
    """
    bare, whole = tokenizer("x", add_special_tokens=False).input_ids, tokenizer("x").input_ids
    return next(whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
