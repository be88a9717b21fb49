"""Dropout (Srivastava et al. 2014) whose masks are a hash of their position: nothing is drawn, nothing is stored.

Whether element i of row b is dropped is a hash of (noise[b], layer, i): the same in micro-batches of any size, on any
number of devices, eager or compiled, and in a resumed run. On a CPU this is several times faster than drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Drop(NamedTuple):
    """Dropout in one layer, for the rows of one batch."""

    p: float = 0.0
    noise: Tensor | None = None
    """(B,) int32, random; None only for p = 0."""
    shape: tuple[int, ...] | None = None
    """Shape of a whole row, if only `part` of it is passed in, see `at`; None: rows are passed in whole."""
    part: tuple[slice, ...] = ()

    def at(self, shape: tuple[int, ...], *part: slice) -> Drop:
        """Return the dropout for `part` of rows of this shape: it drops what it would drop from the whole row."""
        return self._replace(shape=shape, part=part)

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (B, ...) with a share p of it set to zero and the rest scaled up by 1 / (1 - p)."""
        if self.noise is None:
            return x
        shape = self.shape or x.shape[1:]
        i = torch.arange(math.prod(shape), dtype=torch.int32, device=x.device).view(shape)[self.part]
        random = mix_bits(i ^ self.noise.view(-1, *[1] * i.dim()))
        scale = torch.where(random >= int(self.p * 2**32) - 2**31, 1 / (1 - self.p), 0.0)
        return x * scale.to(x.dtype)


NO_DROPOUT = Drop()


def mix_bits(x: Tensor) -> Tensor:
    """Hash int32 numbers so that the high bits depend on all bits of x: two rounds of lowbias32, a bijection.

    Wellons 2018, https://nullprogram.com/blog/2018/07/31/.
    """
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D  # >> repeats the sign bit
    return (x ^ (x >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)


def make_dropouts(rates: Sequence[float], noise: Tensor | None, idx: Tensor) -> list[Drop]:
    """Return the dropout of each layer for a forward pass over idx (B, T).

    Args:
        rates: the probability in each layer, in the order of `GPTConfig.drop_rates`.
        noise: a random number for each row, (B,) int32; None: drawn from torch's generator.
    """
    if not any(rates):
        return [NO_DROPOUT] * len(rates)
    if noise is None:
        noise = torch.randint(-(2**31), 2**31, (len(idx),), dtype=torch.int32, device=idx.device)
    layers = torch.arange(1, len(rates) + 1, dtype=torch.int32, device=idx.device)
    keys = mix_bits(mix_bits(noise + layers[:, None] * (0x9E3779B9 - 2**32)) ^ noise)  # (count, B)
    return [Drop(p, key) if p else NO_DROPOUT for p, key in zip(rates, keys, strict=True)]
