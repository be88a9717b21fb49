"""Where each head looks in a text, small enough for a page: a byte for each weight."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptlab.models.gpt import GPT
from gptlab.models.watching import watch_blocks
from gptlab.system.errors import UserError

MOST_BYTES = 3 << 20  # of all maps


@dataclass(frozen=True)
class AttentionMaps:
    """The attention weights of each head among the last W tokens of a text."""

    levels: np.ndarray
    """255 times the square root of each weight, rounded, (L, H, W, W) uint8; the tokens that look are the rows."""
    first: int
    """The number of tokens before these."""

    def encoded(self) -> str:
        """Return the lower triangles, row by row, head by head and layer by layer, in base64."""
        rows, columns = np.tril_indices(self.levels.shape[-1])
        return base64.b64encode(self.levels[:, :, rows, columns].tobytes()).decode()


@torch.inference_mode()
def map_attention(model: GPT, idx: Tensor) -> AttentionMaps:
    """Return where each head of a model looks, among as many of the last tokens as `MOST_BYTES` hold.

    Args:
        model: in evaluation mode, with attention.
        idx: (T,) int64, at most block_size tokens.

    Raises:
        UserError: a weight is not a number, which torch's attention to a short text can turn into zeros.
    """
    heads = model.config.n_layer * model.config.n_head
    last = min(len(idx), max(int(math.sqrt(2 * MOST_BYTES / heads)) - 1, 1))
    found: list[np.ndarray] = []

    def keep(i: int, weights: Tensor) -> None:
        if not weights.isfinite().all():
            raise UserError(f"the attention of layer {i + 1} is nan: the weights are broken")
        found.append((weights[0, :, -last:, -last:].sqrt() * 255).round().to(torch.uint8).cpu().numpy())

    with watch_blocks(model, see_attention=keep):
        model.features(idx[None])
    return AttentionMaps(np.stack(found), len(idx) - last)
