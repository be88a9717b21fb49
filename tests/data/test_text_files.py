"""Every form of text file gives the text that was written, in pieces that no tokenizer would tell from the whole."""

from __future__ import annotations

import gzip
import importlib
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import text_files
from gptlab.data.text_files import Piece, characters, documents, find_texts, pieces
from gptlab.data.tokenizers import CL100K_PATTERN, END_OF_TEXT, BPETokenizer, WordTokenizer
from gptlab.system.errors import UserError
from gptlab.system.terminal import harmless
from tests.conftest import ROOT

DOCUMENTS = ["First one.\r\nIts second line.", "z\u00fc\u4e2d\U0001f600 \u2028 x", " ", "\nfour\n\n", "a" * 41]
often = settings(deadline=None, derandomize=True, max_examples=150)


def read(path: Path, key: str = "text") -> list[str]:
    return ["".join(chunks) for chunks in documents(path, key)]


@contextmanager
def small(piece: int) -> Iterator[None]:
    """Pieces of about so many characters, and files read in chunks of so many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE", piece)
        yield


def cut(text: str, *places: int) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


# Pieces.

# Where a tokenizer looks back or ahead: white space as Python and as Rust understand it, marks, numbers, apostrophes.
spaces = st.sampled_from("\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2009\u2028\u2029\u202f\u205f\u3000")
nasty = st.sampled_from("aZsl'\u2019\u017f12\u00bd\u00b2\u0663\u4e2d_!.-\u0301\u0300\u200b\u200d\u180e\ufeff\U0001f600")
strings = st.sampled_from(["'ll", " '", "'s", ".\n\n", "\r\n", " \n", "x\n", "\n ", "  x"])
stretch = st.lists(st.one_of(nasty, spaces, st.just(" "), st.just("\n"), strings), max_size=6).map("".join)
safe_text = st.lists(stretch, max_size=12).map("x y".join)  # with a safe place every 21 characters


@pytest.fixture(scope="module")
def gpt2(data_dir: Path) -> BPETokenizer:
    if not (data_dir / "gpt2" / "vocab.bpe").is_file():
        pytest.skip("GPTLAB_DATA has no gpt2/vocab.bpe")
    return BPETokenizer.gpt2(data_dir)


@pytest.fixture(scope="module", params=["gpt2's pattern", "gpt4's pattern", "gpt2"])
def bpe(request: pytest.FixtureRequest) -> BPETokenizer:
    if request.param == "gpt2":
        return request.getfixturevalue("gpt2")
    learned = BPETokenizer.fit([(ROOT / "LICENSE").read_text()], 601)
    if request.param == "gpt2's pattern":
        return learned
    return BPETokenizer("cl100k_base", learned.merges, CL100K_PATTERN, {END_OF_TEXT: 600})


@often
@given(safe_text, st.integers(2, 4), st.lists(st.integers(0, 99), max_size=5))
def test_pieces_have_the_ids_of_the_whole(bpe: BPETokenizer, text: str, piece: int, places: list[int]) -> None:
    with small(piece):
        found = [part.text for part in pieces(cut(text, *places))]
    assert [i for part in found for i in bpe.encode(part).tolist()] == bpe.encode(text).tolist()


@often
@given(safe_text, st.integers(2, 4), st.lists(st.integers(0, 99), max_size=5))
def test_pieces_have_the_words_of_the_whole(text: str, piece: int, places: list[int]) -> None:
    with small(piece):
        found = [part.text for part in pieces(cut(text, *places))]
    words = WordTokenizer.pattern.findall
    assert [word for part in found for word in words(part)] == words(text)


@often
@given(safe_text, st.integers(2, 4), st.lists(st.integers(0, 99), max_size=5))
def test_pieces_do_not_depend_on_the_chunks_that_the_text_comes_in(text: str, piece: int, places: list[int]) -> None:
    with small(piece):
        assert list(pieces(cut(text, *places))) == list(pieces([text] * bool(text))) == list(pieces(text))


@often
@given(st.text(), st.integers(1, 9), st.lists(st.integers(0, 99), max_size=9))
def test_pieces_are_the_text_and_the_last_one_says_so(text: str, piece: int, places: list[int]) -> None:
    with small(piece):
        found = list(pieces(cut(text, *places)))
    assert "".join(part.text for part in found) == text
    assert all(part.text for part in found)
    assert [part.last for part in found] == [False] * (len(found) - 1) + [True] * bool(text)


@pytest.mark.parametrize("step", [1, 100, 5_000])
@pytest.mark.parametrize("unit", ["word ", "lines\n", "x", " ", "\r\n", "no spaces\u3000but these"])
def test_pieces_are_of_bounded_size(unit: str, step: int) -> None:
    text = unit * (5_000 // len(unit))
    with small(100):
        found = [part.text for part in pieces(text[i : i + step] for i in range(0, len(text), step))]
    assert "".join(found) == text
    assert max(map(len, found)) <= 16 * 100
    assert min(map(len, found[:-1])) >= 100  # nor are they many
    assert len(found) > 5


@pytest.mark.parametrize(
    "parts",
    [
        ["aaaa", " bb cc", " dddd e"],
        ["aaaa\n", "bb cc\n", "dddd ee"],
        ["aaaa \n b\n", "ccc dd"],  # not within white space
        ["aaaaaaaaa", " \u00e9 b"],
        ["aaaa  bbbb\t\tcccc !!!! \u0301\u0301\u0301"],
    ],
)
def test_pieces_end_at_lines_and_words(parts: list[str]) -> None:
    with small(4):
        assert [part.text for part in pieces("".join(parts))] == parts
        assert [part.text for part in pieces(["".join(parts)])] == parts


def test_a_text_without_safe_places_is_cut_after_sixteen_pieces() -> None:
    with small(10):
        assert list(pieces(["a"] * 159)) == [Piece("a" * 159, True)]
        assert list(pieces(["a"] * 160)) == [Piece("a" * 10, False), Piece("a" * 150, True)]
        for chunks in (["a"] * 157 + [" b c"], ["a" * 157 + " b c"]):
            assert list(pieces(chunks)) == [Piece("a" * 157, False), Piece(" b c", True)]
        for chunks in (["a"] * 5000 + [" b c"], ["a" * 5000 + " b c"]):
            assert list(pieces(chunks))[:3] == [Piece("a" * 10, False)] * 3


def test_a_piece_is_given_before_the_text_has_been_read() -> None:
    def chunks() -> Any:
        for i in range(99):
            read.append(i)
            yield "some words and\n"

    read: list[int] = []
    with small(20):
        next(pieces(chunks()))
    assert len(read) == 3


# Files.

PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda raw: pyarrow.compress(raw, codec="zstd", asbytes=True),
}


def json_lines(key: str = "text", **others: Any) -> bytes:
    return "\n".join(json.dumps({"id": i, key: text, **others}) for i, text in enumerate(DOCUMENTS)).encode()


def table(path: Path, columns: dict[str, list[Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


FORMS = [(form, packing) for form in (".txt", ".md", ".jsonl", ".parquet", "") for packing in PACKINGS]
FORMS.remove((".parquet", ".zst"))  # nobody packs a table so, and it cannot be read from a stream


@pytest.mark.parametrize(("form", "packing"), FORMS)
@pytest.mark.parametrize("piece", [5, 1 << 20])
def test_each_form_gives_the_same_documents(tmp_path: Path, form: str, packing: str, piece: int) -> None:
    if form == ".parquet":
        raw = table(tmp_path / "table", {"id": [*"abcde"], "text": DOCUMENTS}).read_bytes()
    else:
        raw = json_lines(url="x\u00e9") if form == ".jsonl" else "".join(DOCUMENTS).encode()
    path = tmp_path / f"my{form}{packing}"
    path.write_bytes(PACKINGS[packing](raw))
    with small(piece):
        assert read(path) == (DOCUMENTS if form in (".jsonl", ".parquet") else ["".join(DOCUMENTS)])
        assert read(path) == read(path)


@pytest.mark.parametrize("form", [".jsonl", ".parquet"])
def test_the_text_is_under_the_key(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"my{form}"
    if form == ".jsonl":
        path.write_bytes(json_lines("body", text="another"))
    else:
        table(path, {"text": ["another"] * 5, "body": DOCUMENTS})
    assert read(path, "body") == DOCUMENTS


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_files_that_were_joined_are_read_to_the_end(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"my.txt{packing}"
    path.write_bytes(PACKINGS[packing](b"one ") + PACKINGS[packing](b"two"))
    assert read(path) == ["one two"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain\n", "plain\n"),
        (b"\xef\xbb\xbfwith a byte order mark", "with a byte order mark"),
        (b"\r\nline ends\r\nof all\rkinds\n", "\r\nline ends\r\nof all\rkinds\n"),
        ("z\u00fc\u4e2d\U0001f600 \ufeff".encode(), "z\u00fc\u4e2d\U0001f600 \ufeff"),
        (b"", ""),
    ],
)
@pytest.mark.parametrize("chunk", [3, 4, 5, 7, 1 << 20])  # bytes: a character may lie across the end of a chunk
def test_a_file_is_read_as_it_is(tmp_path: Path, raw: bytes, text: str, chunk: int) -> None:
    path = tmp_path / "my.txt"
    path.write_bytes(raw)
    with small(chunk):
        assert "".join(characters(path)) == text


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


def test_rows_without_text_are_passed_over(tmp_path: Path) -> None:
    assert read(table(tmp_path / "my.parquet", {"text": ["a", None, "", "b"]})) == ["a", "b"]


# What cannot be read.

LATIN = "abc\u00fcde".encode("latin-1")
PACKED_TEXT = {suffix: pack(("".join(map(str, range(9999)))).encode()) for suffix, pack in PACKINGS.items()}


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("my.txt", b"\x7fELF\x00\x01", r"looks like a binary file \(it has NUL bytes\); give a text file"),
        ("my.txt", "wide".encode("utf-16"), r"looks like a binary file"),
        ("my.jsonl", b'{"text": "\0"}', r"looks like a binary file"),
        ("my.txt", LATIN, r"not UTF-8 text \(byte 0xfc at 3\); convert it first, e.g. iconv"),
        ("my.txt.gz", gzip.compress(LATIN, mtime=0), r"not UTF-8 text \(byte 0xfc at 3\)"),
        ("my.jsonl", LATIN, r"not UTF-8 text \(byte 0xfc at 3\)"),
        ("my.txt", "abc\u4e2d".encode()[:-1], r"not UTF-8 text \(it ends within a character\); is it complete\?"),
        ("my.txt.gz", b"no gzip", r"cannot be read: Not a gzipped file"),
        ("my.txt.gz", PACKED_TEXT[".gz"][:-9], r"cannot be read: Compressed file ended"),
        ("my.txt.gz", PACKED_TEXT[".gz"][:99] + b"?" + PACKED_TEXT[".gz"][100:], r"cannot be read"),
        ("my.txt.zst", b"no zstd", r"cannot be read: "),
        ("my.txt.zst", PACKED_TEXT[".zst"][:-9], r"cannot be read: "),
        ("my.parquet", b"no table", r"cannot be read: Parquet"),
        ("my.parquet", b"", r"cannot be read: Parquet"),
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
        ('{"text": "b', r"my.jsonl, line 3, is no JSON: Unterminated string"),
        ("b", r"my.jsonl, line 3, is no JSON"),
        ('{"id": 1, "body": "b"}', r"data.text_key=text: \S+my.jsonl, line 3, has no such text; there are id, body"),
        ('{"text": 7}', r"line 3, has no such text; there are text"),
        ('{"text": null}', r"line 3, has no such text; there are text"),
        ('["text"]', r"line 3, has no such text; there are list"),
        ("7", r"line 3, has no such text; there are int"),
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


@pytest.mark.parametrize("column", [[1, 2], [b"a", b"b"], [["a"], ["b"]]], ids=["numbers", "bytes", "lists"])
def test_a_column_that_is_no_text_is_refused(tmp_path: Path, column: list[Any]) -> None:
    path = table(tmp_path / "my.parquet", {"text": column})
    with pytest.raises(UserError, match=r"data.text_key=text: \S+my.parquet"):
        read(path)


def test_a_column_of_repeated_texts_is_text(tmp_path: Path) -> None:
    repeated = pyarrow.array(["a", "b", "a"]).dictionary_encode()  # as pandas writes its categories
    assert read(table(tmp_path / "my.parquet", {"text": repeated})) == read(
        table(tmp_path / "plain.parquet", {"text": ["a", "b", "a"]})
    )


@pytest.mark.parametrize("name", ["my.txt.zst", "my.jsonl.zst", "my.parquet"])
def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=rf"{name} is .* needs \w+\S*: pip install 'gptlab\[data\]'"):
        read(tmp_path / name)


# Folders.


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a")


def test_a_folder_is_all_its_texts_by_name(tmp_path: Path) -> None:
    texts = ["a.txt", "b/c.md", "b/d/e.jsonl.gz", "b.txt.zst", "c.parquet", "z.jsonl"]
    make(tmp_path, *reversed(texts), "photo.png", "b/program.py", "data.csv.gz", "README", "archive.gz")
    make(tmp_path, ".hidden.txt", ".git/notes.md", "b/.cache/x.txt")
    assert [path.relative_to(tmp_path).as_posix() for path in find_texts([tmp_path])] == sorted(texts, key=by_parts)


def by_parts(name: str) -> tuple[str, ...]:
    return tuple(name.split("/"))


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path) -> None:
    make(tmp_path / ".notes", "a.txt")
    assert find_texts([tmp_path / ".notes"]) == (tmp_path / ".notes" / "a.txt",)


def test_files_are_taken_as_they_are_named(tmp_path: Path) -> None:
    make(tmp_path, "poem", "b.txt", "folder/a.txt")
    named = [tmp_path / "poem", tmp_path / "folder", tmp_path / "b.txt"]
    assert find_texts(named) == (tmp_path / "poem", tmp_path / "folder" / "a.txt", tmp_path / "b.txt")
    assert read(tmp_path / "poem") == ["a"]


def test_a_folder_with_the_name_of_a_text_is_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "table.parquet/part-0.md", "a.txt")
    assert [path.name for path in find_texts([tmp_path])] == ["a.txt", "part-0.md"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.txt", r"data.path=\S+absent.txt: no such file; give text files, or a folder of them"),
        (".", r"data.path=\S+: no text in this folder; there should be .txt .md .jsonl .parquet files, .* .gz or .zst"),
        ("to be or not to be " * 17, r"data.path=\S+to be or not .*: no such file"),  # the text in place of its file
    ],
)
def test_a_path_without_a_text_is_refused(tmp_path: Path, name: str, message: str) -> None:
    make(tmp_path, "photo.png", ".hidden.txt")
    with pytest.raises(UserError, match=message):
        find_texts([tmp_path / name])


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.path=\S+gone.txt: no such file"):
        read(tmp_path / "gone.txt")


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    assert harmless("a\x1b[2J\0\x07b\x9b\n") == "a\ufffd[2J\ufffd\ufffdb\ufffd\n"
    assert harmless("\t\r\n\u00fc\U0001f600") == "\t\r\n\u00fc\U0001f600"
