"""The parts of a transformer block; each switch of the config is a class or a line in this module.

B T C: batch, positions, n_embd. H, K: query heads, key and value heads. D: head size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptlab.models.attention import ATTENTIONS
from gptlab.models.dropout import NO_DROPOUT, Drop
from gptlab.models.gpt_config import GATED, GPTConfig
from gptlab.models.low_rank import AdaptedLinear
from gptlab.models.positions import (
    Arange,
    alibi_slopes,
    attention_span,
    geometric_periods,
    rotary_frequencies,
    rotary_scale,
)


def gelu(x: Tensor) -> Tensor:
    """Apply GPT-2's GELU, the tanh approximation (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415)."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return F.gelu(x, approximate="tanh")
    # (1 + tanh(y)) / 2 = sigmoid(2 y), which inductor computes in half the time on a CPU.
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


# "swiglu" and "geglu" multiply the activation with a second projection (Shazeer 2020, https://arxiv.org/abs/2002.05202);
# "relu2" is the squared ReLU of Primer (So et al. 2021, https://arxiv.org/abs/2109.08668).
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_exact": F.gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "swiglu": F.silu,
    "geglu": gelu,
}
LINEAR_LAYERS = 4  # of a block: attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj


def arange_on(device: torch.device | None) -> Arange:
    """Return the `arange` that the functions of positions.py take: its tensors are on `device`."""
    return functools.partial(torch.arange, dtype=torch.float32, device=device)


class PassContext(NamedTuple):
    """What every block must know of a forward pass of T tokens over S keys: positions, KV cache, dropout."""

    rotation: Tensor | None
    """(2, T, R) or (2, B, 1, T, R): the cosines and sines that rotate R columns of queries and keys; None: none do."""
    bias: Tensor | None
    """(1 or B, 1 or H, T, S), added to the scores, -inf where a position may not attend; None: a causal mask alone."""
    append_kv: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """Add these tokens' keys and values, (B, K, T, D), to a block's cache and return all, (B, K, S, D)."""
    dropouts: tuple[Drop, ...] = (NO_DROPOUT, NO_DROPOUT, NO_DROPOUT)
    """Dropout of attention weights, attention branch and mlp branch."""
    adapter_dropouts: tuple[Drop, ...] = (NO_DROPOUT,) * LINEAR_LAYERS
    """Dropout of what the adapters of attn.c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj read, if there are any."""
    previous_inputs: Callable[[str, Tensor, int], Tensor] | None = None
    """Add the input of a block's attn or mlp, (B, T, C), to a cache; return it after the n before, (B, n + T, C)."""
    places: Tensor | None = None
    """(B, T) int64: the position of each token in its own text, where a row holds several; None: a row is one text."""


PLAIN_PASS = PassContext(None, None)


def first_pass(config: GPTConfig, T: int, device: torch.device) -> PassContext:
    """Return the context of a pass without a cache, over the first T tokens of a text."""
    t = torch.arange(T, device=device)
    window = None if attention_span(config) >= T else attention_span(config)
    slopes = alibi_slopes(config.n_head, arange_on(device)) if config.pos == "alibi" else None
    plain = window is None and slopes is None
    return PassContext(rotation_at(config, t), None if plain else attention_bias(t, t, window or T, slopes)[None])


def packed_pass(config: GPTConfig, places: Tensor) -> PassContext:
    """Return the context of a pass over rows of several texts, none of which sees another.

    Args:
        places: (B, T) int64, as in `PassContext`; a text begins at each 0.
    """
    texts = (places == 0).cumsum(1)
    t = torch.arange(places.shape[1], device=places.device)
    slopes = alibi_slopes(config.n_head, arange_on(places.device)) if config.pos == "alibi" else None
    bias = attention_bias(t, t, attention_span(config), slopes)  # distances are the same in a row and in a text
    bias = bias.masked_fill((texts[:, :, None] != texts[:, None])[:, None], float("-inf"))  # (B, 1 or H, T, T)
    rotation = rotation_at(config, places)  # (2, B, T, D)
    return PassContext(None if rotation is None else rotation[:, :, None], bias, places=places)


def rotation_at(config: GPTConfig, t: Tensor) -> Tensor | None:
    """Return `rotary_table` at positions t, or None if the model does not use rotary embeddings."""
    if config.pos != "rope":
        return None
    return rotary_table(t, rotary_frequencies(config, arange_on(t.device))) * rotary_scale(config)


def rotary_table(t: Tensor, frequencies: Tensor) -> Tensor:
    """Return the cosines and sines of t times frequencies, (2, ..., T, R), the same for both halves of R columns.

    Args:
        t: positions, (..., T).
        frequencies: of `rotary_frequencies`, (R/2,).
    """
    turns = t[..., None] * frequencies
    turns = torch.cat((turns, turns), dim=-1)  # (..., T, R)
    return torch.stack((turns.cos(), turns.sin()))


def sinusoids(t: Tensor, C: int) -> Tensor:
    """Return the sines (even columns) and cosines (odd columns) of t / `geometric_periods`, (..., T, C)."""
    turns = t[..., None] / geometric_periods(C, 10_000.0, arange_on(t.device))
    return torch.stack((turns.sin(), turns.cos()), dim=-1).flatten(-2)[..., :C]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the pairs (i, i + R/2) of the first R columns of x (B, H, T, D) by the angle of their position.

    RoFormer (Su et al. 2021, https://arxiv.org/abs/2104.09864), with the pairing of `transformers`' Llama.
    """
    cos, sin = rotation
    R = cos.shape[-1]
    turned, still = (x, None) if x.shape[-1] == R else (x[..., :R], x[..., R:])
    first, second = turned.chunk(2, dim=-1)
    turned = (turned * cos + torch.cat((-second, first), dim=-1) * sin).type_as(x)
    return turned if still is None else torch.cat((turned, still), dim=-1)


def attention_bias(t: Tensor, keys: Tensor, window: int, slopes: Tensor | None) -> Tensor:
    """Return what is added to the scores: -slope times the distance, -inf where a query may not attend.

    Args:
        t: positions of the queries, (..., T).
        keys: positions of the keys, (..., S).
        window: keys at this distance or more are masked, like those in the future.
        slopes: of `alibi_slopes`, (H,); None: no distance penalty.

    Returns:
        (..., 1 or H, T, S).
    """
    distance = (t[..., :, None] - keys[..., None, :])[..., None, :, :]  # (..., 1, T, S), negative in the future
    zeros = torch.zeros(1, 1, 1, device=t.device)
    bias = zeros if slopes is None else -slopes[:, None, None] * distance
    return bias.masked_fill((distance < 0) | (distance >= window), float("-inf"))


class RMSNorm(nn.RMSNorm):
    """Root mean square layer normalization (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast x may be bf16 and the weight fp32, for which torch has no fused kernel.
        weight = None if self.weight is None else self.weight.type_as(x)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


def make_norm(config: GPTConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, config.norm_eps, config.norm_weight, config.bias)
    if config.norm == "rmsnorm":
        return RMSNorm(config.n_embd, config.norm_eps, config.norm_weight)
    return nn.Identity()


class CausalConv(nn.Module):
    """x plus a weighted sum of x and the `conv` - 1 positions before, channel by channel; starts as the identity.

    It stands in front of attention and mlp, so that tokens know their neighbours without attention: Canon layers A and
    C of Allen-Zhu 2025, "Physics of Language Models: Part 4.1" (https://arxiv.org/abs/2512.17351).

    Args:
        name: attn or mlp.
    """

    def __init__(self, config: GPTConfig, name: str) -> None:
        super().__init__()
        assert config.conv is not None
        self.name, self.before = name, config.conv - 1
        # The transpose of nn.Conv1d's, since a CPU kernel reads channels side by side; the last tap is the token's own.
        self.weight = nn.Parameter(torch.zeros(config.conv, 1, config.n_embd))

    def forward(self, x: Tensor, context: PassContext) -> Tensor:
        # nn.Conv1d is several times slower on a CPU, where inductor fuses this into one kernel.
        n, T = self.before, x.shape[1]
        previous = context.previous_inputs
        padded = F.pad(x, (0, 0, n, 0)) if previous is None else previous(self.name, x, n)  # (B, n + T, C)
        wide = torch.promote_types(x.dtype, torch.float32)  # so that bf16 is rounded once
        y = x.to(wide)
        for tap, weight in enumerate(self.weight.to(wide)):  # (1, C)
            if context.places is not None:
                weight = torch.where(context.places[..., None] >= n - tap, weight, 0.0)  # (B, T, C)
            y = y + padded[:, tap : tap + T] * weight
        return y.type_as(x)  # (B, T, C)


def make_conv(config: GPTConfig, name: str) -> CausalConv | None:
    return CausalConv(config, name) if config.conv else None


def project(layer: nn.Module, x: Tensor, context: PassContext, i: int) -> Tensor:
    """Apply the i-th linear layer of a block; its adapters, if it has any, get their dropout."""
    y: Tensor = layer(x, context.adapter_dropouts[i]) if isinstance(layer, AdaptedLinear) else layer(x)
    return y


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.conv = make_conv(config, "attn")
        H, K, D = config.n_head, config.kv_heads, config.head_size
        self.heads, self.head_size = (H, K, K), D
        self.scale = D**-0.5 if config.attn_scale else 1.0
        self.attention = ATTENTIONS[config.attention]
        self.c_attn = nn.Linear(config.n_embd, (H + 2 * K) * D, bias=config.has_qkv_bias)
        self.c_proj = nn.Linear(H * D, config.n_embd, bias=config.bias) if config.attn_proj else nn.Identity()
        # Before the rotation, over each head, as in `transformers`' Qwen3 (Dehghani et al. 2023,
        # https://arxiv.org/abs/2302.05442, norm queries and keys by LayerNorm).
        self.q_norm = RMSNorm(D, config.norm_eps, config.norm_weight) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(D, config.norm_eps, config.norm_weight) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, context: PassContext) -> Tensor:
        B, T, _ = x.shape
        x = x if self.conv is None else self.conv(x, context)
        # D as a number, see findings/openvino-8-bit-cache-needs-a-known-head-size.sh.
        qkv = project(self.c_attn, x, context, 0).view(B, T, sum(self.heads), self.head_size)
        qkv = qkv.transpose(1, 2)  # (B, H + 2K, T, D)
        q, k, v = qkv.split(self.heads, dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        if context.rotation is not None:
            q, k = rotate(q, context.rotation), rotate(k, context.rotation)
        if context.append_kv is not None:
            k, v = context.append_kv(k, v)  # (B, K, S, D)
            q = q.type_as(k)
        y = self.attention(q, k, v, context.bias, self.scale, context.dropouts[0])  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, -1).type_as(x)
        return project(self.c_proj, y, context, 1)  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.conv = make_conv(config, "mlp")
        self.gated = config.mlp in GATED
        self.activation = ACTIVATIONS[config.mlp]
        self.c_fc = nn.Linear(config.n_embd, config.hidden * (2 if self.gated else 1), bias=config.bias)
        self.c_proj = nn.Linear(config.hidden, config.n_embd, bias=config.bias) if config.mlp_proj else nn.Identity()

    def forward(self, x: Tensor, context: PassContext = PLAIN_PASS) -> Tensor:
        x = x if self.conv is None else self.conv(x, context)
        if self.gated:
            gate, x = project(self.c_fc, x, context, 2).chunk(2, dim=-1)  # (B, T, hidden) each
            x = self.activation(gate) * x
        else:
            x = self.activation(project(self.c_fc, x, context, 2))  # (B, T, hidden)
        return project(self.c_proj, x, context, 3)  # (B, T, C)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): GPT-2's order, unless the switches change it.

    Post-norm is norm(x + branch(x)), as in GPT-1; parallel is x + attention(norm(x)) + mlp(norm(x)) with one norm, as
    in GPT-J and PaLM (https://arxiv.org/abs/2204.02311), or with one for each branch, as in GPT-NeoX.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        if config.has_attention:
            self.ln_1, self.attn = make_norm(config), CausalSelfAttention(config)
        if config.has_mlp and (not config.parallel or config.parallel_norms):
            self.ln_2 = make_norm(config)
        if config.has_mlp:
            self.mlp = MLP(config)

    def forward(self, x: Tensor, context: PassContext) -> Tensor:
        _, attn, mlp = context.dropouts
        if self.config.parallel_norms:
            y = attn(self.attn(self.ln_1(x), context)) + mlp(self.mlp(self.ln_2(x), context))
            return x + y if self.config.residual else y  # (B, T, C)
        if self.config.parallel:
            return self.add(
                x, self.ln_1, lambda h: attn(self.attn(h, context)) + mlp(self.mlp(h, context))
            )  # (B, T, C)
        if self.config.has_attention:
            x = self.add(x, self.ln_1, lambda h: attn(self.attn(h, context)))  # (B, T, C)
        if self.config.has_mlp:
            x = self.add(x, self.ln_2, lambda h: mlp(self.mlp(h, context)))  # (B, T, C)
        return x

    def add(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        pre = self.config.norm_place == "pre"
        y = branch(norm(x) if pre else x)
        y = x + y if self.config.residual else y
        return y if pre else norm(y)
