"""The arrays of a model of torch, which share its memory."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptlab.models.arrays import HEAD, ArrayGPT
from gptlab.models.gpt import GPT
from gptlab.models.packed import Array, Packed
from gptlab.models.quantised import QuantisedEmbedding, QuantisedLinear


def arrays_of(model: GPT) -> ArrayGPT | None:
    """Return the arrays of a model, which must not be moved or replaced while they are used.

    None where numpy cannot have them: they must be contiguous on a CPU, of one type, fp32 or bf16, without adapters.
    """
    tensors = [*model.parameters(), *model.buffers()]
    types = {t.dtype for t in tensors}
    if model.lora is not None or len(types) > 1 or not types <= {torch.float32, torch.bfloat16}:
        return None
    if any(t.device.type != "cpu" or not t.is_contiguous() for t in tensors):
        return None
    weights: dict[str, Array | Packed] = {}
    for name, module in model.named_modules():
        begin = f"{name}." if name else ""
        if isinstance(module, QuantisedEmbedding | QuantisedLinear):
            weights[f"{begin}weight"] = module.packed
        for own, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            weights[begin + own] = _array(tensor)
    if model.config.tied:
        weights.pop(HEAD, None)
    return ArrayGPT(model.config, weights, tensors)


def _array(tensor: Tensor) -> Array:
    """Return the array at a tensor's address: after `tensor.numpy()` FSDP could not free the storage any more."""
    kind: Any = np.uint16 if tensor.dtype == torch.bfloat16 else np.float32
    memory = (ctypes.c_uint8 * tensor.nbytes).from_address(tensor.data_ptr())
    found: Array = np.ctypeslib.as_array(memory).view(kind).reshape(tuple(tensor.shape))
    return found
