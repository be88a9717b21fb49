"""Byte-level BPE: trained by Hugging Face's `tokenizers`, encoded by tiktoken, which is several times faster."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe

from gptlab.data.tokenizers.base import END_OF_TEXT, MAX_VOCAB, Tokenizer, limit_characters, replace_surrogates
from gptlab.data.tokenizers.learning import cut_words, limit_words
from gptlab.system.errors import UserError

# The patterns by which GPT-2 and GPT-4 cut text into the pieces that BPE works on, as written in tiktoken.
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

# Byte-level BPE writes each byte as a letter: a printable one as itself, the others as the letters from 256 on.
_VISIBLE = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
BYTES = {chr(b): b for b in _VISIBLE}
BYTES |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in _VISIBLE)}


class BPETokenizer(Tokenizer):
    """Byte-level BPE as in GPT-2 (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909), encoded by tiktoken.

    Args:
        name: bpe, or the name of OpenAI's vocabulary.
        merges: the tokens' bytes in the order of merging, the 256 bytes first; the index of a token is its id.
        pattern: cuts the text into the pieces within which tokens are merged.
        special: ids of the special tokens, after the merges.

    Raises:
        UserError: one of the 256 bytes is missing, or ids are not distinct.
    """

    def __init__(self, name: str, merges: list[bytes], pattern: str, special: dict[str, int]) -> None:
        if not {bytes([i]) for i in range(256)} <= set(merges):
            raise UserError(f"a damaged {name} tokenizer: it lacks some of the 256 bytes")
        ids = [*special.values()]
        if (
            len(set(merges)) < len(merges)
            or len(set(ids)) < len(ids)
            or not len(merges) <= min(ids) <= max(ids) < MAX_VOCAB
        ):
            raise UserError(f"a damaged {name} tokenizer: its tokens have not an id each")
        tokens = merges + [b""] * (max(special.values()) + 1 - len(merges))
        for text, i in special.items():
            tokens[i] = text.encode()
        added = {text: i for text, i in special.items() if text not in CL100K_SPECIAL}
        super().__init__(tokens, special[END_OF_TEXT], added)
        self.name, self.merges, self.pattern, self.special = name, merges, pattern, special
        self._encoding = tiktoken.Encoding(
            name,
            pat_str=pattern,
            mergeable_ranks={token: i for i, token in enumerate(merges)},
            special_tokens=special,
        )

    @classmethod
    def fit(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learn merges from `texts`: the 256 bytes, the merges and the end of text are `vocab_size` tokens.

        There are fewer if the text has no more pairs to merge. Long words are cut for learning.
        """
        import tokenizers  # Hugging Face's

        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        learner = tokenizers.Tokenizer(tokenizers.models.BPE())
        learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # with GPT-2's pattern
        learner.train_from_iterator(cut_words(limit_words(limit_characters(texts))), trainer)
        vocab = learner.get_vocab()
        merges = [bytes(BYTES[letter] for letter in token) for token in sorted(vocab, key=vocab.__getitem__)]
        return cls("bpe", merges, GPT2_PATTERN, {END_OF_TEXT: len(merges)})

    @classmethod
    def gpt2(cls, raw_dir: Path) -> BPETokenizer:
        """Read GPT-2's 50,257 tokens from `raw_dir`/gpt2/{vocab.bpe,encoder.json}, else through tiktoken.

        Raises:
            UserError: the files are missing and cannot be downloaded, or their sha256 differs.
        """
        merges = _openai_merges(
            "gpt2", ("gpt2/vocab.bpe", "gpt2/encoder.json"), raw_dir, data_gym_to_mergeable_bpe_ranks
        )
        return cls("gpt2", merges, GPT2_PATTERN, {END_OF_TEXT: 50256})

    @classmethod
    def cl100k_base(cls, raw_dir: Path) -> BPETokenizer:
        """Read GPT-4's 100,277 tokens from `raw_dir`/cl100k_base.tiktoken, else through tiktoken.

        Raises:
            UserError: see `gpt2`.
        """
        merges = _openai_merges("cl100k_base", ("cl100k_base.tiktoken",), raw_dir, load_tiktoken_bpe)
        return cls("cl100k_base", merges, CL100K_PATTERN, CL100K_SPECIAL)

    def encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(replace_surrogates(text), disallowed_special=()).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "merges": " ".join(base64.b64encode(token).decode() for token in self.merges),
            "pattern": self.pattern,
            "special": self.special,
        }

    def _with_added(self, names: list[str]) -> BPETokenizer:
        special = self.special | {name: i for i, name in enumerate(names, self.vocab_size)}
        return BPETokenizer(self.name, self.merges, self.pattern, special)


def _openai_merges(
    name: str, files: tuple[str, ...], raw_dir: Path, read: Callable[..., dict[bytes, int]]
) -> list[bytes]:
    """Read the merges of one of OpenAI's vocabularies, in their order."""
    try:
        if all((raw_dir / file).is_file() for file in files):
            for file in files:
                if hashlib.sha256((raw_dir / file).read_bytes()).hexdigest() != SHA256[file]:
                    raise ValueError(f"{file} is not OpenAI's, its sha256 differs")
            with _without_cache():
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
def _without_cache() -> Iterator[None]:
    """Let tiktoken read local files without copying them to its cache, which may not be writable."""
    given = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    try:
        yield
    finally:
        del os.environ["TIKTOKEN_CACHE_DIR"]
        if given is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = given
