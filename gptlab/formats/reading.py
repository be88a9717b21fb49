"""Readers for files of others: nothing in them is executed, and errors name the file."""

from __future__ import annotations

import dataclasses
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.torch_files import refuse_calls
from gptlab.models import Model, weights
from gptlab.system.errors import UserError, error_line
from gptlab.system.files import read_bytes


def load_plain(path: Path, mapped: bool = True) -> Any:
    """Load a file of `torch.save` on the CPU; nothing in the file is executed.

    Args:
        path: the file.
        mapped: leave the tensors in the file until they are used, where the format allows it.

    Raises:
        UserError: the file is broken, or holds more than plain data and tensors.
    """
    try:
        refuse_calls(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of other programs
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is broken or no checkpoint: torch.load says {type(error).__name__}") from error


WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""What DistributedDataParallel, torch.compile, FSDP, activation checkpointing and Fabric put into a weight's name."""


def without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by their names without `WRAPPERS`, wherever in a name these stand.

    Raises:
        UserError: see `rename`.
    """
    return rename(state, lambda name: ".".join(part for part in name.split(".") if part not in WRAPPERS))


def rename(state: dict[str, Tensor], new_name: Callable[[str], str]) -> dict[str, Tensor]:
    """Return weights by new names.

    Raises:
        UserError: two would have the same name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if new_name(name) in renamed:
            raise UserError(f"it has {new_name(name)[:99]} twice, once as {name[:99]}: it holds more than one model")
        renamed[new_name(name)] = tensor
    return renamed


GPT2_SIZES = (50257, 50304)  # GPT-2's vocabulary, and the same padded to a multiple of 64


def read_weights_bin(file: Path) -> dict[str, Tensor]:
    """Read a pytorch_model.bin: weights by name.

    Raises:
        UserError: the file is broken, or holds something else.
    """
    content = load_plain(file)
    if not isinstance(content, dict) or not all(isinstance(k, str) and isinstance(content[k], Tensor) for k in content):
        raise UserError(f"{file} holds something else than weights by name")
    return content


def crop_to_tokenizer(model: Model, tokenizer: Tokenizer) -> Model:
    """Crop a model's embeddings to the size of its tokenizer.

    Raises:
        UserError: the tokenizer has more tokens than the model, or begins texts with one that the model lacks.
    """
    if any(i >= model.config.vocab_size for i in tokenizer.begin):
        raise UserError(
            f"the tokenizer begins every text with the ids {tokenizer.begin}, and the model has only "
            f"{model.config.vocab_size} tokens: they do not belong together"
        )
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}: "
            f"they do not belong together"
        )
    return weights.crop(model, dataclasses.replace(model.config, vocab_size=tokenizer.vocab_size))


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(read_bytes(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} has no names and values")
    return content


@contextmanager
def naming_path(path: Path) -> Iterator[None]:
    """Let the messages of UserErrors begin with a path, unless they have it already."""
    try:
        yield
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
