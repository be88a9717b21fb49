"""Exact evaluation: the nats of each token of a text, summed once and divided once."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from gptlab.data.batches import IGNORED, Ids, Windows, eval_batch_size, part_name
from gptlab.data.tokenizers import Tokenizer
from gptlab.evaluation.ngrams import NGrams
from gptlab.models import Model
from gptlab.system.errors import UserError


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Return the cross entropy in nats, in fp32; targets that are `IGNORED` do not count.

    Args:
        logits: the model's logits, (B, T, V).
        targets: the next tokens, (B, T).
        reduction: "mean" over the targets, "sum", or "none": each, (B * T,).
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction=reduction)


@torch.inference_mode()
def token_nats(
    model: Model, ids: Ids, windows: Windows, device: torch.device, *, batch_size: int | None = None, bf16: bool = False
) -> np.ndarray:
    """Return the cross entropy of each token after the first, in nats: (n - 1,) float32.

    Args:
        model: a model on `device`, in evaluation mode.
        ids: the text, (n,).
        windows: the windows in which the model reads it.
        device: the device of the model.
        batch_size: the number of windows at a time; affects only rounding.
        bf16: compute matrix products in bf16, by autocast.
    """
    batch_size = batch_size or eval_batch_size(windows.context, model.config.vocab_size)
    rows = windows.rows(len(ids) - 1)
    found = []
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        tqdm(total=rows, unit="window", disable=None, leave=False) as bar,
    ):
        for idx, targets in windows.batches(ids, batch_size):
            losses = cross_entropy(model(idx.to(device)), targets.to(device), "none")  # (b * T,)
            found.append(losses.cpu()[targets.flatten() != IGNORED].numpy())
            bar.update(len(idx))
    return np.concatenate(found)


@dataclass(frozen=True)
class Measurement:
    """The losses of a model on a text of n tokens."""

    protocol: str
    """How it was measured, in words."""
    nats: np.ndarray
    """The cross entropy of each predicted token, (k,): all after the first but the beginnings of documents."""
    sizes: np.ndarray
    """Bytes of raw text that the first token and each predicted token stand for, (k + 1,)."""
    windows: Windows | None
    """The windows in which the text was read; None for n-grams."""
    seconds: float
    """The duration of the measurement."""
    places: np.ndarray | None = None
    """The index of each predicted token among all after the first, (k,) int64; None: all are predicted."""

    @property
    def tokens(self) -> int:
        """The number of predicted tokens."""
        return len(self.nats)

    @property
    def bytes(self) -> int:
        """The number of bytes that the predicted tokens stand for."""
        return int(self.sizes[1:].sum())

    def values(self) -> dict[str, float]:
        """Return nats per token, perplexity and bits per byte.

        Raises:
            UserError: the loss is infinite or not a number.
        """
        total = math.fsum(self.nats)
        if not math.isfinite(total):
            raise UserError(f"the loss is {total}: the weights are broken, or the run that made them has diverged")
        found = loss_metrics(total, self.tokens, self.bytes)
        return {
            "nats_per_token": found["val/loss"],
            "perplexity": found["val/ppl"],
            "bits_per_byte": found["val/bpb"],
        }

    def by_position(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean nats (nan for none) and the number of tokens by position in a window, both (context,)."""
        assert self.windows is not None
        places = np.arange(self.tokens) if self.places is None else self.places
        positions = self.windows.positions(int(places[-1]) + 1)[places]
        counts = np.bincount(positions, minlength=self.windows.context)
        sums = np.bincount(positions, self.nats, self.windows.context)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), counts


def measure(
    model: Model | NGrams,
    ids: np.ndarray,
    tokenizer: Tokenizer,
    part: str,
    windows: Windows | None,
    device: torch.device,
    *,
    batch_size: int | None = None,
    bf16: bool = False,
) -> Measurement:
    """Measure a model or an n-gram table on a text.

    Args:
        model: the model, moved to `device`, or the table.
        ids: the text, (n,).
        tokenizer: the tokenizer of the ids.
        part: the name of the part, for the protocol.
        windows: the windows in which the model reads the text; None for n-grams.
        device: the device for the model.
        batch_size: the number of windows at a time; affects only rounding.
        bf16: compute matrix products in bf16, by autocast.
    """
    start = time.perf_counter()
    if isinstance(model, NGrams):
        found, seen = model.nats(ids), model.order - 1
        before = "no context" if seen < 1 else "1 token of context" if seen == 1 else f"{seen} tokens of context"
        protocol = f"{part_name(part)}, {before}"
    else:
        assert windows is not None
        found = token_nats(model.to(device), ids, windows, device, batch_size=batch_size, bf16=bf16)
        protocol = windows.protocol(part)
    places = np.flatnonzero(~np.isin(ids[1:], tokenizer.unpredicted))
    sizes = tokenizer.text_bytes(ids)[np.concatenate(([0], places + 1))]
    return Measurement(
        protocol + tokenizer.begin_protocol, found[places], sizes, windows, time.perf_counter() - start, places
    )


def loss_metrics(nats: float, tokens: int, text_bytes: int, split: str = "val") -> dict[str, float]:
    """Return the metrics of a split from sums over it.

    Args:
        nats: the summed cross entropy.
        tokens: the number of predicted tokens.
        text_bytes: the bytes of raw text that these tokens stand for.
        split: the name of the split.

    Returns:
        `<split>/loss` in nats per token, `<split>/bpb` in bits per byte, and the perplexity `<split>/ppl`.
    """
    loss = nats / tokens
    return {
        f"{split}/loss": loss,
        f"{split}/bpb": nats / math.log(2) / text_bytes,
        f"{split}/ppl": math.inf if loss > 700 else math.exp(loss),
    }
