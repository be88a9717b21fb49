"""One layer through our own library, as built for each set of instructions."""

from __future__ import annotations

import ctypes
import functools
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.generation import c_build
from gptlab.generation.cpu_decoder import LINEAR, CStep
from gptlab.generation.cpu_library import load_library
from gptlab.system.machine import processor_features

LEVELS = [  # each takes seconds to compile
    pytest.param(name, marks=[] if name in ("native", "x86-64-v3") else pytest.mark.slow)
    for name in ("native", *(level.name for levels in c_build.LEVELS.values() for level in levels))
]


@functools.cache
def compiled(level: str, folder: Path) -> Any:
    """The library's function for a set of instructions; skips where this machine lacks it."""
    if level == "native":
        return load_library()
    there = next((each for each in c_build.LEVELS.get(platform.machine(), ()) if each.name == level), None)
    if there is None or not there.features <= {*processor_features().split()}:
        pytest.skip(f"this processor has not all of {level}")
    compiler = c_build.compiler()
    assert compiler is not None
    c_build.build(compiler, there.flags, folder / f"{level}.so")
    function = ctypes.CDLL(str(folder / f"{level}.so")).cpu_decoder
    function.argtypes, function.restype = load_library().argtypes, None
    return function


def through(function: Any, x: Tensor, M: int, bias: Tensor | None, threads: int = 1, **matrix: Any) -> Tensor:
    """x (n, N) through a layer of M outputs, by the library's function; `matrix`: fields of its step."""
    n, N = x.shape
    y, scratch, where = torch.zeros(n, M), torch.zeros(n * (N + 32) + 4096), torch.zeros(3, n, dtype=torch.int64)
    step = CStep(kind=LINEAR, n=N, m=M, x=x.data_ptr(), y=y.data_ptr(), **matrix)
    step.b = None if bias is None else bias.data_ptr()
    function(ctypes.byref(step), 1, *(t.data_ptr() for t in (*where, scratch)), n, threads)
    return y
