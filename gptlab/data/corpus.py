"""A corpus: a text that is read in pieces of bounded size, as often as needed, each time the same."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gptlab.data.file_kinds import ROWS
from gptlab.data.find_files import FoundFiles
from gptlab.data.pieces import PIECE, Piece, first_of_each_part, pieces, separate, unescaped
from gptlab.data.text_files import documents
from gptlab.data.text_options import AUTO, DEFAULT, TextOptions
from gptlab.data.tokenizers.base import END_OF_TEXT
from gptlab.system.errors import UserError

SEPARATORS = "separators"  # counted while reading
LEFT = "documents are left"  # counted where only the first are taken


@dataclass(frozen=True)
class Corpus:
    """A named text."""

    name: str
    reader: Callable[[Counter[str]], Iterator[Piece]]
    """Yields the text from its beginning, each time the same, and counts what it skips; no token reaches across the
    end of a piece."""
    documents: bool
    """Whether the text is made of documents, whose ends are marked; a single file of text is not."""
    origin: str
    """Where the text comes from; changes when the files there change."""
    bytes: int | None
    """Size of its files; None for a stream, which is not read just to be hashed."""
    found: FoundFiles | None = None
    """Its files; None for a stream."""
    separator: str | None = None
    """What stands between documents in its files."""
    asked: TextOptions = DEFAULT
    """How it is read."""

    def read(self, counts: Counter[str] | None = None) -> Iterator[Piece]:
        """Yield the text in pieces.

        Args:
            counts: counts what is skipped.
        """
        return self.reader(Counter() if counts is None else counts)

    @property
    def parts(self) -> list[str]:
        """The parts that the text itself names, of train, val and test; empty if only the split decides."""
        return self.found.parts if self.found else []

    def separator_is_missing(self, counts: dict[str, int]) -> bool:
        """Return whether a separator was asked for, and none was found while reading."""
        asked = self.asked.separator not in (None, AUTO) and self.separator is not None
        return asked and not counts.get(SEPARATORS) and not counts.get(LEFT)


def from_files(name: str, found: FoundFiles, options: TextOptions) -> Corpus:
    """Return a corpus of text files; several files, rows, and what stands between separators are documents."""
    separator = _separator(found, options)

    def read(counts: Counter[str]) -> Iterator[Piece]:
        for file in found.files:
            part = None if file.part == "train" and "val" not in found.parts else file.part
            for chunks in documents(file.path, file.kind, options, counts):
                yield from document_pieces(chunks, separator, part, counts)

    many = len(found.files) > 1 or any(file.kind in ROWS for file in found.files) or separator is not None
    parts = [file.part for file in found.files] if found.parts else []
    changes = [file.path.stat().st_ctime_ns for file in found.files]  # also where a file's size and time stay the same
    origin = json.dumps([options.identity, separator, parts, stamps(file.path for file in found.files), changes])
    size = sum(file.path.stat().st_size for file in found.files)
    return Corpus(name, read, many, origin, size, found, separator, options)


def document_pieces(
    chunks: Iterable[str], separator: str | None, part: str | None, counts: Counter[str]
) -> Iterator[Piece]:
    """Yield the pieces of a text, or of the documents between the separators in it, which are counted."""
    if separator is None:
        yield from pieces(chunks, part)
        return
    for number, document in enumerate(separate(chunks, separator)):
        counts[SEPARATORS] += number > 0
        yield from pieces(document, part)


def _separator(found: FoundFiles, options: TextOptions) -> str | None:
    """Return what stands between documents; of itself GPT-2's end of text, if it is in the first million characters."""
    if options.separator is None:
        return None
    if options.separator != AUTO:
        given = unescaped(options.separator)
        return given.replace("\r\n", "\n").replace("\r", "\n") if options.line_ends == "lf" else given
    seen, tail = 0, ""
    texts = (documents(file.path, file.kind, options, Counter()) for file in found.files)
    with suppress(UserError):  # which will be raised again when the text is read
        for chunk in itertools.chain.from_iterable(itertools.chain.from_iterable(texts)):
            if END_OF_TEXT in tail + chunk:
                return END_OF_TEXT
            seen, tail = seen + len(chunk), chunk[-len(END_OF_TEXT) :]
            if seen >= PIECE:
                break
    return None


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return what changes when a file does: its path, size and time."""
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def first_documents(corpus: Corpus, count: int) -> Corpus:
    """Return a corpus of the first `count` documents of `corpus`, or of each of its parts."""

    def read(counts: Counter[str]) -> Iterator[Piece]:
        counts[LEFT] += yield from first_of_each_part(corpus.read(counts), count, max(len(corpus.parts), 1))

    return replace(corpus, reader=read, origin=f"{corpus.origin} {count}")
