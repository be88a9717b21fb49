"""Rewards are what their names say; what is wrong with a user's function is said; the controls keep their promises."""

from __future__ import annotations

import itertools
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab.alignment.rewards import (
    Answer,
    bayes_accuracy,
    best_of_n_kl,
    expected_accuracy,
    open_reward,
    preference_probability,
    rhymes,
    shuffled_rewards,
)
from gptlab.system.errors import UserError

MODULE = """
import numpy as np
import torch
def short(answers): return [-len(answer.text) for answer in answers]
def right(answers): return np.array([answer.text == answer.expected for answer in answers])
def tensors(answers): return torch.tensor([0.5] * len(answers))
def generated(answers): return (1 for _ in answers)
def one_number(answers): return 1.0
def word(answers): return "ab"
def none(answers): return None
def words(answers): return ["1"] * len(answers)
def missing(answers): return [None] * len(answers)
def nan(answers): return [1.0, float("nan")]
def many(answers): return [1.0] * 3
def one(answers): return [1.0]
def by_text(answers): return {answer.text: 1.0 for answer in answers}
def by_number(answers): return {1: "a", 2: "b"}
def distinct(answers): return {1.0, 2.0}
def raw(answers): return b"ab"
number = 3

def divides(answers):
    return [1 / 0]

def lacks(answers):
    return [{}[answer.text] for answer in answers]

def says_nothing(answers): raise RuntimeError

def late(answers):
    yield 1.0
    yield np.linalg.inv(np.zeros((2, 2)))
"""


def rewards(texts: list[str], name: str, argument: str = "", expected: str = "") -> list[float]:
    return list(open_reward(name, argument)([Answer("p", text, expected) for text in texts]))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """module(text) makes a module `my_rewards` of it, beside the user."""
    monkeypatch.syspath_prepend(tmp_path)

    def module(text: str = MODULE) -> None:
        (tmp_path / "my_rewards.py").write_text(text)
        monkeypatch.delitem(sys.modules, "my_rewards", raising=False)

    yield module
    sys.modules.pop("my_rewards", None)


def test_exact_match_is_of_the_whole_answer_but_for_spaces_around_it() -> None:
    assert rewards(["42", " 42\n", "4 2", "42.", "142", ""], "exact", expected="42") == [1, 1, 0, 0, 0, 0]


def test_a_regular_expression_is_found_anywhere_unless_it_says_where() -> None:
    assert rewards(["so 12 it is", "twelve", ""], "regex", r"\d+") == [1, 0, 0]
    assert rewards(["so 12", "12"], "regex", r"^\d+$") == [0, 1]


def test_a_function_of_the_users_is_given_all_answers_and_rewards_each(module: Any) -> None:
    module()
    assert rewards(["a", "abc"], "function", "my_rewards:short") == [-1, -3]
    assert rewards(["a", "b"], "function", "my_rewards:right", expected="b") == [0, 1]
    assert rewards(["a", "b"], "function", "my_rewards:tensors") == [0.5, 0.5]
    assert rewards(["a", "b"], "function", "my_rewards:generated") == [1, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rewards", "write it as module:function, e.g. my_rewards:short"),
        (":short", "write it as module:function"),
        ("my_rewards:", "write it as module:function"),
        (".my_rewards:short", "write it as module:function"),
        ("no_rewards:short", "there is no module no_rewards; it must be in this folder or on PYTHONPATH"),
        ("my_rewards.inner:short", "there is no module my_rewards.inner; it must"),
        ("my_rewards:long", "my_rewards has no long"),
        ("my_rewards:number", "is not a function but of type int"),
    ],
)
def test_a_function_that_there_is_not_is_refused_before_any_answer(module: Any, name: str, message: str) -> None:
    module()
    with pytest.raises(UserError, match=f"reward function '{name}': {message}"):
        open_reward("function", name)


def test_what_a_users_module_lacks_is_named(module: Any) -> None:
    module("import no_such_library")
    with pytest.raises(UserError, match="my_rewards imports no_such_library, which is not installed"):
        open_reward("function", "my_rewards:short")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def short(answers:\n    return []", r"SyntaxError: .*my_rewards\.py, line 1\)"),
        ("a = 1\nb = a + c\n", r"NameError: name 'c' is not defined \(.*/my_rewards\.py, line 2\)$"),
        ("from math import none", r"ImportError: cannot import name 'none' .*/my_rewards\.py, line 1\)$"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused(module: Any, text: str, message: str) -> None:
    module(text)
    with pytest.raises(UserError, match=f"reward function 'my_rewards:short': importing my_rewards raised {message}"):
        open_reward("function", "my_rewards:short")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("divides", "ZeroDivisionError: division by zero"),
        ("lacks", "KeyError: 'a'"),
        ("says_nothing", "RuntimeError"),
        ("late", "LinAlgError: Singular matrix"),
    ],
)
def test_what_a_function_raises_is_said_with_its_line(module: Any, function: str, said: str) -> None:
    module()
    lines = MODULE.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"def {function}("))
    number = next(i for i in range(begin, len(lines)) if re.search(r"1 / 0|\{\}|raise|linalg", lines[i])) + 1
    with pytest.raises(UserError) as refused:
        rewards(["a", "b"], "function", f"my_rewards:{function}")
    words = str(refused.value)
    assert words.startswith(f"reward function 'my_rewards:{function}': calling it raised {said} (")
    assert words.endswith(f"my_rewards.py, line {number})")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one_number", r"returned 1.0; it must return a list, a number for each answer"),
        ("word", "returned 'ab'; it must return a list"),
        ("none", "returned None; it must return a list"),
        ("by_text", r"returned \{'a': 1.0, 'b': 1.0\}; it must return a list"),
        ("by_number", r"returned \{1: 'a', 2: 'b'\}; it must return a list"),
        ("distinct", r"returned \{1.0, 2.0\}; it must return a list"),
        ("raw", "returned b'ab'; it must return a list"),
        ("words", "returned '1' for answer 0; it must be a finite number"),
        ("missing", "returned None for answer 0; it must be a finite number"),
        ("nan", "returned nan for answer 1; it must be a finite number"),
        ("many", "returned 3 numbers for 2 answers"),
        ("one", "returned 1 number for 2 answers"),
    ],
)
def test_a_function_that_returns_no_number_for_each_answer_is_refused(module: Any, function: str, message: str) -> None:
    module()
    with pytest.raises(UserError, match=f"reward function 'my_rewards:{function}': {message}"):
        rewards(["a", "b"], "function", f"my_rewards:{function}")


def test_the_lexicon_reward_is_the_share_of_words_in_the_list() -> None:
    found = rewards(["Love, love and hate", "o my love's heart!", "hearts", "12 ...", ""], "lexicon", "LOVE, heart")
    assert found == [0.5, 0.25, 0, 0, 0]


def test_the_rhyme_reward_is_the_share_of_lines_that_rhyme_with_the_one_before() -> None:
    assert rewards(["The light,\n\nthe night;\nthe day", "one line", "the day\nthe day", ""], "rhyme") == [0.5, 0, 0, 0]
    alike = [("love", "dove"), ("see", "tree"), ("day", "say"), ("fire", "desire"), ("king", "sing")]
    apart = [("love", "love"), ("love", "live"), ("king", "kin"), ("hm", "pst"), ("night", "nit")]
    assert [rhymes(a, b) for a, b in alike] == [True] * 5
    assert [rhymes(a, b) for a, b in apart] == [False] * 5


def test_the_reward_without_a_letter_is_the_share_of_words_without_it() -> None:
    found = rewards(["A dog ran far", "The dog", "Even here", "", "é"], "without", "E")
    assert found == [1, 0.5, 0, 0, 1]


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("exakt", "", "reward=exakt: there is no such choice; did you mean exact"),
        ("exact", "42", "reward=exact: takes no argument, found '42'; leave it out"),
        ("regex", "", "reward=regex: needs a regular expression"),
        ("regex", "(", r"reward=regex: '\(' is no regular expression: missing"),
        ("function", " ", "reward=function: needs module:function"),
        ("lexicon", "", "reward=lexicon: needs words"),
        ("lexicon", "12 ,", "reward=lexicon: there is no word in '12 ,'"),
        ("without", "", "reward=without: needs a letter"),
        ("without", "ee", "reward=without: needs one letter, e.g. e; found 'ee'"),
    ],
)
def test_a_reward_that_there_is_not_is_refused(name: str, argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_reward(name, argument)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 5.0])
def test_bayes_accuracy_is_that_of_knowing_the_gold_reward(temperature: float) -> None:
    rng = np.random.default_rng(5)
    difference = rng.normal(size=400_000)
    first = rng.random(len(difference)) < preference_probability(difference, temperature)
    accuracy = bayes_accuracy(difference, temperature)
    assert accuracy == pytest.approx(((difference > 0) == first).mean(), abs=0.004)  # five standard errors
    worse = difference + rng.normal(size=len(difference))  # another reward has less
    assert ((worse > 0) == first).mean() < accuracy - 0.004
    for judge in (worse, -difference, difference):
        expected = expected_accuracy(judge, difference, temperature).mean()
        assert expected == pytest.approx(((judge > 0) == first).mean(), abs=0.004)
    assert expected == pytest.approx(accuracy, abs=1e-12)


def test_a_judge_that_prefers_neither_is_right_half_the_time() -> None:
    margins, difference = np.array([0.0, 3.0, 3.0, -3.0]), np.array([1.0, 0.0, 1.0, 1.0])
    better = 1 / (1 + math.exp(-2))
    assert expected_accuracy(margins, difference, 0.5).tolist() == pytest.approx([0.5, 0.5, better, 1 - better])


def test_preferences_follow_bradley_and_terry() -> None:
    difference = np.array([-1e4, -2.0, 0.0, 1.0, 1e4])
    expected = [0, 1 / (1 + math.exp(4)), 0.5, 1 / (1 + math.exp(-2)), 1]
    assert preference_probability(difference, 0.5).tolist() == pytest.approx(expected)
    assert preference_probability(difference, 0).tolist() == [0, 0, 0.5, 1, 1]
    assert bayes_accuracy(np.zeros(3), 0) == 0.5
    with pytest.raises(UserError, match="temperature=-1: must be at least 0"):
        preference_probability(difference, -1)
    with pytest.raises(UserError, match="there are no pairs"):
        bayes_accuracy(np.array([]), 1)


def test_shuffled_rewards_are_the_same_rewards_in_an_order_of_seed_and_step() -> None:
    rewards = np.arange(64) / 64
    first = shuffled_rewards(rewards, 1, 0)
    assert sorted(first) == rewards.tolist()
    assert np.array_equal(first, shuffled_rewards(rewards, 1, 0))
    assert not np.array_equal(first, shuffled_rewards(rewards, 1, 1))
    assert not np.array_equal(first, shuffled_rewards(rewards, 2, 0))
    mean = np.mean([shuffled_rewards(rewards, 1, step) for step in range(2000)], axis=0)
    assert mean == pytest.approx(np.full(64, rewards.mean()), abs=5 * rewards.std() / math.sqrt(2000))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_kl_of_the_best_of_n_is_its_formula_where_no_two_rewards_are_equal(n: int) -> None:
    """The density of the best one's quantile u is n u^(n-1); its KL to the uniform one, by summing."""
    u = (np.arange(200_000) + 0.5) / 200_000
    density = n * u ** (n - 1)
    assert best_of_n_kl(n) == pytest.approx((density * np.log(density)).mean(), abs=1e-4)


def test_it_is_a_bound_where_rewards_are_equal_and_of_at_least_one_answer() -> None:
    probabilities = np.array([0.5, 0.3, 0.2])  # three answers, of which the last is the best
    best = np.zeros(3)
    for drawn in itertools.product(range(3), repeat=4):
        best[max(drawn)] += probabilities[list(drawn)].prod()
    assert 0 < (best * np.log(best / probabilities)).sum() < best_of_n_kl(4)
    assert best_of_n_kl(1) == 0
    with pytest.raises(UserError, match="n=0: the best of at least 1 answer"):
        best_of_n_kl(0)
