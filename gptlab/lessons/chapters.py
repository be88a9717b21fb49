"""Find the chapters: each is a module of this folder, chapter_<number>_<name>.py, whose `LESSON` it is."""

from __future__ import annotations

import importlib
from pathlib import Path

from gptlab.lessons.lesson import Lesson
from gptlab.system.errors import UserError


def all_lessons() -> list[Lesson]:
    """Return the chapters in their order."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("chapter_*.py"))
    return [importlib.import_module(f"gptlab.lessons.{module}").LESSON for module in modules]


def find_lesson(number: str) -> Lesson:
    """Return a chapter by its number as it is typed.

    Raises:
        UserError: there is no such chapter.
    """
    known = {str(lesson.number): lesson for lesson in all_lessons()}
    if number not in known:
        raise UserError(f"{number}: there is no such chapter; there are {', '.join(known)}, and all")
    return known[number]
