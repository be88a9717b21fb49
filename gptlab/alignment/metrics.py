"""Measure answers and classes by counting: pass@k, the best of n, win rates, confusion and F1; in fp64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gptlab.alignment.rewards import best_of_n_kl
from gptlab.system.errors import UserError


def pass_at_k(right: np.ndarray, k: int) -> float:
    """Return the probability that at least one of k answers to a prompt is right, averaged over the prompts.

    The unbiased estimate from N >= k samples, c of them right: 1 - C(N - c, k) / C(N, k) (Chen et al. 2021,
    https://arxiv.org/abs/2107.03374). That of the share s of right samples, 1 - (1 - s)^k, is biased downwards.

    Args:
        right: whether each of N sampled answers to each of P prompts is right, (P, N) bool.

    Raises:
        UserError: k is not from 1 to N, or there are no prompts.
    """
    samples = _samples(right, k, "k")
    counts = np.asarray(right, dtype=bool).sum(1).tolist()
    return 1 - sum(math.comb(samples - c, k) / math.comb(samples, k) for c in counts) / len(counts)


def best_of_n(rewards: np.ndarray, n: int, judged: np.ndarray | None = None) -> float:
    """Return the expected reward of the best of n answers to a prompt, averaged over the prompts.

    The unbiased estimate from N >= n samples: the mean over all sets of n of them. In ascending order, i = 1 ... N,
    sample i is the best of C(i - 1, n - 1) of the C(N, n) sets (as in https://arxiv.org/abs/2112.09332).

    Args:
        rewards: of N sampled answers to each of P prompts, (P, N).
        judged: what the best is chosen by, (P, N), e.g. a reward model's; answers that it holds equal are as likely
            to be chosen; None: by `rewards` themselves.

    Raises:
        UserError: n is not from 1 to N, there are no prompts, or `judged` is of another shape.
    """
    samples = _samples(rewards, n, "n")
    rewards = np.asarray(rewards, dtype=np.float64)
    judged = rewards if judged is None else np.asarray(judged, dtype=np.float64)
    if judged.shape != rewards.shape:
        raise UserError(f"rewards of {rewards.shape} answers, and judged ones of {judged.shape}: must be as many")
    weights = np.array([math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)])
    best = [_mean_of_ties(row, by) @ weights for row, by in zip(rewards, judged, strict=True)]
    return float(np.mean(best))


def _mean_of_ties(rewards: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Return the rewards in ascending order of `judged`, (N,); where that is equal, the mean of those rewards."""
    _, place = np.unique(judged, return_inverse=True)
    means = np.bincount(place, rewards) / np.bincount(place)
    return means[np.sort(place)]


def best_of_n_curve(rewards: np.ndarray, judged: np.ndarray | None = None) -> list[list[float]]:
    """Return rows of n, the expected reward of the best of n, and its KL in nats, for n = 1, 2, 4, ... up to N.

    The KL is `rewards.best_of_n_kl`, a bound where answers have equal rewards.

    Args:
        rewards, judged: see `best_of_n`.

    Raises:
        UserError: see `best_of_n`.
    """
    doublings = max(1, np.shape(rewards)[-1]).bit_length() if np.ndim(rewards) else 1
    return [[n, best_of_n(rewards, n, judged), best_of_n_kl(n)] for n in (2**i for i in range(doublings))]


def _samples(values: Any, n: int, name: str) -> int:
    """Return N of an array (P, N), from which n are taken.

    Raises:
        UserError: n is not from 1 to N, or there are no prompts.
    """
    shape = np.shape(values)
    if len(shape) != 2 or not shape[0]:
        raise UserError(f"answers of the shape {shape}: must be (prompts, samples), of at least one prompt")
    if not 1 <= n <= shape[1]:
        raise UserError(f"{name}={n}: must be from 1 to the {shape[1]} answers that were sampled for each prompt")
    return shape[1]


def count_wins(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int]:
    """Return how often a's reward is above b's for the same prompt, equal to it, and below it.

    Args:
        a, b: rewards of two models' answers to the same P prompts, (P,).

    Raises:
        UserError: they are not of the same prompts, or there are none.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise UserError(
            f"rewards of {a.shape} and {b.shape} answers: each prompt needs one of each, at least one in all"
        )
    return int((a > b).sum()), int((a == b).sum()), int((a < b).sum())


def win_rate(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of prompts at which a wins against b, a tie counting half.

    `reports.statistics.win_rate_interval` gives its interval, from what `count_wins` returns.

    Args:
        a, b: see `count_wins`.

    Raises:
        UserError: see `count_wins`.
    """
    wins, ties, losses = count_wins(a, b)
    return (wins + ties / 2) / (wins + ties + losses)


def confusion_counts(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return how often each class is predicted for each true class, (K, K) int: a row for each true class.

    Args:
        truth, predicted: numbers of classes from 0 to K - 1, (n,).

    Raises:
        UserError: they are not as many.
    """
    truth, predicted = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if truth.shape != predicted.shape:
        raise UserError(f"{truth.size} true classes and {predicted.size} predicted ones: must be as many")
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def f1_scores(counts: np.ndarray) -> np.ndarray:
    """Return F1 of each class, (K,): 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall.

    It is NaN for a class that is neither true nor predicted anywhere.

    Args:
        counts: see `confusion_counts`, (K, K).
    """
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(0) + counts.sum(1)
    return np.divide(2 * np.diagonal(counts), total, out=np.full(len(counts), np.nan), where=total > 0)


def macro_f1(counts: np.ndarray) -> float:
    """Return the mean of `f1_scores` over the classes that occur, each counted alike; NaN if none does."""
    scores = f1_scores(counts)
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if known.size else math.nan
