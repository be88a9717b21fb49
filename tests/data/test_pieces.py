"""A text is cut into pieces that no tokenizer would tell from the whole, and into its documents."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.pieces import Piece, first_of_each_part, pieces, separate
from gptlab.data.tokenizers import CL100K_PATTERN, END_OF_TEXT, BPETokenizer, WordTokenizer
from tests.conftest import ROOT
from tests.data.helpers import small

often = settings(deadline=None, derandomize=True, max_examples=150)


def cut(text: str, *places: int) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


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


# Documents.


def separated(text: str, separator: str, *places: int) -> list[str]:
    return ["".join(chunks) for chunks in separate(cut(text, *places), separator)]


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("a<|>b<|>c", ["a", "b", "c"]),
        ("a\n<|>\n\nb\n\nb\n<|>\n", ["a", "b\n\nb", ""]),
        ("<|><|>a", ["", "", "a"]),
        ("a<|b|>c<", ["a<|b|>c<"]),
        (" a <|> b ", [" a ", " b "]),
        ("a\r\n<|>\r\nb\r\n", ["a", "b"]),  # of data.line_ends=kept
        ("<|<|>|>", ["<|", "|>"]),
        ("", [""]),
    ],
)
def test_documents_are_what_stands_between_separators(text: str, documents: list[str]) -> None:
    for places in ([], [1], [2, 3], [*range(20)], [5, 9]):
        assert separated(text, "<|>", *places) == documents


@often
@given(st.text("ab<|>\n", max_size=40), st.sampled_from(["<|>", "\n", "ab", "aa"]), st.lists(st.integers(0, 40)))
def test_documents_do_not_depend_on_the_chunks_that_the_text_comes_in(
    text: str, separator: str, places: list[int]
) -> None:
    whole = [document.strip("\n") for document in text.split(separator)]
    assert separated(text, separator, *places) == whole


def test_a_document_is_given_before_the_text_has_been_read() -> None:
    def chunks() -> Iterator[str]:
        for i in range(100):
            read.append(i)
            yield "some words<|>"

    read: list[int] = []
    assert "".join(next(separate(chunks(), "<|>"))) == "some words"
    assert len(read) == 1


def test_short_documents_take_linear_time() -> None:
    started = time.perf_counter()
    assert sum(1 for chunks in separate(["name\n" * 600_000], "\n") for _ in chunks) == 600_000
    assert time.perf_counter() - started < 10  # a second; half a minute if each copied the rest


def test_the_first_documents_are_those_of_each_part() -> None:
    read: list[int] = []

    def text() -> Iterator[Piece]:
        for i, part in enumerate(["train"] * 5 + ["val"] * 5 + ["test"] * 5):
            read.append(i)
            yield Piece(f"{part}{i}", i % 5 != 0, part)  # the first document of each part has two pieces

    found = [piece.text for piece in first_of_each_part(text(), 2, 3)]
    assert found == ["train0", "train1", "train2", "val5", "val6", "val7", "test10", "test11", "test12"]
    assert read[-1] == 12
