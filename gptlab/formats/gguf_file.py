"""Reads GGUF files: metadata and tensors. Nothing is believed that the file does not hold.

Written from the format's description, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: a header of names and
values, then the names, shapes, types and places of the tensors, then their numbers. The reader of the `gguf` package is
not used: an array in a damaged file can say that it has 2^60 elements, and that one begins to count them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gptlab.formats.gguf_types import TYPES, ggml_type
from gptlab.system.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # which are alike, except that 3 may be big-endian
ALIGNMENT = 32  # in bytes, of each tensor, unless general.alignment says otherwise
STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # as in struct
MOST_STRINGS = 1 << 22  # in one array: no vocabulary has more tokens or merges
MOST_NAMES = 1 << 16  # of values, and of tensors
LONGEST_HEADER = 1 << 26  # bytes: a vocabulary of 262,144 tokens takes a quarter of them


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor stands in a file."""

    shape: tuple[int, ...]
    """As in torch, the other way round than in the file: the last axis is contiguous."""
    kind: int
    """Its type in ggml, see `gguf_types`."""
    begin: int
    """The first byte."""
    size: int
    """In bytes."""


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file, and the file, mapped into memory."""

    path: Path
    metadata: dict[str, Any]
    """Values by their keys: numbers, truth values, texts, and lists of them."""
    places: dict[str, TensorPlace]
    data: np.ndarray
    """All bytes of the file; changes stay in memory."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name: mapped where the file holds floats, in fp32 where it is quantised.

        Raises:
            UserError: one has a type that is not read.
        """
        unread = {name: place.kind for name, place in self.places.items() if place.kind not in TYPES}
        if unread:
            name, kind = next(iter(unread.items()))
            raise UserError(
                f"{self.path}: {name} is {ggml_type(kind)}, and {len(unread)} of {len(self.places)} tensors have such "
                f"types; gptlab reads {', '.join(each.name for each in TYPES.values())}. llama.cpp's "
                f"`llama-quantize --allow-requantize` writes the model in one of those"
            )
        return {name: self._tensor(place) for name, place in self.places.items()}

    def _tensor(self, place: TensorPlace) -> Tensor:
        content = self.data[place.begin : place.begin + place.size]
        return TYPES[place.kind].read(content).reshape(place.shape)


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a GGUF file.

    Raises:
        UserError: it cannot be read, is no GGUF file, or is broken: it claims more than it holds, or names twice.
    """
    try:
        data = np.memmap(path, np.uint8, "c")
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise UserError(f"{path} is broken or no GGUF file ({error})") from error
    try:
        header = _Header(data.data[:LONGEST_HEADER])
        header.check_version()
        tensors, values = header.number("Q"), header.number("Q")
        metadata = header.named(values, lambda: header.value(header.number("I")))
        infos = header.named(tensors, header.tensor_info)
        places = _places(infos, metadata.get("general.alignment", ALIGNMENT), header.place, len(data))
    except UserError as error:
        raise UserError(f"{path} is broken or no GGUF file: {error}") from error
    return GGUFFile(path, metadata, places, data)


class _Header:
    """The part of a file before the tensors, read from the front; each read raises a UserError past the end."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.place = 0

    @property
    def left(self) -> int:
        """The number of bytes that have not been read."""
        return len(self.data) - self.place

    def take(self, size: int) -> memoryview:
        if size > self.left:
            self._check_length()
            raise UserError(f"it ends within a value of {size:,} bytes; is the download complete?")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, kind: str) -> Any:
        kind = f"<{kind}"
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def text(self) -> str:
        try:
            return str(self.take(self.number("Q")), "utf-8")
        except UnicodeDecodeError as error:
            raise UserError("it has a text that is not UTF-8") from error

    def check_version(self) -> None:
        if self.take(len(MAGIC)) != MAGIC:
            raise UserError("it does not begin with GGUF")
        version = self.number("I")
        if version % (1 << 16) == 0:
            raise UserError("it is big-endian, for machines of another kind; convert the model anew")
        if version not in VERSIONS:
            raise UserError(f"it is of version {version:,}; gptlab reads {' and '.join(map(str, VERSIONS))}")

    def named(self, count: int, read: Callable[[], Any]) -> dict[str, Any]:
        """Return what `read` reads after each of `count` names."""
        self._check_count(count, MOST_NAMES, 8)
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self.text()
            if name in found:
                raise UserError(f"it has {name:.99} twice")
            found[name] = read()
        return found

    def _check_count(self, count: int, most: int, size: int) -> None:
        """Check that so many things of at least `size` bytes each can follow."""
        if count > most or count * size > self.left:
            self._check_length()
            raise UserError(f"it says that {count:,} values or tensors follow, and only {self.left:,} bytes do")

    def _check_length(self) -> None:
        if len(self.data) == LONGEST_HEADER:
            raise UserError(f"its header has more than {LONGEST_HEADER:,} bytes")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array()
        if kind not in NUMBERS:
            raise UserError(f"it has a value of type {kind:,}, which there is not")
        return self.number(NUMBERS[kind])

    def _array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            self._check_count(count, MOST_STRINGS, 8)
            return [self.text() for _ in range(count)]
        if kind not in NUMBERS:
            raise UserError(f"it has a list of type {kind:,}; gptlab reads lists of numbers and of texts")
        size = struct.calcsize(NUMBERS[kind])
        self._check_count(count, MOST_STRINGS, size)
        return np.frombuffer(self.take(count * size), f"<{NUMBERS[kind]}").tolist()

    def tensor_info(self) -> tuple[tuple[int, ...], int, int]:
        """Return the shape, the type and the offset of a tensor."""
        axes = self.number("I")
        if axes > 4:
            raise UserError(f"it has a tensor of {axes:,} axes; there are at most 4")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        return shape, self.number("I"), self.number("Q")


def _places(
    infos: dict[str, tuple[tuple[int, ...], int, int]], alignment: Any, end: int, size: int
) -> dict[str, TensorPlace]:
    """Return where the tensors are.

    Args:
        infos: shapes, types and offsets by name.
        alignment: in bytes, as the file says.
        end: the place where the header ends.
        size: of the file.

    Raises:
        UserError: a tensor is not within the file, or two share bytes.
    """
    if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment % 8:
        raise UserError(f"general.alignment={alignment!s:.99}: must be a multiple of 8")
    begin = -(-end // alignment) * alignment
    found = {}
    for name, (shape, kind, offset) in infos.items():
        row, block = shape[-1] if shape else 1, TYPES[kind].block if kind in TYPES else 1
        count = prod(shape)
        if row % block:
            raise UserError(f"{name:.99} has rows of {row:,} numbers, and {TYPES[kind].name} has blocks of {block}")
        held = count // block * TYPES[kind].block_bytes if kind in TYPES else 0
        if offset % alignment or begin + offset + held > size:
            raise UserError(f"{name:.99} would end at byte {begin + offset + held:,}, and the file has {size:,}")
        found[name] = TensorPlace(shape, kind, begin + offset, held)
    last = 0
    for name, place in sorted(found.items(), key=lambda each: (each[1].begin, each[1].size)):
        if place.size and place.begin < last:
            raise UserError(f"{name:.99} begins within another tensor")
        last = max(last, place.begin + place.size)
    return found
