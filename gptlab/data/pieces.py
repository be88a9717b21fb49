"""Cut documents into pieces of bounded size, and a text into its documents."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

PIECE = 1 << 20  # characters


class Piece(NamedTuple):
    """A stretch of a document."""

    text: str
    last: bool
    """Whether the document ends with this piece."""
    part: str | None = None
    """train, val or test, if the text itself says so; None: the split decides."""


# Places that no token spans: the end of a line, unless more white space comes before or after it, and between a
# character and the space before the next word.
SAFE = re.compile(r"(?<=\S\n)(?=\S)|(?<=\S)(?= [^\W\d_])")


def pieces(chunks: Iterable[str], part: str | None = None) -> Iterator[Piece]:
    """Cut a document, given in `chunks`, at safe places into pieces of about `PIECE` characters.

    A BPE or word tokenizer gives the pieces the same ids as the whole, if there is a safe place in every 16 * PIECE
    characters.
    """
    rest, searched = "", PIECE  # there is no safe place from PIECE up to `searched`
    for chunk in chunks:
        rest += chunk
        while len(rest) >= 2 * PIECE:
            limit = min(len(rest) - 1, 16 * PIECE)
            safe = SAFE.search(rest, searched, limit)
            if safe is None and len(rest) < 16 * PIECE:
                searched = max(searched, limit - 2)  # a place is seen by the two characters after it
                break  # it may come in the next chunk
            end = safe.start() if safe else PIECE
            yield Piece(rest[:end], False, part)
            rest, searched = rest[end:], PIECE if safe else max(PIECE, limit - 2 - end)
    if rest:
        yield Piece(rest, True, part)


def separate(chunks: Iterable[str], separator: str) -> Iterator[Iterator[str]]:
    """Yield the documents between the separators in a text, each in chunks and without line ends around it.

    A document has to be read before the next one is asked for.
    """
    source, rest, at, more = iter(chunks), "", 0, True

    def document() -> Iterator[str]:
        nonlocal rest, at, more
        while True:
            end = rest.find(separator, at)
            if end >= 0:
                begin, at = at, end + len(separator)
                yield rest[begin:end]
                return
            keep = max(at, len(rest) - len(separator) + 1) if more else len(rest)  # its beginning may be in this chunk
            before, rest, at = rest[at:keep], rest[keep:], 0
            yield before
            if not more:
                return
            chunk = next(source, None)
            more = chunk is not None
            rest += chunk or ""

    while more or at < len(rest):
        yield _stripped(document())


def _stripped(chunks: Iterable[str]) -> Iterator[str]:
    """Yield chunks without the line ends at the beginning of the first and the end of the last."""
    begun, ends = False, ""
    for chunk in chunks:
        text = ends + chunk if begun else chunk.lstrip("\r\n")
        body = text.rstrip("\r\n")
        if body:
            yield body
        begun, ends = begun or bool(body), text[len(body) :] if begun or body else ""


def unescaped(separator: str) -> str:
    r"""Return a separator with \n, \r, \f and \t in it as what they stand for."""
    for letter, stands_for in {"n": "\n", "r": "\r", "f": "\f", "t": "\t"}.items():
        separator = separator.replace(f"\\{letter}", stands_for)
    return separator


def first_of_each_part(read: Iterable[Piece], count: int, parts: int) -> Generator[Piece, None, bool]:
    """Yield the pieces of the first `count` documents of each part; the text is read no further than needed.

    Args:
        parts: how many parts the text has.

    Returns:
        Whether there may be more in the text.
    """
    left: dict[str | None, int] = {}
    more = False
    for piece in read:
        if left.setdefault(piece.part, count):
            yield piece
            left[piece.part] -= piece.last
            if sum(not each for each in left.values()) == parts:
                return True
        else:
            more = True
    return more
