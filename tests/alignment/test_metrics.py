"""Each count against the definition: every set of k answers, every pair, every class, written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from gptlab.alignment.metrics import (
    best_of_n,
    best_of_n_curve,
    confusion_counts,
    count_wins,
    f1_scores,
    macro_f1,
    pass_at_k,
    win_rate,
)
from gptlab.system.errors import UserError

RANDOM = np.random.default_rng(0)


def over_all_sets(rows: Any, k: int, of_set: Any) -> float:
    return float(np.mean([np.mean([of_set(list(each)) for each in itertools.combinations(row, k)]) for row in rows]))


@pytest.mark.parametrize("k", range(1, 8))
def test_pass_at_k_is_the_share_of_sets_with_a_right_answer(k: int) -> None:
    right = RANDOM.random((5, 7)) < np.linspace(0, 1, 5)[:, None]
    assert pass_at_k(right, k) == pytest.approx(over_all_sets(right, k, any), abs=1e-12)


def test_pass_at_1_is_the_share_that_is_right() -> None:
    right = RANDOM.random((9, 300)) < 0.1
    assert pass_at_k(right, 1) == pytest.approx(right.mean(), abs=1e-12)
    assert 0 < pass_at_k(right, 299) <= 1  # of numbers of sets that no float holds


def test_pass_at_k_is_unbiased() -> None:
    """Over all outcomes of five samples, each right with probability 0.3; the share's power is biased."""
    outcomes = np.array(list(itertools.product([False, True], repeat=5)))
    weights = np.where(outcomes, 0.3, 0.7).prod(1)
    expected = sum(w * pass_at_k(row[None], 3) for w, row in zip(weights, outcomes, strict=True))
    assert expected == pytest.approx(1 - 0.7**3, abs=1e-12)
    assert weights @ (1 - (1 - outcomes.mean(1)) ** 3) < expected - 0.02


@pytest.mark.parametrize("n", range(1, 8))
def test_the_best_of_n_is_the_mean_over_all_sets(n: int) -> None:
    distinct, tied = RANDOM.normal(size=(4, 7)), RANDOM.integers(0, 3, size=(4, 7))
    for rewards in (distinct, tied):
        assert best_of_n(rewards, n) == pytest.approx(over_all_sets(rewards, n, max), abs=1e-12)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_a_judge_chooses_the_best_and_among_equal_ones_at_random(n: int) -> None:
    rewards, judged = RANDOM.normal(size=(4, 6)), RANDOM.integers(0, 3, size=(4, 6))

    def chosen(pairs: list[tuple[float, int]]) -> float:
        highest = max(by for _, by in pairs)
        return float(np.mean([reward for reward, by in pairs if by == highest]))

    rows = [list(zip(*both, strict=True)) for both in zip(rewards, judged, strict=True)]
    assert best_of_n(rewards, n, judged) == pytest.approx(over_all_sets(rows, n, chosen), abs=1e-12)
    assert best_of_n(rewards, n, rewards) == best_of_n(rewards, n)


def test_a_judge_of_the_wrong_mind_takes_the_worst() -> None:
    rewards = np.array([[1.0, 2.0, 3.0]])
    assert best_of_n(rewards, 3, -rewards) == 1
    assert best_of_n(rewards, 1, -rewards) == pytest.approx(2)


def test_the_curve_doubles_n_up_to_the_samples() -> None:
    rewards = RANDOM.normal(size=(3, 12))
    curve = best_of_n_curve(rewards)
    assert [row[0] for row in curve] == [1, 2, 4, 8]
    assert curve[0][1:] == [pytest.approx(rewards.mean()), 0]
    assert curve[2][1:] == [best_of_n(rewards, 4), pytest.approx(math.log(4) - 3 / 4)]
    assert [row[0] for row in best_of_n_curve(rewards[:, :8])] == [1, 2, 4, 8]
    assert [row[0] for row in best_of_n_curve(rewards[:, :1])] == [1]
    assert best_of_n_curve(rewards, -rewards)[3][1] < curve[0][1]


def test_a_tie_is_half_a_win() -> None:
    a, b = RANDOM.integers(0, 3, size=50), RANDOM.integers(0, 3, size=50)
    scores = [1.0 if x > y else 0.5 if x == y else 0.0 for x, y in zip(a, b, strict=True)]
    assert win_rate(a, b) == pytest.approx(np.mean(scores), abs=1e-12)
    assert win_rate(a, b) + win_rate(b, a) == pytest.approx(1, abs=1e-12)
    assert count_wins(a, b) == (scores.count(1.0), scores.count(0.5), scores.count(0.0))
    assert win_rate(a, a) == 0.5


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    truth, predicted = RANDOM.integers(0, 3, size=60), RANDOM.integers(0, 3, size=60)
    counts = confusion_counts(truth, predicted, 4)  # the fourth class occurs nowhere
    for c, score in enumerate(f1_scores(counts)[:3]):
        hits = sum(t == p == c for t, p in zip(truth, predicted, strict=True))
        precision, recall = hits / sum(predicted == c), hits / sum(truth == c)
        assert score == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
    assert math.isnan(f1_scores(counts)[3])
    assert macro_f1(counts) == pytest.approx(f1_scores(counts)[:3].mean(), abs=1e-12)


def test_rows_of_the_confusion_are_the_truth() -> None:
    """By hand; a class that is never predicted, or only falsely, has an F1 of 0."""
    counts = confusion_counts(np.array([0, 0, 1]), np.array([0, 2, 0]), 3)
    assert counts.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert f1_scores(counts).tolist() == [0.5, 0, 0]
    assert macro_f1(counts) == pytest.approx(1 / 6)
    assert math.isnan(macro_f1(np.zeros((2, 2))))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pass_at_k(np.ones((2, 4)), 5), "k=5: must be from 1 to the 4 answers"),
        (lambda: pass_at_k(np.ones((2, 4)), 0), "k=0: must be from 1"),
        (lambda: pass_at_k(np.ones(4), 1), r"shape \(4,\): must be \(prompts, samples\)"),
        (lambda: pass_at_k(np.ones((0, 4)), 1), "at least one prompt"),
        (lambda: best_of_n(np.ones((2, 4)), 8), "n=8: must be from 1 to the 4 answers"),
        (lambda: best_of_n_curve(np.ones((2, 0))), "n=1: must be from 1 to the 0 answers"),
        (lambda: best_of_n_curve(np.ones(4)), r"must be \(prompts, samples\)"),
        (lambda: best_of_n(np.ones((2, 4)), 2, np.ones((2, 3))), "must be as many"),
        (lambda: win_rate(np.ones(2), np.ones(3)), "each prompt needs one of each"),
        (lambda: win_rate(np.ones(0), np.ones(0)), "at least one in all"),
        (lambda: confusion_counts(np.array([0]), np.array([0, 1]), 2), "1 true classes and 2 predicted ones"),
    ],
)
def test_what_cannot_be_counted_is_said(call: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()
