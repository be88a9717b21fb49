"""Read the documents of text files in pieces of bounded size: prose, and rows of JSON, CSV, Parquet and Arrow."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptlab.data.file_kinds import STATED, delimiter_of, encoding, import_extra, is_cut, open_bytes
from gptlab.data.pieces import PIECE
from gptlab.data.text_options import TextOptions
from gptlab.system.errors import UserError

LINE = 1 << 27  # the most characters in a row: a small compressed file can hold an endless one
TRIED = 1000  # rows, after which a name that none of them has is refused
WITHOUT_TEXT = "rows without text"  # counted while reading
SPACE = " \t\n\r"
Rows = Iterator[tuple[int, Any]]
"""The line or number of each row, and what stands in it."""


def characters(path: Path, options: TextOptions) -> Iterator[str]:
    """Yield the text of a file, decompressed, in chunks: UTF-8, or UTF-16 or UTF-32 that begins with its mark.

    Raises:
        UserError: the file does not exist, cannot be read, or is no text.
    """
    named = options.written("path", path)
    with open_bytes(path, options) as file:
        raw = file.read(max(PIECE, 4))
        code, mark = encoding(raw)
        position, raw = mark, raw[mark:] or file.read(PIECE)
        decoder = codecs.getincrementaldecoder(code)()
        ends = io.IncrementalNewlineDecoder(None, translate=True) if options.line_ends == "lf" else None
        if code == "utf-8" and b"\0" in raw[: 1 << 16]:
            raise UserError(f"{named} looks like a binary file (it has NUL bytes){_wide(raw)}; give a text file")
        while raw:
            begin = position - len(decoder.getstate()[0])  # with the bytes of a character begun in the last chunk
            try:
                text = decoder.decode(raw)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{named} is not {code.upper()} text (byte {error.object[error.start]:#04x} at "
                    f"{begin + error.start}); convert it first, e.g. iconv -f latin1 -t utf-8"
                ) from error
            yield ends.decode(text) if ends else text
            position += len(raw)
            raw = file.read(PIECE)
    if decoder.getstate()[0]:
        convert = "; Latin-1 is converted by iconv -f latin1 -t utf-8" if code == "utf-8" else ""
        raise UserError(f"{named} is not {code.upper()} text (it ends within a character); is it complete?{convert}")
    if ends:
        yield ends.decode("", final=True)


def _wide(raw: bytes) -> str:
    """Return a hint about bytes of which every other one is NUL."""
    even, odd = raw[0:400:2].count(0), raw[1:400:2].count(0)
    if max(even, odd) > 4 * (min(even, odd) + 1):
        code = "utf-16le" if odd > even else "utf-16be"
        return f", or UTF-16 without its mark: iconv -f {code} -t utf-8 converts that"
    return ""


def documents(path: Path, kind: str, options: TextOptions, counts: Counter[str]) -> Iterator[Iterable[str]]:
    """Yield the documents of one file, each in chunks: the text of each row, or the whole text.

    Args:
        kind: see `file_kinds.kind_of`.
        counts: counts the rows without text, which are skipped.

    Raises:
        UserError: see `characters`; or a row has something else than a text under the key, or no row has it.
    """
    if kind == "text":
        yield characters(path, options)
        return
    if kind in ("parquet", "arrow"):
        yield from ([text] for text in column(path, kind, options, counts))
        return
    rows = json_rows if kind == "json" else csv_rows
    found, first = 0, None
    for number, (line, row) in enumerate(rows(path, options), 1):
        if isinstance(row, dict) and options.text_key not in row:
            first = first or ", ".join(row)[:200]
            if not found and number >= TRIED:
                break
        else:
            found += 1
        text = text_of(row, options, path, line)
        if text:
            yield [text]
        else:
            counts[WITHOUT_TEXT] += 1
    if first and not found:
        raise UserError(
            f"{options.written('text_key', options.text_key)}: {path} has no such text in its rows; there are {first}"
        )


def has_text(path: Path, kind: str, options: TextOptions) -> bool:
    """Return whether a file of JSON or CSV has the key in its first rows.

    Raises:
        UserError: it is no JSON or no CSV.
    """
    if kind == "csv":
        return options.text_key in _open_csv(path, options)[0]
    rows = json_rows(path, options) if kind == "json" else iter([(0, "")])
    return any(
        isinstance(row, str) or (isinstance(row, dict) and options.text_key in row)
        for _, row in itertools.islice(rows, TRIED)
    )


def text_of(row: Any, options: TextOptions, path: object, number: int, unit: str = "line") -> str | None:
    """Return the text of a row; None if there is none, also where that is written as NaN.

    Args:
        path, number, unit: where the row stands, for the message.

    Raises:
        UserError: what stands there is something else.
    """
    key = options.text_key
    found = row.get(key) if isinstance(row, dict) else row
    if isinstance(found, str) and found.isascii():
        return found
    if found is None or found != found:
        return None
    if not isinstance(found, str):
        what = {dict: "an object", list: "a list", bool: "true or false"}.get(type(found), "a number")
        of = options.written("text_key", key) if isinstance(row, dict) else "the row"
        others = ", ".join(each for each in row if each != key)[:200] if isinstance(row, dict) else ""
        beside = f"; beside it there are {others}" if others else ""
        raise UserError(f"{path}, {unit} {number}: {of} is {what}, and must be a text{beside}")
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON can write lone surrogates


def json_rows(path: Path, options: TextOptions) -> Rows:
    """Yield the rows of JSON: a value a line, values one after another, or the elements of a list.

    Raises:
        UserError: it is no JSON.
    """
    reader = _JsonReader(path, characters(path, options))
    listed = reader.next() == "["
    reader.at += listed
    while reader.next() not in ("", "]"):
        yield reader.line, reader.value()
        if listed and reader.next() == ",":
            reader.at += 1
            if reader.next() == "]":
                raise reader.refuse("a value is missing after the comma")
        elif listed and reader.next() not in ("", "]"):
            raise reader.refuse("there must be a comma or ] between the elements of a list")
    if listed != (reader.next() == "]"):
        raise reader.refuse("its list does not end; is it complete?" if listed else "] ends no list")
    reader.at += listed
    if reader.next():
        raise reader.refuse("there is more after the end of its list")


class _JsonReader:
    """Reads values one after another from a text that comes in chunks."""

    def __init__(self, path: Path, chunks: Iterator[str]) -> None:
        self.path, self.chunks = path, chunks
        self.text, self.at = "", 0
        self._line, self._counted = 1, 0  # the line at a place in `text`
        self.decoder = json.JSONDecoder()

    @property
    def line(self) -> int:
        """The line, from 1, that is read now."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def more(self) -> bool:
        """Read further, and drop what has been read; returns False at the end."""
        line, rest = self.line, [self.text[self.at :]]
        size = wanted = len(rest[0])
        for chunk in self.chunks:
            rest.append(chunk)
            size += len(chunk)
            if size >= 2 * wanted and chunk:  # twice as much each time, so that long values take linear time
                break
        self.text, self.at, self._counted = "".join(rest), 0, 0
        if size > wanted > LINE:
            raise UserError(f"{self.path}, line {line}, has a row of more than {LINE:,} characters")
        return size > wanted

    def next(self) -> str:
        """Return the next character that is no white space, without reading it; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        """Read the value that begins here."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except RecursionError as error:
                raise self.refuse("it is nested too deep") from error
            except ValueError as error:
                if not isinstance(error, json.JSONDecodeError):  # an integer of more digits than Python converts
                    self.decoder = json.JSONDecoder(parse_int=float)
                    continue
                if not (is_cut(self.text, error) and self.more()):
                    raise self.refuse(error.msg) from error
                continue
            if end < len(self.text) or not self.more_after(end):  # a number may go on
                self.at = end
                return value

    def more_after(self, end: int) -> bool:
        """Return whether a value that reaches to the end of what is read may go on."""
        return self.text[end - 1] not in '"}]' and self.more()

    def refuse(self, why: str) -> UserError:
        return UserError(f"{self.path}, line {self.line}, is no JSON: {why}")


def csv_rows(path: Path, options: TextOptions) -> Rows:
    """Yield the rows of CSV or TSV as dicts; the first line has the names of the columns.

    Raises:
        UserError: the first line does not have the key, or a row has other fields.
    """
    header, reader = _open_csv(path, options)
    key = options.text_key
    if header.count(key) != 1:
        what = "has no such column" if key not in header else "has several columns of that name"
        raise UserError(
            f"{options.written('text_key', key)}: {path} {what}; its first line is {', '.join(header)[:200]}"
        )
    try:
        for fields in reader:
            if len(fields) not in (0, len(header)):
                raise UserError(
                    f"{path}, line {reader.line_num}, has {len(fields)} fields, and the first line {len(header)}: a "
                    f"text with the delimiter or a line end in it must stand in quotes"
                )
            if fields:
                yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}, is no CSV: {error}") from error


def _open_csv(path: Path, options: TextOptions) -> tuple[list[str], Any]:
    """Return the names in the first line of a CSV that is not blank, and a reader of what follows."""
    text = lines(path, options)
    first = next(text, "")
    stated = STATED.fullmatch(first.rstrip("\r\n"))
    begin = ["\n", next(text, "")] if stated else [first]
    delimiter = stated[1] if stated else delimiter_of(path, first, options.text_key)
    csv.field_size_limit(LINE)
    quoting: Any = _quoting(path, options) if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(itertools.chain(begin, text), delimiter=delimiter, strict=True, quoting=quoting)
    try:
        return next(filter(None, reader), []), reader
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}, is no CSV: {error}") from error


def _quoting(path: Path, options: TextOptions) -> Any:
    """Return whether quotation marks enclose fields between tabs: not if that makes no CSV, and none is doubled."""
    try:
        deque(csv.reader(lines(path, options), delimiter="\t", strict=True), maxlen=0)
    except csv.Error:
        if not any('""' in line for line in lines(path, options)):
            return csv.QUOTE_NONE
    return csv.QUOTE_MINIMAL


def lines(path: Path, options: TextOptions) -> Iterator[str]:
    """Yield the lines of a file, each with its end.

    Raises:
        UserError: see `characters`; or a line is too long.
    """
    pending: list[str] = []
    size = 0
    for chunk in characters(path, options):
        *whole, last = chunk.split("\n")
        for line in whole:
            yield "".join([*pending, line, "\n"])
            pending, size = [], 0
        pending.append(last)
        size += len(last)
        if size > LINE:
            raise UserError(f"{path} has a line of more than {LINE:,} characters")
    if size:
        yield "".join(pending)


def column(path: Path, kind: str, options: TextOptions, counts: Counter[str]) -> Iterator[str]:
    """Yield the texts in a column of a Parquet or Arrow file.

    Raises:
        UserError: there is no such column, or it has no texts.
    """
    pyarrow = import_extra("pyarrow", f"{path} is a file of {kind}")
    key = options.text_key
    with open_bytes(path, options) as file:
        schema, batches = _batches(path, kind, file, [key])
        types = {field.name: field.type for field in schema}
        if len(schema.get_all_field_indices(key)) > 1:
            raise UserError(f"{options.written('text_key', key)}: {path} has several columns of that name")
        value = types.get(key)
        if value is not None and pyarrow.types.is_dictionary(value):
            value = value.value_type
        if not str(value).startswith(("string", "large_string", "binary", "large_binary", "null")):
            there = ", ".join(f"{name} ({each})" for name, each in types.items())
            raise UserError(f"{options.written('text_key', key)}: {path} has no such column of text; there are {there}")
        for batch in batches:
            for text in batch.column(batch.schema.get_field_index(key)).cast(pyarrow.large_string()).to_pylist():
                if text:
                    yield text
                else:
                    counts[WITHOUT_TEXT] += 1


def table_rows(path: Path, kind: str, options: TextOptions, keys: Sequence[str]) -> Rows:
    """Yield the rows of a Parquet or Arrow file as dicts, with those of the keys that it has.

    Raises:
        UserError: it cannot be read.
    """
    with open_bytes(path, options) as file:
        _, batches = _batches(path, kind, file, keys)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield number, {key: row[key] for key in keys if key in row}


def _batches(path: Path, kind: str, file: Any, keys: Sequence[str]) -> tuple[Any, Iterator[Any]]:
    """Return the schema of a Parquet or Arrow file, and its rows in batches; of Parquet only the columns `keys`."""
    if kind == "parquet":
        parquet = import_extra("pyarrow.parquet", f"{path} is a file of parquet")
        table = parquet.ParquetFile(file, page_checksum_verification=True)
        columns = [key for key in keys if key in table.schema_arrow.names]
        return table.schema_arrow, table.iter_batches(batch_size=1024, columns=columns)
    ipc = import_extra("pyarrow.ipc", f"{path} is a file of arrow")
    try:
        stored = ipc.open_file(file)
        return stored.schema, map(_sound, map(stored.get_batch, range(stored.num_record_batches)))
    except ValueError:  # not a file but a stream
        file.seek(0)
        stream = ipc.open_stream(file)
        return stream.schema, map(_sound, stream)


def _sound(batch: Any) -> Any:
    """Return a batch of Arrow, checked: pyarrow believes the offsets in a file, and reads beyond its end by them."""
    batch.validate(full=True)
    return batch
