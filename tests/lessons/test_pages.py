"""A chapter's page and its module say the same, and its picture is there."""

from __future__ import annotations

import re

import pytest

from gptlab.lessons.chapters import all_lessons
from gptlab.lessons.lesson import OUTPUTS, Choice, Lesson
from gptlab.lessons.runner import read_command
from tests.conftest import ROOT

LESSONS = all_lessons()
EVERY = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: f"{lesson.number:02}-{lesson.name}")


def text_of(lesson: Lesson) -> str:
    return (ROOT / lesson.page).read_text()


def in_one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_chapters_are_numbered_in_their_order() -> None:
    assert [lesson.number for lesson in LESSONS] == list(range(1, len(LESSONS) + 1))


@EVERY
def test_the_page_has_every_command_in_a_fenced_block(lesson: Lesson) -> None:
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", text_of(lesson), re.MULTILINE | re.DOTALL))
    lines = [line.partition("  #")[0].strip() for line in blocks.replace("\\\n", "").splitlines()]
    lines = [in_one_line(line) for line in lines]
    missing = {*lesson.commands, f"python -m gptlab.lesson {lesson.number}"} - {*lines}
    assert not missing
    assert f"python -m gptlab.lesson {lesson.number} --check" in lines


@EVERY
def test_the_pages_table_has_every_number_with_its_interval(lesson: Lesson) -> None:
    rows = [in_one_line(line) for line in text_of(lesson).splitlines()]
    for expected in lesson.expected:
        assert expected.low <= expected.high
        start = f"| {expected.name} | {expected.interval()} |"
        assert any(row.startswith(start) for row in rows), start


@EVERY
def test_the_page_has_the_three_exercises_and_no_answer_of_them(lesson: Lesson) -> None:
    page = in_one_line(text_of(lesson))
    assert len(lesson.exercises) == 3
    for number, exercise in enumerate(lesson.exercises, 1):
        assert f"{number}. {exercise.question}" in page
        if isinstance(exercise.answer, Choice):
            assert exercise.answer.right in exercise.answer.options
            for letter, option in exercise.answer.options.items():
                assert f"{letter}) {option}" in page
        assert exercise.reason not in page


@EVERY
def test_the_page_shows_the_picture_and_says_where_the_code_is(lesson: Lesson) -> None:
    page = text_of(lesson)
    assert re.search(rf"!\[[^\]]+\]\(\.\./pictures/{re.escape(lesson.picture)}\)", page)
    picture = ROOT / "docs" / "pictures" / lesson.picture
    assert picture.stat().st_size <= 100_000
    module = f"gptlab/lessons/chapter_{lesson.number:02}_"
    last = page.rstrip().rpartition("\n")[2]
    assert last.startswith("Code:")
    assert module in last
    assert page.startswith(f"# Chapter {lesson.number}: ")


@EVERY
def test_every_command_writes_into_the_chapters_outputs(lesson: Lesson) -> None:
    for line in lesson.commands:
        command = read_command(line)
        assert command.words[:2] == ("python", "-m")
        assert command.words[2].startswith("gptlab.")
        for place in (command.folder, command.file):
            assert place is None or OUTPUTS / str(lesson.number) in (place, *place.parents)
        assert command.words[2] != "gptlab.train" or command.folder is not None
