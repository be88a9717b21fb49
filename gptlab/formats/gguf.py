"""GGUF files, in and out: the models of llama.cpp (https://github.com/ggml-org/llama.cpp), in one file each."""

from __future__ import annotations

import importlib
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gptlab.data.chat.chat_format import ChatFormat, Format, has_chat_tokens
from gptlab.data.chat.template import ChatTemplate
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import gguf_archs, gguf_file, gguf_tokenizer, reshaping
from gptlab.formats.checkpoint import LoadedModel
from gptlab.formats.description import ModelInfo
from gptlab.formats.gguf_vocabulary import CHAT_TEMPLATE, NEVER_DRAWN, SPECIAL, UNUSED, Vocabulary, read_vocabulary
from gptlab.formats.huggingface_family import Family
from gptlab.formats.reading import naming_path
from gptlab.formats.torch_reading import crop_to_tokenizer
from gptlab.formats.writing import chat_format
from gptlab.models import Model, weights
from gptlab.models.gpt import GPT
from gptlab.system.errors import UserError

log = logging.getLogger(__name__)

FILE = "model.gguf"
SHORTEST_CONTEXT = 256  # of llama.cpp, whatever it is asked for
QUANTS = {"f32": 0, "f16": 1, "q8_0": 7, "q4_0": 2}  # llama.cpp's numbers of them (general.file_type)
LARGEST_SCALE = 65504.0  # in fp16
LARGEST = {"F16": LARGEST_SCALE, "Q8_0": 127 * LARGEST_SCALE, "Q4_0": 8 * LARGEST_SCALE}
GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


def require_gguf() -> None:
    """Check that the optional package is installed.

    Raises:
        UserError: it is missing.
    """
    try:
        importlib.import_module("gguf")
    except ImportError as error:
        raise UserError("--format gguf needs gguf: pip install 'gptlab[gguf]'") from error


def write_gguf(model: Model, tokenizer: Tokenizer, info: ModelInfo, folder: Path, quant: str = "f32") -> str:
    """Write model.gguf: the weights, the tokenizer, and the chat template, if there is one.

    Args:
        quant: one of `QUANTS`, for matrices. As in llama.cpp's own quantiser, positions and what has one axis stay in
            fp32, rows that are no multiple of 32 are written in fp16, and beside q4_0 the head is in q8_0.

    Returns:
        The name of the architecture in llama.cpp, and of the types.

    Raises:
        UserError: llama.cpp has no such model or tokenizer, or a type cannot hold the weights.
    """
    if not isinstance(model, GPT):
        raise UserError(
            f"llama.cpp has no {type(model).__name__}; use --format safetensors or --format onnx for this model"
        )
    family, vocabulary = _expressed(model, tokenizer)
    own, rows = model.config.vocab_size, len(vocabulary.tokens)
    model = reshaping.add_rows(model, max(0, rows - own))
    vocabulary.tokens.extend(f"[UNUSED{i}]" for i in range(rows, own))
    vocabulary.types.extend(UNUSED for _ in range(rows, own))
    metadata: dict[str, Any] = {
        "general.type": "model",
        "general.file_type": QUANTS[quant],
        "general.quantization_version": 2,
    }
    if isinstance(name := info.config.get("name"), str):
        metadata["general.name"] = name
    metadata |= gguf_archs.metadata_of(model.config, family) | vocabulary.metadata()
    if rows > own:
        metadata[NEVER_DRAWN] = [*range(own, rows)]  # ids that the model has not learned
    if (chat := chat_format(info)) is not None:
        metadata |= _chat_metadata(chat, vocabulary)
    tensors = gguf_archs.tensors_of(weights.parameters(model), model.config, family)
    kinds = {name: _kind(name, tensor, quant, model.config.tied) for name, tensor in tensors.items()}
    _write(folder / FILE, family.architecture, metadata, tensors, kinds)
    if not model.config.slides and model.config.block_size < SHORTEST_CONTEXT:
        log.warning(
            "llama.cpp ends with a failed assertion where a text, its prompt among it, is longer than the model's %d "
            "positions: limit what it generates (-n, max_tokens)",
            model.config.block_size,
        )
    finer = sum(kind == "F16" for kind in kinds.values()) if quant.startswith("q") else 0
    return f"GGUF, {family.architecture} in {quant}" + (f", {finer} matrices in f16" if finer else "")


def _expressed(model: GPT, tokenizer: Tokenizer) -> tuple[Family, Vocabulary]:
    """Return the architecture and the vocabulary of a model.

    Raises:
        UserError: llama.cpp has none; one message tells both reasons.
    """
    wrong = []
    try:
        family = gguf_archs.arch_of(model.config)
    except UserError as error:
        wrong.append(str(error))
    try:
        vocabulary = gguf_tokenizer.vocabulary_of(tokenizer)
    except UserError as error:
        wrong.append(str(error))
    if wrong:
        raise UserError(f"{'; and '.join(wrong)}; use --format safetensors or --format onnx for this model")
    return family, vocabulary


def _chat_metadata(chat: Format, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the values of a header that tell how a model is asked, and which tokens end its answers."""
    found: dict[str, Any] = {CHAT_TEMPLATE: _plain_template(chat)}
    if isinstance(chat, ChatTemplate):
        told = {kind: chat.variables.get(f"{kind}_token") for kind in ("bos", "eos", "unk", "pad")}
        found |= {
            SPECIAL[kind]: vocabulary.tokens.index(token) for kind, token in told.items() if token in vocabulary.tokens
        }
    turns = [end for end in chat.ends if end != found.get(SPECIAL["eos"], vocabulary.special["eos"])]
    return found | ({SPECIAL["eot"]: turns[0]} if turns else {})


def _plain_template(chat: Format) -> str:
    """Return a template without the tag of `transformers` that marks answers, which other readers of Jinja refuse."""
    return GENERATION.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", chat.as_template())


def _kind(name: str, tensor: Tensor, quant: str, tied: bool) -> str:
    """Return the type in ggml in which a tensor is written."""
    if tensor.dim() == 1 or name == "position_embd.weight" or quant == "f32":
        return "F32"
    if quant == "f16" or tensor.shape[-1] % 32:
        return "F16"
    head = "token_embd.weight" if tied else "output.weight"
    return "Q8_0" if name == head else quant.upper()


def _write(path: Path, arch: str, metadata: dict[str, Any], tensors: dict[str, Tensor], kinds: dict[str, str]) -> None:
    """Write a GGUF file.

    Args:
        arch: the architecture's name.
        metadata: the header.
        tensors: by name, taken out of it.
        kinds: their types.

    Raises:
        UserError: a type cannot hold the weights.
    """
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, arch)
    for key, value in metadata.items():
        kind = GGUFValueType.UINT32 if type(value) is int else GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    for name, kind_name in kinds.items():
        tensor = tensors.pop(name).float()
        largest = float(tensor.abs().max())
        if not largest <= LARGEST.get(kind_name, np.inf):
            raise UserError(
                f"{name} has weights of up to {largest:.3g}, which {kind_name} cannot hold: use --quant f32"
            )
        kind_of = GGMLQuantizationType[kind_name]
        writer.add_tensor(name, quantize(tensor.numpy(), kind_of), raw_dtype=kind_of)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def open_gguf(path: Path) -> LoadedModel:
    """Open a GGUF file, on the CPU in evaluation mode; quantised weights become fp32.

    Raises:
        UserError: the file is broken, or gptlab has no such architecture, tokenizer or type.
    """
    file = gguf_file.read_gguf(path)
    with naming_path(path):
        config, family = gguf_archs.config_from_gguf(
            file.metadata, {name: place.shape for name, place in file.places.items()}
        )
        vocabulary = read_vocabulary(file.metadata)
        tokenizer = gguf_tokenizer.tokenizer_of(vocabulary)
        config, state = gguf_archs.weights_from_gguf(file.metadata, file.tensors(), config, family)
        model = crop_to_tokenizer(weights.fill(config, state), tokenizer)
    read_chat = partial(_read_chat, path, tokenizer, file.metadata.get(CHAT_TEMPLATE), vocabulary.special)
    return model, tokenizer, ModelInfo(path, None, {}, {}, None, f"GGUF {family.architecture}", read_chat)


def _read_chat(path: Path, tokenizer: Tokenizer, source: Any, ids: dict[str, int]) -> Format | None:
    """Return the format in which a model is asked: gptlab's, if its template is that; None: it has none.

    Args:
        path: the file, for messages.
        tokenizer: its tokenizer.
        source: the template.
        ids: the special tokens.

    Raises:
        UserError: the template is broken.
    """
    if source is None:
        return None
    if not isinstance(source, str):
        raise UserError(f"{path}: its {CHAT_TEMPLATE} is no text")
    ours = ChatFormat(tokenizer) if has_chat_tokens(tokenizer) else None
    if ours is not None and source == _plain_template(ours):
        return ours
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    variables = {f"{kind}_token": names[i] for kind, i in ids.items() if i in names and kind != "eot"}
    ends = dict.fromkeys(i for i in (ids.get("eos"), ids.get("eot")) if i in names)
    return ChatTemplate(tokenizer, source, variables, tuple(ends), where=str(path)).with_own_end()
