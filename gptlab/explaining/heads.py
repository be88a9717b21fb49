"""Where attention heads look on a repeated sequence of random tokens: at the previous token, or by induction.

Olsson et al. 2022, "In-context Learning and Induction Heads" (https://arxiv.org/abs/2209.11895).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from gptlab.data.tokenizers import Tokenizer
from gptlab.models.gpt import GPT
from gptlab.models.positions import attention_span
from gptlab.models.watching import watch_blocks

SEQUENCES = 16
LONGEST, SHORTEST = 50, 3  # tokens that are repeated; of two, the one after the earlier one is the previous one
SEED = 0


@dataclass(frozen=True)
class Repeated:
    """Sequences of tokens that are there twice, r r, after what begins a text."""

    idx: np.ndarray
    """(B, begin + 2 n) int64."""
    begin: int
    """The number of tokens before the sequence: those of the tokenizer's beginning of text."""
    length: int
    """The number n of tokens that are repeated; all of them differ."""


@dataclass(frozen=True)
class HeadScores:
    """Attention of each head, a mean over sequences and positions, from 0 to 1: each (L, H)."""

    induction: np.ndarray
    """From a token in the second copy to the token after its first occurrence, n - 1 positions before it."""
    previous: np.ndarray
    """From a token to the one before it, over all tokens but the first."""
    first: np.ndarray
    """From a token to the first of all, over all tokens but the first and the second, whose previous one it is."""


def repeated_sequences(tokenizer: Tokenizer, model: GPT) -> Repeated | None:
    """Draw `SEQUENCES` sequences of n distinct tokens, each twice, with the seed `SEED`.

    The tokens stand for text that is not white space alone: for many a model a line end begins another text, and it
    looks no further back. n is the largest up to `LONGEST` for which both copies fit into the block, the tokens
    suffice, and the window of attention reaches from a token to the one after its earlier occurrence.

    Returns:
        None if n would be below `SHORTEST`.
    """
    config, begin = model.config, list(tokenizer.begin)
    has_text = [bool(token.strip()) for token in tokenizer.tokens[: config.vocab_size]]
    tokens = np.flatnonzero(has_text & (tokenizer.token_bytes()[: len(has_text)] > 0))
    n = min(LONGEST, len(tokens), (config.block_size - len(begin)) // 2, attention_span(config))
    if n < SHORTEST:
        return None
    draw = np.random.default_rng(SEED)
    copies = [draw.choice(tokens, n, replace=False) for _ in range(SEQUENCES)]
    rows = [np.concatenate((begin, each, each)) for each in copies]
    return Repeated(np.stack(rows).astype(np.int64), len(begin), n)


@torch.inference_mode()
def score_heads(model: GPT, repeated: Repeated, device: torch.device) -> HeadScores:
    """Score each head of a model in evaluation mode on `device` by its attention on repeated sequences."""
    found: list[HeadScores] = []
    with watch_blocks(model, see_attention=lambda i, weights: found.append(scores_of(weights, repeated))):
        model.features(torch.from_numpy(repeated.idx).to(device))
    return HeadScores(*(np.stack([getattr(each, field.name) for each in found]) for field in fields(HeadScores)))


def scores_of(weights: Tensor, repeated: Repeated) -> HeadScores:
    """Return the scores of the heads of one layer, (H,) each, by their attention weights, (B, H, T, T)."""

    def mean(values: Tensor) -> np.ndarray:
        found: np.ndarray = values.mean(dim=(0, -1)).cpu().numpy()
        return found

    back = weights.diagonal(1 - repeated.length, -2, -1)  # at i stands the weight from i + n - 1 to i
    induction = back[..., repeated.begin + 1 :]  # from each token of the second copy, (B, H, n)
    return HeadScores(mean(induction), mean(weights.diagonal(-1, -2, -1)), mean(weights[..., 2:, 0]))


def even_attention(repeated: Repeated, span: int) -> dict[str, float]:
    """Return the scores of a head that looks evenly at the `span` positions that it sees at most, by name."""
    count = np.arange(repeated.idx.shape[1]) + 1  # of positions up to each token
    share = 1 / np.minimum(count, span)
    return {
        "induction": float(share[repeated.begin + repeated.length :].mean()),
        "previous": float(share[1:].mean()),
        "first": float(np.where(count <= span, share, 0)[2:].mean()),
    }
