"""Converts configs and names between gptlab and the model families of `transformers`: GPT-2, Llama and its kin.

In this module, "our" names are gptlab's and "their" names are those of `transformers`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

from gptlab import models
from gptlab.formats.huggingface_families import FAMILIES, NULLABLE, REQUIRED
from gptlab.formats.huggingface_family import Family
from gptlab.formats.huggingface_llama import LLAMA
from gptlab.formats.huggingface_rope import rope_to_hf, scaled_rope
from gptlab.formats.reading import AnyWeight, rename, without_wrappers
from gptlab.models.arrays import EMBEDDING, HEAD
from gptlab.models.gpt_config import GPTConfig
from gptlab.system.errors import UserError

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


def with_base(state: dict[str, AnyWeight], family: Family) -> dict[str, AnyWeight]:
    """Return weights by their full names: without the prefixes of wrappers, with that of the base model."""
    state = without_wrappers(state)
    known = {*their_names(EMBEDDING, family), HEAD}
    while state and not known & state.keys() and all(name.startswith("model.") for name in state):
        state = rename(state, lambda name: name.removeprefix("model."))
    state = rename(state, lambda name: re.sub(rf"^{family.head}\.", "lm_head.", name))
    if any(name.startswith(family.base) for name in state):
        return state
    return rename(state, lambda name: name if name.startswith("lm_head.") else family.base + name)


def joined(
    name: str,
    state: dict[str, AnyWeight],
    config: GPTConfig,
    family: Family,
    concatenate: Callable[[list[AnyWeight]], AnyWeight],
) -> AnyWeight:
    """Return our weight of theirs, a view where nothing is concatenated.

    Args:
        state: the weights by their full names.
        concatenate: of torch or of numpy, as the weights are.
    """
    parts = [state[part] for part in their_names(name, family)]
    value: Any = concatenate(parts) if len(parts) > 1 else parts[0]
    order = family.row_order(name.rpartition(".")[0], config)
    found: AnyWeight = family.to_ours(name, value if order is None else value[order], config)
    return found
