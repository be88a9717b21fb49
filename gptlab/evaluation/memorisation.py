"""What of a text stands word for word in another: the copies that a model has made of its training text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gptlab.data.tokenizers import Tokenizer
from gptlab.generation.context import Context
from gptlab.generation.decoding import generate, prompt_ids
from gptlab.generation.sampling import Sampling
from gptlab.models import Model

ROWS = 10  # texts of a sample, drawn at once
LENGTHS = (10, 20, 30, 50)  # characters: how much of a text lies in copies of at least so many
# Between texts that do not go on into one another, in the text and in the source; no text file has them.
SEAM, SOURCE_SEAM = "\0", "\1"


@dataclass(frozen=True)
class Copy:
    """A stretch of the text that stands in the source."""

    text: str
    begin: int
    """Where it begins in the text."""
    found: int
    """And in the source."""


@dataclass(frozen=True)
class Copies:
    characters: int
    """Of the text, without seams."""
    found: list[Copy]
    """Each stretch that stands in the source and cannot be made longer, in order; they can overlap."""

    @property
    def longest(self) -> int:
        return max((len(copy.text) for copy in self.found), default=0)

    def share(self, length: int) -> float:
        """Of the text's characters, those that lie in copies of at least `length`."""
        covered: set[int] = set()
        for copy in self.found:
            if len(copy.text) >= length:
                covered.update(range(copy.begin, copy.begin + len(copy.text)))
        return len(covered) / self.characters

    def top(self, count: int) -> list[Copy]:
        """The longest copies, without those that overlap a longer one or repeat it."""
        chosen: list[Copy] = []
        for copy in sorted(self.found, key=lambda copy: (-len(copy.text), copy.begin)):
            apart = (c.begin + len(c.text) <= copy.begin or copy.begin + len(copy.text) <= c.begin for c in chosen)
            if len(chosen) < count and all(apart) and copy.text not in {c.text for c in chosen}:
                chosen.append(copy)
        return chosen


class Automaton:
    """The suffix automaton of a text: reads any string that stands in it, and no other.

    Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text". State 0 is the empty string.
    """

    def __init__(self, text: str) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.link = [-1]  # state of the longest suffix that occurs elsewhere, too
        self.length = [0]  # of the longest string that ends in a state
        self.prefixes = []  # state of the text up to each of its characters
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


def copies(text: str, source: Iterable[str]) -> Copies:
    """What of `text`, which is not empty, stands in `source`, each stretch as long as it can be.

    The source is read once, in pieces, a megabyte in a third of a second; what takes memory is the text's automaton.
    """
    automaton = Automaton(text)
    following, link, length = automaton.next, automaton.link, automaton.length
    best, ends = [0] * len(length), [0] * len(length)  # by state: the longest match that ended there, and where it did
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
    # A string in the source has its suffixes there, too.
    for state in sorted(range(1, len(length)), key=length.__getitem__, reverse=True):
        if best[state] and best[link[state]] < length[link[state]]:
            best[link[state]], ends[link[state]] = length[link[state]], ends[state]

    lengths, places = [], []  # of the longest match that ends with each character of the text
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


def sample(model: Model, tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """What the model writes of its own accord, after a new line, at temperature 1: `ROWS` texts, seams between them."""
    count, generators = -(-tokens // ROWS), [torch.Generator().manual_seed(seed + row) for row in range(ROWS)]
    context = Context(model, [prompt_ids(tokenizer, "\n")] * ROWS, count)
    drawn = [step.tokens for step in generate(context, count, Sampling(), generators)]
    return SEAM.join(tokenizer.decode(row) for row in torch.stack(drawn, dim=1).tolist())
