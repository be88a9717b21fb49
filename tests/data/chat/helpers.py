"""What several tests of conversations share."""

from __future__ import annotations

from gptlab.data.chat.chat_format import ChatFormat, chat_tokenizer
from gptlab.data.chat.conversations import Conversation, Message
from gptlab.data.tokenizers import CharTokenizer

CHAT = ChatFormat(chat_tokenizer(CharTokenizer("".join(map(chr, range(32, 127))), end_of_text=True)))


def talk(*contents: str, system: str = "", given: int = 0) -> Conversation:
    """A conversation of a user, who begins, and the assistant."""
    begin = [Message("system", system)] if system else []
    turns = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return Conversation((*begin, *turns), given)


def shown(ids: list[int]) -> str:
    """Ids as text, with short names for the special tokens."""
    text = CHAT.tokenizer.decode(ids)
    names = {"<|begin_of_text|>": "^", "<|system|>": "S:", "<|user|>": "U:", "<|assistant|>": "A:", "<|end|>": "$"}
    for name, short in names.items():
        text = text.replace(name, short)
    return text
