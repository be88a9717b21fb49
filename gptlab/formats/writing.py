"""Writers for exports: a Hugging Face folder, and a safetensors file."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.template import ChatTemplate
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import (
    checkpoint,
    description,
    huggingface_config,
    huggingface_names,
    huggingface_tokenizer,
    reshaping,
)
from gptlab.formats.added_tokens import NAMED
from gptlab.formats.chat_template import FILE
from gptlab.formats.description import DIGEST_KEY, ModelInfo
from gptlab.formats.huggingface_backend import PAD
from gptlab.models import Model, weights
from gptlab.models.gpt import GPT
from gptlab.system.errors import UserError

log = logging.getLogger(__name__)

SETTINGS = "tokenizer_config.json"
ORIGIN_QWEN2 = "Hugging Face qwen2"  # of a ModelInfo


def write_weights(path: Path, state: dict[str, Tensor], about: str | None = None) -> None:
    """Write weights into one safetensors file, in fp32, with a checksum.

    Others split files from 5 GB (1.25 billion parameters); this one is never split.

    Args:
        path: the file.
        state: the weights by name.
        about: the model's description in JSON, see `checkpoint.describe`; None: weights only.

    Raises:
        OSError: the file cannot be written.
    """
    metadata = {"format": "pt", DIGEST_KEY: weights.digest(state, about or "")}
    try:
        safetensors.torch.save_file(
            state, path, metadata=metadata | ({} if about is None else {description.KEY: about})
        )
    except safetensors.SafetensorError as error:  # a failed write
        raise OSError(str(error)) from error
    path.chmod(path.parent.stat().st_mode & 0o666)  # save_file makes files that only their owner can read


def write_tokenizer(
    tokenizer: Tokenizer, block_size: int, folder: Path, vocab_size: int | None = None, chat: Format | None = None
) -> None:
    """Write the files from which `AutoTokenizer` reads a tokenizer, see `huggingface_tokenizer.tokenizer_files`."""
    files = huggingface_tokenizer.tokenizer_files(tokenizer, block_size, vocab_size)
    if chat is not None:
        files[FILE] = chat.as_template()
    if isinstance(chat, ChatTemplate):
        settings = json.loads(files[SETTINGS])
        for name in NAMED:  # what the template is not told stays untold
            token = chat.variables.get(name)
            if token in tokenizer.special_tokens:
                settings[name] = token
            elif re.search(rf"\b{name}\b", chat.source):
                settings.pop(name, None)
        files[SETTINGS] = json.dumps(settings, indent=2) + "\n"
    for name, content in files.items():
        (folder / name).write_text(content, "utf-8")


def chat_format(info: ModelInfo) -> Format | None:
    """Return the format in which a model answers; None, with a warning, if that is a chat template that is broken."""
    try:
        return info.chat
    except UserError as error:
        log.warning("%s: left out", error)
        return None


def write_hf(model: Model, tokenizer: Tokenizer, info: ModelInfo, folder: Path) -> str:
    """Write a Hugging Face folder: config.json, generation_config.json, model.safetensors and the tokenizer's files.

    Returns:
        The name of the architecture in `transformers`.

    Raises:
        UserError: `transformers` has no such model.
    """
    if not isinstance(model, GPT):
        raise UserError(f"transformers has no {type(model).__name__}; use --format safetensors or --format onnx")
    try:
        family = huggingface_config.family_of(model.config)
    except UserError as error:
        raise UserError(f"{error}; use --format safetensors or --format onnx for this model") from error
    named = huggingface_tokenizer.named_tokens(tokenizer)
    special = {kind: i for kind, (_, i) in named.items()}
    if "pad" not in special:
        log.warning(
            "its tokenizer has no padding token: to train in batches, other tools need one "
            "(tokenizer.add_special_tokens, then model.resize_token_embeddings)"
        )
    ids = token_ids(named)
    if family == "qwen2" and info.origin != ORIGIN_QWEN2 and not huggingface_tokenizer.is_qwen2(tokenizer):
        model = reshaping.add_biases(model)  # as Llama: with qwen2, transformers takes Qwen's tokenizer for any other
    model = reshaping.add_rows(model, max([0, *(i + 1 - model.config.vocab_size for i in special.values())]))
    config = huggingface_config.config_to_hf(model.config)
    chat = chat_format(info)
    write_tokenizer(tokenizer, model.config.block_size, folder, chat=chat)
    write_json_files(folder, {"config.json": config | ids, "generation_config.json": generation_config(named, chat)})
    write_weights(
        folder / "model.safetensors", huggingface_names.weights_to_hf(weights.parameters(model), model.config)
    )
    return config["architectures"][0]


def token_ids(named: dict[str, tuple[str, int]]) -> dict[str, Any]:
    """Return the ids of the special tokens as a config.json names them; None for one that there is not.

    Args:
        named: of `huggingface_tokenizer.named_tokens`.
    """
    return {f"{kind}_token_id": named[kind][1] if kind in named else None for kind in ("bos", "eos", "pad")}


def generation_config(named: dict[str, tuple[str, int]], chat: Format | None) -> dict[str, Any]:
    """Return the content of generation_config.json: what ends a text, and what is never drawn."""
    never_drawn = [i for name, i in named.values() if name == PAD]  # a token of ours; those of others may be drawn
    ends: dict[str, Any] = {} if chat is None else {"eos_token_id": sorted(chat.ends)}
    return token_ids(named) | ends | ({"suppress_tokens": never_drawn} if never_drawn else {})


def write_json_files(folder: Path, contents: dict[str, dict[str, Any]]) -> None:
    """Write JSON into the files of a folder, by their names."""
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def write_safetensors(model: Model, tokenizer: Tokenizer, info: ModelInfo, folder: Path) -> str:
    """Write model.safetensors alone, with our weights and the model's description in its metadata.

    Returns:
        The name of the format.
    """
    about = checkpoint.describe(
        model, tokenizer, info.config, info.data_sha256, info.step, info.metrics, chat_format(info)
    )
    write_weights(folder / "model.safetensors", weights.parameters(model), json.dumps(about))
    return "safetensors"
