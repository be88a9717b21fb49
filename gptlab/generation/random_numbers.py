"""The random numbers that decide what is drawn."""

from __future__ import annotations

import numpy as np


class RandomNumbers:
    """Numbers in [0, 1), the same as torch.rand draws in fp64 from a generator on the CPU with this seed."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed % (1 << 32))

    def draw(self) -> float:
        high, low = self.state.randint(0, 1 << 32, 2, dtype=np.uint32).tolist()
        return float(((high << 32 | low) & (1 << 53) - 1) * 2.0**-53)
