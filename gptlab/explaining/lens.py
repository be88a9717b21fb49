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
    R, T = len(rows), len(idx)
    last = model.head(rows[-1])[0]  # (T, V), exactly what the model returns
    # Made once: small arrays that are kept between large ones that are freed would leave holes, of gigabytes in all.
    ids, probabilities = torch.empty(R, T, most, dtype=torch.int64), torch.empty(R, T, most)
    kl, nats = torch.empty(R, T), torch.empty(R, T - 1)
    for begin in range(0, T, PART):
        part = slice(begin, begin + PART)
        final = log_probabilities(last[part])  # (t, V)
        q, following = final.exp(), idx[part.start + 1 : part.stop + 1]
        for i, row in enumerate(rows):
            log_p = final if i == R - 1 else log_probabilities(model.head(row[:, part])[0])
            top = log_p.topk(most)
            ids[i, part], probabilities[i, part] = top.indices.cpu(), top.values.exp().cpu()
            kl[i, part] = (q * (final - log_p)).sum(-1).clamp(min=0).cpu()  # rounding can make it negative
            nats[i, part] = -log_p[: len(following)].gather(1, following[:, None])[:, 0].cpu()
    return Lens(ids.numpy(), probabilities.numpy(), kl.numpy(), nats.numpy())


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log-probabilities (T, V) in fp32 of logits (T, V)."""
    return F.log_softmax(logits.float(), dim=-1)
