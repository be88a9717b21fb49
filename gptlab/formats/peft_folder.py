"""An adapter of PEFT together with its base: written as two folders, and opened as one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.checkpoint import LoadedModel
from gptlab.formats.description import ModelInfo
from gptlab.formats.peft import CONFIG_FILE, read_adapter, write_adapter
from gptlab.formats.reading import read_json_object
from gptlab.formats.writing import write_hf
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.lora import without_adapters
from gptlab.system.errors import UserError
from gptlab.system.files import is_there


def write_base_and_adapter(model: Model, tokenizer: Tokenizer, info: ModelInfo, folder: Path, final: Path) -> None:
    """Write a model's adapters for PEFT into folder/adapter, and the model without them into folder/base.

    Args:
        model: the model with its adapters.
        tokenizer: its tokenizer.
        info: its info.
        folder: an existing folder.
        final: the name that it will have, by which the adapter names its base.

    Raises:
        UserError: the model has no adapters, or see `write_adapter`.
    """
    if not isinstance(model, GPT) or model.lora is None:
        raise UserError(f"{info.path} has no adapters; use --format hf")
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    write_hf(without_adapters(model), tokenizer, info, base)
    vocab_size = read_json_object(base / "config.json")["vocab_size"]
    write_adapter(model, adapter, base=str(final / "base"), vocab_size=vocab_size)


def open_folder(folder: Path, load_base: Callable[[str], LoadedModel]) -> LoadedModel:
    """Open an adapter together with the model that it names as its base, in evaluation mode.

    Args:
        folder: the folder of the adapter.
        load_base: opens a model by its name. A path that leads nowhere is looked for beside the folder.

    Raises:
        UserError: see `read_adapter`; or the base is not named or cannot be opened, or is no GPT.
    """
    about = read_json_object(folder / CONFIG_FILE)
    base = about.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{folder} is an adapter, and does not name the model that it changes: put the two together first (PEFT's "
            f"merge_and_unload, then save_pretrained)"
        )
    beside = folder.absolute().parent / Path(base).name
    model, tokenizer, info = load_base(str(beside) if is_there(beside) and not is_there(Path(base)) else base)
    if not isinstance(model, GPT):
        raise UserError(f"{folder}: adapters are for a GPT, and {base:.199} is a {type(model).__name__}")
    read_adapter(folder, model, info.family)
    return model.eval(), tokenizer, replace(info, path=folder, origin=f"PEFT adapter on {base:.199}", metrics={})
