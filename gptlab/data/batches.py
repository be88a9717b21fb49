"""Batches: of training, a pure function of (seed, step); of a held-out split, all of it in order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gptlab.system.errors import UserError

IGNORED = -100  # a target that counts for nothing: cross entropy's own default
EVAL_TOKENS, EVAL_LOGITS = 8192, 1 << 27  # of one batch of evaluation; the logits are half a gigabyte
RESIDENT_BYTES = 1 << 29  # ids up to this size live on the device, larger ones stay memory-mapped

Batch = tuple[Tensor, Tensor]
TrainBatch = tuple[Tensor, Tensor, Tensor]


class Ids(Protocol):
    """The ids of a split: an array, or what reads like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, stretch: slice, /) -> np.ndarray: ...


def crop_starts(seed: int, step: int, count: int, positions: int) -> np.ndarray:
    """Where the crops of optimizer step `step` begin, (count,) int64 in [0, positions).

    Philox (Salmon et al. 2011) is a hash of its key, and its raw numbers are the same in every version of numpy.
    """
    raw = np.random.Philox(key=[seed, step]).random_raw(count)
    return (raw % np.uint64(positions)).astype(np.int64)


@functools.lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def epoch_starts(seed: int, epoch: int, count: int, length: int, positions: int) -> np.ndarray:
    """Where the crops of an epoch begin, (count,) int64 in [0, positions): in random order, but side by side.

    They are `length` apart, from a random first place on, so that texts are cut elsewhere in each epoch.
    """
    raw = np.random.Philox(key=[seed + (2 << 32), epoch]).random_raw(1 + count)
    first = int(raw[0]) % (positions - (count - 1) * length)
    return first + np.argsort(raw[1:], kind="stable") * length


def row_noise(seed: int, step: int, count: int) -> np.ndarray:
    """A random number for each crop of optimizer step `step`, (count,) int32: what dropout is a function of."""
    raw = np.random.Philox(key=[seed + (1 << 32), step]).random_raw(count)  # a seed is below 1 << 32
    return (raw >> np.uint64(32)).astype(np.uint32).view(np.int32)


def resident(ids: Ids, device: torch.device) -> Ids | Tensor:
    """`ids` as one tensor on `device` if small enough, so that a batch is one gather there; else as they are."""
    if len(ids) * 4 > RESIDENT_BYTES:
        return ids
    return torch.from_numpy(ids[:].astype(np.int32)).to(device)


def windows(ids: Ids | Tensor, starts: np.ndarray, length: int, device: torch.device) -> Tensor:
    """The stretches of `length` ids that begin at `starts`, (len(starts), length) int64 on `device`."""
    if isinstance(ids, Tensor):
        return ids[sent(starts, device)[:, None] + torch.arange(length, device=device)].long()
    return sent(np.stack([ids[start : start + length] for start in starts.tolist()]).astype(np.int64), device)


def sent(values: np.ndarray, device: torch.device) -> Tensor:
    """`values` on `device`; a GPU goes on with what it is at."""
    there = torch.from_numpy(values)
    return there.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else there.to(device)


@dataclass(frozen=True)
class Share:
    """What one of `world_size` processes takes of every optimizer step, in `accumulation` micro-batches."""

    rank: int
    world_size: int
    accumulation: int


class TrainBatches:
    """Crops at random: optimizer step i takes the same `batch_size` crops whatever the share, in the same order.

    Iterating yields micro-batches (idx, targets, noise) without end: (b, T) int64 twice, with targets one position
    ahead, and a random number for each row, (b,) int32.

    Args:
        ids: the training part, (n,).
        order: random, each crop from anywhere, as in nanoGPT; or epochs: all of the text once, but for less
            than two blocks at its ends, before any of it a second time.
        distinct: cycle through that many steps' batches; 0: never repeat.
        start: asked at each iteration for the step to begin with, so that a resumed run goes on where it stopped.
    """

    def __init__(
        self,
        ids: Ids,
        *,
        seed: int,
        batch_size: int,
        block_size: int,
        share: Share,
        device: torch.device,
        order: str = "random",
        distinct: int = 0,
        start: Callable[[], int] = lambda: 0,
    ) -> None:
        self.ids = resident(ids, device)
        self.positions = len(ids) - block_size  # the last crop's last target is the last id
        self.seed, self.batch_size, self.block_size = seed, batch_size, block_size
        self.share, self.device, self.order, self.distinct, self.start = share, device, order, distinct, start

    def starts(self, step: int) -> np.ndarray:
        """Where the crops of optimizer step `step` begin, (batch_size,) int64."""
        if self.order == "random":
            return crop_starts(self.seed, step, self.batch_size, self.positions)
        count = max(self.positions // self.block_size, 1)  # crops of an epoch
        epochs, crops = np.divmod(step * self.batch_size + np.arange(self.batch_size), count)
        parts = [
            epoch_starts(self.seed, epoch, count, self.block_size, self.positions)[crops[epochs == epoch]]
            for epoch in range(epochs[0], epochs[-1] + 1)
        ]
        return np.concatenate(parts)

    def batch(self, step: int, micro: int) -> TrainBatch:
        """Micro-batch `micro` of this process in optimizer step `step`."""
        number = step % self.distinct if self.distinct else step
        size = self.batch_size // (self.share.world_size * self.share.accumulation)
        first = (micro * self.share.world_size + self.share.rank) * size
        rows = slice(first, first + size)
        starts = self.starts(number)[rows]
        noise = sent(row_noise(self.seed, step, self.batch_size)[rows], self.device)
        x = windows(self.ids, starts, self.block_size + 1, self.device)
        # One layout, whatever the batch: compiled once.
        return x[:, :-1].contiguous(), x[:, 1:].contiguous(), noise

    def __iter__(self) -> Iterator[TrainBatch]:
        for step in itertools.count(self.start()):
            for micro in range(self.share.accumulation):
                yield self.batch(step, micro)


def eval_batch_size(length: int, vocab_size: int) -> int:
    """How many windows of `length` tokens are evaluated at once where nobody says."""
    return max(min(EVAL_TOKENS, EVAL_LOGITS // vocab_size) // length, 1)


class EvalBatches:
    """A whole split in order: non-overlapping windows of `block_size`, every id but the first a target once.

    All batches have one shape, (batch_size, T): what is missing of the last ones is filled with masked targets.
    Process r of n takes batches r, r + n, ...
    """

    def __init__(self, ids: Ids, *, batch_size: int, block_size: int, share: Share, device: torch.device) -> None:
        self.ids, self.batch_size, self.block_size = ids, batch_size, block_size
        self.share, self.device = share, device

    def __len__(self) -> int:
        """Batches of one process: the same for all, so that none waits for another."""
        rows = -(-(len(self.ids) - 1) // self.block_size)
        return -(-rows // (self.batch_size * self.share.world_size))

    def __iter__(self) -> Iterator[Batch]:
        span = self.batch_size * self.block_size
        for i in range(len(self)):
            begin = (i * self.share.world_size + self.share.rank) * span
            ids = np.asarray(self.ids[begin : begin + span + 1], dtype=np.int64)
            idx, targets = np.zeros(span, dtype=np.int64), np.full(span, IGNORED, dtype=np.int64)
            count = max(len(ids) - 1, 0)
            idx[:count], targets[:count] = ids[:-1], ids[1:]
            shape = (self.batch_size, self.block_size)
            yield (
                torch.from_numpy(idx.reshape(shape)).to(self.device),
                torch.from_numpy(targets.reshape(shape)).to(self.device),
            )


@dataclass(frozen=True)
class Windows:
    """Stretches of `context` tokens, each beginning `stride` after the one before it.

    Of the first window all targets count, of the others the last `stride`: each id but the first is a target once, with
    more than `context - stride` tokens before it. As far apart as they are long, they are those of a run's `val/loss`.
    """

    context: int
    stride: int

    @classmethod
    def of(cls, context: int | None, stride: int | None, block_size: int, name: str = "the model") -> Windows:
        """What the command line asks of a model; None: as in training.

        Raises:
            UserError: a length that is out of range.
        """
        if context is None:
            context = block_size
        if stride is None:
            stride = context
        if not 1 <= context <= block_size:
            raise UserError(f"--context {context}: must be at least 1 and at most {name}'s block_size={block_size}")
        if not 1 <= stride <= context:
            raise UserError(
                f"--stride {stride}: must be at least 1 and at most the context, {context}, or it skips tokens"
            )
        return cls(context, stride)

    def protocol(self, part: str) -> str:
        if self.stride < self.context:
            return f"context {self.context}, stride {self.stride}"
        return f"{whole(part)}, windows of {self.context}"

    def positions(self, count: int) -> np.ndarray:
        """The places in their windows of the first `count` targets, (count,): each sees one token more."""
        place = np.arange(count)
        repeated = self.context - self.stride + (place - self.context) % self.stride
        return np.where(place < self.context, place, repeated)

    def rows(self, count: int) -> int:
        """How many windows `count` targets need."""
        return 1 + max(-(-(count - self.context) // self.stride), 0)

    def batches(self, ids: Ids, batch_size: int) -> Iterator[Batch]:
        """All windows in order as (idx, targets), (b, context) int64; what does not count is masked."""
        rows = self.rows(len(ids) - 1)
        for first in range(0, rows, batch_size):
            begins = np.arange(first, min(first + batch_size, rows)) * self.stride
            end = int(begins[-1]) + self.context + 1
            stretch = np.asarray(ids[int(begins[0]) : end], dtype=np.int64)
            stretch = np.pad(stretch, (0, max(end - len(ids), 0)))
            both = np.lib.stride_tricks.sliding_window_view(stretch, self.context + 1)[:: self.stride]
            place = np.arange(self.context)
            old = (begins[:, None] > 0) & (place < self.context - self.stride)
            beyond = begins[:, None] + place + 1 >= len(ids)
            targets = np.where(old | beyond, IGNORED, both[:, 1:])
            yield torch.from_numpy(both[:, :-1].copy()), torch.from_numpy(targets)


def whole(part: str) -> str:
    return "whole text" if part == "all" else "whole split"
