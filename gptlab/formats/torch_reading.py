"""Readers for files of others that give tensors, see `reading`."""

from __future__ import annotations

import dataclasses
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.reading import check_tokenizer
from gptlab.formats.torch_files import refuse_calls
from gptlab.models import Model, weights
from gptlab.system.errors import UserError


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
        raise UserError(
            f"{path} is broken or no checkpoint: torch.load says {type(error).__name__}; copy it again, or give a run "
            f"directory or another model"
        ) from error


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
        UserError: see `check_tokenizer`.
    """
    check_tokenizer(model.config, tokenizer)
    return weights.crop(model, dataclasses.replace(model.config, vocab_size=tokenizer.vocab_size))
