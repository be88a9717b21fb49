"""Models with weights of 8 or 4 bits, see packed.py, that only generate or are measured.

What a layer reads is rounded to 8 bits, too, with a scale for each 128 numbers of a token, or each 32 where weights
have 4 bits, so that products are sums of integers (as in Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, which
has a scale for each row). Norms, biases and positions stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptlab.models import arrays
from gptlab.models.arrays import ArrayGPT
from gptlab.models.gpt import GPT
from gptlab.models.lora import merged
from gptlab.models.packed import Packed

READ_TOGETHER = {8: 128, 4: 32}  # numbers of what a layer reads that share a scale, by the bits of its weights


def rounded_inputs(x: Tensor, bits: int) -> Tensor:
    """Return what a layer with weights of `bits` bits reads of x (..., N): numbers of 8 bits times scales; fp32."""
    groups = F.pad(x.float(), (0, -x.shape[-1] % READ_TOGETHER[bits])).unflatten(-1, (-1, READ_TOGETHER[bits]))
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest == 0, 0, 127 / largest)
    integers = (groups.double() * inverse).round().float()  # as by one multiply-add, which rounds once
    return (integers * (largest / 127)).flatten(-2)[..., : x.shape[-1]]


class QuantisedLinear(nn.Module):
    """A linear layer with quantised weights; `nn.Linear`'s fields and shapes.

    Args:
        packed: its weights.
        bias: (M,) fp32, or None.
    """

    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = packed
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.out_features, self.in_features = packed.shape

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded_inputs(x, self.packed.bits), torch.from_numpy(self.packed.matrix()), self.bias)


class QuantisedEmbedding(nn.Module):
    """Rows of quantised weights, by their numbers."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, idx: Tensor) -> Tensor:
        return torch.from_numpy(self.packed.rows(idx.numpy()))


def quantise(model: GPT, bits: int) -> GPT:
    """Put the matrices, the embedding and the head of a model into `bits` bits, on the CPU, in evaluation mode.

    A tied head stays one matrix with the embedding. Adapters are merged first.

    Returns:
        `model`, unless it had adapters, and a model that shares what these leave alone.

    Args:
        bits: 8 or 4.

    Raises:
        UserError: a weight is infinite or not a number.
    """
    model = merged(model).to("cpu").float().eval().requires_grad_(False)
    plain = {name: parameter.numpy() for name, parameter in model.named_parameters()}  # a tied head as the embedding
    found = arrays.quantise(ArrayGPT(model.config, plain), bits).weights
    put_packed(model, {name: each for name, each in found.items() if isinstance(each, Packed)})
    return model


def put_packed(model: GPT, packed: Mapping[str, Packed]) -> None:
    """Replace the matrices, the embedding and the head of a model by packed ones, which are by the names of weights."""
    embedding = packed[arrays.EMBEDDING]
    head = packed.get(arrays.HEAD, embedding)
    put_in(
        model,
        QuantisedEmbedding(embedding),
        lambda name, layer: QuantisedLinear(packed.get(f"{name}.weight", head), layer.bias),
    )


def put_in(model: GPT, embedding: nn.Module, linear: Callable[[str, nn.Linear], nn.Module]) -> None:
    """Replace the embedding of a model, and each linear layer by what `linear` makes of its name and itself."""
    model.wte = embedding  # type: ignore[assignment]
    model.lm_head = linear("lm_head", model.lm_head)  # type: ignore[assignment]
    for prefix, parent in [*model.h.named_modules(prefix="h")]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, nn.Linear):
                setattr(parent, name, linear(f"{prefix}.{name}", child))


def is_quantised(model: nn.Module) -> bool:
    """Return whether `quantise` has made a model."""
    return isinstance(getattr(model, "wte", None), QuantisedEmbedding)
