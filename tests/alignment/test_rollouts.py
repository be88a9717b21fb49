"""Rollouts are drawn by their own numbers alone, with the log-probabilities that the loss computes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gptlab.alignment.logprobs import token_logprobs
from gptlab.alignment.rollouts import ROLLOUTS, Rollouts, as_rows, roll_out, uniform_numbers
from gptlab.data.batches import IGNORED
from gptlab.generation.replies import Reply
from gptlab.models import Model
from tests.alignment.policies import END_ID, IDS, A, B, V, of_shares, tiny_gpt

TOKENS = 9
MANY = range(0, V, 5)  # end tokens, so that random weights end often


def drawn(model: Model, rows: list[int], temperature: float = 1.0, ends: Sequence[int] = MANY) -> Rollouts:
    """Answers to the prompts with these numbers: answer i is drawn by row i of a step's numbers."""
    uniform = uniform_numbers(3, 5, len(IDS), TOKENS)[rows]
    return roll_out(model, [IDS[row] for row in rows], uniform, ends, temperature)


def test_a_step_has_numbers_of_its_own() -> None:
    """An answer is a function of (seed, step, row): no process or micro-batch needs those of the others."""
    numbers = uniform_numbers(3, 5, 6, TOKENS)
    assert numbers.shape == (6, TOKENS)
    assert numbers.dtype == np.float64
    assert np.array_equal(numbers, uniform_numbers(3, 5, 6, TOKENS))
    for other in (uniform_numbers(4, 5, 6, TOKENS), uniform_numbers(3, 6, 6, TOKENS)):
        assert not set(numbers.flatten().tolist()) & set(other.flatten().tolist())
    many = uniform_numbers(3 + ROLLOUTS, 0, 100, 100)
    assert 0 <= many.min() < 0.001
    assert 0.999 < many.max() < 1
    assert float(many.mean()) == pytest.approx(0.5, abs=0.01)


def test_answers_do_not_depend_on_those_beside_them() -> None:
    model, rows = tiny_gpt(), [0, 1, 2, 3]
    whole = drawn(model, rows)
    assert len({len(reply.ids) for reply in whole.replies}) > 1
    for row in rows:
        alone = drawn(model, [row]).replies[0]
        assert alone.ids == whole.replies[row].ids
        assert alone.log_probs == pytest.approx(whole.replies[row].log_probs, abs=1e-5)
    backwards = drawn(model, rows[::-1])
    assert [reply.ids for reply in backwards.replies[::-1]] == [reply.ids for reply in whole.replies]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_the_samplers_log_probabilities_are_those_of_the_loss(temperature: float) -> None:
    """Fault 12: log-probabilities at temperature 1 of tokens that were drawn at another."""
    model = tiny_gpt()
    found = drawn(model, [0, 1, 2, 3], temperature)
    with torch.no_grad():
        logprobs = token_logprobs(model(found.idx), found.targets, temperature)
        others = token_logprobs(model(found.idx), found.targets, 1.1)
    torch.testing.assert_close(found.logprobs, logprobs, atol=1e-5, rtol=0)
    assert (others - logprobs).abs().max() > 0.01
    assert found.logprobs[found.counted].max() < 0
    assert found.logprobs[~found.counted].count_nonzero() == 0


def test_no_token_is_kept_out_and_each_comes_as_often_as_it_should() -> None:
    """Fault 12: a filter, such as top-p, would make the sampler another policy."""
    shares = {A: 0.6, B: 0.3, END_ID: 0.1}
    count = 4000
    uniform = uniform_numbers(1, 0, count, 2)
    found = roll_out(of_shares(shares), IDS[:1] * count, uniform, (END_ID,))
    first = Counter(reply.ids[0] for reply in found.replies)
    for token, share in shares.items():
        assert first[token] / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)
    warm = roll_out(of_shares(shares), IDS[:1] * count, uniform, (END_ID,), temperature=0.5)
    squares = {token: share**2 for token, share in shares.items()}
    expected = squares[A] / sum(squares.values())
    assert Counter(reply.ids[0] for reply in warm.replies)[A] / count == pytest.approx(expected, abs=0.03)


def test_an_answer_ends_at_each_end_token() -> None:
    """Fault 24: stopping at one end token where several end a turn."""
    model = of_shares({A: 0.5, B: 0.5})
    found = drawn(model, [0, 1, 2, 3], ends=(END_ID, B))
    assert all(reply.ended for reply in found.replies)
    assert all(reply.ids.count(B) == 1 and reply.ids[-1] == B for reply in found.replies)
    one = drawn(model, [0, 1, 2, 3], ends=(END_ID,))
    assert not any(reply.ended for reply in one.replies)
    assert all(len(reply.ids) == TOKENS for reply in one.replies)


def test_rows_hold_each_answer_after_its_prompt() -> None:
    """Fault 1: the first token of an answer counts, and its end; fault 10: an answer without an end counts whole."""
    replies = [Reply([4, 9], True, [-0.5, -0.25]), Reply([5, 6, 7], False, [-1.0, -2.0, -3.0])]
    found = as_rows([[1, 2, 3], [8]], replies, torch.device("cpu"))
    _ = IGNORED
    assert found.idx.tolist() == [[1, 2, 3, 4], [8, 5, 6, 0]]
    assert found.targets.tolist() == [[_, _, 4, 9], [5, 6, 7, _]]
    assert found.logprobs.tolist() == [[0, 0, -0.5, -0.25], [-1, -2, -3, 0]]
    assert found.counted.sum(-1).tolist() == [2, 3]
    assert found.lengths.tolist() == [5, 4]
    assert found.tokens.tolist() == [[1, 2, 3, 4, 9], [8, 5, 6, 7, 0]]
