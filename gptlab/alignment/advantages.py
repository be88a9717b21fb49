"""How much better an answer, or a token of it, was than expected: computed in fp64, without gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from gptlab.alignment.logprobs import quotient
from gptlab.system.errors import UserError, check_choice

BASELINES = ("mean", "mean_std", "leave_one_out")
EPSILON = 1e-4  # added to a group's standard deviation, as in TRL


def group_advantages(rewards: Tensor, baseline: str, counted: Tensor | None = None) -> Tensor:
    """Return the advantage of each answer over the other answers to its prompt, (P, G).

    * mean: r - mean of the group (Dr. GRPO, https://arxiv.org/abs/2503.20783).
    * mean_std: (r - mean) / (standard deviation + 1e-4), with the unbiased deviation, of G - 1 (GRPO,
      https://arxiv.org/abs/2402.03300, as in TRL). A prompt that nearly always, or nearly never, succeeds gets more
      weight than with the mean alone.
    * leave_one_out: r - mean of the others in the group (RLOO, https://arxiv.org/abs/2402.14740), G / (G - 1) times
      that of the mean. It is not divided by anything: the deviation of the others may be 0.

    A group whose rewards are all the same has no advantages: exactly 0. So has a group with a single counted answer.

    Args:
        rewards: of G answers to each of P prompts, (P, G).
        baseline: one of `BASELINES`.
        counted: the answers that count, (P, G) bool; the others are in no mean and have no advantage; None: all.

    Raises:
        UserError: there is no such baseline, or G is 1.
    """
    check_choice("baseline", baseline, BASELINES)
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise UserError(
            f"{rewards.shape[-1] if rewards.dim() == 2 else 1} answer for each prompt: an answer is compared to the "
            "others of its prompt; sample at least 2"
        )
    counted = torch.ones_like(rewards, dtype=torch.bool) if counted is None else counted
    r = rewards.detach().double().masked_fill(~counted, 0)
    count = counted.sum(-1, keepdim=True)
    deviations = r - quotient(r.sum(-1, keepdim=True), count)
    deviations = deviations.masked_fill(~counted | _alike(r, counted), 0)
    if baseline == "leave_one_out":
        deviations = deviations * quotient(count.double(), (count - 1).clamp(min=0))
    elif baseline == "mean_std":
        variance = quotient(deviations.square().sum(-1, keepdim=True), (count - 1).clamp(min=0))
        deviations = deviations / (variance.sqrt() + EPSILON)
    return deviations.to(rewards.dtype)


def _alike(rewards: Tensor, counted: Tensor) -> Tensor:
    """Return whether the counted rewards of each group are one number, (P, 1) bool."""
    infinity = float("inf")
    least = rewards.masked_fill(~counted, infinity).amin(-1, keepdim=True)
    return rewards.masked_fill(~counted, -infinity).amax(-1, keepdim=True) <= least


def token_rewards(scores: Tensor, kl: Tensor, counted: Tensor, kl_coef: float) -> Tensor:
    """Return PPO's reward of each token, (B, T): -kl_coef KL, and at an answer's last token the answer's score, too.

    As in InstructGPT (https://arxiv.org/abs/2203.02155). In the reward, KL is to be `kl_estimate`'s k1, of which the
    policy gradient makes the right gradient. The exact sum at a position does not depend on the token drawn there: as
    its reward it would have no gradient, but through the tokens before.

    Args:
        scores: the rewards of the answers, (B,).
        kl: the divergence from the reference at each token, (B, T).
        counted: the sampled tokens, (B, T) bool.
        kl_coef: its weight, at least 0.
    """
    last = counted & (counted.flip(-1).cumsum(-1).flip(-1) == 1)
    rewards = torch.where(last, scores.detach()[:, None], 0) - kl_coef * kl.detach()
    return rewards.masked_fill(~counted, 0)


def gae(
    rewards: Tensor, values: Tensor, counted: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Return the generalised advantage estimates, and the returns that the values are to be: (B, T) each.

    With d_t = r_t + gamma V_t+1 - V_t, the advantage is A_t = d_t + gamma lam A_t+1, and the return A_t + V_t
    (https://arxiv.org/abs/1506.02438). t + 1 is the next counted token of the row: what stands between two parts of an
    answer, before and after it is passed over, and both are 0 there. After the last token V and A are 0: the answer
    ends there, whether by its end token or its length.

    Args:
        rewards: of each token, (B, T), e.g. from `token_rewards`.
        values: expected before each token was sampled, (B, T).
        counted: the sampled tokens, (B, T) bool.
        gamma: the discount of a token, from 0 to 1.
        lam: from 0 (what the next value says) to 1 (what the rewards say).

    Raises:
        UserError: gamma or lam is out of range.
    """
    for key, value in (("gamma", gamma), ("lam", lam)):
        if not 0 <= value <= 1:
            raise UserError(f"{key}={value}: must be from 0 to 1")
    r, v = rewards.detach().double(), values.detach().double()
    advantages = torch.zeros_like(v)
    next_value = torch.zeros_like(v[:, 0])
    next_advantage = torch.zeros_like(next_value)
    for t in reversed(range(v.shape[1])):
        delta = r[:, t] + gamma * next_value - v[:, t]
        here = counted[:, t]
        next_advantage = torch.where(here, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(here, v[:, t], next_value)
        advantages[:, t] = next_advantage.where(here, 0)
    returns = (advantages + v).masked_fill(~counted, 0)
    return advantages.to(values.dtype), returns.to(values.dtype)
