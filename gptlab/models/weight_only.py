"""Weights of 8 bits for torch's compiler, on a GPU: a token takes as long there as its weights take to read.

They are the integers and scales of packed.py, a scale for each row; what a layer reads stays as it is. The compiler has
the product read the integers themselves; without it each pass would write them out first, and none of this would pay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.lora import merged
from gptlab.models.quantised import is_quantised, put_in
from gptlab.system.errors import UserError


class Integers(nn.Module):
    """A matrix (M, N) of integers from -127 to 127, with a scale for each row.

    Args:
        name: its layer's, for an error.
        weight: (M, N) of floats.

    Raises:
        UserError: a weight is infinite or not a number.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, name: str, weight: Tensor) -> None:
        super().__init__()
        weight = weight.detach().float()
        if not weight.isfinite().all():
            raise UserError(f"{name}.weight has numbers that are infinite or none, which 8 bits cannot hold")
        scales = weight.abs().amax(1) / 127  # (M,) fp32
        nearest = (weight / scales.where(scales != 0, 1)[:, None]).round().clamp(-127, 127)
        self.register_buffer("weight", nearest.to(torch.int8))
        self.register_buffer("scales", scales)


class WeightOnlyLinear(nn.Module):
    """A linear layer of integers; `nn.Linear`'s shapes."""

    bias: Tensor | None

    def __init__(self, integers: Integers, bias: Tensor | None) -> None:
        super().__init__()
        self.integers = integers
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.integers.weight.to(x.dtype)) * self.integers.scales  # (..., M) fp32
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class WeightOnlyEmbedding(nn.Module):
    """Rows of integers as floats of `dtype`, by their numbers."""

    def __init__(self, integers: Integers, dtype: torch.dtype) -> None:
        super().__init__()
        self.integers, self.dtype = integers, dtype

    def forward(self, idx: Tensor) -> Tensor:
        return (self.integers.weight[idx] * self.integers.scales[idx][..., None]).to(self.dtype)


def weight_only(model: GPT, dtype: torch.dtype) -> GPT:
    """Put the matrices, the embedding and the head of a model into 8 bits, where it is, in evaluation mode.

    A tied head stays one matrix with the embedding. Adapters are merged first.

    Returns:
        `model`, unless it had adapters.

    Args:
        dtype: of everything else.

    Raises:
        UserError: a weight is infinite or not a number.
    """
    model = merged(model).eval().requires_grad_(False)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Embedding)}
    layers = {name: layer for name, layer in layers.items() if name != "wpe"}
    integers = {name: Integers(name, layer.weight) for name, layer in layers.items() if name != "lm_head"}
    integers["lm_head"] = integers["wte"] if model.config.tied else Integers("lm_head", model.lm_head.weight)
    model = model.to(dtype)
    table = WeightOnlyEmbedding(integers["wte"], dtype)
    put_in(model, table, lambda name, layer: WeightOnlyLinear(integers[name], layer.bias))
    return model


def place_of(model: Model) -> tuple[torch.device, torch.dtype]:
    """Return where a model computes, and the type of what its layers hand on."""
    if is_quantised(model):
        return torch.device("cpu"), torch.float32
    if isinstance(model, GPT) and isinstance(model.wte, WeightOnlyEmbedding):
        return model.wte.integers.weight.device, model.wte.dtype
    first = model.wte.weight if isinstance(model, GPT) else next(model.parameters())
    return first.device, first.dtype
