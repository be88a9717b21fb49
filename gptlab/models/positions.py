"""Numbers that depend on positions and sizes alone, for torch and for numpy.

`arange` makes an array of the numbers 0, 1, ... below its argument, in fp32: of numpy by default, or see
`layers.arange_on`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gptlab.models.gpt_config import GPTConfig

Arange = Callable[[int], Any]


def numpy_arange(count: int) -> Any:
    return np.arange(count, dtype=np.float32)


def attention_span(config: GPTConfig) -> int:
    """Return how many positions a token attends to at most, itself included."""
    return min(config.window or config.block_size, config.block_size)


def cache_columns(config: GPTConfig, longest: int, room: int, ahead: int) -> int:
    """Return how many columns a KV cache needs.

    Args:
        longest: tokens of the longest prompt, at most block_size.
        room: tokens that follow it at most.
        ahead: tokens of a later pass at most.
    """
    if not config.slides:
        return min(longest + room, config.block_size)
    return max(longest, min(longest + room, attention_span(config))) + ahead


def cache_room(config: GPTConfig, columns: int, length: int) -> int:
    """Return how many tokens the next pass can have at most, after `length` that lie in a cache of so many columns."""
    left = columns - length
    return max(left, columns - attention_span(config) + 1) if config.slides else left


def geometric_periods(D: int, base: float, arange: Arange = numpy_arange) -> Any:
    """Return base^(2i/D) for pairs i, (ceil(D/2),), as in Vaswani et al. 2017, 3.5."""
    return base ** (arange(-(-D // 2)) * 2 / D)


def sinusoids(T: int, C: int) -> Any:
    """Return what `layers.sinusoids` does of positions 0 to T - 1, (T, C), of numpy."""
    turns = numpy_arange(T)[:, None] / geometric_periods(C, 10_000.0)
    return np.stack((np.sin(turns), np.cos(turns)), axis=-1).reshape(T, -1)[:, :C].copy()


def rotary_frequencies(config: GPTConfig, arange: Arange = numpy_arange) -> Any:
    """Return by how many radians each pair of a head turns in a position, (R/2,); see `GPTConfig.rope_scaling`.

    Each number is rounded as in `transformers`: what is lost here is multiplied by the position.
    """
    periods = geometric_periods(config.rotary_size, config.rope_base, arange)
    frequencies, factor = 1.0 / periods, config.rope_factor
    if config.rope_scaling == "linear":
        return frequencies / factor
    if config.rope_scaling == "llama3":
        assert config.rope_original_size is not None
        low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
        turns = config.rope_original_size / (2 * math.pi / frequencies)
        kept = ((turns - low) / (high - low)).clip(0, 1)
        return (1 - kept) * frequencies / factor + kept * frequencies
    if config.rope_scaling == "yarn":
        kept = 1 - yarn_ramp(config, arange)
        return 1.0 / (factor * periods) * (1 - kept) + frequencies * kept
    return frequencies


def yarn_ramp(config: GPTConfig, arange: Arange = numpy_arange) -> Any:
    """Return YaRN's share of the slowing down for each pair, (R/2,): from none at the fast ones to all at the slow."""
    R, original = config.rotary_size, config.rope_original_size
    assert original is not None

    def pair_that_turns(times: float) -> float:
        """Return which pair turns so many times in the original size; a fraction, perhaps outside of the head."""
        return R * (math.log(original / (2 * math.pi)) - math.log(times)) / (2 * math.log(config.rope_base))

    first = max(math.floor(pair_that_turns(config.rope_beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(config.rope_beta_slow)), R - 1)
    width = last - first or 0.001
    return ((arange(R // 2) - first) / width).clip(0, 1)


def rotary_scale(config: GPTConfig) -> float:
    """Return by what rotated queries and keys are multiplied: 1, but for yarn (its paper's equation 22)."""
    if config.rope_scaling != "yarn":
        return 1.0
    if config.rope_attention_factor is not None:
        return config.rope_attention_factor
    return 0.1 * math.log(max(config.rope_factor, 1.0)) + 1.0


def alibi_slopes(n_head: int, arange: Arange = numpy_arange) -> Any:
    """Return ALiBi's slopes, (H,): 2^(-8/H), 2^(-16/H), ..., 2^-8 if H is a power of two.

    Otherwise the slopes of the next smaller power of two n, then the first, third, ... of 2 n, as in the code of
    Press et al. 2022 (https://arxiv.org/abs/2108.12409).
    """
    n = 2 ** int(math.log2(n_head))
    i = arange(n_head)
    regular = i < n
    return 2.0 ** -(regular * (i + 1) * (8 / n) + ~regular * (2 * (i - n) + 1) * (4 / n))
