"""Every form of text file gives the text that was written, or a message says why it does not."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import importlib
import io
import json
import lzma
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from gptlab.data.text_files import characters
from gptlab.data.text_options import TextOptions
from gptlab.system.errors import UserError
from tests.data.helpers import read, small

DOCUMENTS = ["First one.\nIts second line.", "z\u00fc\u4e2d\U0001f600 \u2028 x", " ", "\nfour\n\n", "a" * 41]

PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".lzma": lambda raw: lzma.compress(raw, lzma.FORMAT_ALONE),
    ".zst": lambda raw: pyarrow.compress(raw, codec="zstd", asbytes=True),
}


def json_lines(key: str = "text", **others: Any) -> bytes:
    return "\n".join(json.dumps({"id": i, key: text, **others}) for i, text in enumerate(DOCUMENTS)).encode()


def json_list() -> bytes:
    return json.dumps([{"id": i, "text": text} for i, text in enumerate(DOCUMENTS)], indent=2).encode()


def csv_table(delimiter: str = ",", ends: str = "\n") -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=ends)
    writer.writerows([["id", "text"], *([str(i), text] for i, text in enumerate(DOCUMENTS))])
    return file.getvalue().encode()


def table(path: Path, columns: dict[str, list[Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


WRITTEN: dict[str, Callable[[], bytes]] = {
    **dict.fromkeys((".txt", ".md", "", ".TXT"), lambda: "".join(DOCUMENTS).encode()),
    **dict.fromkeys((".jsonl", ".ndjson", ".json", ".JSONL"), lambda: json_lines(url="x\u00e9")),
    " list.json": json_list,
    ".csv": csv_table,
    ".tsv": lambda: csv_table("\t"),
}
FORMS = [(form, packing) for form in (*WRITTEN, ".parquet") for packing in PACKINGS]
FORMS.remove((".parquet", ".zst"))  # nobody packs a table so, and it cannot be read from a stream


@pytest.mark.parametrize(("form", "packing"), FORMS)
@pytest.mark.parametrize("piece", [5, 1 << 20])
def test_each_form_gives_the_same_documents(tmp_path: Path, form: str, packing: str, piece: int) -> None:
    if form == ".parquet":
        raw = table(tmp_path / "table", {"id": [*"abcde"], "text": DOCUMENTS}).read_bytes()
    else:
        raw = WRITTEN[form]()
    path = tmp_path / f"my{form}{packing}"
    path.write_bytes(PACKINGS[packing](raw))
    with small(piece):
        assert read(path) == (["".join(DOCUMENTS)] if form in (".txt", ".md", "", ".TXT") else DOCUMENTS)
        assert read(path) == read(path)


@pytest.mark.parametrize("form", [".jsonl", ".parquet"])
def test_the_text_is_under_the_key(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"my{form}"
    if form == ".jsonl":
        path.write_bytes(json_lines("body", text="another"))
    else:
        table(path, {"text": ["another"] * 5, "body": DOCUMENTS})
    assert read(path, text_key="body") == DOCUMENTS


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_files_that_were_joined_are_read_to_the_end(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"my.txt{packing}"
    path.write_bytes(PACKINGS[packing](b"one ") + PACKINGS[packing](b"two"))
    assert read(path) == ["one two"]


def test_what_pzstd_writes_is_read(tmp_path: Path) -> None:
    """It begins with a frame to skip, which says how long the next one is."""
    frame = PACKINGS[".zst"](b"one two")
    (tmp_path / "my.txt.zst").write_bytes(b"\x50\x2a\x4d\x18\4\0\0\0" + len(frame).to_bytes(4, "little") + frame)
    assert read(tmp_path / "my.txt.zst") == ["one two"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain\n", "plain\n"),
        (b"\xef\xbb\xbfwith a byte order mark", "with a byte order mark"),
        (b"\r\nline ends\r\nof all\rkinds\n\r", "\nline ends\nof all\nkinds\n\n"),
        ("wide\r\n\U0001f600 z\u00fc".encode("utf-16"), "wide\n\U0001f600 z\u00fc"),
        (codecs.BOM_UTF16_BE + "wide \u0100".encode("utf-16-be"), "wide \u0100"),
        ("wider \U0001f600".encode("utf-32"), "wider \U0001f600"),
        ("z\u00fc\u4e2d\U0001f600 \ufeff".encode(), "z\u00fc\u4e2d\U0001f600 \ufeff"),
        (b"", ""),
    ],
)
@pytest.mark.parametrize("chunk", [3, 4, 5, 7, 1 << 20])  # bytes: a character may lie across the end of a chunk
def test_a_file_is_read_as_it_was_meant(tmp_path: Path, raw: bytes, text: str, chunk: int) -> None:
    path = tmp_path / "my.txt"
    path.write_bytes(raw)
    with small(chunk):
        assert "".join(characters(path, TextOptions())) == text


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ('{"text": "a"}\r\n\r\n \n{"text": "b"}', ["a", "b"]),  # blank lines, and a last one without an end
        ('\ufeff{"text": "a"}\n{"text": "\u2028\x85"}\n', ["a", "\u2028\x85"]),
        (r'{"text": "\ud800a\udc00\ud83d\ude00"}', ["\ufffda\ufffd\U0001f600"]),  # lone surrogates, and a pair
    ],
)
def test_lines_of_json_are_read_as_they_are_meant(tmp_path: Path, lines: str, found: list[str]) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(lines.encode())
    assert read(path) == found


def test_line_ends_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_bytes(b"a\r\nb\rc\n")
    assert read(tmp_path / "my.txt", line_ends="kept") == ["a\r\nb\rc\n"]


ROWS_WITH_GAPS = [{"text": "a"}, {"text": None}, {"text": ""}, {"url": "x"}, {"text": "b", "url": "y"}]


@pytest.mark.parametrize("form", ["jsonl", "NaN", "list", "csv", "parquet", "arrow"])
def test_rows_without_text_are_skipped_and_counted(tmp_path: Path, form: str) -> None:
    path = tmp_path / "my"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS_WITH_GAPS)))
    elif form == "NaN":  # as json.dumps writes the missing values of pandas
        path.write_text("\n".join(json.dumps({"text": row.get("text") or math.nan}) for row in ROWS_WITH_GAPS))
    elif form == "list":
        path.write_text(json.dumps(ROWS_WITH_GAPS))
    elif form == "csv":
        path = path.with_suffix(".csv")
        path.write_text("text,url\na,\n,\n,\n,x\nb,y\n")
    elif form == "parquet":
        table(path, {"text": [row.get("text") for row in ROWS_WITH_GAPS]})
    else:
        write_arrow(path, pyarrow.table({"text": [row.get("text") for row in ROWS_WITH_GAPS]}))
    counts = Counter[str]()
    assert read(path, counts) == ["a", "b"]
    assert counts == {"rows without text": 3}


def write_arrow(path: Path, content: Any) -> None:
    with pyarrow.ipc.new_stream(path, content.schema) as file:  # as save_to_disk of `datasets` does
        file.write_table(content)


@pytest.mark.parametrize("stream", [True, False])
def test_a_table_of_arrow_is_read(tmp_path: Path, stream: bool) -> None:
    content = pyarrow.table({"text": DOCUMENTS})
    if stream:
        write_arrow(tmp_path / "my.arrow", content)
    else:
        with pyarrow.ipc.new_file(tmp_path / "my.arrow", content.schema) as file:
            file.write_table(content)
    assert read(tmp_path / "my.arrow") == DOCUMENTS


STRINGS = ["a", "b\u00e9", "c"]


@pytest.mark.parametrize(
    "type_",
    [
        *(pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary(), pyarrow.large_binary()),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
def test_a_column_of_any_type_of_text_is_read(tmp_path: Path, type_: Any) -> None:
    values = [text.encode() for text in STRINGS] if "binary" in str(type_) else STRINGS
    column = pyarrow.array(STRINGS).cast(type_) if "dictionary" in str(type_) else pyarrow.array(values, type_)
    assert read(table(tmp_path / "my.parquet", {"text": column})) == STRINGS


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"text": "a"}, {"text": "b"}]', ["a", "b"]),
        ('[{"text": "a"},\n {"text": "b"}\n]\n', ["a", "b"]),
        ('\ufeff [\n{"text": "]},{"}]', ["]},{"]),
        ('["a", "b"]', ["a", "b"]),
        ('"a"\n"b"\n', ["a", "b"]),
        ('{"text": "a"}{"text": "b"}', ["a", "b"]),  # without line ends between them
        ('{\n  "text": "a"\n}\n{\n  "text": "b"\n}', ["a", "b"]),
        ('{"text": "a"}', ["a"]),
        ("[]", []),
        ("", []),
        ('{"text": "a", "id": ' + "9" * 9999 + "}", ["a"]),
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_json_is_read_however_it_is_laid_out(tmp_path: Path, text: str, found: list[str], piece: int) -> None:
    (tmp_path / "my.json").write_text(text)
    with small(piece):
        assert read(tmp_path / "my.json") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"}', r"my.json, line 1, is no JSON: its list does not end; is it complete\?"),
        ('[{"text": "a"},', r"line 1, is no JSON"),
        ('[{"text": "a"},]', r"a value is missing after the comma"),
        ('[{"text": "a"}\n{"text": "b"}]', r"line 2, is no JSON: there must be a comma"),
        ('[{"text": "a"}]\n[{"text": "b"}]', r"line 2, is no JSON: there is more after the end of its list"),
        ('{"text": "a"},\n{"text": "b"}', r"line 1, is no JSON"),
        ('[{"text": "a"}, {"text": "b', r"is no JSON: Unterminated string"),
        ("[" * 99999, r"is nested too deep"),
        ('[{"text": ["a"]}]', r"my.json, line 1: data.text_key=text is a list, and must be a text$"),
        ('[{"text": ["a"], "b": "c", "d": 1}]', r"is a list, and must be a text; beside it there are b, d$"),
        ("[1, 2]", r"my.json, line 1: the row is a number, and must be a text"),
        ('{"data": [{"text": "a"}]}', r"data.text_key=text: \S+my.json has no such text in its rows; there are data"),
    ],
)
def test_json_that_is_no_rows_of_text_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "my.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "my.json")


def test_a_long_list_takes_linear_time(tmp_path: Path) -> None:
    (tmp_path / "my.json").write_text(json.dumps([{"text": "a" * 30}] * 100_000))
    started = time.perf_counter()
    assert len(read(tmp_path / "my.json")) == 100_000
    assert time.perf_counter() - started < 20  # half a second; half an hour if each row copied or counted the rest


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("text\na\nb\n", ["a", "b"]),
        ("id,text\r\n1,a\r\n2,b", ["a", "b"]),
        ('\ufeffid;text\n1;"a;\n""b"""\n\n', ['a;\n"b"']),
        ("id|text\n1|a, b\n", ["a, b"]),
        ("sep=;\r\nid;text\r\n1;a, b\r\n", ["a, b"]),
        ("sep=\t\r\nid\ttext\r\n1\ta, b\r\n", ["a, b"]),
        ('"sep=|"\nid|text\n1|a;b\n', ["a;b"]),
        ("\n\nid,text\n1,a\n", ["a"]),
        ("id,text,id\n1,a,2\n", ["a"]),
    ],
)
def test_csv_is_read_however_it_is_laid_out(tmp_path: Path, text: str, found: list[str]) -> None:
    (tmp_path / "my.csv").write_bytes(text.encode())
    assert read(tmp_path / "my.csv") == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('id\ttext\n1\t"a" b\n2\tc\n3\t"d\n', ['"a" b', "c", '"d']),  # as Common Voice is published
        ('id\ttext\n1\t"a\n2\tb"\n3\t"c" d\n', ['"a', 'b"', '"c" d']),
        ('id\ttext\n1\t"a\tb"\n2\t"c\nd"\n3\t"e ""f"" g"\n', ["a\tb", "c\nd", 'e "f" g']),
        ('id\ttext\n1\ta "b" c\n2\t\n', ['a "b" c']),
    ],
)
def test_quotation_marks_between_tabs_are_text_where_they_make_no_csv(
    tmp_path: Path, text: str, found: list[str]
) -> None:
    (tmp_path / "my.tsv").write_text(text)
    assert read(tmp_path / "my.tsv") == found


def test_rows_between_tabs_that_are_cut_are_refused(tmp_path: Path) -> None:
    (tmp_path / "my.tsv").write_text('id\ttext\n1\t"a ""b"""\n2\t"c\n')
    with pytest.raises(UserError, match=r"my.tsv, line 3, is no CSV: unexpected end of data"):
        read(tmp_path / "my.tsv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,body\n1,a\n", r"data.text_key=text: \S+my.csv has no such column; its first line is id, body"),
        ("id,text\n1,a, b\n", r"my.csv, line 2, has 3 fields, and the first line 2: .* must stand in quotes"),
        ("id,text\n1\n", r"my.csv, line 2, has 1 fields"),
        ('id,text\n1,"a\n', r"my.csv, line 2, is no CSV: unexpected end of data"),
        ("", r"data.text_key=text: \S+my.csv has no such column"),
        ("sep=;\nid;text\n1;a;b\n", r"my.csv, line 3, has 3 fields, and the first line 2"),
        ("text,text\na,b\n", r"data.text_key=text: \S+my.csv has several columns of that name"),
    ],
)
def test_csv_that_is_no_rows_of_text_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "my.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "my.csv")


def test_a_wrong_key_is_refused_before_the_end_of_a_long_file(tmp_path: Path) -> None:
    (tmp_path / "my.jsonl").write_text('{"content": "a"}\n' * 2000 + "no JSON")
    with pytest.raises(UserError, match=r"data.text_key=text: \S+ has no such text in its rows; there are content"):
        read(tmp_path / "my.jsonl")


# What cannot be read.

LATIN = "abc\u00fcde".encode("latin-1")
PACKED_TEXT = {suffix: pack(("".join(map(str, range(9999)))).encode()) for suffix, pack in PACKINGS.items()}


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("my.txt", b"\x7fELF\x00\x01", r"looks like a binary file \(it has NUL bytes\); give a text file"),
        ("my.txt", "no mark".encode("utf-16-le"), r"UTF-16 without its mark: iconv -f utf-16le -t utf-8 converts that"),
        ("my.txt", "no mark".encode("utf-16-be"), r"UTF-16 without its mark: iconv -f utf-16be"),
        ("my.txt", "half".encode("utf-16")[:-1], r"not UTF-16-LE text \(it ends within a character\)"),
        ("my.jsonl", b'{"text": "\0"}', r"looks like a binary file"),
        ("my.txt", LATIN, r"not UTF-8 text \(byte 0xfc at 3\); convert it first, e.g. iconv"),
        ("my.txt.gz", gzip.compress(LATIN, mtime=0), r"not UTF-8 text \(byte 0xfc at 3\)"),
        ("my.jsonl", LATIN, r"not UTF-8 text \(byte 0xfc at 3\)"),
        ("my.txt", "abc\u4e2d".encode()[:-1], r"not UTF-8 text \(it ends within a character\); is it complete\?"),
        (
            "my.txt",
            "caf\u00e9".encode("latin1"),
            r"within a character\); is it complete\?; Latin-1 is converted by iconv",
        ),
        ("my.txt.gz", PACKED_TEXT[".gz"][:-9], r"cannot be read: Compressed file ended"),
        ("my.txt.gz", PACKED_TEXT[".gz"][:99] + b"?" + PACKED_TEXT[".gz"][100:], r"cannot be read"),
        ("my.txt.zst", PACKED_TEXT[".zst"][:-9], r"cannot be read: "),
        ("my.txt.xz", PACKED_TEXT[".xz"][:-9], r"cannot be read: Compressed file ended"),
        ("my.txt.bz2", PACKED_TEXT[".bz2"][:-9], r"cannot be read: Compressed file ended"),
        ("my.parquet", b"no table", r"is no parquet file: its first bytes are not those of one; is it complete\?"),
        ("my.parquet", b"PAR1 and no more", r"cannot be read: Parquet"),
        ("my.parquet", b"", r"is no parquet file"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message) as refused:
        read(path)
    assert f"data.path={path}" in str(refused.value)


@pytest.mark.parametrize("place", [3, 6, 13])
def test_the_place_of_a_byte_that_is_no_text_is_named(tmp_path: Path, place: int) -> None:
    raw = ("z\u00fc\u4e2d" * 5).encode()[:place] + b"\xff..."
    (tmp_path / "my.txt").write_bytes(raw)
    with small(5), pytest.raises(UserError, match=rf"byte 0xff at {place}\)"):
        read(tmp_path / "my.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b', r"my.jsonl, line 3, is no JSON: "),
        ("b", r"my.jsonl, line 3, is no JSON"),
        ('{"text": 7}', r"my.jsonl, line 3: data.text_key=text is a number, and must be a text"),
        ('{"text": true}', r"my.jsonl, line 3: data.text_key=text is true or false, and must be a text"),
        ('{"text": {"a": "b"}}', r"my.jsonl, line 3: data.text_key=text is an object, and must be a text"),
        ('["text"]', r"my.jsonl, line 3: the row is a list, and must be a text"),
        ("7", r"my.jsonl, line 3: the row is a number"),
    ],
)
def test_a_line_without_text_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text(f'{{"text": "a"}}\n\n{line}\n{{"text": "c"}}\n')
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_table_without_the_column_says_which_there_are(tmp_path: Path) -> None:
    path = table(tmp_path / "my.parquet", {"id": [1], "content": ["a"]})
    with pytest.raises(
        UserError, match=r"data.text_key=text: \S+my.parquet has no such column.*; there are id.*, content"
    ):
        read(path)


@pytest.mark.parametrize("column", [[1, 2], [["a"], ["b"]], [{"a": "b"}]], ids=["numbers", "lists", "objects"])
def test_a_column_that_is_no_text_is_refused(tmp_path: Path, column: list[Any]) -> None:
    path = table(tmp_path / "my.parquet", {"text": column})
    with pytest.raises(UserError, match=r"data.text_key=text: \S+my.parquet"):
        read(path)


def test_a_table_with_the_column_twice_is_refused(tmp_path: Path) -> None:
    twice = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "my.parquet")
    with pytest.raises(UserError, match=r"data.text_key=text: \S+my.parquet has several columns of that name"):
        read(tmp_path / "my.parquet")


@pytest.mark.parametrize("name", ["my.txt.zst", "my.jsonl.zst", "my.parquet", "my.arrow"])
def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    first = {".zst": PACKINGS[".zst"](b"a"), ".parquet": b"PAR1", ".arrow": b"ARROW1"}
    (tmp_path / name).write_bytes(first[Path(name).suffix])
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=rf"{name} is .* needs \w+\S*: pip install 'gptlab\[data\]'"):
        read(tmp_path / name)
