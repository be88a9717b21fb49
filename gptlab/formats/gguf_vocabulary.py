"""A vocabulary as the header of a GGUF file holds it, and its values there (tokenizer.ggml.*)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gptlab.system.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""The types of tokens. A control token is read in a text where special tokens are, a user's own in any text."""
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # llama.cpp's names of two kinds of vocabularies
KEYS = "tokenizer.ggml."
SPECIAL = {kind: f"{KEYS}{name}_token_id" for kind, name in {"unk": "unknown", "pad": "padding"}.items()}
SPECIAL |= {kind: f"{KEYS}{kind}_token_id" for kind in ("bos", "eos", "eot")}
NO_MERGE = "ÿ ÿ"  # of bytes that no UTF-8 has, for vocabularies without merges: llama.cpp opens none without any
MOST_CUTS = 1 << 25  # of all tokens, the squares of their lengths: the work of finding how each is merged
NEVER_DRAWN = f"{KEYS}suppress_tokens"
CHAT_TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, and how a text becomes some of them."""

    kind: str
    """gpt2: bytes as letters, which are merged; llama: SentencePiece."""
    tokens: list[str]
    types: list[int]
    special: dict[str, int]
    """The ids of the tokens that begin and end a text, of the unknown one, of padding and of what ends an answer: by
    bos, eos, unk, pad and eot."""
    merges: list[str] = field(default_factory=list)
    """Of kind gpt2: the pairs that are merged, each with a space between, the first ones first."""
    scores: list[float] = field(default_factory=list)
    """Of kind llama: neighbours whose joint token has the highest score are merged first."""
    pre: str = "gpt-2"
    """Of kind gpt2: llama.cpp's name of how a text is cut before it is merged."""
    add_bos: bool = False
    """Whether the bos token is put before each text."""
    add_space: bool = False
    """Of kind llama: whether a space is put before each text."""

    def metadata(self) -> dict[str, Any]:
        """Return the header's values."""
        found: dict[str, Any] = {f"{KEYS}model": self.kind, f"{KEYS}tokens": self.tokens}
        found |= {f"{KEYS}token_type": self.types, f"{KEYS}add_bos_token": self.add_bos}
        found |= {SPECIAL[kind]: i for kind, i in self.special.items()}
        if self.kind == BYTE_LEVEL:
            return found | {f"{KEYS}pre": self.pre, f"{KEYS}merges": self.merges}
        return found | {f"{KEYS}scores": self.scores, f"{KEYS}add_space_prefix": self.add_space}


def read_vocabulary(metadata: dict[str, Any]) -> Vocabulary:
    """Return the vocabulary in a header, with llama.cpp's defaults for what it does not tell.

    Its default ids of bos and eos in a vocabulary of kind gpt2, 11, are not taken: token 11 of any vocabulary but one
    is an ordinary one.

    Raises:
        UserError: there is none, or of another kind, or it is damaged.
    """
    kind, pre = metadata.get(f"{KEYS}model"), metadata.get(f"{KEYS}pre", "default")
    if kind not in (BYTE_LEVEL, SENTENCEPIECE):
        raise UserError(
            f"{KEYS}model={kind!s:.99}: gptlab reads vocabularies of {BYTE_LEVEL} (byte-level BPE) and {SENTENCEPIECE} "
            f"(SentencePiece's BPE)"
        )
    tokens = _strings(metadata, "tokens")
    types = _numbers(metadata, "token_type", len(tokens), NORMAL)
    if len(set(tokens)) < len(tokens):
        raise UserError(f"{KEYS}tokens has the same token twice")
    if sum(len(token) ** 2 for token in tokens) > MOST_CUTS:
        longest = max(map(len, tokens))
        raise UserError(f"its tokens, of up to {longest:,} characters, are longer than those of any vocabulary")
    merges = _strings(metadata, "merges") if kind == BYTE_LEVEL else []
    scores = _numbers(metadata, "scores", len(tokens), 0.0) if kind == SENTENCEPIECE else []
    special = {"bos": 1, "eos": 2, "unk": 0} if kind == SENTENCEPIECE else {}
    special |= {name: metadata[key] for name, key in SPECIAL.items() if type(metadata.get(key)) is int}
    special = {name: i for name, i in special.items() if 0 <= i < len(tokens)}  # as llama.cpp, which leaves out others
    begins = kind == SENTENCEPIECE or pre in ("llama-bpe", "llama3", "llama-v3")
    return Vocabulary(
        kind,
        tokens,
        types,
        special,
        merges,
        scores,
        str(pre) if kind == BYTE_LEVEL else Vocabulary.pre,
        bool(metadata.get(f"{KEYS}add_bos_token", begins)),
        kind == SENTENCEPIECE and bool(metadata.get(f"{KEYS}add_space_prefix", True)),
    )


def _strings(metadata: dict[str, Any], name: str) -> list[str]:
    found = metadata.get(f"{KEYS}{name}")
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise UserError(f"{KEYS}{name} is no list of texts")
    return found


def _numbers(metadata: dict[str, Any], name: str, count: int, default: Any) -> list[Any]:
    """Return a list of numbers of the default's type; of defaults if the header has none."""
    found = metadata.get(f"{KEYS}{name}", [default] * count)
    if not isinstance(found, list) or len(found) != count or not all(type(each) is type(default) for each in found):
        raise UserError(f"{KEYS}{name} is no list of {count:,} numbers, one for each token")
    return found
