"""Labels are true, nothing but the truth tells them, and each line is in one part and one class."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from gptlab.data.chat.conversations import Labelled
from gptlab.data.chat.labels import AS_IS, LONGEST, MARKS, SWAPPED, TASKS, Labels
from gptlab.system.errors import UserError


@pytest.fixture(scope="module")
def text(data_dir: Path) -> str:
    return (data_dir / "tinyshakespeare.txt").read_text()[:300_000]


def every(task: str, text: str, seed: int = 0) -> list[Labelled]:
    made = Labels(task, text, seed)
    return [row for part in ("train", "held_out") for row in made.some(part, 10**9)]


def lines_of(text: str) -> set[str]:
    return {line.strip() for line in text.split("\n")}


def neighbours(parts: list[str]) -> list[list[str]]:
    """All ways to swap two neighbours."""
    return [[*parts[:i], parts[i + 1], parts[i], *parts[i + 2 :]] for i in range(len(parts) - 1)]


@pytest.mark.parametrize("task", ["letters", "words"])
def test_a_line_is_as_it_is_or_has_two_neighbours_swapped(text: str, task: str) -> None:
    lines, words = lines_of(text), set(re.findall(r"\b[a-z]+\b", text))
    rows = every(task, text)
    counts = Counter(row.label for row in rows)
    assert set(counts) == {AS_IS, SWAPPED}
    assert abs(counts[AS_IS] / len(rows) - 0.5) < 0.03
    origins = []
    for row in rows:
        assert len(row.text) <= LONGEST
        assert (row.text in lines) == (row.label == AS_IS)
        if row.label == AS_IS:
            origins.append(row.text)
            continue
        swapped = neighbours([*row.text]) if task == "letters" else neighbours(row.text.split(" "))
        back = [line for line in (("" if task == "letters" else " ").join(each) for each in swapped) if line in lines]
        assert back, row
        origins.append(back[0])
        if task == "letters":
            assert any(word not in words for word in re.findall(r"\b[a-z]+\b", row.text))
        else:
            assert row.text.split(" ")[0] == back[0].split(" ")[0]
    assert len(set(origins)) == len(rows)


@pytest.mark.parametrize("task", ["letters", "words"])
def test_nothing_but_the_swap_tells_the_class(text: str, task: str) -> None:
    """A line without anything to swap is in neither class, and lengths and first and last words are as frequent."""
    rows = every(task, text)
    lengths = {label: [len(row.text) for row in rows if row.label == label] for label in (AS_IS, SWAPPED)}
    assert abs(sum(lengths[AS_IS]) / len(lengths[AS_IS]) - sum(lengths[SWAPPED]) / len(lengths[SWAPPED])) < 1
    short = "To bed.\nGo to it now, sir.\nI am sick of it.\nCome in with me.\n"
    could = {row.text.split()[0] for seed in range(20) for row in every(task, short, seed)}
    assert could == {"letters": {"I", "Come"}, "words": {"Go", "I", "Come"}}[task]


def test_a_mark_is_taken_away_and_is_the_label(text: str) -> None:
    marks = {name: mark for mark, name in MARKS.items()}
    lines, rows = lines_of(text), every("mark", text)
    assert {row.label for row in rows} == set(marks)
    for row in rows:
        assert {row.text + space + marks[str(row.label)] for space in ("", " ")} & lines
        assert row.text[-1] not in MARKS
    assert len({row.text for row in rows}) == len(rows)
    counts = Counter(row.label for row in rows)
    assert counts["period"] > 3 * counts["exclamation"]
    assert [row.text for row in every("mark", "ROMEO JULIET:\nFirst Citizen:\nHe jests at scars.\nNo...\nYes")] == [
        "He jests at scars"
    ]


@pytest.mark.parametrize("task", TASKS)
def test_parts_share_no_line_and_are_the_same_for_a_seed(text: str, task: str) -> None:
    made = Labels(task, text, 1, 0.2)
    train, held_out = made.some("train", 10**9), made.some("held_out", 10**9)
    assert not {row.text for row in train} & {row.text for row in held_out}
    assert 0.17 < len(held_out) / (len(train) + len(held_out)) < 0.23
    assert made.some("train", 40) == train[:40]
    assert Labels(task, text, 2, 0.2).some("train", 40) != train[:40]
    assert len({row.label for row in train[:40]}) > 1


def test_what_is_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"task=leters: no such task; did you mean letters\?"):
        Labels("leters", "")
    with pytest.raises(UserError, match="held_out=0: must be more than 0"):
        Labels("mark", "", held_out=0)
