"""Open the model that is to generate: without torch, whose import takes a second, where our library computes it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gptlab.formats.array_model import open_arrays
from gptlab.formats.opened import OpenedModel, with_bits
from gptlab.generation.cpu_library import load_library
from gptlab.models.arrays import ArrayGPT, in_bf16, in_fp32, quantise
from gptlab.system import machine
from gptlab.system.arguments import BITS

if TYPE_CHECKING:
    from gptlab.models import Model


def open_to_generate(name: str, device: str, precision: str, is_compiled: bool) -> OpenedModel[Model | ArrayGPT]:
    """Open a model in evaluation mode.

    Args:
        name: see `open_model`.
        device: auto, cpu, cuda or mps.
        precision: of the weights: fp32, bf16, int8 or int4; int8 is for a CPU unless it is compiled, int4 always.
        is_compiled: whether torch.compile is to compile it.

    Raises:
        UserError: as `open_model` and `quantised` do, and for a device that is not there.
    """
    bits = BITS.get(precision)
    on_cpu = bits or device == "cpu" or (device == "auto" and not machine.may_have_accelerator())
    if on_cpu and not is_compiled and load_library() is not None and (arrays := open_arrays(name)) is not None:
        if bits:
            return with_bits(arrays, bits, quantise)
        narrowed = in_bf16 if precision == "bf16" else in_fp32
        return replace(arrays, model=narrowed(arrays.model))
    import torch

    from gptlab.formats.open_model import open_model, quantised
    from gptlab.models.weight_only import weight_only
    from gptlab.system.accelerator import device as find_device

    where = find_device("cpu" if bits and not is_compiled else device)
    opened = open_model(name, where, torch.bfloat16 if precision == "bf16" else torch.float32)
    if bits and is_compiled:
        dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
        return quantised(opened, bits, lambda model, bits: weight_only(model, dtype))
    return quantised(opened, bits) if bits else opened
