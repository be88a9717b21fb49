"""Converts tokenizers between gptlab and the vocabularies of GGUF files, in which llama.cpp finds the same ids."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from gptlab.data.tokenizers import (
    BYTES,
    CL100K_PATTERN,
    CL100K_SPECIAL,
    END_OF_TEXT,
    GPT2_PATTERN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    JsonTokenizer,
    Tokenizer,
    WordTokenizer,
    errors_as_one_message,
)
from gptlab.formats import gguf_tokenizer_json
from gptlab.formats.gguf_vocabulary import BYTE_LEVEL, CONTROL, NO_MERGE, NORMAL, UNUSED, Vocabulary
from gptlab.formats.huggingface_backend import EOS, PAD, letters_of, merges_of, special_ids
from gptlab.formats.huggingface_tokenizer import named_tokens, our_bpe
from gptlab.system.errors import UserError

log = logging.getLogger(__name__)


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Return a tokenizer as a GGUF file holds it.

    What begins and ends a text is always named: without that, llama.cpp takes token 11 for it. A tokenizer that has
    neither gets one more id, as in every other export (see `special_ids`).

    Raises:
        UserError: llama.cpp cannot express it; the message lists all reasons.
    """
    if isinstance(tokenizer, JsonTokenizer):
        vocabulary = gguf_tokenizer_json.vocabulary_of(tokenizer)
    else:
        vocabulary = _vocabulary_of_ours(tokenizer)
        if vocabulary.pre != "gpt-2":
            log.warning("a text that ends in a new line and other blanks may have one more id in llama.cpp")
    if len(set(vocabulary.tokens)) < len(vocabulary.tokens):
        raise UserError("llama.cpp takes no vocabulary in which two ids are written alike, and this one has such ids")
    return vocabulary


def _vocabulary_of_ours(tokenizer: Tokenizer) -> Vocabulary:
    special = special_ids(tokenizer)
    texts, merges = _spelled(tokenizer)
    names = {i: letters_of(text) for i, text in enumerate(texts)} | {i: name for name, i in special.items()}
    tokens = [names.get(i, f"[UNUSED{i}]") for i in range(max(*names, tokenizer.vocab_size - 1) + 1)]
    types = [NORMAL if i < len(texts) else UNUSED for i in range(len(tokens))]
    for i in special.values():
        types[i] = CONTROL
    named = {kind: i for kind, (_, i) in named_tokens(tokenizer).items() if kind != "unk"}
    as_gpt4 = isinstance(tokenizer, BPETokenizer) and tokenizer.pattern == CL100K_PATTERN
    pre = "llama-bpe" if as_gpt4 else "gpt-2"
    return Vocabulary(BYTE_LEVEL, tokens, types, named, merges or [NO_MERGE], pre=pre)


def _spelled(tokenizer: Tokenizer) -> tuple[list[bytes], list[str]]:
    """Return the bytes of the ids of one of our tokenizers, and the merges that make them of single bytes.

    Raises:
        UserError: see `vocabulary_of`.
    """
    if isinstance(tokenizer, WordTokenizer):
        raise UserError(
            "llama.cpp has no vocabulary of words with an id for the unknown ones, and without spaces in the ids; "
            "models of characters, bytes and BPE can be exported"
        )
    if isinstance(tokenizer, CharTokenizer):
        surrogates = [c for c in tokenizer.chars if 0xD800 <= ord(c) < 0xE000]
        if surrogates:
            raise UserError(f"its characters have lone surrogates, which no text file can hold: {surrogates[:7]}")
        return [c.encode() for c in tokenizer.chars], _merges_of_characters(tokenizer.chars)
    if isinstance(tokenizer, ByteTokenizer):
        return [bytes([b]) for b in range(256)], []
    assert isinstance(tokenizer, BPETokenizer)
    merges = merges_of(tokenizer.merges)
    if tokenizer.pattern == GPT2_PATTERN and len(merges) < len(tokenizer.merges) - len(BYTES):
        raise UserError(
            f"llama.cpp cannot express the {tokenizer.name} tokenizer: no merges make "
            f"{len(tokenizer.merges) - len(BYTES) - len(merges):,} of its tokens, which stand for whole words alone"
        )
    return tokenizer.merges, [" ".join(pair) for pair in merges]


def _merges_of_characters(chars: str) -> list[str]:
    """Return the merges that make each character of its bytes, the first two of them first."""
    merges: dict[str, None] = {}
    for letters in (letters_of(c.encode()) for c in chars):
        merges |= {f"{letters[:i]} {letters[i]}": None for i in range(1, len(letters))}
    return [*merges]


def tokenizer_of(vocabulary: Vocabulary) -> Tokenizer:
    """Return the tokenizer of a vocabulary: one of ours where that has the same ids, otherwise a `JsonTokenizer`.

    Raises:
        UserError: it cannot be read; the message says why.
    """
    for candidate in _candidates(vocabulary):
        ours = dataclasses.replace(_vocabulary_of_ours(candidate), special=vocabulary.special)
        if _without_unused_end(ours) == _without_unused_end(vocabulary):
            return candidate
    with errors_as_one_message("its vocabulary cannot be read; is the file complete?"):
        spec = gguf_tokenizer_json.tokenizer_json_of(vocabulary)
        end = vocabulary.special.get("eos")
        if vocabulary.kind == BYTE_LEVEL and (bpe := our_bpe(spec, end)) is not None:
            return bpe
        tokenizer = JsonTokenizer(json.dumps(spec, ensure_ascii=False), end)
        tokenizer.named = _named_beside(tokenizer, vocabulary)
    return tokenizer


def _without_unused_end(vocabulary: Vocabulary) -> Vocabulary:
    """Return a vocabulary without the unused ids at its end, which an embedding has that is larger than it."""
    used = max((i for i, kind in enumerate(vocabulary.types, 1) if kind != UNUSED), default=0)
    return dataclasses.replace(vocabulary, tokens=vocabulary.tokens[:used], types=vocabulary.types[:used])


def _candidates(vocabulary: Vocabulary) -> list[Tokenizer]:
    """Return our tokenizers that may have this vocabulary, except for GPT-2's form of BPE."""
    pairs = [*zip(vocabulary.tokens, vocabulary.types, strict=True)]
    added = [token for token, kind in pairs if kind == CONTROL and token not in (PAD, EOS, END_OF_TEXT)]
    ended = (END_OF_TEXT, CONTROL) in pairs
    letters = [token for token, kind in pairs if kind == NORMAL]
    if vocabulary.kind != BYTE_LEVEL or not all(BYTES.keys() >= set(token) for token in letters):
        return []
    texts = [bytes(BYTES[letter] for letter in token).decode("utf-8", "replace") for token in letters]
    found: list[Tokenizer] = []
    if all(len(text) == 1 for text in texts) and sorted(set(texts)) == texts:
        found.append(CharTokenizer("".join(texts), ended, added))
    if 254 <= len(letters) <= 256 and all(len(token) == 1 for token in letters):
        found.append(ByteTokenizer(ended, added))
    end = CL100K_SPECIAL[END_OF_TEXT]
    if vocabulary.pre == "llama-bpe" and pairs[end : end + 1] == [(END_OF_TEXT, CONTROL)]:
        ids = {token: i for i, (token, kind) in enumerate(pairs) if kind == CONTROL and token != PAD}
        special = CL100K_SPECIAL | ids  # the others are unused: they are read as text
        ranks = [bytes(BYTES[letter] for letter in token) for token in letters]
        found.append(BPETokenizer("cl100k_base", ranks, CL100K_PATTERN, special))
    return found


def _named_beside(tokenizer: JsonTokenizer, vocabulary: Vocabulary) -> dict[str, str]:
    """Return the named tokens that only the vocabulary tells; an end that pads, too, is none."""
    known = named_tokens(tokenizer)
    ids: dict[str, Any] = {kind: vocabulary.special.get(kind) for kind in ("bos", "pad", "unk")}
    if ids["pad"] == vocabulary.special.get("eos"):
        ids["pad"] = None
    return {
        kind: vocabulary.tokens[i]
        for kind, i in ids.items()
        if i is not None and vocabulary.types[i] != UNUSED and known.get(kind, ("", -1))[1] != i
    }
