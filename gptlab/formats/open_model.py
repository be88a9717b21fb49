"""Opens what MODEL on a command line names: the model, its tokenizer and its info, in any format."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gptlab.formats import (
    adapters,
    checkpoint,
    gguf,
    huggingface,
    llama2c,
    nanochat,
    nanogpt,
    openai_gpt2,
    peft,
    peft_folder,
    safetensors_file,
    torch_reading,
)
from gptlab.formats.checkpoint import LoadedHeaded, LoadedModel
from gptlab.formats.opened import OpenedModel, with_bits
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.lora import merged
from gptlab.models.quantised import quantise
from gptlab.system.errors import UserError, did_you_mean
from gptlab.system.files import is_file, is_there, user_folder

EXPORT_FILE = "model.safetensors"
PLAIN_NAME = re.compile(r"[\w.-]{1,99}")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # organisation/name
DEEPEST = 8  # adapters on adapters on ... a model


def open_model(
    name: str, device: torch.device | None = None, dtype: torch.dtype = torch.float32, *, raw_dir: Path | None = None
) -> OpenedModel[Model]:
    """Open the model that `name` names, in evaluation mode.

    Args:
        name: a model in any form that `load_model` knows.
        device: the device for the model; None: the CPU.
        dtype: the type of the weights.
        raw_dir: where GPT-2's vocabulary is looked for, see `load_model`.

    Raises:
        UserError: there is no such model, it is broken, or gptlab has no such architecture.
    """
    model, tokenizer, info = load_model(name, raw_dir=raw_dir)
    return OpenedModel(name, model.to(device, dtype), tokenizer, info)


def quantised(opened: OpenedModel[Model], bits: int, by: Callable[[GPT, int], GPT] = quantise) -> OpenedModel[Model]:
    """Return a model with weights of `bits` bits; the one of `opened` is not to be used any more.

    Args:
        bits: see `models.quantised.quantise`.
        by: what does it.

    Raises:
        UserError: it is no GPT, or its weights are no numbers.
    """

    def of_gpt(model: Model, bits: int) -> Model:
        if not isinstance(model, GPT):
            raise UserError(f"it is a {type(model).__name__}, and no GPT; use fp32")
        return by(model, bits)

    return with_bits(opened, bits, of_gpt)


def load_model(name: str | Path, *, raw_dir: Path | None = None) -> LoadedModel:
    """Load a model (on the CPU, fp32, in evaluation mode), its tokenizer and its info; adapters are merged.

    Args:
        name: a run directory, a checkpoint file, a Hugging Face folder, a PEFT adapter's, a .safetensors file of ours,
            a .gguf file, nanoGPT's ckpt.pt, nanochat's folder or a model_<step>.pt in it, llama2.c's .bin or our export
            as one, OpenAI's TensorFlow folder, or else a name on the Hugging Face hub: gpt2, ..., organisation/name.
        raw_dir: where GPT-2's vocabulary is looked for if it is not beside the model; None: GPTLAB_DATA.

    Raises:
        UserError: there is no such model, it is broken, or gptlab has no such architecture; or it has adapters, and
            their base is missing or has changed.
    """
    return _merged(load_with_adapters(name, raw_dir=raw_dir))


def load_headed(name: str | Path) -> LoadedHeaded:
    """Load a classifier, a reward model, or a policy with its value head, as `load_model` loads a language model.

    Args:
        name: a run directory or a checkpoint file.

    Raises:
        UserError: as there; or it has no head.
    """
    about, state, file = checkpoint.read_model(Path(name))
    if adapters.KEY in about:
        return adapters.restore_headed(about, state, file, load_model)
    return checkpoint.restore_headed(about, state, file, "gptlab run")


def _merged(opened: LoadedModel) -> LoadedModel:
    model, tokenizer, info = opened
    return (merged(model) if isinstance(model, GPT) else model), tokenizer, info


def load_with_adapters(name: str | Path, *, raw_dir: Path | None = None, depth: int = 0) -> LoadedModel:
    """Load a model as `load_model` does, and leave its adapters, if it has any, beside the weights.

    Args:
        depth: the number of models with adapters that are being opened and belong on this one.
    """
    path, raw_dir = Path(name), raw_dir or user_folder(os.environ.get("GPTLAB_DATA"))
    if depth > DEEPEST:
        raise UserError(f"{name}: more than {DEEPEST} models with adapters belong on each other")
    with suppress(RuntimeError):  # a ~user that does not exist
        path = path.expanduser()

    def load_base(base: str) -> LoadedModel:
        return _merged(load_with_adapters(base, raw_dir=raw_dir, depth=depth + 1))

    if is_file(path):
        return _load_file(path, raw_dir, load_base)
    if is_file(path / "config.json"):
        return huggingface.open_folder(path, raw_dir)
    if is_file(path / "hparams.json"):
        return openai_gpt2.open_folder(path, raw_dir)
    if is_file(path / peft.CONFIG_FILE):
        return peft_folder.open_folder(path, load_base)
    if is_file(path / EXPORT_FILE):
        return safetensors_file.open_export(path / EXPORT_FILE)
    if is_file(path / gguf.FILE):
        return gguf.open_gguf(path / gguf.FILE)
    if is_file(path / llama2c.FILE) and (header := llama2c.read_header(path / llama2c.FILE)) is not None:
        return llama2c.open_model(path / llama2c.FILE, header)
    if (checkpoint_of_nanochat := nanochat.newest(path)) is not None:
        return nanochat.open_checkpoint(checkpoint_of_nanochat, raw_dir)
    if str(name) in huggingface.HUB_NAMES or (HUB_NAME.fullmatch(str(name)) and not is_there(path.parent)):
        return huggingface.open_folder(huggingface.download(str(name)), raw_dir)
    if PLAIN_NAME.fullmatch(str(name)) and not path.exists():
        raise UserError(
            f"{name}: no such run directory or checkpoint file (runs lie in outputs/<name>/<time>), and no known model "
            f"(those of Hugging Face are named organisation/name); {did_you_mean(str(name), huggingface.HUB_NAMES)}"
        )
    if not is_there(path / "checkpoints"):
        huggingface.refuse_onnx(path)
    return _load_checkpoint(path, None, load_base)


def _load_file(path: Path, raw_dir: Path, load_base: Callable[[str], LoadedModel]) -> LoadedModel:
    """Load a model from a file; a file of `torch.save` is read once, and its content tells what it is."""
    if path.name in huggingface.WEIGHT_FILES and (path.parent / "config.json").is_file():
        return huggingface.open_folder(path.parent, raw_dir)
    if path.suffix == ".safetensors":
        return safetensors_file.open_export(path)
    if path.suffix == ".gguf":
        return gguf.open_gguf(path)
    if nanochat.is_checkpoint(path):
        return nanochat.open_checkpoint(path, raw_dir)
    if path.suffix == ".bin" and (header := llama2c.read_header(path)) is not None:
        return llama2c.open_model(path, header)
    huggingface.refuse_onnx(path)
    content = torch_reading.load_plain(path)
    if isinstance(content, dict) and "model_args" in content:
        return nanogpt.open_checkpoint(path, raw_dir, content)
    return _load_checkpoint(path, content, load_base)


def _load_checkpoint(path: Path, content: Any, load_base: Callable[[str], LoadedModel]) -> LoadedModel:
    """Load a run's model; with the base of its adapters, if that is what it holds."""
    about, state, file = checkpoint.read_model(path, content)
    if adapters.KEY in about:
        return adapters.restore(about, state, file, load_base)
    return checkpoint.restore(about, state, file, "gptlab run")
