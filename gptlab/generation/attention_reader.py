"""Where the heads of a model look in a text, for whoever shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gptlab.models.gpt_config import GPTConfig
from gptlab.models.packed import Array

if TYPE_CHECKING:
    from gptlab.models import Model
    from gptlab.models.arrays import ArrayGPT
    from gptlab.models.gpt import GPT


class Heads(NamedTuple):
    """How many heads a model has."""

    layers: int
    per_layer: int


def heads_of(model: Model | ArrayGPT) -> Heads | None:
    """Return the heads of a model; None if it has no attention."""
    c = model.config
    return Heads(c.n_layer, c.n_head) if isinstance(c, GPTConfig) and c.has_attention else None


class AttentionReader:
    """Reads attention weights while others compute with the same model: by torch, which is imported at the first text.

    Args:
        model: a model that has heads, in evaluation mode. Its memory is shared.
    """

    def __init__(self, model: Model | ArrayGPT) -> None:
        self.model = model
        self.twin: GPT | None = None

    def __call__(self, ids: Sequence[int]) -> Array:
        """Return the weights of each layer and head, (L, H, T, T) fp32, see `attention_maps`; by one thread at a time.

        Args:
            ids: at most block_size tokens.
        """
        import torch

        from gptlab.models.torch_arrays import twin_of
        from gptlab.models.watching import attention_maps
        from gptlab.models.weight_only import place_of

        if self.twin is None:
            self.twin = twin_of(self.model)  # type: ignore[arg-type]  # a bigram has no heads
        device, _ = place_of(self.twin)
        found: Array = attention_maps(self.twin, torch.tensor(ids, device=device)).cpu().numpy()
        return found
