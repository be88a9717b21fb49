"""N-gram probabilities follow the paper, checked against dictionaries and by hand."""

from __future__ import annotations

import math
import random
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from gptlab.data.tokenizers import CharTokenizer
from gptlab.evaluation.ngrams import NGrams, kneser_ney_discounts

V = 7


def draw(seed: int, count: int) -> np.ndarray:
    """A text in which some tokens are rare and one, the last, does not occur."""
    weights = [13, 7, 5, 3, 2, 1]
    return np.array(random.Random(seed).choices(range(V - 1), weights, k=count), dtype=np.int64)


class Slow:
    """Equations 21 to 26 of Chen and Goodman 1998, section 4.1.6, written out with dictionaries."""

    def __init__(self, ids: list[int], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        grams = {n: Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)) for n in range(1, order + 1)}
        self.counts: dict[int, dict[tuple[int, ...], int]] = {order: dict(grams[order])}
        for n in range(1, order):
            before = defaultdict(set)  # the distinct tokens that precede an n-gram
            for gram in grams[n + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[n] = {gram: len(tokens) for gram, tokens in before.items()}
        self.discounts = {n: self.estimate(list(counts.values())) for n, counts in self.counts.items()}

    @staticmethod
    def estimate(counts: list[int]) -> list[float]:
        n = Counter(counts)
        found = [0.0]
        for c in (1, 2, 3):
            try:
                y = n[1] / (n[1] + 2 * n[2])
                d = c - (c + 1) * y * n[c + 1] / n[c]
                found.append(d if 0 < d < c and n[c + 1] else c / 2)
            except ZeroDivisionError:
                found.append(c / 2)
        return found

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        n = len(context) + 1
        lower = self.probability(token, context[1:]) if context else 1 / self.vocab_size
        following = {gram: c for gram, c in self.counts[n].items() if gram[:-1] == context}
        total = sum(following.values())
        if not total:
            return lower
        taken = self.discounts[n]
        c = following.get((*context, token), 0)
        left = sum(taken[min(each, 3)] for each in following.values())
        return (max(c - taken[min(c, 3)], 0) + left * lower) / total


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
def test_every_probability_is_that_of_the_papers_formulas(order: int) -> None:
    train, text = draw(1, 499), np.append(draw(2, 211), [V - 1, 0, 1])
    slow, fast = Slow(train.tolist(), V, order), NGrams(train, V, order)
    expected = [
        -math.log(slow.probability(int(t), tuple(text[max(i - order + 1, 0) : i].tolist()))) for i, t in enumerate(text)
    ]
    assert fast.nats(text) == pytest.approx(expected[1:], rel=1e-12)


def test_a_bigram_by_hand() -> None:
    """abab has ab twice and ba once; a stands after b alone and b after a alone."""
    table = NGrams(np.array([0, 1, 0, 1]), 2, 2)
    lower = (1 - 1 / 2) / 2 + (1 / 2 + 1 / 2) / 2 * 1 / 2  # of a as of b; no n-gram is seen twice: half is taken
    once, twice = 1 - 2 * (1 / 3) * 1, 1  # y = 1 / (1 + 2 * 1); none is seen three times: half of 2 is taken
    b_after_a = (2 - twice) / 2 + twice / 2 * lower
    a_after_b = (1 - once) / 1 + once / 1 * lower
    assert np.exp(-table.nats(np.array([0, 1, 0, 0]))) == pytest.approx([b_after_a, a_after_b, 1 - b_after_a])


def test_discounts_come_from_the_counts_of_counts() -> None:
    counts = np.repeat([1, 2, 3, 4, 7], [100, 40, 20, 10, 5])
    y = 100 / 180
    expected = [0, 1 - 2 * y * 40 / 100, 2 - 3 * y * 20 / 40, 3 - 4 * y * 10 / 20]
    assert kneser_ney_discounts(counts) == pytest.approx(expected)
    assert kneser_ney_discounts(np.array([1, 1, 1])).tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize("order", range(7))
def test_probabilities_sum_to_one_after_any_context(order: int) -> None:
    """Seen and unseen contexts, those at the end of the training text, and shorter ones at the beginning of a text."""
    train = draw(3, 397)
    table = NGrams(train, V, order)
    contexts = [train[i : i + length] for i in (0, 5, 391) for length in range(1, 7)]
    contexts += [draw(seed, 6) for seed in range(11)] + [np.full(6, V - 1)]
    for context in contexts:
        nats = [table.nats(np.append(context, token))[-1] for token in range(V)]
        assert np.exp(-np.array(nats)).sum() == pytest.approx(1, rel=1e-12)
        assert min(nats) > 0


def test_without_counts_all_tokens_are_equally_probable() -> None:
    assert NGrams(np.zeros(0, np.int64), 256, 0).nats(np.array([3, 1, 255])).tolist() == [math.log(256)] * 2


def test_a_text_shorter_than_the_order_is_counted_as_far_as_it_goes() -> None:
    text = np.array([0, 1, 1])
    assert NGrams(text, V, 6).nats(text) == pytest.approx(NGrams(text, V, 3).nats(text))


def test_a_large_vocabulary_does_not_confuse_its_ngrams() -> None:
    """Six tokens of 50,257 would not fit into 64 bits."""
    train, text = draw(1, 499) * 8009, draw(2, 211) * 8009
    fast, slow = NGrams(train, 50257, 6).nats(text), Slow(train.tolist(), 50257, 6)
    expected = [
        -math.log(slow.probability(int(text[i]), tuple(text[max(i - 5, 0) : i].tolist()))) for i in range(1, 211)
    ]
    assert fast == pytest.approx(expected, rel=1e-12)


def test_tiny_shakespeare_has_the_losses_of_the_reference(data_dir: Path) -> None:
    """Orders 1 and 2 match the lessons; order 6 matches a plain Python program: 1.52."""
    text = (data_dir / "tinyshakespeare.txt").read_text()
    train, val = text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :]
    tokenizer = CharTokenizer.fit([train])
    start = time.process_time()
    losses = {
        order: NGrams(tokenizer.encode(train), 65, order).nats(tokenizer.encode(val)).mean() for order in (1, 2, 6)
    }
    assert time.process_time() - start < 15
    assert losses[1] == pytest.approx(3.347, abs=0.001)
    assert losses[2] == pytest.approx(2.482, abs=0.003)
    assert losses[6] == pytest.approx(1.52, abs=0.01)
