"""nanochat's checkpoints: model_<step>.pt beside meta_<step>.json, and the tokenizer.pkl of its base folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab import models
from gptlab.formats import nanochat_tokenizer
from gptlab.formats.checkpoint import LoadedModel
from gptlab.formats.description import ModelInfo
from gptlab.formats.huggingface_llama import halves_swapped
from gptlab.formats.reading import naming_path, read_json_object, without_wrappers
from gptlab.formats.torch_reading import crop_to_tokenizer, load_plain
from gptlab.models import weights
from gptlab.models.gpt_config import GPTConfig
from gptlab.system.errors import UserError

MODEL_FILE = re.compile(r"model_(\d{1,15})\.pt")
NAMES = {  # ours to theirs, or to several of theirs; {} is the number of the block
    "wte.weight": ("transformer.wte.weight",),
    "h.{}.attn.c_attn.weight": tuple(f"transformer.h.{{}}.attn.c_{x}.weight" for x in "qkv"),
    "h.{}.attn.c_proj.weight": ("transformer.h.{}.attn.c_proj.weight",),
    "h.{}.mlp.c_fc.weight": ("transformer.h.{}.mlp.c_fc.weight",),
    "h.{}.mlp.c_proj.weight": ("transformer.h.{}.mlp.c_proj.weight",),
    "lm_head.weight": ("lm_head.weight",),
}
FIELDS = {"sequence_len": "block_size", "n_layer": "n_layer", "n_head": "n_head", "n_kv_head": "n_kv_head"}
FIELDS |= {"n_embd": "n_embd"}
FIXED: dict[str, Any] = {
    **{"norm": "rmsnorm", "norm_weight": False, "norm_eps": 2.0**-23, "embed_norm": True, "qk_norm": True},
    **{"pos": "rope", "rope_base": 10_000.0, "mlp": "relu2", "bias": False, "tied": False, "logit_softcap": 15.0},
}
"""What no file says: since value embeddings came, on 2026-01-16, some of it has changed, but those are in the file."""
# What later checkpoints have besides: its names, and the number with which it changes nothing.
SCALARS = {"resid_lambdas": 1.0, "x0_lambdas": 0.0, "smear_lambda": 0.0, "backout_lambda": 0.0}
IDLE = {"smear_gate.weight": "smear_lambda"}  # multiplied by that scalar
VALUE_EMBEDDINGS = re.compile(r"value_embed.*|v0_lambdas|transformer\.h\.\d+\.attn\.ve_gate\.weight")


def newest(folder: Path) -> Path | None:
    """Return the checkpoint of the last step in a folder; None if it has none, or there is no such folder."""
    try:
        steps = {int(match[1]): file for file in folder.iterdir() if (match := MODEL_FILE.fullmatch(file.name))}
    except (OSError, ValueError):
        return None
    return steps[max(steps)] if steps else None


def is_checkpoint(file: Path) -> bool:
    """Return whether a file has the name of nanochat's checkpoints, and its description beside it."""
    return MODEL_FILE.fullmatch(file.name) is not None and _meta(file).is_file()


def open_checkpoint(file: Path, raw_dir: Path) -> LoadedModel:
    """Open a checkpoint of nanochat (https://github.com/karpathy/nanochat), on the CPU in evaluation mode.

    Args:
        file: model_<step>.pt. tokenizer.pkl is beside it, or where nanochat puts it: in ../../tokenizer.
        raw_dir: where OpenAI's vocabularies are looked for, if the tokenizer is one of them.

    Raises:
        UserError: a file is missing, broken or does not fit, or the model is none of gptlab's: with all the reasons.
    """
    if not _meta(file).is_file():
        raise UserError(f"{file}: its description {_meta(file).name} is not beside it")
    about, content = read_json_object(_meta(file)).get("model_config"), load_plain(file)
    if not isinstance(content, dict) or not all(isinstance(k, str) and isinstance(content[k], Tensor) for k in content):
        raise UserError(f"{file} is no checkpoint of nanochat: it holds something else than weights by name")
    if not isinstance(about, dict):
        raise UserError(f"{_meta(file)} has no model_config")
    with naming_path(file):
        state = without_wrappers(content)
        config = _config(about, state)
        state = _our_weights(state, config)
    tokenizer = nanochat_tokenizer.read_tokenizer(_tokenizer_file(file), raw_dir)
    with naming_path(file):
        if tokenizer.vocab_size != about["vocab_size"]:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model {about['vocab_size']}: they do not "
                f"belong together"
            )
        model = crop_to_tokenizer(weights.fill(config, state), tokenizer)
    match = MODEL_FILE.fullmatch(file.name)
    return model, tokenizer, ModelInfo(file, int(match[1]) if match else None, {}, {}, None, "nanochat")


def _meta(file: Path) -> Path:
    return file.with_name(f"meta_{file.stem.removeprefix('model_')}.json")


def _tokenizer_file(file: Path) -> Path:
    """Return tokenizer.pkl.

    Raises:
        UserError: there is none.
    """
    here = file.absolute().parent
    places = [here / nanochat_tokenizer.FILE, here.parent.parent / "tokenizer" / nanochat_tokenizer.FILE]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"{file}: its {places[0].name} is neither beside it nor at {places[1]}: copy it there")
    return found


def _config(about: dict[str, Any], state: dict[str, Tensor]) -> GPTConfig:
    """Return our config for the model_config in their description, with as many ids as the embedding has rows.

    Raises:
        UserError: gptlab has no such model; the message lists every reason.
    """
    lacking = [name for name in (*FIELDS, "vocab_size") if not isinstance(about.get(name), int)]
    if lacking:
        raise UserError(f"model_config lacks numbers for {', '.join(lacking)}")
    wrong = [
        f"model_config.{name}={value!s:.99}, which gptlab does not know"
        for name, value in about.items()
        if name not in (*FIELDS, "vocab_size", "window_pattern")
    ]
    pattern = str(about.get("window_pattern", "L")).upper()
    kinds = {pattern[i % len(pattern)] for i in range(min(len(pattern), about["n_layer"] - 1))} if pattern else {""}
    if kinds - {"L"}:  # the last layer always sees all positions
        wrong.append(f"window_pattern={pattern:.99} (windows in some layers only: all must be L)")
    wrong += [
        f"{name} other than {neutral:g}" for name, neutral in SCALARS.items() if not _is_all(state.get(name), neutral)
    ]
    if any(VALUE_EMBEDDINGS.fullmatch(name) for name in state):
        wrong.append("value embeddings")
    if wrong:
        raise UserError(f"this nanochat is none of gptlab's models: it has {'; '.join(wrong)}")
    table = state.get(NAMES["wte.weight"][0])
    rows = max(len(table), 1) if table is not None and table.dim() else 1
    sizes = {own: about[name] for name, own in FIELDS.items()}
    config = models.from_dict({"name": "gpt", "vocab_size": rows, **sizes, **FIXED})
    assert isinstance(config, GPTConfig)
    return config


def _is_all(values: Tensor | None, number: float) -> bool:
    """Return whether there are no values, or each is this number."""
    if values is None:
        return True
    is_sound = values.device.type == "cpu" and values.numel() < models.LARGEST_NUMBER
    return is_sound and bool((values == number).all())


def _our_weights(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Return our weights by name.

    Raises:
        UserError: names or shapes do not fit; the message lists them in nanochat's names.
    """
    state = {name: value for name, value in state.items() if name not in SCALARS and name not in IDLE}
    weights.check_sound(config, state)
    ours = weights.parameters(weights.empty_model(config))
    theirs: dict[str, tuple[str, ...]] = {}
    expected: dict[str, Tensor] = {}
    for name, value in ours.items():
        block = "".join(re.findall(r"^h\.(\d+)", name))
        theirs[name] = tuple(part.replace("{}", block) for part in NAMES[re.sub(r"^h\.\d+", "h.{}", name)])
        rows = config.stacked["c_attn"] if len(theirs[name]) > 1 else [len(value)]
        expected |= dict(zip(theirs[name], value.split(rows), strict=True))
    weights.check_shapes(state, expected)
    result = {}
    for name, parts in theirs.items():
        value = torch.cat([state[part] for part in parts]) if len(parts) > 1 else state[parts[0]]
        order = halves_swapped(name.rpartition(".")[0], config)
        result[name] = value if order is None else value[order]
    return result
