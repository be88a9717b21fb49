"""How the next token is drawn from a model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptlab.generation.random_numbers import RandomNumbers
from gptlab.system.errors import UserError

Array = np.ndarray[Any, Any]


def as_array(logits: Any) -> Array:
    """Return logits of torch or of numpy as an array, (B, V) fp64."""
    if not isinstance(logits, np.ndarray):
        logits = logits.detach().cpu().double().numpy()
    found: Array = logits.astype(np.float64, copy=False)
    return found


def log_probabilities(logits: Any) -> Array:
    """Return the log-softmax of logits of torch or of numpy, (B, V) fp64."""
    shifted = as_array(logits)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def _check_finite(best: Array) -> None:
    if not np.isfinite(best).all():
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

    def probabilities(self, logits: Any, rows: Sequence[Sequence[int]] = ()) -> Array:
        """Return the distribution that the next token of each row is drawn from, (B, V) fp64.

        Args:
            logits: the model's logits, (B, V), of torch or of numpy.
            rows: the tokens of each row so far, for the repetition penalty.

        Raises:
            UserError: a logit is infinite or not a number.
        """
        logits = as_array(logits)
        if self.repetition_penalty != 1.0:
            logits = logits.copy()
            for row, tokens in zip(logits, rows, strict=True):
                seen = sorted(set(tokens))
                some = row[seen]
                row[seen] = np.where(some > 0, some / self.repetition_penalty, some * self.repetition_penalty)
        best = logits.max(axis=-1, keepdims=True)
        _check_finite(best)
        if self.temperature == 0:
            chosen = np.zeros_like(logits)
            np.put_along_axis(chosen, logits.argmax(axis=-1)[:, None], 1.0, axis=-1)
            return chosen
        with np.errstate(over="ignore"):  # to minus infinity, however low the temperature
            logits = (logits - best) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            rest = np.argpartition(-logits, self.top_k - 1, axis=-1)[:, self.top_k :]
            np.put_along_axis(logits, rest, -np.inf, axis=-1)
        probabilities = np.exp(logits)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        if self.top_p is not None and self.top_p < 1:
            order = np.argsort(-probabilities, axis=-1)
            ordered = np.take_along_axis(probabilities, order, axis=-1)
            before = ordered.cumsum(axis=-1) - ordered  # the sum over all more probable tokens
            ordered[before >= self.top_p] = 0.0
            np.put_along_axis(probabilities, order, ordered, axis=-1)
        if self.min_p is not None:
            least = self.min_p * probabilities.max(axis=-1, keepdims=True)
            probabilities[probabilities < least] = 0.0
        return probabilities / probabilities.sum(axis=-1, keepdims=True)

    def draw(self, logits: Any, numbers: Sequence[RandomNumbers], rows: Sequence[Sequence[int]] = ()) -> Array:
        """Draw a token for each row, (B,) int64, by the row's own numbers: other rows do not change its tokens.

        Args:
            logits: the model's logits, (B, V), of torch or of numpy.
            numbers: for each row.
            rows: the tokens of each row so far, for the repetition penalty.

        Raises:
            UserError: a logit is infinite or not a number.
        """
        if self.temperature == 0 and self.repetition_penalty == 1.0:
            tokens = logits.argmax(-1)  # on the device
            tokens = tokens if isinstance(tokens, np.ndarray) else tokens.cpu().numpy()
            _check_finite(as_array(logits[np.arange(len(tokens)), tokens]))
            return tokens
        return invert_cdf(self.probabilities(logits, rows), np.array([each.draw() for each in numbers]))


def invert_cdf(probabilities: Array, u: Array) -> Array:
    """Return each row's first token whose cumulative probability exceeds a share of the row's sum, (B,) int64.

    Args:
        probabilities: (B, V), not necessarily normalised.
        u: the shares, (B,) in [0, 1).
    """
    sums = probabilities.cumsum(axis=-1)
    shares = np.minimum(u * sums[:, -1], np.nextafter(sums[:, -1], 0))
    return np.array([each.searchsorted(share, side="right") for each, share in zip(sums, shares, strict=True)])
