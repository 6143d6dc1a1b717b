"""Conversations as token ids, built from turns that are tokenized once, and where each reply ended up."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalkit.errors import BadInput
from evalkit.types import Message, PromptEncoder, TokenIds


class Turn(NamedTuple):
    """A request of the user and the assistant's reply."""

    request: str
    reply: str


class Frame(NamedTuple):
    """What a chat template writes around turns, and where it is cut into pieces:

    head request middle reply left | right request middle reply left | right question tail
    """

    head: str
    middle: str
    left: str
    right: str
    tail: str


# Replies that begin and end in all the ways that could join with what a template writes around them.
_PROBE = (
    Turn("write a poem about tea", "Tea is warm.\nTea is cold!"),
    Turn("write a letter about owls", "Dear Ada,\n\nwho?"),
    Turn("write a song about rain", "(softly)\nRain, rain"),
    Turn("write a riddle about ink", "It is black."),
)
_QUESTION = "Prepend 3aB to the 1st"


class ConversationEncoder:
    """Turns to ids. The ids of a conversation are those of its whole text, but each turn is tokenized only once."""

    def __init__(self, encoder: PromptEncoder) -> None:
        """Learn how the template frames a turn, and a cut between turns that the tokenizer respects.

        Where there is no such cut, or the template does not treat all turns alike, ``is_exact`` is False:
        conversations are then tokenized whole, and the ids of a single turn only tell its size.
        """
        self.encoder = encoder
        self.is_exact = True
        self._ids: dict[Turn, TokenIds] = {}
        whole = self._encode_whole(_PROBE, _QUESTION)
        for self.frame in _frames(encoder):
            try:
                if np.array_equal(self.encode(_PROBE, _QUESTION), whole):
                    return
            except BadInput:
                pass  # the tokenizer joins what this cut would part
            self._ids.clear()
        self.is_exact = False

    def ids(self, turn: Turn) -> TokenIds:
        """Return the ids of a turn that is not the first, shape (num_tokens,)."""
        if turn not in self._ids:
            text = self.frame.right + self._body(turn)
            self._ids[turn] = self._after_cut(text) if self.is_exact else self.encoder.encode_with_starts(text)[0]
        return self._ids[turn]

    def encode(self, turns: Sequence[Turn], question: str) -> TokenIds:
        """Return the ids of at least one turn and the question, ready to be answered; shape (num_tokens,)."""
        if not self.is_exact:
            return self._encode_whole(turns, question)
        later = [self.ids(turn) for turn in turns[1:]]
        last = self._after_cut(self.frame.right + question + self.frame.tail)
        return np.concatenate([self._first(turns[0]), *later, last])

    def reply_offsets(self, turns: Sequence[Turn], question: str, indices: Sequence[int]) -> tuple[int, ...]:
        """Return the offset in the prompt of the first token of each reply named by its turn's index."""
        if not self.is_exact:
            messages = as_messages(turns, question)
            text = self.encoder.render(messages)
            return message_offsets(messages, text, [2 * i + 1 for i in indices], self.encoder)
        ends = np.cumsum([len(self._first(turns[0])), *(len(self.ids(turn)) for turn in turns[1:])])
        return tuple(int(ends[i]) - self._tokens_from_reply(turns[i]) for i in indices)

    def check(self, turns: Sequence[Turn], question: str) -> None:
        """Raise BadInput unless the ids of this conversation are those of its whole text."""
        if not np.array_equal(self.encode(turns, question), self._encode_whole(turns, question)):
            raise BadInput(
                "This tokenizer, or its chat template, does not treat all turns of a conversation alike, so prompts "
                "cannot be assembled from tokenized turns; use --no-chat-template."
            )

    def _encode_whole(self, turns: Sequence[Turn], question: str) -> TokenIds:
        return self.encoder.encode_prompt(self.encoder.render(as_messages(turns, question)))

    def _first(self, turn: Turn) -> TokenIds:
        return self.encoder.encode_prompt(self.frame.head + self._body(turn))

    def _body(self, turn: Turn) -> str:
        return turn.request + self.frame.middle + turn.reply + self.frame.left

    def _after_cut(self, text: str) -> TokenIds:
        return self.encoder.encode_after(text, self.frame.left or ".")

    def _tokens_from_reply(self, turn: Turn) -> int:
        """Return the number of tokens from the reply's first one to the end of its turn."""
        text = self.frame.right + self._body(turn)
        ids, starts = self.encoder.encode_with_starts(text)
        return len(ids) - _token_at(starts, len(text) - len(self.frame.left) - len(turn.reply))


def as_messages(turns: Sequence[Turn], question: str) -> list[Message]:
    """Return the messages of the turns, and the question as the last."""
    messages: list[Message] = []
    for turn in turns:
        messages.append({"role": "user", "content": turn.request})
        messages.append({"role": "assistant", "content": turn.reply})
    return [*messages, {"role": "user", "content": question}]


def message_offsets(
    messages: Sequence[Message], text: str, indices: Sequence[int], encoder: PromptEncoder
) -> tuple[int, ...]:
    """Return the offset in a prompt of the first token of each message named by its index.

    Args:
        messages: the conversation.
        text: the same, rendered.
        indices: which messages.
        encoder: rendered it.

    Raises:
        BadInput: the template changed or left out a message, so that this is not the conversation that was meant.
    """
    places = _places(messages, text)
    if not indices:
        return ()
    ids, starts = encoder.encode_with_starts(text)
    added = len(encoder.encode_prompt(text)) - len(ids)  # a BOS that the text does not show
    return tuple(_token_at(starts, places[i]) + added for i in indices)


def cut_between_words(text: str, num_tokens: int, encoder: PromptEncoder) -> str:
    """Return the words of ``text`` that fit, closed by a full stop; "" where not one does."""
    ids, starts = encoder.encode_with_starts(text)
    if len(ids) <= num_tokens:
        return text
    end = int(starts[num_tokens - 1])  # one token is the full stop's
    while end > 0 and not text[end].isspace():
        end -= 1
    words = text[:end].rstrip(" \n.,:;")
    return words and f"{words}."


def _frames(encoder: PromptEncoder) -> Iterator[Frame]:
    """Yield the template's frame once for each token start between two turns, the last one first."""
    messages = as_messages(_PROBE, _QUESTION)
    text = encoder.render(messages)
    places = _places(messages, text)
    ends = [place + len(message["content"]) for place, message in zip(places, messages, strict=True)]
    _, starts = encoder.encode_with_starts(text)
    cuts = {int(start) for start in starts if ends[1] <= start <= places[2]} | {places[2]}
    for cut in sorted(cuts, reverse=True):
        yield Frame(
            head=text[: places[0]],
            middle=text[ends[0] : places[1]],
            left=text[ends[1] : cut],
            right=text[cut : places[2]],
            tail=text[ends[-1] :],
        )


def _places(messages: Sequence[Message], text: str) -> list[int]:
    """Return the character at which each message begins in the rendered text."""
    places: list[int] = []
    end = 0
    for number, message in enumerate(messages):
        content = message["content"].strip()  # many templates trim
        place = text.find(content, end)
        if place < 0:
            raise BadInput(
                f"The chat template changes or drops message {number + 1} of {len(messages)} ({content[:40]!r}); "
                "use a template that keeps a conversation whole, or --no-chat-template."
            )
        places.append(place)
        end = place + len(content)
    return places


def _token_at(starts: NDArray[np.int64], place: int) -> int:
    """Return the index of the first of the tokens that hold the character at ``place``."""
    token = np.searchsorted(starts, place, side="right") - 1
    return int(np.searchsorted(starts, starts[token]))
