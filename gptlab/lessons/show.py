"""Print chapters, numbers beside their intervals, and answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from gptlab.lessons.answers import question, right_answer
from gptlab.lessons.lesson import Exercise, Lesson, shown
from gptlab.system.terminal import print_table, table

if TYPE_CHECKING:
    from gptlab.lessons.runner import Measured


def list_lessons(lessons: list[Lesson]) -> None:
    """Print the chapters, with the minutes that their commands take."""
    columns = {
        "chapter": [str(lesson.number) for lesson in lessons],
        "": [lesson.title for lesson in lessons],
        "minutes": [f"{lesson.minutes:g}" for lesson in lessons],
        "page": [lesson.page for lesson in lessons],
    }
    print_table(table(columns), Console(highlight=False))
    print("python -m gptlab.lesson N runs a chapter; minutes are of two cores that have nothing else to do")


def show_numbers(measured: list[Measured]) -> None:
    """Print each number beside its interval."""
    columns = {
        "": [each.expected.name for each in measured],
        "here": [shown(each.value) for each in measured],
        "expected": [each.expected.interval() for each in measured],
        " ": ["ok" if each.is_inside else "outside" for each in measured],
    }
    print_table(table(columns), Console(highlight=False))


def show_question(number: int, exercise: Exercise) -> None:
    """Print a question with the answers that there are."""
    print(f"\n{number}. " + "\n".join(question(exercise)))


def show_answers(lesson: Lesson, folder: Path) -> None:
    """Print each question with its right answer and the reason.

    Raises:
        UserError: an answer is computed from the chapter's outputs, and they are not there.
    """
    for number, exercise in enumerate(lesson.exercises, 1):
        show_question(number, exercise)
        print(f"   answer: {right_answer(exercise, folder)}\n   {exercise.reason}")
