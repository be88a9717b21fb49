"""Lines of a text, each with what follows it: what a model learns before its continuations are rewarded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gptlab.data.chat.conversations import Conversation, Message
from gptlab.data.chat.splitting import is_of, shuffled
from gptlab.system.errors import UserError

LINE = re.compile(r"^.*\w.*$", re.M)


@dataclass(frozen=True)
class Continuations:
    """Lines as prompts, and as the answer the text after each.

    | prompt | answer, of at most 60 characters |
    |---|---|
    | First Citizen: | Before we proceed any further, hear me speak. / All: |

    The answer begins with the next line that is not empty, and ends with the last word, or mark beside it, that is
    whole; between its lines stand the text's own line ends. A line comes once, with what follows it first. A hash of
    the line decides whether it is in the part `train` or `held_out`: no prompt is in both, but what follows a line may
    be a prompt of the other part.

    Args:
        text: the text.
        seed: chooses the parts and the order of lines.
        held_out: the share of the lines that is held out.
        characters: the most of an answer.

    Raises:
        UserError: a value is out of range.
    """

    text: str
    seed: int = 0
    held_out: float = 0.1
    characters: int = 60

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out={self.held_out}: must be more than 0 and less than 1")
        if self.characters < 1:
            raise UserError(f"characters={self.characters}: must be at least 1")

    def some(self, part: str, most: int) -> list[Conversation]:
        """Return at most `most` lines of a part, train or held_out, in random order, each with its answer."""
        found = [
            Conversation((Message("user", line), Message("assistant", answer)), given=1)
            for line, answer in self._answers().items()
            if is_of(part, self.seed, line, self.held_out)
        ]
        return shuffled(found, self.seed, f"continuations of {part}")[:most]

    def _answers(self) -> dict[str, str]:
        """Return what follows each line that is followed by a word that fits."""
        found: dict[str, str] = {}
        for line in LINE.finditer(self.text):
            if (prompt := line[0].strip()) not in found and (answer := self._after(line.end())):
                found[prompt] = answer
        return found

    def _after(self, begin: int) -> str:
        """Return as many whole words of the text from a place on as fit."""
        while begin < len(self.text) and self.text[begin].isspace():
            begin += 1
        stretch = self.text[begin : begin + self.characters + 1]
        if len(stretch) > self.characters:  # what ends in the middle of a word, or is one character too long
            stretch = stretch[: max((i for i, character in enumerate(stretch) if character.isspace()), default=0)]
        return stretch.rstrip()
