"""The interface of all tokenizers, and the config that chooses one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptlab.system.errors import UserError, did_you_mean

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"
MAX_VOCAB = 1 << 22  # ids: no model has more, and each takes memory, used or not
FIT_CHARACTERS = 100_000_000  # of the training text, to which a vocabulary of words or merges is fitted
NAMES = ("char", "byte", "word", "bpe", "gpt2", "cl100k_base")  # data can be prepared with these
JSON = "json"  # comes with a model from elsewhere


@dataclass(frozen=True)
class TokenizerConfig:
    """The config group `tokenizer`, checked."""

    name: str
    vocab_size: int | None
    """Number of tokens, special ones included; for word (None: all words) and bpe only."""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UserError(f"tokenizer.name={self.name}: no such tokenizer; {did_you_mean(self.name, NAMES)}")
        least = {"word": 3, "bpe": 257}.get(self.name)
        if least is None and self.vocab_size is not None:
            raise UserError(f"tokenizer.vocab_size={self.vocab_size}: tokenizer={self.name} has its own; leave it out")
        if self.name == "bpe" and self.vocab_size is None:
            raise UserError("tokenizer.vocab_size: is missing; tokenizer=bpe needs one, e.g. 2048")
        if least is not None and self.vocab_size is not None and self.vocab_size < least:
            why = "256 bytes and the end of text" if self.name == "bpe" else "a word and the special tokens"
            raise UserError(f"tokenizer.vocab_size={self.vocab_size}: must be at least {least} ({why})")


class Tokenizer:
    """The base of all tokenizers: ids (n,) int64 from a text, and the bytes that each id stands for.

    Args:
        tokens: the UTF-8 bytes of each id's text, (V,); empty where an id is not used.
        end_of_text: the id that ends a document, if there is one. `encode` reads "<|endoftext|>" as ordinary text.
    """

    name: str
    begin: tuple[int, ...] = ()
    """Ids that a model expects before a text, such as Llama's <s>; `encode` does not return them, `prepare` does."""

    leading_space = False
    """Whether `encode` puts a space before a text, which is none of its bytes."""

    def __init__(self, tokens: list[bytes], end_of_text: int | None) -> None:
        self.tokens = tokens
        self.end_of_text = end_of_text

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def begin_name(self) -> str:
        """The text of `begin`, for messages."""
        return b"".join(self.tokens[i] for i in self.begin).decode("utf-8", "replace")

    @property
    def begin_protocol(self) -> str:
        """What the protocol of a measurement adds where something begins each text; empty where nothing does."""
        return f", {self.begin_name} before each text" if self.begin else ""

    @property
    def unpredicted(self) -> list[int]:
        """The ids of `begin`, which no loss counts: what comes before a text is given. An end of text is predicted."""
        return [i for i in self.begin if i != self.end_of_text]

    @property
    def special_names(self) -> list[str]:
        """The names of the tokens that `encode_special` reads as such."""
        return [] if self.end_of_text is None else [END_OF_TEXT]

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, (n,) int64; characters without an id are left out (see `unknown`)."""
        raise NotImplementedError

    def encode_special(self, text: str) -> np.ndarray:
        """Encode `text`, reading "<|endoftext|>" as the special token."""
        if self.end_of_text is None:
            return self.encode(text)
        first, *rest = (self.encode(part) for part in text.split(END_OF_TEXT))
        return np.concatenate([first, *(ids for part in rest for ids in ([self.end_of_text], part))]).astype(np.int64)

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")

    def unknown(self, text: str) -> list[str]:
        """Return the distinct characters of `text` that `encode` leaves out, sorted."""
        return []

    def token_bytes(self) -> np.ndarray:
        """Return how many bytes of raw UTF-8 text each token stands for within a text, (V,) int64."""
        sizes = np.array([len(token) for token in self.tokens], dtype=np.int64)
        if self.end_of_text is not None:
            sizes[self.end_of_text] = 0
        return sizes

    def first_bytes(self) -> np.ndarray:
        """Return the `token_bytes` of each token where it is the first of a text, (V,) int64."""
        spaces = np.array([token.startswith(b" ") for token in self.tokens])
        return np.maximum(self.token_bytes() - (spaces if self.leading_space else 0), 0)

    def before_texts(self) -> np.ndarray:
        """Return whether a text begins after each token, (V,) bool."""
        found = np.zeros(self.vocab_size, dtype=bool)
        found[[i for i in (*self.begin[-1:], self.end_of_text) if i is not None]] = True
        return found

    def text_bytes(self, ids: np.ndarray) -> np.ndarray:
        """Return how many bytes of raw UTF-8 each of the ids of a text or texts stands for, (n,) int64."""
        first = np.concatenate(([True], self.before_texts()[ids[:-1]]))
        return np.where(first, self.first_bytes()[ids], self.token_bytes()[ids])

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict from which `tokenizers.from_dict` makes the same tokenizer."""
        raise NotImplementedError


def append_end_of_text(tokens: list[bytes], end_of_text: bool) -> tuple[list[bytes], int | None]:
    """Return `tokens`, with one for the end of a document if wanted, and its id."""
    return (tokens + [END_OF_TEXT.encode()], len(tokens)) if end_of_text else (tokens, None)


def replace_surrogates(text: str) -> str:
    """Return `text` with U+FFFD for lone surrogates, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def limit_characters(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts up to FIT_CHARACTERS in all."""
    seen = 0
    for text in texts:
        yield text[: FIT_CHARACTERS - seen]
        seen += len(text)
        if seen >= FIT_CHARACTERS:
            return
