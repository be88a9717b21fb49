"""OpenAI's release of GPT-2: hparams.json and a TensorFlow checkpoint."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor

from gptlab.formats import huggingface_config, huggingface_names
from gptlab.formats.checkpoint import LoadedModel
from gptlab.formats.description import ModelInfo
from gptlab.formats.huggingface_folder import read_tokenizer
from gptlab.formats.reading import naming_path, read_json_object
from gptlab.formats.torch_reading import crop_to_tokenizer
from gptlab.models import weights
from gptlab.system.errors import UserError, error_line


def open_folder(folder: Path, raw_dir: Path) -> LoadedModel:
    """Open a folder of OpenAI's release of GPT-2 (https://github.com/openai/gpt-2), on the CPU in evaluation mode.

    Args:
        folder: the folder with hparams.json and the TensorFlow checkpoint.
        raw_dir: where GPT-2's vocabulary is looked for if the folder has none.

    Raises:
        UserError: TensorFlow is missing, a file is missing or broken, or the weights do not fit hparams.json.
    """
    about = read_json_object(folder / "hparams.json")
    names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
    with naming_path(folder / "hparams.json"):
        config = huggingface_config.config_from_hf(
            {"model_type": "gpt2", "vocab_size": None} | {names.get(k, k): value for k, value in about.items()}
        )
    tokenizer = read_tokenizer(folder, config, raw_dir)
    with naming_path(folder):
        model = crop_to_tokenizer(
            weights.fill(config, huggingface_names.weights_from_hf(_variables(folder), config)), tokenizer
        )
    return model, tokenizer, ModelInfo(folder, None, {}, {}, None, "OpenAI TensorFlow")


def _variables(folder: Path) -> dict[str, Tensor]:
    """Read the variables of a TensorFlow checkpoint, named as in `transformers`: model/h0/ln_1/g is h.0.ln_1.weight."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            "a TensorFlow checkpoint, and TensorFlow is not installed: pip install 'gptlab[tensorflow]'; or take the "
            "same weights from Hugging Face: gpt2, gpt2-medium, gpt2-large, gpt2-xl"
        ) from error
    try:
        reader = tf.train.load_checkpoint(str(folder))
        values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except Exception as error:  # TensorFlow has no common base of its errors
        raise UserError(
            f"TensorFlow cannot read the checkpoint; are checkpoint and model.ckpt.* all there? ({error_line(error)})"
        ) from error
    state = {}
    for name, value in values.items():
        module = re.sub(r"^model\.|\.[wgb]$", "", re.sub(r"/h(\d+)/", r"/h/\1/", name).replace("/", "."))
        tensor = torch.from_numpy(value)
        # A matrix is a convolution of width 1: (1, in, out).
        state[f"{module}.{'bias' if name.endswith('/b') else 'weight'}"] = tensor[0] if tensor.dim() == 3 else tensor
    return state
