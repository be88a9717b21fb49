"""Batches: for training, a pure function of (seed, step); for evaluation, a whole split in order."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gptlab.system.errors import UserError

IGNORED = -100  # a masked target; the default ignore_index of cross entropy
EVAL_TOKENS, EVAL_LOGITS = 8192, 1 << 27  # the most in one evaluation batch; the logits take half a gigabyte
RESIDENT_BYTES = 1 << 29  # ids up to this size are kept on the device, larger ones stay memory-mapped


class Batch(NamedTuple):
    """What a model reads at once, and what it is to predict."""

    idx: Tensor
    """(b, T) int64."""
    targets: Tensor
    """(b, T) int64, one position ahead of idx; `IGNORED` where there is nothing to predict."""
    noise: Tensor | None = None
    """(b,) int32: a random number for each row, for dropout; None in evaluation."""
    places: Tensor | None = None
    """(b, T) int64: the position of each token in its own text, see `GPT.forward`; None: each row is one text."""
    tokens: int | None = None
    """Targets that count in the whole optimizer step, over all micro-batches and processes; None: all of all rows."""


class Ids(Protocol):
    """The ids of a split, (n,): an array, or an object that can be sliced like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, stretch: slice, /) -> np.ndarray: ...


def random_numbers(seed: int, step: int, count: int) -> np.ndarray:
    """Return the first `count` numbers of Philox (Salmon et al. 2011) keyed by seed and step, (count,) uint64.

    Philox is a hash of its key, and its raw numbers are the same in every version of numpy.
    """
    PHILOX.beginning["state"]["key"][:] = seed, step
    PHILOX.generator.state = PHILOX.beginning
    return PHILOX.generator.random_raw(count)


def as_shares(numbers: np.ndarray) -> np.ndarray:
    """Return random uint64 as float64 in [0, 1), of the same shape: their first 53 bits."""
    return (numbers >> np.uint64(11)) / np.float64(1 << 53)


class Philox(threading.local):
    """A generator for each thread, and the state in which it begins: making another takes five times as long."""

    def __init__(self) -> None:
        self.generator = np.random.Philox(key=0)
        self.beginning = self.generator.state


PHILOX = Philox()


def crop_starts(seed: int, step: int, count: int, positions: int) -> np.ndarray:
    """Return where the crops of optimizer step `step` begin, (count,) int64 in [0, positions)."""
    return (random_numbers(seed, step, count) % np.uint64(positions)).astype(np.int64)


@functools.lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def epoch_starts(seed: int, epoch: int, count: int, length: int, positions: int) -> np.ndarray:
    """Return where the crops of an epoch begin, (count,) int64 in [0, positions), in random order.

    They lie side by side, `length` apart. The first start is random, so that each epoch cuts the text elsewhere.
    """
    raw = random_numbers(seed + (2 << 32), epoch, 1 + count)
    first = int(raw[0]) % (positions - (count - 1) * length)
    return first + np.argsort(raw[1:], kind="stable") * length


def row_noise(seed: int, step: int, count: int) -> np.ndarray:
    """Return a random number for each crop of optimizer step `step`, (count,) int32, which determines its dropout."""
    raw = random_numbers(seed + (1 << 32), step, count)  # a seed is below 1 << 32
    return (raw >> np.uint64(32)).astype(np.uint32).view(np.int32)


def to_device_if_small(ids: Ids, device: torch.device) -> Ids | Tensor:
    """Return `ids` as one tensor on `device` if small enough, so that a batch is one gather there; else unchanged."""
    if len(ids) * 4 > RESIDENT_BYTES:
        return ids
    return torch.from_numpy(ids[:].astype(np.int32)).to(device)


def gather_windows(ids: Ids | Tensor, starts: np.ndarray, length: int, device: torch.device) -> Tensor:
    """Return the windows of `length` ids that begin at `starts`, (len(starts), length) int32 on `device`."""
    if isinstance(ids, Tensor):
        windows = ids.as_strided((len(ids) - length + 1, length), (1, 1))
        return windows.index_select(0, to_device(starts, device))
    return to_device(np.stack([ids[start : start + length] for start in starts.tolist()]).astype(np.int32), device)


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Return `values` on `device`, without waiting for a GPU."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Share:
    """The share of one of `world_size` processes in every optimizer step, split into `accumulation` micro-batches."""

    rank: int
    world_size: int
    accumulation: int

    def rows(self, micro: int, batch_size: int) -> slice:
        """Return which of the `batch_size` rows of a step are this process's micro-batch `micro`."""
        size = batch_size // (self.world_size * self.accumulation)
        first = (micro * self.world_size + self.rank) * size
        return slice(first, first + size)


def in_epochs(step: int, batch_size: int, count: int, order: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return what optimizer step `step` takes, (batch_size,), where all `count` things come before any comes again.

    Args:
        order: returns the things in the order of an epoch, (count,).
    """
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), count)
    return np.concatenate([order(epoch)[places[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)])


class TrainBatches:
    """Random crops: optimizer step i takes the same `batch_size` crops in the same order, however they are shared.

    Iterating yields micro-batches without end.

    Args:
        ids: the training part, (n,).
        order: random (each crop from anywhere, as in nanoGPT), or epochs (all of the text, except for less than two
            blocks at its ends, before any of it a second time).
        distinct: cycle through the batches of that many steps; 0: never repeat.
        start: called at each iteration for the first step, so that a resumed run continues where it stopped.
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
        self.ids = to_device_if_small(ids, device)
        self.positions = len(ids) - block_size  # the last crop's last target is the last id
        self.seed, self.batch_size, self.block_size = seed, batch_size, block_size
        self.share, self.device, self.order, self.distinct, self.start = share, device, order, distinct, start

    def starts(self, step: int) -> np.ndarray:
        """Return where the crops of optimizer step `step` begin, (batch_size,) int64."""
        if self.order == "random":
            return crop_starts(self.seed, step, self.batch_size, self.positions)
        count = max(self.positions // self.block_size, 1)  # crops of an epoch

        def order(epoch: int) -> np.ndarray:
            return epoch_starts(self.seed, epoch, count, self.block_size, self.positions)

        return in_epochs(step, self.batch_size, count, order)

    def batch(self, step: int, micro: int) -> Batch:
        """Return micro-batch `micro` of this process in optimizer step `step`."""
        number = step % self.distinct if self.distinct else step
        rows = self.share.rows(micro, self.batch_size)
        starts = self.starts(number)[rows]
        noise = to_device(row_noise(self.seed, step, self.batch_size)[rows], self.device)
        x = gather_windows(self.ids, starts, self.block_size + 1, self.device)
        # Copies, so that the memory layout is always the same and the model is compiled once.
        return Batch(x[:, :-1].long(), x[:, 1:].long(), noise)

    def __iter__(self) -> Iterator[Batch]:
        for step in itertools.count(self.start()):
            for micro in range(self.share.accumulation):
                yield self.batch(step, micro)


def eval_batch_size(length: int, vocab_size: int) -> int:
    """Return the default number of windows of `length` tokens that are evaluated at once."""
    return max(min(EVAL_TOKENS, EVAL_LOGITS // vocab_size) // length, 1)


class EvalBatches:
    """A whole split in order: non-overlapping windows of `block_size`, every id but the first a target once.

    All batches have one shape, (batch_size, block_size): the last ones are padded with masked targets.
    Process r of n takes batches r, r + n, ...
    """

    def __init__(self, ids: Ids, *, batch_size: int, block_size: int, share: Share, device: torch.device) -> None:
        self.ids, self.batch_size, self.windows = ids, batch_size, Windows(block_size, block_size)
        self.share, self.device = share, device

    def __len__(self) -> int:
        """Return the number of batches of one process: the same for all, so that none waits for another."""
        return -(-self.windows.rows(len(self.ids) - 1) // (self.batch_size * self.share.world_size))

    def __iter__(self) -> Iterator[Batch]:
        for i in range(len(self)):
            number = i * self.share.world_size + self.share.rank
            idx, targets = self.windows.batch(self.ids, number * self.batch_size, self.batch_size)
            yield Batch(idx.to(self.device), targets.to(self.device))


@dataclass(frozen=True)
class Windows:
    """Windows of `context` tokens, each beginning `stride` tokens after the one before it.

    In the first window all targets count, in the others the last `stride`. So each id but the first is a target once,
    and after the first window it has more than `context - stride` tokens before it. With stride = context = block_size
    the loss is a run's `val/loss`.
    """

    context: int
    stride: int

    @classmethod
    def of(cls, context: int | None, stride: int | None, block_size: int, name: str = "the model") -> Windows:
        """Return the windows for --context and --stride.

        Args:
            context: None: block_size, as in training.
            stride: None: the context.
            name: the model's, for a message.

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
        """Describe the measurement in words; `part` is a split, or "all"."""
        if self.stride < self.context:
            return f"context {self.context}, stride {self.stride}"
        return f"{part_name(part)}, windows of {self.context}"

    def positions(self, count: int) -> np.ndarray:
        """Return the positions of the first `count` targets in their windows, (count,) int64."""
        place = np.arange(count)
        repeated = self.context - self.stride + (place - self.context) % self.stride
        return np.where(place < self.context, place, repeated)

    def rows(self, count: int) -> int:
        """Return how many windows `count` targets need, at least 1."""
        return 1 + max(-(-(count - self.context) // self.stride), 0)

    def batches(self, ids: Ids, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all windows in order as (idx, targets), (b, context) int64, with b = `batch_size` except at the end."""
        rows = self.rows(len(ids) - 1)
        for first in range(0, rows, batch_size):
            yield self.batch(ids, first, min(batch_size, rows - first))

    def batch(self, ids: Ids, first: int, rows: int) -> tuple[Tensor, Tensor]:
        """Return `rows` windows from number `first` on as (idx, targets), (rows, context) int64.

        Targets that do not count are `IGNORED`. Where there is no target any more, idx is 0.
        """
        begins = np.arange(first, first + rows)[:, None] * self.stride
        begin, length = first * self.stride, (rows - 1) * self.stride + self.context + 1
        stretch = np.asarray(ids[begin : begin + length], dtype=np.int64)
        stretch = np.pad(stretch, (0, length - len(stretch)))
        both = np.lib.stride_tricks.sliding_window_view(stretch, self.context + 1)[:: self.stride]
        position = np.arange(self.context)
        repeated = (begins > 0) & (position < self.context - self.stride)
        beyond = begins + position + 1 >= len(ids)
        idx, targets = np.where(beyond, 0, both[:, :-1]), np.where(repeated | beyond, IGNORED, both[:, 1:])
        return torch.from_numpy(idx), torch.from_numpy(targets)


def part_name(part: str) -> str:
    return "whole text" if part == "all" else "whole split"
