"""Matrices of 8 or 4 bits.

A weight is an integer times a scale. With 8 bits each row of a matrix has a scale, and integers go from -127 to 127;
with 4 bits each 32 weights of a row have one, in fp16, and integers go from -8 to 7.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GROUP = 32  # inputs that share a scale with 4 bits
ROWS = 16  # outputs that lie side by side
MIDDLE = {8: 128, 4: 8}  # what is added to the integers, which are stored without a sign
LARGEST_HALF = 65504.0
AT_ONCE = 1 << 15  # weights that are quantised at a time, so that they stay in the processor's cache
Array = np.ndarray[Any, Any]


class Packed:
    """A matrix (M, N) of integers with their scales, in the order in which c/integers.h reads them.

    `data` is uint8: (M / 16, N / 32, 8, 16, 4) with 8 bits: blocks of 16 rows, groups of 32 columns; then, for each
    four columns, those of each row. With 4 bits it is (M / 16, N / 32, 4, 16, 4): the lower halves of the bytes are the
    first 16 columns of a group, the upper ones the last. M and N are rounded up. `scales` are (M / 16, 16) fp32 with 8
    bits, (M / 16, N / 32, 16) fp16 with 4.

    Args:
        weight: the matrix, (M, N) fp32.
        bits: 8 or 4.

    Raises:
        ValueError: a weight is infinite or not a number.
    """

    def __init__(self, weight: Array, bits: int) -> None:
        self.bits, self.shape = bits, (int(weight.shape[0]), int(weight.shape[1]))
        M, N = (-(-size // unit) for size, unit in zip(self.shape, (ROWS, GROUP), strict=True))
        self.data = np.empty((M, N, bits, ROWS, 4), dtype=np.uint8)
        self.scales: Array = np.empty((M, ROWS) if bits == 8 else (M, N, ROWS), np.float32 if bits == 8 else np.float16)
        blocks = max(1, AT_ONCE // (N * GROUP * ROWS))
        for first in range(0, M, blocks):
            some = weight[first * ROWS : (first + blocks) * ROWS]
            if not np.isfinite(some).all():
                raise ValueError("it has numbers that are infinite or none")
            rows = np.zeros((-(-len(some) // ROWS) * ROWS, N * GROUP), dtype=np.float32)
            rows[: len(some), : some.shape[1]] = some
            blocked: Array = rows.reshape(-1, ROWS, N, GROUP)
            with np.errstate(over="ignore", invalid="ignore"):  # of squares of very large numbers
                integers, scales = (_rows_of_8_bits if bits == 8 else _groups_of_4_bits)(blocked)
            self.scales[first : first + blocks] = scales
            self.data[first : first + blocks] = _pack(integers, bits)

    def matrix(self) -> Array:
        """Return the matrix in fp32, (M, N)."""
        plain = self._plain(self.data, self.scales)
        return plain.reshape(-1, plain.shape[2] * GROUP)[: self.shape[0], : self.shape[1]]

    def integers(self) -> Array:
        """Return the integers of a matrix of 8 bits, (M, N) int8 from -127 to 127."""
        assert self.bits == 8
        M, N = self.shape
        rows = self.data.transpose(0, 3, 1, 2, 4).reshape(len(self.data) * ROWS, -1)[:M, :N]
        return (rows ^ 128).view(np.int8)

    def rows(self, idx: Array) -> Array:
        """Return rows in fp32, (..., N), by their numbers (...)."""
        block, row = np.divmod(idx.reshape(-1), ROWS)
        data = self.data[block, :, :, row][:, :, :, None]  # (n, N / 32, bits, 1, 4)
        scales = self.scales[block, row][:, None] if self.bits == 8 else self.scales[block, :, row][:, :, None]
        plain = self._plain(data, scales)
        return plain.reshape(len(plain), -1)[:, : self.shape[1]].reshape(*idx.shape, -1)

    def _plain(self, data: Array, scales: Array) -> Array:
        """Return the numbers (m, r, g, 32) of packed integers (m, g, bits, r, 4), fp32."""
        if self.bits == 4:
            data = np.concatenate((data & 15, data >> 4), axis=2)
        integers = data.transpose(0, 3, 1, 2, 4).astype(np.float32) - MIDDLE[self.bits]
        integers = integers.reshape(*integers.shape[:3], GROUP)
        if self.bits == 8:
            return integers * scales[..., None, None]
        return integers * scales.swapaxes(1, 2)[..., None].astype(np.float32)


def _pack(integers: Array, bits: int) -> Array:
    """Return integers (m, 16, g, 32) in the order of `Packed`."""
    fours = (integers + MIDDLE[bits]).astype(np.uint8).view(np.int32)  # (m, 16, g, 8)
    data = np.ascontiguousarray(fours.transpose(0, 2, 3, 1)).view(np.uint8).reshape(*fours.shape[::2], 8, ROWS, 4)
    return data if bits == 8 else data[:, :, :4] | data[:, :, 4:] << 4


def _rows_of_8_bits(rows: Array) -> tuple[Array, Array]:
    """Return integers, as `rows` (m, 16, g, 32), and the scale of each row, (m, 16)."""
    scales = np.maximum(rows.max((2, 3)), -rows.min((2, 3))) / np.float32(127)
    return _rounded(rows, scales[..., None, None]).clip(-127, 127), scales


def _groups_of_4_bits(rows: Array) -> tuple[Array, Array]:
    """Return integers, as `rows` (m, 16, g, 32), and the scale of each group, (m, g, 16) fp16.

    At first the largest number of a group becomes -8; then the scale is the one with the least squared error for these
    integers, and the integers are the nearest for that scale, where that has less error.
    """
    most, least = rows.max(3, keepdims=True), rows.min(3, keepdims=True)
    scales = _half(np.where(most > -least, most, least) / -8)
    integers = _rounded(rows, scales).clip(-8, 7)
    difference = rows - integers * scales
    error = _dot(difference, difference)
    for _ in range(2):
        other = _half(_dot(rows, integers) / _dot(integers, integers).clip(1))
        nearest = _rounded(rows, other).clip(-8, 7)
        difference = rows - nearest * other
        less = (left := _dot(difference, difference)) < error
        scales, integers, error = (
            np.where(less, new, old) for new, old in ((other, scales), (nearest, integers), (left, error))
        )
    return integers, scales[..., 0].swapaxes(1, 2).astype(np.float16)


def _dot(a: Array, b: Array) -> Array:
    """Return the dot products over the last axis, which stays with a size of 1."""
    return np.einsum("...i,...i->...", a, b)[..., None]


def _half(scales: Array) -> Array:
    """Return scales as fp16 holds them, in fp32."""
    return scales.clip(-LARGEST_HALF, LARGEST_HALF).astype(np.float16).astype(np.float32)


def _rounded(rows: Array, scales: Array) -> Array:
    return np.rint(rows / np.where(scales == 0, np.float32(1), scales))  # 0: of numbers which round to 0
