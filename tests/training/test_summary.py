# ruff: noqa: RUF001 (letters of other alphabets)
"""The words that the closing command begins a text with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gptlab.data.tokenizers import ByteTokenizer, CharTokenizer
from gptlab.data.tokenizers.char_byte_word import WordTokenizer
from gptlab.training.datamodule import opening_words


def opening(text: str, tokenizer: Any = None) -> str | None:
    tokenizer = tokenizer or CharTokenizer.fit([text])
    return opening_words(SimpleNamespace(tokenizer=tokenizer, ids=lambda split: tokenizer.encode(text)))  # type: ignore


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("?\n\nGREMIO:\nGood morrow, neighbour.\n", "GREMIO:"),
        ("nd of a line.\nЛиса и волк идут в лес.\n", "Лиса и волк"),
        ("nd of a word and more words of it", "of a word"),
        ("老国王爱夜晚，狐狸和狼走进森林。" * 9, "老国王爱夜晚，狐"),
        ("ACGTTGCAAC" * 9, "ACGTTGCA"),
        ("3141592653" * 9, "31415926"),
        ("x\n- an item\nand text\n", "and text"),  # a prompt with a dash would be a flag
        ("x\n\x07bell\n\x1b[31m\nred text\n", "red text"),
        ("x\n" + "a" * 99 + " b\n", "a" * 20),
        ("?!\n--\n", None),
    ],
)
def test_a_text_is_begun_with_its_own_words(text: str, expected: str | None) -> None:
    assert opening(text) == expected


def test_tokens_that_cut_letters_and_words_that_are_unknown() -> None:
    assert opening("ё\nволк идёт", ByteTokenizer()) == "волк идёт"
    half = ByteTokenizer()
    half.encode = lambda text: ByteTokenizer.encode(half, text)[1:]  # type: ignore[method-assign]
    assert opening("ёлка и волк", half) == "и волк"
    assert opening("rare words\nthe wolf", WordTokenizer(["the", "wolf"])) is None
    assert opening("the wolf sees the wolf", WordTokenizer(["the", "wolf", "sees"])) == "wolf sees the"
