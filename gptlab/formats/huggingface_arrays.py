"""Opens a folder of `transformers` as arrays, without torch; what is more than plain weights is for `huggingface`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from gptlab.formats import huggingface_config
from gptlab.formats.huggingface_config import BUFFERS, joined, their_names, with_base
from gptlab.formats.huggingface_families import FAMILIES
from gptlab.formats.huggingface_family import Family
from gptlab.formats.huggingface_folder import folder_info, read_tokenizer
from gptlab.formats.opened import OpenedModel
from gptlab.formats.reading import check_tokenizer, read_json_object
from gptlab.formats.safetensors_arrays import read_arrays
from gptlab.models.arrays import ArrayGPT, expected_shapes
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.packed import Array
from gptlab.system.files import user_folder

WEIGHTS = "model.safetensors"


def open_folder(name: str, folder: Path) -> OpenedModel[ArrayGPT] | None:
    """Open a folder whose weights are one safetensors file, and of a family as which our models leave, too.

    Args:
        name: as the user gave it.

    Returns:
        None if it is another, or its weights are not those that its config asks for.

    Raises:
        UserError, OSError, ValueError, KeyError: a file is missing or broken.
    """
    about = read_json_object(folder / "config.json")
    family = FAMILIES[about["model_type"]]
    if not family.written or not (folder / WEIGHTS).is_file():
        return None
    config = huggingface_config.config_from_hf(about)
    found = read_arrays(folder / WEIGHTS)
    state = with_base({key: each for key, each in found.weights.items() if not BUFFERS.search(key)}, family)
    if config.n_layer > len(state) or (weights := join_arrays(state, config, family)) is None:
        return None
    tokenizer = read_tokenizer(folder, config, user_folder(os.environ.get("GPTLAB_DATA")))
    check_tokenizer(config, tokenizer)
    config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
    for key, shape in expected_shapes(config).items():
        weights[key] = weights[key][tuple(map(slice, shape))]
    model = ArrayGPT(config, weights, found.data)
    return OpenedModel(name, model, tokenizer, folder_info(folder, about["model_type"], tokenizer))


def join_arrays(state: dict[str, Array], config: GPTConfig, family: Family) -> dict[str, Array] | None:
    """Convert a family's weights to ours, as `join_weights` does; None if one is missing, or misfits."""
    shapes = expected_shapes(config)
    theirs = {name: their_names(name, family) for name in shapes}
    if {part for names in theirs.values() for part in names} != state.keys():
        return None
    for name, names in theirs.items():
        parts = [state[part] for part in names]
        if len({part.dtype for part in parts}) > 1:
            return None
        if len(parts) > 1 and tuple(map(len, parts)) != config.stacked[name.split(".")[-2]]:
            return None
    found = {name: joined(name, state, config, family, np.concatenate) for name in shapes}
    return found if {name: each.shape for name, each in found.items()} == shapes else None
