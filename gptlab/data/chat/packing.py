"""Lay texts of different lengths into rows of one length, so that little of a row is left empty."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Return which texts stand in each row, by best-fit decreasing: the longest first, each where least is left.

    It needs at most 11/9 of the fewest rows possible, and one more (Johnson et al. 1974,
    https://doi.org/10.1137/0203025).

    Args:
        lengths: the length of each text, (n,), at least 1 and at most `capacity`.
        capacity: the length of a row.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # what is left in each row, and its number
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        fitting = bisect_left(spaces, (length, -1))
        if fitting == len(spaces):
            space, row = capacity, len(rows)
            rows.append([])
        else:
            space, row = spaces.pop(fitting)
        rows[row].append(i)
        insort(spaces, (space - length, row))
    return rows
