"""Split a text into a training part and held-out parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gptlab.data.pieces import Piece
from gptlab.system.errors import UserError

SPLITS = ("train", "val", "test")
LAST_FILE = "last_file"
RULES = ("position", "document", LAST_FILE)


@dataclass(frozen=True)
class Split:
    """How much of a text is held out for validation and test, and by which rule."""

    by: str
    """position (the last parts of the text), document (the hash of each document decides), or last_file (the last of
    several files is the validation part, as of nanochat's shards)."""
    val_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        if self.by not in RULES:
            raise UserError(f"data.split={self.by}: must be one of {', '.join(RULES)}")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction={self.val_fraction}: must be above 0 and below 1")
        if not 0 <= self.test_fraction < 1 - self.val_fraction:
            raise UserError(
                f"data.test_fraction={self.test_fraction}: must be at least 0, and leave something to train on beside "
                f"data.val_fraction={self.val_fraction}"
            )

        if self.by == LAST_FILE and self.test_fraction:
            raise UserError(
                f"data.test_fraction={self.test_fraction}: data.split={LAST_FILE} holds out one whole file, for "
                f"validation; leave it 0"
            )

    @property
    def held_out(self) -> float:
        """The fraction of the text that is not for training."""
        return self.val_fraction + self.test_fraction

    def names(self, parts: Sequence[str]) -> list[str]:
        """Return the parts that there are of a text.

        Args:
            parts: those that the text names itself.

        Raises:
            UserError: a test part is to be cut off beside the text's own parts.
        """
        if parts and self.test_fraction:
            raise UserError(
                f"data.test_fraction={self.test_fraction}: the text has parts of its own ({', '.join(parts)}); leave "
                f"it 0, or give data.named_parts=false"
            )
        return [name for name in SPLITS if name != "test" or self.test_fraction or "test" in parts]

    def of_document(self, text: bytes) -> str:
        """Return the split of a document by the hash of its text, or of its beginning."""
        fraction = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") / 2**64
        return "val" if fraction < self.val_fraction else "test" if fraction < self.held_out else "train"

    def ends(self, characters: int) -> tuple[int, int, int]:
        """Return where train, val and test end in a text of so many characters that is split by position."""
        return int(characters * (1 - self.held_out)), int(characters * (1 - self.test_fraction)), characters


Part = tuple[str, str, bool]
"""The name of its split, its text, and whether its document ends with it."""


def split_pieces(pieces: Iterable[Piece], split: Split, characters: int) -> Iterator[Part]:
    """Yield each piece with the split that it belongs to; by position, a piece across a border is cut.

    Args:
        characters: the length of the text without the parts that it names itself; unused if it is split by document.
    """
    if split.by == "document":
        yield from _by_document(pieces, split)
        return
    ends = split.ends(characters)
    position = 0
    for text, last, part in pieces:
        if part is not None:
            yield part, text, last
            continue
        begin = 0
        for name, end in zip(SPLITS, ends, strict=True):
            stop = min(end - position, len(text))
            if stop > begin:
                yield name, text[begin:stop], last and stop == len(text)
                begin = stop
        position += len(text)


def _by_document(pieces: Iterable[Piece], split: Split) -> Iterator[Part]:
    """Assign each document by the hash of its first piece: copies go together, and the order does not matter."""
    name, begins = "train", True
    for text, last, part in pieces:
        if part is not None:
            name = part
        elif begins:
            name = split.of_document(text.encode())
        yield name, text, last
        begins = last
