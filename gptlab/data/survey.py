"""Read a text once to learn its hash, its size and what is skipped in it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gptlab.data.corpus import SEPARATORS, Corpus
from gptlab.data.find_files import in_words
from gptlab.data.pieces import PIECE, Piece
from gptlab.data.text_files import WITHOUT_TEXT
from gptlab.data.tokenizers.base import END_OF_TEXT, Tokenizer
from gptlab.system.errors import UserError, amount
from gptlab.system.files import read_json, write_json

LARGE = 1 << 26  # bytes of text from which what is learned is cached and progress is shown


def hash_pieces(pieces: Iterable[Piece], digest: Any, documents: bool) -> Iterator[Piece]:
    """Pass the pieces on and add them to `digest`, in the form of `Prepared.sha256`."""
    before = None
    for piece in pieces:
        text, last, part = piece
        if part != before:
            before = part
            digest.update(b"\xfe" + str(part).encode())
        digest.update(text.encode())
        if last and documents:
            digest.update(b"\xff")  # which no UTF-8 has
        yield piece


@dataclass(frozen=True)
class Survey:
    """What a text holds."""

    sha256: str
    """See `Prepared.sha256`."""
    documents: int
    characters: int
    to_split: int
    """Characters outside the parts that the text names itself."""
    spelled: int
    """How often the text has the end of a text as ordinary characters."""
    counts: dict[str, int]
    """What was skipped while reading."""


def survey(corpus: Corpus, cache_dir: Path) -> Survey:
    """Read a text and return what it holds; a large one is read again only when its files have changed.

    Raises:
        UserError: the text is blank, its rows have none, or the separator that was asked for does not stand in it.
    """
    assert corpus.bytes is not None
    large = corpus.bytes >= LARGE
    cached = cache_dir / f".{corpus.name}-{hashlib.sha256(corpus.origin.encode()).hexdigest()[:16]}.json"
    if large:
        with suppress(UserError, TypeError):
            return Survey(**read_json(cached))
    digest, skipped, visible = hashlib.sha256(), Counter[str](), False
    documents = characters = to_split = spelled = 0
    with tqdm(unit="char", unit_scale=True, desc="reading", disable=None if large else True) as bar:
        for text, last, part in hash_pieces(corpus.read(skipped), digest, corpus.documents):
            documents += last
            characters += len(text)
            to_split += len(text) if part is None else 0
            spelled += text.count(END_OF_TEXT)
            visible = visible or not text.isspace()
            bar.update(len(text))
    if not visible:
        first, *others = (file.path for file in corpus.found.files) if corpus.found else [Path(corpus.name)]
        what = corpus.asked.written("path", first) + (f" and {amount(len(others), 'other')}: each" if others else "")
        if rows := skipped[WITHOUT_TEXT]:
            key = corpus.asked.written("text_key", corpus.asked.text_key)
            raise UserError(f"{what} is without text: {key} is null or empty in its rows ({rows:,}); name another key")
        raise UserError(f"{what} is empty: give a text with something in it")
    if corpus.separator_is_missing(skipped):
        raise UserError(
            f"{corpus.asked.written('separator', corpus.asked.separator)}: does not stand in the text; leave it out, "
            f"or give what stands between its documents"
        )
    about = Survey(digest.hexdigest(), documents, characters, to_split, spelled, dict(skipped))
    if large:
        with suppress(UserError):  # the ids may be there although the folder cannot be written
            write_json(cached, asdict(about))
    return about


def describe(corpus: Corpus, about: Survey) -> str:
    """Return in words what is read of a text."""
    files = corpus.found.files if corpus.found else ()
    kinds = Counter("prose" if file.kind == "text" else file.kind for file in files)
    what = files[0].path.name if len(files) == 1 else f"{len(files):,} files"
    words = [f"{what} ({' and '.join(sorted(kinds))})"] if files else []
    names = Counter(file.path.name for file in files)
    for part in corpus.parts:
        first, *others = (file.path for file in files if file.part == part)
        name = first.name if names[first.name] == 1 else f"{first.parent.name}/{first.name}"
        words.append(f"{part} is {f'{len(others) + 1:,} of them' if others else name}")
    if corpus.documents:
        words.append(amount(about.documents, "document"))
    words.append(amount(about.characters, "character"))
    if corpus.separator is not None and about.counts.get(SEPARATORS):
        words.append(f"{json.dumps(corpus.separator, ensure_ascii=False)} between documents")
    if corpus.found and corpus.found.not_read:
        words.append(f"not read: {in_words(corpus.found.not_read)}")
    return "; ".join(words)


def caveats(corpus: Corpus, about: Survey) -> list[str]:
    """Return what a reader of the loss should know of the text."""
    found, written = [], corpus.asked.written
    if missing := about.counts.get(WITHOUT_TEXT):
        key, rows = written("text_key", corpus.asked.text_key), missing + about.documents
        found.append(f"{key}: rows without such a text are skipped: {missing:,} of {rows:,}")
    if about.spelled:
        found.append(
            f"{END_OF_TEXT} stands {about.spelled:,} times in the text, and is read as {len(END_OF_TEXT)} ordinary "
            f"characters each time: {written('separator', END_OF_TEXT)} makes it the end of a document"
        )
    return found


def spelled_end(corpus: Corpus, tokenizer: Tokenizer) -> str | None:
    """Return what to say where the tokenizer's own end of text stands as letters in the first million characters.

    None if it does not, or if the text is a stream, which is not read for that.
    """
    end = b"" if tokenizer.end_of_text is None else tokenizer.tokens[tokenizer.end_of_text]
    name, seen = end.decode("utf-8", "replace"), 0
    if corpus.bytes is None or name == END_OF_TEXT or name not in tokenizer.special_names:
        return None
    for piece in corpus.read():
        if name in piece.text:
            return (
                f"{name} stands in the text, and is read as ordinary characters, though the tokenizer has a token of "
                f"that name: {corpus.asked.written('separator', name)} makes it the end of a document"
            )
        seen += len(piece.text)
        if seen >= PIECE:
            break
    return None
