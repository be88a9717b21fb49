"""Instructions made from a training text, whose answers are known: who speaks, spelling, counting, continuing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from gptlab.data.chat.conversations import Conversation, Message
from gptlab.data.chat.splitting import HELD_OUT, TRAIN, is_of, shuffled
from gptlab.system.errors import UserError, amount, did_you_mean

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
SPEECH = re.compile(r"^([A-Z][A-Za-z '.-]{0,30}):\n(.+)$", re.M)
WORD = re.compile(r"\b[a-z]{3,12}\b")
LINE = re.compile(r"^(?=.*[a-z])(\S+(?: \S+){2}) (\S.{0,60})$", re.M)
WHO, BACKWARDS, COUNT, CONTINUE = (
    "Who speaks here?",
    "Spell backwards:",
    "How many letters",
    "Continue in capitals:",
)


Made = list[tuple[str, str, str]]
"""What an instruction is about, its prompt, and the answer."""


@dataclass(frozen=True)
class Instructions:
    """Instructions whose words, lines and speeches come from a text, each with its only right answer.

    | task | prompt | answer |
    |---|---|---|
    | who | Who speaks here? ROMEO: He jests at scars. | ROMEO |
    | backwards | Spell backwards: jests | stsej |
    | count | How many letters s are in jests? | two |
    | continue | Continue in capitals: He jests at | SCARS. |

    Numbers are words, so that the text's characters suffice. What is asked about decides by its hash whether an
    instruction is for training or held out: a word is in one part in all tasks. A line is only taken if no other line
    of the text begins with the same three words, and a speech, which begins with its speaker's name as in a play, is
    its first line.

    Args:
        text: the training text.
        seed: chooses the parts and the order of instructions.
        held_out: the share of the words, lines and speeches that is held out.

    Raises:
        UserError: held_out is out of range.
    """

    text: str
    seed: int = 0
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out={self.held_out}: must be more than 0 and less than 1")

    def problems(self, part: str, count: int, tasks: Iterable[str] = ()) -> list[Conversation]:
        """Return `count` instructions of a part, as many of each task, in random order, none twice.

        Args:
            part: train or held_out.
            tasks: of who, backwards, count and continue; none: all of which the text has any.

        Raises:
            UserError: there is no such part or task, or the text has not so many.
        """
        if part not in (TRAIN, HELD_OUT):
            raise UserError(f"part={part}: no such part; {did_you_mean(part, (TRAIN, HELD_OUT))}")
        if count < 1:
            raise UserError(f"count={count}: must be at least 1")
        made = {task: self.made(task, part) for task in tasks or MAKERS}
        made = {task: found for task, found in made.items() if found or tasks}
        if not made:
            raise UserError("the text has no words, lines or speeches in small letters to make instructions of")
        each = -(-count // len(made))
        for task, found in made.items():
            if len(found) < each:
                there = amount(len(found), "instruction")
                raise UserError(
                    f"count={count}: that takes {each:,} of each task, and the text has {there} of the task {task} in "
                    f"the part {part}; take fewer, other tasks, or a longer text"
                )
        chosen = [one for task, found in made.items() for one in shuffled(found, self.seed, task)[:each]]
        return shuffled(chosen, self.seed, part)[:count]

    def some(self, part: str, most: int) -> list[Conversation]:
        """Return at most `most` instructions of a part in random order, as many of each task as far as there are."""
        each = -(-most // len(MAKERS))
        chosen = [one for task in MAKERS for one in shuffled(self.made(task, part), self.seed, task)[:each]]
        return shuffled(chosen, self.seed, part)[:most]

    def made(self, task: str, part: str) -> list[Conversation]:
        """Return all instructions of a task that belong to a part, in the order of the text.

        Raises:
            UserError: there is no such task.
        """
        if task not in MAKERS:
            raise UserError(f"task={task}: no such task; {did_you_mean(task, MAKERS)}")
        return [
            Conversation((Message("user", prompt), Message("assistant", answer)), given=1, kind=task)
            for key, prompt, answer in self._made[task]
            if is_of(part, self.seed, key, self.held_out)
        ]

    @cached_property
    def _made(self) -> dict[str, Made]:
        """The instructions of each task."""
        return {task: make(self.text) for task, make in MAKERS.items()}

    @cached_property
    def _answers(self) -> dict[str, str]:
        return {prompt: answer for made in self._made.values() for _, prompt, answer in made}

    def answer(self, prompt: str) -> str:
        """Return the right answer to a prompt.

        Raises:
            UserError: it is no instruction made from this text.
        """
        if prompt not in self._answers:
            raise UserError(f"{prompt!r:.99} is no instruction made from this text")
        return self._answers[prompt]

    def is_right(self, prompt: str, answer: str) -> bool:
        """Return whether an answer is right: exactly what `answer` returns, without anything around it."""
        return answer == self.answer(prompt)


def _who(text: str) -> Made:
    speeches = dict.fromkeys((name, line) for name, line in SPEECH.findall(text))
    return [(f"{name} {line}", f"{WHO} {name}: {line}", name) for name, line in speeches]


def _words(text: str) -> list[str]:
    return [*dict.fromkeys(WORD.findall(text))]


def _backwards(text: str) -> Made:
    return [(word, f"{BACKWARDS} {word}", word[::-1]) for word in _words(text)]


def _count(text: str) -> Made:
    """Return an instruction for each word and letter in it, and for one letter that is not in it."""
    made = []
    for word in _words(text):
        other = next(letter for letter in "etaoinshrdlucm" if letter not in word)  # no word has all of them
        for letter in [*dict.fromkeys(word), other]:
            made.append((word, f"{COUNT} {letter} are in {word}?", NUMBERS[word.count(letter)]))
    return made


def _continue(text: str) -> Made:
    lines: dict[str, set[str]] = {}
    for begin, rest in LINE.findall(text):
        lines.setdefault(begin, set()).add(rest)
    return [
        (begin, f"{CONTINUE} {begin}", next(iter(rests)).upper()) for begin, rests in lines.items() if len(rests) == 1
    ]


MAKERS: dict[str, Callable[[str], Made]] = {
    "who": _who,
    "backwards": _backwards,
    "count": _count,
    "continue": _continue,
}
