"""Rewards of answers: rules, a function of the user's, gold rewards whose truth is known, and what checks them."""

from __future__ import annotations

import importlib
import itertools
import math
import numbers
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptlab.data.batches import random_numbers
from gptlab.system.errors import UserError, amount, check_choice

SHUFFLE = 7 << 32  # the purpose of the random numbers, added to a seed, which is below 1 << 32
WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


@dataclass(frozen=True)
class Answer:
    """What a model said to a prompt."""

    prompt: str
    """What the user said last."""
    text: str
    expected: str = ""
    """The right answer, where the data has one."""


Reward = Callable[[Sequence[Answer]], Sequence[float]]
"""A reward function: answers to a number for each."""


def open_reward(name: str, argument: str = "") -> Reward:
    """Return a reward function by its name.

    Args:
        name: exact, regex, function, lexicon, rhyme or without.
        argument: a regular expression; module:function; the words of a lexicon, separated by spaces or commas; or the
            letter to be without. The others take none.

    Raises:
        UserError: there is no such reward, or its argument is missing, out of place or wrong.
    """
    check_choice("reward", name, REWARDS)
    make, what = REWARDS[name]
    if what and not argument.strip():
        raise UserError(f"reward={name}: needs {what}")
    if argument.strip() and not what:
        raise UserError(f"reward={name}: takes no argument, found {argument!r}; leave it out")
    return make(argument) if what else make()


# Rules


def exact_match() -> Reward:
    """Return the reward 1 of an answer that is the expected one but for spaces around it, else 0."""
    return lambda answers: [float(answer.text.strip() == answer.expected.strip()) for answer in answers]


def pattern_match(pattern: str) -> Reward:
    """Return the reward 1 of an answer in which a regular expression of Python's `re` is found, else 0.

    Raises:
        UserError: it is no regular expression.
    """
    try:
        found = re.compile(pattern).search
    except re.error as error:
        raise UserError(f"reward=regex: {pattern!r} is no regular expression: {error}") from error
    return lambda answers: [float(found(answer.text) is not None) for answer in answers]


def function_reward(name: str) -> Reward:
    """Return the reward that a Python function computes: it takes a list of `Answer`, and returns a number for each.

    Args:
        name: module:function; the module is on Python's path, e.g. a file in this folder.

    Raises:
        UserError: there is no such function, or its module cannot be imported; or, when it is called, it raises an
            exception, or does not return a finite number for each.
    """
    module, _, attribute = name.partition(":")
    if not (all(part.isidentifier() for part in module.split(".")) and attribute.isidentifier()):
        raise UserError(f"reward function {name!r}: write it as module:function, e.g. my_rewards:short")
    with _explained(name, f"importing {module}"):
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if f"{module}.".startswith(f"{error.name}."):
                why = f"there is no module {error.name}; it must be in this folder or on PYTHONPATH"
            else:
                why = f"{module} imports {error.name}, which is not installed"
            raise UserError(f"reward function {name!r}: {why}") from error
    if not hasattr(found, attribute):
        raise UserError(f"reward function {name!r}: {module} has no {attribute}")
    function = getattr(found, attribute)
    if not callable(function):
        raise UserError(f"reward function {name!r}: is not a function but of type {type(function).__name__}")

    def rewards(answers: Sequence[Answer]) -> list[float]:
        with _explained(name, "calling it"):
            return _checked(function(list(answers)), len(answers), name)

    return rewards


@contextmanager
def _explained(name: str, doing: str) -> Iterator[None]:
    """Let what a user's module raises become a UserError that says what it is, and where in the module."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever that code does
        module = name.partition(":")[0]
        stack = traceback.walk_tb(error.__traceback__)
        own = [(frame.f_code.co_filename, line) for frame, line in stack if frame.f_globals.get("__name__") == module]
        where = f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
        said = ": ".join(filter(None, (type(error).__name__, str(error)[:300])))
        raise UserError(f"reward function {name!r}: {doing} raised {said}{where}") from error


def _checked(returned: Any, count: int, name: str) -> list[float]:
    """Return what a reward function returned as `count` numbers."""
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        raise UserError(
            f"reward function {name!r}: returned {values!r:.99}; it must return a list, a number for each answer"
        )
    values = list(values)
    if len(values) != count:
        raise UserError(f"reward function {name!r}: returned {amount(len(values), 'number')} for {count} answers")
    for i, value in enumerate(values):
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise UserError(f"reward function {name!r}: returned {value!r} for answer {i}; it must be a finite number")
    return [float(value) for value in values]


# Gold rewards, whose truth is known


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case: letters, with apostrophes between them."""
    return [word.lower() for word in WORD.findall(text)]


def share(hits: Iterable[bool]) -> float:
    """Return the share that is true, 0 of none: an empty answer earns nothing."""
    found = list(hits)
    return sum(found) / len(found) if found else 0.0


def lexicon_reward(lexicon: str) -> Reward:
    """Return as the reward the share of an answer's words that are in a list.

    Args:
        lexicon: its words, in upper or lower case.

    Raises:
        UserError: there is no word in it.
    """
    known = set(words_of(lexicon))
    if not known:
        raise UserError(f"reward=lexicon: there is no word in {lexicon!r}")
    return lambda answers: [share(word in known for word in words_of(answer.text)) for answer in answers]


def rhyme_reward() -> Reward:
    """Return as the reward the share of an answer's lines that rhyme with the line before: see `rhymes`.

    Lines without a word are passed over, and the first line is in no share.
    """

    def rhyming(text: str) -> float:
        last = [words[-1] for words in map(words_of, text.splitlines()) if words]
        return share(rhymes(a, b) for a, b in itertools.pairwise(last))

    return lambda answers: [rhyming(answer.text) for answer in answers]


def rhymes(a: str, b: str) -> bool:
    """Return whether two different words have the same letters from the last vowel on, a silent e at the end apart."""
    ends = [re.search(r"[aeiouy]+[^aeiouy]*e?$", word) for word in (a, b)]
    return a != b and all(ends) and len({end.group() for end in ends if end}) == 1


def without_reward(letter: str) -> Reward:
    """Return as the reward the share of an answer's words that are without a letter.

    Raises:
        UserError: it is not a letter.
    """
    letter = letter.strip().lower()
    if len(letter) != 1 or not letter.isalpha():
        raise UserError(f"reward=without: needs one letter, e.g. e; found {letter!r}")
    return lambda answers: [share(letter not in word for word in words_of(answer.text)) for answer in answers]


REWARDS: dict[str, tuple[Callable[..., Reward], str]] = {
    "exact": (exact_match, ""),
    "regex": (pattern_match, r"a regular expression, e.g. \d+"),
    "function": (function_reward, "module:function, e.g. my_rewards:short"),
    "lexicon": (lexicon_reward, "words, e.g. 'love heart sweet'"),
    "rhyme": (rhyme_reward, ""),
    "without": (without_reward, "a letter, e.g. e"),
}
"""How each reward is made, and what it needs."""


# What is known about rewards


def preference_probability(difference: np.ndarray, temperature: float) -> np.ndarray:
    """Return how probably the first of two answers is preferred, after Bradley and Terry: sigmoid(difference / t).

    Args:
        difference: the first one's gold reward minus the second one's, of any shape.
        temperature: 0 prefers the better one always, and either one of two equal ones half the time.

    Raises:
        UserError: the temperature is negative.
    """
    if not temperature >= 0:
        raise UserError(f"temperature={temperature}: must be at least 0, for labels without noise")
    difference = np.asarray(difference, dtype=np.float64)
    if temperature == 0:
        return (np.sign(difference) + 1) / 2
    return (1 + np.tanh(difference / temperature / 2)) / 2  # sigmoid, without overflow


def bayes_accuracy(difference: np.ndarray, temperature: float) -> float:
    """Return the accuracy of knowing the gold reward, on labels of `preference_probability`: no reward model has more.

    Args:
        difference: between the gold rewards of each pair, (n,).
        temperature: of the labels.

    Raises:
        UserError: the temperature is negative, or there are no pairs.
    """
    if not np.size(difference):
        raise UserError("there are no pairs, of which the best possible accuracy could be known")
    return float(preference_probability(np.abs(difference), temperature).mean())


def expected_accuracy(margins: np.ndarray, difference: np.ndarray, temperature: float) -> np.ndarray:
    """Return how probably a label of `preference_probability` agrees with each of a judge's preferences, (n,).

    Its mean is the accuracy that labels drawn again and again would find: without their luck, which in 1800 pairs is a
    point and more. No judge has more than `bayes_accuracy`.

    Args:
        margins: by how much the judge holds the first of two answers better, (n,); 0: it prefers neither.
        difference: between their gold rewards, (n,), the first one's minus the second one's.
        temperature: of the labels.

    Raises:
        UserError: the temperature is negative.
    """
    better = preference_probability(np.abs(difference), temperature)
    agrees = np.sign(margins) * np.sign(difference)
    return 0.5 + agrees * (better - 0.5)


def shuffled_rewards(rewards: np.ndarray, seed: int, step: int) -> np.ndarray:
    """Return the rewards of a step's answers in random order, (n,), the same for the same seed and step.

    A control: the rewards have the same distribution, and say nothing about the answers.
    """
    return np.asarray(rewards)[np.argsort(random_numbers(seed + SHUFFLE, step, len(rewards)), kind="stable")]


def best_of_n_kl(n: int) -> float:
    """Return the most KL that taking the best of n answers can have from taking any, in nats: log n - (n - 1) / n.

    It is the KL where no two answers have the same reward (https://arxiv.org/abs/2112.09332, and as a bound,
    https://arxiv.org/abs/2401.01879).

    Raises:
        UserError: n is below 1.
    """
    if n < 1:
        raise UserError(f"n={n}: the best of at least 1 answer")
    return math.log(n) - (n - 1) / n
