"""Instructions are made from a text alone, each is in one part, and the answers are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlab.data.chat.conversations import Conversation
from gptlab.data.chat.instructions import MAKERS, NUMBERS, Instructions
from gptlab.data.tokenizers import CharTokenizer
from gptlab.system.errors import UserError

PLAY = """First Citizen:
Before we proceed any further, hear me speak.

All:
Speak, speak.

First Citizen:
You are all resolved rather to die than to famish?

All:
Resolved. resolved.
Before we proceed we rest.
"""


def texts(problems: list[Conversation]) -> dict[str, str]:
    return {each.messages[0].content: each.messages[1].content for each in problems}


def every(text: str, task: str) -> dict[str, str]:
    made = Instructions(text)
    return texts(made.made(task, "train")) | texts(made.made(task, "held_out"))


@pytest.fixture(scope="module")
def shakespeare(data_dir: Path) -> str:
    return (data_dir / "tinyshakespeare.txt").read_text()


def test_who_speaks_is_asked_about_the_first_line_of_each_speech() -> None:
    assert every(PLAY, "who") == {
        "Who speaks here? First Citizen: Before we proceed any further, hear me speak.": "First Citizen",
        "Who speaks here? All: Speak, speak.": "All",
        "Who speaks here? First Citizen: You are all resolved rather to die than to famish?": "First Citizen",
        "Who speaks here? All: Resolved. resolved.": "All",
    }


def test_words_are_spelt_backwards_and_their_letters_counted() -> None:
    assert every(PLAY, "backwards")["Spell backwards: proceed"] == "deecorp"
    counted = every(PLAY, "count")
    assert counted["How many letters e are in proceed?"] == "two"
    assert counted["How many letters p are in proceed?"] == "one"
    assert counted["How many letters t are in proceed?"] == "none"
    assert NUMBERS.index("twelve") == 12


def test_a_line_goes_on_in_capitals_unless_several_lines_begin_alike() -> None:
    assert every(PLAY, "continue") == {  # not "Before we proceed", after which there are two
        "Continue in capitals: You are all": "RESOLVED RATHER TO DIE THAN TO FAMISH?",
    }


def test_every_answer_of_a_real_text_is_right(shakespeare: str) -> None:
    made = Instructions(shakespeare, seed=2)
    lines = shakespeare.split("\n")
    problems = made.problems("train", 200) + made.problems("held_out", 200)
    asked = texts(problems)
    assert len(asked) == 400
    for task, (prompt, answer) in zip((each.kind for each in problems), asked.items(), strict=True):
        assert made.is_right(prompt, answer)
        assert not any(made.is_right(prompt, wrong) for wrong in ("", answer + " ", answer[:-1], answer + answer[-1]))
        words = prompt.split(" ")
        if task == "backwards":
            assert [*reversed(answer)] == [*words[-1]]
        elif task == "count":
            assert NUMBERS.index(answer) == [*words[-1]].count(words[3])
        elif task == "continue":
            begin = " ".join(words[3:])
            assert [line[len(begin) + 1 :].upper() for line in lines if line.startswith(begin + " ")][:1] == [answer]
        else:
            at = lines.index(answer + ":")
            assert prompt.startswith(f"Who speaks here? {answer}: ")
            assert prompt.removeprefix(f"Who speaks here? {answer}: ") in lines[at:]
    assert CharTokenizer.fit([shakespeare]).unknown("".join([*asked, *asked.values()])) == []


def test_the_parts_share_no_word_line_or_speech(shakespeare: str) -> None:
    made = Instructions(shakespeare[:200_000])
    words: dict[str, set[str]] = {}
    for part in ("train", "held_out"):
        prompts = [[*texts(made.made(task, part))] for task in MAKERS]
        words[part] = {prompt.split(" ")[-1].rstrip("?") for prompt in prompts[1] + prompts[2]}
        words[f"{part} lines"] = {*prompts[0], *prompts[3]}
    assert not words["train"] & words["held_out"]
    assert not words["train lines"] & words["held_out lines"]
    assert 0.07 < len(words["held_out"]) / len(words["train"] | words["held_out"]) < 0.13


def test_a_part_is_the_same_for_a_seed_and_has_as_many_of_each_task(shakespeare: str) -> None:
    made = Instructions(shakespeare[:100_000], seed=1)
    problems = made.problems("train", 200)
    assert problems == Instructions(shakespeare[:100_000], seed=1).problems("train", 200)
    assert problems != Instructions(shakespeare[:100_000], seed=2).problems("train", 200)
    tasks = [each.kind for each in problems]
    assert {task: tasks.count(task) for task in MAKERS} == dict.fromkeys(MAKERS, 50)
    assert tasks != sorted(tasks)
    assert {each.kind for each in made.problems("train", 20, ["who"])} == {"who"}


def test_a_text_without_speeches_has_the_other_tasks() -> None:
    prose = "It was a bright cold day in April, and the clocks\nwere striking thirteen.\n"
    tasks = {each.kind for each in Instructions(prose, held_out=0.01).problems("train", 3)}
    assert tasks == {"backwards", "count", "continue"}


def test_what_does_not_exist_is_refused() -> None:
    made = Instructions(PLAY)
    with pytest.raises(UserError, match=r"task=whoo: no such task; did you mean who\?"):
        made.problems("train", 3, ["whoo"])
    with pytest.raises(UserError, match="part=val: no such part; "):
        made.problems("val", 3)
    with pytest.raises(UserError, match="count=0: must be at least 1"):
        made.problems("train", 0)
    with pytest.raises(
        UserError, match=r"count=40: that takes 10 of each task, and the text has \d instructions? of the"
    ):
        made.problems("train", 40)
    with pytest.raises(UserError, match="the text has no words, lines or speeches"):
        Instructions("1 2 3").problems("train", 1)
    with pytest.raises(UserError, match=r"held_out=1: must be more than 0 and less than 1"):
        Instructions(PLAY, held_out=1)
    with pytest.raises(UserError, match="'Sing' is no instruction made from this text"):
        made.answer("Sing")
