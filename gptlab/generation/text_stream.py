"""The text of tokens as they are drawn: whole characters, up to a stop string or the end of text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import NamedTuple

from gptlab.data.tokenizers import Tokenizer


class Piece(NamedTuple):
    text: str
    bits: float
    """The surprisal of the tokens that it comes from: several, where a character takes several."""


class TextStream:
    """One text on its way to its reader.

    A token may end within a character, and what it ends with may be the beginning of a stop string: such tokens are
    held back until it is known.

    Args:
        stops: the text ends before the first of them that is complete, however it is cut into tokens.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.tokens: list[int] = []
        """All that were drawn, those of a stop string and the end of text among them."""
        self.bits: list[float] = []
        """Their surprisal."""
        self.pieces: list[Piece] = []
        """What is known of the text."""
        self.finish: str | None = None
        """Why it ended: stop, end_of_text or length."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[Piece] = []

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def add(self, token: int, bits: float = 0.0) -> list[Piece]:
        """The pieces that are known now; none of a token after the end."""
        if self.finish is not None:
            return []
        self.tokens.append(token)
        self.bits.append(bits)
        if token == self.tokenizer.end_of_text:
            return self.close("end_of_text")
        self._hold(self._decoder.decode(self.tokenizer.tokens[token]), bits)
        whole = "".join(piece.text for piece in self._held)
        complete = [(start + len(stop), start) for stop in self.stops if (start := whole.find(stop)) >= 0]
        if complete:
            self.finish = "stop"
            return self._release(min(complete)[1], cut=True)
        open_ = (n for stop in self.stops for n in range(1, len(stop)) if whole.endswith(stop[:n]))
        return self._release(len(whole) - max(open_, default=0))

    def close(self, finish: str = "length") -> list[Piece]:
        """What has been held back, since no more tokens come."""
        if self.finish is not None:
            return []
        self.finish = finish
        self._hold(self._decoder.decode(b"", final=True), 0.0)
        return self._release(sum(len(piece.text) for piece in self._held))

    def _hold(self, text: str, bits: float) -> None:
        if self._held and not self._held[-1].text:  # the character that was begun
            bits += self._held.pop().bits
        self._held.append(Piece(text, bits))

    def _release(self, length: int, cut: bool = False) -> list[Piece]:
        """The pieces held within the first `length` characters; with `cut` the beginning of the next one too."""
        released = []
        while self._held and self._held[0].text and len(self._held[0].text) <= length:
            released.append(self._held.pop(0))
            length -= len(released[-1].text)
        if cut and length:
            released.append(Piece(self._held[0].text[:length], self._held[0].bits))
        self.pieces += released
        return released
