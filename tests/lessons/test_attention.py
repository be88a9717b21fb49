"""Chapter 2, whole: the lesson's numbers, by gptlab's functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptlab.lessons import chapter_02_attention as chapter
from gptlab.lessons.answers import is_right

HERE = Path()


@pytest.mark.parametrize("expected", chapter.LESSON.expected, ids=lambda expected: expected.name)
def test_every_number_is_the_lessons(expected: Any) -> None:
    assert expected.low <= expected.read(HERE) <= expected.high


def test_the_mask_hides_what_comes_later() -> None:
    weights, contexts = chapter.attend(chapter.tokens(), causal=True)
    assert weights.triu(1).count_nonzero() == 0
    assert weights.sum(1).tolist() == pytest.approx([1.0] * 6)
    assert contexts[0].tolist() == pytest.approx(chapter.INPUTS[0])


def test_the_answers() -> None:
    for answers, right in ((("0.506", "0.125", "b"), True), (("0.44", "8", "a"), False)):
        for exercise, said in zip(chapter.LESSON.exercises, answers, strict=True):
            assert is_right(exercise, said, HERE) is right


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    chapter.main()
    printed = capsys.readouterr().out
    for words in ("0.4419 0.6515 0.5683", "0.0326 0.0030 0.1615 0.0030 0.8000", "0.3061 0.8210"):
        assert words in printed
    assert "0.5058" not in printed  # is asked for


def test_the_picture_is_drawn() -> None:
    titles = [axes.get_title() for axes in chapter.draw(HERE).axes]
    assert titles == ["every token sees all", "none sees the future", "softmax of five scores"]
