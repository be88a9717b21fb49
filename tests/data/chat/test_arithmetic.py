"""Problems are in one part each, the parts make up all problems, and the answers are right."""

from __future__ import annotations

from collections import Counter

import pytest

from gptlab.data.chat.arithmetic import PARTS, TASKS, Arithmetic
from gptlab.data.chat.conversations import Conversation, Message
from gptlab.system.errors import UserError


def texts(problems: list[Conversation]) -> dict[str, str]:
    """Prompts and answers."""
    return {each.messages[0].content: each.messages[1].content for each in problems}


def truth(task: str, prompt: str) -> str:
    """The answer, by other means than the code's."""
    if task.startswith("add"):
        a, b = prompt.rstrip("=").split("+")
        total = [int(digit) for digit in reversed(str(eval(f"{a.lstrip('0') or 0} + {b.lstrip('0') or 0}")))]
        total += [0] * (len(a) + 1 - len(total))
        return "".join(map(str, total if task == "add_reversed" else reversed(total)))
    word = prompt.rstrip("=").split()[-1]
    if task == "count":
        return str(sum(letter == prompt.split()[1] for letter in word))
    return word if task == "copy" else "".join(letter * Counter(word)[letter] for letter in "abcdefghij")


@pytest.mark.parametrize("task", TASKS)
def test_the_answers_are_right_and_no_others(task: str) -> None:
    problems = Arithmetic(task, 3, seed=5)
    for part in PARTS:
        for prompt, answer in texts(problems.problems(part, 50)).items():
            assert answer == truth(task, prompt)
            assert problems.is_right(prompt, answer)
            for wrong in ("", answer + " ", " " + answer, answer[:-1], answer + answer[-1], answer[::-1] + "0"):
                assert not problems.is_right(prompt, wrong)


def test_problems_are_written_as_the_page_says() -> None:
    adding = Arithmetic("add", 3)
    assert adding.problem(12345, 3) == Conversation((Message("user", "012+345="), Message("assistant", "0357")), 1)
    assert Arithmetic("add_reversed", 3).answer("012+345=") == "7530"
    assert Arithmetic("add", 3).answer("999+999=") == "1998"
    assert texts([Arithmetic("count", 3).problem(103, 3)]) == {"count a in bad=": "1"}
    assert texts([Arithmetic("copy", 3).problem(103, 3)]) == {"copy bad=": "bad"}
    assert texts([Arithmetic("sort", 3).problem(103, 3)]) == {"sort bad=": "abd"}


@pytest.mark.parametrize(("task", "digits", "all_of_them"), [
    ("add", 1, 100), ("add_reversed", 1, 100), ("copy", 3, 1000), ("sort", 3, 1000), ("count", 2, 1000),
])  # fmt: skip
def test_the_parts_do_not_overlap_and_are_all_problems(task: str, digits: int, all_of_them: int) -> None:
    problems = Arithmetic(task, digits, seed=1, held_out=0.2)
    train, held_out, longer = (texts(problems.problems(part)) for part in PARTS)
    assert not train.keys() & held_out.keys()
    assert not (train.keys() | held_out.keys()) & longer.keys()
    assert len(train) + len(held_out) == all_of_them
    assert 0.1 < len(held_out) / all_of_them < 0.3
    assert len(longer) == (9900 if digits == 1 else 10 * all_of_them)


def operands(prompts: dict[str, str]) -> set[tuple[int, int]]:
    pairs = (prompt.rstrip("=").split("+") for prompt in prompts)
    return {(int(a), int(b)) for a, b in pairs}


def test_no_sum_of_two_numbers_is_in_two_parts_in_either_order() -> None:
    problems = Arithmetic("add", 2)
    train, held_out = (operands(texts(problems.problems(part))) for part in ("train", "held_out"))
    assert train | held_out == {(a, b) for a in range(100) for b in range(100)}
    assert not train & {(b, a) for a, b in held_out}
    assert min(max(pair) for pair in operands(texts(problems.problems("longer", 5000)))) >= 100


def test_a_part_is_the_same_for_a_seed_and_begins_alike() -> None:
    problems = Arithmetic("add", 2, seed=3)
    assert problems.numbers("train", 7) == problems.numbers("train")[:7]
    assert problems.numbers("train") == Arithmetic("add", 2, seed=3).numbers("train")
    assert problems.numbers("train") != sorted(problems.numbers("train"))
    assert set(problems.numbers("held_out")) != set(Arithmetic("add", 2, seed=4).numbers("held_out"))


@pytest.mark.parametrize("task", ["add", "copy"])
def test_long_problems_are_drawn_without_listing_them_all(task: str) -> None:
    problems = Arithmetic(task, 8, held_out=0.05)
    found = {part: problems.numbers(part, 2000) for part in PARTS}
    assert all(len(set(numbers)) == 2000 for numbers in found.values())
    assert not set(found["train"]) & set(found["held_out"])
    assert problems.numbers("held_out", 30) == found["held_out"][:30]
    assert {len(prompt) for prompt in texts(problems.problems("longer", 20))} == {20 if task == "add" else 15}


@pytest.mark.parametrize("task", TASKS)
def test_the_characters_are_those_of_all_problems(task: str) -> None:
    problems = Arithmetic(task, 2)
    asked = texts(problems.problems("train", 90)) | texts(problems.problems("held_out", 5))
    found = {c for pair in asked.items() for text in pair for c in text}
    assert found <= set(problems.characters())
    lacking = set(problems.characters()) - found
    assert lacking <= ({*"23456789"} if task == "count" else set())  # how often a letter is in longer words


@pytest.mark.parametrize(("arguments", "message"), [
    (("ad", 3), r"task=ad: no such task; did you mean add\?"),
    (("add", 0), "digits=0: must be at least 1 and at most 8"),
    (("add", 9), "digits=9: must be at least 1 and at most 8"),
    (("add", 3, 0, 0.0), r"held_out=0\.0: must be at least 0\.001 and at most 0\.999"),
])  # fmt: skip
def test_values_out_of_range_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Arithmetic(*arguments)  # type: ignore[arg-type]


def test_what_does_not_exist_is_refused() -> None:
    problems = Arithmetic("add", 1)
    with pytest.raises(UserError, match=r"part=test: no such part; "):
        problems.problems("test")
    with pytest.raises(UserError, match="count=0: must be at least 1"):
        problems.problems("train", 0)
    with pytest.raises(UserError, match=r"count=99: the part train of add with 1 digit has only \d\d problems; take"):
        problems.problems("train", 99)
    with pytest.raises(UserError, match=r"count=null: there are 100,000,000 problems .*; take at most 1,000,000 of"):
        Arithmetic("add", 4).problems("train")
    with pytest.raises(UserError, match=r"count=70000: .*; take at most 50,000 of the part held_out"):
        Arithmetic("add", 4, held_out=0.001).problems("held_out", 70_000)
    with pytest.raises(UserError, match="'1-1=' is no prompt of the task add"):
        problems.answer("1-1=")
