"""Answers sampled from a model, as rows to learn from: a function of the seed, the step, the prompt and the sample."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gptlab.data.batches import IGNORED, as_shares, random_numbers
from gptlab.generation.replies import Reply, draw_replies
from gptlab.generation.sampling import Sampling
from gptlab.models import Model

ROLLOUTS = 11 << 32  # the purpose of the random numbers, added to a seed, which is below 1 << 32


class Rollouts(NamedTuple):
    """Sampled answers, each after its prompt."""

    idx: Tensor
    """(N, T) int64: prompt and answer without its last token, padded on the right."""
    targets: Tensor
    """(N, T) int64: one ahead of idx; `IGNORED` but for the tokens of the answer."""
    logprobs: Tensor
    """(N, T) float32: what the sampler gave each token of the answer; else 0."""
    replies: list[Reply]

    @property
    def counted(self) -> Tensor:
        """The positions whose next token is of the answer, (N, T) bool."""
        return self.targets != IGNORED

    @property
    def tokens(self) -> Tensor:
        """The whole texts with their last token, (N, T + 1), padded on the right."""
        last = torch.where(self.counted, self.targets, 0)
        texts = torch.cat((self.idx, torch.zeros_like(self.idx[:, :1])), dim=1)
        return texts.scatter(1, (self.lengths - 1)[:, None], last.gather(1, (self.lengths - 2)[:, None]))

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each whole text, (N,) int64, at least 2."""
        place = torch.arange(self.idx.shape[1], device=self.idx.device)
        return (self.counted * place).amax(-1) + 2


def uniform_numbers(seed: int, step: int, rows: int, tokens: int) -> np.ndarray:
    """Return the numbers that decide what is drawn in a step, (rows, tokens) float64 in [0, 1)."""
    return as_shares(random_numbers(seed, step, rows * tokens)).reshape(rows, tokens)


def roll_out(
    model: Model,
    prompts: Sequence[Sequence[int]],
    uniform: np.ndarray,
    ends: Collection[int],
    temperature: float = 1.0,
) -> Rollouts:
    """Sample an answer to each prompt, from the whole distribution: no filter keeps a token out.

    Args:
        model: the policy in evaluation mode, without dropout.
        prompts: the tokens of each prompt, N, at least one each.
        uniform: numbers that decide what is drawn, (N, most tokens of an answer), from `uniform_numbers`.
        ends: the end tokens.
        temperature: above 0; the log-probabilities are those at this temperature.

    Raises:
        UserError: a logit is infinite or not a number.
    """
    replies = draw_replies(model, prompts, uniform.shape[1], ends, Sampling(temperature=temperature), uniform)
    return as_rows(prompts, replies, next(model.parameters()).device)


def as_rows(prompts: Sequence[Sequence[int]], replies: list[Reply], device: torch.device) -> Rollouts:
    """Return replies after their prompts as rows."""
    width = max(len(prompt) + len(reply.ids) for prompt, reply in zip(prompts, replies, strict=True)) - 1
    idx = np.zeros((len(replies), width), dtype=np.int64)
    targets = np.full_like(idx, IGNORED)
    logprobs = np.zeros(idx.shape, dtype=np.float32)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        text, first = [*prompt, *reply.ids], len(prompt) - 1
        idx[row, : len(text) - 1] = text[:-1]
        targets[row, first : len(text) - 1] = reply.ids
        logprobs[row, first : len(text) - 1] = reply.log_probs
    rows = [torch.from_numpy(each).to(device) for each in (idx, targets, logprobs)]
    return Rollouts(rows[0], rows[1], rows[2], replies)
