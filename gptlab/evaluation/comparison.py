"""Whether two models differ on a text: a paired block bootstrap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gptlab.evaluation.loss import Measurement
from gptlab.system.errors import UserError

RESAMPLES, LEVEL = 10_000, 0.95
BLOCK_LENGTH = 1024  # tokens or bytes
MIN_BLOCKS, MAX_BLOCKS = 20, 1000


@dataclass(frozen=True)
class Difference:
    """The mean difference A - B, with its bootstrap interval over the text."""

    mean: float
    low: float
    high: float
    unit: str
    blocks: int
    """The number of blocks."""
    block: float
    """The mean length of a block, in tokens or bytes."""
    seed: int

    def words(self) -> str:
        """Return the finding in one line."""
        if self.low <= 0 <= self.high:
            return f"no difference is shown: {self.interval()}"
        better = "A" if self.mean < 0 else "B"
        return f"{better} is better by {abs(self.mean):.{self.digits()}f} {self.unit}: {self.interval()}"

    def interval(self) -> str:
        """Return the mean difference and its interval in words."""
        mean, low, high = (f"{value:+.{self.digits()}f}" for value in (self.mean, self.low, self.high))
        return f"A - B is {mean}, {LEVEL:.0%} interval {low} to {high}"

    def digits(self) -> int:
        """Return how many decimal places to show: four, or more where the interval would have no width in them."""
        width = self.high - self.low
        return max(4, math.ceil(-math.log10(width))) if width > 1e-9 else 4  # below that it is rounding

    def method(self) -> str:
        """Return the method in one line."""
        what = "tokens" if self.unit == "nats per token" else "bytes"
        return (
            f"paired bootstrap, seed {self.seed}: {RESAMPLES:,} resamples of {self.blocks} blocks of about "
            f"{self.block:,.0f} {what}, neighbours being dependent; over the text, not over training seeds"
        )


def compare_losses(a: Measurement, b: Measurement, same_tokens: bool, seed: int) -> Difference:
    """Bootstrap the mean difference of two losses over blocks of the text, the same blocks for both models.

    The blocks of neighbouring tokens keep their dependence (block bootstrap, Künsch 1989,
    https://doi.org/10.1214/aos/1176347265). Models with the same tokens are compared by token; others by the bytes that
    both predict, where a token's nats are spread evenly over its bytes.

    Args:
        a: the measurement of model A.
        b: the measurement of model B on the same text.
        same_tokens: whether both models have the same tokenizer.
        seed: the seed of the bootstrap.

    Raises:
        UserError: the tokens do not stand for the same bytes, or the text is too short.
    """
    total = int(a.sizes.sum())
    if not same_tokens and total != b.sizes.sum():
        raise UserError(
            f"A's tokens stand for {total:,} bytes of the text and B's for {b.sizes.sum():,}, as those of words do, "
            f"without white space: their bits per byte do not compare"
        )
    begin, end = (0, a.tokens) if same_tokens else (int(max(a.sizes[0], b.sizes[0])), total)
    if end - begin < MIN_BLOCKS:
        raise UserError(f"the text is too short for a comparison: both models predict {end - begin} tokens or bytes")
    blocks = min(max((end - begin) // BLOCK_LENGTH, MIN_BLOCKS), MAX_BLOCKS)
    cuts = np.linspace(begin, end, blocks + 1)
    length = (end - begin) / blocks

    def by_block(measured: Measurement) -> np.ndarray:
        ends = np.arange(measured.tokens + 1) if same_tokens else np.cumsum(measured.sizes)
        summed = np.concatenate(([0.0], np.cumsum(measured.nats, dtype=np.float64)))
        return np.diff(np.interp(cuts, ends, summed)) / length

    differences = (by_block(a) - by_block(b)) / (1 if same_tokens else math.log(2))  # (blocks,)
    draw = np.random.default_rng(seed)
    means = [differences[draw.integers(blocks, size=blocks)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    unit = "nats per token" if same_tokens else "bits per byte"
    return Difference(float(differences.mean()), float(low), float(high), unit, blocks, length, seed)
