"""A decoder-only transformer: GPT-2 by default, with the parameter names of OpenAI's checkpoint, and variants of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gptlab.models.dropout import make_dropouts
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.kv_cache import KVCache
from gptlab.models.layers import (
    LINEAR_LAYERS,
    Block,
    first_pass,
    make_norm,
    packed_pass,
    sinusoids,
)
from gptlab.models.positions import attention_span

if TYPE_CHECKING:
    from gptlab.models.lora import LoRAConfig


class GPT(nn.Module):
    """Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", and its successors.

    Logits and gradients are checked against `transformers`' GPT-2, GPT-1, GPT-NeoX, Llama, Qwen3, Mistral, Phi, MPT and
    NanoChat; linear weights are (out, in), the transpose of OpenAI's Conv1D.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.lora: LoRAConfig | None = None  # of the adapters that `lora.add_adapters` puts in
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.pos == "learned" else None
        self.ln_e = make_norm(config) if config.embed_norm else nn.Identity()
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = make_norm(config) if config.norm_place == "pre" else nn.Identity()
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        if config.init == "gpt2":
            self.apply(self._init)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight") and config.init == "gpt2":
                # So that the sum of 2 n_layer residual branches keeps its variance.
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))
            if config.zero_init and (".c_proj." in name or name.startswith("lm_head.")):
                nn.init.zeros_(parameter)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(
        self, idx: Tensor, cache: KVCache | None = None, noise: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """Return the logits of the next token at each position.

        Args:
            idx: (B, T) int64 token ids. Without a cache they start a text. With learned or sinusoidal positions
                T <= block_size; otherwise T is free, and each position attends to the last block_size positions.
            cache: the tokens before these, which are added to it; see `KVCache`.
            noise: (B,) int32, which determines dropout in training; None: drawn from torch's generator.
            places: (B, T) int64, where a row holds several texts: the position of each token in its own, which begins
                with a 0 and sees no other; not with a cache. None: each row is one text.

        Returns:
            (B, T, V), in autocast's type if it is on.

        Raises:
            ValueError: T is larger than block_size, or than the room left in the cache.
        """
        return self.head(self.features(idx, cache, noise, places))

    def features(
        self, idx: Tensor, cache: KVCache | None = None, noise: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """Return the output of the last block, (B, T, C); arguments as in `forward`."""
        c, T = self.config, idx.shape[1]
        if cache is None:
            if c.block_size < T and not c.slides:
                raise ValueError(f"a sequence of {T} tokens is longer than model.block_size={c.block_size}")
            t, context = places, first_pass(c, T, idx.device) if places is None else packed_pass(c, places)
        else:
            span, context = cache.next_pass(T)
            t = span.t
        drop, *dropouts = make_dropouts(self.drop_rates if self.training else [0.0] * len(self.drop_rates), noise, idx)
        x = drop(self.embed(idx, t))
        recompute = c.gradient_checkpointing and torch.is_grad_enabled()
        for i, block in enumerate(self.h):
            if cache is not None:
                append_kv, previous_inputs = cache.append_kv(i, span), cache.previous_inputs(i, span)
                context = context._replace(append_kv=append_kv, previous_inputs=previous_inputs)
            first = 3 * c.n_layer + LINEAR_LAYERS * i  # the adapters' come after all others
            context = context._replace(
                dropouts=tuple(dropouts[3 * i : 3 * i + 3]),
                adapter_dropouts=tuple(dropouts[first : first + LINEAR_LAYERS]),
            )
            x = checkpoint(block, x, context, use_reentrant=False) if recompute else block(x, context)  # (B, T, C)
        return x

    @property
    def drop_rates(self) -> list[float]:
        """The dropout rates: those of the config; then, with adapters, of the input of each block's linear layers."""
        adapters = [] if self.lora is None else [self.lora.dropout] * (LINEAR_LAYERS * self.config.n_layer)
        return self.config.drop_rates + adapters

    def embed(self, idx: Tensor, t: Tensor | None = None) -> Tensor:
        """Return embeddings (..., C) of tokens idx (...) at positions t.

        Args:
            t: positions that broadcast with idx; None: 0, 1, ... on the last axis.
        """
        c, x = self.config, self.wte(idx)
        if self.wpe is not None:
            x = x + (self.wpe.weight[: idx.shape[-1]] if t is None else F.embedding(t, self.wpe.weight))
        if c.pos == "sinusoidal":
            t = torch.arange(idx.shape[-1], device=idx.device) if t is None else t
            x = x * math.sqrt(c.n_embd) + sinusoids(t, c.n_embd).to(x.dtype)
        return self.ln_e(x)

    def head(self, x: Tensor) -> Tensor:
        """Return the logits (..., V) of features (..., C)."""
        return self.cap_logits(self.lm_head(self.ln_f(x)))

    def cap_logits(self, logits: Tensor) -> Tensor:
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def num_parameters(self) -> int:
        """Return the number of distinct parameters: a tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self) -> int:
        """Return the floating-point operations of one token, forward and backward.

        6 for each weight of a matrix product, and 12 n_layer T H D for attention's two products, with T = block_size or
        the window, as in PaLM's appendix B (https://arxiv.org/abs/2204.02311). Recomputation is not counted.
        """
        c = self.config
        weights = sum(p.numel() for p in self.h.parameters() if p.dim() == 2) + c.vocab_size * c.n_embd
        span = attention_span(c) if c.has_attention else 0
        return 6 * weights + 12 * c.n_layer * span * c.attn_width
