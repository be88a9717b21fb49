"""GPT-2's decoder-only transformer, with the parameter names of OpenAI's checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gptlab.errors import UserError
from gptlab.models.layers import ACTIVATIONS, ATTENTIONS, Block


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int
    block_size: int = 1024
    """The longest sequence: as many learned positions."""
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    """Probability in the three places of GPT-2: embeddings, attention weights, residual branches."""
    bias: bool = True
    """Bias in the linear layers and LayerNorms of the blocks."""
    qkv_bias: bool | None = None
    """Bias of the query, key and value projection; None: as `bias`."""
    tied: bool = True
    """The head's matrix is the token embedding's."""
    head_bias: bool = False
    activation: str = "gelu"
    """gelu (the tanh approximation, as GPT-2) or relu."""
    attention: str = "sdpa"
    """sdpa (fused kernels) or manual (written out): the same numbers."""
    gradient_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        for field in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, field) < 1:
                raise UserError(f"model.{field}={getattr(self, field)}: must be at least 1")
        if self.n_embd % self.n_head:
            raise UserError(
                f"model.n_embd={self.n_embd} is not divisible by model.n_head={self.n_head}: "
                f"choose n_head among {[h for h in range(1, 65) if self.n_embd % h == 0]}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout={self.dropout}: must be at least 0 and below 1")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"model.activation={self.activation}: must be one of {', '.join(ACTIVATIONS)}")
        if self.attention not in ATTENTIONS:
            raise UserError(f"model.attention={self.attention}: must be one of {', '.join(ATTENTIONS)}")

    @property
    def has_qkv_bias(self) -> bool:
        return self.bias if self.qkv_bias is None else self.qkv_bias


class GPT(nn.Module):
    """Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

    Logits and gradients are checked against `transformers`' GPT2LMHeadModel; linear weights are (out, in), the
    transpose of OpenAI's Conv1D.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        self.apply(self._init)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # the residual sum of 2 n_layer branches keeps its variance
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx: Tensor) -> Tensor:
        """Logits of the next token at each position.

        Args:
            idx: (B, T) int64 token ids, T <= block_size.

        Returns:
            (B, T, V), in the type that autocast gives.

        Raises:
            ValueError: T is larger than block_size.
        """
        T = idx.shape[1]
        if self.config.block_size < T:
            raise ValueError(f"a sequence of {T} tokens is longer than model.block_size={self.config.block_size}")
        x = self.wte(idx) + self.wpe.weight[:T]  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        recompute = self.config.gradient_checkpointing and torch.is_grad_enabled()
        for block in self.h:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)  # (B, T, C)
        return self.lm_head(self.ln_f(x))  # (B, T, V)

    def num_parameters(self) -> int:
        """Distinct parameters: a tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self) -> int:
        """Floating point operations of one token, forward and backward.

        6 for each weight of a matrix product, and 12 n_layer T C for attention's two products at T = block_size,
        as in PaLM's appendix B (https://arxiv.org/abs/2204.02311); recomputation is not counted.
        """
        c = self.config
        weights = c.n_layer * 12 * c.n_embd**2 + c.vocab_size * c.n_embd
        return 6 * weights + 12 * c.n_layer * c.block_size * c.n_embd
