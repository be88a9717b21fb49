"""Special tokens are added to any tokenizer without changing an id of any text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
from hypothesis import given
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from gptlab.data import tokenizers
from gptlab.data.tokenizers import (
    CL100K_PATTERN,
    CL100K_SPECIAL,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    JsonTokenizer,
    Tokenizer,
    WordTokenizer,
)
from gptlab.system.errors import UserError
from tests.data.test_tokenizers import AWKWARD, ENGLISH, TEXTS, any_text, seldom

NAMES = ["<|user|>", "<|end|>"]


def llama() -> JsonTokenizer:
    """A tokenizer in the manner of Llama's: a space before each text, <s> that begins it, bytes as fallback."""
    words = ["\u2581", "e", "t", "h", "\u2581t", "\u2581th", "\u2581the"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    vocab |= {word: len(vocab) + i for i, word in enumerate(words)}
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e")]
    backend = hf.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return JsonTokenizer(backend.to_str(), 2)


def unigram() -> JsonTokenizer:
    pieces = [("<unk>", 0.0), *((letter, -2.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz<|>")]
    backend = hf.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return JsonTokenizer(backend.to_str(), None)


def byte_level(*added: AddedToken, gap: int = 0) -> JsonTokenizer:
    """A byte-level tokenizer, whose last id leaves `gap` ids unused."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"the": 256 + gap}
    backend = hf.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_tokens([*added])
    return JsonTokenizer(backend.to_str(), None)


OURS: dict[str, Callable[[], Tokenizer]] = {
    "char": lambda: CharTokenizer.fit([ENGLISH]),
    "char, ended": lambda: CharTokenizer.fit([ENGLISH], end_of_text=True),
    "byte": lambda: ByteTokenizer(),
    "byte, ended": lambda: ByteTokenizer(end_of_text=True),
    "word": lambda: WordTokenizer.fit([ENGLISH], None),
    "word, ended": lambda: WordTokenizer.fit([ENGLISH], 101, end_of_text=True),
    "bpe": lambda: BPETokenizer.fit([ENGLISH], 601),
    "cl100k_base": lambda: BPETokenizer(
        "cl100k_base", BPETokenizer.fit([ENGLISH], 601).merges, CL100K_PATTERN, CL100K_SPECIAL
    ),
}
EVERY = OURS | {
    "llama": llama,
    "unigram": unigram,
    "byte level": byte_level,
    "byte level with a gap": lambda: byte_level(gap=7),
}


@pytest.fixture(scope="module", params=EVERY)
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer, and the same with two more special tokens."""
    tokenizer = EVERY[request.param]()
    return tokenizer, tokenizer.with_special(NAMES)


def test_special_tokens_follow_the_others(pair: tuple[Tokenizer, Tokenizer]) -> None:
    before, after = pair
    assert after.vocab_size == before.vocab_size + 2
    assert {name: after.special_tokens[name] for name in NAMES} == {
        name: before.vocab_size + i for i, name in enumerate(NAMES)
    }
    assert after.tokens == [*before.tokens, b"<|user|>", b"<|end|>"]
    assert after.token_bytes().tolist() == [*before.token_bytes().tolist(), 0, 0]
    assert (after.end_of_text, after.begin, after.leading_space) == (
        before.end_of_text,
        before.begin,
        before.leading_space,
    )


@seldom
@given(text=any_text)
def test_a_text_has_the_same_ids(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    before, after = pair
    for spelled in (text, f"{text}<|user|>{text}"):  # a text that spells a special token is a text
        assert after.encode(spelled).tolist() == before.encode(spelled).tolist()


@pytest.mark.parametrize("text", [*AWKWARD[:8], *TEXTS], ids=lambda text: ascii(text[:13]))
def test_an_awkward_text_has_the_same_ids(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    before, after = pair
    assert after.encode(text).tolist() == before.encode(text).tolist()
    assert after.unknown(text) == before.unknown(text)


def test_names_are_read_as_special_tokens_where_that_is_asked_for(pair: tuple[Tokenizer, Tokenizer]) -> None:
    _, after = pair
    user, end = (after.special_tokens[name] for name in NAMES)
    ids = after.encode_special("<|user|>the<|end|>").tolist()
    assert (ids[0], ids[-1]) == (user, end)
    assert after.decode(ids) == "<|user|>the<|end|>" or after.name in ("word", "json")
    assert "<|user|>" in after.decode(ids)


def test_the_tokenizer_is_kept_as_a_plain_dict(pair: tuple[Tokenizer, Tokenizer]) -> None:
    before, after = pair
    state = json.loads(json.dumps(after.to_dict()))
    again = tokenizers.from_dict(state)
    assert again.to_dict() == after.to_dict()
    assert again.special_tokens == after.special_tokens
    assert again.tokens == after.tokens
    assert "added" not in before.to_dict()  # as earlier versions wrote it


def test_tokens_that_are_there_are_used(pair: tuple[Tokenizer, Tokenizer]) -> None:
    before, after = pair
    assert after.with_special(NAMES[::-1]).to_dict() == after.to_dict()
    more = after.with_special(["<|end|>", "<|begin|>", "<|begin|>"])
    assert more.special_tokens == after.special_tokens | {"<|begin|>": after.vocab_size}
    assert before.with_special([]).to_dict() == before.to_dict()


def test_a_token_of_others_that_is_read_from_texts_no_longer_is() -> None:
    """Added tokens that are not marked as special are read wherever a text spells them."""
    before = byte_level(AddedToken("<|user|>", special=False, normalized=False))
    assert before.encode("<|user|>").tolist() == [257]
    after = before.with_special(NAMES)
    assert {name: after.special_tokens[name] for name in NAMES} == {"<|user|>": 257, "<|end|>": 258}
    assert 257 not in after.encode("<|user|>")
    assert after.encode_special("<|user|>").tolist() == [257]


def test_a_vocabulary_in_which_the_name_is_a_word_is_refused() -> None:
    backend = hf.Tokenizer(models.WordLevel({"<unk>": 0, "<|user|>": 1}, unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    with pytest.raises(UserError, match=r"reads the text <\|user\|> as the special token of that name"):
        JsonTokenizer(backend.to_str(), None).with_special(NAMES)


@pytest.mark.parametrize("added", [["a", "a"], [""], [3], ["<|endoftext|>"], "ab", 7], ids=str)
def test_damaged_names_are_refused(added: Any) -> None:
    with pytest.raises(UserError, match=r"a damaged byte tokenizer|special tokens need distinct names"):
        tokenizers.from_dict({"name": "byte", "end_of_text": True, "added": added})


def test_gpt2_takes_them_after_its_end_of_text(data_dir: Path) -> None:
    tokenizer = BPETokenizer.gpt2(data_dir).with_special(NAMES)
    assert tokenizer.special_tokens == {"<|endoftext|>": 50256, "<|user|>": 50257, "<|end|>": 50258}
    assert tokenizer.encode_special("<|user|> the<|end|>").tolist() == [50257, 262, 50258]
