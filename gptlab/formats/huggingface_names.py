"""Converts configs and weights between gptlab and the model families of `transformers`: GPT-2, Llama and its kin.

Import and export share the tables of `huggingface_families`. Parameters that only one side has are filled in where that
does not change the function: a missing bias with zeros, a norm's scale with ones.
In this module, "our" names are gptlab's and "their" names are those of `transformers`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import torch
from torch import Tensor

from gptlab import models
from gptlab.formats.huggingface_families import (
    ALIASES,
    FAMILIES,
    GPT2,
    LLAMA,
    MISTRAL,
    NULLABLE,
    OLD_ALIASES,
    QWEN2,
    QWEN3,
    REQUIRED_VALUES,
    Family,
)
from gptlab.formats.huggingface_rope import rope_parameters, rope_to_hf, scaled_rope
from gptlab.formats.reading import rename, without_wrappers
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.weights import EMBEDDING, HEAD, check_shapes, check_sound, empty_model, parameters
from gptlab.system.errors import UserError

CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")  # (in, out) in GPT-2, where nn.Linear has (out, in)
# Buffers, which are not weights: theirs, and the count of torch's AveragedModel.
BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|rotary_emb\.inv_freq$|^n_averaged$")


def config_from_hf(hf: dict[str, Any]) -> GPTConfig:
    """Our config for their config.json.

    Raises:
        UserError: gptlab has no such model; the message lists all fields in the way, and why.
    """
    family = FAMILIES.get(str(hf.get("model_type")))
    if family is None:
        raise UserError(
            f"model_type={hf.get('model_type')!s:.99}: gptlab has no such model; it reads {', '.join(FAMILIES)}"
        )
    try:
        return _config(hf, family)
    except UserError:
        raise
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"a damaged config of a {hf['model_type']}: {str(error)[:200]}") from error


def _config(hf: dict[str, Any], family: Family) -> GPTConfig:
    if family is GPT2:
        hf = {new: hf[old] for old, new in OLD_ALIASES.items() if old in hf} | hf
        hf |= {new: hf[old] for old, new in ALIASES.items() if old in hf}
    given = {name: value for name, value in hf.items() if value is not None}
    given["partial_rotary_factor"] = rope_parameters(hf).get("partial_rotary_factor", 1.0)
    fields: dict[str, Any] = {own: hf.get(name, family.defaults[name]) for name, own in family.fields.items()}
    lacking = (name for name, own in family.fields.items() if fields[own] is None and name not in NULLABLE)
    wrong = [f"{name} is missing" for name in lacking]
    wrong += [
        f"{name}={given[name]!s:.99} (it must be {'absent' if value is None else value})"
        for name, value in REQUIRED_VALUES.items()
        if name in given and given[name] != value
    ]
    if family is not GPT2:
        scaling, why_not = scaled_rope(hf, fields["block_size"])
        fields |= scaling
        wrong += why_not
    kinds = _kinds_of_attention(hf, family)
    if family is MISTRAL and kinds == ["full_attention"]:
        fields["window"] = None
    elif kinds not in ([], ["sliding_attention" if family is MISTRAL else "full_attention"]):
        wrong.append(f"layers of {' and '.join(kinds):.99} (all must have full_attention)")
    if family is QWEN3 and given.get("attention_bias"):
        wrong.append("attention_bias=True (it must be False)")
    activation = next((own for own, names in family.activations.items() if fields["mlp"] in names), None)
    if activation is None:
        known = [name for names in family.activations.values() for name in names]
        wrong.append(f"activation {fields['mlp']!s:.99} (gptlab has {', '.join(known)})")
    if wrong:
        raise UserError(f"this {hf['model_type']} is none of gptlab's models: {'; '.join(wrong)}")
    bias = family is GPT2 or bool(given.get("attention_bias") or given.get("mlp_bias"))
    fields |= {"bias": bias, "mlp": activation}
    if fields.get("head_dim") is not None and fields["head_dim"] * fields["n_head"] == fields["n_embd"]:
        fields["head_dim"] = None
    if family is GPT2 and given.get("attn_pdrop") != fields["dropout"]:
        fields["attn_dropout"] = given.get("attn_pdrop")
    config = models.from_dict({"name": "gpt", **fields, **family.fixed})
    assert isinstance(config, GPTConfig)
    return config


def _kinds_of_attention(hf: dict[str, Any], family: Family) -> list[str]:
    """Return the distinct kinds of attention in their layers, sorted; [] if the config does not speak of them.

    Qwen's layers from max_window_layers on have a sliding window, if it is used.
    """
    if hf.get("layer_types"):
        return sorted(set(map(str, hf["layer_types"])))
    if family not in (QWEN2, QWEN3) or not hf.get("use_sliding_window") or not hf.get("sliding_window", 4096):
        return []
    layers, full = int(hf.get("num_hidden_layers", 32)), int(hf.get("max_window_layers", 28))
    return ["full_attention"] * (full > 0) + ["sliding_attention"] * (full < layers)


def config_to_hf(config: GPTConfig) -> dict[str, Any]:
    """Their config.json for our config, without the ids of special tokens.

    Raises:
        UserError: `transformers` has no such model; the message lists all fields in the way.
    """
    name = family_of(config)
    family = FAMILIES[name]
    ours = dataclasses.asdict(config) | {"n_inner": config.hidden, "mlp": family.activations[config.mlp][0]}
    ours |= {"n_kv_head": config.kv_heads, "head_dim": config.head_size}
    result: dict[str, Any] = {"architectures": [family.architecture], "model_type": name, "dtype": "float32"}
    result |= {field: ours[own] for field, own in family.fields.items()}
    if family is GPT2:
        embeddings, attention = config.drop_rates[:2]
        return result | {"embd_pdrop": embeddings, "attn_pdrop": attention, "n_ctx": config.block_size}  # for llama.cpp
    if family is LLAMA:
        bias = config.bias or config.has_qkv_bias
        result |= {"attention_bias": bias, "mlp_bias": bias}
    return result | rope_to_hf(config)


def family_of(config: GPTConfig) -> str:
    """Return the `model_type` that can express a config.

    Raises:
        UserError: there is none; the message lists the fields in which the nearest one differs.
    """
    name = min(FAMILIES, key=lambda name: len(misfits(config, FAMILIES[name])))
    if wrong := misfits(config, FAMILIES[name]):
        raise UserError(
            f"transformers has no model of this shape; what parts it from {FAMILIES[name].architecture}: "
            f"{', '.join(wrong)}"
        )
    return name


def misfits(config: GPTConfig, family: Family) -> list[str]:
    """Return the fields of a config that a family cannot express, as the user types them, and what they must be."""
    ours = dataclasses.asdict(config) | {"qkv_bias": config.has_qkv_bias}
    ours["n_kv_head"] = None if config.kv_heads == config.n_head else config.n_kv_head
    ours["head_dim"] = None if config.attn_width == config.n_embd else config.head_dim
    fields = [
        f"model.{name}={_as_typed(ours[name])} (not {_as_typed(must)})"
        for name, must in family.fixed.items()
        if ours[name] != must
    ]
    if config.mlp not in family.activations:
        fields.append(f"model.mlp={config.mlp} (not {' or '.join(family.activations)})")
    if family is LLAMA and config.n_embd % config.n_head:  # which transformers refuses, whatever head_dim is
        fields.append(f"model.n_embd={config.n_embd} (not a multiple of model.n_head={config.n_head})")
    return fields + (["model.attention=none"] if not config.has_attention else [])


def weights_to_hf(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Convert our weights to theirs: contiguous, sharing memory where nothing is transposed, without a tied head.

    Args:
        state: our weights by name.
        config: the model's config.

    Raises:
        UserError: `transformers` has no such model.
    """
    family = FAMILIES[family_of(config)]
    whole = dataclasses.replace(config, norm_weight=True)
    if "bias" not in family.fixed:
        whole = dataclasses.replace(whole, bias=family is GPT2 or config.bias or config.has_qkv_bias, qkv_bias=None)
    return split_weights(with_all_of(state, config, whole), whole, family)


def with_all_of(state: dict[str, Tensor], config: GPTConfig, whole: GPTConfig) -> dict[str, Tensor]:
    """Return the weights of `config` with those that only `whole` has: biases of zeros, and scales of norms of ones."""
    lacking = parameters(empty_model(whole))
    for name in parameters(empty_model(config)):
        del lacking[name]
    for name, parameter in lacking.items():
        fill = torch.zeros_like if name.endswith(".bias") else torch.ones_like
        state = state | {name: fill(parameter, device=state["wte.weight"].device)}
    return state


def weights_from_hf(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Convert their weights to ours, as views where nothing is concatenated.

    Args:
        state: the weights by name of the whole model, or of the base model if the head is tied, also with the prefixes
            of wrappers; a bias that is missing in all blocks becomes zeros.
        config: our config, from `config_from_hf`.

    Returns:
        Our weights by name. Of a tied model with both a head and an embedding they have both, see `settle_head`.

    Raises:
        UserError: names or shapes do not fit the config; the message lists them in their names.
    """
    family = FAMILIES[family_of(config)]
    state = _with_base({name: value for name, value in state.items() if not BUFFERS.search(name)}, family)
    embedding = their_names(EMBEDDING, family)[0]
    missing = {embedding, HEAD} - state.keys()
    if config.tied and missing == {embedding}:
        state[embedding] = state.pop(HEAD)
    elif config.tied and not missing:
        config = dataclasses.replace(config, tied=False)
    elif not config.tied and len(missing) == 1:
        raise UserError(
            f"{missing.pop()} is missing, and the config says that the head is not the embedding: transformers would "
            f'begin with random numbers there. If they are one matrix, write "tie_word_embeddings": true into '
            f"config.json; else the file lacks a part of the model"
        )
    return join_weights(state, config, family)


def join_weights(state: dict[str, Tensor], config: GPTConfig, family: Family) -> dict[str, Tensor]:
    """Convert a family's weights to ours, as views where nothing is concatenated; the inverse of `split_weights`.

    Args:
        state: the weights by their full names; a bias that is missing in all blocks becomes zeros.
        config: our config.
        family: their family.

    Raises:
        UserError: names or shapes do not fit the config; the message lists them in their names.
    """
    check_sound(config, state)
    ours = parameters(empty_model(config))
    expected = split_weights(ours, config, family)
    kinds = {re.sub(r"\d+", "{}", name) for name in state}
    for name, parameter in expected.items():
        if name.endswith(".bias") and re.sub(r"\d+", "{}", name) not in kinds:
            state[name] = torch.zeros_like(parameter, device="cpu")
    check_shapes(state, expected)
    result = {}
    for name in ours:
        parts = [state[part] for part in their_names(name, family)]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        result[name] = value.T if family is GPT2 and CONV1D.search(name) else value
    return result


def split_weights(state: dict[str, Tensor], config: GPTConfig, family: Family) -> dict[str, Tensor]:
    """Convert our weights to a family's, where both sides have the same parameters; contiguous."""
    result = {}
    for name in parameters(empty_model(config)):
        value = state[name].T if family is GPT2 and CONV1D.search(name) else state[name]
        names = their_names(name, family)
        rows = config.stacked[name.split(".")[-2]] if len(names) > 1 else [len(value)]
        for part, piece in zip(names, value.split(rows), strict=True):
            result[part] = piece.contiguous()
    return result


def _with_base(state: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Return weights by their full names: without the prefixes of wrappers, with that of the base model."""
    state = without_wrappers(state)
    known = {*their_names(EMBEDDING, family), HEAD}
    while state and not known & state.keys() and all(name.startswith("model.") for name in state):
        state = rename(state, lambda name: name.removeprefix("model."))
    if any(name.startswith(family.base) for name in state):
        return state
    return rename(state, lambda name: name if name.startswith("lm_head.") else family.base + name)


def _as_typed(value: Any) -> str:
    """Return a value as the user types it on the command line."""
    return json.dumps(value).strip('"')


def their_names(name: str, family: Family) -> list[str]:
    """Return their names for our parameter: one, or several for a fused one."""
    module, kind = name.rsplit(".", 1)
    block = "".join(re.findall(r"^h\.(\d+)", module))
    base = "" if module == "lm_head" else family.base
    names = family.names[re.sub(r"^h\.\d+", "h.{}", module)].replace("{}", block)
    return [f"{base}{part}.{kind}" for part in names.split()]
