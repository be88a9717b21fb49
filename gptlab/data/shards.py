"""The ids of a corpus on disk, in files of bounded size: a killed writer can resume, a reader sees one array."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.system.errors import UserError
from gptlab.system.files import read_json, sha256_of, write_json

log = logging.getLogger(__name__)

SHARD = 100_000_000  # ids in a file, about
SAVE_EVERY = 16  # units of a million characters
ALWAYS = 1 << 29  # bytes up to which files are verified whenever they are opened
VERIFIED = "verified.json"
THREADS = 8  # that hash files


def id_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """Return the type in which ids are stored."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def shard(folder: Path, split: str, number: int) -> Path:
    """Return the path of file `number` of a split."""
    return folder / f"{split}-{number:05d}.bin"


def verify(folder: Path, files: dict[str, str], remember: bool = True) -> None:
    """Check the sha256 of files.

    More than ALWAYS bytes are read only once: the result is written beside the files, if possible, and holds for a file
    as long as its size, time and inode stay the same.

    Args:
        files: the sha256 (hex) of each file in `folder`, by its name.
        remember: whether to write the result.

    Raises:
        UserError: a file has a different sha256 or cannot be read.
    """
    try:
        found = {name: (folder / name).stat() for name in files}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    stamps = {name: [stat.st_size, stat.st_mtime_ns, stat.st_ino, files[name]] for name, stat in found.items()}
    large = sum(stat.st_size for stat in found.values()) > ALWAYS
    known: dict[str, Any] = {}
    if large:
        with suppress(UserError):
            known = read_json(folder / VERIFIED)
    unknown = [name for name in files if known.get(name) != stamps[name]]
    with ThreadPoolExecutor(THREADS) as pool:
        for name, sha256 in zip(unknown, pool.map(lambda name: _sha256(folder / name), unknown), strict=True):
            if sha256 != files[name]:
                raise UserError(f"{folder / name} is damaged: its sha256 is not the one it was written with")
    if large and unknown and remember:
        with suppress(UserError):  # a folder that cannot be written can still be read
            write_json(folder / VERIFIED, stamps)


def _sha256(file: Path) -> str:
    try:
        return sha256_of(file).hexdigest()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class IdFile:
    """Ids that lie side by side in a file."""

    path: Path
    dtype: str
    """In numpy's words, e.g. <u2."""
    count: int
    offset: int = 0
    """Bytes before the first one."""

    @property
    def bytes(self) -> int:
        """The size of the ids."""
        return self.count * np.dtype(self.dtype).itemsize

    def ids(self) -> np.ndarray:
        """Return the ids, (count,), memory-mapped."""
        return np.memmap(self.path, self.dtype, "r", self.offset, (self.count,))


def cut(files: Sequence[IdFile], begin: int, end: int) -> list[IdFile]:
    """Return the ids from `begin` to `end` of those that lie in several files, one after another."""
    found, start = [], 0
    for file in files:
        first, last = max(begin - start, 0), min(end - start, file.count)
        if first < last:
            offset = file.offset + first * np.dtype(file.dtype).itemsize
            found.append(replace(file, count=last - first, offset=offset))
        start += file.count
    return found


class Shards:
    """The ids of a split, (n,), memory-mapped from several files; a slice is an array."""

    def __init__(self, files: Sequence[IdFile]) -> None:
        self.parts = [file.ids() for file in files]
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


class ShardWriter:
    """Append ids to the shards in `folder`, unit by unit, and regularly mark the progress.

    If the folder has such a mark, what was written after it is cut off, and `units` says where to resume. If the files
    contradict the mark, writing starts again from the beginning.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder / "progress.json"
        self.units = 0
        self.counts: dict[str, list[int]] = {}
        self.unknown: set[str] = set()
        """Characters that have no id."""
        self.digests: dict[Path, Any] = {}
        """Running sha256 of each file."""
        self._unmarked: set[Path] = set()
        if self.mark.exists():
            try:
                self._resume()
            except (UserError, OSError, KeyError) as error:
                log.warning("%s: what a stopped preparation has left is not taken up: %s", folder, error)
        for file in set(folder.glob("*.bin")) - self.digests.keys():
            file.unlink()

    def _resume(self) -> None:
        state = read_json(self.mark)
        sizes = {
            shard(self.folder, split, i): count * state["item_size"]
            for split, counts in state["counts"].items()
            for i, count in enumerate(counts)
        }
        for file, size in sizes.items():
            if file.stat().st_size < size:
                raise UserError(f"{file.name} is shorter than its mark says")
            os.truncate(file, size)
        with ThreadPoolExecutor(THREADS) as pool:
            digests = dict(zip(sizes, pool.map(sha256_of, sizes), strict=True))
        for file, found in digests.items():
            if found.hexdigest() != state["sha256"][file.name]:
                raise UserError(f"{file.name} is damaged: its sha256 is not the one it was written with")
        self.digests, self.units, self.counts = digests, state["units"], state["counts"]
        self.unknown = set(state["unknown"])

    def add(self, ids: dict[str, np.ndarray], unknown: set[str]) -> None:
        """Append one unit: its ids by split, all of one type, and its characters without an id."""
        for split, array in ids.items():
            if len(array) == 0:
                continue
            counts = self.counts.setdefault(split, [0])
            if counts[-1] >= SHARD:
                counts.append(0)
            path = shard(self.folder, split, len(counts) - 1)
            content = array.tobytes()
            with path.open("ab") as file:
                file.write(content)
            self.digests.setdefault(path, hashlib.sha256()).update(content)
            self._unmarked.add(path)
            counts[-1] += len(array)
        self.unknown |= unknown
        self.units += 1
        if self.units % SAVE_EVERY == 0:
            self.save(array.itemsize)

    def sha256(self) -> dict[str, str]:
        """Return the sha256 (hex) of each file, by its name."""
        return {path.name: found.hexdigest() for path, found in sorted(self.digests.items())}

    def save(self, item_size: int) -> None:
        """Flush the files to disk and mark the progress.

        Args:
            item_size: bytes of an id.
        """
        for path in self._unmarked:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self._unmarked.clear()
        state = {
            "units": self.units,
            "counts": self.counts,
            "unknown": sorted(self.unknown),
            "item_size": item_size,
            "sha256": self.sha256(),
        }
        write_json(self.mark, state)
