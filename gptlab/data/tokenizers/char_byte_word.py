"""Tokenizers of characters, bytes and words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gptlab.data.tokenizers.base import (
    UNKNOWN,
    Tokenizer,
    append_special,
    limit_characters,
    replace_surrogates,
)
from gptlab.system.errors import UserError


class CharTokenizer(Tokenizer):
    """One id per character, in code point order, as in char-rnn and nanoGPT.

    Args:
        chars: the characters, distinct and sorted; the index of a character is its id.
        end_of_text: whether there is one more id, for the end of a document.
        added: the names of further special tokens, whose ids follow.
    """

    name = "char"

    def __init__(self, chars: str, end_of_text: bool = False, added: Sequence[str] = ()) -> None:
        points = np.array([ord(c) for c in chars], dtype=np.uint32)
        if len(points) == 0 or np.any(points[1:] <= points[:-1]):
            raise UserError("a character tokenizer needs distinct characters in code point order")
        super().__init__(*append_special([c.encode("utf-8", "surrogatepass") for c in chars], end_of_text, added))
        self.chars = chars
        self._points = points

    @classmethod
    def fit(cls, texts: Iterable[str], end_of_text: bool = False) -> CharTokenizer:
        """Return the tokenizer that knows exactly the characters of `texts`."""
        return cls("".join(sorted(set().union(*map(set, texts)))), end_of_text)

    def _lookup(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the code points of `text`, the id that each would have, and whether it is known; all (n,)."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = np.searchsorted(self._points, points).clip(max=len(self.chars) - 1)
        return points, ids, self._points[ids] == points

    def encode(self, text: str) -> np.ndarray:
        _, ids, known = self._lookup(text)
        return ids[known].astype(np.int64)

    def decode(self, ids: list[int]) -> str:
        return "".join(self.chars[i] if i < len(self.chars) else self.tokens[i].decode() for i in ids)

    def unknown(self, text: str) -> list[str]:
        points, _, known = self._lookup(text)
        return [chr(p) for p in np.unique(points[~known])]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "chars": self.chars, **_special(self)}

    def _with_added(self, names: list[str]) -> CharTokenizer:
        return CharTokenizer(self.chars, self.end_of_text is not None, [*self.added, *names])


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, and one more id for the end of a document if wanted.

    Args:
        added: the names of further special tokens, whose ids follow.
    """

    name = "byte"

    def __init__(self, end_of_text: bool = False, added: Sequence[str] = ()) -> None:
        super().__init__(*append_special([bytes([i]) for i in range(256)], end_of_text, added))

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(replace_surrogates(text).encode(), dtype=np.uint8).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **_special(self)}

    def _with_added(self, names: list[str]) -> ByteTokenizer:
        return ByteTokenizer(self.end_of_text is not None, [*self.added, *names])


class WordTokenizer(Tokenizer):
    r"""Words and punctuation marks, `\w+|[^\w\s]`, as in the lessons; id 0 is the unknown word.

    White space is lost: decoding puts one space between words. A token stands for the bytes of its word, an unknown
    word for none. So bits per byte count words only, and cannot be compared with other tokenizers.

    Args:
        words: the words, which have the ids from 1 on.
        end_of_text: whether there is one more id, for the end of a document.
        added: the names of further special tokens, whose ids follow.
    """

    name = "word"
    pattern = re.compile(r"\w+|[^\w\s]")
    closing = frozenset(".,;:!?%)]}'\"…")  # marks without a space before them

    def __init__(self, words: list[str], end_of_text: bool = False, added: Sequence[str] = ()) -> None:
        if not all(isinstance(word, str) for word in words) or len(set(words)) < len(words):
            raise UserError("a word tokenizer needs distinct words")
        spaced = (word if word in self.closing else f" {word}" for word in (UNKNOWN, *words))
        super().__init__(*append_special([word.encode("utf-8", "replace") for word in spaced], end_of_text, added))
        self.words = words
        self._ids = {word: i for i, word in enumerate(words, 1)}

    @classmethod
    def fit(cls, texts: Iterable[str], vocab_size: int | None, end_of_text: bool = False) -> WordTokenizer:
        """Take the most frequent words of `texts`, `vocab_size` tokens in all; ties are broken alphabetically."""
        counts: Counter[str] = Counter()
        for text in limit_characters(texts):
            counts.update(cls.pattern.findall(text))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ordered if vocab_size is None else ordered[: vocab_size - 1 - end_of_text], end_of_text)

    def encode(self, text: str) -> np.ndarray:
        return np.array([self._ids.get(word, 0) for word in self.pattern.findall(text)], dtype=np.int64)

    def decode(self, ids: list[int]) -> str:
        return super().decode(ids).removeprefix(" ")

    def token_bytes(self) -> np.ndarray:
        sizes = super().token_bytes()
        words = np.array([len(word.encode("utf-8", "replace")) for word in self.words], dtype=np.int64)
        sizes[0], sizes[1 : len(words) + 1] = 0, words
        return sizes

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "words": self.words, **_special(self)}

    def _with_added(self, names: list[str]) -> WordTokenizer:
        return WordTokenizer(self.words, self.end_of_text is not None, [*self.added, *names])


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the part of a description that tells the special tokens."""
    added = {"added": [*tokenizer.added]} if tokenizer.added else {}
    return {"end_of_text": tokenizer.end_of_text is not None, **added}
