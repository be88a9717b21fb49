"""A model written for others: Hugging Face's folder, and one file of safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from gptlab.data.tokenizers import Tokenizer
    from gptlab.formats.checkpoint import Info
    from gptlab.models import Model


def write_weights(path: Path, state: dict[str, Tensor], about: str | None = None) -> None:
    """One file of safetensors, in fp32, with a checksum; the ecosystem splits them from 5 GB (1.25 billion parameters).

    Args:
        about: what the file says of them.
    """
    import safetensors
    from safetensors.torch import save_file

    from gptlab.formats import checkpoint, safetensors_file
    from gptlab.models import weights

    metadata = {"format": "pt", safetensors_file.DIGEST: weights.digest(state, about or "")}
    try:
        save_file(state, path, metadata=metadata | ({} if about is None else {checkpoint.KEY: about}))
    except safetensors.SafetensorError as error:  # what it makes of a refused write
        raise OSError(str(error)) from error
    path.chmod(path.parent.stat().st_mode & 0o666)  # it makes files that only their owner can read


def write_tokenizer(tokenizer: Tokenizer, block_size: int, folder: Path) -> None:
    from gptlab.formats import huggingface_tokenizer

    for name, content in huggingface_tokenizer.files(tokenizer, block_size).items():
        (folder / name).write_text(content, "utf-8")


def to_hf(model: Model, tokenizer: Tokenizer, info: Info, folder: Path) -> str:
    """config.json, generation_config.json, model.safetensors and the tokenizer's files."""
    from gptlab.formats import huggingface_names
    from gptlab.models.gpt_config import GPTConfig
    from gptlab.models.weights import parameters

    if not isinstance(model.config, GPTConfig):
        raise UserError(f"transformers has no {type(model).__name__}; use --format safetensors or --format onnx")
    config = huggingface_names.config_to_hf(model.config)
    end = tokenizer.end_of_text
    special = {
        "bos_token_id": tokenizer.begin[-1] if tokenizer.begin else end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    write_tokenizer(tokenizer, model.config.block_size, folder)
    for name, content in (("config.json", config | special), ("generation_config.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    write_weights(folder / "model.safetensors", huggingface_names.to_hf(parameters(model), model.config))
    return config["architectures"][0]


def to_safetensors(model: Model, tokenizer: Tokenizer, info: Info, folder: Path) -> str:
    """model.safetensors alone: our weights, and in its metadata what a checkpoint says of itself."""
    from gptlab.formats import checkpoint
    from gptlab.models.weights import parameters

    about = checkpoint.describe(model, tokenizer, info.config, info.data_sha256, info.step, info.metrics)
    write_weights(folder / "model.safetensors", parameters(model), json.dumps(about))
    return "safetensors"
