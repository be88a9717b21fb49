"""Replies to many prompts are those to each alone, end where they should, and are as probable as they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gptlab.generation.decoding import generate
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.replies import GREEDY, draw_replies
from gptlab.generation.sampling import Sampling
from gptlab.models import Bigram, BigramConfig, Model
from tests.generation.contexts import context_for
from tests.models.test_switches import V, lively

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [2, 2], [3]]
MODELS: dict[str, dict[str, Any]] = {"gpt2": {}, "rope": {"pos": "rope"}, "canon": {"conv": 3, "pos": "rope"}}


def model_of(kind: str) -> Model:
    if kind == "bigram":
        torch.manual_seed(1)
        bigram = Bigram(BigramConfig(vocab_size=V))
        torch.nn.init.normal_(bigram.wte.weight)
        return bigram.eval()
    return lively(**MODELS[kind]).eval()


@pytest.mark.parametrize("kind", [*MODELS, "bigram"])
def test_a_greedy_reply_is_what_generate_says_up_to_the_end(kind: str) -> None:
    model = model_of(kind)
    alone = [
        [step.tokens.item() for step in generate(context_for(model, [prompt], 8), 8, GREEDY, [RandomNumbers(0)])]
        for prompt in PROMPTS
    ]
    end = alone[0][3]
    replies = draw_replies(model, PROMPTS, 8, {end}, batch_size=2)
    for reply, whole in zip(replies, alone, strict=True):
        wanted = whole[: whole.index(end) + 1] if end in whole else whole
        assert reply.ids == wanted
        assert reply.ended == (end in whole)
        assert reply.log_probs == [0.0] * len(wanted)  # it was certain


@pytest.mark.parametrize("kind", [*MODELS, "bigram"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_a_pass_over_the_whole_text(kind: str, temperature: float) -> None:
    model, uniform = model_of(kind), np.random.default_rng(2).random((len(PROMPTS), 6))
    for prompt, reply in zip(
        PROMPTS, draw_replies(model, PROMPTS, 6, (), Sampling(temperature=temperature), uniform), strict=True
    ):
        assert len(reply.ids) == 6
        logits = model(torch.tensor([[*prompt, *reply.ids]]))[0, len(prompt) - 1 : -1]
        wanted = (logits / temperature).log_softmax(-1)[torch.arange(6), reply.ids]
        torch.testing.assert_close(torch.tensor(reply.log_probs), wanted, atol=1e-5, rtol=1e-5)


def test_a_filter_is_counted_in() -> None:
    model, uniform = model_of("gpt2"), np.random.default_rng(4).random((1, 6))
    [reply] = draw_replies(model, [[1]], 6, (), Sampling(top_k=2), uniform)
    logits = model(torch.tensor([[1, *reply.ids]]))[0, :-1]
    for token, row, log_prob in zip(reply.ids, logits, reply.log_probs, strict=True):
        best = row.topk(2)
        assert token in best.indices
        wanted = best.values.log_softmax(-1)[best.indices.tolist().index(token)]
        assert log_prob == pytest.approx(wanted.item(), abs=1e-5)


def test_replies_do_not_depend_on_those_beside_them() -> None:
    model, uniform = model_of("rope"), np.random.default_rng(3).random((5, 7))
    together = draw_replies(model, PROMPTS, 7, {0}, Sampling(), uniform)
    for i, prompt in enumerate(PROMPTS):
        [alone] = draw_replies(model, [prompt], 7, {0}, Sampling(), uniform[[i]])
        assert alone.ids == together[i].ids
    assert draw_replies(model, [], 7, {0}) == []


def test_drawn_tokens_have_the_models_distribution() -> None:
    model, n = model_of("bigram"), 4000
    middles = (np.arange(n)[:, None] + 0.5) / n  # as even as numbers can be
    replies = draw_replies(model, [[3]] * n, 1, (), Sampling(), middles)
    counts = torch.bincount(torch.tensor([reply.ids[0] for reply in replies]), minlength=V) / n
    torch.testing.assert_close(counts, model(torch.tensor([[3]]))[0, 0].softmax(-1), atol=1 / n, rtol=0)
