"""The weights in a safetensors file as arrays of the mapped file, without torch."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from gptlab.formats.description import DIGEST_KEY, KEY
from gptlab.models.arrays import digest
from gptlab.models.packed import Array

TYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
TORCH_NAMES = {"F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16"}


class SafetensorsArrays(NamedTuple):
    weights: dict[str, Array]
    """By name, those of bf16 as uint16."""
    header: dict[str, str]
    data: mmap.mmap
    """The mapped file."""


def read_arrays(file: Path) -> SafetensorsArrays:
    """Read the weights of a safetensors file; our own checksum is verified.

    Raises:
        OSError, ValueError, KeyError: the file is broken, has changed since gptlab wrote it, or has weights of other
            types.
    """
    try:
        with safe_open(file, framework="numpy") as content:  # which checks that weights lie one after the other
            header: dict[str, str] = content.metadata() or {}
            said = [(name, content.get_slice(name)) for name in content.offset_keys()]
            shapes = {name: tuple(each.get_shape()) for name, each in said}
            kinds = {name: each.get_dtype() for name, each in said}
    except SafetensorError as error:
        raise ValueError(f"{file} is broken or no safetensors file ({error})") from error
    with file.open("rb") as opened:
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    place = 8 + int.from_bytes(data[:8], "little")
    weights: dict[str, Array] = {}
    for name, shape in shapes.items():
        found = np.frombuffer(data, TYPES[kinds[name]], math.prod(shape), place)
        weights[name], place = found.reshape(shape), place + found.nbytes
    if place != len(data):
        raise ValueError(f"{file} has not the size that its header says")

    def each() -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
        for name in sorted(weights):
            yield name, TORCH_NAMES[kinds[name]], shapes[name], weights[name].data
            data.madvise(mmap.MADV_DONTNEED)  # what has been read takes no memory any more

    if DIGEST_KEY in header and digest(each(), header.get(KEY, "")) != header[DIGEST_KEY]:
        raise ValueError(f"{file} has changed since gptlab wrote it")
    return SafetensorsArrays(weights, header, data)
