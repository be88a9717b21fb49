"""Safetensors files: our own exports, with a checksum, and the weights of others."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptlab.formats import checkpoint, description
from gptlab.formats.checkpoint import LoadedModel
from gptlab.formats.description import DIGEST_KEY
from gptlab.models import weights
from gptlab.system.errors import UserError


def open_export(file: Path) -> LoadedModel:
    """Open a file of `python -m gptlab.export --format safetensors`, on the CPU in evaluation mode.

    Raises:
        UserError: the file is broken, or its header does not describe the model.
    """
    state, header = read_safetensors(file)
    if description.KEY not in header:
        raise UserError(
            f"{file} has weights only: its header lacks the '{description.KEY}' entry of gptlab's exports. Of a "
            f"Hugging Face model give the folder, with config.json and the tokenizer in it"
        )
    unknown = header.keys() - {"format", description.KEY, DIGEST_KEY}
    if unknown:  # perhaps the checksum under a damaged name
        raise UserError(f"{file}: its header is damaged (it has {', '.join(sorted(unknown))[:99]})")
    try:
        about = {"step": None, "metrics": {}, "config": {}, "data_sha256": None} | json.loads(header[description.KEY])
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: its header is damaged ({error})") from error
    return checkpoint.restore(about, state, file, "gptlab export")


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors (mapped into memory) and the header of a safetensors file; our own checksum is verified.

    Raises:
        UserError: the file is broken, or has changed since gptlab wrote it.
    """
    try:
        with safe_open(file, framework="pt") as content:
            names = content.keys()
            state, header = {name: content.get_tensor(name) for name in names}, content.metadata() or {}
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
    ) as error:  # torch raises the last for unknown types
        raise UserError(f"{file} is broken or no safetensors file ({error}); is the download complete?") from error
    if DIGEST_KEY in header and header[DIGEST_KEY] != weights.digest(state, header.get(description.KEY, "")):
        raise UserError(f"{file} has changed since gptlab wrote it (the sha256 differs): export the model again")
    return state, header
