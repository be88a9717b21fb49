"""`python -m gptlab.lesson N`: run a chapter of docs/lessons, compare its numbers, and check the exercises' answers."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptlab.system.arguments import some_text
from gptlab.system.errors import UserError, command_line

if TYPE_CHECKING:
    from pathlib import Path

    from gptlab.lessons.lesson import Exercise, Lesson


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.lesson", description=__doc__)
    p.add_argument(
        "chapter", metavar="N", nargs="?", type=some_text, help="a chapter, or all (default: list the chapters)"
    )
    p.add_argument(
        "--check",
        nargs="*",
        metavar="ANSWER",
        help="check the exercises: ask on a terminal, or take three answers, - for one that is left open",
    )
    p.add_argument("--solve", action="store_true", help="show the right answers, with their reasons")
    p.add_argument("--again", action="store_true", help="run the commands again, whatever is there already")
    return p


def run(args: argparse.Namespace) -> None:
    """List the chapters, or run some, or check or show answers.

    Raises:
        UserError: there is no such chapter, a command fails, or an answer cannot be read.
        SystemExit: a number is outside its interval, or an answer is not right.
    """
    from gptlab.lessons import show
    from gptlab.lessons.chapters import all_lessons, find_lesson
    from gptlab.lessons.lesson import OUTPUTS

    if args.chapter is None:
        show.list_lessons(all_lessons())
        return
    lessons = all_lessons() if args.chapter == "all" else [find_lesson(args.chapter)]
    folder = OUTPUTS / str(lessons[0].number)
    if args.solve:
        show.show_answers(lessons[0], folder)
    elif args.check is not None:
        check(lessons[0], args.check, folder)
    elif not run_lessons(lessons, args.again):
        sys.exit(1)


def run_lessons(lessons: list[Lesson], again: bool) -> bool:
    """Run chapters, and print their numbers; returns whether all are inside their intervals.

    Raises:
        UserError: a command fails, and there is no chapter besides; else the others are run, too.
    """
    from gptlab.lessons.lesson import OUTPUTS
    from gptlab.lessons.runner import run_lesson
    from gptlab.lessons.show import show_numbers
    from gptlab.system.terminal import duration, harmless

    outside, failed = [], []
    for lesson in lessons:
        print(f"\nchapter {lesson.number}: {lesson.title} ({lesson.page})", flush=True)
        start = time.monotonic()
        try:
            measured = run_lesson(lesson, again=again)
        except KeyboardInterrupt:
            print(f"stopped; python -m gptlab.lesson {lesson.number} goes on from here", file=sys.stderr)
            raise
        except UserError as error:
            if len(lessons) == 1:
                raise
            print(harmless(f"error: {error}"), file=sys.stderr, flush=True)
            failed.append(str(lesson.number))
            continue
        show_numbers(measured)
        print(f"picture: {OUTPUTS / str(lesson.number) / lesson.picture}")
        print(f"{duration(time.monotonic() - start)}; exercises: python -m gptlab.lesson {lesson.number} --check")
        if not all(each.is_inside for each in measured):
            outside.append(str(lesson.number))
    for words, those in (("outside of a stated interval", outside), ("a command failed", failed)):
        if those:
            print(f"{words}: chapter {', '.join(those)}")
    return not (outside or failed)


def check(lesson: Lesson, answers: list[str], folder: Path) -> None:
    """Check the answers to a chapter's exercises, those given or those that a terminal is asked for.

    Raises:
        UserError: there are not three answers, one cannot be read, or there is no terminal to ask.
        SystemExit: an answer is wrong or left open.
    """
    from gptlab.lessons.answers import OPEN, is_right
    from gptlab.lessons.show import show_question

    if not answers and not sys.stdin.isatty():
        raise UserError(f"--check asks on a terminal; here, give answers: {lesson.number} --check ANSWER ANSWER ANSWER")
    if answers and len(answers) != len(lesson.exercises):
        raise UserError(
            f"--check {' '.join(answers)}: the chapter has {len(lesson.exercises)} exercises; give an answer to each, "
            f"{OPEN} for one that is left open"
        )
    right = 0
    for number, exercise in enumerate(lesson.exercises, 1):
        if not answers:
            show_question(number, exercise)
            right += ask(exercise, folder)
        elif answers[number - 1] == OPEN:
            print(f"{number}. open")
        elif is_right(exercise, answers[number - 1], folder):
            right += 1
            print(f"{number}. right")
        else:
            print(f"{number}. not yet: {exercise.hint}")
    print(f"{right} of {len(lesson.exercises)} are right")
    if right < len(lesson.exercises):
        sys.exit(1)


def ask(exercise: Exercise, folder: Path) -> bool:
    """Ask a question until the answer is right, or none is given; Ctrl-D gives none."""
    from gptlab.lessons.answers import is_right
    from gptlab.system.terminal import harmless

    while True:
        try:
            said = input("answer (nothing: leave it open)? ")
        except EOFError:
            print()
            return False
        if not said.strip():
            return False
        try:
            if is_right(exercise, said, folder):
                print("right")
                return True
            print(f"not yet: {exercise.hint}")
        except UserError as error:
            print(harmless(str(error)))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 1 after a `UserError`, a number outside or a wrong answer, 130 after Ctrl-C."""
    with command_line():
        p = parser()
        args = p.parse_args(argv)
        asked = [args.check is not None, args.solve, args.again]
        if sum(asked) > 1:
            p.error("--check, --solve and --again do not go together")
        if any(asked) and args.chapter is None:
            p.error("give a chapter, before the flags: python -m gptlab.lesson 4 --check")
        if args.chapter == "all" and (args.solve or args.check is not None):
            p.error("--check and --solve are for one chapter")
        run(args)


if __name__ == "__main__":
    main()
