"""Continuations are the text's own, whole words, never empty, and each line is in one part."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptlab.data.chat.continuations import Continuations
from gptlab.data.chat.conversations import Conversation
from gptlab.system.errors import UserError

PLAY = """First Citizen:
Speak, friend.

All:
Speak now.
Resolved.

All:
Never mind.
"""


def texts(found: list[Conversation]) -> dict[str, str]:
    assert all(each.given == 1 for each in found)
    assert all([message.role for message in each.messages] == ["user", "assistant"] for each in found)
    return {each.messages[0].content: each.messages[1].content for each in found}


def every(text: str, characters: int) -> dict[str, str]:
    made = Continuations(text, characters=characters)
    return texts(made.some("train", 10**9)) | texts(made.some("held_out", 10**9))


def test_an_answer_is_what_follows_the_line_up_to_a_whole_word() -> None:
    assert every(PLAY, 14) == {
        "First Citizen:": "Speak, friend.",  # of exactly 14 characters
        "Speak, friend.": "All:\nSpeak",
        "All:": "Speak now.",  # what follows it first
        "Speak now.": "Resolved.",
        "Resolved.": "All:\nNever",
    }
    assert every(PLAY, 13)["First Citizen:"] == "Speak,"
    assert every(PLAY, 5) == {"Speak, friend.": "All:", "All:": "Speak", "Resolved.": "All:"}  # the others are empty
    assert every(PLAY, 999)["Speak now."] == "Resolved.\n\nAll:\nNever mind."


def test_every_answer_of_a_real_text_stands_after_its_line(data_dir: Path) -> None:
    text = (data_dir / "tinyshakespeare.txt").read_text()[:50_000]
    found = every(text, 60)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    assert found.keys() == {*lines[:-1]}
    places = {line[0].strip(): line.end() for line in [*re.finditer("^.*$", text, re.M)][::-1]}  # the first of each
    for line, answer in found.items():
        after = text[places[line] :].lstrip()
        assert after.startswith(answer)
        assert 0 < len(answer) <= 60
        assert answer == answer.strip()
        end = len(answer)
        assert not after[end : end + 1].strip()  # a whole word
        following = after[end:].split()
        assert not following or len(after[: after.index(following[0], end) + len(following[0])]) > 60  # no more fits


def test_parts_share_no_line_and_are_the_same_for_a_seed() -> None:
    text = "".join(f"line number {i}\n" for i in range(500))
    train, held_out = (Continuations(text, 1, 0.2).some(part, 999) for part in ("train", "held_out"))
    assert not texts(train).keys() & texts(held_out).keys()
    assert len(train) + len(held_out) == 499
    assert 60 < len(held_out) < 140
    assert Continuations(text, 1, 0.2).some("train", 50) == train[:50]
    assert Continuations(text, 2, 0.2).some("train", 50) != train[:50]
    assert train != sorted(train, key=lambda each: int(each.messages[0].content[12:]))


@pytest.mark.parametrize(
    ("values", "words"),
    [({"held_out": 1.0}, "held_out=1.0: must be more than 0"), ({"characters": 0}, "characters=0: must be at least 1")],
)
def test_what_is_out_of_range_is_refused(values: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Continuations(PLAY, **values)  # type: ignore[arg-type]
