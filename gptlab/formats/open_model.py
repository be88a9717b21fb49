"""MODEL on a command line: whatever it names, the model, its tokenizer and what is known of them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import checkpoint, huggingface, nanogpt, openai_gpt2, reading, safetensors_file
from gptlab.formats.checkpoint import Info
from gptlab.models import Model
from gptlab.system.errors import UserError, did_you_mean
from gptlab.system.files import user_folder

EXPORT = "model.safetensors"
WORD = re.compile(r"[\w.-]{1,99}")
HUB = re.compile(r"[\w.-]+/[\w.-]+")  # organisation/name


def load(name: str | Path, *, raw_dir: Path | None = None) -> tuple[Model, Tokenizer, Info]:
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


def _file(path: Path, raw_dir: Path) -> tuple[Model, Tokenizer, Info]:
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
