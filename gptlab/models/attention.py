"""Causal attention in several implementations that compute the same numbers.

B T S: batch, queries, keys. H, K: query heads, key and value heads. D: head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gptlab.models.dropout import Drop

LONGEST_WRITTEN_OUT = 2048
"""Most positions for which a compiled pass on a CPU writes the weights out; beyond that they would fill the memory."""


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return softmax(scale q k^T + bias), (B, H, T, S), in fp32 or wider; arguments as in `manual_attention`."""
    T, S = q.shape[-2], k.shape[-2]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, S, D)
    scores = scale * q @ k.transpose(-2, -1)  # (B, H, T, S)
    if bias is None:
        allowed = torch.arange(S - T, S, device=q.device)[:, None] >= torch.arange(S, device=q.device)
        bias = torch.where(allowed, 0.0, float("-inf"))  # (T, S): inductor fuses a sum, but not masked_fill
    scores = scores + bias
    return F.softmax(scores, dim=-1)


def manual_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, drop: Drop) -> Tensor:
    """Compute causal attention step by step: softmax(scale q k^T + bias) v.

    Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762); tested against `F.scaled_dot_product_attention`.
    With fewer key and value heads than query heads, each serves H / K neighbours (grouped-query attention, Ainslie et
    al. 2023, https://arxiv.org/abs/2305.13245).

    Args:
        q: (B, H, T, D).
        k, v: (B, K, S, D), K dividing H; the queries are the last T of S positions.
        bias: as in `PassContext`.
        scale: 1 / sqrt(D), or 1.
        drop: dropout of the attention weights.

    Returns:
        (B, H, T, D).
    """
    weights = drop(attention_weights(q, k, bias, scale))  # (B, H, T, S)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)  # (B, H, S, D)
    return weights.type_as(v) @ v  # (B, H, T, D); the bias is fp32


def per_head_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, drop: Drop) -> Tensor:
    """Compute one head after another, as the lessons do; arguments and result as in `manual_attention`."""
    (_, H, T, _), (_, K, S, _) = q.shape, k.shape
    heads = []
    for h in range(H):
        g = h * K // H  # the key and value head that serves this one
        its_bias = bias if bias is None or bias.shape[1] == 1 else bias[:, [h]]
        heads.append(
            manual_attention(q[:, [h]], k[:, [g]], v[:, [g]], its_bias, scale, drop.at((H, T, S), slice(h, h + 1)))
        )
    return torch.cat(heads, dim=1)  # (B, H, T, D)


def halved_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, drop: Drop) -> Tensor:
    """Compute `manual_attention` for T = S in two halves: the first half of the queries needs no later keys.

    That saves a quarter of the work; compiled, it is the fastest on a CPU. It runs in fp32 even under autocast, since
    small bf16 products are slow there.
    """
    H, T, half = q.shape[1], q.shape[2], q.shape[2] // 2
    parts = []
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (q, k, v))
        for begin, end in ((0, half), (half, T)):
            its_bias = None if bias is None else bias[..., begin:end, :end]
            its_drop = drop.at((H, T, T), slice(None), slice(begin, end), slice(end))
            parts.append(manual_attention(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], its_bias, scale, its_drop))
    return torch.cat(parts, dim=2)  # (B, H, T, D)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, drop: Drop) -> Tensor:
    """Call torch's fused kernels; as `manual_attention`, except that a GPU draws its own dropout."""
    T, S = q.shape[2], k.shape[2]
    compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting() and T <= LONGEST_WRITTEN_OUT
    if q.device.type == "cpu" and T == S > 1 and (drop.p or compiled):
        return halved_attention(q, k, v, bias, scale, drop)
    if drop.p and (not q.is_cuda or torch.are_deterministic_algorithms_enabled()):
        return manual_attention(q, k, v, bias, scale, drop)  # no fused kernel takes a mask
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if bias is None else bias.to(q.dtype),
        is_causal=bias is None and bool(q.shape[2] > 1),
        scale=scale,
        dropout_p=drop.p,
        enable_gqa=q.shape[1] != k.shape[1],
    )


ATTENTIONS = {"sdpa": sdpa_attention, "manual": manual_attention, "per_head": per_head_attention}
