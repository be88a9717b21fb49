"""See what is inside a forward pass: what each block returns, and where each of its heads looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.models.attention import attention_weights
from gptlab.models.gpt import GPT
from gptlab.models.layers import CausalSelfAttention

See = Callable[[int, Tensor], None]


@contextmanager
def watch_blocks(model: nn.Module, see_output: See | None = None, see_attention: See | None = None) -> Iterator[None]:
    """Call functions in each forward pass of a model, which computes the same numbers as without them.

    Not for the compiled call of a model: hooks would make torch compile it again.

    Args:
        model: nothing is seen of one that is no GPT.
        see_output: called with the number of a block and its output, (B, T, C).
        see_attention: called with the number of a block and its attention weights, (B, H, T, S) in fp32.
    """

    def output(i: int, block: nn.Module, inputs: Any, x: Tensor) -> None:
        assert see_output is not None
        see_output(i, x)

    def attention(i: int, attend: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        assert see_attention is not None
        see_attention(i, attention_weights(q.float(), k.float(), bias, rest[0]))
        return attend(q, k, v, bias, *rest)

    hooks, replaced = [], []
    try:
        for i, block in enumerate(model.h if isinstance(model, GPT) else ()):
            if see_output is not None:
                hooks.append(block.register_forward_hook(partial(output, i)))
            attn = getattr(block, "attn", None)
            if see_attention is not None and isinstance(attn, CausalSelfAttention):
                replaced.append((attn, attn.attention))
                attn.attention = partial(attention, i, attn.attention)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for attn, attend in replaced:
            attn.attention = attend


@torch.inference_mode()
def attention_maps(model: GPT, idx: Tensor) -> Tensor:
    """Return where each head looks in a text: attention weights, (L, H, T, T) in fp32, each row of which sums to 1.

    Args:
        model: in evaluation mode.
        idx: (T,) int64, at most block_size tokens.

    Raises:
        ValueError: the text is too long, or the model has no attention.
    """
    if not model.config.has_attention:
        raise ValueError("the model has no attention (model.attention=none)")
    if len(idx) > model.config.block_size:
        raise ValueError(f"a text of {len(idx)} tokens is longer than model.block_size={model.config.block_size}")
    maps: list[Tensor] = []
    with watch_blocks(model, see_attention=lambda i, weights: maps.append(weights[0])):
        model.features(idx[None])
    return torch.stack(maps)
