"""The ids of a corpus on disk, in files of bounded size: a killed writer can go on, a reader sees one array."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.files import write_atomically

SHARD = 100_000_000  # ids, about
SAVE_EVERY = 16  # units of a million characters


def id_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def shard(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.bin"


class Shards:
    """The ids of a split, (n,), uint16 or uint32, memory-mapped; a slice is an array."""

    def __init__(self, folder: Path, split: str, counts: list[int], vocab_size: int) -> None:
        files = [shard(folder, split, i) for i in range(len(counts))]
        self.parts = [np.memmap(file, id_type(vocab_size), mode="r") for file in files]
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.starts = [0, *self.ends.tolist()]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, stretch: slice) -> np.ndarray:
        begin, end, _ = stretch.indices(len(self))
        if end <= begin:
            return self.parts[0][:0]
        first, last = np.searchsorted(self.ends, [begin, end - 1], side="right")
        found = [self.parts[i][max(begin - self.starts[i], 0) : end - self.starts[i]] for i in range(first, last + 1)]
        return found[0] if len(found) == 1 else np.concatenate(found)


class Writer:
    """Appends ids to the shards in `folder`, unit by unit; every so often marks how far they reach.

    Where a folder has such a mark, what was written after it is cut off, and `units` says where to go on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder / "progress.json"
        self.units = 0
        self.counts: dict[str, list[int]] = {}
        self.unknown: set[str] = set()
        """Characters that have no id."""
        self._unmarked: set[Path] = set()
        with suppress(OSError, ValueError):
            state = json.loads(self.mark.read_text())
            for split, counts in state["counts"].items():
                for i, count in enumerate(counts):
                    file, size = shard(folder, split, i), count * state["item_size"]
                    if file.stat().st_size < size:
                        raise ValueError(f"{file} is shorter than its mark says")
                    os.truncate(file, size)
            self.units, self.counts, self.unknown = state["units"], state["counts"], set(state["unknown"])
        kept = {shard(folder, split, i) for split, counts in self.counts.items() for i in range(len(counts))}
        for file in set(folder.glob("*.bin")) - kept:
            file.unlink()

    def add(self, ids: dict[str, np.ndarray], unknown: set[str]) -> None:
        """One unit more: its ids by split, all of one type."""
        for split, array in ids.items():
            if len(array) == 0:
                continue
            counts = self.counts.setdefault(split, [0])
            if counts[-1] >= SHARD:
                counts.append(0)
            path = shard(self.folder, split, len(counts) - 1)
            with path.open("ab") as file:
                file.write(array.tobytes())
            self._unmarked.add(path)
            counts[-1] += len(array)
        self.unknown |= unknown
        self.units += 1
        if self.units % SAVE_EVERY == 0:
            self.save(array.itemsize)

    def save(self, item_size: int) -> None:
        for path in self._unmarked:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self._unmarked.clear()
        state = {
            "units": self.units,
            "counts": self.counts,
            "unknown": sorted(self.unknown),
            "item_size": item_size,
        }
        write_atomically(self.mark, lambda file: file.write(json.dumps(state).encode()))
