"""Which part of a text is for training and which is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gptlab.data.text_files import Piece
from gptlab.system.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Which part of a text is held out."""

    by: str
    """position: the last parts of the text; document: each document as its hash decides."""
    val_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        if self.by not in ("position", "document"):
            raise UserError(f"data.split={self.by}: must be one of position, document")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction={self.val_fraction}: must be above 0 and below 1")
        if not 0 <= self.test_fraction < 1 - self.val_fraction:
            raise UserError(
                f"data.test_fraction={self.test_fraction}: must be at least 0, and leave something to train on beside "
                f"data.val_fraction={self.val_fraction}"
            )

    @property
    def held_out(self) -> float:
        return self.val_fraction + self.test_fraction

    def ends(self, characters: int) -> tuple[int, int, int]:
        """Where train, val and test end in a text that is split by position."""
        return int(characters * (1 - self.held_out)), int(characters * (1 - self.test_fraction)), characters


Part = tuple[str, str, bool]
"""Split, text, and whether its document ends with it."""


def assigned(pieces: Iterable[Piece], split: Split, characters: int) -> Iterator[Part]:
    """Each piece with the split that it belongs to; by position, the one at a border is cut in two."""
    if split.by == "document":
        yield from _by_document(pieces, split)
        return
    ends = split.ends(characters)
    position = 0
    for text, last in pieces:
        begin = 0
        for name, end in zip(SPLITS, ends, strict=True):
            stop = min(end - position, len(text))
            if stop > begin:
                yield name, text[begin:stop], last and stop == len(text)
                begin = stop
        position += len(text)


def _by_document(pieces: Iterable[Piece], split: Split) -> Iterator[Part]:
    """The hash of its first piece decides on a document: copies go together, and the order does not matter."""
    name, begins = "train", True
    for text, last in pieces:
        if begins:
            place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") / 2**64
            name = "val" if place < split.val_fraction else "test" if place < split.held_out else "train"
        yield name, text, last
        begins = last
