"""The interface of all tokenizers, and the config that chooses one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
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
        added: ids of further special tokens by their names, such as those of a chat, see `with_special`.
    """

    name: str
    begin: tuple[int, ...] = ()
    """Ids that a model expects before a text, such as Llama's <s>; `encode` does not return them, `prepare` does."""

    leading_space = False
    """Whether `encode` puts a space before a text, which is none of its bytes."""

    def __init__(self, tokens: list[bytes], end_of_text: int | None, added: dict[str, int] | None = None) -> None:
        self.tokens = tokens
        self.end_of_text = end_of_text
        self.added = added or {}

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
    def special_tokens(self) -> dict[str, int]:
        """The ids of the tokens that `encode_special` reads as such, by their names."""
        return ({} if self.end_of_text is None else {END_OF_TEXT: self.end_of_text}) | self.added

    @property
    def special_names(self) -> list[str]:
        """The names of the tokens that `encode_special` reads as such."""
        return [*self.special_tokens]

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, (n,) int64; characters without an id are left out (see `unknown`)."""
        raise NotImplementedError

    def encode_special(self, text: str) -> np.ndarray:
        """Encode `text`, reading the names of all special tokens as those tokens."""
        special = self.special_tokens
        if not special:
            return self.encode(text)
        parts = re.split(f"({'|'.join(map(re.escape, special))})", text)
        ids = [self.encode(part) if i % 2 == 0 else np.array([special[part]]) for i, part in enumerate(parts)]
        return np.concatenate(ids).astype(np.int64)

    def with_special(self, names: Sequence[str]) -> Tokenizer:
        """Return a tokenizer with further special tokens, which gives any text the ids that this one gives it.

        Those that this one has already keep their ids; the others get the next ones, from `vocab_size` on, in order.

        Raises:
            UserError: a text that spells one of the tokens would be read as it.
        """
        new = [name for name in dict.fromkeys(names) if name not in self.special_tokens]
        extended = self._with_added(new) if new else self
        for name in names:
            if extended.special_tokens[name] in extended.encode(name):
                raise UserError(
                    f"the tokenizer reads the text {name} as the special token of that name, even where a user writes "
                    f"it; take a model whose vocabulary has no ordinary token {name}"
                )
        return extended

    def _with_added(self, names: list[str]) -> Tokenizer:
        """Return a tokenizer with special tokens that this one has not; see `with_special`."""
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")

    def unknown(self, text: str) -> list[str]:
        """Return the distinct characters of `text` that `encode` leaves out, sorted."""
        return []

    def token_bytes(self) -> np.ndarray:
        """Return how many bytes of raw UTF-8 text each token stands for within a text, (V,) int64."""
        sizes = np.array([len(token) for token in self.tokens], dtype=np.int64)
        sizes[[i for i in (self.end_of_text, *self.added.values()) if i is not None]] = 0
        return sizes

    def first_bytes(self) -> np.ndarray:
        """Return the `token_bytes` of each token where it is the first of a text, (V,) int64."""
        spaces = np.array([token.startswith(b" ") for token in self.tokens])
        return np.maximum(self.token_bytes() - (spaces if self.leading_space else 0), 0)

    def before_texts(self) -> np.ndarray:
        """Return whether a text begins after each token, (V,) bool: after those that begin or end one, or a turn."""
        found = np.zeros(self.vocab_size, dtype=bool)
        special = self.special_tokens.values()
        found[[i for i in (*self.begin[-1:], self.end_of_text, *special) if i is not None]] = True
        return found

    def text_bytes(self, ids: np.ndarray) -> np.ndarray:
        """Return how many bytes of raw UTF-8 each of the ids of a text or texts stands for, (n,) int64."""
        first = np.concatenate(([True], self.before_texts()[ids[:-1]]))
        return np.where(first, self.first_bytes()[ids], self.token_bytes()[ids])

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict from which `tokenizers.from_dict` makes the same tokenizer."""
        raise NotImplementedError


def append_special(
    tokens: list[bytes], end_of_text: bool, added: Sequence[str]
) -> tuple[list[bytes], int | None, dict[str, int]]:
    """Return `tokens` with special ones after them, and the ids of these: one for the end of a document if wanted, and
    those named `added`.

    Raises:
        UserError: names are not distinct.
    """
    names = [END_OF_TEXT] * end_of_text + [*added]
    if len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
        raise UserError("special tokens need distinct names")
    ids = {name: i for i, name in enumerate(names, len(tokens))}
    end = ids.pop(END_OF_TEXT) if end_of_text else None
    return tokens + [name.encode() for name in names], end, ids


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
