"""One file of safetensors: our own exports and the weights of others, verified."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from gptlab.formats import checkpoint
from gptlab.formats.checkpoint import Loaded
from gptlab.models import weights
from gptlab.system.errors import UserError

DIGEST = f"{checkpoint.KEY}.sha256"  # of our own weights, in the header of their file


def open_export(file: Path) -> Loaded:
    """What `python -m gptlab.export --format safetensors` has written.

    Raises:
        UserError: the file is broken, or its header does not describe the model.
    """
    state, header = read_safetensors(file)
    if checkpoint.KEY not in header:
        raise UserError(
            f"{file} has weights only: its header lacks the '{checkpoint.KEY}' entry of gptlab's exports. Of a Hugging "
            f"Face model give the folder, with config.json and the tokenizer in it"
        )
    unknown = header.keys() - {"format", checkpoint.KEY, DIGEST}
    if unknown:  # perhaps its checksum, of which the name is damaged
        raise UserError(f"{file}: its header is damaged (it has {', '.join(sorted(unknown))[:99]})")
    try:
        about = {"step": None, "metrics": {}, "config": {}, "data_sha256": None} | json.loads(header[checkpoint.KEY])
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: its header is damaged ({error})") from error
    return checkpoint.restored(about, state, file, "gptlab export")


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, mapped, and the header of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            names = content.keys()
            state, header = {name: content.get_tensor(name) for name in names}, content.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:  # the last of torch, for its types
        raise UserError(f"{file} is broken or no safetensors file ({error}); is the download complete?") from error
    if DIGEST in header and header[DIGEST] != weights.digest(state, header.get(checkpoint.KEY, "")):
        raise UserError(f"{file} has changed since gptlab wrote it (the sha256 differs): export the model again")
    return state, header
