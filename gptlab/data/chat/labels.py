"""Labelled texts made from a text, whose classes are known: swapped letters or words, and the mark that ends a line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

from gptlab.data.chat.conversations import Labelled
from gptlab.data.chat.splitting import is_of, shuffled, text_share
from gptlab.system.errors import UserError, did_you_mean

LONGEST = 64  # characters of a line
NAME = re.compile(r"[A-Z][A-Za-z '.-]{0,30}:")  # a line that says who speaks
SMALL = re.compile(r"[a-z]+")
WORD = re.compile(r"\b[a-z]+\b")
AS_IS, SWAPPED = "as_is", "swapped"
MARKS = {",": "comma", ".": "period", "?": "question", "!": "exclamation", ";": "semicolon", ":": "colon"}


@dataclass(frozen=True)
class Labels:
    """Lines of a text with their classes.

    | task | line in the text | text | label |
    |---|---|---|---|
    | letters | He jests at scars. | He jetss at scars. | swapped |
    | words | He jests at scars now | He at jests scars now | swapped |
    | mark | He jests at scars? | He jests at scars | question |

    * letters: two neighbouring letters inside of a word are swapped, so that it is none of the text's words; or the
      line is `as_is`. A pretrained model is surprised by such a word.
    * words: two neighbouring words in small letters are swapped, of which the first is not the line's; or it is
      `as_is`. Some lines make sense either way, so that nothing can be right about all.
    * mark: the mark that ended the line and is taken away: comma, period, question, exclamation, semicolon or colon.
      Some are ten times as frequent as others.

    Each line of at most 64 characters comes once, and by its own hash: it is not in two parts, and not in both classes.
    Half of the lines that something could be swapped in are left as they are. Lines that only name a speaker are
    passed over.

    Args:
        task: one of `TASKS`.
        text: the text.
        seed: chooses the parts, the classes and the order of lines.
        held_out: the share of the lines that is held out.

    Raises:
        UserError: there is no such task, or held_out is out of range.
    """

    task: str
    text: str
    seed: int = 0
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"task={self.task}: no such task; {did_you_mean(self.task, TASKS)}")
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out={self.held_out}: must be more than 0 and less than 1")

    def some(self, part: str, most: int) -> list[Labelled]:
        """Return at most `most` labelled lines of a part, train or held_out, in random order."""
        lines = {line.strip() for line in self.text.splitlines()}
        known = set(WORD.findall(self.text)) if self.task == "letters" else lines
        found: dict[str, Labelled | None] = {}  # by the line without its mark
        for line in map(str.strip, self.text.splitlines()):
            bare = _bare(line)
            if len(line) > LONGEST or NAME.fullmatch(line) or not SMALL.search(line) or bare in found:
                continue
            if is_of(part, self.seed, bare, self.held_out):
                found[bare] = _mark(line) if self.task == "mark" else self._as_is_or_swapped(line, known)
        made = [each for each in found.values() if each is not None]
        return shuffled(made, self.seed, f"{self.task} of {part}")[:most]

    def _as_is_or_swapped(self, line: str, known: set[str]) -> Labelled | None:
        """Return a line in one of the two classes, by its hash; None if nothing can be swapped in it."""
        swapped = SWAPS[self.task](line, known)
        if not swapped:
            return None
        if text_share(self.seed, f"class of {line}") < 0.5:
            return Labelled(line, AS_IS)
        return Labelled(swapped[int(text_share(self.seed, f"place in {line}") * len(swapped))], SWAPPED)


def _bare(line: str) -> str:
    return line.rstrip("".join(MARKS)).rstrip()


def _mark(line: str) -> Labelled | None:
    """Return a line without its mark; None if it has none, or several."""
    bare = _bare(line)
    mark = line[len(bare) :].strip()
    return Labelled(bare, MARKS[mark]) if mark in MARKS else None


def _letters(line: str, words: set[str]) -> list[str]:
    """Return all lines with two letters swapped inside of a word, neither its first nor its last."""
    found = []
    for word in WORD.finditer(line):
        for i in range(word.start() + 1, word.end() - 2):
            swapped = line[:i] + line[i + 1] + line[i] + line[i + 2 :]
            if swapped != line and swapped[word.start() : word.end()] not in words:
                found.append(swapped)
    return found


def _words(line: str, lines: set[str]) -> list[str]:
    """Return all lines with two words swapped. A first word would tell by its letter, and a mark by its place."""
    found, parts = [], line.split(" ")
    for i, (one, other) in enumerate(itertools.pairwise(parts)):
        if i and one != other and SMALL.fullmatch(one) and SMALL.fullmatch(other):
            found.append(" ".join([*parts[:i], other, one, *parts[i + 2 :]]))
    return [swapped for swapped in found if swapped not in lines]


SWAPS: dict[str, Callable[[str, set[str]], list[str]]] = {"letters": _letters, "words": _words}
TASKS = (*SWAPS, "mark")
