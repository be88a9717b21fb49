"""People say which of two answers is better: nothing typed is lost, and the file is data for training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptlab.data.chat.conversations import Message, Preference, read_examples
from gptlab.generation.ranking import Pair, Rankings
from gptlab.reports.statistics import share_interval
from tests.conftest import Result

PROMPTS = ["the cat sees", "a king", "old dog", "the night", "a day", "the queen"]
QUICK = ("--max-new-tokens", "9")


@pytest.fixture
def rank(command: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """rank("1", "tie", ..., flags=[...]) ranks with these answers; then the keyboard says that there are no more."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")

    def rank(*said: str, flags: tuple[str, ...] = (), model: Path = trained) -> Result:
        lines = iter(said)

        def read(prompt: str) -> str:
            line = next(lines, None)
            if line is None:
                raise EOFError
            if line == "^C":
                raise KeyboardInterrupt
            return line

        monkeypatch.setattr("builtins.input", read)
        return command("rank", str(model), str(prompts), "out.jsonl", *QUICK, *flags)

    return rank


def rows(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_preferred_answer_is_the_chosen_one_of_a_row_for_training(rank: Any, tmp_path: Path) -> None:
    result = rank("1", "2", "what", "t", "s", "2", "quit")
    assert result.returncode == 0, result.stderr
    assert "out.jsonl: 3 ranked, 1 tied, 1 skipped" in result.stderr
    found = read_examples([tmp_path / "out.jsonl"])
    assert found.form == ("prompt", "chosen", "rejected")
    for row, example, number in zip(rows(), found.rows, (0, 1, 4), strict=True):
        assert example == Preference(
            (Message("user", PROMPTS[number]),),
            (Message("assistant", row["chosen"]),),
            (Message("assistant", row["rejected"]),),
        )
    assert [sorted(row.keys() & {"tie", "skipped"}) for row in rows("out.unranked.jsonl")] == [["tie"], ["skipped"]]


def test_it_shows_two_answers_and_hides_whose_they_are(rank: Any, trained: Path) -> None:
    result = rank("1")
    [row] = rows()
    shown = "".join(result.stdout.split()).replace("│", "").replace("─", "")
    for answer in (row["chosen"], row["rejected"]):
        assert "".join(answer.split())[:12] in shown
    assert str(trained) not in result.stdout
    assert row["chosen_model"] == row["rejected_model"]
    assert row["chosen"] != row["rejected"]


def test_it_goes_on_where_it_stopped_with_the_same_answers(rank: Any, tmp_path: Path) -> None:
    assert rank(*"112212").returncode == 0
    whole = Path("out.jsonl").read_text()
    Path("out.jsonl").unlink()
    assert rank("1", "1", "^C").returncode == 130
    with Path("out.jsonl").open("a") as file:
        file.write('{"prompt": "half a r')  # as a killed process leaves it
    result = rank(*"2212")
    assert "going on after 2 prompts of 6" in result.stderr
    assert Path("out.jsonl").read_text() == whole
    assert rank().returncode == 0  # nothing is left to ask
    assert Path("out.jsonl").read_text() == whole


def test_which_answer_is_first_is_drawn_by_the_seed(rank: Any) -> None:
    orders = []
    for seed in "0", "1":
        Path("out.jsonl").unlink(missing_ok=True)
        rank(*"111111", flags=("--seed", seed))
        orders.append([row["chosen"] for row in rows()])
    assert len(orders[0]) == 6
    assert orders[0] != orders[1]


def test_two_models_are_compared_with_an_interval(rank: Any, untouched: Path, trained: Path) -> None:
    result = rank(*"121212", flags=("--also", str(untouched)))
    models = {name for row in rows() for name in (row["chosen_model"], row["rejected_model"])}
    assert models == {str(trained), str(untouched)}
    won = sum(row["chosen_model"] == str(trained) for row in rows())
    assert f"wins {won / 6:.1%} of 6 (95% interval " in result.stderr
    assert {row["chosen_model"] for row in rows()} == models  # the same key is not the same model


@pytest.mark.parametrize(
    ("won", "count", "low", "high"), [(5, 10, 0.2366, 0.7634), (0, 4, 0.0, 0.4899), (6, 6, 0.6097, 1)]
)
def test_the_interval_of_a_share_is_wilsons(won: int, count: int, low: float, high: float) -> None:
    z, share = 1.959964, won / count
    middle, half = share + z**2 / 2 / count, z * (share * (1 - share) / count + (z / 2 / count) ** 2) ** 0.5
    formula = [(middle + sign * half) / (1 + z**2 / count) for sign in (-1, 1)]
    assert share_interval(won, count) == pytest.approx(formula, abs=1e-6)
    assert share_interval(won, count) == pytest.approx((low, high), abs=1e-4)


def test_nobody_is_asked_to_choose_between_equal_answers(rank: Any) -> None:
    result = rank(flags=("--temperature", "1e-6"))
    assert result.returncode == 0
    assert "0 ranked, 6 with nothing to choose between" in result.stderr
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--max-new-tokens", "0"), "--max-new-tokens 0: must be at least 1"),
        (("--seed", "-1"), "--seed -1: must be at least 0"),
        (("--temperature", "0"), "--temperature 0: must be above 0, or both answers are the same"),
        (("--also", "nowhere"), "nowhere"),
    ],
)
def test_what_is_refused(rank: Any, flags: tuple[str, ...], words: str) -> None:
    result = rank("1", flags=flags)
    assert result.returncode == 1
    assert words in result.stderr
    assert not Path("out.jsonl").exists()


def test_the_same_model_twice_is_refused(rank: Any, trained: Path) -> None:
    assert f"--also {trained}: it is the same model; leave it out" in rank("1", flags=("--also", str(trained))).stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '{"prompt": "other", "chosen": "a", "rejected": "b", "number": 0, "chosen_model": "m", '
            '"rejected_model": "m"}\n',
            "is not prompt 1",
        ),
        ('{"prompt": "other", "chosen": "a", "rejected": "b"}\n', "its rows are not of this command"),
        ("[1]\n", "its rows are not of this command"),
        ("words\n", "its rows are not of this command"),
    ],
)
def test_another_file_is_not_written_to(rank: Any, content: str, words: str) -> None:
    Path("out.jsonl").write_text(content)
    result = rank("1")
    assert result.returncode == 1
    assert words in result.stderr
    assert Path("out.jsonl").read_text() == content


def test_rankings_of_other_models_are_not_gone_on_with(rank: Any, trained: Path, untouched: Path) -> None:
    """They would count as wins and losses of these."""
    also = ("--also", str(untouched))
    for begun, then in ((also, ()), ((), also)):
        Path("out.jsonl").unlink(missing_ok=True)
        rank("1", "2", "quit", flags=begun)
        before = Path("out.jsonl").read_text()
        result = rank("1", flags=then)
        assert result.returncode == 1
        names = [" and ".join(sorted([str(trained), str(untouched)])), str(trained)]
        assert f"out.jsonl: it ranks {names[0] if begun else names[1]}, not " in result.stderr
        assert Path("out.jsonl").read_text() == before


def test_prompts_are_checked_before_anyone_is_asked(rank: Any, command: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "odd.txt").write_text("the cat\nXYZ\n")
    for name, words in (("empty.txt", "is empty"), ("odd.txt", "never seen"), ("gone.txt", "No such file")):
        result = command("rank", str(trained), name, "out.jsonl")
        assert result.returncode == 1
        assert words in result.stderr


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("gone/out.jsonl", "cannot write in gone: No such file or directory"),
        ("prompts.txt/out.jsonl", "cannot write in prompts.txt: Not a directory"),
        (".", "OUT .: Is a directory; give a file"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_anyone_is_asked(
    command: Any, trained: Path, tmp_path: Path, out: str, words: str
) -> None:
    (tmp_path / "prompts.txt").write_text("the cat\n")
    result = command("rank", str(trained), "prompts.txt", out)
    assert result.returncode == 1
    assert words in result.stderr
    assert "1 of 1" not in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_an_answer_with_an_unusual_line_end_is_one_row(tmp_path: Path) -> None:
    pair = Pair(0, "a\u2028b", ("c\x85d", "e"), ("one", "two"))
    rankings = Rankings(tmp_path / "out.jsonl", [pair.prompt], ["one", "two"])
    rankings.add(pair, 0)
    assert Rankings(tmp_path / "out.jsonl", [pair.prompt], ["one", "two"]).done == {0}
