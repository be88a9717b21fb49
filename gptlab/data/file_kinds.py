"""Decide what a text file is, by its content and its name: how it is packed and encoded, prose or rows."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import importlib
import io
import json
import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from gptlab.data.text_options import AUTO, TextOptions
from gptlab.system.errors import UserError

HEAD = 1 << 13  # bytes that are looked at
PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".lzma", ".lz4")
SUFFIXES = {  # in lower case: the kind of file that is expected under it
    **dict.fromkeys((".txt", ".text", ".md", ".markdown"), "text"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson", ".jsonlines"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".parquet",), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
}
ROWS = ("json", "csv", "parquet", "arrow")
FIRST_BYTES = {  # of decompressed content
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # a stream, as `datasets` saves it
}
NO_TEXT = {  # first bytes: what it is, and the way out
    b"PK\x03\x04": "a zip archive (.docx, .epub and .xlsx are, too): unpack it, or save its text",
    b"%PDF": "a PDF: save its text first, e.g. pdftotext",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Rar!": "a rar archive: unpack it",
    b"{\\rtf": "rich text: save it as plain text",
    b"\xd0\xcf\x11\xe0": "an old Office document: save its text",
    b"SQLite format 3": "a database: export its text as JSON or CSV",
    b"\x93NUMPY": "an array of numpy, not a text",
    b"\x89HDF": "an HDF5 file: export its text as JSON or CSV",
    b"\x1f\x8b": "packed by gzip twice: unpack it once",
    b"Obj\x01": "an Avro file: export its text as JSON or CSV",
    b"\x1f\x9d": "packed by compress: unpack it with uncompress",
    b"WARC/1.": "a WARC archive, whose headers would be learned: take the text out of it first",
}
MARKS = {  # of byte order; UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
MARKUP = re.compile(
    r"\s*<(!doctype|\?xml|html|mediawiki|svg|rss|feed|tei|(p|div|head|body|table)>|"
    r"[a-z][\w:.-]*\s+[\w:.-]+\s*=\s*[\"'])",
    re.I,
)
MARKUP_SUFFIXES = (".html", ".htm", ".xhtml", ".xml", ".svg")
MARKDOWN = (".md", ".markdown")  # in which tags are usual
OBJECTS = re.compile(r'\s*(\[\s*)?(?=\{\s*")')  # of JSON, in a list or not
STRINGS = re.compile(r'\s*\[\s*"([^"\\\n]|\\.)*"\s*(\]\s*$|,\s*")')  # a list of them
STATED = re.compile(r'"?sep=(.)"?')  # a line before the first, by which Excel knows the delimiter
DELIMITERS = (",", "\t", ";", "|")
TABLE_LINES = 5  # so many lines with as many tabs each are a table


def import_extra(module: str, why: str) -> Any:
    """Import a library that not every installation has.

    Raises:
        UserError: it is not installed; the message begins with `why`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{why}, and reading that needs {module}: pip install 'gptlab[data]'") from error


def suffix(path: Path) -> str:
    """Return the ending that says what a file is: in lower case, without that of its compression."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


@contextmanager
def open_bytes(path: Path, options: TextOptions) -> Iterator[BinaryIO]:
    """Open a file for reading its decompressed bytes; its first bytes say how it is packed.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    named = options.written("path", path)
    try:
        with path.open("rb") as file:
            yield _decompressed(path, file)
    except FileNotFoundError as error:
        raise UserError(f"{named}: no such file; give text files, or a folder of them") from error
    except UserError:
        raise
    except Exception as error:  # each format raises its own
        said = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"{named} cannot be read: {said}") from error


def _decompressed(path: Path, file: BinaryIO) -> BinaryIO:
    first = file.read(10)
    file.seek(0)
    if first[:2] == b"\x1f\x8b":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if re.match(rb"BZh[1-9]1AY&SY", first):
        return cast(BinaryIO, bz2.BZ2File(file))
    if first.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):  # the second is the older .lzma
        return cast(BinaryIO, lzma.LZMAFile(file))
    for magic, name in ((rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstd"), (rb"\x04\x22\x4d\x18", "lz4")):
        if re.match(magic, first):  # the second of zstd is a frame to skip, with which pzstd begins
            pyarrow = import_extra("pyarrow", f"{path} is packed by {name}")
            return cast(BinaryIO, pyarrow.input_stream(file, compression=name))
    return file


def encoding(first: bytes) -> tuple[str, int]:
    """Return the encoding of a text by its first bytes, and the length of the mark that says so."""
    return next(((name, len(mark)) for mark, name in MARKS.items() if first.startswith(mark)), ("utf-8", 0))


def decoded(raw: bytes, name: str) -> str:
    """Return the text of bytes in UTF-8, or with the mark of another encoding; line ends become line feeds.

    Args:
        name: what they are, for the message.

    Raises:
        UserError: they are no text.
    """
    code, mark = encoding(raw)
    try:
        return io.IncrementalNewlineDecoder(None, translate=True).decode(raw[mark:].decode(code), final=True)
    except UnicodeDecodeError as error:
        place = f"byte {error.object[error.start]:#04x} at {mark + error.start}"
        raise UserError(f"{name} is not {code.upper()} text ({place})") from error


def kind_of(path: Path, options: TextOptions) -> str:
    """Return what a file is: text, json, csv, parquet or arrow.

    Raises:
        UserError: it cannot be read, it is no text, or it looks like a table or markup under a name that does not say
            so.
    """
    with open_bytes(path, options) as file:
        head = file.read(HEAD)
    named = options.written("path", path)
    stored = next((kind for first, kind in FIRST_BYTES.items() if head.startswith(first)), None)
    if options.format not in (AUTO, "parquet"):
        return options.format
    expected = "parquet" if options.format == "parquet" else SUFFIXES.get(suffix(path))
    if stored:
        return stored
    if expected in ("parquet", "arrow"):
        raise UserError(f"{named} is no {expected} file: its first bytes are not those of one; is it complete?")
    for first, what in NO_TEXT.items():
        if head.startswith(first):
            raise UserError(f"{named} is {what}")
    if head[257:262] == b"ustar":
        raise UserError(f"{named} is a tar archive: unpack it, and give its folder")
    return _kind_of_text(path, head, expected, options)


def _kind_of_text(path: Path, head: bytes, expected: str | None, options: TextOptions) -> str:
    """Return what a file of text is: text, json or csv.

    Args:
        head: its first bytes.
        expected: what its name says.
    """
    code, mark = encoding(head)
    text = codecs.getincrementaldecoder(code)("replace").decode(head[mark:])
    named, insist = options.written("path", path), options.written("format", "text")
    if "\0" in text:
        return expected or "text"  # neither, which will be said when it is read
    if suffix(path) in MARKUP_SUFFIXES or (suffix(path) not in MARKDOWN and MARKUP.match(text)):
        raise UserError(
            f"{named} looks like markup, whose tags would be learned: take the text out of it first, or give {insist} "
            f"to read it as it is"
        )
    if expected in ROWS:
        return str(expected)
    if STRINGS.match(text):
        return "json"
    if rows := OBJECTS.match(text):
        if (missing := _missing(text, rows.end(), options.text_key, len(head) < HEAD)) is not None:
            raise UserError(
                f"{named} looks like JSON, without {options.written('text_key', options.text_key)}: give the name of "
                f"the text in its rows{missing}, or {insist} to read it as it is"
            )
        return "json"
    if table := _table(text, options.text_key):
        raise UserError(
            f"{named} looks like a table ({table}): give {options.written('format', 'csv')} to read its column "
            f"{options.written('text_key', options.text_key)}, or {insist} to read it as it is"
        )
    return "text"


def _missing(text: str, begin: int, key: str, whole: bool) -> str | None:
    """Return in words what is in the first row of JSON instead of `key`; None if that is there, or may be further on.

    Args:
        begin: where the row begins.
        whole: whether the text does not go on.
    """
    if f'"{key}"' in text:
        return None
    try:
        row, _ = json.JSONDecoder().raw_decode(text, begin)
    except RecursionError:
        return ""
    except ValueError as error:
        return "" if whole or not is_cut(text, error) else None
    return f" (there are {', '.join(row)[:200]})"


def is_cut(text: str, error: ValueError) -> bool:
    """Return whether JSON may be wrong only because a text ends within it."""
    return len(text) - getattr(error, "pos", 0) < 16 or "Unterminated string" in str(error)


def _table(text: str, key: str) -> str | None:
    """Return in words why a text looks like a table; None if it does not."""
    lines = re.split("\r\n?|\n", text)
    lines = lines[: -1 if len(lines) > 1 else None]  # the last may be cut
    if lines and STATED.fullmatch(lines[0]):
        return f"its first line is {lines[0].strip()}"
    for delimiter in DELIMITERS:
        fields = _fields(lines[0], delimiter) if lines else []
        if len(fields) > 1 and key in fields and all(re.fullmatch(r"\w*", field) for field in fields):
            return f"its first line names the columns {', '.join(fields)}"
    tabs = {line.count("\t") for line in lines if line}
    indented = all(line.startswith("\t") for line in lines if line)
    if len(tabs) == 1 and len(lines) >= TABLE_LINES and not indented and (count := tabs.pop()):
        return f"each line has {count + 1} fields between tabs"
    return None


def _fields(line: str, delimiter: str) -> list[str]:
    """Return the fields of a line of CSV."""
    try:
        return next(csv.reader([line.rstrip("\r")], delimiter=delimiter), [])
    except csv.Error:
        return []


def delimiter_of(path: Path, header: str, key: str) -> str:
    """Return what stands between the fields of a CSV: what makes `key` a field of the header, else by the name."""
    usual = "\t" if suffix(path) == ".tsv" else ","
    return next((each for each in (usual, *DELIMITERS) if key in _fields(header, each)), usual)
