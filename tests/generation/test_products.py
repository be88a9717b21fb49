"""Layers of floats and of bfloat16 through our own library."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.generation import c_build
from gptlab.generation.cpu_decoder import BFLOAT16, FLOAT
from gptlab.generation.cpu_library import load_library
from tests.generation.layers import LEVELS, compiled, through
from tests.generation.test_cpu_decoder import needs_library
from tests.models.test_quantised import SIZES, drawn

pytestmark = needs_library
KINDS = {torch.float32: FLOAT, torch.bfloat16: BFLOAT16}
WIDE = (40, 416)
each_kind = pytest.mark.parametrize("dtype", KINDS, ids=str)


def layer(function: Any, x: Tensor, weight: Tensor, bias: Tensor | None, threads: int = 1) -> Tensor:
    matrix = {"groups": KINDS[weight.dtype], "w": weight.data_ptr()}
    return through(function, x, len(weight), bias, threads, **matrix)


@pytest.mark.parametrize("level", LEVELS)
@each_kind
def test_a_layer_is_the_float64_one_on_any_processor(
    level: str, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of bfloat16 the inputs are rounded to it, as the weights are."""
    function = compiled(level, tmp_path_factory.getbasetemp())
    for M, N in (*SIZES, WIDE):
        weight, bias = drawn(M, N).to(dtype), drawn(M, seed=4)
        for n in (1, 2, 3, 7, 8, 13):
            x = drawn(n, N, seed=n)
            expected = x.to(dtype).double() @ weight.double().T + bias.double()
            torch.testing.assert_close(layer(function, x, weight, bias).double(), expected, rtol=1e-4, atol=1e-4)


def test_clang_builds_the_library_too(tmp_path: Path) -> None:
    command = shutil.which("clang")
    if command is None:
        pytest.skip("there is no clang")
    c_build.build(command, c_build.NATIVE, tmp_path / "built.so")
    function, weight, x = ctypes.CDLL(str(tmp_path / "built.so")).cpu_decoder, drawn(*WIDE), drawn(9, WIDE[1])
    function.argtypes, function.restype = load_library().argtypes, None
    torch.testing.assert_close(layer(function, x, weight, None), x @ weight.T, rtol=1e-4, atol=1e-4)


@each_kind
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(dtype: torch.dtype) -> None:
    weight, x = drawn(50, 300).to(dtype), drawn(23, 300, seed=2)
    expected = layer(load_library(), x, weight, None)
    for threads in (1, 2, 3):
        for first, last in ((0, 23), (3, 4), (5, 13), (1, 16)):
            assert torch.equal(
                layer(load_library(), x[first:last].clone(), weight, None, threads), expected[first:last]
            )


@each_kind
@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
def test_what_is_no_number_stays_in_its_row(dtype: torch.dtype, number: float) -> None:
    weight, x = drawn(20, 70).to(dtype), drawn(9, 70)
    x[4, 33] = number
    found = layer(load_library(), x, weight, None)
    assert not found[4].isfinite().any()
    assert found[torch.arange(9) != 4].isfinite().all()
