"""Which part a generated problem belongs to, decided by a hash of the problem, so that no two parts can share one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from gptlab.data.batches import as_shares, random_numbers

T = TypeVar("T")
TRAIN, HELD_OUT, LONGER = "train", "held_out", "longer"
MIXERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def number_shares(seed: int, numbers: np.ndarray) -> np.ndarray:
    """Return a hash of each number, (n,) in [0, 1), by SplitMix64 (Steele et al. 2014,
    https://doi.org/10.1145/2660193.2660195).

    Args:
        numbers: (n,) uint64.
    """
    with np.errstate(over="ignore"):
        mixed = numbers.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64))
        for shift, mixer in zip((30, 27), MIXERS, strict=True):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(mixer)
        mixed ^= mixed >> np.uint64(31)
    return as_shares(mixed)


def text_share(seed: int, text: str) -> float:
    """Return a hash of a text, in [0, 1)."""
    raw = hashlib.blake2b(f"{seed} {text}".encode(), digest_size=6).digest()
    return int.from_bytes(raw, "big") / (1 << 48)


def is_of(part: str, seed: int, text: str, held_out: float) -> bool:
    """Return whether a text belongs to a part, train or held_out, of which the latter has a share `held_out`."""
    return (text_share(seed, text) < held_out) == (part == HELD_OUT)


def shuffled(found: Sequence[T], seed: int, name: str) -> list[T]:
    """Return what was found in random order, another one for each name."""
    number = int(text_share(seed, name) * (1 << 48))
    order = np.argsort(random_numbers(seed + (5 << 32), number, len(found)), kind="stable")
    return [found[i] for i in order]
