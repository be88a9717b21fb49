"""Text becomes ids on disk, once; a training batch is a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptlab import tokenizers
from gptlab.errors import UserError
from gptlab.files import writing
from gptlab.tokenizers import CharTokenizer, Tokenizer

FORMAT = 1  # of the prepared files; part of their folder's name
IGNORED = -100  # a target that counts for nothing: cross entropy's own default
RESIDENT_BYTES = 1 << 29  # ids up to this size live on the device, larger ones stay memory-mapped

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Prepared:
    """A corpus as ids on disk."""

    name: str
    sha256: str
    """Of the raw text, UTF-8."""
    tokenizer: Tokenizer
    folder: Path

    def ids(self, split: str) -> np.ndarray:
        """Ids of "train" or "val", (n,), memory-mapped, uint16 or uint32."""
        return np.memmap(self.folder / f"{split}.bin", dtype=id_type(self.tokenizer.vocab_size), mode="r")


def id_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def prepare(name: str, text: str, val_fraction: float, cache_dir: Path) -> Prepared:
    """Split `text` by position, fit the tokenizer on the first part, and write both parts' ids, unless they are there.

    The folder's name carries the hash of text, split, tokenizer and format, and the folder appears under it whole.

    Raises:
        UserError: a part of the split would be empty, or the cache cannot be written.
    """
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    recipe = json.dumps([FORMAT, sha256, val_fraction, "char"])
    folder = cache_dir / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    existed = folder.is_dir()
    with suppress(OSError, ValueError):  # not there, or damaged: it is made anew
        prepared = Prepared(
            name, sha256, tokenizers.from_dict(json.loads((folder / "tokenizer.json").read_text())), folder
        )
        if all(len(prepared.ids(split)) > 1 for split in ("train", "val")):
            return prepared

    cut = int(len(text) * (1 - val_fraction))
    parts = {"train": text[:cut], "val": text[cut:]}
    for split, part in parts.items():
        if len(part) < 2:
            raise UserError(
                f"the {split} part of data={name} has {len(part)} characters ({len(text)} in all, "
                f"data.val_fraction={val_fraction}): give more text"
            )
    tokenizer = CharTokenizer.fit(parts["train"])
    with writing(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        if existed:  # a damaged one; never what another process has just finished
            shutil.rmtree(folder, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache_dir))
        temporary.chmod(0o755)  # caches are shared
        try:
            for split, part in parts.items():
                ids = tokenizer.encode(part).astype(id_type(tokenizer.vocab_size))
                if len(ids) < 2:
                    raise UserError(
                        f"data={name}: the {split} part has no characters of the train part: give more text"
                    )
                with (temporary / f"{split}.bin").open("wb") as file:
                    ids.tofile(file)
            (temporary / "tokenizer.json").write_text(json.dumps(tokenizer.to_dict()))
            try:
                os.rename(temporary, folder)  # noqa: PTH104 (Path.rename would read the same)
            except OSError:
                if not folder.is_dir():  # another process was faster: its files are the same
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Prepared(name, sha256, tokenizer, folder)


def crop_starts(seed: int, step: int, count: int, positions: int) -> np.ndarray:
    """Where the crops of optimizer step `step` begin, (count,) int64 in [0, positions).

    Philox (Salmon et al. 2011) is a hash of its key, and its raw numbers are the same in every version of numpy.
    """
    raw = np.random.Philox(key=[seed, step]).random_raw(count)
    return (raw % np.uint64(positions)).astype(np.int64)


def resident(ids: np.ndarray, device: torch.device) -> np.ndarray | Tensor:
    """`ids` as one tensor on `device` if small enough, so that a batch is one gather there; else as they are."""
    if ids.size * 4 > RESIDENT_BYTES:
        return ids
    return torch.from_numpy(ids.astype(np.int32)).to(device)


def windows(ids: np.ndarray | Tensor, starts: np.ndarray, length: int, device: torch.device) -> Tensor:
    """The stretches of `length` ids that begin at `starts`, (len(starts), length) int64 on `device`."""
    index = starts[:, None] + np.arange(length)
    if isinstance(ids, Tensor):
        return ids[torch.from_numpy(index).to(device, non_blocking=True)].long()
    return torch.from_numpy(ids[index].astype(np.int64)).to(device, non_blocking=True)


@dataclass(frozen=True)
class Share:
    """What one of `world_size` processes takes of every optimizer step, in `accumulation` micro-batches."""

    rank: int
    world_size: int
    accumulation: int


class TrainBatches:
    """Random crops: optimizer step i takes the same `batch_size` crops whatever the share, in the same order.

    Iterating yields micro-batches (idx, targets), both (b, T) int64 with targets one position ahead, without end.

    Args:
        ids: the training part, (n,).
        distinct: cycle through that many steps' batches; 0: never repeat.
        start: asked at each iteration for the step to begin with, so that a resumed run goes on where it stopped.
    """

    def __init__(
        self,
        ids: np.ndarray,
        *,
        seed: int,
        batch_size: int,
        block_size: int,
        share: Share,
        device: torch.device,
        distinct: int = 0,
        start: Callable[[], int] = lambda: 0,
    ) -> None:
        self.ids = resident(ids, device)
        self.positions = len(ids) - block_size  # the last crop's last target is the last id
        self.seed, self.batch_size, self.block_size = seed, batch_size, block_size
        self.share, self.device, self.distinct, self.start = share, device, distinct, start

    def batch(self, step: int, micro: int) -> Batch:
        """Micro-batch `micro` of this process in optimizer step `step`."""
        number = step % self.distinct if self.distinct else step
        starts = crop_starts(self.seed, number, self.batch_size, self.positions)
        size = self.batch_size // (self.share.world_size * self.share.accumulation)
        first = (micro * self.share.world_size + self.share.rank) * size
        x = windows(self.ids, starts[first : first + size], self.block_size + 1, self.device)
        return x[:, :-1].contiguous(), x[:, 1:].contiguous()  # one layout, whatever the batch: compiled once

    def __iter__(self) -> Iterator[Batch]:
        for step in itertools.count(self.start()):
            for micro in range(self.share.accumulation):
                yield self.batch(step, micro)


class EvalBatches:
    """A whole split in order: non-overlapping windows of `block_size`, every id but the first a target once.

    All batches have one shape, (batch_size, T): what is missing of the last ones is filled with masked targets.
    Process r of n takes batches r, r + n, ...
    """

    def __init__(
        self, ids: np.ndarray, *, batch_size: int, block_size: int, share: Share, device: torch.device
    ) -> None:
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
