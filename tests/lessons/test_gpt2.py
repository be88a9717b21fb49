"""Chapter 9: parameters are counted without weights, and weights that are not there are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlab.lessons import chapter_09_gpt2 as chapter
from gptlab.lessons.answers import right_answer


@pytest.mark.parametrize(
    ("size", "count"),
    [("gpt2", 124439808), ("gpt350m", 354823168), ("gpt774m", 774030080), ("gpt1558m", 1557611200)],
)
def test_the_parameters_are_openais(size: str, count: int) -> None:
    assert chapter.parameters_of(size) == count


def test_a_count_is_printed_whole(tmp_path: Path) -> None:
    parameters = chapter.LESSON.expected[0]
    assert parameters.interval() == "124439808"
    assert right_answer(chapter.LESSON.exercises[0], tmp_path) == "1557611200"


def test_weights_that_are_not_there_are_skipped_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chapter.let_speak(str(tmp_path / "no-such-folder"))
    said = capsys.readouterr().out
    assert said.startswith("\nWhat these weights say is skipped, for they are not here. ")
    assert "no-such-folder" in said


def test_weights_that_are_there_continue_the_prompt_in_three_ways(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chapter.let_speak(str(trained))
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.endswith(":")][:1] == ["greedy:"]
    assert "temperature 0.5, top-k 3:" in said
    assert "temperature 2:" in said
