"""Texts are laid into rows without losing one, and little of a row is left empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.chat.packing import pack

CAPACITY = 97


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.integers(1, CAPACITY), max_size=60))
def test_each_text_stands_in_one_row_that_holds_it(lengths: list[int]) -> None:
    rows = pack(np.array(lengths, dtype=np.int64), CAPACITY)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= CAPACITY for row in rows)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // CAPACITY) + 1 or sum(2 * each > CAPACITY for each in lengths)


def test_what_fits_exactly_fills_a_row() -> None:
    assert pack(np.array([5, 7, 3, 2]), 10) == [[1, 2], [0, 3]]
    assert pack(np.array([10, 10]), 10) == [[0], [1]]


@pytest.mark.parametrize("longest", [30, 97])
def test_rows_of_random_lengths_are_full(longest: int) -> None:
    lengths = np.random.default_rng(0).integers(1, longest + 1, 2003)
    rows = pack(lengths, CAPACITY)
    assert lengths.sum() / (len(rows) * CAPACITY) > 0.97
