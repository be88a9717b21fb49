"""The logit lens: what a model would predict, if its last norm and its head followed each block.

nostalgebraist 2020, "interpreting GPT: the logit lens" (https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gptlab.models.gpt import GPT
from gptlab.models.watching import watch_blocks

PART = 128  # positions at a time, so that the distributions of a long text need not all be in memory


@dataclass(frozen=True)
class Lens:
    """What each of R = n_layer + 1 rows predicts after each of T tokens: the embedding, and each block's output."""

    ids: np.ndarray
    """The likeliest tokens, likeliest first, (R, T, K) int64."""
    probabilities: np.ndarray
    """Their probabilities, (R, T, K) float32."""
    kl: np.ndarray
    """The KL divergence of a row's distribution p from the last row's q, the sum of q ln(q / p): nats, (R, T)."""
    nats: np.ndarray
    """-ln of the probability of the token that comes next, (R, T - 1)."""


@torch.inference_mode()
def layer_outputs(model: GPT, idx: Tensor) -> list[Tensor]:
    """Return what the head could read: the embeddings of a text, then each block's output, (1, T, C) each.

    Args:
        model: in evaluation mode.
        idx: (T,) int64, at most block_size tokens.
    """
    outputs = [model.embed(idx[None])]
    with watch_blocks(model, see_output=lambda i, x: outputs.append(x)):
        model.features(idx[None])
    return outputs


@torch.inference_mode()
def logit_lens(model: GPT, idx: Tensor, most: int) -> Lens:
    """Read each layer of a forward pass by the model's own last norm and head; the last row is the model's output.

    Args:
        model: in evaluation mode.
        idx: (T,) int64, at most block_size tokens.
        most: the number K of likeliest tokens, at most the vocabulary's.
    """
    rows = layer_outputs(model, idx)
    last = model.head(rows[-1])[0]  # (T, V), exactly what the model returns
    found: list[list[tuple[np.ndarray, ...]]] = [[] for _ in rows]
    for begin in range(0, len(idx), PART):
        part = slice(begin, begin + PART)
        final = log_probabilities(last[part])  # (t, V)
        q, following = final.exp(), idx[part.start + 1 : part.stop + 1]
        for parts, row in zip(found, rows, strict=True):
            log_p = final if row is rows[-1] else log_probabilities(model.head(row[:, part])[0])
            top = log_p.topk(most)
            kl = (q * (final - log_p)).sum(-1).clamp(min=0)  # rounding can make it negative
            nats = -log_p[: len(following)].gather(1, following[:, None])[:, 0]
            parts.append(tuple(each.cpu().numpy() for each in (top.indices, top.values.exp(), kl, nats)))
    return Lens(*(np.stack([np.concatenate([part[i] for part in parts]) for parts in found]) for i in range(4)))


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log-probabilities (T, V) in fp32 of logits (T, V)."""
    return F.log_softmax(logits.float(), dim=-1)
