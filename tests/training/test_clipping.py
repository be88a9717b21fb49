"""Gradients are clipped as torch clips them, to the bit, whether or not there is anything to clip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gptlab.data.tokenizers import ByteTokenizer
from gptlab.distributed.sharding import total_norm
from gptlab.models import Bigram, BigramConfig
from gptlab.training.module import LMModule
from gptlab.training.optimizers import OptimConfig
from gptlab.training.schedules import ScheduleConfig
from tests.training.test_optimizers import ADAMW, COSINE


def gradients(norm: float, generator: torch.Generator) -> list[Tensor]:
    """Of three parameters, together of about this norm."""
    drawn = [torch.randn(shape, generator=generator) for shape in ((7, 5), (5,), (3, 3, 3))]
    scale = norm / float(nn.utils.get_total_norm(drawn))
    return [gradient * scale for gradient in drawn]


@pytest.mark.parametrize("limit", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.998, 0.9995, 0.9999995, 1.0, 1.0000005, 1.5, 1e6, float("inf")])
def test_clipping_is_torchs(limit: float, share: float) -> None:
    tokenizer = ByteTokenizer()
    optim = OptimConfig(**{**ADAMW, "grad_clip": limit})  # type: ignore[arg-type]
    schedule = ScheduleConfig(**COSINE)  # type: ignore[arg-type]
    module = LMModule(Bigram(BigramConfig(256)), tokenizer, optim, schedule, {}, "", skip=True)
    generator = torch.Generator().manual_seed(1337)
    for _ in range(20):
        drawn = gradients(share * (limit or 1.0), generator)
        ours, torchs = ([nn.Parameter(torch.zeros_like(gradient)) for gradient in drawn] for _ in range(2))
        for parameters in (ours, torchs):
            for parameter, gradient in zip(parameters, drawn, strict=True):
                parameter.grad = gradient.clone()
        frozen = nn.Parameter(torch.zeros(2))
        module.configure_gradient_clipping(torch.optim.SGD([*ours, frozen]))
        norm = nn.utils.clip_grad_norm_([*torchs, frozen], limit or float("inf"))
        assert module.grad_norm.equal(norm) or not norm.isfinite()
        for mine, its in zip(ours, torchs, strict=True):
            torch.testing.assert_close(mine.grad, its.grad, rtol=0, atol=0, equal_nan=True)


def test_the_norm_is_torchs_in_every_type() -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = gradients(3.7, generator)
    mixed = [drawn[0], drawn[1].bfloat16(), drawn[2].double()]
    for tensors in ([], drawn[:1], drawn, [tensor.bfloat16() for tensor in drawn], mixed):
        assert total_norm(tensors).equal(nn.utils.get_total_norm(tensors)), tensors
