"""Memorisation: the strings of a model's sample that occur word for word in its training text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gptlab.data.tokenizers import Tokenizer
from gptlab.generation.context import open_context
from gptlab.generation.decoding import generate, prompt_ids
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Sampling
from gptlab.models import Model

SAMPLE_ROWS = 10  # texts in a sample, drawn in one batch
LENGTHS = (10, 20, 30, 50)  # characters: the shares of text in copies of at least that length are reported
# Separators between unconnected texts, in the text and in the source; no text file has them.
SEAM, SOURCE_SEAM = "\0", "\1"


@dataclass(frozen=True)
class Copy:
    """A string of the text that also occurs in the source."""

    text: str
    begin: int
    """The index of its first character in the text."""
    found: int
    """The index of its first character in the source."""


@dataclass(frozen=True)
class Copies:
    """All copies in a text."""

    characters: int
    """The length of the text without seams."""
    found: list[Copy]
    """The copies that cannot be extended on either side, in order; they can overlap."""

    @property
    def longest(self) -> int:
        """The length of the longest copy, in characters."""
        return max((len(copy.text) for copy in self.found), default=0)

    def share(self, length: int) -> float:
        """Return the share of the text's characters that lie in copies of at least `length` characters."""
        covered: set[int] = set()
        for copy in self.found:
            if len(copy.text) >= length:
                covered.update(range(copy.begin, copy.begin + len(copy.text)))
        return len(covered) / self.characters

    def top(self, count: int) -> list[Copy]:
        """Return the longest copies, without those that overlap a longer one or repeat it."""
        chosen: list[Copy] = []
        for copy in sorted(self.found, key=lambda copy: (-len(copy.text), copy.begin)):
            apart = (c.begin + len(c.text) <= copy.begin or copy.begin + len(copy.text) <= c.begin for c in chosen)
            if len(chosen) < count and all(apart) and copy.text not in {c.text for c in chosen}:
                chosen.append(copy)
        return chosen


class Automaton:
    """The suffix automaton of a text, which accepts exactly the strings that occur in it.

    Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text". State 0 is the empty string.
    """

    def __init__(self, text: str) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.link = [-1]  # for each state: the state of the longest suffix that occurs elsewhere, too
        self.length = [0]  # for each state: the length of its longest string
        self.prefixes = []  # for each character of the text: the state after it
        last = 0
        for character in text:
            state = self._add(self.length[last] + 1, {})
            while last >= 0 and character not in self.next[last]:
                self.next[last][character] = state
                last = self.link[last]
            if last < 0:
                self.link[state] = 0
            else:
                follows = self.next[last][character]
                if self.length[follows] != self.length[last] + 1:  # it stands for longer strings as well: split it
                    clone = self._add(self.length[last] + 1, dict(self.next[follows]))
                    self.link[clone] = self.link[follows]
                    while last >= 0 and self.next[last].get(character) == follows:
                        self.next[last][character] = clone
                        last = self.link[last]
                    self.link[follows] = follows = clone
                self.link[state] = follows
            last = state
            self.prefixes.append(state)

    def _add(self, length: int, following: dict[str, int]) -> int:
        self.next.append(following)
        self.link.append(0)
        self.length.append(length)
        return len(self.next) - 1


def find_copies(text: str, source: Iterable[str]) -> Copies:
    """Find the strings of a text that occur in a source, each as long as possible.

    The source is read once, about a megabyte in a third of a second; only the automaton of the text takes memory.

    Args:
        text: the text, not empty.
        source: the source in pieces; a copy may span several of them.
    """
    automaton = Automaton(text)
    following, link, length = automaton.next, automaton.link, automaton.length
    best, ends = [0] * len(length), [0] * len(length)  # for each state: its longest match, and where that ended
    state = matched = place = 0
    for piece in source:
        for character in piece:
            place += 1
            while state and character not in following[state]:
                state = link[state]
                matched = length[state]
            if character in following[state]:
                state = following[state][character]
                matched += 1
                if matched > best[state]:
                    best[state], ends[state] = matched, place
    # The suffixes of a string in the source are in the source, too.
    for state in sorted(range(1, len(length)), key=length.__getitem__, reverse=True):
        if best[state] and best[link[state]] < length[link[state]]:
            best[link[state]], ends[link[state]] = length[link[state]], ends[state]

    lengths, places = [], []  # for each character of the text: the longest match that ends with it
    for state in automaton.prefixes:
        while state and not best[state]:
            state = link[state]
        lengths.append(best[state])
        places.append(ends[state])
    found = []
    for i, (size, end) in enumerate(zip(lengths, places, strict=True)):
        if size and (i + 1 == len(text) or lengths[i + 1] <= size):
            found.append(Copy(text[i + 1 - size : i + 1], i + 1 - size, end - size))
    return Copies(len(text) - text.count(SEAM), found)


def draw_sample(model: Model, tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """Draw an unprompted sample, after a newline, at temperature 1: `SAMPLE_ROWS` texts with seams between them.

    Args:
        model: a model in evaluation mode.
        tokenizer: its tokenizer.
        tokens: the number of tokens in all.
        seed: the seed of the first text; the next one has seed + 1.
    """
    count, generators = (
        -(-tokens // SAMPLE_ROWS),
        [RandomNumbers(seed + row) for row in range(SAMPLE_ROWS)],
    )
    context = open_context(model, [prompt_ids(tokenizer, "\n")] * SAMPLE_ROWS, count)
    columns = [step.tokens for step in generate(context, count, Sampling(), generators)]
    return SEAM.join(tokenizer.decode(row) for row in np.stack(columns, axis=1).tolist())
