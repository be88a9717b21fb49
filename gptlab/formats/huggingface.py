"""Hugging Face models, from the hub or a folder: weights and tokenizer. Nothing in their files is executed.

If a model has more embeddings than its tokenizer has tokens (padding to a round number, such as nanoGPT's 50,304), the
rest is cropped: those ids stand for no text, so they should be neither drawn nor scored.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from gptlab.formats import chat_template, huggingface_config, huggingface_names
from gptlab.formats.checkpoint import LoadedModel
from gptlab.formats.huggingface_folder import TOKENIZER_FILES, folder_info, read_tokenizer
from gptlab.formats.reading import naming_path, read_json_object
from gptlab.formats.safetensors_file import read_safetensors
from gptlab.formats.torch_reading import crop_to_tokenizer, read_weights_bin
from gptlab.models import weights
from gptlab.system.errors import UserError, error_line
from gptlab.system.files import is_file, sha256_of

HUB_NAMES = {  # on the hub
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
SETTINGS_FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", chat_template.FILE),
)
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that exists; both may be split into shards


def download(name: str) -> Path:
    """Download a model of the Hugging Face hub, unless the cache has it; returns its folder.

    Args:
        name: one of `HUB_NAMES`, or organisation/name.

    Raises:
        UserError: the model cannot be had, or a file in the cache is damaged.
    """
    import huggingface_hub

    repo = HUB_NAMES.get(name, name)
    try:
        for whole in WEIGHT_FILES:
            stem, _, suffix = whole.partition(".")
            shards = (whole, f"{stem}-*.{suffix}", f"{whole}.index.json")
            folder = Path(
                huggingface_hub.snapshot_download(repo, allow_patterns=[*SETTINGS_FILES, *TOKENIZER_FILES, *shards])
            )
            if any(folder.glob(f"{stem}*.{suffix}")):
                break
    except Exception as error:  # errors of hub, network and disk have no common base
        raise UserError(
            f"{name}: there is no such file or folder, and {repo} is not in Hugging Face's cache, nor can it be "
            f"downloaded ({error_line(error)}). Where there is a network, "
            f"`hf download {repo} --local-dir FOLDER` fetches it: copy that folder here and give its path"
        ) from error
    for file in folder.glob(f"{stem}*.{suffix}"):
        sha256 = file.resolve().name  # in the cache, large files are named by their hash
        if re.fullmatch("[0-9a-f]{64}", sha256) and sha256_of(file).hexdigest() != sha256:
            raise UserError(f"{file} is not what {repo} has (its sha256 differs): remove it to download it anew")
    return folder


def open_folder(folder: Path, raw_dir: Path) -> LoadedModel:
    """Open a folder of `save_pretrained`: config.json, safetensors or pytorch_model.bin, and a tokenizer.

    Args:
        folder: the folder.
        raw_dir: where GPT-2's vocabulary is looked for if the folder has none.

    Raises:
        UserError: a file is missing or broken, or gptlab has no such architecture.
    """
    about = read_json_object(folder / "config.json")
    with naming_path(folder / "config.json"):
        config = huggingface_config.config_from_hf(about)
    tokenizer = read_tokenizer(folder, config, raw_dir)
    with naming_path(folder):
        model = crop_to_tokenizer(
            weights.fill(config, huggingface_names.weights_from_hf(_weights(folder), config, about)), tokenizer
        )
    return model, tokenizer, folder_info(folder, about["model_type"], tokenizer)


def _weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights in a folder, whole or in shards."""
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files = [name]
        elif index.is_file():
            named = read_json_object(index).get("weight_map")
            files = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
        else:
            continue
        state: dict[str, Tensor] = {}
        for file in files:
            if Path(file).name != file:
                raise UserError(f"{index.name} names {file[:99]}, which is no file of this folder")
            if not is_file(folder / file):
                raise UserError(f"{index.name} names {file[:99]}, which is not there; is the download complete?")
            state |= (
                read_safetensors(folder / file)[0] if file.endswith(".safetensors") else read_weights_bin(folder / file)
            )
        return state
    refuse_onnx(folder)
    raise UserError(f"there are no weights (no {' or '.join(WEIGHT_FILES)}, whole or in shards)")


def refuse_onnx(path: Path) -> None:
    """Raise a UserError for a model in ONNX: a file, or a folder of which nothing else can be read."""
    graphs = [path / name for name in ("model.onnx", "onnx/model.onnx")]
    if path.suffix == ".onnx" or any(is_file(graph) for graph in graphs):
        raise UserError(
            f"{path}: ONNX is written here, and not read: give the model that it was exported from, or export that "
            f"with --format safetensors"
        )
