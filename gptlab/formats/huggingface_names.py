"""Converts weights between gptlab and the model families of `transformers`: GPT-2, Llama and its kin.

Import and export share the tables of `huggingface_families`. Parameters that only one side has are filled in where that
does not change the function: a missing bias with zeros, a norm's scale with ones.
In this module, "our" names are gptlab's and "their" names are those of `transformers`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from gptlab import models
from gptlab.formats.huggingface_config import BUFFERS, family_of, joined, their_names, with_base
from gptlab.formats.huggingface_families import FAMILIES
from gptlab.formats.huggingface_family import Family
from gptlab.formats.huggingface_gpt import GPT_NEO
from gptlab.models.arrays import EMBEDDING, HEAD
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.weights import check_shapes, check_sound, empty_model, parameters, same_numbers
from gptlab.system.errors import UserError

POSITIONS = "wpe.weight"


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
    state = with_base({name: value for name, value in state.items() if not BUFFERS.search(name)}, family)
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
    return {name: joined(name, state, config, family, torch.cat) for name in ours}


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
