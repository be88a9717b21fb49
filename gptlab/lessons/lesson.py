"""What a chapter is: its commands, the numbers that they should give, its picture and its exercises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTPUTS = Path("outputs/lessons")
"""Where the commands of chapter N write: into the folder N below it."""

Read = Callable[[Path], float]
"""Reads or computes a number; its argument is the folder of the chapter's outputs. Raises UserError."""


def shown(number: float, digits: int = 6) -> str:
    """Return a number as chapters print it: with so many digits, or whole."""
    return f"{number:.0f}" if float(number).is_integer() else f"{number:.{digits}g}"


@dataclass(frozen=True)
class Expected:
    """A number that a chapter's commands should give.

    Attributes:
        name: a row of the chapter's page has it.
        low, high: the interval in which it should lie, see docs/lessons/README.md.
    """

    name: str
    read: Read
    low: float
    high: float

    def interval(self) -> str:
        """Return the interval as the page has it."""
        low, high = (shown(bound, 8) for bound in (self.low, self.high))
        return low if low == high else f"{low} to {high}"


def rounded(name: str, read: Read, value: float, digits: int = 4) -> Expected:
    """Return a number that no seed changes: the interval is what rounds to `value` at so many digits."""
    half = 0.5 * 10**-digits
    return Expected(name, read, round(value - half, digits + 1), round(value + half, digits + 1))


@dataclass(frozen=True)
class Choice:
    """An answer by a letter."""

    options: dict[str, str]
    right: str


@dataclass(frozen=True)
class Value:
    """An answer by a number.

    Attributes:
        value: the right one, or what computes it.
        tolerance: how far a right answer may be from it.
    """

    value: float | Read
    tolerance: float

    def right(self, folder: Path) -> float:
        return self.value(folder) if callable(self.value) else self.value


@dataclass(frozen=True)
class Exercise:
    """A question that a command checks the answer to.

    Attributes:
        hint: what a wrong answer gets; it does not say the right one.
        reason: why the right answer is right.
    """

    question: str
    answer: Choice | Value
    hint: str
    reason: str


@dataclass(frozen=True)
class Lesson:
    """A chapter.

    Attributes:
        name: one word, part of the names of its page and its picture.
        minutes: how long its commands take on two cores.
        commands: what a student types, `python -m gptlab...`, perhaps with `> FILE` at its end. They write below
            outputs/lessons/<number>/.
        draw: draws the picture from the folder of the chapter's outputs.
    """

    number: int
    name: str
    title: str
    minutes: float
    commands: tuple[str, ...]
    expected: tuple[Expected, ...]
    draw: Callable[[Path], Figure]
    exercises: tuple[Exercise, Exercise, Exercise]

    @property
    def page(self) -> str:
        """The path of the chapter's page in the checkout."""
        return f"docs/lessons/{self.number:02}-{self.name}.md"

    @property
    def picture(self) -> str:
        """The name of the picture's file, in the chapter's outputs and in docs/pictures/."""
        return f"lesson-{self.number:02}-{self.name}.png"
