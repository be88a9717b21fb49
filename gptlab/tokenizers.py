"""Text to ids and back. A tokenizer is saved as a plain dict, so that a checkpoint can carry it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from gptlab.errors import UserError


class Tokenizer(Protocol):
    """What data, sampling and checkpoints need of a tokenizer."""

    name: str

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, (n,) int64; what the tokenizer does not know is left out (see `unknown`)."""
        ...

    def decode(self, ids: list[int]) -> str: ...

    def unknown(self, text: str) -> list[str]:
        """The distinct characters of `text` that `encode` leaves out, sorted."""
        ...

    def token_bytes(self) -> np.ndarray:
        """Bytes of raw UTF-8 text that each token stands for, (V,) int64: the unit of bits per byte."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


class CharTokenizer:
    """One id per character, in code point order, as in char-rnn and nanoGPT.

    Args:
        chars: the characters, distinct and sorted; a character's place is its id.
    """

    name = "char"

    def __init__(self, chars: str) -> None:
        points = np.array([ord(c) for c in chars], dtype=np.uint32)
        if len(points) == 0 or np.any(points[1:] <= points[:-1]):
            raise UserError("a character tokenizer needs distinct characters in code point order")
        self.chars = chars
        self._points = points

    @classmethod
    def fit(cls, text: str) -> CharTokenizer:
        """The tokenizer that knows exactly the characters of `text`."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        return len(self.chars)

    def _lookup(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Code points of `text`, the id each would have, and whether it is known; all (n,)."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = np.searchsorted(self._points, points).clip(max=self.vocab_size - 1)
        return points, ids, self._points[ids] == points

    def encode(self, text: str) -> np.ndarray:
        _, ids, known = self._lookup(text)
        return ids[known].astype(np.int64)

    def decode(self, ids: list[int]) -> str:
        return "".join(self.chars[i] for i in ids)

    def unknown(self, text: str) -> list[str]:
        points, _, known = self._lookup(text)
        return [chr(p) for p in np.unique(points[~known])]

    def token_bytes(self) -> np.ndarray:
        return np.array([len(c.encode("utf-8", "surrogatepass")) for c in self.chars], dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "chars": self.chars}


def from_dict(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `to_dict` described.

    Raises:
        UserError: the dict describes no tokenizer that this version knows.
    """
    if state.get("name") != "char":
        raise UserError(f"unknown tokenizer {state.get('name')!r}; this version knows: char")
    if not isinstance(state.get("chars"), str):
        raise UserError("a character tokenizer without its characters: the file that it comes from is broken")
    return CharTokenizer(state["chars"])
