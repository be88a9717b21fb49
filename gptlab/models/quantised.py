"""Weights of 8 or 4 bits, for models that only generate or are measured.

A weight is an integer times a scale. With 8 bits each row of a matrix has a scale, and integers go from -127 to 127;
with 4 bits each 32 weights of a row have one, in fp16, and integers go from -8 to 7. What a layer reads is rounded to 8
bits, too, with a scale for each 32 numbers of a token, so that products are sums of integers (as in Dettmers et al.
2022, https://arxiv.org/abs/2208.07339, which has a scale for each row). Norms, biases and positions stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptlab.models.gpt import GPT
from gptlab.models.lora import merged
from gptlab.system.errors import UserError

GROUP = 32  # inputs that share a scale
ROWS = 16  # outputs that lie side by side
MIDDLE = {8: 128, 4: 8}  # what is added to the integers, which are stored without a sign
LARGEST_HALF = 65504.0
AT_ONCE = 1 << 18  # weights that are quantised at a time, so that they stay in the processor's cache


class Packed(nn.Module):
    """A matrix (M, N) of integers with their scales, in the order in which cpu_decoder.c reads them.

    `data` is uint8: (M / 16, N / 32, 8, 16, 4) with 8 bits: blocks of 16 rows, groups of 32 columns; then, for each
    four columns, those of each row. With 4 bits it is (M / 16, N / 32, 4, 16, 4): the lower halves of the bytes are the
    first 16 columns of a group, the upper ones the last. M and N are rounded up. `scales` are (M / 16, 16) fp32 with 8
    bits, (M / 16, N / 32, 16) fp16 with 4.

    Args:
        weight: the matrix, (M, N), finite.
        bits: 8 or 4.
    """

    data: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits, self.shape = bits, tuple(weight.shape)
        M, N = (-(-size // unit) for size, unit in zip(self.shape, (ROWS, GROUP), strict=True))
        self.register_buffer("data", torch.empty(M, N, bits, ROWS, 4, dtype=torch.uint8))
        if bits == 8:
            self.register_buffer("scales", torch.empty(M, ROWS))
        else:
            self.register_buffer("scales", torch.empty(M, N, ROWS, dtype=torch.float16))
        blocks = max(1, AT_ONCE // (N * GROUP * ROWS))
        for first in range(0, M, blocks):
            some = weight[first * ROWS : (first + blocks) * ROWS].detach().to("cpu", torch.float32)
            short = -len(some) % ROWS
            rows = F.pad(some, (0, N * GROUP - some.shape[1], 0, short)).view(-1, ROWS, N, GROUP)
            integers, scales = (_rows_of_8_bits if bits == 8 else _groups_of_4_bits)(rows)
            self.scales[first : first + blocks] = scales
            self.data[first : first + blocks] = _pack(integers, bits)

    def matrix(self) -> Tensor:
        """Return the matrix in fp32, (M, N)."""
        return self._plain(self.data, self.scales).flatten(0, 1).flatten(1)[: self.shape[0], : self.shape[1]]

    def rows(self, idx: Tensor) -> Tensor:
        """Return rows in fp32, (..., N), by their numbers (...)."""
        flat = idx.flatten()
        block, row = flat // ROWS, flat % ROWS
        data = self.data[block, :, :, row][:, :, :, None]  # (n, N / 32, bits, 1, 4)
        scales = self.scales[block, row][:, None] if self.bits == 8 else self.scales[block, :, row][:, :, None]
        return self._plain(data, scales).flatten(1)[:, : self.shape[1]].view(*idx.shape, -1)

    def _plain(self, data: Tensor, scales: Tensor) -> Tensor:
        """Return the numbers (m, r, g, 32) of packed integers (m, g, bits, r, 4), fp32."""
        if self.bits == 4:
            data = torch.cat((data & 15, data >> 4), dim=2)
        integers = data.permute(0, 3, 1, 2, 4).flatten(3).float() - MIDDLE[self.bits]
        return integers * (scales[..., None, None] if self.bits == 8 else scales.transpose(1, 2)[..., None].float())


def _pack(integers: Tensor, bits: int) -> Tensor:
    """Return integers (m, 16, g, 32) in the order of `Packed`."""
    fours = (integers + MIDDLE[bits]).to(torch.uint8).view(torch.int32)  # (m, 16, g, 8)
    data = fours.permute(0, 2, 3, 1).contiguous().view(torch.uint8).unflatten(-1, (ROWS, 4))
    return data if bits == 8 else data[:, :, :4] | data[:, :, 4:] << 4


def _rows_of_8_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers, as `rows` (m, 16, g, 32), and the scale of each row, (m, 16)."""
    scales = rows.abs().amax((2, 3)) / 127
    return _rounded(rows, scales[..., None, None]).clamp_(-127, 127), scales


def _groups_of_4_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers, as `rows` (m, 16, g, 32), and the scale of each group, (m, g, 16) fp16.

    At first the largest number of a group becomes -8; then the scale is the one with the least squared error for these
    integers, and the integers are the nearest for that scale, where that has less error.
    """
    largest = rows.gather(3, rows.abs().argmax(3, keepdim=True))
    scales = _half(largest / -8)
    integers = _rounded(rows, scales).clamp_(-8, 7)
    error = (rows - integers * scales).square().sum(3, keepdim=True)
    for _ in range(2):
        squares = integers.square().sum(3, keepdim=True)
        other = _half((rows * integers).sum(3, keepdim=True) / squares.clamp(min=1))
        nearest = _rounded(rows, other).clamp_(-8, 7)
        less = (left := (rows - nearest * other).square().sum(3, keepdim=True)) < error
        scales, integers, error = (
            torch.where(less, new, old) for new, old in ((other, scales), (nearest, integers), (left, error))
        )
    return integers, scales[..., 0].transpose(1, 2).half()


def _half(scales: Tensor) -> Tensor:
    """Return scales as fp16 holds them, in fp32."""
    return scales.clamp(-LARGEST_HALF, LARGEST_HALF).half().float()


def _rounded(rows: Tensor, scales: Tensor) -> Tensor:
    return (rows / torch.where(scales == 0, 1, scales)).round_()  # a scale of 0 is that of numbers which round to 0


def rounded_inputs(x: Tensor) -> Tensor:
    """Return what a quantised layer reads of x (..., N): rounded to 8 bits, with a scale for each 32 numbers; fp32."""
    groups = F.pad(x.float(), (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
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
        return F.linear(rounded_inputs(x), self.packed.matrix(), self.bias)


class QuantisedEmbedding(nn.Module):
    """Rows of quantised weights, by their numbers."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, idx: Tensor) -> Tensor:
        return self.packed.rows(idx)


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
    head = model.lm_head
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(f"{name} has numbers that are infinite or none, which {bits} bits cannot hold")
    tied = head.weight is model.wte.weight
    embedding = Packed(model.wte.weight, bits)
    model.wte = QuantisedEmbedding(embedding)  # type: ignore[assignment]
    packed = embedding if tied else Packed(head.weight, bits)
    model.lm_head = QuantisedLinear(packed, head.bias)  # type: ignore[assignment]
    for parent in [*model.h.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, nn.Linear):
                setattr(parent, name, QuantisedLinear(Packed(child.weight, bits), child.bias))
    return model


def is_quantised(model: nn.Module) -> bool:
    """Return whether `quantise` has made a model."""
    return isinstance(getattr(model, "wte", None), QuantisedEmbedding)
