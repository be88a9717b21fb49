"""Files of tensors as others write them, read without executing anything, and errors that name the file."""

from __future__ import annotations

import dataclasses
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.data.tokenizers import Tokenizer
from gptlab.models import Model, weights
from gptlab.system.errors import UserError
from gptlab.system.files import read_bytes

DESCRIPTION = 1 << 28  # bytes
CALLS = {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "STACK_GLOBAL"}
BUILT = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch(\.storage)? (\w+Storage|Size|device)"
    r"|torch (float|double|half|bfloat16|bool|int|long|short|u?int(8|16|32|64)|float(16|32|64))|_codecs encode"
)


def refuse_calls(path: Path) -> None:
    """That a file of `torch.save` builds nothing but tensors and plain data.

    torch executes nothing of a stranger's either, but lets a file ask for a bytearray of any length, and more.

    Raises:
        UserError: it does; or what describes its tensors is larger than any description.
    """
    if not zipfile.is_zipfile(path):
        return  # of the old form, which is read as a stream; torch looks at it
    with zipfile.ZipFile(path) as content:
        for entry in content.infolist():
            if not entry.filename.endswith("/data.pkl"):
                continue
            if entry.file_size > DESCRIPTION:
                raise UserError(f"{path} is no checkpoint: {entry.filename} has {entry.file_size:,} bytes")
            for operation, argument, _ in pickletools.genops(content.read(entry)):
                if operation.name in CALLS or (operation.name == "GLOBAL" and not BUILT.fullmatch(str(argument))):
                    raise UserError(f"{path} is no checkpoint: it would call {str(argument)[:99]}")


def load_plain(path: Path, mapped: bool = True) -> Any:
    """What torch.save has written into a file, its tensors `mapped`, or read; nothing in the file is executed.

    Raises:
        UserError: the file is broken, or holds more than plain data and tensors.
    """
    try:
        refuse_calls(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign file's pickle protocol
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is broken or no checkpoint: torch.load says {type(error).__name__}") from error


GPT2_SIZES = (50257, 50304)  # of GPT-2's vocabulary, and padded to a multiple of 64


def read_bin(file: Path) -> dict[str, Tensor]:
    content = load_plain(file)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} holds something else than weights by name")
    return content


def sized_to_tokenizer(model: Model, tokenizer: Tokenizer) -> Model:
    """The model with as many tokens as the tokenizer has."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}: "
            f"they do not belong together"
        )
    return weights.crop(model, dataclasses.replace(model.config, vocab_size=tokenizer.vocab_size))


def read_json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} has no names and values")
    return content


def error_line(error: Exception) -> str:
    """The kind of an error and the beginning of what it says."""
    said, _, _ = str(error).strip().partition("\n")
    return f"{type(error).__name__}: {said[:200]}"


@contextmanager
def naming_path(path: Path) -> Iterator[None]:
    """Mistakes begin with the path of what they are in."""
    try:
        yield
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
