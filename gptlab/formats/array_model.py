"""Opens a run's model, or a folder of `transformers`, as arrays, without torch; anything else is for `open_model`."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptlab import models
from gptlab.data import tokenizers
from gptlab.formats import torch_files
from gptlab.formats.description import (
    ADAPTERS,
    FORMAT,
    KEY,
    PREFIX,
    find_checkpoint,
    model_info,
    verify_checksum,
)
from gptlab.formats.opened import OpenedModel
from gptlab.models.arrays import EMBEDDING, HEAD, ArrayGPT, expected_shapes
from gptlab.models.gpt_config import GPTConfig
from gptlab.system.errors import UserError
from gptlab.system.files import is_file

BROKEN = (OSError, UserError, RuntimeError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError)


def open_arrays(name: str) -> OpenedModel[ArrayGPT] | None:
    """Open a run directory, a checkpoint of ours, or a folder of `transformers`.

    Returns:
        None if `name` is another model, or if anything is amiss: then `open_model` opens it or says what it is.
    """
    with suppress(*BROKEN):
        path = Path(name).expanduser()
        if sys.byteorder != "little":
            return None
        if is_file(path / "config.json"):
            from gptlab.formats import huggingface_arrays

            return huggingface_arrays.open_folder(name, path)
        if (file := find_checkpoint(path)).suffix == ".ckpt":
            return _open(name, file)
    return None


def _open(name: str, file: Path) -> OpenedModel[ArrayGPT] | None:
    content, data = torch_files.load_arrays(file)
    about: dict[str, Any] = content[KEY]
    state = {key.removeprefix(PREFIX): each for key, each in content["state_dict"].items() if key.startswith(PREFIX)}
    if about["format"] != FORMAT or ADAPTERS in about or "head" in about["model"]:
        return None
    config = models.from_dict(about["model"])
    if not isinstance(config, GPTConfig) or not config.has_attention or config.n_layer > len(state):
        return None
    if config.tied and HEAD in state and state[HEAD].ctypes.data == state[EMBEDDING].ctypes.data:
        del state[HEAD]
    if sum(getattr(each, "nbytes", 0) for each in state.values()) > file.stat().st_size:
        return None  # tensors that lie on each other, and would need more memory than the file
    if {key: getattr(each, "shape", None) for key, each in state.items()} != expected_shapes(config):
        return None
    if not verify_checksum(file):
        return None
    tokenizer = tokenizers.from_dict(about["tokenizer"])
    return OpenedModel(name, ArrayGPT(config, state, data), tokenizer, model_info(about, tokenizer, file, "gptlab run"))
