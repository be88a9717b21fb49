"""Text to ids and back. A tokenizer is saved as a plain dict, so that a checkpoint can carry it.

Characters, bytes, words, byte-level BPE trained on the text, OpenAI's vocabularies, and any tokenizer.json. BPE is
trained by Hugging Face's `tokenizers` and encoded by tiktoken, which is several times as fast.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe

from gptlab.system.errors import UserError, did_you_mean

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"
FIT_CHARACTERS = 100_000_000  # of the training text that a vocabulary of words or merges is taken from

# How GPT-2 and GPT-4 cut text into the pieces that BPE works on, as tiktoken writes their patterns.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
CL100K_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"""
    r"""\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
CL100K_SPECIAL = {
    END_OF_TEXT: 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}
SHA256 = {  # of OpenAI's files
    "gpt2/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "gpt2/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "cl100k_base.tiktoken": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}
MOST = 1 << 22  # ids of a vocabulary: no model has more, and each takes memory, used or not
GROWTH = 64  # times that a text may grow before it is cut into tokens
NAMES = ("char", "byte", "word", "bpe", "gpt2", "cl100k_base")  # those that data can be prepared with
JSON = "json"  # comes with a foreign model

# Byte-level BPE writes each byte as a letter: a printable one as itself, the others as the letters from 256 on.
_VISIBLE = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
BYTES = {chr(b): b for b in _VISIBLE}
BYTES |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in _VISIBLE)}


@dataclass(frozen=True)
class TokenizerConfig:
    name: str
    vocab_size: int | None
    """Of word (None: all words) and bpe: tokens in all, special ones among them."""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UserError(f"tokenizer.name={self.name}: no such tokenizer; {did_you_mean(self.name, NAMES)}")
        least = {"word": 3, "bpe": 257}.get(self.name)
        if least is None and self.vocab_size is not None:
            raise UserError(f"tokenizer.vocab_size={self.vocab_size}: tokenizer={self.name} has its own; leave it out")
        if self.name == "bpe" and self.vocab_size is None:
            raise UserError("tokenizer.vocab_size: is missing; tokenizer=bpe needs one, e.g. 2048")
        if least is not None and self.vocab_size is not None and self.vocab_size < least:
            why = "256 bytes and the end of text" if self.name == "bpe" else "a word and the special tokens"
            raise UserError(f"tokenizer.vocab_size={self.vocab_size}: must be at least {least} ({why})")


class Tokenizer:
    """What data, sampling and checkpoints need: ids (n,) int64 from a text, and the bytes that each id stands for.

    Args:
        tokens: the UTF-8 bytes of each id's text, (V,); empty where an id is not used.
        end_of_text: the id that ends a document, if there is one. In a text, "<|endoftext|>" is text.
    """

    name: str
    begin: tuple[int, ...] = ()
    """Ids that a model expects before a text, as Llama's <s>; `encode` does not give them."""

    def __init__(self, tokens: list[bytes], end_of_text: int | None) -> None:
        self.tokens = tokens
        self.end_of_text = end_of_text

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, (n,) int64; characters without an id are left out (see `unknown`)."""
        raise NotImplementedError

    def encode_special(self, text: str) -> np.ndarray:
        """As `encode`, but "<|endoftext|>" in the text is the special token."""
        if self.end_of_text is None:
            return self.encode(text)
        first, *rest = (self.encode(part) for part in text.split(END_OF_TEXT))
        return np.concatenate([first, *(ids for part in rest for ids in ([self.end_of_text], part))]).astype(np.int64)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8, as when a character is cut, become U+FFFD."""
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")

    def unknown(self, text: str) -> list[str]:
        """The distinct characters of `text` that `encode` leaves out, sorted."""
        return []

    def token_bytes(self) -> np.ndarray:
        """Bytes of raw UTF-8 text that each token stands for, (V,) int64: the unit of bits per byte."""
        sizes = np.array([len(token) for token in self.tokens], dtype=np.int64)
        if self.end_of_text is not None:
            sizes[self.end_of_text] = 0
        return sizes

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError


def _ended(tokens: list[bytes], end_of_text: bool) -> tuple[list[bytes], int | None]:
    return (tokens + [END_OF_TEXT.encode()], len(tokens)) if end_of_text else (tokens, None)


class CharTokenizer(Tokenizer):
    """One id per character, in code point order, as in char-rnn and nanoGPT.

    Args:
        chars: the characters, distinct and sorted; a character's place is its id.
        end_of_text: whether there is one more id, for the end of a document.
    """

    name = "char"

    def __init__(self, chars: str, end_of_text: bool = False) -> None:
        points = np.array([ord(c) for c in chars], dtype=np.uint32)
        if len(points) == 0 or np.any(points[1:] <= points[:-1]):
            raise UserError("a character tokenizer needs distinct characters in code point order")
        super().__init__(*_ended([c.encode("utf-8", "surrogatepass") for c in chars], end_of_text))
        self.chars = chars
        self._points = points

    @classmethod
    def fit(cls, texts: Iterable[str], end_of_text: bool = False) -> CharTokenizer:
        """The tokenizer that knows exactly the characters of `texts`."""
        return cls("".join(sorted(set().union(*map(set, texts)))), end_of_text)

    def _lookup(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Code points of `text`, the id each would have, and whether it is known; all (n,)."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = np.searchsorted(self._points, points).clip(max=len(self.chars) - 1)
        return points, ids, self._points[ids] == points

    def encode(self, text: str) -> np.ndarray:
        _, ids, known = self._lookup(text)
        return ids[known].astype(np.int64)

    def decode(self, ids: list[int]) -> str:
        return "".join(self.chars[i] if i != self.end_of_text else END_OF_TEXT for i in ids)

    def unknown(self, text: str) -> list[str]:
        points, _, known = self._lookup(text)
        return [chr(p) for p in np.unique(points[~known])]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "chars": self.chars, "end_of_text": self.end_of_text is not None}


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, and the end of a document where there are several."""

    name = "byte"

    def __init__(self, end_of_text: bool = False) -> None:
        super().__init__(*_ended([bytes([i]) for i in range(256)], end_of_text))

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_scalar_values(text).encode(), dtype=np.uint8).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "end_of_text": self.end_of_text is not None}


class WordTokenizer(Tokenizer):
    r"""Words and punctuation marks, `\w+|[^\w\s]`, as in the lessons; 0 is the unknown word.

    White space is not kept: decoding puts one space between words. What a token stands for are its own bytes, an
    unknown word stands for none: bits per byte are those of the words, and compare with no other tokenizer's.

    Args:
        words: from id 1 on.
        end_of_text: whether there is one more id, for the end of a document.
    """

    name = "word"
    pattern = re.compile(r"\w+|[^\w\s]")
    closing = frozenset(".,;:!?%)]}'\"…")  # marks without a space before them

    def __init__(self, words: list[str], end_of_text: bool = False) -> None:
        if not all(isinstance(word, str) for word in words) or len(set(words)) < len(words):
            raise UserError("a word tokenizer needs distinct words")
        spaced = (word if word in self.closing else f" {word}" for word in (UNKNOWN, *words))
        super().__init__(*_ended([word.encode("utf-8", "replace") for word in spaced], end_of_text))
        self.words = words
        self._ids = {word: i for i, word in enumerate(words, 1)}

    @classmethod
    def fit(cls, texts: Iterable[str], vocab_size: int | None, end_of_text: bool = False) -> WordTokenizer:
        """The most frequent words of `texts`, `vocab_size` tokens in all; the alphabet decides between equals."""
        counts: Counter[str] = Counter()
        for text in _beginning(texts):
            counts.update(cls.pattern.findall(text))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ordered if vocab_size is None else ordered[: vocab_size - 1 - end_of_text], end_of_text)

    def encode(self, text: str) -> np.ndarray:
        return np.array([self._ids.get(word, 0) for word in self.pattern.findall(text)], dtype=np.int64)

    def decode(self, ids: list[int]) -> str:
        return super().decode(ids).removeprefix(" ")

    def token_bytes(self) -> np.ndarray:
        sizes = super().token_bytes()
        words = np.array([len(word.encode("utf-8", "replace")) for word in self.words], dtype=np.int64)
        sizes[0], sizes[1 : len(words) + 1] = 0, words
        return sizes

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "words": self.words, "end_of_text": self.end_of_text is not None}


class BPETokenizer(Tokenizer):
    """Byte-level BPE, as of GPT-2 (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909), encoded by tiktoken.

    Args:
        name: bpe, or that of OpenAI's vocabulary.
        merges: the tokens' bytes in the order in which they are merged, the 256 bytes first; a token's place is its id.
        pattern: cuts the text into the pieces within which tokens are merged.
        special: ids of the special tokens.
    """

    def __init__(self, name: str, merges: list[bytes], pattern: str, special: dict[str, int]) -> None:
        if not {bytes([i]) for i in range(256)} <= set(merges):
            raise UserError(f"a damaged {name} tokenizer: it lacks some of the 256 bytes")
        ids = [*special.values()]
        if len(set(merges)) < len(merges) or len(set(ids)) < len(ids) or not len(merges) <= min(ids) <= max(ids) < MOST:
            raise UserError(f"a damaged {name} tokenizer: its tokens have not an id each")
        tokens = merges + [b""] * (max(special.values()) + 1 - len(merges))
        for text, i in special.items():
            tokens[i] = text.encode()
        super().__init__(tokens, special[END_OF_TEXT])
        self.name, self.merges, self.pattern, self.special = name, merges, pattern, special
        self._encoding = tiktoken.Encoding(
            name,
            pat_str=pattern,
            mergeable_ranks={token: i for i, token in enumerate(merges)},
            special_tokens=special,
        )

    @classmethod
    def fit(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Merges learned from `texts`: 256 bytes, merges, and the end of text, `vocab_size` tokens in all.

        Fewer where the text has no more pairs to merge.
        """
        import tokenizers  # Hugging Face's

        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        learner = tokenizers.Tokenizer(tokenizers.models.BPE())
        learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # with GPT-2's pattern
        learner.train_from_iterator(_beginning(texts), trainer)
        vocab = learner.get_vocab()
        merges = [bytes(BYTES[letter] for letter in token) for token in sorted(vocab, key=vocab.__getitem__)]
        return cls("bpe", merges, GPT2_PATTERN, {END_OF_TEXT: len(merges)})

    @classmethod
    def gpt2(cls, raw_dir: Path) -> BPETokenizer:
        """GPT-2's vocabulary of 50,257, from `raw_dir`/gpt2/{vocab.bpe,encoder.json}, else through tiktoken.

        Raises:
            UserError: it lies nowhere and cannot be downloaded, or what lies there differs.
        """
        merges = _openai("gpt2", ("gpt2/vocab.bpe", "gpt2/encoder.json"), raw_dir, data_gym_to_mergeable_bpe_ranks)
        return cls("gpt2", merges, GPT2_PATTERN, {END_OF_TEXT: 50256})

    @classmethod
    def cl100k_base(cls, raw_dir: Path) -> BPETokenizer:
        """GPT-4's vocabulary of 100,277, from `raw_dir`/cl100k_base.tiktoken, else through tiktoken.

        Raises:
            UserError: see `gpt2`.
        """
        merges = _openai("cl100k_base", ("cl100k_base.tiktoken",), raw_dir, load_tiktoken_bpe)
        return cls("cl100k_base", merges, CL100K_PATTERN, CL100K_SPECIAL)

    def encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(_scalar_values(text), disallowed_special=()).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "merges": " ".join(base64.b64encode(token).decode() for token in self.merges),
            "pattern": self.pattern,
            "special": self.special,
        }


class JsonTokenizer(Tokenizer):
    """Whatever a tokenizer.json of Hugging Face's `tokenizers` describes, encoded and decoded by that library.

    `encode` gives the ids of the text alone, without what the file says to put around it (see `begin`). The tokens'
    bytes are those that decoding gives, but for a space that SentencePiece puts before a text and takes away again.

    Args:
        content: of tokenizer.json.
        end_of_text: the id that ends a document, if there is one.

    Raises:
        UserError: `tokenizers` cannot read it, or tokens have no bytes of their own in its way of decoding.
    """

    name = JSON

    def __init__(self, content: str, end_of_text: int | None) -> None:
        self.content = content
        spec = json.loads(content)
        if _growth(spec.get("normalizer")) * _growth(spec.get("pre_tokenizer")) > GROWTH:
            raise UserError(f"its steps before the vocabulary can make a text more than {GROWTH} times as long")
        self._backend = self._build(special=False)
        vocab = self._backend.get_vocab()
        spell = _spelling(spec.get("decoder"))
        if max(vocab.values()) >= MOST:
            raise UserError(f"it has the id {max(vocab.values()):,}; at most {MOST:,} ids can be read")
        if end_of_text is not None and end_of_text not in set(vocab.values()):
            raise UserError(f"the end of a text, {end_of_text}, is none of its ids")
        tokens = [b""] * (max(vocab.values()) + 1)
        for token, i in vocab.items():
            tokens[i] = spell(token)
        super().__init__(tokens, end_of_text)
        self._special = [vocab[token["content"]] for token in spec.get("added_tokens", []) if token["special"]]
        unknown = spec["model"].get("unk_token")
        self._unknown = spec["model"].get("unk_id") if unknown is None else vocab.get(unknown)
        around = self._backend.encode("a")
        marked = zip(around.ids, around.special_tokens_mask, strict=True)
        self.begin = tuple(i for i, _ in takewhile(lambda pair: pair[1], marked))

    def _build(self, special: bool) -> Any:
        """The library's tokenizer; `special`: a special token's name in a text is that token."""
        import tokenizers  # Hugging Face's

        backend = tokenizers.Tokenizer.from_str(self.content)
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = not special
        return backend

    @cached_property
    def _reads_special(self) -> Any:
        return self._build(special=True)

    def encode(self, text: str) -> np.ndarray:
        return self._encoded(self._backend, text)

    def encode_special(self, text: str) -> np.ndarray:
        """As `encode`, but the names of all its special tokens are those tokens."""
        return self._encoded(self._reads_special, text)

    @staticmethod
    def _encoded(backend: Any, text: str) -> np.ndarray:
        with _panics("a pattern or a step of tokenizer.json cannot be applied to the text"):
            return np.array(backend.encode(_scalar_values(text), add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids: list[int]) -> str:
        with _panics("a step of tokenizer.json cannot be applied to these ids"):
            return self._backend.decode(ids, skip_special_tokens=False)

    def unknown(self, text: str) -> list[str]:
        """The distinct characters without an id of their own; white space may be left out by intent."""
        ids = {c: self.encode(c) for c in set(text)}
        return sorted(c for c in ids if self._unknown in ids[c] or not (len(ids[c]) or c.isspace()))

    def token_bytes(self) -> np.ndarray:
        sizes = super().token_bytes()
        sizes[self._special] = 0
        return sizes

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "content": self.content, "end_of_text": self.end_of_text}


@contextmanager
def _panics(what: str) -> Iterator[None]:
    """Turn into one message what the libraries raise: errors of all kinds, and Rust's panics, which are no Exceptions.

    A pattern that would be tried for ever is one of them: Oniguruma gives up after ten million steps.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{what} ({type(error).__name__}: {str(error)[:200]})") from error


def _growth(step: dict[str, Any] | None) -> int:
    """By how much a step before the vocabulary can lengthen a text, as far as it says so itself.

    Replacements in a row multiply: sixty that double would leave no memory.
    """
    if step is None:
        return 1
    children = step.get("normalizers") or step.get("pretokenizers") or []
    own = len(step["content"]) if step["type"] == "Replace" else 1
    return math.prod(map(_growth, children)) * max(own, 1)


def _spelling(decoder: dict[str, Any] | None) -> Callable[[str], bytes]:
    """How a token of a vocabulary is turned into the bytes that it stands for, by the steps of its decoder.

    Raises:
        UserError: a step whose result depends on a token's neighbours.
    """
    steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder or {"type": "missing"}]
    kinds = [step["type"] for step in steps]
    by_regex = any(kind == "Replace" and "Regex" in step["pattern"] for kind, step in zip(kinds, steps, strict=True))
    if by_regex or not set(kinds) <= {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
        raise UserError(
            f"its decoder ({', '.join(kinds)}) is none that gptlab reads: ByteLevel, Metaspace or ByteFallback, as of "
            f"GPT-2 and Llama"
        )

    def spell(token: str) -> bytes:
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

    return spell


def _openai(name: str, files: tuple[str, ...], raw_dir: Path, read: Callable[..., dict[bytes, int]]) -> list[bytes]:
    """The merges of a vocabulary of OpenAI's, in their order."""
    try:
        if all((raw_dir / file).is_file() for file in files):
            for file in files:
                if hashlib.sha256((raw_dir / file).read_bytes()).hexdigest() != SHA256[file]:
                    raise ValueError(f"{file} is not OpenAI's, its sha256 differs")
            with _uncached():
                ranks = read(*(str(raw_dir / file) for file in files))
        else:
            ranks = tiktoken.get_encoding(name)._mergeable_ranks
        return sorted(ranks, key=ranks.__getitem__)
    except (OSError, ValueError) as error:
        raise UserError(
            f"tokenizer={name}: its vocabulary cannot be read from data.dir={raw_dir} nor downloaded "
            f"({type(error).__name__}: {str(error)[:200]}). Put {' and '.join(files)} there, or use "
            f"tokenizer=bpe, which learns one from the text"
        ) from error


@contextmanager
def _uncached() -> Iterator[None]:
    """Let tiktoken read local files without copying them to its cache, which may be no place to write."""
    given = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    try:
        yield
    finally:
        del os.environ["TIKTOKEN_CACHE_DIR"]
        if given is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = given


def _scalar_values(text: str) -> str:
    """`text` with U+FFFD for lone surrogates, which UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    seen = 0
    for text in texts:
        yield text[: FIT_CHARACTERS - seen]
        seen += len(text)
        if seen >= FIT_CHARACTERS:
            return


def build(config: TokenizerConfig, texts: Iterable[str], end_of_text: bool, raw_dir: Path) -> Tokenizer:
    """The tokenizer that `config` names, fitted to `texts` where it learns from them.

    Args:
        texts: the training part in pieces; read only as far as it is needed.
        end_of_text: have a token for the end of a document; BPE always has one.
        raw_dir: where OpenAI's vocabularies are looked for.

    Raises:
        UserError: see `BPETokenizer.gpt2`.
    """
    if config.name == "char":
        return CharTokenizer.fit(texts, end_of_text)
    if config.name == "byte":
        return ByteTokenizer(end_of_text)
    if config.name == "word":
        return WordTokenizer.fit(texts, config.vocab_size, end_of_text)
    if config.name == "bpe":
        assert config.vocab_size is not None
        return BPETokenizer.fit(texts, config.vocab_size)
    return BPETokenizer.gpt2(raw_dir) if config.name == "gpt2" else BPETokenizer.cl100k_base(raw_dir)


def from_dict(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `to_dict` described.

    Raises:
        UserError: the dict describes no tokenizer that this version knows.
    """
    name = state.get("name") if isinstance(state, dict) else None
    if name not in (*NAMES, JSON):
        raise UserError(f"unknown tokenizer {name!r:.99}; this version knows: {', '.join((*NAMES, JSON))}")
    with _panics(f"a damaged {name} tokenizer: the file that it comes from is broken"):
        if name == JSON:
            return JsonTokenizer(_typed(state["content"], str), _typed(state["end_of_text"], int, type(None)))
        if name in ("byte", "char", "word"):
            ended = _typed(state["end_of_text"], bool)
            if name == "byte":
                return ByteTokenizer(ended)
            if name == "char":
                return CharTokenizer(_typed(state["chars"], str), ended)
            return WordTokenizer(_typed(state["words"], list), ended)
        merges = [base64.b64decode(token, validate=True) for token in state["merges"].split(" ")]
        pattern = CL100K_PATTERN if name == "cl100k_base" else GPT2_PATTERN
        if state["pattern"] != pattern:  # another could be tried for ever
            raise ValueError(f"its pattern is not {pattern}")
        special = {_typed(token, str): _typed(i, int) for token, i in state["special"].items()}
        return BPETokenizer(name, merges, pattern, special)


def _typed(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError(f"{str(value)[:99]} is not of type {kinds[0].__name__}")
    return value
