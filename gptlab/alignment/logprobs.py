"""Log-probabilities of a model's text, its entropy, and its distance to a reference model: in fp32, in nats."""

from __future__ import annotations

import torch
from torch import Tensor

from gptlab.evaluation.loss import cross_entropy
from gptlab.system.errors import UserError, check_choice

KL_ESTIMATORS = ("k1", "k2", "k3", "k3_weighted")


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the log-probabilities of all tokens in fp32, (B, T, V).

    Args:
        logits: the model's logits, (B, T, V).
        temperature: the one that the text was sampled at. A model sampled at 0.8 is another policy than at 1, and its
            log-probabilities are other ones.

    Raises:
        UserError: the temperature is not above 0.
    """
    return _warmed(logits, temperature).log_softmax(-1)


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the log-probability of each target in fp32, (B, T); 0 where the target is `IGNORED`.

    Args:
        logits: the model's logits, (B, T, V).
        targets: the next tokens, (B, T) int64.
        temperature: see `log_probabilities`.

    Raises:
        UserError: the temperature is not above 0.
    """
    return -cross_entropy(_warmed(logits, temperature), targets, "none").view_as(targets)


def sequence_sums(values: Tensor, counted: Tensor) -> Tensor:
    """Return the sum over each sequence's counted tokens, (B,): of log-probabilities, that of the whole answer.

    Args:
        values: the tokens' log-probabilities, or other numbers, (B, T).
        counted: the tokens that belong to the answer, (B, T) bool.
    """
    return values.masked_fill(~counted, 0).sum(-1)


def sequence_means(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over each sequence's counted tokens, (B,), of which `sequence_sums` has the sum; 0 of none."""
    return quotient(sequence_sums(values, counted), counted.sum(-1))


def entropy(logits: Tensor, counted: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the entropy of each next token in nats, (B, T); 0 where the position is not counted.

    A logit of -inf, of a token that the sampler's filters exclude, counts as probability 0.
    """
    logprobs = log_probabilities(logits, temperature)
    finite = logprobs.masked_fill(logprobs.isneginf(), 0)
    return -(logprobs.exp() * finite).sum(-1).masked_fill(~counted, 0)


def _warmed(logits: Tensor, temperature: float) -> Tensor:
    """Return logits / temperature in fp32."""
    if not temperature > 0:
        raise UserError(f"temperature={temperature}: must be above 0; the most probable token alone has no gradient")
    return logits.float() / temperature


def exact_kl(logits: Tensor, reference: Tensor, counted: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(p || q) at each position in nats, (B, T), as the sum over the vocabulary; 0 where not counted.

    Its gradient is that of the divergence between the two next-token distributions, whatever token was sampled. The
    sum over a sampled text has the divergence of the two distributions over texts as its expectation; its gradient
    leaves out that other weights would have sampled other prefixes.

    Args:
        logits: those of the policy p, (B, T, V); a logit of -inf is probability 0.
        reference: those of the reference q, (B, T, V), which get no gradient.
        counted: the positions whose next token belongs to the answer, (B, T) bool.
        temperature: see `log_probabilities`.

    Raises:
        UserError: the temperature is not above 0.
    """
    p = log_probabilities(logits, temperature)
    q = log_probabilities(reference.detach(), temperature)
    gap = (p - q).masked_fill(p.isneginf(), 0)
    return (p.exp() * gap).sum(-1).masked_fill(~counted, 0)


def kl_estimate(logprobs: Tensor, reference: Tensor, kind: str, old_logprobs: Tensor | None = None) -> Tensor:
    """Return an estimate of KL(p || q) from each sampled token, of any shape; k1 to k3 as Schulman named them.

    With l = log p - log q of a token sampled from p, r = p / p_old, and each differentiated as it stands, r, too:

    ===========  ====================  ==============  =============================================
    kind         of one token          expected value  expected gradient
    ===========  ====================  ==============  =============================================
    k1           l                     KL(p || q)      0: only noise, so it is no loss
    k2           l^2 / 2               another         that of KL(p || q)
    k3           e^-l - 1 + l          KL(p || q)      that of KL(q || p), the other direction
    k3_weighted  r (e^-l - 1 + l)      KL(p || q)      that of KL(p || q), even for tokens from p_old
    ===========  ====================  ==============  =============================================

    So k1 belongs into the reward, see `advantages.token_rewards`, where its gradient is right; as a term of the loss,
    k2 and k3_weighted have the gradient of KL(p || q), k3 has not, and `exact_kl` has it without noise.

    Sources: http://joschu.net/blog/kl-approx.html, https://arxiv.org/abs/2506.09477; k3_weighted is that of DeepSeek
    V3.2, https://arxiv.org/abs/2512.02556. TRL has k3 and, by default, k3_weighted.

    Args:
        logprobs: the policy's log-probabilities of the sampled tokens.
        reference: the reference's, of the same shape, which get no gradient.
        kind: one of `KL_ESTIMATORS`.
        old_logprobs: for k3_weighted, those at the sampling, which get no gradient; None: they are `logprobs`.

    Raises:
        UserError: there is no such kind.
    """
    check_choice("kl", kind, KL_ESTIMATORS)
    difference = logprobs - reference.detach()
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    k3 = torch.expm1(-difference) + difference
    if kind == "k3":
        return k3
    old = logprobs if old_logprobs is None else old_logprobs
    return (logprobs - old.detach()).exp() * k3


def quotient(total: Tensor, weight: Tensor) -> Tensor:
    """Return total / weight, and 0 where the weight is 0, for then the total is 0."""
    return total / weight.masked_fill(weight == 0, 1)
