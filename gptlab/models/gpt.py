"""A decoder-only transformer: GPT-2 by default, with the parameter names of OpenAI's checkpoint, and its variants."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gptlab.models.dropout import drops
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.kv_cache import KVCache
from gptlab.models.layers import Block, norm, places, sinusoids


class GPT(nn.Module):
    """Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", and what became of it since.

    Logits and gradients are checked against `transformers`' GPT-2, GPT-1, Llama, Qwen3, Mistral, Phi and MPT; linear
    weights are (out, in), the transpose of OpenAI's Conv1D.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.pos == "learned" else None
        self.ln_e = norm(config) if config.embed_norm else nn.Identity()
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = norm(config) if config.norm_place == "pre" else nn.Identity()
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        if config.init == "gpt2":
            self.apply(self._init)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight") and config.init == "gpt2":
                # The residual sum of 2 n_layer branches keeps its variance.
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))
            if config.zero_init and (".c_proj." in name or name.startswith("lm_head.")):
                nn.init.zeros_(parameter)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx: Tensor, cache: KVCache | None = None, noise: Tensor | None = None) -> Tensor:
        """Logits of the next token at each position.

        Args:
            idx: (B, T) int64 token ids. Without a cache they are the beginning of a text; T <= block_size where
                positions are learned or sinusoidal, else any T: each position sees the block_size before it.
            cache: what went before; these tokens are added to it, see `KVCache`.
            noise: (B,) int32, of which dropout in training is a function; None: from torch's generator.

        Returns:
            (B, T, V), in the type that autocast gives.

        Raises:
            ValueError: T is larger than block_size, or than what is left of the cache.
        """
        return self.head(self.features(idx, cache, noise))

    def features(self, idx: Tensor, cache: KVCache | None = None, noise: Tensor | None = None) -> Tensor:
        """What the last block leaves, (B, T, C); arguments as of `forward`."""
        c, T = self.config, idx.shape[1]
        if cache is None:
            if c.block_size < T and not c.slides:
                raise ValueError(f"a sequence of {T} tokens is longer than model.block_size={c.block_size}")
            span, where = None, places(c, T, idx.device)
        else:
            span, where = cache.places(T)
        embedded, *masks = drops(c.drop_rates if self.training else [0.0] * len(c.drop_rates), noise, idx)
        x = embedded(self.embed(idx, span.t if span else None))
        recompute = c.gradient_checkpointing and torch.is_grad_enabled()
        for i, block in enumerate(self.h):
            if cache is not None and span is not None:
                where = where._replace(keep=cache.keep(i, span), behind=cache.behind(i, span))
            where = where._replace(drops=tuple(masks[3 * i : 3 * i + 3]))
            x = checkpoint(block, x, where, use_reentrant=False) if recompute else block(x, where)  # (B, T, C)
        return x

    def embed(self, idx: Tensor, t: Tensor | None = None) -> Tensor:
        """(..., C) of tokens idx (...) at positions t, which broadcast with idx; None: 0, 1, ... on the last axis."""
        c, x = self.config, self.wte(idx)
        if self.wpe is not None:
            x = x + (self.wpe.weight[: idx.shape[-1]] if t is None else F.embedding(t, self.wpe.weight))
        if c.pos == "sinusoidal":
            t = torch.arange(idx.shape[-1], device=idx.device) if t is None else t
            x = x * math.sqrt(c.n_embd) + sinusoids(t, c.n_embd).to(x.dtype)
        return self.ln_e(x)

    def head(self, x: Tensor) -> Tensor:
        """Logits (..., V) of features (..., C)."""
        return self.capped(self.lm_head(self.ln_f(x)))

    def capped(self, logits: Tensor) -> Tensor:
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def num_parameters(self) -> int:
        """Distinct parameters: a tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self) -> int:
        """Floating point operations of one token, forward and backward.

        6 for each weight of a matrix product, and 12 n_layer T C for attention's two products, T = block_size or the
        window, as in PaLM's appendix B (https://arxiv.org/abs/2204.02311); recomputation is not counted.
        """
        c = self.config
        weights = sum(p.numel() for p in self.h.parameters() if p.dim() == 2) + c.vocab_size * c.n_embd
        seen = min(c.block_size, c.window or c.block_size) if c.has_attention else 0
        return 6 * weights + 12 * c.n_layer * seen * c.n_embd
