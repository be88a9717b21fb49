"""llama2.c's tokenizer.bin: a text and a score for each id, which run.c merges by their scores, as SentencePiece does.

run.c knows some ids by number: 0 is unknown, 1 begins and ends texts, 2 ends them in Llama 2, and from 3 on there are
the 256 bytes. It puts 1 and a space before each prompt.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from gptlab.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    JsonTokenizer,
    Tokenizer,
    errors_as_one_message,
)
from gptlab.formats import added_tokens
from gptlab.formats.huggingface_backend import with_begin
from gptlab.formats.huggingface_tokenizer import named_tokens
from gptlab.formats.reading import naming_path
from gptlab.system.errors import UserError
from gptlab.system.files import read_bytes

FILE = "tokenizer.bin"
UNKNOWN, BEGIN, END, FIRST_BYTE = 0, 1, 2, 3
FIRST_OTHER = FIRST_BYTE + 256
NAMES = (b"<unk>", b"\n<s>\n", b"\n</s>\n")
NEVER_MERGED = -1e11  # a score below the lowest that run.c takes
MAX_BYTES = 1 << 24  # of a tokenizer.bin; Llama 2's has half a megabyte
LONGEST = 512  # bytes of a token
ENTRY = struct.Struct("<fI")  # score, number of bytes


@dataclass(frozen=True)
class Layout:
    """A tokenizer in the order of run.c."""

    sources: list[int | None]
    """Our id for each of theirs; None: we have none."""
    texts: list[bytes]
    scores: list[float]

    def content(self) -> bytes:
        """Return the content of tokenizer.bin."""
        parts = [struct.pack("<I", max(map(len, self.texts)))]
        for text, score in zip(self.texts, self.scores, strict=True):
            parts += [ENTRY.pack(score, len(text)), text]
        return b"".join(parts)


def layout_of(tokenizer: Tokenizer) -> Layout:
    """Return one of our tokenizers in the order of run.c.

    Raises:
        UserError: run.c could not tell the ids of a text.
    """
    if isinstance(tokenizer, JsonTokenizer):
        return _of_llama(tokenizer)
    if not isinstance(tokenizer, (ByteTokenizer, BPETokenizer, CharTokenizer)):
        raise UserError(
            f"run.c merges characters, and the tokenizer {tokenizer.name} has whole words: train with tokenizer=char, "
            f"byte or bpe"
        )
    if isinstance(tokenizer, CharTokenizer) and any(0xD800 <= ord(c) < 0xE000 for c in tokenizer.chars):
        raise UserError("its characters have lone surrogates, which are no UTF-8")
    sources: list[int | None] = [None] * FIRST_OTHER
    texts = [*NAMES, *(_byte_name(b) for b in range(256))]
    texts[FIRST_BYTE + ord(" ")] = b" "  # which run.c looks for, whether there are spaces or not
    scores = [0.0] * FIRST_OTHER
    special = tokenizer.special_tokens.values()
    for i, token in enumerate(tokenizer.tokens):
        if i == tokenizer.end_of_text:
            sources[BEGIN] = i
        elif len(token) == 1 and i not in special:
            sources[FIRST_BYTE + token[0]] = i
            texts[FIRST_BYTE + token[0]] = token if 0 < token[0] < 128 else _byte_name(token[0])
        elif token:
            sources.append(i)
            texts.append(token)
            is_merge = isinstance(tokenizer, BPETokenizer) and i not in special
            scores.append(-float(i) if is_merge else NEVER_MERGED)
    if any(b"\0" in text for text in texts):
        raise UserError("one of its tokens has the byte 0, with which a text ends in run.c")
    return Layout(sources, texts, scores)


def _of_llama(tokenizer: JsonTokenizer) -> Layout:
    """Return a tokenizer like Llama 2's: BPE of characters, bytes for unknown ones, a space before each text."""
    spec = json.loads(tokenizer.content)
    model, cut, ids = spec["model"], spec.get("pre_tokenizer") or {}, added_tokens.token_ids(spec)
    named = {kind: i for kind, (_, i) in named_tokens(tokenizer).items()}
    found = (ids.get(_byte_name(b).decode(), ids.get(chr(b)) if b < 128 else None) for b in range(256))
    bytes_of = [i for i in found if i is not None]
    is_like = model.get("type") == "BPE" and model.get("byte_fallback") and cut.get("type") in (None, "Metaspace")
    if not is_like or not tokenizer.leading_space or len(bytes_of) < 256:
        raise UserError(
            "run.c merges characters, with a space before each text and bytes for what it does not know, and this "
            "tokenizer.json describes another way: only tokenizers like Llama 2's leave as tokenizer.bin"
        )
    first = [named.get("unk"), named.get("bos"), named.get("eos"), *bytes_of]
    if first[END] == first[BEGIN]:
        first[END] = ids.get("</s>")
    names = {i: name for name, i in ids.items()}
    rest = [i for i in sorted(names) if i not in {*first}]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    added = {token["content"] for token in spec.get("added_tokens") or []}
    texts, scores = [*NAMES, *(names[i].encode() for i in bytes_of)], [0.0] * FIRST_OTHER
    for i in rest:
        name = names[i]
        texts.append((name if name in added else name.replace("\u2581", " ")).encode())
        scores.append(-float(ranks[name]) if name in ranks else NEVER_MERGED)
    if b" " not in texts:
        texts[FIRST_BYTE + ord(" ")] = b" "
    return Layout([*first, *rest], texts, scores)


def _byte_name(b: int) -> bytes:
    return b"<0x%02X>" % b


def read_tokenizer(file: Path, vocab_size: int) -> JsonTokenizer:
    """Read a tokenizer.bin: it has the ids that run.c gives a text, its 1 and its space before it among them.

    Args:
        file: the file.
        vocab_size: the number of ids of its model.

    Raises:
        UserError: it is broken, or it has other tokens than run.c expects.
    """
    with naming_path(file), errors_as_one_message("it cannot be read as a tokenizer"):
        texts, scores = _entries(read_bytes(file, MAX_BYTES), vocab_size)
        if len(texts) < FIRST_OTHER:
            raise UserError(f"it has {len(texts)} tokens, without all of <unk>, <s>, </s> and the 256 bytes")
        return JsonTokenizer(_json_of(texts, scores), BEGIN)


def _entries(content: bytes, vocab_size: int) -> tuple[list[str], list[float]]:
    """Return the texts and the scores in the content of a tokenizer.bin.

    Raises:
        UserError: they do not fill it, or there are more than `vocab_size`, or one is no text.
        struct.error: the last one is cut off.
    """
    texts, scores, place = list[str](), list[float](), 4
    while place < len(content):
        if len(texts) == vocab_size:
            raise UserError(f"it has more than the model's {vocab_size:,} tokens: they do not belong together")
        score, size = ENTRY.unpack_from(content, place)
        place += ENTRY.size
        if size > LONGEST or place + size > len(content):
            raise UserError(f"token {len(texts)} claims {size:,} bytes")
        try:
            texts.append(content[place : place + size].decode())
        except UnicodeDecodeError:
            raise UserError(f"token {len(texts)} is a part of a character, which gptlab cannot read") from None
        scores.append(score)
        place += size
    return texts, scores


def _json_of(texts: list[str], scores: list[float]) -> str:
    """Return the content of the tokenizer.json that gives a text the ids that run.c does.

    Raises:
        UserError: one of the bytes is missing, or a token is there twice.
    """
    names = ["<unk>", "<s>", "</s>", *texts[FIRST_BYTE:]]
    for b in range(256):
        if names[FIRST_BYTE + b] not in (_byte_name(b).decode(), chr(b) if b < 128 else None):
            raise UserError(
                f"token {FIRST_BYTE + b} is not {_byte_name(b).decode()}, but {names[FIRST_BYTE + b]!r:.99}"
            )
    vocab = {name: i for i, name in enumerate(names)}
    twice = next((i for i, name in enumerate(names) if vocab[name] != i), None)
    if twice is not None:
        raise UserError(f"tokens {twice} and {vocab[names[twice]]} are both {names[twice]!r:.99}")
    merged = sorted(range(FIRST_OTHER, len(names)), key=lambda i: (-scores[i], i))
    splits = ((names[i][:k], names[i][k:]) for i in merged for k in range(1, len(names[i])) if scores[i] > -1e10)
    merges = [list(pair) for pair in splits if pair[0] in vocab and pair[1] in vocab]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": names[i], **flags} for i in (UNKNOWN, BEGIN, END)],
        "normalizer": {"type": "Prepend", "prepend": " "},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return with_begin(json.dumps(spec, ensure_ascii=False), names[BEGIN], BEGIN)
