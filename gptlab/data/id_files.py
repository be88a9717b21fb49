"""Files of ids as others write them: nanoGPT's, llm.c's and modded-nanogpt's, and arrays of numpy."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from gptlab.data.shards import IdFile
from gptlab.system.errors import UserError, amount, error_line

HEADER = 1024  # bytes of a shard of llm.c before its ids: 256 int32
SHARDS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
"""The magic number that a shard of llm.c begins with, its version, and the type of its ids."""
LLM_C = 2024  # what the magic numbers of all its files begin with
ARRAYS = ("<u2", "<u4", "<i4", "<i8")
NPY_HEADER = 1 << 16  # bytes in which the header of an array of numpy must end
CHUNK = 1 << 22  # ids


def read_id_file(path: Path) -> IdFile:
    """Return what a file of ids holds, by its name and its header.

    Raises:
        UserError: it is empty, damaged, or holds something else.
    """
    try:
        with path.open("rb") as file:
            beginning, size = file.read(NPY_HEADER), path.stat().st_size
    except OSError as error:
        raise UserError(f"data.path={path} cannot be read: {error.strerror}") from error
    if not size:
        raise UserError(f"data.path={path} is empty (0 bytes): write it again, or leave it out")
    read = _array if path.suffix.lower() == ".npy" else _shard if _has_header(beginning) else _plain
    return read(path, beginning, size)


def _has_header(beginning: bytes) -> bool:
    """Return whether a .bin begins with a header of llm.c, one that is damaged or of another kind included.

    Ids of a text are not taken for one: they would begin with an id above 54,911 and then 308, or have 506 times 0.
    """
    magic = int.from_bytes(beginning[:4], "little")
    filled = len(beginning) >= HEADER and not any(beginning[12:HEADER])
    return magic // 10_000 == LLM_C or int.from_bytes(beginning[:4], "big") in SHARDS or (magic > 0 and filled)


def _plain(path: Path, beginning: bytes, size: int) -> IdFile:
    """Return what a .bin of nanoGPT holds: uint16 without a header."""
    if size % 2:
        raise UserError(
            f"data.path={path} has {size:,} bytes, an odd number, and ids in a .bin without a header are uint16, two "
            f"bytes each: it is cut off, or no file of ids; write it again, or leave it out"
        )
    return IdFile(path, "<u2", size // 2)


def _shard(path: Path, beginning: bytes, size: int) -> IdFile:
    """Return what a shard of llm.c or modded-nanogpt holds."""
    if len(beginning) < HEADER:
        raise UserError(
            f"data.path={path} has {size:,} bytes, and the header of a shard of llm.c alone has {HEADER:,}: it is cut "
            f"off; copy or write it again"
        )
    magic, version, count = np.frombuffer(beginning, "<i4", 3).tolist()
    if int.from_bytes(beginning[:4], "big") in SHARDS:
        raise UserError(f"data.path={path} is big-endian, and a shard of llm.c is little-endian: write it again so")
    if magic not in SHARDS:
        known = " and ".join(f"{each} (version {of})" for each, (of, _) in SHARDS.items())
        raise UserError(
            f"data.path={path} begins with the number {magic}, and shards of ids with {known}: it holds weights, "
            f"questions or the like; leave it out"
        )
    expected, dtype = SHARDS[magic]
    if version != expected:
        raise UserError(
            f"data.path={path} is of version {version}, and of the shards that begin with {magic} only version "
            f"{expected} can be read: write it again with a current llm.c"
        )
    if count < 1:
        raise UserError(f"data.path={path}: its header says that it has {count:,} ids: write it again, or leave it out")
    return _of_size(IdFile(path, dtype, count, HEADER), size)


def _array(path: Path, beginning: bytes, size: int) -> IdFile:
    """Return what a .npy holds; nothing is unpickled."""
    start = io.BytesIO(beginning)
    try:
        version = npy.read_magic(start)
        read: Callable[[io.BytesIO], tuple[tuple[int, ...], bool, np.dtype]]
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, _, dtype = read(start)
    except Exception as error:  # a damaged header can raise anything
        raise UserError(f"data.path={path} is no array of numpy: {error_line(error)}; write it with np.save") from error
    types = "uint16, uint32, int32 or int64, little-endian"
    again = f"np.save({path.name!r}, ids.astype(np.uint16))"
    if dtype.hasobject:
        raise UserError(
            f"data.path={path} holds Python objects (dtype {dtype}), which numpy would unpickle, and so execute: ids "
            f"are {types}; write them with {again}"
        )
    if dtype.str not in ARRAYS:
        order = ", big-endian" if dtype.kind in "iu" and dtype.str[0] == ">" else ""
        raise UserError(f"data.path={path} is of type {dtype}{order}, and ids are {types}: write them with {again}")
    if len(shape) != 1:
        raise UserError(
            f"data.path={path} has {len(shape)} axes (its shape is {shape}), and ids have one: "
            f"write them with np.save({path.name!r}, ids.reshape(-1))"
        )
    if not shape[0]:
        raise UserError(f"data.path={path} is empty (0 ids): write it again, or leave it out")
    return _of_size(IdFile(path, dtype.str, shape[0], start.tell()), size)


def _of_size(file: IdFile, size: int) -> IdFile:
    """Check that a file has as many bytes as its header says."""
    expected = file.offset + file.bytes
    if size == expected:
        return file
    wrong = "it is cut off" if size < expected else "there is more in it than that"
    raise UserError(
        f"data.path={file.path}: its header says that it has {amount(file.count, 'id')}, which makes {expected:,} "
        f"bytes, and it has {size:,}: {wrong}; copy or write it again"
    )


class Content(NamedTuple):
    """What stands in a file of ids."""

    sha256: str
    """Hash of the ids, as they are stored."""
    lowest: int
    highest: int


def read_content(file: IdFile) -> Content:
    """Read all ids of a file, in bounded memory."""
    ids, digest, lows, highs = file.ids(), hashlib.sha256(), [], []
    for begin in range(0, file.count, CHUNK):
        chunk = ids[begin : begin + CHUNK]
        digest.update(chunk.data)
        lows.append(int(chunk.min()))
        highs.append(int(chunk.max()))
    return Content(digest.hexdigest(), min(lows), max(highs))


def first_outside(file: IdFile, vocab_size: int) -> tuple[int, int]:
    """Return the place and the value of the first id of a file that is below 0, or not below `vocab_size`."""
    ids = file.ids()
    for begin in range(0, file.count, CHUNK):
        chunk = ids[begin : begin + CHUNK]
        outside = np.flatnonzero((chunk < 0) | (chunk >= vocab_size))
        if len(outside):
            return begin + int(outside[0]), int(chunk[outside[0]])
    raise AssertionError("all are in the vocabulary")
