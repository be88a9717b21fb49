"""The bigram table: the next token depends on the current one alone."""

from __future__ import annotations

from torch import Tensor, nn

from gptlab.models.other_configs import BigramConfig


class Bigram(nn.Module):
    """A (V, V) table: row `idx` holds the logits of the next token. The first model of the lessons."""

    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.vocab_size)
        nn.init.normal_(self.wte.weight, std=0.02)  # near-uniform: the loss starts at ln V

    def forward(self, idx: Tensor, noise: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        return self.head(self.features(idx))  # (B, T) -> (B, T, V)

    def features(self, idx: Tensor) -> Tensor:
        return idx

    def head(self, x: Tensor) -> Tensor:
        return self.wte(x)

    def num_parameters(self) -> int:
        return self.wte.weight.numel()

    def flops_per_token(self) -> int:
        """Return 0: a lookup multiplies no matrices."""
        return 0
