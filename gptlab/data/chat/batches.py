"""Batches of examples: for training, a pure function of (seed, step); for evaluation, all of them in order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from gptlab.data.batches import IGNORED, Batch, Share, in_epochs, random_numbers, row_noise, to_device
from gptlab.data.chat.chat_format import Encoded
from gptlab.data.chat.encoding import EncodedLabelled, EncodedPair
from gptlab.data.chat.packing import pack
from gptlab.system.errors import UserError

MULTIPLE = 32  # of which the length of a batch of single texts is one: few shapes, to compile a model for
B = TypeVar("B", covariant=True)


class PairBatch(NamedTuple):
    """Pairs of a better and a worse answer: row i is the chosen one of pair i, and row b + i its rejected one."""

    idx: Tensor
    """(2b, T) int64: whole texts, of which a head can read the last id, too. One of block_size + 1 ids lacks it."""
    targets: Tensor
    """(2b, T) int64, one position ahead of idx; `IGNORED` outside of the answers."""
    lengths: Tensor
    """(2b,) int64: the ids of each text, its last one included; 1 where there is none."""
    counted: Tensor
    """(b,) bool: whether it is a pair, and not what fills up the last batch of an evaluation."""
    margins: Tensor
    """(b,) float32: by how much each chosen answer is better; 0 where it is not known."""
    noise: Tensor | None = None
    """(2b,) int32, see `Batch`: the same for both answers of a pair, whose difference has less noise for that."""
    pairs: int | None = None
    """How many pairs the whole optimizer step has, over all micro-batches and processes; None in evaluation."""


class LabelledBatch(NamedTuple):
    """Texts and their classes."""

    idx: Tensor
    """(b, T) int64: whole texts."""
    lengths: Tensor
    """(b,) int64: the ids of each text; 1 where there is none."""
    labels: Tensor
    """(b,) int64: the number of each class; `IGNORED` where there is no text."""
    noise: Tensor | None = None
    """(b,) int32, see `Batch`."""
    texts: int | None = None
    """How many texts the whole optimizer step has, over all micro-batches and processes; None in evaluation."""


class RowSet(Protocol[B]):
    """Rows that batches are made of."""

    def __len__(self) -> int: ...

    def batch(self, numbers: Sequence[int], step: Sequence[int], noise: Tensor | None, device: torch.device) -> B:
        """Return the rows with these numbers; a number that no row has is an empty row.

        Args:
            step: the numbers of all rows of the optimizer step, which decide the length, so that dropout is the same
                however the step is shared.
            noise: a random number for each row, (b,) int32; None in evaluation.
        """
        ...


def width_of(lengths: np.ndarray, numbers: Sequence[int], block_size: int) -> int:
    """Return how long the rows with these numbers are made: as the longest of them, rounded up.

    Args:
        lengths: of all rows, (R,).
        numbers: one that no row has is an empty row.
    """
    longest = max((int(lengths[i]) for i in numbers if i < len(lengths)), default=1)
    return min(-(-longest // MULTIPLE) * MULTIPLE, block_size)


def side_by_side(texts: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Return texts as rows that end in zeros, (b, length) int64; the end of a longer one is cut away."""
    idx = np.zeros((len(texts), length), dtype=np.int64)
    for row, ids in zip(idx, texts, strict=True):
        row[: len(ids)] = ids[:length]
    return idx


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
        return self.block_size if self.packed else width_of(self.lengths, numbers, self.block_size)

    def filled(self, numbers: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return idx, targets and places of the rows with these numbers, (b, length) int64 each; see `Batch`.

        The empty end of a row is a text of its own, and a number that no row has is an empty row.
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

    def batch(self, numbers: Sequence[int], step: Sequence[int], noise: Tensor | None, device: torch.device) -> Batch:
        """Return the rows with these numbers, see `RowSet`."""
        idx, targets, places = (to_device(each, device) for each in self.filled(numbers, self.width(step)))
        return Batch(idx, targets, noise, places, None if noise is None else int(self.counted[step].sum()))


class PairRows:
    """Pairs of answers, one a row.

    Args:
        pairs: of at most `block_size` + 1 ids each; a head on the last id needs it among the inputs, so that
            `block_size` are the most then.
    """

    def __init__(self, pairs: Sequence[EncodedPair], block_size: int) -> None:
        self.pairs, self.block_size = pairs, block_size
        self.lengths = np.array([max(len(each.ids) for each in pair.both) for pair in pairs])
        """The ids of the longer text of each pair, (R,)."""

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(
        self, numbers: Sequence[int], step: Sequence[int], noise: Tensor | None, device: torch.device
    ) -> PairBatch:
        """Return the pairs with these numbers, see `RowSet`."""
        length = width_of(self.lengths, step, self.block_size)
        nothing = Encoded(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool))
        pairs = [self.pairs[i] if i < len(self) else EncodedPair(nothing, nothing) for i in numbers]
        texts = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        targets = [np.append(np.where(counted, ids, IGNORED)[1:], IGNORED) for ids, counted in texts]
        rest = np.arange(length) >= np.array([[len(ids)] for ids, _ in texts])
        numpys = (
            side_by_side([ids for ids, _ in texts], length),
            np.where(rest, IGNORED, side_by_side(targets, length)),
            np.array([len(ids) for ids, _ in texts]),
            np.array([i < len(self) for i in numbers]),
            np.array([pair.margin or 0 for pair in pairs], dtype=np.float32),
        )
        idx, aims, lengths, counted, margins = (to_device(each, device) for each in numpys)
        if noise is None:
            return PairBatch(idx, aims, lengths, counted, margins)
        return PairBatch(idx, aims, lengths, counted, margins, torch.cat([noise, noise]), len(step))


class LabelledRows:
    """Labelled texts, one a row.

    Args:
        texts: of at most `block_size` ids, and at least 1.
    """

    def __init__(self, texts: Sequence[EncodedLabelled], block_size: int) -> None:
        self.texts, self.block_size = texts, block_size
        self.lengths = np.array([len(each.ids) for each in texts])

    def __len__(self) -> int:
        return len(self.texts)

    def batch(
        self, numbers: Sequence[int], step: Sequence[int], noise: Tensor | None, device: torch.device
    ) -> LabelledBatch:
        """Return the texts with these numbers, see `RowSet`."""
        length = width_of(self.lengths, step, self.block_size)
        nothing = EncodedLabelled(np.zeros(1, dtype=np.int64), IGNORED)
        texts = [self.texts[i] if i < len(self) else nothing for i in numbers]
        numpys = (
            side_by_side([each.ids for each in texts], length),
            np.array([len(each.ids) for each in texts]),
            np.array([each.label for each in texts]),
        )
        idx, lengths, labels = (to_device(each, device) for each in numpys)
        return LabelledBatch(idx, lengths, labels, noise, None if noise is None else len(step))


@functools.lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the numbers of `count` rows in the random order of an epoch, (count,) int64."""
    return np.argsort(random_numbers(seed + (3 << 32), epoch, count), kind="stable")


def step_numbers(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Return which of `count` rows optimizer step `step` takes, (batch_size,) int64: each once an epoch."""
    return in_epochs(step, batch_size, count, lambda epoch: epoch_order(seed, epoch, count))


class ChatTrainBatches(Generic[B]):
    """Rows in random order: optimizer step i takes the same `batch_size` rows, however they are shared.

    Every row comes once before any comes a second time. Iterating yields micro-batches without end.

    Args:
        rows: the conversations, pairs or labelled texts.
        batch_size: rows in a step; of pairs, the number of pairs.
        distinct: cycle through the batches of that many steps; 0: never repeat.
        start: called at each iteration for the first step, so that a resumed run continues where it stopped.
    """

    def __init__(
        self,
        rows: RowSet[B],
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
        return step_numbers(self.seed, step, self.batch_size, len(self.rows))

    def batch(self, step: int, micro: int) -> B:
        """Return micro-batch `micro` of this process in optimizer step `step`."""
        numbers = self.numbers(step % self.distinct if self.distinct else step)
        mine = self.share.rows(micro, self.batch_size)
        noise = to_device(row_noise(self.seed, step, self.batch_size)[mine], self.device)
        return self.rows.batch(numbers[mine].tolist(), numbers.tolist(), noise, self.device)

    def __iter__(self) -> Iterator[B]:
        for step in itertools.count(self.start()):
            for micro in range(self.share.accumulation):
                yield self.batch(step, micro)


class ChatEvalBatches(Generic[B]):
    """All rows in order, `batch_size` at once; the last batch is filled up with empty rows, in which nothing counts.

    Process r of n takes batches r, r + n, ...
    """

    def __init__(self, rows: RowSet[B], *, batch_size: int, share: Share, device: torch.device) -> None:
        self.rows, self.batch_size, self.share, self.device = rows, batch_size, share, device

    def __len__(self) -> int:
        """Return the number of batches of one process: the same for all, so that none waits for another."""
        return -(-len(self.rows) // (self.batch_size * self.share.world_size))

    def __iter__(self) -> Iterator[B]:
        for i in range(len(self)):
            first = (i * self.share.world_size + self.share.rank) * self.batch_size
            numbers = range(first, first + self.batch_size)
            yield self.rows.batch(numbers, numbers, None, self.device)


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
        return step_numbers(self.seed, step, self.batch_size // self.group, self.count)

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
