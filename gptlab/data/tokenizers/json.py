"""Tokenizers that a Hugging Face tokenizer.json describes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np

from gptlab.data.tokenizers.base import JSON, MAX_VOCAB, Tokenizer, replace_surrogates
from gptlab.data.tokenizers.bpe import BYTES
from gptlab.system.errors import UserError, error_line, quoted

GROWTH = 64  # the most by which a text's length may be multiplied before it is cut into tokens


class JsonTokenizer(Tokenizer):
    """Any tokenizer that a tokenizer.json describes, encoded and decoded by Hugging Face's `tokenizers`.

    `encode` returns the ids of the text alone, without the special tokens that the file adds around it (see `begin`).
    The tokens' bytes are what decoding returns, except for a space that SentencePiece puts before a text and removes
    (see `leading_space`).
    In a byte-level file, added tokens are written as they are, not in the byte alphabet; `tokenizers` decodes them by
    that alphabet all the same, so that "naïve" would lose its ï: there the text is made from the tokens' bytes.

    Args:
        content: the content of tokenizer.json.
        end_of_text: the id that ends a document, if there is one.
        named: the tokens that other tools know as bos, pad or unk (the key), where `content` does not tell.

    Raises:
        UserError: a token's bytes depend on its neighbours, ids are out of range, or texts could grow too much.
    """

    name = JSON

    def __init__(self, content: str, end_of_text: int | None, named: dict[str, str] | None = None) -> None:
        self.content, self.named = content, named or {}
        spec = json.loads(content)
        if _growth_factor(spec.get("normalizer")) * _growth_factor(spec.get("pre_tokenizer")) > GROWTH:
            raise UserError(f"its steps before the vocabulary can make a text more than {GROWTH} times as long")
        check_merges(spec["model"])
        self._backend = self._build(special=False)
        vocab = self._backend.get_vocab()
        steps = _decoder_steps(spec.get("decoder"))
        self._byte_level = steps[0]["type"] == "ByteLevel" and {step["type"] for step in steps[1:]} <= {"Fuse"}
        if max(vocab.values()) >= MAX_VOCAB:
            raise UserError(f"it has the id {max(vocab.values()):,}; at most {MAX_VOCAB:,} ids can be read")
        if end_of_text is not None and end_of_text not in set(vocab.values()):
            raise UserError(f"the end of a text, {end_of_text}, is none of its ids")
        if lacking := [*set(self.named.values()) - vocab.keys()]:
            raise UserError(f"it is said to have the tokens {quoted(lacking)}, which it lacks")
        tokens = [b""] * (max(vocab.values()) + 1)
        for token, i in vocab.items():
            tokens[i] = _spell(token, steps)
        added = spec.get("added_tokens", [])
        self.ambiguous: list[str] = []
        """Added tokens of a byte-level vocabulary that has the same letters, and so the same id, for other bytes."""
        for text in [token["content"] for token in added] if self._byte_level else ():
            if text in spec["model"]["vocab"] and tokens[vocab[text]] != text.encode():
                self.ambiguous.append(text)
            tokens[vocab[text]] = text.encode()
        super().__init__(tokens, end_of_text)
        self._special = {token["content"]: vocab[token["content"]] for token in added if token["special"]}
        unknown = spec["model"].get("unk_token")
        self._unknown = spec["model"].get("unk_id") if unknown is None else vocab.get(unknown)
        around = self._backend.encode("a")
        marked = zip(around.ids, around.special_tokens_mask, strict=True)
        self.begin = tuple(i for i, _ in takewhile(lambda pair: pair[1], marked))
        self.leading_space = b"".join(tokens[i] for i in self.encode("a")).startswith(b" ")

    def _build(self, special: bool) -> Any:
        """Return the library's tokenizer; if `special`, names of special tokens in a text are read as those tokens."""
        import tokenizers  # Hugging Face's

        backend = tokenizers.Tokenizer.from_str(self.content)
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = not special
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # by which BPE would give a text different ids each time
        return backend

    @property
    def special_tokens(self) -> dict[str, int]:
        return self._special

    @cached_property
    def _reads_special(self) -> Any:
        return self._build(special=True)

    def encode(self, text: str) -> np.ndarray:
        return self._encoded(self._backend, text)

    def encode_special(self, text: str) -> np.ndarray:
        """Encode `text`, reading the names of all special tokens as those tokens."""
        return self._encoded(self._reads_special, text)

    @staticmethod
    def _encoded(backend: Any, text: str) -> np.ndarray:
        with errors_as_one_message("a pattern or a step of tokenizer.json cannot be applied to the text"):
            return np.array(backend.encode(replace_surrogates(text), add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids: list[int]) -> str:
        if self._byte_level:
            return super().decode(ids)
        with errors_as_one_message("a step of tokenizer.json cannot be applied to these ids"):
            return self._backend.decode(ids, skip_special_tokens=False)

    def unknown(self, text: str) -> list[str]:
        """Return the distinct characters without an id; white space may be left out on purpose, and does not count."""
        ids = {c: self.encode(c) for c in set(text)}
        return sorted(c for c in ids if self._unknown in ids[c] or not (len(ids[c]) or c.isspace()))

    def token_bytes(self) -> np.ndarray:
        sizes = super().token_bytes()
        sizes[[*self._special.values()]] = 0
        return sizes

    def before_texts(self) -> np.ndarray:
        found = super().before_texts()
        if self._unknown is not None:  # which stands for a character within a text
            found[self._unknown] = False
        return found

    def to_dict(self) -> dict[str, Any]:
        named = {"named": self.named} if self.named else {}
        return {"name": self.name, "content": self.content, "end_of_text": self.end_of_text, **named}

    def _with_added(self, names: list[str]) -> JsonTokenizer:
        spec = json.loads(self.content)
        ids = self._backend.get_vocab()
        kept = [token for token in spec.get("added_tokens") or [] if token["content"] not in names]
        new = [name for name in names if name not in ids]
        ids |= {name: i for i, name in enumerate(new, self.vocab_size)}
        tokens = kept + [added_token(name, ids[name], {"special": True}) for name in names]
        tokens.sort(key=lambda token: token["id"])
        return JsonTokenizer(json.dumps(with_added(spec, tokens), ensure_ascii=False), self.end_of_text, self.named)


def added_token(content: str, i: int, flags: dict[str, Any]) -> dict[str, Any]:
    """Return an added token as tokenizer.json describes it."""
    special = bool(flags.get("special"))
    switches = {name: bool(flags.get(name)) for name in ("single_word", "lstrip", "rstrip")}
    normalized = bool(flags.get("normalized", not special))
    return {"id": i, "content": content, **switches, "normalized": normalized, "special": special}


def with_added(spec: dict[str, Any], added: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of a tokenizer.json with these added tokens; itself if they are the same.

    The library numbers added tokens from the vocabulary's size on. Where that gives other ids they stand in the
    vocabulary, too.
    """
    vocab = spec["model"]["vocab"]
    if added == (spec.get("added_tokens") or []):
        return spec
    outside = {token["content"]: token["id"] for token in added if token["content"] not in vocab}
    if isinstance(vocab, dict) and list(outside.values()) != list(range(len(vocab), len(vocab) + len(outside))):
        spec = spec | {"model": spec["model"] | {"vocab": vocab | outside}}
    return spec | {"added_tokens": added}


@contextmanager
def errors_as_one_message(what: str) -> Iterator[None]:
    """Turn whatever the libraries raise into one UserError: also Rust's panics, which are not Exceptions.

    A pattern that would never finish is among them: Oniguruma gives up after ten million steps.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{what} ({error_line(error)})") from error


def check_merges(model: dict[str, Any]) -> None:
    """Check that each merge makes a token of the vocabulary: of others the library panics, and says so by itself.

    Raises:
        UserError: one does not.
    """
    vocab, prefix = model["vocab"], model.get("continuing_subword_prefix") or ""
    for merge in model.get("merges") or ():
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if not right.startswith(prefix) or left + right[len(prefix) :] not in vocab:
            raise UserError(f"its vocabulary lacks the token that the merge {left[:99]} {right[:99]} makes")


def _growth_factor(step: dict[str, Any] | None) -> int:
    """Return by how much a step before the vocabulary can multiply a text's length.

    Replacements in a row multiply: sixty that double would use up all memory.
    """
    if step is None:
        return 1
    children = step.get("normalizers") or step.get("pretokenizers") or []
    own = len(step["content"]) if step["type"] == "Replace" else 1
    return math.prod(map(_growth_factor, children)) * max(own, 1)


def _decoder_steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of a decoder.

    Raises:
        UserError: the result of a step may depend on a token's neighbours.
    """
    steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder or {"type": "missing"}]
    kinds = [step["type"] for step in steps]
    by_regex = any(kind == "Replace" and "Regex" in step["pattern"] for kind, step in zip(kinds, steps, strict=True))
    if by_regex or not set(kinds) <= {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
        raise UserError(
            f"its decoder ({', '.join(kinds)}) is none that gptlab reads: ByteLevel, Metaspace or ByteFallback, as of "
            f"GPT-2 and Llama"
        )
    return steps


def _spell(token: str, steps: list[dict[str, Any]]) -> bytes:
    """Return the bytes of a token of the vocabulary, following the decoder's steps."""
    kinds = {step["type"] for step in steps}
    if "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    for step in steps:
        if step["type"] == "Metaspace":
            token = token.replace(step["replacement"], " ")
        elif step["type"] == "Replace":
            token = token.replace(step["pattern"]["String"], step["content"])
    if "ByteLevel" in kinds and BYTES.keys() >= set(token):
        return bytes(BYTES[letter] for letter in token)
    return token.encode()
