"""Draw whole replies to many prompts at once, until an end token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from gptlab.generation.context import Context
from gptlab.generation.sampling import Sampling, invert_cdf
from gptlab.models import Model

GREEDY = Sampling(temperature=0)


class Reply(NamedTuple):
    """What a model says after a prompt."""

    ids: list[int]
    """Its tokens, with the end token if there is one."""
    ended: bool
    """Whether it ends with an end token, and not because there was no room for more."""
    log_probs: list[float]
    """The log-probability of each token in the distribution that it was drawn from, filters and all."""


@torch.no_grad()
def draw_replies(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Collection[int],
    sampling: Sampling = GREEDY,
    uniform: Tensor | None = None,
    batch_size: int = 256,
    bar: bool = False,
) -> list[Reply]:
    """Return a reply to each prompt; which others are drawn beside it changes nothing but rounding.

    Args:
        model: a model in evaluation mode.
        prompts: the tokens of each prompt, at least one.
        max_new_tokens: the most tokens of a reply.
        ends: the end tokens.
        uniform: a number in [0, 1) for each token of each reply, (prompts, max_new_tokens), which decides what is
            drawn; None: only for a temperature of 0.
        batch_size: the number of prompts at a time.
        bar: whether a terminal shows how far it is.

    Raises:
        UserError: a logit is infinite or not a number.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # so that a batch has few lengths
    replies: dict[int, Reply] = {}
    firsts = range(0, len(order), batch_size)
    for first in tqdm(firsts, unit="batch", disable=None if bar else True, leave=False):  # None: on a terminal only
        some = order[first : first + batch_size]
        context = Context(model, [prompts[i] for i in some], max_new_tokens)
        drawn: list[list[int]] = [[] for _ in some]
        log_probs: list[list[float]] = [[] for _ in some]
        ended = [False] * len(some)
        for number in range(max_new_tokens):
            probabilities = sampling.probabilities(context.logits()[:, -1], context.rows)  # (b, V)
            tokens = (
                probabilities.argmax(dim=-1)
                if uniform is None
                else invert_cdf(probabilities, uniform[some, number].double())
            )
            context.append(tokens)
            chosen = probabilities.gather(1, tokens[:, None])[:, 0].log()
            for row, (token, log_prob) in enumerate(zip(tokens.tolist(), chosen.tolist(), strict=True)):
                if not ended[row]:
                    drawn[row].append(token)
                    log_probs[row].append(log_prob)
                    ended[row] = token in ends
            if all(ended):
                break
        replies |= {i: Reply(*each) for i, each in zip(some, zip(drawn, ended, log_probs, strict=True), strict=True)}
    return [replies[i] for i in range(len(prompts))]
