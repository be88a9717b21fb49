"""Contexts for tests, whichever kind computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gptlab.generation.context import Context, open_context
from gptlab.generation.cpu_context import CPUContext
from gptlab.generation.torch_context import TorchContext


def context_for(
    model: Any, prompts: Sequence[Sequence[int]], room: int, *, cache: bool = True, **options: Any
) -> Context:
    """As `open_context`; without a cache, torch computes all tokens anew each time."""
    if cache:
        return open_context(model, prompts, room, **options)
    return TorchContext(model, prompts, room, cache=False, **options)


def logits_of(context: Context, last: int = 1) -> Tensor:
    return torch.as_tensor(context.logits(last))


def is_ours(context: Context) -> bool:
    """Whether our library computes."""
    return isinstance(context, CPUContext)
