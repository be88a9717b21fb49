"""Readers for files of others: nothing in them is executed, and errors name the file. None of them needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gptlab.data.tokenizers import Tokenizer
from gptlab.models import ModelConfig
from gptlab.system.errors import UserError, error_line
from gptlab.system.files import read_bytes

AnyWeight = TypeVar("AnyWeight")
"""A tensor of torch, or an array of numpy."""

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""What DistributedDataParallel, torch.compile, FSDP, activation checkpointing and Fabric put into a weight's name."""


def without_wrappers(state: dict[str, AnyWeight]) -> dict[str, AnyWeight]:
    """Return weights by their names without `WRAPPERS`, wherever in a name these stand.

    Raises:
        UserError: see `rename`.
    """
    return rename(state, lambda name: ".".join(part for part in name.split(".") if part not in WRAPPERS))


def rename(state: dict[str, AnyWeight], new_name: Callable[[str], str]) -> dict[str, AnyWeight]:
    """Return weights by new names.

    Raises:
        UserError: two would have the same name.
    """
    renamed: dict[str, AnyWeight] = {}
    for name, tensor in state.items():
        if new_name(name) in renamed:
            raise UserError(f"it has {new_name(name)[:99]} twice, once as {name[:99]}: it holds more than one model")
        renamed[new_name(name)] = tensor
    return renamed


GPT2_SIZES = (50257, 50304)  # GPT-2's vocabulary, and the same padded to a multiple of 64


def check_tokenizer(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Check that a model has all tokens of its tokenizer.

    Raises:
        UserError: the tokenizer has more tokens than the model, or begins texts with one that the model lacks.
    """
    if any(i >= config.vocab_size for i in tokenizer.begin):
        raise UserError(
            f"the tokenizer begins every text with the ids {tokenizer.begin}, and the model has only "
            f"{config.vocab_size} tokens: they do not belong together"
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {config.vocab_size}: "
            f"they do not belong together"
        )


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
