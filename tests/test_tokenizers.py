"""Text survives the way to ids and back, and nothing that is typed breaks a tokenizer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gptlab import tokenizers
from gptlab.errors import UserError
from gptlab.tokenizers import CharTokenizer

ASTRAL = "\U0001f600\U0001d11e"
COMBINING = "e\u0301 \u00e9 \u1100\u1161"  # e with a combining accent, the composed one, two jamos
SURROGATES = "\udc80 \udcff"  # as Python reads bytes that are not UTF-8 from a command line

TEXTS = ["hello, world\r\n", ASTRAL, COMBINING, SURROGATES, "\0\t\x7f\ufeff", "z\u00fc\u4e2d" + ASTRAL, "a"]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_known_text_comes_back_as_it_was(text: str) -> None:
    tokenizer = CharTokenizer.fit(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert len(ids) == len(text)
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.unknown(text) == []


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_ids_are_those_of_nanogpt(text: str) -> None:
    chars = sorted(set(text))
    stoi = {character: i for i, character in enumerate(chars)}
    tokenizer = CharTokenizer.fit(text)
    assert tokenizer.vocab_size == len(chars)
    assert tokenizer.encode(text).tolist() == [stoi[character] for character in text]


def test_no_text_gives_no_ids() -> None:
    tokenizer = CharTokenizer.fit("abc")
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.decode([]) == ""
    assert tokenizer.unknown("") == []


def test_unknown_characters_are_left_out_and_reported_once_and_sorted() -> None:
    tokenizer = CharTokenizer.fit("bdf")
    text = f"g\U0001f600bad\ud800egg\u00e9faa{ASTRAL}"
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == "bdf"
    assert tokenizer.unknown(text) == ["a", "e", "g", "\u00e9", "\ud800", "\U0001d11e", "\U0001f600"]


def test_a_text_of_unknown_characters_alone_gives_no_ids() -> None:
    assert CharTokenizer.fit("bdf").encode("ACE\U0001f600").tolist() == []


@pytest.mark.parametrize("text", [text for text in TEXTS if text != SURROGATES], ids=ascii)
def test_token_bytes_add_up_to_the_bytes_of_the_text(text: str) -> None:
    tokenizer = CharTokenizer.fit(text)
    assert tokenizer.token_bytes().shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())


def test_lone_surrogates_have_bytes_too() -> None:
    assert CharTokenizer.fit(SURROGATES).token_bytes().tolist() == [1, 3, 3]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_a_tokenizer_comes_back_from_its_dict_through_json(text: str) -> None:
    tokenizer = CharTokenizer.fit(text)
    again = tokenizers.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.to_dict() == tokenizer.to_dict()
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"unknown tokenizer None; this version knows: char"),
        ({"name": "bpe", "merges": []}, r"unknown tokenizer 'bpe'; this version knows: char"),
        ({"name": ["char"], "chars": "ab"}, r"unknown tokenizer \['char'\]"),
        ({"name": "char"}, r"tokenizer"),
        ({"name": "char", "chars": ["a", "b"]}, r"tokenizer"),
        ({"name": "char", "chars": ""}, r"distinct characters in code point order"),
        ({"name": "char", "chars": "ba"}, r"distinct characters in code point order"),
        ({"name": "char", "chars": "abb"}, r"distinct characters in code point order"),
    ],
)
def test_a_dict_of_no_tokenizer_is_refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenizers.from_dict(state)


def test_a_tokenizer_of_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="needs distinct characters"):
        CharTokenizer.fit("")
