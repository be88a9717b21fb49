"""Tokenizers: text to ids and back. Each is saved as a plain dict, so that a checkpoint can hold it.

There are characters, bytes, words, byte-level BPE trained on the text, OpenAI's vocabularies, and any tokenizer.json.
BPE is trained by Hugging Face's `tokenizers` and encoded by tiktoken, which is several times faster.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gptlab.data.tokenizers.base import END_OF_TEXT, JSON, NAMES, UNKNOWN, Tokenizer, TokenizerConfig
from gptlab.data.tokenizers.bpe import BYTES, CL100K_PATTERN, CL100K_SPECIAL, GPT2_PATTERN, BPETokenizer
from gptlab.data.tokenizers.char_byte_word import ByteTokenizer, CharTokenizer, WordTokenizer
from gptlab.data.tokenizers.json import JsonTokenizer, errors_as_one_message
from gptlab.system.errors import UserError

__all__ = [
    "BYTES",
    "CL100K_PATTERN",
    "CL100K_SPECIAL",
    "END_OF_TEXT",
    "GPT2_PATTERN",
    "JSON",
    "NAMES",
    "UNKNOWN",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "JsonTokenizer",
    "Tokenizer",
    "TokenizerConfig",
    "WordTokenizer",
    "build",
    "errors_as_one_message",
    "from_dict",
]


def build(config: TokenizerConfig, texts: Iterable[str], end_of_text: bool, raw_dir: Path) -> Tokenizer:
    """Return the tokenizer that `config` names, fitted to `texts` if it learns from them.

    Args:
        texts: the training part in pieces; read only as far as needed.
        end_of_text: whether to have a token for the end of a document; BPE always has one.
        raw_dir: where OpenAI's vocabularies are looked for.

    Raises:
        UserError: see `BPETokenizer.gpt2`.
    """
    if config.name == "char":
        return CharTokenizer.fit(texts, end_of_text)
    if config.name == "byte":
        return ByteTokenizer(end_of_text)
    if config.name == "word":
        return WordTokenizer.fit(texts, config.vocab_size, end_of_text)
    if config.name == "bpe":
        assert config.vocab_size is not None
        return BPETokenizer.fit(texts, config.vocab_size)
    return BPETokenizer.gpt2(raw_dir) if config.name == "gpt2" else BPETokenizer.cl100k_base(raw_dir)


def from_dict(state: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer that `to_dict` described.

    Raises:
        UserError: this version does not know the tokenizer, or its description is damaged.
    """
    name = state.get("name") if isinstance(state, dict) else None
    if name not in (*NAMES, JSON):
        raise UserError(f"unknown tokenizer {name!r:.99}; this version knows: {', '.join((*NAMES, JSON))}")
    with errors_as_one_message(f"a damaged {name} tokenizer: the file that it comes from is broken"):
        if name == JSON:
            named = {_typed(kind, str): _typed(token, str) for kind, token in state.get("named", {}).items()}
            return JsonTokenizer(_typed(state["content"], str), _typed(state["end_of_text"], int, type(None)), named)
        if name in ("byte", "char", "word"):
            marks = _typed(state["end_of_text"], bool), _typed(state.get("added", []), list)
            if name == "byte":
                return ByteTokenizer(*marks)
            if name == "char":
                return CharTokenizer(_typed(state["chars"], str), *marks)
            return WordTokenizer(_typed(state["words"], list), *marks)
        merges = [base64.b64decode(token, validate=True) for token in state["merges"].split(" ")]
        pattern = CL100K_PATTERN if name == "cl100k_base" else GPT2_PATTERN
        if state["pattern"] != pattern:  # some patterns would never finish
            raise ValueError(f"its pattern is not {pattern}")
        special = {_typed(token, str): _typed(i, int) for token, i in state["special"].items()}
        return BPETokenizer(name, merges, pattern, special)


def _typed(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError(f"{str(value)[:99]} is not of type {kinds[0].__name__}")
    return value
