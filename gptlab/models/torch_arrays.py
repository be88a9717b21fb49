"""The arrays of a model of torch, and the model of torch of arrays: both share their memory."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptlab.models.arrays import HEAD, ArrayGPT
from gptlab.models.gpt import GPT
from gptlab.models.packed import Array, Packed
from gptlab.models.quantised import QuantisedEmbedding, QuantisedLinear, put_packed
from gptlab.models.weights import assign, crop, empty_model


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


def gpt_of(arrays: ArrayGPT) -> GPT:
    """Return the model of arrays in fp32, in bf16 or packed, in evaluation mode; it must not be moved or trained."""
    model = empty_model(arrays.config)
    assert isinstance(model, GPT)
    state = {name: _tensor(each) for name, each in arrays.weights.items() if not isinstance(each, Packed)}
    packed = {name: each for name, each in arrays.weights.items() if isinstance(each, Packed)}
    if not packed:
        assign(model, state)
    else:
        put_packed(model, packed)
        model.load_state_dict(state, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def twin_of(model: GPT | ArrayGPT) -> GPT:
    """Return a model on the same weights in the same memory, with modules of its own: it can be watched while the other
    computes in another thread."""
    arrays = model if isinstance(model, ArrayGPT) else arrays_of(model)
    if arrays is not None:
        return gpt_of(arrays)
    assert isinstance(model, GPT)
    twin = crop(model, model.config)
    assert isinstance(twin, GPT)
    return twin


def _tensor(array: Array) -> Tensor:
    """Return the tensor at an array's address, which may be read-only: torch would warn of that, for each."""
    memory = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array  # type: ignore[attr-defined]
    kind = torch.bfloat16 if array.dtype == np.uint16 else torch.float32
    return torch.frombuffer(memory, dtype=kind).view(array.shape)
