"""Exact evaluation: the nats of each token of a text, in windows by name, and whether two models differ on it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from gptlab import metrics
from gptlab.data.batches import IGNORED, Ids, Windows, eval_batch_size, whole
from gptlab.data.tokenizers import Tokenizer
from gptlab.models import Model
from gptlab.ngrams import NGrams
from gptlab.system.errors import UserError

RESAMPLES, LEVEL = 10_000, 0.95
BLOCK, FEWEST, MOST = 1024, 20, 1000  # of a bootstrap: tokens or bytes in a block, and how many blocks there can be


@torch.inference_mode()
def nats(
    model: Model, ids: Ids, windows: Windows, device: torch.device, *, batch_size: int | None = None, bf16: bool = False
) -> np.ndarray:
    """The cross entropy of each token but the first, in order: (n - 1,) float32.

    Args:
        model: on `device`, in evaluation mode.
        ids: (n,).
        batch_size: windows at a time, which changes no more than the order of sums.
        bf16: matrix products in bf16, by autocast.
    """
    batch_size = batch_size or eval_batch_size(windows.context, model.config.vocab_size)
    rows = windows.rows(len(ids) - 1)
    found = []
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        tqdm(total=rows, unit="window", disable=None, leave=False) as bar,
    ):
        for idx, targets in windows.batches(ids, batch_size):
            logits = model(idx.to(device)).flatten(0, 1).float()  # (b * T, V)
            losses = F.cross_entropy(logits, targets.to(device).flatten(), ignore_index=IGNORED, reduction="none")
            found.append(losses.cpu()[targets.flatten() != IGNORED].numpy())
            bar.update(len(idx))
    return np.concatenate(found)


@dataclass(frozen=True)
class Measured:
    """What a model makes of a text."""

    protocol: str
    nats: np.ndarray
    """Of each token but the first, (n - 1,)."""
    sizes: np.ndarray
    """Bytes of raw text that each token stands for, the first one's before them, (n,)."""
    windows: Windows | None
    """None: the model has no windows."""
    seconds: float

    @property
    def tokens(self) -> int:
        return len(self.nats)

    @property
    def bytes(self) -> int:
        """That the predicted tokens stand for."""
        return int(self.sizes[1:].sum())

    def values(self) -> dict[str, float]:
        """Nats per token, perplexity and bits per byte.

        Raises:
            UserError: they are no numbers.
        """
        total = math.fsum(self.nats)
        if not math.isfinite(total):
            raise UserError(f"the loss is {total}: the weights are broken, or the run that made them has diverged")
        found = metrics.evaluation(total, self.tokens, self.bytes)
        return {
            "nats_per_token": found["val/loss"],
            "perplexity": found["val/ppl"],
            "bits_per_byte": found["val/bpb"],
        }

    def by_position(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean nats at each place in the window, and how many tokens stood there: (context,) each; nan for none."""
        assert self.windows is not None
        positions = self.windows.positions(self.tokens)
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
) -> Measured:
    """Nats and bytes of `ids`, (n,), which are the `part` of a text."""
    start = time.perf_counter()
    if isinstance(model, NGrams):
        found, seen = model.nats(ids), model.order - 1
        before = "no context" if seen < 1 else "1 token of context" if seen == 1 else f"{seen} tokens of context"
        protocol = f"{whole(part)}, {before}"
    else:
        assert windows is not None
        found = nats(model.to(device), ids, windows, device, batch_size=batch_size, bf16=bf16)
        protocol = windows.protocol(part)
    return Measured(protocol, found, tokenizer.token_bytes()[ids], windows, time.perf_counter() - start)


# Whether two models differ


@dataclass(frozen=True)
class Difference:
    """A less B, and the interval that a bootstrap over the text gives."""

    mean: float
    low: float
    high: float
    unit: str
    blocks: int
    block: float
    """How many tokens or bytes are in each."""
    seed: int

    def words(self) -> str:
        if self.low <= 0 <= self.high:
            return f"no difference is shown: {self.interval()}"
        better = "A" if self.mean < 0 else "B"
        return f"{better} is better by {abs(self.mean):.4f} {self.unit}: {self.interval()}"

    def interval(self) -> str:
        return f"A - B is {self.mean:+.4f}, {LEVEL:.0%} interval {self.low:+.4f} to {self.high:+.4f}"

    def method(self) -> str:
        what = "tokens" if self.unit == "nats per token" else "bytes"
        return (
            f"paired bootstrap, seed {self.seed}: {RESAMPLES:,} resamples of {self.blocks} blocks of about "
            f"{self.block:,.0f} {what}, neighbours being dependent; over the text, not over training seeds"
        )


def compare(a: Measured, b: Measured, same_tokens: bool, seed: int) -> Difference:
    """A block bootstrap (Kuensch 1989) of the mean difference, paired: both models on the same stretches of the text.

    Models with the same tokens are compared by token, others by the bytes that both predict; the nats of a token are
    spread evenly over its bytes.

    Raises:
        UserError: the tokens do not stand for the same bytes; or the text is too short.
    """
    total = int(a.sizes.sum())
    if not same_tokens and total != b.sizes.sum():
        raise UserError(
            f"A's tokens stand for {total:,} bytes of the text and B's for {b.sizes.sum():,}, as those of words do, "
            f"without white space: their bits per byte do not compare"
        )
    begin, end = (0, a.tokens) if same_tokens else (int(max(a.sizes[0], b.sizes[0])), total)
    if end - begin < FEWEST:
        raise UserError(f"the text is too short for a comparison: both models predict {end - begin} tokens or bytes")
    blocks = min(max((end - begin) // BLOCK, FEWEST), MOST)
    cuts = np.linspace(begin, end, blocks + 1)
    length = (end - begin) / blocks

    def by_block(measured: Measured) -> np.ndarray:
        ends = np.arange(measured.tokens + 1) if same_tokens else np.cumsum(measured.sizes)
        summed = np.concatenate(([0.0], np.cumsum(measured.nats, dtype=np.float64)))
        return np.diff(np.interp(cuts, ends, summed)) / length

    differences = (by_block(a) - by_block(b)) / (1 if same_tokens else math.log(2))  # (blocks,)
    draw = np.random.default_rng(seed)
    means = [differences[draw.integers(blocks, size=blocks)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    unit = "nats per token" if same_tokens else "bits per byte"
    return Difference(float(differences.mean()), float(low), float(high), unit, blocks, length, seed)
