"""The text of tokens as they are drawn: whole characters, up to a stop string or the end-of-text token."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from typing import NamedTuple

from gptlab.data.chat.chat_format import end_tokens
from gptlab.data.tokenizers import Tokenizer


class Piece(NamedTuple):
    """A piece of text, from one token, or from several where a character takes several."""

    text: str
    bits: float
    """The surprisal of its tokens, in bits."""


class TextStream:
    """The text of one row of tokens, released piece by piece.

    A token may end within a character or within a possible stop string. Its text is held back until later tokens
    decide what it is.

    Args:
        tokenizer: the tokenizer of the tokens.
        stops: the stop strings; the text ends before the first that is complete, however it is cut into tokens.
        begins: whether the row begins a text, so that a space which the tokenizer puts before each is left out.
        ends: the tokens that end the text; None: the tokenizer's.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        begins: bool = False,
        ends: Collection[int] | None = None,
    ) -> None:
        self.tokenizer, self.stops, self.begins = tokenizer, stops, begins
        self.tokens: list[int] = []
        """All tokens that were added, including those of a stop string and the end of text."""
        self.bits: list[float] = []
        """The surprisal of each token, in bits."""
        self.pieces: list[Piece] = []
        """The text so far, without what is held back."""
        self.finish: str | None = None
        """Why it ended: stop, end_of_text or length."""
        self._ends = end_tokens(tokenizer) if ends is None else ends
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[Piece] = []

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def add(self, token: int, bits: float = 0.0) -> list[Piece]:
        """Add a token, and return the pieces that it releases; none after the end of the text.

        Args:
            token: the token's id.
            bits: its surprisal, in bits.
        """
        if self.finish is not None:
            return []
        self.tokens.append(token)
        self.bits.append(bits)
        if token in self._ends:
            return self.close("end_of_text")
        raw = self.tokenizer.tokens[token]
        if self.begins and len(self.tokens) == 1 and raw == b" " + self.tokenizer.decode([token]).encode():
            raw = raw[1:]
        self._hold(self._decoder.decode(raw), bits)
        whole = "".join(piece.text for piece in self._held)
        complete = [(start + len(stop), start) for stop in self.stops if (start := whole.find(stop)) >= 0]
        if complete:
            self.finish = "stop"
            return self._release(min(complete)[1], cut=True)
        open_ = (n for stop in self.stops for n in range(1, len(stop)) if whole.endswith(stop[:n]))
        return self._release(len(whole) - max(open_, default=0))

    def close(self, finish: str = "length") -> list[Piece]:
        """End the text, and return what was held back.

        Args:
            finish: the reason for the end, if the text has not ended before.
        """
        if self.finish is not None:
            return []
        self.finish = finish
        self._hold(self._decoder.decode(b"", final=True), 0.0)
        return self._release(sum(len(piece.text) for piece in self._held))

    def _hold(self, text: str, bits: float) -> None:
        if self._held and not self._held[-1].text:  # an incomplete character
            bits += self._held.pop().bits
        self._held.append(Piece(text, bits))

    def _release(self, length: int, cut: bool = False) -> list[Piece]:
        """Release the pieces within the first `length` characters; with `cut` also the part of the next one there."""
        released = []
        while self._held and self._held[0].text and len(self._held[0].text) <= length:
            released.append(self._held.pop(0))
            length -= len(released[-1].text)
        if cut and length:
            released.append(Piece(self._held[0].text[:length], self._held[0].bits))
        self.pieces += released
        return released
