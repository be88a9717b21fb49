"""What several tests of conversations share."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from gptlab.data.chat.chat_format import ChatFormat, chat_tokenizer
from gptlab.data.chat.conversations import Conversation, Message, Preference
from gptlab.data.config import DataConfig
from gptlab.data.tokenizers import CharTokenizer
from gptlab.runs.compose import CONF

CHAT = ChatFormat(chat_tokenizer(CharTokenizer("".join(map(chr, range(32, 127))), end_of_text=True)))


def talk(*contents: str, system: str = "", given: int = 0) -> Conversation:
    """A conversation of a user, who begins, and the assistant."""
    begin = [Message("system", system)] if system else []
    turns = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return Conversation((*begin, *turns), given)


def pair(prompt: str, chosen: str, rejected: str) -> Preference:
    return Preference((Message("user", prompt),), (Message("assistant", chosen),), (Message("assistant", rejected),))


def data_config(name: str, problems: dict[str, Any] | None = None, **changes: Any) -> DataConfig:
    """The node `data` of data=NAME, with other problems and values."""
    main: Any = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"), resolve=False)
    own: Any = OmegaConf.to_container(OmegaConf.load(CONF / "data" / f"{name}.yaml"), resolve=False)
    values = main["data"] | {"dir": None, "batch_size": 4, "micro_batch_size": None, "name": name}
    if "problems" in own:
        values["problems"] = own["problems"] | (problems or {})
    return DataConfig(**values | changes)


def shown(ids: list[int]) -> str:
    """Ids as text, with short names for the special tokens."""
    text = CHAT.tokenizer.decode(ids)
    names = {"<|begin_of_text|>": "^", "<|system|>": "S:", "<|user|>": "U:", "<|assistant|>": "A:", "<|end|>": "$"}
    for name, short in names.items():
        text = text.replace(name, short)
    return text
