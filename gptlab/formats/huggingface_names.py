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
from gptlab.formats.huggingface_families import FAMILIES, NULLABLE, REQUIRED
from gptlab.formats.huggingface_family import Family
from gptlab.formats.huggingface_gpt import GPT_NEO
from gptlab.formats.huggingface_llama import LLAMA
from gptlab.formats.huggingface_rope import rope_to_hf, scaled_rope
from gptlab.formats.reading import rename, without_wrappers
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.weights import EMBEDDING, HEAD, check_shapes, check_sound, empty_model, parameters, same_numbers
from gptlab.system.errors import UserError

POSITIONS = "wpe.weight"
# Buffers, which are not weights: theirs, and the count of torch's AveragedModel.
BUFFERS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|\.inv_freq$|^n_averaged$")


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
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise UserError(f"a damaged config of a {hf['model_type']}: {str(error)[:200]}") from error


def _config(hf: dict[str, Any], family: Family) -> GPTConfig:
    hf = {new: hf[old] for old, new in family.old_names.items() if old in hf} | hf
    hf |= {new: hf[old] for old, new in family.aliases.items() if old in hf}
    given = {name: value for name, value in hf.items() if value is not None}
    fields: dict[str, Any] = {own: hf.get(name, family.defaults[name]) for name, own in family.fields.items()}
    may_be_null = {name for name, value in family.defaults.items() if value is None} | NULLABLE
    lacking = [name for name, own in family.fields.items() if fields[own] is None and name not in may_be_null]
    wrong = [f"{name} is missing" for name in lacking]
    wrong += [
        f"{name}={given[name]!s:.99} (it must be {'absent' if value is None else value})"
        for name, value in (family.required | REQUIRED).items()
        if name in given and given[name] != value
    ]
    if family.is_rotary:
        scaling, why_not = scaled_rope(hf, fields["block_size"], family)
        fields |= scaling
        wrong += why_not
    activation = next((own for own, names in family.activations.items() if fields["mlp"] in names), None)
    if activation is None:
        known = [name for names in family.activations.values() for name in names]
        wrong.append(f"activation {fields['mlp']!s:.99} (gptlab has {', '.join(known)})")
    wrong += family.amend(hf, fields) if not lacking else []
    if wrong:
        raise UserError(f"this {hf['model_type']} is none of gptlab's models: {'; '.join(wrong)}")
    bias = family.has_layernorm or bool(given.get("attention_bias") or given.get("mlp_bias"))
    fields |= {"bias": bias, "mlp": activation}
    if fields.get("head_dim") is not None and fields["head_dim"] * fields["n_head"] == fields["n_embd"]:
        fields["head_dim"] = None
    config = models.from_dict({"name": "gpt", **fields, **family.fixed})
    assert isinstance(config, GPTConfig)
    return config


def config_to_hf(config: GPTConfig) -> dict[str, Any]:
    """Their config.json for our config, without the ids of special tokens.

    Raises:
        UserError: `transformers` has no such model; the message lists all fields in the way.
    """
    name = family_of(config)
    family = FAMILIES[name]
    ours = dataclasses.asdict(config) | {"n_inner": config.hidden, "mlp": family.activations[config.mlp][0]}
    ours |= {"n_kv_head": config.kv_heads, "head_dim": config.head_size, "attn_dropout": config.drop_rates[1]}
    result: dict[str, Any] = {"architectures": [family.architecture], "model_type": name, "dtype": "float32"}
    result |= {field: ours[own] for field, own in family.fields.items()} | family.more(config)
    return result | (rope_to_hf(config) if family.is_rotary else {})


def family_of(config: GPTConfig) -> str:
    """Return the `model_type` that can express a config.

    Raises:
        UserError: there is none; the message lists the fields in which the nearest one differs.
    """
    written = {name: family for name, family in FAMILIES.items() if family.written}
    name = min(written, key=lambda name: len(misfits(config, written[name])))
    if wrong := misfits(config, FAMILIES[name]):
        raise UserError(
            f"transformers has no model of this shape; what parts it from {FAMILIES[name].architecture}: "
            f"{', '.join(wrong)}"
        )
    return name


def misfits(config: GPTConfig, family: Family) -> list[str]:
    """Return the fields of a config that a family cannot express, as the user types them, and what they must be."""
    fields = differences(config, family.fixed)
    if config.mlp not in family.activations:
        fields.append(f"model.mlp={config.mlp} (not {' or '.join(family.activations)})")
    if family is LLAMA and config.n_embd % config.n_head:  # which transformers refuses, whatever head_dim is
        fields.append(f"model.n_embd={config.n_embd} (not a multiple of model.n_head={config.n_head})")
    return fields + (["model.attention=none"] if not config.has_attention else [])


def differences(config: GPTConfig, fixed: dict[str, Any]) -> list[str]:
    """Return in words in which fields a config differs from the values that another program has."""
    ours = dataclasses.asdict(config) | {"qkv_bias": config.has_qkv_bias}
    ours["n_kv_head"] = None if config.kv_heads == config.n_head else config.n_kv_head
    ours["head_dim"] = None if config.attn_width == config.n_embd else config.head_dim
    return [
        f"model.{name}={_as_typed(ours[name])} (not {_as_typed(must)})"
        for name, must in fixed.items()
        if ours[name] != must
    ]


def weights_to_hf(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Convert our weights to theirs: contiguous, sharing memory where nothing is transposed, without a tied head.

    Args:
        state: our weights by name.
        config: the model's config.

    Raises:
        UserError: `transformers` has no such model.
    """
    family = FAMILIES[family_of(config)]
    if "norm_weight" not in (*family.fixed, *family.fields.values()):
        config = dataclasses.replace(config, norm_weight=True)
    whole = dataclasses.replace(config, parallel_norms=config.parallel)
    if "bias" not in family.fixed:
        bias = family.has_layernorm or config.bias or config.has_qkv_bias
        whole = dataclasses.replace(whole, bias=bias, qkv_bias=None)
    converted = split_weights(with_all_of(state, whole), whole, family)
    return {re.sub(r"^lm_head\.", f"{family.head}.", name): value for name, value in converted.items()}


def with_all_of(state: dict[str, Tensor], whole: GPTConfig) -> dict[str, Tensor]:
    """Return the weights with those that only `whole` has: biases of zeros, scales of norms of ones, second norms."""
    for name, parameter in parameters(empty_model(whole)).items():
        if name not in state:
            fill = torch.zeros_like if name.endswith(".bias") else torch.ones_like
            same = state.get(name.replace(".ln_2.", ".ln_1.")) if whole.parallel else None  # one norm is two equal ones
            new = fill(parameter, device=state["wte.weight"].device) if same is None else same.clone()
            state = state | {name: new}
    return state


def weights_from_hf(state: dict[str, Tensor], config: GPTConfig, hf: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Convert their weights to ours, as views where nothing is concatenated.

    Args:
        state: the weights by name of the whole model, or of the base model if the head is tied, also with the prefixes
            of wrappers; a bias that is missing in all blocks becomes zeros.
        config: our config, from `config_from_hf`.
        hf: their config.json; None: the weights are of the family as which a model of this config leaves.

    Returns:
        Our weights by name. Of a tied model with both a head and an embedding they have both, see `settle_head`.

    Raises:
        UserError: names or shapes do not fit the config; the message lists them in their names.
    """
    family = FAMILIES[family_of(config) if hf is None else str(hf["model_type"])]
    state = _with_base({name: value for name, value in state.items() if not BUFFERS.search(name)}, family)
    check_sound(config, state)
    positions = config.block_size
    if family is GPT_NEO and hf is not None:  # whose config may say less than the file has
        field = "max_position_embeddings"
        whole = models.from_dict(models.to_dict(config) | {"block_size": hf.get(field, family.defaults[field])})
        assert isinstance(whole, GPTConfig)
        config = whole
    result = join_weights(state, _settled(state, config, family), family)
    if POSITIONS in result:
        result[POSITIONS] = result[POSITIONS][:positions]
    return result


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
    zeros = {name for name in expected if name.endswith(".bias") and re.sub(r"\d+", "{}", name) not in kinds}
    check_shapes(state | {name: expected[name] for name in zeros}, expected)
    state |= {name: torch.zeros_like(expected[name], device="cpu") for name in zeros}
    result = {}
    for name in ours:
        parts = [state[part] for part in their_names(name, family)]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        order = family.row_order(name.rpartition(".")[0], config)
        result[name] = family.to_ours(name, value if order is None else value[order], config)
    return result


def _settled(state: dict[str, Tensor], config: GPTConfig, family: Family) -> GPTConfig:
    """Return the config of a model that has both an embedding and a head, or one matrix, as their file has.

    Raises:
        UserError: see `weights_from_hf`.
    """
    embedding = their_names(EMBEDDING, family)[0]
    missing = {embedding, HEAD} - state.keys()
    if config.tied and missing == {embedding}:
        state[embedding] = state.pop(HEAD)
    elif config.tied and not missing:
        if family.embedding_is_scaled and same_numbers(state[embedding], state[HEAD]):
            del state[HEAD]
        else:
            return dataclasses.replace(config, tied=False)
    elif not config.tied and len(missing) == 1:
        raise UserError(
            f"{missing.pop()} is missing, and the config says that the head is not the embedding: transformers would "
            f'begin with random numbers there. If they are one matrix, write "tie_word_embeddings": true into '
            f"config.json; else the file lacks a part of the model"
        )
    return config


def split_weights(state: dict[str, Tensor], config: GPTConfig, family: Family) -> dict[str, Tensor]:
    """Convert our weights to a family's, where both sides have the same parameters; of empty ones only the shapes."""
    result = {}
    for name in parameters(empty_model(config)):
        value, names = family.to_theirs(name, state[name], config), their_names(name, family)
        order = None if value.is_meta else family.row_order(name.rpartition(".")[0], config)
        value = value if order is None else value[order.argsort()]
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
    state = rename(state, lambda name: re.sub(rf"^{family.head}\.", "lm_head.", name))
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
