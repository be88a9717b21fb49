"""The numbers that decide what is drawn are those of torch's generators."""

from __future__ import annotations

import pytest
import torch

from gptlab.generation.random_numbers import RandomNumbers


@pytest.mark.parametrize("seed", [0, 1, 1337, (1 << 32) - 1, (1 << 32) + 5, (1 << 63) - 1])
def test_they_are_torchs(seed: int) -> None:
    ours, torchs = RandomNumbers(seed), torch.Generator().manual_seed(seed)
    for _ in range(1000):
        assert ours.draw() == torch.rand((), generator=torchs, dtype=torch.float64).item()
