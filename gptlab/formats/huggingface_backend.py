"""Our tokenizers as tokenizers of Hugging Face's library, with the special tokens that other tools need."""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gptlab.data.tokenizers import (
    BYTES,
    CL100K_PATTERN,
    END_OF_TEXT,
    GPT2_PATTERN,
    UNKNOWN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
)
from gptlab.system.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

PAD = "<|pad|>"
EOS = "<|eos|>"  # the end of a text for other tools, where ours has none: "<|endoftext|>" stays text there
LETTERS = {byte: letter for letter, byte in BYTES.items()}
NEVER_IN_UTF8 = (0xFF, 0xFE, 0xFD, 0xFC, 0xFB, 0xFA, 0xF9, 0xF8, 0xF7, 0xF6, 0xF5, 0xC1, 0xC0)
NANOCHAT_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|"""
    r"""\s*[\r\n]|\s+(?!\S)|\s+"""
)
# In the dialect of Oniguruma, which `tokenizers` uses: there $ matches at any line's end, and {1,3}+ is not possessive.
ONIGURUMA = {
    CL100K_PATTERN: CL100K_PATTERN.replace("$", r"\z").replace("{1,3}+", "{1,3}"),
    NANOCHAT_PATTERN: NANOCHAT_PATTERN,
}


def special_ids(tokenizer: Tokenizer, vocab_size: int | None = None) -> dict[str, int]:
    """Return the special tokens, with their ids, with which one of our tokenizers is exported.

    They are a padding token, the end of text, and those that were added. Other tools need the first two, and a padding
    token that is not the end. What a tokenizer lacks takes, in a vocabulary of bytes, the places of bytes that no UTF-8
    has: their ids have a row in every model and are never used. Elsewhere the ids follow the tokenizer's own, and the
    exported model needs more rows.

    Args:
        tokenizer: one of our own tokenizers.
        vocab_size: leave out tokens for which a model of so many ids has no row; None: leave out none.
    """
    spare = _spare_ids(tokenizer)
    end = {EOS: spare[1]} if tokenizer.end_of_text is None else {END_OF_TEXT: tokenizer.end_of_text}
    special = {PAD: spare[0]} | end | tokenizer.added
    return {name: i for name, i in special.items() if vocab_size is None or i < vocab_size}


def _spare_ids(tokenizer: Tokenizer) -> list[int]:
    """Return ids that stand for no text, at least two."""
    ids = [i for i, token in enumerate(tokenizer.tokens) if not token]
    if isinstance(tokenizer, (ByteTokenizer, BPETokenizer)):
        merged = {byte for token in tokenizer.tokens if len(token) > 1 for byte in token}
        ids += [tokenizer.tokens.index(bytes([byte])) for byte in NEVER_IN_UTF8 if byte not in merged]
    return ids if len(ids) > 1 else [tokenizer.vocab_size, tokenizer.vocab_size + 1]


def build_backend(tokenizer: Tokenizer, special: dict[str, int]) -> Backend:
    """Return one of our own tokenizers as a tokenizer of Hugging Face's library.

    BPE without merges and without an unknown token drops unknown characters, as our `CharTokenizer` does.

    Args:
        tokenizer: the tokenizer.
        special: the special tokens that it has there, by name; see `special_ids`.

    Raises:
        UserError: the library cannot express the vocabulary or the pattern.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    if isinstance(tokenizer, CharTokenizer):
        surrogates = [c for c in tokenizer.chars if 0xD800 <= ord(c) < 0xE000]
        if surrogates:
            raise UserError(f"its characters have lone surrogates, which no text file can hold: {surrogates[:7]}")
        backend = Backend(models.BPE({c: i for i, c in enumerate(tokenizer.chars)} | special, []))
        backend.decoder = decoders.Fuse()
    elif isinstance(tokenizer, WordTokenizer):
        backend = _words(tokenizer, special)
    elif isinstance(tokenizer, ByteTokenizer):
        backend = byte_level(_named({b: LETTERS[b] for b in range(256)}, special), [], None)
    else:
        assert isinstance(tokenizer, BPETokenizer)
        vocab = _named({i: letters_of(token) for i, token in enumerate(tokenizer.merges)}, tokenizer.special | special)
        backend = byte_level(vocab, merges_of(tokenizer.merges), tokenizer.pattern)
    backend.add_special_tokens(sorted(special, key=special.__getitem__))
    return backend


def _named(tokens: dict[int, str], special: dict[str, int]) -> dict[str, int]:
    """Return the vocabulary of these tokens, in which special tokens may take the place of others."""
    return {name: i for i, name in (tokens | {i: name for name, i in special.items()}).items()}


def byte_level(vocab: dict[str, int], merges: list[Any], pattern: str | None) -> Backend:
    """Build a byte-level BPE tokenizer, which cuts text by `pattern` (None: not at all) and merges bytes."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    # As in tiktoken, a piece that is a token needs no merges; an uncut text could be the name of a special token.
    backend = Backend(models.BPE(vocab, merges, ignore_merges=pattern is not None))
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == GPT2_PATTERN)
    if pattern in (None, GPT2_PATTERN):
        backend.pre_tokenizer = letters
    elif pattern in ONIGURUMA:
        cut = pre_tokenizers.Split(Regex(ONIGURUMA[pattern]), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    else:
        raise UserError(f"its pattern is neither GPT-2's nor GPT-4's: {pattern}")
    backend.decoder = decoders.ByteLevel()
    return backend


def with_begin(content: str, token: str, i: int) -> str:
    """Return the content of a tokenizer.json that puts a token before each text.

    Args:
        content: the content of one that puts nothing around it.
        token: the token's name.
        i: its id.
    """
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    pair = [first, text, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {token: {"id": token, "ids": [i], "tokens": [token]}}
    step = {"type": "TemplateProcessing", "single": [first, text], "pair": pair, "special_tokens": tokens}
    return json.dumps(json.loads(content) | {"post_processor": step}, ensure_ascii=False)


def _words(tokenizer: WordTokenizer, special: dict[str, int]) -> Backend:
    r"""Build a word tokenizer: each word has a space before it, dropped at the start and before marks by decoding.

    Python and Oniguruma define \w and \s differently, so the pattern lists the characters as this Python has them.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    words, spaces = _character_classes()
    pattern = f"[{words}]+|[^{words}{spaces}]"
    closing = "".join(f"\\x{{{ord(mark):X}}}" for mark in sorted(tokenizer.closing))
    vocab = {f" {word}": i for i, word in enumerate(tokenizer.words, 1)}
    backend = Backend(models.WordLevel({UNKNOWN: 0} | vocab | special, unk_token=UNKNOWN))
    cut = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    spaced = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="always", split=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, spaced])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(rf"\A (?=[{closing}]\z)"), ""),
            decoders.Replace(UNKNOWN, f" {UNKNOWN}"),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


@cache
def _character_classes() -> tuple[str, str]:
    r"""Return the insides of character classes with all of Python's \w and \s."""
    every = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    return _ranges(re.findall(r"\w", every)), _ranges(re.findall(r"\s", every))


def _ranges(characters: list[str]) -> str:
    r"""Return the inside of a character class, in code point order: \x{41}-\x{5A}..."""
    points = [ord(c) for c in characters]
    runs = [[point for _, point in run] for _, run in groupby(enumerate(points), lambda pair: pair[1] - pair[0])]
    return "".join(f"\\x{{{run[0]:X}}}-\\x{{{run[-1]:X}}}" for run in runs)


def merges_of(ranks: list[bytes]) -> list[tuple[str, str]]:
    """Return the list of merges for tokens in the order of their ranks.

    A token's pair is what remains of its bytes after all merges of lower rank. A token of which more than two parts
    remain has no pair: it is only produced where it is a whole piece of text.
    """
    rank = {token: i for i, token in enumerate(ranks)}
    pairs = (_last_pair(token, rank) for token in ranks)
    return [(letters_of(pair[0]), letters_of(pair[1])) for pair in pairs if pair is not None]


def _last_pair(token: bytes, rank: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """Return the two parts of a token that remain after all merges of lower rank; None: there are more, or one."""
    own, size = rank[token], len(token)
    ends, before = (
        list(range(1, size + 1)),
        list(range(-1, size)),
    )  # of the part that begins at a byte; 0: there is none
    candidates = [(r, i, i + 2) for i in range(size - 1) if (r := rank.get(token[i : i + 2], own)) < own]
    heapify(candidates)
    left = size
    while left > 2 and candidates:
        _, start, end = heappop(candidates)
        middle = ends[start]
        if not middle or middle == size or ends[middle] != end:
            continue  # another merge has come before
        ends[start], ends[middle] = end, 0
        before[end] = start
        left -= 1
        neighbours = ([(before[start], end)] if start else []) + ([(start, ends[end])] if end < size else [])
        for first, last in neighbours:
            if (r := rank.get(token[first:last], own)) < own:
                heappush(candidates, (r, first, last))
    return (token[: ends[0]], token[ends[0] :]) if left == 2 else None


def letters_of(token: bytes) -> str:
    """Return a token's bytes as the letters that GPT-2's vocabulary has for them."""
    return "".join(LETTERS[b] for b in token)
