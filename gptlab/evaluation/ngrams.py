"""N-gram models with interpolated modified Kneser-Ney smoothing.

Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling" (TR-10-98), section 4.1.6. The
highest order discounts counts; each lower one discounts in how many contexts an n-gram was seen; below order 1 all
tokens are equally probable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gptlab.system.errors import UserError

HIGHEST_ORDER = 6  # of ngram:N


def ngram_order(name: str) -> int | None:
    """Return the order that a candidate's name gives: 6 for ngram:6, 0 for uniform, None for any other model.

    Raises:
        UserError: the order of ngram:N is not a number from 1 to 6.
    """
    orders = {"uniform": 0} | {f"ngram:{n}": n for n in range(1, HIGHEST_ORDER + 1)}
    if name.startswith("ngram:") and name not in orders:
        raise UserError(f"{name}: the order must be a number from 1 to {HIGHEST_ORDER}, as in ngram:{HIGHEST_ORDER}")
    return orders.get(name)


@dataclass(frozen=True)
class Order:
    """The distinct n-grams of one length in the training text; an n-gram's number is its index here.

    Its code is (the number of its first n - 1 tokens) * V + its last token, so that no two codes collide.
    """

    codes: np.ndarray
    """The codes, (n-grams,) int64, sorted."""
    probabilities: np.ndarray
    """This order's part of the probability of the last token after the others, (n-grams,) float64."""
    shares: np.ndarray
    """The weight of the next lower order after each context, (contexts,) float64."""

    def find(self, codes: np.ndarray) -> np.ndarray:
        """Return the numbers of the n-grams with these codes; -1 for an n-gram that the training text lacks."""
        places = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        return np.where(self.codes[places] == codes, places, -1)


def kneser_ney_discounts(counts: np.ndarray) -> np.ndarray:
    """Return the discounts for n-grams seen 0, 1, 2, and 3 or more times, (4,): equation 26 of the paper.

    They are estimated from the number of n-grams with each count. Where that fails, as in a short text or with few
    distinct tokens, the discount is half of the count, at most 1.5.
    """
    n = np.bincount(np.minimum(counts, 5).astype(np.int64), minlength=6)
    found = [0.0]
    for c in (1, 2, 3):
        y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.0
        discount = c - (c + 1) * y * n[c + 1] / n[c] if n[c] and n[c + 1] else math.nan
        found.append(discount if 0 < discount < c else c / 2)
    return np.array(found)


class NGrams:
    """An n-gram model: the probability of a token given up to `order` - 1 tokens before it.

    Args:
        ids: the training text, (n,).
        vocab_size: the number of tokens, V.
        order: the longest n-gram; 0 counts nothing, so that every token has the probability 1 / V.
    """

    def __init__(self, ids: np.ndarray, vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        self.orders: list[Order] = []
        numbers = np.zeros(len(ids) + 1, dtype=np.int64)  # the n-gram that ends at each index; first the empty one
        codes = counts = np.zeros(1, dtype=np.int64)
        contexts = 0
        for n in range(1, min(order, len(ids)) + 1):
            shorter, endings = codes, numbers[1:]
            codes, first, numbers, counts = np.unique(
                numbers[:-1] * vocab_size + ids[n - 1 :], return_index=True, return_inverse=True, return_counts=True
            )
            if n > 1:  # each distinct n-gram is one context of the (n-1)-gram that it ends with
                seen_after = np.bincount(endings[first], minlength=len(shorter))
                self.orders.append(_order_of_counts(shorter, seen_after, vocab_size, contexts))
            contexts = len(shorter)
        if contexts:
            self.orders.append(_order_of_counts(codes, counts, vocab_size, contexts))

    def nats(self, ids: np.ndarray) -> np.ndarray:
        """-ln of the probability of each token after the first, (n - 1,) float64.

        Args:
            ids: the text, (n,); the first tokens have shorter contexts.
        """
        probability = np.full(len(ids), 1 / self.vocab_size)
        contexts = np.zeros(len(ids), dtype=np.int64)  # the (n-1)-gram before each token; -1: never seen
        for order in self.orders:
            here = np.flatnonzero(contexts >= 0)
            numbers = np.full(len(ids), -1)
            numbers[here] = order.find(contexts[here] * self.vocab_size + ids[here])
            probability[here] *= order.shares[contexts[here]]
            seen = np.flatnonzero(numbers >= 0)
            probability[seen] += order.probabilities[numbers[seen]]
            contexts = np.concatenate(([-1], numbers[:-1]))
        return -np.log(probability[1:])


def _order_of_counts(codes: np.ndarray, counts: np.ndarray, vocab_size: int, contexts: int) -> Order:
    discounts = kneser_ney_discounts(counts)[np.minimum(counts, 3)]
    context = codes // vocab_size
    totals = np.bincount(context, counts, contexts)
    known = np.maximum(totals, 1)  # a context that nothing follows leaves all probability to the lower order
    shares = np.where(totals > 0, np.bincount(context, discounts, contexts) / known, 1.0)
    return Order(codes, (counts - discounts) / known[context], shares)
