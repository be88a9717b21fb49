"""Check the answers to a chapter's exercises."""

from __future__ import annotations

import math
from pathlib import Path

from gptlab.lessons.lesson import Choice, Exercise, shown
from gptlab.system.errors import UserError

OPEN = "-"  # stands for an answer that is not given


def is_right(exercise: Exercise, said: str, folder: Path) -> bool:
    """Return whether an answer is right.

    Args:
        said: the answer as typed.
        folder: the folder of the chapter's outputs.

    Raises:
        UserError: it cannot be read, or the right one is computed from outputs that are not there.
    """
    answer = exercise.answer
    if isinstance(answer, Choice):
        letter = said.strip().lower()
        if letter not in answer.options:
            raise UserError(f"{said!r} is none of the answers: give one of {', '.join(answer.options)}")
        return letter == answer.right
    return abs(read_number(said) - answer.right(folder)) <= answer.tolerance


def read_number(said: str) -> float:
    """Read a number as people write it: 2.24, 65, 1,000, 4e-3.

    Raises:
        UserError: it is none.
    """
    text = said.strip()
    whole, _, rest = text.partition(",")
    if rest and "." not in text and len(rest) != 3:  # a decimal comma
        raise UserError(f"{said!r} is no number: write it with a point, as {whole}.{rest}")
    try:
        found = float(text.replace(",", ""))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{said!r} is no number: write one such as 2.24 or 65")
    return found


def right_answer(exercise: Exercise, folder: Path) -> str:
    """Return the right answer as the student would type it, with how far one may be from it."""
    answer = exercise.answer
    if isinstance(answer, Choice):
        return f"{answer.right}: {answer.options[answer.right]}"
    near = f" (within {answer.tolerance:g})" if answer.tolerance else ""
    return f"{shown(answer.right(folder))}{near}"


def question(exercise: Exercise) -> list[str]:
    """Return the lines of a question: itself, and the answers that there are."""
    options = exercise.answer.options if isinstance(exercise.answer, Choice) else {}
    return [exercise.question, *(f"   {letter}) {text}" for letter, text in options.items())]
