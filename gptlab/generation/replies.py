"""Draw whole replies to many prompts at once, until an end token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gptlab.generation.batch import Batch
from gptlab.generation.sampling import Array, Sampling, invert_cdf
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


def draw_replies(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Collection[int],
    sampling: Sampling = GREEDY,
    uniform: Array | None = None,
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
    replies = [Reply([], False, []) for _ in prompts]
    batch = Batch(model, [prompts[i] for i in order], max_new_tokens, batch_size)
    with tqdm(total=len(prompts), unit="reply", disable=None if bar else True, leave=False) as shown:  # on a terminal
        while max_new_tokens and (numbers := batch.numbers):
            some = [order[number] for number in numbers]
            probabilities = sampling.probabilities(batch.logits(), batch.rows)  # (b, V)
            if uniform is None:
                tokens = probabilities.argmax(axis=-1)
            else:
                places = [len(replies[i].ids) for i in some]
                tokens = invert_cdf(probabilities, uniform[some, places])
            chosen = np.log(probabilities[np.arange(len(tokens)), tokens])
            drawn = tokens.tolist()
            for i, token, log_prob in zip(some, drawn, chosen.tolist(), strict=True):
                replies[i].ids.append(token)
                replies[i].log_probs.append(log_prob)
                replies[i] = replies[i]._replace(ended=token in ends)
            over = [replies[i].ended or len(replies[i].ids) == max_new_tokens for i in some]
            batch.append(drawn, over)
            shown.update(sum(over))
    return replies
