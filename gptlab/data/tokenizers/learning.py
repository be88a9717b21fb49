"""The text that BPE learns from: words of bounded length, and no more distinct ones than memory holds."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator

import numpy as np

log = logging.getLogger(__name__)

# Learning merges takes memory for each distinct word, and time for the square of a word's length. So longer words,
# such as a genome, a line of Chinese or base64, are cut. Text with shorter words gives the same merges as without that.
LONGEST_WORD = 1024  # bytes
DISTINCT_BYTES = 1 << 24  # of all distinct words: about 1.5 GB while merges are learned; no language has as many
SLOW_CHARACTERS = 1 << 21  # of text, from which learning is announced
WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]+|_+")  # roughly the pieces of GPT-2's pattern
BLANK = re.compile(r"\s{99,}")
MOST_STRETCHES = 1 << 20
FEW = 1 / 16  # of a text's bytes that are new words, below which text of PASSED_BY times its length is not looked at
PASSED_BY = 7
_MANY = f"{{{LONGEST_WORD // 4},}}"
RUN = re.compile(rf"[^\W_]{_MANY}|(?:[^\w\s]|_){_MANY}|\s{_MANY}")


def cut_words(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts, in pieces where a word is longer than LONGEST_WORD."""
    for text in texts:
        start = 0
        for run in RUN.finditer(text) if _may_have_long_words(text) else ():
            step = LONGEST_WORD // len(max(run[0]).encode("utf-8", "replace"))
            for cut in range(run.start() + step, run.end(), step):
                yield text[start:cut]
                start = cut
        yield text[start:]


def limit_words(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts until their distinct words have DISTINCT_BYTES; says so, and that learning takes a while."""
    words: set[str] = set()
    stretches: set[str] = set()  # of text between spaces, whose words have been seen
    size = characters = look_at = 0
    for text in texts:
        yield text
        if characters < SLOW_CHARACTERS <= characters + len(text):
            log.info("tokenizer=bpe: learning its tokens from the text, once; this may take a minute or two")
        characters += len(text)
        if characters < look_at:
            continue
        unseen = set(text.split()) - stretches  # few after a while; to look at each word takes as long as learning
        if len(stretches) > MOST_STRETCHES:
            stretches.clear()
        stretches |= unseen
        new = {*WORD.findall(" ".join(unseen)), *BLANK.findall(text)} - words
        new_bytes = sum(len(word.encode("utf-8", "replace")) for word in new)
        size += new_bytes
        if size > DISTINCT_BYTES:
            log.info("tokenizer=bpe: learns from the first %s characters only: words hardly repeat", f"{characters:,}")
            return
        words |= new
        if new_bytes < FEW * len(text):
            look_at = characters + PASSED_BY * len(text)


def _may_have_long_words(text: str) -> bool:
    """Return whether some block of half a longest word is without, or of nothing but, ASCII white space."""
    blank = np.frombuffer(text.encode("utf-8", "replace"), np.uint8) <= ord(" ")
    width = LONGEST_WORD // 2
    blocks = blank[: len(blank) // width * width].reshape(-1, width)
    return bool((blocks.all(axis=1) | ~blocks.any(axis=1)).any())
