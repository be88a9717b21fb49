"""How the next token is drawn from a model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptlab.system.errors import UserError


def _check_finite(best: Tensor) -> None:
    if not best.isfinite().all():
        raise UserError("the model's logits are no numbers: its weights are damaged, or its training has diverged")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The filters apply in the order of these fields, as in `transformers`.

    Raises:
        ValueError: a value is out of range.
    """

    repetition_penalty: float = 1.0
    """Divides the positive logits, and multiplies the negative ones, of tokens that occur already (CTRL, Keskar et al.
    2019, https://arxiv.org/abs/1909.05858)."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int | None = None
    """Keep the k most probable tokens."""
    top_p: float | None = None
    """Keep the fewest most probable tokens whose probabilities sum to at least p (Holtzman et al. 2020,
    https://arxiv.org/abs/1904.09751)."""
    min_p: float | None = None
    """Keep the tokens at least p times as probable as the most probable one (Nguyen et al. 2024,
    https://arxiv.org/abs/2407.01082)."""

    def __post_init__(self) -> None:
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty={self.repetition_penalty}: must be above 0 (1 is none)")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: must be at least 0 (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p}: must be at least 0 and at most 1")

    def probabilities(self, logits: Tensor, rows: Sequence[Sequence[int]] = ()) -> Tensor:
        """Return the distribution that the next token of each row is drawn from, (B, V) fp64 on the CPU.

        Args:
            logits: the model's logits, (B, V).
            rows: the tokens of each row so far, for the repetition penalty.

        Raises:
            UserError: a logit is infinite or not a number.
        """
        logits = logits.detach().cpu().double()
        if self.repetition_penalty != 1.0:
            logits = logits.clone()
            for row, tokens in zip(logits, rows, strict=True):
                seen = torch.tensor(sorted(set(tokens)))
                row[seen] = torch.where(
                    row[seen] > 0, row[seen] / self.repetition_penalty, row[seen] * self.repetition_penalty
                )
        best = logits.max(dim=-1, keepdim=True)
        _check_finite(best.values)
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(-1, best.indices, 1.0)
        logits = (logits - best.values) / self.temperature  # no overflow, however low the temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kept = logits.topk(self.top_k)
            logits = torch.full_like(logits, float("-inf")).scatter(-1, kept.indices, kept.values)
        probabilities = logits.softmax(dim=-1)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            before = ordered.cumsum(dim=-1) - ordered  # the sum over all more probable tokens
            probabilities = probabilities.scatter(-1, order, ordered.masked_fill(before >= self.top_p, 0.0))
        if self.min_p is not None:
            least = self.min_p * probabilities.max(dim=-1, keepdim=True).values
            probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        return probabilities / probabilities.sum(dim=-1, keepdim=True)

    def draw(self, logits: Tensor, generators: Sequence[torch.Generator], rows: Sequence[Sequence[int]] = ()) -> Tensor:
        """Draw a token for each row, (B,) int64, with the row's own generator: other rows do not change its tokens.

        Args:
            logits: the model's logits, (B, V).
            generators: one for each row, on the CPU.
            rows: the tokens of each row so far, for the repetition penalty.

        Raises:
            UserError: a logit is infinite or not a number.
        """
        if self.temperature == 0 and self.repetition_penalty == 1.0:
            best = logits.max(dim=-1)
            _check_finite(best.values)
            return best.indices.cpu()
        return invert_cdf(self.probabilities(logits, rows), uniform_numbers(generators))


def uniform_numbers(generators: Sequence[torch.Generator]) -> Tensor:
    """Draw a number from each generator, (B,) fp64 in [0, 1)."""
    return torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])


def invert_cdf(probabilities: Tensor, u: Tensor) -> Tensor:
    """Return each row's first token whose cumulative probability exceeds a share of the row's sum, (B,) int64.

    Args:
        probabilities: (B, V), not necessarily normalised.
        u: the shares, (B,) in [0, 1).
    """
    sums = probabilities.cumsum(dim=-1)
    whole = sums[:, -1:]
    return torch.searchsorted(sums, (u[:, None] * whole).minimum(whole.nextafter(torch.zeros(()))), right=True)[:, 0]
