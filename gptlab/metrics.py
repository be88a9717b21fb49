"""Nats, perplexity, bits per byte; model FLOPs utilisation."""

from __future__ import annotations

import math


def evaluation(nats: float, tokens: int, text_bytes: int, split: str = "val") -> dict[str, float]:
    """Sums over a split, divided once.

    Args:
        nats: summed cross entropy.
        tokens: how many predictions were summed.
        text_bytes: bytes of raw text that the predicted tokens stand for.

    Returns:
        `val/loss` in nats per token, `val/bpb` in bits per byte, `val/ppl`; or those of another split.
    """
    loss = nats / tokens
    return {
        f"{split}/loss": loss,
        f"{split}/bpb": nats / math.log(2) / text_bytes,
        f"{split}/ppl": math.inf if loss > 700 else math.exp(loss),
    }
