"""Batches of conversations: for training, a pure function of (seed, step); for evaluation, all of them in order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from gptlab.data.batches import IGNORED, Batch, Share, in_epochs, random_numbers, row_noise, to_device
from gptlab.data.chat.chat_format import Encoded
from gptlab.data.chat.packing import pack
from gptlab.system.errors import UserError

MULTIPLE = 32  # of which the length of a batch of single conversations is one: few shapes, to compile a model for


class Rows:
    """Conversations in rows of `block_size` inputs and targets.

    Args:
        conversations: of at most `block_size` + 1 ids, and at least 2.
        block_size: the length of a row, T.
        packed: whether a row holds as many conversations as fit, see `pack`; otherwise one.
    """

    def __init__(self, conversations: Sequence[Encoded], block_size: int, packed: bool) -> None:
        self.conversations, self.block_size, self.packed = conversations, block_size, packed
        self.lengths = np.array([len(each.ids) - 1 for each in conversations])  # the last id is no input
        alone = [[i] for i in range(len(conversations))]
        self.rows = pack(self.lengths, block_size) if packed else alone
        targets = np.array([int(each.counted.sum()) for each in conversations])
        self.counted = np.array([targets[row].sum() for row in self.rows])
        """How many targets count in each row, (R,)."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fill(self) -> float:
        """The share of the rows' places that hold a token."""
        return float(self.lengths.sum()) / (len(self) * self.block_size)

    def width(self, numbers: Sequence[int]) -> int:
        """Return how long the rows with these numbers are made: block_size, or without packing the longest of them,
        rounded up.
        """
        if self.packed:
            return self.block_size
        longest = max((int(self.lengths[self.rows[i]].sum()) for i in numbers if i < len(self)), default=1)
        return min(-(-longest // MULTIPLE) * MULTIPLE, self.block_size)

    def filled(self, numbers: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return idx, targets and places of the rows with these numbers, (b, length) int64 each; see `Batch`.

        The empty end of a row is a text of its
        own, and a number that no row has is an empty row.
        """
        rows = [self.rows[i] if i < len(self) else [] for i in numbers]
        idx = np.zeros((len(rows), length), dtype=np.int64)
        targets, places = np.full_like(idx, IGNORED), np.zeros_like(idx)
        for r, row in enumerate(rows):
            begin = 0
            for ids, counted in map(self.conversations.__getitem__, row):
                end = begin + len(ids) - 1
                idx[r, begin:end], places[r, begin:end] = ids[:-1], np.arange(end - begin)
                targets[r, begin:end] = np.where(counted[1:], ids[1:], IGNORED)
                begin = end
            places[r, begin:] = np.arange(length - begin)
        return idx, targets, places


@functools.lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the numbers of `count` rows in the random order of an epoch, (count,) int64."""
    return np.argsort(random_numbers(seed + (3 << 32), epoch, count), kind="stable")


class ChatTrainBatches:
    """Rows in random order: optimizer step i takes the same `batch_size` rows, however they are shared.

    Every conversation comes once before any comes a second time. Iterating yields micro-batches without end.

    Args:
        rows: the conversations.
        distinct: cycle through the batches of that many steps; 0: never repeat.
        start: called at each iteration for the first step, so that a resumed run continues where it stopped.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        seed: int,
        batch_size: int,
        share: Share,
        device: torch.device,
        distinct: int = 0,
        start: Callable[[], int] = lambda: 0,
    ) -> None:
        self.rows, self.seed, self.batch_size = rows, seed, batch_size
        self.share, self.device, self.distinct, self.start = share, device, distinct, start

    def numbers(self, step: int) -> np.ndarray:
        """Return the numbers of the rows of optimizer step `step`, (batch_size,) int64."""
        count = len(self.rows)
        return in_epochs(step, self.batch_size, count, lambda epoch: epoch_order(self.seed, epoch, count))

    def batch(self, step: int, micro: int) -> Batch:
        """Return micro-batch `micro` of this process in optimizer step `step`."""
        numbers = self.numbers(step % self.distinct if self.distinct else step)
        mine = self.share.rows(micro, self.batch_size)
        width = self.rows.width(numbers.tolist())  # of the whole step, so that dropout is the same however it is shared
        filled = self.rows.filled(numbers[mine].tolist(), width)
        idx, targets, places = (to_device(each, self.device) for each in filled)
        noise = to_device(row_noise(self.seed, step, self.batch_size)[mine], self.device)
        return Batch(idx, targets, noise, places, int(self.rows.counted[numbers].sum()))

    def __iter__(self) -> Iterator[Batch]:
        for step in itertools.count(self.start()):
            for micro in range(self.share.accumulation):
                yield self.batch(step, micro)


class ChatEvalBatches:
    """All rows in order, `batch_size` at once; the last batch is filled up with empty rows.

    Process r of n takes batches r, r + n, ...
    """

    def __init__(self, rows: Rows, *, batch_size: int, share: Share, device: torch.device) -> None:
        self.rows, self.batch_size, self.share, self.device = rows, batch_size, share, device

    def __len__(self) -> int:
        """Return the number of batches of one process: the same for all, so that none waits for another."""
        return -(-len(self.rows) // (self.batch_size * self.share.world_size))

    def __iter__(self) -> Iterator[Batch]:
        for i in range(len(self)):
            first = (i * self.share.world_size + self.share.rank) * self.batch_size
            numbers = range(first, first + self.batch_size)
            filled = self.rows.filled(numbers, self.rows.width(numbers))
            idx, targets, places = (to_device(each, self.device) for each in filled)
            yield Batch(idx, targets, places=places)


class PromptBatch(NamedTuple):
    """The prompts whose answers a process samples in an optimizer step, and which answers a micro-batch trains on.

    The answers of a step are its rows: `group` of each prompt, next to each other, process after process.
    """

    step: int
    micro: int
    numbers: tuple[int, ...]
    """The process's prompts, in the order of their answers. A number comes twice only where an epoch ends in the step,
    or the step has more prompts than there are."""
    rows: slice
    """Of the step's rows, those of this micro-batch; it may begin and end within a group."""
    first: int
    """The step's row that is the first answer of this process: its own row `i` is row `first + i`."""


class PromptBatches:
    """Prompts in random order: optimizer step i takes the same `batch_size` / `group`, however they are shared.

    Every prompt comes once before any comes a second time. Iterating yields micro-batches without end.

    Args:
        count: how many prompts there are.
        batch_size: answers in a step.
        group: answers to each prompt.
        repeats: steps that learn from the same answers.
        distinct: cycle through the prompts of that many steps; 0: never repeat.
        start: called at each iteration for the first step, so that a resumed run continues where it stopped.

    Raises:
        UserError: a group would be divided among processes.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int,
        batch_size: int,
        group: int,
        share: Share,
        repeats: int = 1,
        distinct: int = 0,
        start: Callable[[], int] = lambda: 0,
    ) -> None:
        if batch_size % (group * share.world_size):
            raise UserError(
                f"data.batch_size={batch_size} counts the answers of an optimizer step and must be a multiple of "
                f"task.group={group} times {share.world_size} device(s), so that each has all answers to its prompts; "
                f"take data.batch_size={-(-batch_size // (group * share.world_size)) * group * share.world_size}"
            )
        self.count, self.seed, self.batch_size, self.group = count, seed, batch_size, group
        self.share, self.repeats, self.distinct, self.start = share, repeats, distinct, start

    def numbers(self, step: int) -> np.ndarray:
        """Return the numbers of the prompts of optimizer step `step`, (batch_size / group,) int64."""
        step = (step % self.distinct if self.distinct else step) // self.repeats
        count = self.count
        return in_epochs(step, self.batch_size // self.group, count, lambda epoch: epoch_order(self.seed, epoch, count))

    def batch(self, step: int, micro: int) -> PromptBatch:
        """Return micro-batch `micro` of this process in optimizer step `step`."""
        own = self.batch_size // self.share.world_size
        first, size = self.share.rank * own, own // self.share.accumulation
        numbers = self.numbers(step)[first // self.group : (first + own) // self.group]
        begin = first + micro * size
        return PromptBatch(step, micro, tuple(numbers.tolist()), slice(begin, begin + size), first)

    def __iter__(self) -> Iterator[PromptBatch]:
        for step in itertools.count(self.start()):
            for micro in range(self.share.accumulation):
                yield self.batch(step, micro)
