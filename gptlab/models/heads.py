"""A GPT with a head for something else than the next token: classes, a reward, or the value of each position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gptlab.models.bigram import Bigram
from gptlab.models.gpt import GPT
from gptlab.models.kv_cache import KVCache
from gptlab.models.other_configs import HeadConfig, HeadedConfig


class HeadedGPT(nn.Module):
    """A GPT, not copied, and a linear layer without bias that reads the normalised output of its last block.

    It is what `transformers` calls GPT2ForSequenceClassification, whose layer has the same name and initialisation. The
    weights of the GPT are called `gpt.*`. The head draws its first values from torch's generator.
    """

    def __init__(self, gpt: GPT, head: HeadConfig) -> None:
        super().__init__()
        self.gpt = gpt
        self.head_config = head
        self.score = nn.Linear(gpt.config.n_embd, head.n_outputs, bias=False, device=gpt.wte.weight.device)
        nn.init.normal_(self.score.weight, std=0.02)

    @property
    def config(self) -> HeadedConfig:
        return HeadedConfig(self.gpt.config, self.head_config)

    @property
    def has_logits(self) -> bool:
        """Whether the GPT's own head is used, too: as the policy beside a value head."""
        return self.head_config.kind == "value"

    def forward(self, idx: Tensor, lengths: Tensor | None = None, noise: Tensor | None = None, **rest: Any) -> Tensor:
        """Return the scores of texts.

        Args:
            idx: (B, T) int64 token ids, one text in each row, padded on the right with any ids.
            lengths: (B,) int64, the number of tokens of each text without its padding, at least 1; not needed for a
                value head, nor to judge the first token.
            noise, rest: see `GPT.features`.

        Returns:
            classify: (B, n); reward: (B,); value: (B, T), of which those of the padding mean nothing.

        Raises:
            ValueError: lengths are missing.
            RuntimeError: on a CPU: a length is below 1 or above T.
        """
        return self.scores(self.features(idx, noise=noise, **rest), lengths)

    def features(self, idx: Tensor, cache: KVCache | None = None, noise: Tensor | None = None, **rest: Any) -> Tensor:
        """Return the output of the GPT's last block, (B, T, C); arguments as there."""
        return self.gpt.features(idx, cache, noise, **rest)

    def head(self, x: Tensor) -> Tensor:
        """Return the GPT's logits (..., V) of features (..., C)."""
        return self.gpt.head(x)

    def scores(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the scores of features x (B, T, C); the rest as in `forward`."""
        if self.head_config.kind != "value":
            at = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            if self.head_config.position == "last":
                if lengths is None:
                    raise ValueError("which token is a text's last needs its length")
                at = lengths - 1
            x = x.gather(1, at[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]  # (B, C)
        y: Tensor = self.score(self.gpt.ln_f(x))
        return y if self.head_config.kind == "classify" else y[..., 0]

    def num_parameters(self) -> int:
        """Return the number of distinct parameters."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self) -> int:
        """Return the floating-point operations of one token, as `GPT.flops_per_token` counts them."""
        of_score = 6 * self.score.weight.numel() if self.has_logits else 0  # else there is one for a whole text
        of_logits = 0 if self.has_logits else 6 * self.gpt.lm_head.weight.numel()
        return self.gpt.flops_per_token() - of_logits + of_score


def has_logits(model: GPT | Bigram | HeadedGPT) -> bool:
    """Return whether a model predicts tokens, too, so that it can write text."""
    return not isinstance(model, HeadedGPT) or model.has_logits


def language_model(model: GPT | Bigram | HeadedGPT) -> GPT | Bigram:
    """Return the GPT of a model with a head, which may have been trained as a policy; any other model as it is."""
    return model.gpt if isinstance(model, HeadedGPT) else model
