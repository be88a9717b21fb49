"""The models as torch has them, see `gptlab.models`, which these names are to be imported from."""

from __future__ import annotations

from torch import nn

from gptlab.models import ModelConfig
from gptlab.models.bigram import Bigram
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.heads import HeadedGPT, language_model

Model = GPT | Bigram
Network = Model | HeadedGPT
"""What a run may train."""


def build(config: ModelConfig) -> Model:
    """Return a freshly initialised model; its random numbers come from torch's generator."""
    return GPT(config) if isinstance(config, GPTConfig) else Bigram(config)


def matrices(model: Model | HeadedGPT) -> dict[nn.Parameter, tuple[int, ...]]:
    """Map each trained matrix of the model's blocks to the row counts of the projections stacked in it."""
    gpt = language_model(model)
    if not isinstance(gpt, GPT):
        return {}
    return {
        each.weight: gpt.config.stacked.get(name.split(".")[-1], (each.out_features,))  # type: ignore[misc]
        for name, each in gpt.h.named_modules()
        if isinstance(each, nn.Linear) and each.weight.requires_grad
    }
