"""Text survives the way to ids and back, and nothing that is typed breaks a tokenizer."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tiktoken
import tokenizers as huggingface
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from gptlab.data import pieces, tokenizers
from gptlab.data.tokenizers import (
    BYTES,
    CL100K_PATTERN,
    CL100K_SPECIAL,
    END_OF_TEXT,
    GPT2_PATTERN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    TokenizerConfig,
    WordTokenizer,
    learning,
)
from gptlab.data.tokenizers.bpe import SHA256
from gptlab.data.tokenizers.learning import LONGEST_WORD
from gptlab.system.errors import UserError
from tests.conftest import ROOT

ASTRAL = "\U0001f600\U0001d11e"
COMBINING = "e\u0301 \u00e9 \u1100\u1161"  # e with a combining accent, the composed one, two jamos
SURROGATES = "\udc80 \udcff"  # as Python reads bytes that are not UTF-8 from a command line

TEXTS = ["hello, world\r\n", ASTRAL, COMBINING, SURROGATES, "\0\t\x7f\ufeff", "z\u00fc\u4e2d" + ASTRAL, "a"]
ENGLISH = (ROOT / "LICENSE").read_text()
AWKWARD = [
    "",
    " ",
    "I'll say: they've 3 isn't's 1234567",
    "\t\tif x:\r\n\r\n  y  \n \n",
    END_OF_TEXT,
    f"<|endoftext|{END_OF_TEXT}>{END_OF_TEXT}",
    "a<|fim_prefix|>b",
    "\u4e2d\u6587\u3000\u00a0\u2028\x85\x1c\ufeff",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    *("a" * 50_000, " " * 50_000, "\n" * 9_973, "!" * 9_973, "\u0301" * 997),
]

fragments = st.one_of(
    st.text(max_size=7),
    st.sampled_from(["<|endoftext|>", "<|endofprompt|>", "'ll", "\r\n", "\u0301", " ", "   ", "\n\n", *TEXTS[:3]]),
    st.builds(lambda character, times: character * times, st.characters(codec="utf-8"), st.integers(2, 300)),
)
any_text = st.lists(fragments, max_size=9).map("".join)
often = settings(deadline=None, derandomize=True, max_examples=100)
seldom = settings(often, max_examples=30)


@pytest.fixture(scope="module", autouse=True)
def tiktoken_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of tiktoken's for these tests alone, and no network for it."""
    folder = tmp_path_factory.mktemp("tiktoken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        patch.setattr(requests, "get", lambda *_, **__: pytest.fail("tiktoken asks the network"))
        yield folder


@pytest.fixture(scope="module")
def gpt2_files(data_dir: Path) -> Path:
    if not (data_dir / "gpt2" / "vocab.bpe").is_file():
        pytest.skip("GPTLAB_DATA has no gpt2/vocab.bpe")
    return data_dir / "gpt2"


@pytest.fixture(scope="module")
def gpt2(gpt2_files: Path) -> BPETokenizer:
    return BPETokenizer.gpt2(gpt2_files.parent)


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return BPETokenizer.fit([ENGLISH], 601)


@pytest.fixture(scope="module", params=["byte", "bpe", "gpt2"])
def lossless(request: pytest.FixtureRequest) -> Tokenizer:
    return ByteTokenizer() if request.param == "byte" else request.getfixturevalue(request.param)


# Characters.


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_known_text_comes_back_as_it_was(text: str) -> None:
    tokenizer = CharTokenizer.fit([text])
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert len(ids) == len(text)
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.unknown(text) == []


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_ids_are_those_of_nanogpt(text: str) -> None:
    chars = sorted(set(text))
    stoi = {character: i for i, character in enumerate(chars)}
    tokenizer = CharTokenizer.fit([text])
    assert tokenizer.vocab_size == len(chars)
    assert tokenizer.encode(text).tolist() == [stoi[character] for character in text]


@often
@given(st.data(), st.text(st.characters(), min_size=1), st.booleans())
def test_every_text_over_the_alphabet_of_characters_comes_back(data: st.DataObject, known: str, ended: bool) -> None:
    tokenizer = CharTokenizer.fit([known[:3], known[3:]], ended)
    text = data.draw(st.text(st.sampled_from(known)))
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    assert tokenizer.vocab_size == len(set(known)) + ended
    assert tokenizer.end_of_text == (len(set(known)) if ended else None)


def test_no_text_gives_no_ids() -> None:
    tokenizer = CharTokenizer.fit(["abc"])
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.decode([]) == ""
    assert tokenizer.unknown("") == []


def test_unknown_characters_are_left_out_and_reported_once_and_sorted() -> None:
    tokenizer = CharTokenizer.fit(["b", "", "dfb"])
    text = f"g\U0001f600bad\ud800egg\u00e9faa{ASTRAL}"
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == "bdf"
    assert tokenizer.unknown(text) == ["a", "e", "g", "\u00e9", "\ud800", "\U0001d11e", "\U0001f600"]


def test_a_text_of_unknown_characters_alone_gives_no_ids() -> None:
    assert CharTokenizer.fit(["bdf"]).encode("ACE\U0001f600").tolist() == []


@pytest.mark.parametrize("text", [text for text in TEXTS if text != SURROGATES], ids=ascii)
def test_token_bytes_add_up_to_the_bytes_of_the_text(text: str) -> None:
    tokenizer = CharTokenizer.fit([text], end_of_text=True)
    assert tokenizer.token_bytes().shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())


def test_lone_surrogates_have_bytes_too() -> None:
    assert CharTokenizer.fit([SURROGATES]).token_bytes().tolist() == [1, 3, 3]


@pytest.mark.parametrize("texts", [[], [""]])
def test_a_tokenizer_of_no_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(UserError, match="needs distinct characters"):
        CharTokenizer.fit(texts)


def test_the_end_of_a_document_is_a_token_of_its_own() -> None:
    for tokenizer in (CharTokenizer.fit(["<|endoftx>"], True), ByteTokenizer(True), WordTokenizer(["a"], True)):
        last = tokenizer.vocab_size - 1
        assert tokenizer.end_of_text == last
        assert tokenizer.decode([last]) == END_OF_TEXT
        assert tokenizer.token_bytes()[last] == 0
        assert last not in tokenizer.encode(END_OF_TEXT)  # in a text it is text
        assert tokenizer.encode_special(f"a{END_OF_TEXT}{END_OF_TEXT}").tolist()[-2:] == [last, last]


def test_without_such_a_token_its_name_is_text_even_where_it_may_be_special() -> None:
    assert ByteTokenizer().encode_special(END_OF_TEXT).tolist() == list(END_OF_TEXT.encode())
    assert ByteTokenizer().vocab_size == 256


# What holds for every text.


@often
@given(any_text)
def test_every_text_comes_back_and_its_bytes_are_counted(lossless: Tokenizer, text: str) -> None:
    assert_lossless(lossless, text)


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: ascii(text[:13]))
def test_awkward_texts_come_back_and_their_bytes_are_counted(lossless: Tokenizer, text: str) -> None:
    assert_lossless(lossless, text)


def assert_lossless(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.token_bytes().shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert tokenizer.unknown(text) == []
    assert tokenizer.end_of_text not in ids


@often
@given(st.lists(any_text, min_size=1, max_size=4))
def test_special_tokens_are_special_only_where_asked_for(bpe: BPETokenizer, parts: list[str]) -> None:
    parts = [part.replace(END_OF_TEXT, "") for part in parts]
    text = END_OF_TEXT.join(parts)
    ids = bpe.encode_special(text)
    assert ids.dtype == np.int64
    assert np.count_nonzero(ids == bpe.end_of_text) == text.count(END_OF_TEXT)
    assert bpe.decode(ids.tolist()) == text
    assert ids.tolist() == bpe._encoding.encode(text, allowed_special={END_OF_TEXT}, disallowed_special=())


@often
@given(st.text(st.one_of(st.characters(categories=["Cs"]), st.sampled_from("a \U0001f600\ufeff"))))
@example("\ud83d\ude00 \ude00\ud83d")
def test_a_lone_surrogate_becomes_the_replacement_character(text: str) -> None:
    whole = re.sub("[\ud800-\udbff][\udc00-\udfff]", lambda pair: joined(pair[0]), text)
    known = re.sub("[\ud800-\udfff]", "\ufffd", whole)
    for tokenizer in (ByteTokenizer(), BPETokenizer.fit(["ab ab"], 258)):
        assert tokenizer.decode(tokenizer.encode(text).tolist()) == known


def joined(pair: str) -> str:
    return chr(0x10000 + (ord(pair[0]) - 0xD800) * 0x400 + ord(pair[1]) - 0xDC00)


def test_a_character_that_is_cut_becomes_the_replacement_character(lossless: Tokenizer) -> None:
    assert lossless.decode(lossless.encode("a\U0001f600").tolist()[:-1]) == "a\ufffd"


# Words.


def test_words_are_those_of_the_lesson() -> None:
    text = "Tokenization is fun!"
    assert WordTokenizer.pattern.findall(text) == ["Tokenization", "is", "fun", "!"]
    assert len(CharTokenizer.fit([text]).encode(text)) == 20
    assert CharTokenizer.fit([text]).vocab_size == 14


@often
@given(any_text)
@example("'tis (not) \u201cthe\u201d end, e.g. [1, 2]: 50% don't; a_b \u00bd\n\n-- x\u0301")
def test_words_come_back_as_words(text: str) -> None:
    tokenizer = WordTokenizer.fit([text], None)
    ids = tokenizer.encode(text)
    assert 0 not in ids
    assert tokenizer.encode(tokenizer.decode(ids.tolist())).tolist() == ids.tolist()
    assert tokenizer.token_bytes()[ids].sum() == sum(len(word.encode()) for word in re.findall(r"\w+|[^\w\s]", text))


def test_decoded_words_read_like_a_text() -> None:
    text = "He said: wait (a bit), please... why? 50%!"
    tokenizer = WordTokenizer.fit([text], None)
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == "He said: wait ( a bit), please... why? 50%!"


@pytest.mark.parametrize(("ended", "words"), [(False, ["c", "b", "a"]), (True, ["c", "b"])])
def test_a_limit_keeps_the_most_frequent_words(ended: bool, words: list[str]) -> None:
    tokenizer = WordTokenizer.fit(["d a c b", "b c c", " b a c"], 4, ended)  # c 4, b 3, a 2, d 1
    assert tokenizer.words == words
    assert tokenizer.vocab_size == 4


def test_the_alphabet_decides_between_words_of_one_frequency() -> None:
    assert WordTokenizer.fit(["z b a y a z"], 4).words == ["a", "z", "b"]


def test_an_unknown_word_is_token_zero_and_has_no_bytes() -> None:
    tokenizer = WordTokenizer.fit(["the cat , the"], 3)
    assert tokenizer.words == ["the", ","]
    ids = tokenizer.encode("the dog, \u00e9t\u00e9")
    assert ids.tolist() == [1, 0, 2, 0]
    assert tokenizer.decode(ids.tolist()) == "the <|unk|>, <|unk|>"
    assert tokenizer.token_bytes().tolist() == [0, 3, 1]


@pytest.mark.parametrize(
    ("limit", "vocabulary", "needed"), [(3, "a", 1), (5, "a", 2), (6, "ab", 2), (7, "abc", 3), (99, "abcd", 4)]
)
def test_a_vocabulary_is_taken_from_the_beginning_of_a_long_text(
    monkeypatch: pytest.MonkeyPatch, limit: int, vocabulary: str, needed: int
) -> None:
    monkeypatch.setattr("gptlab.data.tokenizers.base.FIT_CHARACTERS", limit)
    left = iter(["a a", "  b", "c", "d"])
    assert sorted(WordTokenizer.fit(left, None).words) == list(vocabulary)
    assert len(list(left)) == 4 - needed  # the rest is not even read


# BPE.


@pytest.mark.parametrize("vocab_size", [257, 258, 512, 1009])
def test_a_learned_vocabulary_has_the_size_asked_for(vocab_size: int) -> None:
    tokenizer = BPETokenizer.fit([ENGLISH], vocab_size)
    assert tokenizer.vocab_size == len(tokenizer.token_bytes()) == vocab_size
    assert tokenizer.end_of_text == vocab_size - 1


@pytest.mark.parametrize(("texts", "merged"), [([""], 0), (["a"], 0), (["ab", " ab"], 2), (["abc cba"], 5)])
def test_a_text_without_more_pairs_gives_a_smaller_vocabulary(texts: list[str], merged: int) -> None:
    tokenizer = BPETokenizer.fit(texts, 1009)
    assert tokenizer.vocab_size == 257 + merged
    assert tokenizer.decode(tokenizer.encode("xyz").tolist()) == "xyz"


@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_learning_is_the_same_each_time_and_needs_no_whole_text(
    bpe: BPETokenizer, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(pieces, "PIECE", piece)
    again = BPETokenizer.fit((text for text, _, _ in pieces.pieces([ENGLISH])), 601)
    assert again.to_dict() == bpe.to_dict()


def test_the_most_frequent_pair_is_merged_first(bpe: BPETokenizer) -> None:
    assert BPETokenizer.fit(["ab ab ab cd"], 259).merges[256:] == [b"ab", b" ab"]
    assert b" the" in bpe.merges[256:290]


def test_learning_ordinary_words_is_not_changed_by_the_limits(data_dir: Path) -> None:
    text = (data_dir / "tinyshakespeare.txt").read_text()
    learner = huggingface.Tokenizer(huggingface.models.BPE())
    learner.pre_tokenizer = huggingface.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = huggingface.pre_tokenizers.ByteLevel.alphabet()
    trainer = huggingface.trainers.BpeTrainer(vocab_size=999, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator([text], trainer)
    vocab = learner.get_vocab()
    merges = [bytes(BYTES[c] for c in token) for token in sorted(vocab, key=vocab.__getitem__)]
    assert BPETokenizer.fit([text], 1000).merges == merges


ENDLESS = {
    "letters": "".join(random.Random(0).choices("ACGT", k=400_000)),
    "digits": "".join(random.Random(0).choices("0123456789", k=100_000)),
    "Chinese": "".join(random.Random(0).choices([chr(0x4E00 + i) for i in range(200)], k=50_000)),
    "base64": base64.b64encode(random.Random(0).randbytes(100_000)).decode(),
    "marks": "-" * 100_000,
    "white space": " \n" * 20_000 + " " * 60_000,
    "json": json.dumps([{"id": i, "word": "naïve" * (i % 3)} for i in range(4_000)], separators=(",", ":")),
    "mixed": ENGLISH + "".join(random.Random(0).choices("ACGT", k=50_000)) + ENGLISH,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_bpe_is_learned_from_text_without_spaces(name: str) -> None:
    text = ENDLESS[name]  # as one word, 400,000 letters would take a minute and a half, and 4.6 million hours
    tokenizer = BPETokenizer.fit([text], 400)
    assert tokenizer.vocab_size == 400 or name in ("marks", "white space")
    assert max(map(len, tokenizer.merges)) <= LONGEST_WORD
    ids = tokenizer.encode(text).tolist()
    assert len(ids) < len(text.encode())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ENDLESS)
def test_only_words_too_long_to_learn_from_are_cut(name: str) -> None:
    text = "Zoë's " * 99 + ENDLESS[name] + "x" * 1024 + " é" + "é" * 511 + " " + "é" * 513
    pieces = [*learning.cut_words([text])]
    assert "".join(pieces) == text
    words = huggingface.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    assert max(len(word) for piece in pieces for word, _ in words(piece)) <= LONGEST_WORD + 1  # a space before it
    uncut = [word for word, _ in words(text) if len(word) < LONGEST_WORD]
    assert not Counter(uncut) - Counter(word for piece in pieces for word, _ in words(piece))
    assert [*learning.cut_words(["x" * 1024, "a b " * 999])] == ["x" * 1024, "a b " * 999]


def test_new_words_are_found_soon_after_text_that_repeats(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(learning, "DISTINCT_BYTES", 10_000)
    plain = "the cat sat. " * 100
    never = [f"{i:09}" * 100 + " " for i in range(99)]
    read = [*learning.limit_words([plain] * 99 + never)]
    assert 99 < len(read) < 99 + 99
    assert sum(map(len, read[99:])) < 10_000 + (learning.PASSED_BY + 1) * len(plain)
    assert "words hardly repeat" in caplog.text


def test_learning_ends_where_the_words_never_repeat_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert BPETokenizer.fit(["the cat. " * 1000] * 9, 300).merges == BPETokenizer.fit(["the cat. " * 1000], 300).merges
    assert caplog.messages == []
    monkeypatch.setattr(learning, "DISTINCT_BYTES", 10_000)
    monkeypatch.setattr(learning, "SLOW_CHARACTERS", 20_000)
    parts = [ENDLESS["letters"][i : i + 9_000] for i in range(0, 90_000, 9_000)]
    assert BPETokenizer.fit(parts, 300).merges == BPETokenizer.fit(parts[:2], 300).merges
    assert caplog.messages == ["tokenizer=bpe: learns from the first 18,000 characters only: words hardly repeat"] * 2
    caplog.clear()
    BPETokenizer.fit(["the cat. " * 1000] * 9, 300)
    assert caplog.messages == ["tokenizer=bpe: learning its tokens from the text, once; this may take a minute or two"]


def test_every_token_is_made_of_two_earlier_ones(bpe: BPETokenizer) -> None:
    assert sorted(bpe.merges[:256]) == [bytes([i]) for i in range(256)]
    for i, token in enumerate(bpe.merges[256:], 256):
        earlier = set(bpe.merges[:i])
        assert token not in earlier
        assert any(token[:cut] in earlier and token[cut:] in earlier for cut in range(1, len(token)))


def test_learned_tokens_need_less_than_half_as_many_as_bytes(bpe: BPETokenizer) -> None:
    assert len(bpe.encode(ENGLISH)) < 0.4 * len(ENGLISH.encode())


def hugging_face(text: str, vocab_size: int) -> huggingface.Tokenizer:
    """Hugging Face's own byte-level BPE, with GPT-2's pattern, trained and encoding by itself."""
    tokenizer = huggingface.Tokenizer(huggingface.models.BPE())
    tokenizer.pre_tokenizer = huggingface.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = huggingface.pre_tokenizers.ByteLevel.alphabet()
    trainer = huggingface.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def test_learned_ids_are_those_of_hugging_face(bpe: BPETokenizer) -> None:
    theirs = hugging_face(ENGLISH, 600)
    for text in (ENGLISH, (ROOT / "README.md").read_text(), *AWKWARD):
        assert bpe.encode(text).tolist() == theirs.encode(text).ids


@seldom
@given(st.one_of(st.text(st.sampled_from("ab c\n")), any_text), st.integers(257, 300))
def test_learned_ids_are_those_of_hugging_face_on_any_text(text: str, vocab_size: int) -> None:
    tokenizer = BPETokenizer.fit([text], vocab_size)
    assert tokenizer.encode(text).tolist() == hugging_face(text, vocab_size - 1).encode(text).ids


# OpenAI's vocabularies.

BLOBS = "https://openaipublic.blob.core.windows.net"


@pytest.fixture(scope="module")
def reference(gpt2_files: Path, tiktoken_cache: Path) -> tiktoken.Encoding:
    """tiktoken's own GPT-2: what it downloads lies in its cache."""
    for name in ("vocab.bpe", "encoder.json"):
        address = hashlib.sha1(f"{BLOBS}/gpt-2/encodings/main/{name}".encode()).hexdigest()
        shutil.copy(gpt2_files / name, tiktoken_cache / address)
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def transformer(gpt2_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' GPT-2 tokenizer from the same files."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("transformers")
    shutil.copy(gpt2_files / "encoder.json", folder / "vocab.json")
    shutil.copy(gpt2_files / "vocab.bpe", folder / "merges.txt")
    return transformers.GPT2TokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Every effort moves you", [6109, 3626, 6100, 345]),
        ("Your journey", [7120, 7002]),
        ("First Citizen:\n", [5962, 22307, 25, 198]),
    ],
)
def test_gpt2_has_the_lessons_ids(gpt2: BPETokenizer, text: str, ids: list[int]) -> None:
    assert gpt2.encode(text).tolist() == ids
    assert gpt2.encode_special(text + END_OF_TEXT).tolist() == [*ids, 50256]
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: ascii(text[:13]))
def test_gpt2_is_tiktokens_and_transformers(
    gpt2: BPETokenizer, reference: tiktoken.Encoding, transformer: Any, text: str
) -> None:
    assert_same_gpt2(gpt2, reference, transformer, text)


@often
@given(text=any_text)
def test_gpt2_is_tiktokens_and_transformers_on_any_text(
    gpt2: BPETokenizer, reference: tiktoken.Encoding, transformer: Any, text: str
) -> None:
    assert_same_gpt2(gpt2, reference, transformer, text)


def test_gpt2_is_tiktokens_and_transformers_on_tiny_shakespeare(
    gpt2: BPETokenizer, reference: tiktoken.Encoding, transformer: Any, data_dir: Path
) -> None:
    text = (data_dir / "tinyshakespeare.txt").read_text()
    assert len(gpt2.encode(text)) == 338_025
    assert_same_gpt2(gpt2, reference, transformer, text)


def assert_same_gpt2(gpt2: BPETokenizer, reference: tiktoken.Encoding, transformer: Any, text: str) -> None:
    ids = gpt2.encode(text).tolist()
    assert ids == reference.encode_ordinary(text)
    assert ids == transformer(text, split_special_tokens=True, verbose=False)["input_ids"]
    if END_OF_TEXT in text:
        special = gpt2.encode_special(text).tolist()
        assert special == reference.encode(text, allowed_special="all")
        assert special == transformer(text, verbose=False)["input_ids"]


def test_gpt2_comes_through_tiktoken_where_its_files_do_not_lie(
    gpt2: BPETokenizer, reference: tiktoken.Encoding, tmp_path: Path
) -> None:
    assert BPETokenizer.gpt2(tmp_path).to_dict() == gpt2.to_dict()


def test_patterns_special_tokens_and_hashes_are_those_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda **arguments: arguments)
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda address, expected_hash: expected_hash)
    gpt2, cl100k = openai_public.gpt2(), openai_public.cl100k_base()
    assert (gpt2["pat_str"], gpt2["special_tokens"]) == (GPT2_PATTERN, {END_OF_TEXT: 50256})
    assert (cl100k["pat_str"], cl100k["special_tokens"]) == (CL100K_PATTERN, CL100K_SPECIAL)
    assert gpt2["mergeable_ranks"]["vocab_bpe_hash"] == SHA256["gpt2/vocab.bpe"]
    assert gpt2["mergeable_ranks"]["encoder_json_hash"] == SHA256["gpt2/encoder.json"]
    assert cl100k["mergeable_ranks"] == SHA256["cl100k_base.tiktoken"]


@pytest.fixture
def small_cl100k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a vocabulary in cl100k_base's form: the bytes, some beginnings and numbers, and a blank line."""
    tokens = [*(bytes([i]) for i in range(256)), b"he", b"ll", b"hell", b" hell", b"12", b"34", b"1234"]
    lines = "".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens))
    (tmp_path / "cl100k_base.tiktoken").write_text(lines + "\n")
    monkeypatch.setitem(SHA256, "cl100k_base.tiktoken", hashlib.sha256((lines + "\n").encode()).hexdigest())
    return tmp_path


def test_a_vocabulary_of_gpt4s_form_is_read(small_cl100k: Path) -> None:
    tokenizer = tokenizers.build(TokenizerConfig("cl100k_base", None), [], True, small_cl100k)
    assert tokenizer.encode("hell hello").tolist() == [258, 259, 111]
    assert tokenizer.encode("1234").tolist() == [260, 51, 52]  # three digits at most
    assert tokenizer.encode_special(f"he{END_OF_TEXT}").tolist() == [256, 100257]
    assert tokenizer.encode_special("<|fim_prefix|>").max() < 256
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (100_277, 100_257)
    assert tokenizer.token_bytes()[[97, 258, 100_000, 100_257]].tolist() == [1, 4, 0, 0]
    assert_lossless(tokenizer, "1234567 \u4e2d\u6587!!!\n\n" + END_OF_TEXT)
    again = tokenizers.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.to_dict() == tokenizer.to_dict()
    assert again.encode("hell hello 1234").tolist() == tokenizer.encode("hell hello 1234").tolist()


def test_gpt4_has_the_lessons_ids(data_dir: Path) -> None:
    if not (data_dir / "cl100k_base.tiktoken").is_file():
        pytest.skip("GPTLAB_DATA has no cl100k_base.tiktoken")
    tokenizer = BPETokenizer.cl100k_base(data_dir)
    assert tokenizer.encode("Tokenization is fun!").tolist() == [3404, 2065, 374, 2523, 0]
    assert tokenizer.vocab_size == 100_277
    for text in AWKWARD:
        assert_lossless(tokenizer, text)


@pytest.mark.parametrize(
    ("name", "files"),
    [("gpt2", "gpt2/vocab.bpe and gpt2/encoder.json"), ("cl100k_base", "cl100k_base.tiktoken")],
)
def test_without_its_files_and_a_network_the_ways_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: str
) -> None:
    def get_encoding(name: str) -> None:
        raise requests.exceptions.ConnectionError("Name or service not known")

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    with pytest.raises(UserError) as refused:
        tokenizers.build(TokenizerConfig(name, None), [], True, tmp_path)
    message = str(refused.value)
    assert f"tokenizer={name}" in message
    assert "Name or service not known" in message
    assert f"Put {files} there" in message
    assert str(tmp_path) in message
    assert "or use tokenizer=bpe" in message


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base"])
def test_a_vocabulary_that_is_another_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "gpt2").mkdir()
    for file in SHA256:
        (tmp_path / file).write_text("<html>Please log in to the hotel's network</html>")
    with pytest.raises(UserError, match=rf"tokenizer={name}: .*data.dir=\S+ .*sha256 differs") as refused:
        tokenizers.build(TokenizerConfig(name, None), [], True, tmp_path)
    assert str(tmp_path) in str(refused.value)


# Settings and dicts.


@pytest.mark.parametrize(
    ("name", "vocab_size", "message"),
    [
        ("bpee", None, r"tokenizer.name=bpee: no such tokenizer; did you mean bpe\?"),
        ("sentences", 7, r"tokenizer.name=sentences: no such tokenizer; there are bpe, byte, char, cl100k_base, gpt2"),
        ("bpe", None, r"tokenizer.vocab_size: is missing; tokenizer=bpe needs one, e.g. 2048"),
        ("bpe", 256, r"tokenizer.vocab_size=256: must be at least 257 \(256 bytes and the end of text\)"),
        ("word", 2, r"tokenizer.vocab_size=2: must be at least 3 \(a word and the special tokens\)"),
        ("word", -1, r"tokenizer.vocab_size=-1: must be at least 3"),
        *((name, 512, rf"tokenizer={name} has its own; leave it out") for name in ("char", "byte", "gpt2")),
    ],
)
def test_settings_that_no_tokenizer_can_have_are_refused(name: str, vocab_size: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokenizerConfig(name, vocab_size)


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(
    ("name", "vocab_size", "size"),
    [
        ("char", None, len(set(ENGLISH))),
        ("byte", None, 256),
        ("word", None, 1 + len(set(re.findall(r"\w+|[^\w\s]", ENGLISH)))),
        ("word", 31, 31),
        ("bpe", 263, 263),
    ],
)
def test_a_tokenizer_is_built_as_asked_for(name: str, vocab_size: int | None, size: int, ended: bool) -> None:
    tokenizer = tokenizers.build(TokenizerConfig(name, vocab_size), iter([ENGLISH]), ended, ROOT)
    assert tokenizer.name == name
    assert tokenizer.vocab_size == (size if vocab_size else size + ended)
    assert (tokenizer.end_of_text is not None) == (ended or name == "bpe")


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("name", ["char", "byte", "word", "bpe", "gpt2"])
def test_a_tokenizer_comes_back_from_its_dict_through_json(
    request: pytest.FixtureRequest, name: str, ended: bool
) -> None:
    text = "".join(TEXTS) + ENGLISH
    made = {"char": lambda: CharTokenizer.fit([text], ended), "byte": lambda: ByteTokenizer(ended)}
    made |= {"word": lambda: WordTokenizer.fit([text], 97, ended)}
    tokenizer = made[name]() if name in made else request.getfixturevalue(name)
    again = tokenizers.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert type(again) is type(tokenizer)
    assert again.to_dict() == tokenizer.to_dict()
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert again.encode_special(f"a{END_OF_TEXT}").tolist() == tokenizer.encode_special(f"a{END_OF_TEXT}").tolist()
    assert again.token_bytes().tolist() == tokenizer.token_bytes().tolist()


BPE = {"name": "bpe", "merges": "", "pattern": GPT2_PATTERN, "special": {END_OF_TEXT: 256}}
BPE["merges"] = " ".join(base64.b64encode(bytes([i])).decode() for i in range(256))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"unknown tokenizer None; this version knows: char, byte, word, bpe, gpt2, cl100k_base, json"),
        ({"name": "wordpiece", "words": []}, r"unknown tokenizer 'wordpiece'; this version knows: char"),
        ({"name": ["char"], "chars": "ab"}, r"unknown tokenizer \['char'\]"),
        ({"name": "char"}, r"a damaged char tokenizer"),
        ({"name": "char", "chars": 7, "end_of_text": False}, r"a damaged char tokenizer"),
        (
            {"name": "char", "chars": "ab"},
            r"a damaged char tokenizer: the file .* is broken \(KeyError: 'end",
        ),
        ({"name": "char", "chars": "", "end_of_text": False}, r"distinct characters in code point order"),
        ({"name": "char", "chars": "ba", "end_of_text": False}, r"distinct characters in code point order"),
        ({"name": "char", "chars": "abb", "end_of_text": True}, r"distinct characters in code point order"),
        ({"name": "byte"}, r"a damaged byte tokenizer"),
        ({"name": "word", "end_of_text": False}, r"a damaged word tokenizer"),
        ({"name": "word", "words": None, "end_of_text": False}, r"a damaged word tokenizer"),
        ({"name": "gpt2"}, r"a damaged gpt2 tokenizer"),
        ({"name": "json", "content": "{}"}, r"a damaged json tokenizer"),
        ({"name": "json", "content": "{", "end_of_text": None}, r"a damaged json tokenizer"),
        ({"name": "json", "content": None, "end_of_text": None}, r"a damaged json tokenizer"),
        ({**BPE, "merges": 7}, r"a damaged bpe tokenizer"),
        ({**BPE, "merges": BPE["merges"] + " YQ"}, r"a damaged bpe tokenizer"),
        ({**BPE, "pattern": "("}, r"a damaged bpe tokenizer"),
        ({**BPE, "pattern": None}, r"a damaged bpe tokenizer"),
        ({**BPE, "special": {}}, r"a damaged bpe tokenizer"),
        ({**BPE, "special": {"<|end|>": 256}}, r"a damaged bpe tokenizer"),
        ({**BPE, "special": None}, r"a damaged bpe tokenizer"),
        ({**BPE, "merges": ""}, r"a damaged bpe tokenizer"),
        ({**BPE, "merges": BPE["merges"][:400]}, r"a damaged bpe tokenizer"),  # tiktoken would panic at the first text
    ],
)
def test_a_dict_of_no_tokenizer_is_refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenizers.from_dict(state)
