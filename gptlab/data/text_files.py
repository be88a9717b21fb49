"""Read text files in pieces of bounded size: .txt .md .jsonl .parquet, also compressed as .gz or .zst."""

from __future__ import annotations

import codecs
import gzip
import importlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gptlab.system.errors import UserError

PIECE = 1 << 20  # characters
LINE = 1 << 27  # the most characters in a line of .jsonl: a small compressed file can hold an endless one
PLAIN, LINES, TABLES, PACKED = (".txt", ".md"), (".jsonl",), (".parquet",), (".gz", ".zst")


class Piece(NamedTuple):
    """A part of a document."""

    text: str
    last: bool
    """Whether the document ends with this piece."""


# Places that no token spans: the end of a line, unless more white space comes before or after it, and between a
# character and the space before the next word.
SAFE = re.compile(r"(?<=\S\n)(?=\S)|(?<=\S)(?= [^\W\d_])")


def pieces(chunks: Iterable[str]) -> Iterator[Piece]:
    """Cut a document, given in `chunks`, at safe places into pieces of about `PIECE` characters.

    A BPE or word tokenizer gives the pieces the same ids as the whole, if there is a safe place in every 16 * PIECE
    characters.
    """
    rest = ""
    for chunk in chunks:
        rest += chunk
        while len(rest) >= 2 * PIECE:
            safe = SAFE.search(rest, PIECE, min(len(rest) - 1, 16 * PIECE))
            if safe is None and len(rest) < 16 * PIECE:
                break  # it may come in the next chunk
            end = safe.start() if safe else PIECE
            yield Piece(rest[:end], False)
            rest = rest[end:]
    if rest:
        yield Piece(rest, True)


def characters(path: Path) -> Iterator[str]:
    """Yield the UTF-8 text of a file, decompressed, in chunks; without a byte order mark, line endings unchanged.

    Raises:
        UserError: the file does not exist, cannot be read, or is not UTF-8 text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with _open(path) as file:
        while raw := file.read(PIECE):
            if position == 0 and b"\0" in raw[: 1 << 16]:
                raise UserError(f"data.path={path} looks like a binary file (it has NUL bytes); give a text file")
            pending = len(decoder.getstate()[0])  # bytes of a character that began in the last chunk
            try:
                text = decoder.decode(raw)
            except UnicodeDecodeError as error:
                place = position - pending + error.start
                raise UserError(
                    f"data.path={path} is not UTF-8 text (byte {error.object[error.start]:#04x} at {place}); "
                    f"convert it first, e.g. iconv -f latin1 -t utf-8"
                ) from error
            yield text.removeprefix("\ufeff") if position == 0 else text
            position += len(raw)
    if decoder.getstate()[0]:
        raise UserError(f"data.path={path} is not UTF-8 text (it ends within a character); is it complete?")


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading its decompressed bytes."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                yield gzip.GzipFile(fileobj=file)  # type: ignore[misc]
            elif path.suffix == ".zst":
                yield import_extra("pyarrow", f"{path} is packed by zstd").input_stream(file, compression="zstd")
            else:
                yield file
    except FileNotFoundError as error:
        raise UserError(f"data.path={path}: no such file; give text files, or a folder of them") from error
    except UserError:
        raise
    except Exception as error:  # each format raises its own
        raise UserError(f"data.path={path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def import_extra(module: str, why: str) -> Any:
    """Import a library that not every installation has.

    Raises:
        UserError: it is not installed; the message begins with `why`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{why}, and reading that needs {module}: pip install 'gptlab[data]'") from error


def text_format(path: Path) -> str:
    """Return the suffix that says how a file is read, without the suffix of its compression."""
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


def documents(path: Path, key: str) -> Iterator[Iterable[str]]:
    """Yield the documents of one file, each in chunks: a line of .jsonl, a row of .parquet, or the whole text.

    Args:
        key: name of the text's field in a line or a row.

    Raises:
        UserError: see `characters`; or a line or row has no text of that name.
    """
    if text_format(path) in LINES:
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                yield [_text(path, number, line, key)]
    elif text_format(path) in TABLES:
        parquet = import_extra("pyarrow.parquet", f"{path} is a parquet file")
        with _open(path) as file:
            table = parquet.ParquetFile(file, page_checksum_verification=True)
            columns = {field.name: str(field.type) for field in table.schema_arrow}
            if not columns.get(key, "").startswith(("string", "large_string", "dictionary<values=string")):
                there = ", ".join(f"{name} ({type_})" for name, type_ in columns.items())
                raise UserError(f"data.text_key={key}: {path} has no such column of text; there are {there}")
            for rows in table.iter_batches(batch_size=1024, columns=[key]):
                yield from ([text] for text in rows.column(0).to_pylist() if text)
    else:
        yield characters(path)


def _lines(path: Path) -> Iterator[str]:
    pending: list[str] = []
    size = 0
    for chunk in characters(path):
        first, *lines = chunk.split("\n")
        pending.append(first)
        size += len(first)
        if lines:
            yield "".join(pending)
            yield from lines[:-1]
            pending, size = lines[-1:], len(lines[-1])
        if size > LINE:
            raise UserError(f"data.path={path} has a line of more than {LINE:,} characters; give one document a line")
    yield "".join(pending)


def _text(path: Path, number: int, line: str, key: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}, is no JSON: {error}") from error
    text = row.get(key) if isinstance(row, dict) else None
    if not isinstance(text, str):
        there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"data.text_key={key}: {path}, line {number}, has no such text; there are {there}")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON can write lone surrogates


def find_texts(paths: list[Path]) -> tuple[Path, ...]:
    """Return the files among `paths`, and all text files below the folders among them, sorted by name.

    Raises:
        UserError: a path does not exist or is not a regular file, or a folder has no text.
    """
    found: list[Path] = []
    for path in paths:
        try:
            path.stat()
        except OSError as error:  # not there, or no name that a file can have
            raise UserError(f"data.path={path}: no such file; give text files, or a folder of them") from error
        if path.is_char_device() or path.is_fifo() or path.is_socket():
            raise UserError(f"data.path={path} is no file, and a text is read several times; give text files")
        if path.is_dir():
            texts = [each for each in sorted(path.rglob("*")) if _is_text(each.relative_to(path)) and each.is_file()]
            if not texts:
                raise UserError(
                    f"data.path={path}: no text in this folder; there should be {' '.join((*PLAIN, *LINES, *TABLES))} "
                    f"files, or those packed as {' or '.join(PACKED)}"
                )
            found += texts
        else:
            found.append(path)
    return tuple(found)


def _is_text(path: Path) -> bool:
    return text_format(path) in (*PLAIN, *LINES, *TABLES) and not any(part.startswith(".") for part in path.parts)
