"""The chat format: special tokens that tell a model who speaks, where a conversation begins, and where a turn ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from gptlab.data.chat.conversations import ROLES, Message
from gptlab.data.tokenizers import Tokenizer
from gptlab.system.errors import UserError

BEGIN = "<|begin_of_text|>"
TURNS = {role: f"<|{role}|>" for role in ROLES}
ANSWERING = ("sft", "dpo", "ppo", "grpo")  # the tasks in which a model learns to answer
END = "<|end|>"


class Encoded(NamedTuple):
    """A conversation as ids, n of them."""

    ids: np.ndarray
    """(n,) int64."""
    counted: np.ndarray
    """(n,) bool: whether there is a loss where the id is the target. Never true for the first, which is no target."""


class Format(Protocol):
    """How messages become ids."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes ids of texts."""
        ...

    @property
    def words(self) -> str:
        """What it is, for messages."""
        ...

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a turn, any of which ends an answer."""
        ...

    def encode(self, messages: Sequence[Message], given: int = 0) -> Encoded:
        """Return the ids of messages. What the assistant says counts, and the token that ends it.

        Args:
            given: so many messages at the beginning are a prompt and do not count.
        """
        ...

    def ids(self, messages: Sequence[Message]) -> np.ndarray:
        """Return the ids of `encode` alone, in less time."""
        ...

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """Return the ids after which the assistant's answer to `messages` begins, (n,) int64."""
        ...

    def as_template(self) -> str:
        """Return the format as a chat template in Jinja, as `transformers` takes it."""
        ...


def chat_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with the tokens of the chat format, which gives any text the ids that this one gives it.

    Those that it has already are used; new ones have the ids from its `vocab_size` on.

    Raises:
        UserError: see `Tokenizer.with_special`.
    """
    begin = [] if tokenizer.begin else [BEGIN]
    return tokenizer.with_special([*begin, *TURNS.values(), END])


def has_chat_tokens(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer has all tokens of the chat format."""
    return {*TURNS.values(), END} <= tokenizer.special_tokens.keys() and bool(
        tokenizer.begin or BEGIN in tokenizer.special_tokens
    )


def answers_in_chat(config: object, tokenizer: Tokenizer) -> bool:
    """Return whether a model has learned to answer in the chat format.

    Args:
        config: of the run that made it; None if there is none.
    """
    task = config.get("task") if isinstance(config, dict) else None
    return isinstance(task, dict) and task.get("name") in ANSWERING and has_chat_tokens(tokenizer)


def end_tokens(tokenizer: Tokenizer) -> set[int]:
    """Return the ids that end an answer: the end of a turn and the end of a text, as far as there are such tokens."""
    return {end for end in (tokenizer.special_tokens.get(END), tokenizer.end_of_text) if end is not None}


@dataclass(frozen=True)
class ChatFormat:
    """<|begin_of_text|><|user|>Hello<|end|><|assistant|>Hi<|end|>, in which the messages are ordinary text.

    A tokenizer that knows what comes before each text, such as Llama's <s>, begins with that.

    Raises:
        UserError: the tokenizer lacks tokens of the format.
    """

    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        if not has_chat_tokens(self.tokenizer):
            raise UserError(
                f"the {self.tokenizer.name} tokenizer lacks some of the chat format's tokens {BEGIN} "
                f"{' '.join(TURNS.values())} {END}; fine-tuning adds them to a model"
            )

    @property
    def words(self) -> str:
        return "gptlab's chat format"

    @property
    def begin(self) -> tuple[int, ...]:
        """The ids that begin each conversation."""
        return self.tokenizer.begin or (self.tokenizer.special_tokens[BEGIN],)

    @property
    def end(self) -> int:
        """The id that ends each message."""
        return self.tokenizer.special_tokens[END]

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(end_tokens(self.tokenizer))

    def encode(self, messages: Sequence[Message], given: int = 0) -> Encoded:
        # Each part is tokenised alone, so that the ids of a prompt do not depend on the answer after it.
        ids, counted = list(self.begin), [False] * len(self.begin)
        for i, (role, content) in enumerate(messages):
            said = self.tokenizer.encode(content).tolist()
            ids += (self.turn(role), *said, self.end)
            counted += (False, *[role == "assistant" and i >= given] * (len(said) + 1))
        return Encoded(np.array(ids, dtype=np.int64), np.array(counted))

    def ids(self, messages: Sequence[Message]) -> np.ndarray:
        return self.encode(messages).ids

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        return np.append(self.encode(messages).ids, self.turn("assistant"))

    def as_template(self) -> str:
        begin = "".join(self.tokenizer.tokens[token].decode() for token in self.begin)
        return (
            f"{{{{ {json.dumps(begin)} }}}}{{% for message in messages %}}{{{{ '<|' + message['role'] + '|>' }}}}"
            "{% if message['role'] == 'assistant' %}{% generation %}"
            f"{{{{ message['content'] + '{END}' }}}}{{% endgeneration %}}"
            f"{{% else %}}{{{{ message['content'] + '{END}' }}}}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ '{TURNS['assistant']}' }}}}{{% endif %}}"
        )

    def turn(self, role: str) -> int:
        """Return the id that begins a message of a role."""
        return self.tokenizer.special_tokens[TURNS[role]]
