"""Losses of post-training: pure functions of log-probabilities, each a sum and the weight that divides it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gptlab.alignment.logprobs import quotient, sequence_means, sequence_sums
from gptlab.system.errors import UserError, check_choice

Figure = tuple[Tensor, Tensor]
"""A number to be logged, as a sum and a weight, () each and without gradient."""
DPO_VARIANTS = ("sigmoid", "ipo", "sigmoid_norm")
NORMALISATIONS = ("token", "sequence", "constant")
RATIOS = ("token", "sequence")


@dataclass(frozen=True)
class Loss:
    """A loss as a sum and a weight, which micro-batches and processes add up: the step's loss is their quotient.

    The mean of the micro-batches' means would give a token in a short micro-batch more weight than one in a long one.
    """

    total: Tensor
    """The sum, (), to be differentiated."""
    weight: Tensor
    """What the sum is divided by, () without gradient: the tokens, sequences or pairs that count."""
    figures: dict[str, Figure]
    """What to log beside the loss, by name."""

    def __add__(self, other: Loss) -> Loss:
        """Return the loss of two micro-batches of one step, whose figures have the same names."""
        pairs = {name: (self.figures[name], other.figures[name]) for name in self.figures}
        figures = {name: (a + b, m + n) for name, ((a, m), (b, n)) in pairs.items()}
        return Loss(self.total + other.total, self.weight + other.weight, figures)

    @property
    def mean(self) -> Tensor:
        """The loss of what counts, (); 0 if nothing does."""
        return quotient(self.total, self.weight)


def figure(values: Tensor, counted: Tensor | None = None) -> Figure:
    """Return the sum of `values`, and how many there are, or how many are `counted`: of the same shape, bool."""
    values = values.detach().float()
    if counted is None:
        return values.sum(), torch.tensor(values.numel(), device=values.device)
    return values.masked_fill(~counted, 0).sum(), counted.sum()


# Learning from pairs


def dpo_loss(
    policy: Tensor,
    reference: Tensor,
    lengths: Tensor,
    *,
    beta: float,
    variant: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> Loss:
    """Return the loss of direct preference optimisation; its weight is the number of pairs.

    With d the difference between the scores of the chosen and the rejected answer, where the score of an answer is its
    log-ratio, log p - log q:

    * sigmoid: -log sigmoid(beta d), of log-ratios summed over the answer (https://arxiv.org/abs/2305.18290).
    * ipo: (d - 1 / (2 beta))^2, of log-ratios averaged over the answer's tokens, as its authors and TRL do
      (https://arxiv.org/abs/2310.12036).
    * sigmoid_norm: -log sigmoid(beta d), of log-ratios averaged over the tokens, so that beta means something else
      than in sigmoid: about 1 / length of it (https://arxiv.org/abs/2411.15124).

    Label smoothing e makes it (1 - e) f(d) + e f(-d): of the labels, a share e is taken to be the wrong way round.

    Figures, means over the pairs: chosen_logprob and rejected_logprob (sums, of the policy: the chosen one may fall,
    too, which the margin does not show), chosen_reward and rejected_reward (beta times the score), margin (their
    difference) and accuracy (pairs with a positive margin; one of 0 counts half).

    Args:
        policy: log-probabilities of the answers, from `sequence_sums`, (P, 2): chosen, rejected.
        reference: the reference model's, (P, 2), which get no gradient.
        lengths: tokens of the answers, (P, 2).
        beta: how strongly the reference holds; larger is nearer to it.
        variant: one of `DPO_VARIANTS`.
        label_smoothing: from 0 to below 0.5.

    Raises:
        UserError: an argument is out of range.
    """
    check_choice("variant", variant, DPO_VARIANTS)
    if not beta > 0:
        raise UserError(f"beta={beta}: must be above 0, e.g. 0.1")
    if not 0 <= label_smoothing < 0.5:
        raise UserError(f"label_smoothing={label_smoothing}: must be at least 0 and below 0.5")
    scores = policy - reference.detach()
    if variant != "sigmoid":
        scores = scores / lengths.clamp(min=1)
    difference = scores[:, 0] - scores[:, 1]

    def penalty(difference: Tensor) -> Tensor:
        return (difference - 1 / (2 * beta)).square() if variant == "ipo" else -F.logsigmoid(beta * difference)

    losses = (1 - label_smoothing) * penalty(difference) + label_smoothing * penalty(-difference)
    figures = {"chosen_logprob": figure(policy[:, 0]), "rejected_logprob": figure(policy[:, 1])}
    return _pair_loss(losses, beta * scores, figures)


def reward_loss(rewards: Tensor, margins: Tensor | None = None, centring: float = 0.0) -> Loss:
    """Return the loss of a reward model, -log sigmoid(chosen - rejected - margin); its weight is the number of pairs.

    That is the negative log-likelihood of the labels after Bradley and Terry (https://arxiv.org/abs/2203.02155), with
    the margins of Llama 2 (https://arxiv.org/abs/2307.09288). Only differences matter to it; `centring` times
    (chosen + rejected)^2 keeps the rewards around 0 (https://arxiv.org/abs/2312.09244).

    Figures, means over the pairs: chosen_reward, rejected_reward, margin (their difference) and accuracy (pairs with
    a positive margin; one of 0 counts half).

    Args:
        rewards: the model's rewards, (P, 2): chosen, rejected.
        margins: by how much the chosen answer is better, (P,); None: nothing is known of it.
        centring: at least 0.

    Raises:
        UserError: `centring` is negative.
    """
    if not centring >= 0:
        raise UserError(f"centring={centring}: must be at least 0 (for none), e.g. 0.01")
    rewards = rewards.float()
    difference = rewards[:, 0] - rewards[:, 1]
    losses = -F.logsigmoid(difference if margins is None else difference - margins)
    return _pair_loss(losses + centring * rewards.sum(-1).square(), rewards, {})


def _pair_loss(losses: Tensor, rewards: Tensor, figures: dict[str, Figure]) -> Loss:
    """Return the loss of pairs, (P,), whose rewards are (P, 2), with their figures beside `figures`."""
    margin = (rewards[:, 0] - rewards[:, 1]).detach()
    figures = figures | {
        "chosen_reward": figure(rewards[:, 0]),
        "rejected_reward": figure(rewards[:, 1]),
        "margin": figure(margin),
        "accuracy": figure((margin.sign() + 1) / 2),
    }
    return Loss(losses.sum(), torch.tensor(len(losses), device=losses.device), figures)


# Learning from rewards


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    counted: Tensor,
    *,
    clip: float | None = 0.2,
    clip_high: float | None = None,
    ratio: str = "token",
    normalise: str = "token",
    length: int | None = None,
    kl: Tensor | None = None,
    kl_coef: float = 0.0,
) -> Loss:
    """Return the clipped loss of PPO and GRPO (https://arxiv.org/abs/1707.06347, https://arxiv.org/abs/2402.03300).

    A token's loss is -min(r A, clamp(r, 1 - clip, 1 + clip_high) A) + kl_coef kl, where A is its advantage, and r =
    p / p_old how much more probable it is now than when it was sampled.

    The step's loss, (sum of totals) / (sum of weights), is then

    * token: the mean over all its tokens (PPO, and DAPO's form of GRPO, https://arxiv.org/abs/2503.14476).
    * sequence: the mean over its answers of the mean over their tokens (GRPO as published): a token of a long answer
      has less weight, so that long wrong answers cost less.
    * constant: the sum over the tokens / (`length` times the answers) (Dr. GRPO, https://arxiv.org/abs/2503.20783).

    An answer without a counted token, e.g. one that was cut short and shall not count, is not in the weight either.

    Figures, means over the tokens: ratio, abs_log_ratio (exactly 0 where nothing was learnt since the sampling),
    clipped (the share whose gradient the clipping took) and, if there is one, kl.

    Args:
        logprobs: the policy's log-probabilities of the sampled tokens, (B, T), at the temperature of the sampling.
        old_logprobs: those at the sampling, (B, T), which get no gradient; None: the same as `logprobs`, purely
            on-policy: r is 1, and the gradient that of -A log p.
        advantages: one for each answer, (B,), or for each token, (B, T); they get no gradient.
        counted: the sampled tokens, (B, T) bool.
        clip: how far below 1 a ratio may be that has a gradient, and above 1 without `clip_high`; None: any.
        clip_high: how far above 1.
        ratio: token, or sequence: the geometric mean of the ratios of an answer's tokens takes the place of each
            (GSPO, https://arxiv.org/abs/2507.18071).
        normalise: one of `NORMALISATIONS`.
        length: the most tokens of an answer, for normalise=constant.
        kl: the divergence from the reference at each token, (B, T), from `exact_kl` or `kl_estimate`.
        kl_coef: its weight.

    Raises:
        UserError: an argument is out of range.
    """
    check_choice("ratio", ratio, RATIOS)
    _check_clip(clip, clip_high)
    if kl is None and kl_coef:
        raise UserError(f"kl_coef={kl_coef}: there is no reference to keep near to")
    old = logprobs if old_logprobs is None else old_logprobs
    log_ratio = (logprobs - old.detach()).masked_fill(~counted, 0)  # before exp, whose overflow would spoil gradients
    if ratio == "sequence":
        log_ratio = sequence_means(log_ratio, counted)[:, None].expand_as(log_ratio)
    r = log_ratio.exp()
    a = advantages.detach() if advantages.dim() == 2 else advantages.detach()[:, None]
    losses, clipped = -r * a, torch.zeros_like(r)
    if clip is not None:
        limited = -r.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high)) * a
        losses, clipped = torch.maximum(losses, limited), (limited > losses).float()
    figures = {"ratio": figure(r, counted), "abs_log_ratio": figure(log_ratio.abs(), counted)}
    figures["clipped"] = figure(clipped, counted)
    if kl is not None:
        losses = losses + kl_coef * kl
        figures["kl"] = figure(kl, counted)
    return Loss(*normalised(losses, counted, normalise, length), figures)


def normalised(values: Tensor, counted: Tensor, by: str = "token", length: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the sum of the values of tokens, (B, T), and its weight, () each, as `policy_loss` describes them.

    Raises:
        UserError: there is no such normalisation, or no length for a constant one.
    """
    check_choice("normalise", by, NORMALISATIONS)
    if by == "token":
        return sequence_sums(values, counted).sum(), counted.sum()
    sequences = counted.any(-1).sum()
    if by == "sequence":
        return sequence_means(values, counted).sum(), sequences
    if length is None or length < 1:
        raise UserError(f"length={length}: normalise=constant needs the most tokens of an answer, at least 1")
    return sequence_sums(values, counted).sum(), sequences * length


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, counted: Tensor, *, clip: float | None = 0.2
) -> Loss:
    """Return the loss of PPO's value head; its weight is the number of counted tokens.

    A token's loss is max((v - R)^2, (clamp(v, v_old - clip, v_old + clip) - R)^2) / 2, as in OpenAI's baselines
    (https://github.com/openai/baselines) and TRL: a value that has moved by more than `clip`, and is nearer to the
    return for it, has no gradient.

    Figures, means over the tokens: value, return, and clipped (the share whose gradient the clipping took).

    Args:
        values: the head's values, (B, T).
        old_values: those at the sampling, (B, T), without gradient.
        returns: what they are to be, (B, T), from `advantages.gae`, without gradient.
        counted: the sampled tokens, (B, T) bool.
        clip: how far a value may move; None: any distance.

    Raises:
        UserError: `clip` is not above 0.
    """
    _check_clip(clip, None)
    values = values.float()
    old, target = (each.detach().float().masked_fill(~counted, 0) for each in (old_values, returns))
    losses, clipped = (values - target).square() / 2, torch.zeros_like(values)
    if clip is not None:
        moved = values - old
        limited = (old + moved.clamp(-clip, clip) - target).square() / 2
        clipped = ((moved.abs() > clip) & (limited > losses)).float()
        losses = torch.where(moved.abs() > clip, torch.maximum(losses, limited), losses)
    figures = {"value": figure(values, counted), "return": figure(target, counted)}
    return Loss(*normalised(losses, counted), figures | {"clipped": figure(clipped, counted)})


def _check_clip(clip: float | None, high: float | None) -> None:
    for key, value in (("clip", clip), ("clip_high", high)):
        if value is not None and not value > 0:
            raise UserError(f"{key}={value}: must be above 0, e.g. 0.2, or null for no clipping")
    if clip is None and high is not None:
        raise UserError(f"clip_high={high}: has no effect with clip=null; set clip, too, e.g. 0.2")
