"""Tables of counts: n-gram models with interpolated modified Kneser-Ney smoothing.

Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling" (TR-10-98), section 4.1.6. The
highest order discounts counts; each lower one discounts in how many contexts an n-gram was seen; below order 1 all
tokens are equally probable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Order:
    """What the training text says of the distinct n-grams of one length; their numbers are their places here.

    An n-gram's code is (number of its first n - 1 tokens) * V + its last token: no code collides, whatever V.
    """

    codes: np.ndarray
    """(n-grams,) int64, sorted."""
    probabilities: np.ndarray
    """(n-grams,) float64: of the last token after the others, as far as this order goes."""
    shares: np.ndarray
    """(contexts,) float64: the probability that the discounts leave to the next lower order."""

    def find(self, codes: np.ndarray) -> np.ndarray:
        """Numbers of the n-grams with those codes; -1 for one that the training text lacks."""
        places = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        return np.where(self.codes[places] == codes, places, -1)


def discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from an n-gram seen 0, 1, 2, and 3 times or more, (4,): equation 26 of the paper.

    It estimates them from how many n-grams have each count; where none has, or the estimate is no discount, as can be
    in a short text or with few distinct tokens, half of the count is taken, at most 1.5.
    """
    n = np.bincount(np.minimum(counts, 5).astype(np.int64), minlength=6)
    found = [0.0]
    for c in (1, 2, 3):
        y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.0
        discount = c - (c + 1) * y * n[c + 1] / n[c] if n[c] and n[c + 1] else math.nan
        found.append(discount if 0 < discount < c else c / 2)
    return np.array(found)


class NGrams:
    """The probability of a token given up to `order` - 1 tokens before it, from the counts of a training text.

    Args:
        ids: the training text, (n,).
        order: 0 counts nothing: each of the V tokens has the probability 1 / V.
    """

    def __init__(self, ids: np.ndarray, vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        self.orders: list[Order] = []
        numbers = np.zeros(len(ids) + 1, dtype=np.int64)  # of the n-gram that ends at each place; first the empty one
        codes = counts = np.zeros(1, dtype=np.int64)
        contexts = 0
        for n in range(1, min(order, len(ids)) + 1):
            shorter, endings = codes, numbers[1:]
            codes, first, numbers, counts = np.unique(
                numbers[:-1] * vocab_size + ids[n - 1 :], return_index=True, return_inverse=True, return_counts=True
            )
            if n > 1:  # each distinct n-gram is one context of the (n-1)-gram that it ends with
                seen_after = np.bincount(endings[first], minlength=len(shorter))
                self.orders.append(_order(shorter, seen_after, vocab_size, contexts))
            contexts = len(shorter)
        if contexts:
            self.orders.append(_order(codes, counts, vocab_size, contexts))

    def nats(self, ids: np.ndarray) -> np.ndarray:
        """-ln of the probability of each token but the first, (n - 1,) float64; the first ones have shorter contexts.

        Args:
            ids: (n,).
        """
        probability = np.full(len(ids), 1 / self.vocab_size)
        contexts = np.zeros(len(ids), dtype=np.int64)  # number of the (n-1)-gram before each token; -1: never seen
        for order in self.orders:
            here = np.flatnonzero(contexts >= 0)
            numbers = np.full(len(ids), -1)
            numbers[here] = order.find(contexts[here] * self.vocab_size + ids[here])
            probability[here] *= order.shares[contexts[here]]
            seen = np.flatnonzero(numbers >= 0)
            probability[seen] += order.probabilities[numbers[seen]]
            contexts = np.concatenate(([-1], numbers[:-1]))
        return -np.log(probability[1:])


def _order(codes: np.ndarray, counts: np.ndarray, vocab_size: int, contexts: int) -> Order:
    taken = discounts(counts)[np.minimum(counts, 3)]
    context = codes // vocab_size
    totals = np.bincount(context, counts, contexts)
    known = np.maximum(totals, 1)  # of a context that nothing follows all probability goes to the lower order
    shares = np.where(totals > 0, np.bincount(context, taken, contexts) / known, 1.0)
    return Order(codes, (counts - taken) / known[context], shares)
