"""Examples as ids and masks that fit a row: what is too long is cut so that the answer stays, or refused."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gptlab.data.chat.chat_format import Encoded, Format
from gptlab.data.chat.conversations import Conversation, Labelled, Messages, Preference
from gptlab.data.tokenizers import Tokenizer
from gptlab.system.errors import UserError, amount

CUT, REFUSE = "cut", "refuse"
TOO_LONG = (CUT, REFUSE)
SHORTENED = "cut to the row"  # counted
LEFT_OUT = "left out, since the answer leaves no place in the row for a prompt"  # counted
ALIKE = "left out, since both answers are the same tokens"  # counted
WAYS_OUT = {LEFT_OUT: "take a larger model.block_size", ALIKE: "take a tokenizer that knows their characters"}
"""What helps where all are left out."""


class EncodedPair(NamedTuple):
    """A prompt with the better and with the worse answer, each whole."""

    chosen: Encoded
    rejected: Encoded
    margin: float | None = None
    """By how much the chosen one is better; None: it is not known."""

    @property
    def both(self) -> tuple[Encoded, Encoded]:
        return self.chosen, self.rejected


class EncodedLabelled(NamedTuple):
    """A text as ids, (n,) int64, and the number of its class."""

    ids: np.ndarray
    label: int


def encode_conversations(
    conversations: Iterable[Conversation],
    chat: Format,
    block_size: int,
    counts: Counter[str],
    *,
    loss_on_all: bool = False,
    too_long: str = CUT,
) -> list[Encoded]:
    """Return conversations as ids, at most `block_size` + 1 each: so many have `block_size` inputs and targets.

    Args:
        counts: counts the conversations that are cut, and those that are left out.
        loss_on_all: whether all ids but the first count, and not only the assistant's.
        too_long: "cut" a longer conversation, see `shorten`, or "refuse" it.

    Raises:
        UserError: a conversation is too long and to be refused, or has nothing that counts.
    """
    _check(too_long)
    found = []
    for each in conversations:
        begin = _answer_begin(each.messages)
        prompt, answer = each.messages[:begin], each.messages[begin:]

        def encoded(prompt: Messages, each: Conversation = each, answer: Messages = answer) -> Encoded:
            dropped = len(each.messages) - len(prompt) - len(answer)
            return chat.encode(prompt + answer, max(each.given - dropped, 0))

        row = _Row(chat, [answer], block_size, block_size + 1, too_long, each.where)
        alone = row.fitting(prompt, lambda prompt: [encoded(prompt)], counts)
        for ids, counted in alone or ():
            counted = np.arange(len(ids)) > 0 if loss_on_all else counted
            if not counted.any():
                raise UserError(f"{each.where or 'a conversation'}: nothing in it counts, so that it teaches nothing")
            found.append(Encoded(ids, counted))
    return found


def fitting(conversation: Conversation, chat: Format, block_size: int) -> Conversation | None:
    """Return a conversation as `encode_conversations` cuts it; None if it leaves it out."""
    begin = _answer_begin(conversation.messages)
    prompt, answer = conversation.messages[:begin], conversation.messages[begin:]

    def fits(prompt: Messages) -> bool:
        return len(chat.ids(prompt + answer)) <= block_size + 1

    kept = prompt if fits(prompt) else shorten(prompt, fits)
    if kept is None:
        return None
    given = max(conversation.given - len(prompt) + len(kept), 0)
    return replace(conversation, messages=kept + answer, given=given)


def answerable(conversation: Conversation, chat: Format, most: int) -> Conversation | None:
    """Return a conversation whose prompt has at most so many tokens, by `shorten`; None if that leaves nothing.

    Args:
        most: the most tokens of the prompt, up to where the last answer begins.
    """
    prompt, answer = conversation.messages[:-1], conversation.messages[-1:]

    def fits(prompt: Messages) -> bool:
        return len(chat.prompt(prompt)) <= most

    kept = prompt if fits(prompt) else shorten(prompt, fits)
    return None if kept is None else replace(conversation, messages=kept + answer, given=len(kept))


def encode_preferences(
    preferences: Iterable[Preference],
    chat: Format,
    block_size: int,
    counts: Counter[str],
    *,
    too_long: str = CUT,
    end_is_read: bool = False,
) -> list[EncodedPair]:
    """Return pairs as ids, at most `block_size` + 1 each; both have the same prompt, and their whole answers count.

    Left out is also a pair whose answers differ only in what the tokenizer lacks or the format trims.

    Args, and errors: see `encode_conversations`; and
        end_is_read: whether the model reads the last id, too, as that of a reward, so that `block_size` ids are the
            most. A loss on tokens has the last id as a target only.
    """
    _check(too_long)
    most = block_size + (not end_is_read)
    found = []
    for each in preferences:

        def encoded(prompt: Messages, each: Preference = each) -> list[Encoded]:
            return [chat.encode(prompt + answer, len(prompt)) for answer in (each.chosen, each.rejected)]

        row = _Row(chat, [each.chosen, each.rejected], block_size, most, too_long, each.where)
        if fitting := row.fitting(each.prompt, encoded, counts):
            chosen, rejected = fitting
            if np.array_equal(chosen.ids, rejected.ids):
                counts[ALIKE] += 1
            else:
                found.append(EncodedPair(chosen, rejected, each.difference))
    return found


def encode_labelled(
    texts: Iterable[Labelled],
    tokenizer: Tokenizer,
    classes: Sequence[str | int],
    block_size: int,
    counts: Counter[str],
    *,
    too_long: str = CUT,
) -> list[EncodedLabelled]:
    """Return texts as ids, at most `block_size` each, after what the tokenizer begins a text with, and their classes.

    Args:
        classes: the labels; class i is the i-th.
        counts: counts the texts that are cut.
        too_long: "cut" the end of a longer text, or "refuse" it.

    Raises:
        UserError: a text is too long and to be refused, has no token, or a label that is no class.
    """
    _check(too_long)
    numbers, found = {label: i for i, label in enumerate(classes)}, []
    for each in texts:
        where = each.where or "a labelled text"
        if each.label not in numbers:
            known = ", ".join(map(repr, classes))
            raise UserError(f"{where}: the label {each.label!r:.99} is none of the training part's: {known:.200}")
        text = tokenizer.encode(each.text)
        if not len(text):
            raise UserError(f"{where}: the tokenizer knows nothing in {each.text!r:.99}; leave it out")
        ids = np.concatenate([np.array(tokenizer.begin, dtype=np.int64), text])
        if len(ids) > block_size:
            if too_long == REFUSE:
                raise UserError(
                    f"{where}: it has {amount(len(ids), 'token')}, and a row holds model.block_size={block_size}; "
                    f"shorten it, take a larger one, or give task.too_long={CUT}"
                )
            counts[SHORTENED] += 1
        found.append(EncodedLabelled(ids[:block_size], numbers[each.label]))
    return found


def _check(too_long: str) -> None:
    if too_long not in TOO_LONG:
        raise UserError(f"task.too_long={too_long}: must be one of {', '.join(TOO_LONG)}")


def _answer_begin(messages: Messages) -> int:
    """Return where the last answer begins: after the last message that is not the assistant's."""
    return 1 + max(i for i, message in enumerate(messages) if message.role != "assistant")


@dataclass(frozen=True)
class _Row:
    """What a row has room for: each of some answers after a prompt."""

    chat: Format
    answers: Sequence[Messages]
    block_size: int
    most: int
    """The most ids of a text; `block_size` is for the message."""
    too_long: str
    where: str
    """The file and line of the example, for messages."""

    def fitting(
        self, prompt: Messages, encoded: Callable[[Messages], list[Encoded]], counts: Counter[str]
    ) -> list[Encoded] | None:
        """Return what `encoded` makes of a prompt, or of as much of its end as fits; None if nothing does."""
        with naming(self.where):
            if (length := self._length(prompt)) <= self.most:
                return encoded(prompt)
            if self.too_long == REFUSE:
                raise UserError(
                    f"it has {amount(length, 'token')}, and a row of model.block_size={self.block_size} holds "
                    f"{self.most:,}; shorten it, take a larger one, or give task.too_long={CUT}"
                )
            shorter = shorten(prompt, lambda prompt: self._length(prompt) <= self.most)
            counts[LEFT_OUT if shorter is None else SHORTENED] += 1
            return None if shorter is None else encoded(shorter)

    def _length(self, prompt: Messages) -> int:
        return max(len(self.chat.ids(prompt + answer)) for answer in self.answers)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Let the messages of UserErrors begin with the file and line of a row."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where or 'a conversation'}: {error}") from error


def shorten(prompt: Messages, fits: Callable[[Messages], bool]) -> Messages | None:
    """Return as much of the end of a prompt as fits; None if not even one character does.

    The oldest turns go first, then the beginning of the last message, then the message of the system. So the special
    tokens stay, and a prompt begins with the user, or with the system before the user.
    """
    system = prompt[: prompt[0].role == "system"]
    turns = [i for i, message in enumerate(prompt) if message.role == "user"]
    for kept in dict.fromkeys((system, ())):
        first = bisect_left(turns, True, key=lambda begin: fits(kept + prompt[begin:]))  # few of many turns are tried
        if first < len(turns):
            return kept + prompt[turns[first] :]
        if cut := _cut(kept, prompt[turns[-1] :], fits):
            return cut
    return None


def _cut(kept: Messages, messages: Messages, fits: Callable[[Messages], bool]) -> Messages | None:
    """Return `kept` and messages with as long an end of their first content as fits; None if none does."""
    first, rest = messages[0], messages[1:]

    def ending(length: int) -> Messages:
        return (*kept, first._replace(content=first.content[len(first.content) - length :]), *rest)

    most, least = len(first.content), 0  # a content of `most` characters does not fit, one of `least` does, or is none
    while most - least > 1:
        middle = (most + least) // 2
        most, least = (most, middle) if fits(ending(middle)) else (middle, least)
    return ending(least) if least else None
