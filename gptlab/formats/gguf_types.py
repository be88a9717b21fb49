"""The types of ggml in which gptlab reads and writes the tensors of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 32  # numbers that share a scale


@dataclass(frozen=True)
class GGMLType:
    """A type that is read."""

    name: str
    block: int
    """So many numbers of a row stand together; a row has a multiple of them."""
    block_bytes: int
    read: Callable[[np.ndarray], Tensor]
    """Return the numbers, (n,), of the bytes of whole blocks, (size,) uint8: as they are, or in fp32."""


def _floats(dtype: torch.dtype) -> Callable[[np.ndarray], Tensor]:
    return lambda content: torch.from_numpy(content).view(dtype)


def _q8_0(content: np.ndarray) -> Tensor:
    """A scale in fp16, then 32 signed bytes."""
    blocks = content.reshape(-1, 2 + BLOCK)
    return _scaled(blocks, blocks[:, 2:].view(np.int8))


def _q4_0(content: np.ndarray) -> Tensor:
    """A scale in fp16, then 16 bytes, whose low halves are the first 16 numbers plus 8, the high halves the others."""
    blocks = content.reshape(-1, 2 + BLOCK // 2)
    halves = np.concatenate((blocks[:, 2:] & 15, blocks[:, 2:] >> 4), axis=1)
    return _scaled(blocks, halves.view(np.int8) - np.int8(8))


def _scaled(blocks: np.ndarray, numbers: np.ndarray) -> Tensor:
    """Return the numbers (blocks, 32) times the scales with which the blocks begin, (n,) fp32."""
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):  # infinite scales, of a damaged file
        return torch.from_numpy((scales * numbers.astype(np.float32)).reshape(-1))


TYPES = {  # by their numbers in ggml
    0: GGMLType("F32", 1, 4, _floats(torch.float32)),
    1: GGMLType("F16", 1, 2, _floats(torch.float16)),
    30: GGMLType("BF16", 1, 2, _floats(torch.bfloat16)),
    8: GGMLType("Q8_0", BLOCK, 2 + BLOCK, _q8_0),
    2: GGMLType("Q4_0", BLOCK, 2 + BLOCK // 2, _q4_0),
}
OTHERS = {  # of which only the names are known here
    **{3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"},
    **{15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S"},
    **{23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0"},
    **{39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}


def ggml_type(kind: int) -> str:
    """Return the name of a type."""
    return TYPES[kind].name if kind in TYPES else OTHERS.get(kind, f"of the unknown type {kind:,}")
