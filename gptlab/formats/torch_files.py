"""Files of `torch.save`, read without torch: nothing in them is executed."""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.system.errors import UserError

MAX_PICKLE_BYTES = 1 << 28  # of the pickle that describes a file's tensors
CALLING_OPERATIONS = {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "STACK_GLOBAL"}
ALLOWED_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch(\.storage)? (\w+Storage|Size|device)"
    r"|torch (float|double|half|bfloat16|bool|int|long|short|u?int(8|16|32|64)|float(16|32|64))|_codecs encode"
)


def refuse_calls(path: Path) -> None:
    """Check that a file of `torch.save` builds only tensors and plain data.

    `torch.load` with weights_only executes no foreign code either, but lets a file allocate a bytearray of any length.

    Raises:
        UserError: the file would call something else, or its pickle is larger than any real one.
    """
    if not zipfile.is_zipfile(path):
        return  # the old format, a stream that torch checks itself
    with zipfile.ZipFile(path) as content:
        for entry in content.infolist():
            if not entry.filename.endswith("/data.pkl"):
                continue
            if entry.file_size > MAX_PICKLE_BYTES:
                raise UserError(f"{path} is no checkpoint: {entry.filename} has {entry.file_size:,} bytes")
            for operation, argument, _ in pickletools.genops(content.read(entry)):
                if operation.name in CALLING_OPERATIONS or (
                    operation.name == "GLOBAL" and not ALLOWED_GLOBALS.fullmatch(str(argument))
                ):
                    raise UserError(
                        f"{path} is no checkpoint of numbers, texts and tensors alone: it would call "
                        f"{str(argument)[:99]}. If it is your own, save it without that: float(x) for a number of "
                        f"numpy, str(x) for a path, x.state_dict() for a model"
                    )


class Unread:
    """Stands for a tensor that is not one of fp32 numbers, side by side in the file."""


def load_arrays(path: Path) -> tuple[Any, mmap.mmap]:
    """Return the content of a zip file of `torch.save`, its tensors of fp32 as arrays in the file; and the mapped file.

    Raises:
        UserError: see `refuse_calls`.
        ValueError: the file is broken, or holds other things than plain data and tensors.
    """
    try:
        refuse_calls(path)
        with path.open("rb") as file, zipfile.ZipFile(file) as content:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            [described] = [name for name in content.namelist() if name.endswith("/data.pkl")]
            reader = _Reader(content.read(described), content, described.removesuffix(".pkl"), data)
        return reader.load(), data
    except UserError:
        raise
    except Exception as error:  # a pickle can hold anything
        raise ValueError(f"{path} is broken or no checkpoint: {type(error).__name__}") from error


class _Reader(pickle.Unpickler):
    """Reads the pickle of such a file; of other tensors than `load_arrays` returns it takes no notice."""

    def __init__(self, pickled: bytes, content: zipfile.ZipFile, folder: str, data: mmap.mmap) -> None:
        super().__init__(io.BytesIO(pickled), encoding="utf-8")
        self.data, self.folder = data, folder
        self.entries = {entry.filename: entry for entry in content.infolist()}

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        return known.get((module, name), name)

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, _, count = pid
        entry = self.entries[f"{self.folder}/{key}"]
        if kind != "storage" or storage != "FloatStorage" or entry.compress_type != zipfile.ZIP_STORED:
            return Unread
        header = self.data[entry.header_offset : entry.header_offset + 30]  # of the format: then a name and more
        begin = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if count * 4 != entry.file_size or begin + entry.file_size > len(self.data):
            raise ValueError(f"{key} has not the size that is said")
        return np.frombuffer(self.data, np.float32, count, begin)


def _rebuilt(storage: Any, first: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    """Return a tensor; `Unread` if its numbers do not lie side by side."""
    count, apart = 1, []
    for each in reversed(size):
        apart.append(count)
        count *= each
    side_by_side = all(n == 1 or a == b for n, a, b in zip(size, stride, reversed(apart), strict=True))
    if storage is Unread or not side_by_side or first < 0 or count < 0 or first + count > len(storage):
        return Unread
    return storage[first : first + count].reshape(size)
