"""MODEL on a command line: whatever it names, the model, its tokenizer and what is known of them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import checkpoint, huggingface, nanogpt, openai_gpt2, reading, safetensors_file
from gptlab.formats.checkpoint import Info, Loaded
from gptlab.models import Model
from gptlab.system.errors import UserError, did_you_mean
from gptlab.system.files import user_folder

EXPORT = "model.safetensors"
WORD = re.compile(r"[\w.-]{1,99}")
HUB = re.compile(r"[\w.-]+/[\w.-]+")  # organisation/name


AnyModel = TypeVar("AnyModel", covariant=True)


@dataclass(frozen=True)
class OpenedModel(Generic[AnyModel]):
    """A model that somebody named, with its tokenizer and what it says of itself."""

    name: str
    model: AnyModel
    tokenizer: Tokenizer
    info: Info | None
    """None: it says nothing, as a table of counts."""

    @property
    def words(self) -> str:
        """One line for people."""
        return self.info.words if self.info else self.name

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of a run; empty for any other model."""
        return self.info.config if self.info else {}

    @property
    def data(self) -> dict[str, Any]:
        """The config's node of the text; empty if there is none."""
        data = self.config.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def learned_from(self) -> str | None:
        """The sha256 of the text that a run was trained on; None if the model does not say."""
        return self.info.data_sha256 if self.info else None


def open_model(
    name: str, device: torch.device | None = None, dtype: torch.dtype = torch.float32, *, raw_dir: Path | None = None
) -> OpenedModel[Model]:
    """The model that `name` names, on `device` (None: the CPU), in evaluation mode; other arguments as of `load`."""
    model, tokenizer, info = load(name, raw_dir=raw_dir)
    return OpenedModel(name, model.to(device, dtype), tokenizer, info)


def load(name: str | Path, *, raw_dir: Path | None = None) -> Loaded:
    """Model (on the CPU, fp32, in evaluation mode), tokenizer and info.

    Args:
        name: a run directory, a checkpoint file, a Hugging Face folder, a .safetensors file of ours, nanoGPT's ckpt.pt,
            OpenAI's TensorFlow folder, or else a name on the Hugging Face hub: gpt2, ..., organisation/name.
        raw_dir: where GPT-2's vocabulary is looked for if the model has none with it; None: GPTLAB_DATA.

    Raises:
        UserError: there is no such model, it is broken, or it is none of ours.
    """
    path, raw_dir = Path(name), raw_dir or user_folder(os.environ.get("GPTLAB_DATA"))
    with suppress(RuntimeError):  # there is no such user
        path = path.expanduser()
    if _is_file(path):
        return _file(path, raw_dir)
    if _is_file(path / "config.json"):
        return huggingface.open_folder(path, raw_dir)
    if _is_file(path / "hparams.json"):
        return openai_gpt2.open_folder(path, raw_dir)
    if _is_file(path / EXPORT):
        return safetensors_file.open_export(path / EXPORT)
    if str(name) in huggingface.NAMES or (HUB.fullmatch(str(name)) and not path.parent.exists()):
        return huggingface.open_folder(huggingface.download(str(name)), raw_dir)
    if WORD.fullmatch(str(name)) and not path.exists():
        raise UserError(
            f"{name}: no such run directory or checkpoint file (runs lie in outputs/<name>/<time>), and no known model "
            f"(those of Hugging Face are named organisation/name); {did_you_mean(str(name), huggingface.NAMES)}"
        )
    return checkpoint.load(path)


def _file(path: Path, raw_dir: Path) -> Loaded:
    if path.name in huggingface.WEIGHTS and (path.parent / "config.json").is_file():
        return huggingface.open_folder(path.parent, raw_dir)
    if path.suffix == ".safetensors":
        return safetensors_file.open_export(path)
    content = reading.load_plain(path)
    if isinstance(content, dict) and "model_args" in content:
        return nanogpt.open_checkpoint(path, raw_dir)
    return checkpoint.load(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name that a file can have
        return False
