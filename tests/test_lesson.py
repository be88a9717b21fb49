"""`python -m gptlab.lesson`, as a user types it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from gptlab.lessons import chapters
from gptlab.lessons.lesson import Lesson
from tests.lessons.tiny import WRITE, tiny_lesson
from tests.test_cli import assert_refused

OUTPUTS = Path("outputs/lessons/1")
FAILING = """python -c 'import sys; print("half"); sys.exit(3)' > outputs/lessons/1/found.json"""


@pytest.fixture(autouse=True)
def lessons(monkeypatch: pytest.MonkeyPatch) -> Any:
    """lessons(...) makes these the only chapters; before that there is a tiny one."""

    def lessons(*those: Lesson) -> None:
        monkeypatch.setattr(chapters, "all_lessons", lambda: [*those])

    lessons(tiny_lesson())
    return lessons


def test_it_lists_the_chapters(command: Any) -> None:
    result = command("lesson")
    assert result.returncode == 0
    assert "A chapter for tests" in result.stdout
    assert "docs/lessons/01-tiny.md" in result.stdout


@pytest.mark.parametrize("which", ["1", "all"])
def test_it_runs_the_commands_and_compares_the_numbers(command: Any, which: str) -> None:
    result = command("lesson", which)
    assert result.returncode == 0, result.stderr
    assert f"$ {WRITE}" in result.stdout
    assert any(line.split() == ["the", "loss", "2.5", "2.4", "to", "2.6", "ok"] for line in result.stdout.splitlines())
    assert {path.name for path in OUTPUTS.iterdir()} == {"found.json", "lesson-01-tiny.png"}
    assert (OUTPUTS / "lesson-01-tiny.png").read_bytes().startswith(b"\x89PNG")


def test_a_number_outside_of_its_interval_is_exit_code_1(command: Any, lessons: Any) -> None:
    lessons(tiny_lesson(low=2.6, high=2.7))
    result = command("lesson", "1")
    assert result.returncode == 1
    assert "2.6 to 2.7  outside" in result.stdout
    assert "outside of a stated interval: chapter 1" in result.stdout


def test_a_command_that_fails_leaves_nothing_and_later_ones_are_not_run(command: Any, lessons: Any) -> None:
    lessons(tiny_lesson(FAILING, WRITE))
    assert_refused(command("lesson", "1"), "exit code 3")
    assert list(OUTPUTS.iterdir()) == []


def test_of_all_chapters_the_others_are_run_where_one_fails(command: Any, lessons: Any) -> None:
    lessons(tiny_lesson(FAILING), tiny_lesson())
    result = command("lesson", "all")
    assert result.returncode == 1
    assert "error: the command ended with exit code 3" in result.stderr
    assert result.stdout.endswith("a command failed: chapter 1\n")
    assert (OUTPUTS / "lesson-01-tiny.png").is_file()


def test_ctrl_c_ends_the_command_and_leaves_nothing_half_done(command: Any, lessons: Any) -> None:
    """The command is interrupted once, and may save before it ends."""
    saving = 'import os, select, sys\nprint("half", flush=True)\n'
    saving += "try: os.kill(os.getppid(), 2); select.select([], [], [], 60)\n"
    saving += 'except KeyboardInterrupt: open("saved", "w"); sys.exit(130)'
    lessons(tiny_lesson(f"python -c '{saving}' > outputs/lessons/1/found.json"))
    result = command("lesson", "1")
    assert result.returncode == 130
    assert "python -m gptlab.lesson 1 goes on from here" in result.stderr
    assert Path("saved").exists()
    assert list(OUTPUTS.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["11"], ["11: there is no such chapter; there are 1, and all"]),
        (["one", "--check"], ["one: there is no such chapter"]),
        (["1", "--check", "2.5"], ["--check 2.5: the chapter has 3 exercises", "- for one that is left open"]),
        (["1", "--check", "2,5", "b", "65"], ["'2,5' is no number: write it with a point, as 2.5"]),
        (["1", "--check", "-", "-", "many"], ["'many' is no number"]),
        (["1", "--check", "-", "c", "-"], ["'c' is none of the answers: give one of a, b"]),
        (["1", "--check", "2.5", "b", "65"], ["found.json cannot be read", "run the chapter first"]),
        (["1", "--solve"], ["run the chapter first"]),
    ],
)
def test_what_is_refused(command: Any, arguments: list[str], words: list[str]) -> None:
    assert_refused(command("lesson", *arguments), *words)


@pytest.mark.parametrize(
    "arguments", [["--again"], ["all", "--check"], ["1", "--check", "--solve"], ["1", "--solve", "--again"]]
)
def test_flags_that_do_not_go_together(command: Any, arguments: list[str]) -> None:
    assert command("lesson", *arguments).returncode == 2


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        (["2.52", "B", "65"], 0, ["1. right", "2. right", "3. right", "3 of 3 are right"]),
        (["2.6", "a", "1,000"], 1, ["1. not yet: Look into the file.", "2. not yet: Not this.", "0 of 3 are right"]),
        (["-", "b", "66"], 1, ["1. open", "2. right", "3. not yet: Count them.", "1 of 3 are right"]),
    ],
)
def test_answers_are_checked_and_a_wrong_one_gets_a_hint(
    command: Any, answers: list[str], code: int, said: list[str]
) -> None:
    command("lesson", "1")
    result = command("lesson", "1", "--check", *answers)
    assert result.returncode == code, result.stderr
    for line in said:
        assert line in result.stdout.splitlines()
    for solution in ("2.5.", "It is that", "There are 65"):
        assert solution not in result.stdout


def test_the_answers_are_shown_with_their_reasons(command: Any) -> None:
    command("lesson", "1")
    shown = command("lesson", "1", "--solve").stdout
    for words in ("2.5 (within 0.05)", "The file says 2.5.", "b: that", "answer: 65\n"):
        assert words in shown


def test_a_terminal_is_asked_until_the_answer_is_right_or_none_is_given(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("lesson", "1")
    said = iter(["3", "much", "2.5", "", EOFError()])

    def read(prompt: str) -> str:
        line = next(said)
        if isinstance(line, EOFError):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    result = command("lesson", "1", "--check")
    assert result.returncode == 1
    assert result.stdout.count("not yet: Look into the file.") == 1
    assert "'much' is no number" in result.stdout
    assert "1 of 3 are right" in result.stdout
    assert next(said, None) is None


def test_without_a_terminal_answers_must_be_given(command: Any) -> None:
    assert_refused(command("lesson", "1", "--check"), "--check asks on a terminal; here, give answers")


def test_a_signal_that_ends_the_command_is_named(command: Any, lessons: Any) -> None:
    lessons(tiny_lesson(f"python -c 'import os; os.kill(os.getpid(), {int(signal.SIGKILL)})'"))
    assert_refused(command("lesson", "1"), "was killed by signal 9")
