"""The models by name, and the interface that they share.

A model is an `nn.Module` with
* a config dataclass whose first field is `vocab_size`, kept as `model.config`;
* `forward(idx)`: idx (B, T) int64 with T <= block_size -> logits (B, T, V), and nothing else; it is
  `head(features(idx))`, so that generation can ask for the logits of the last position alone;
* `num_parameters()` and `flops_per_token()`.
A `HeadedGPT` is a GPT with a head for another task: its config is a `HeadedConfig`, and `forward` returns scores.
Models know nothing of data, optimizers, sampling, Lightning or Hydra.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import nn

from gptlab.models.bigram import Bigram, BigramConfig
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.heads import HeadConfig, HeadedConfig, HeadedGPT, language_model
from gptlab.system.errors import UserError, did_you_mean

Model = GPT | Bigram
Network = Model | HeadedGPT
"""What a run may train."""
ModelConfig = GPTConfig | BigramConfig

LARGEST_NUMBER = 1 << 24  # in a config: no model has more tokens, positions or anything else
FIELD_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
CONFIGS: dict[str, type[GPTConfig] | type[BigramConfig]] = {"gpt": GPTConfig, "bigram": BigramConfig}


def build(config: ModelConfig) -> Model:
    """Return a freshly initialised model; its random numbers come from torch's generator."""
    return GPT(config) if isinstance(config, GPTConfig) else Bigram(config)


def matrices(model: Model | HeadedGPT) -> dict[nn.Parameter, tuple[int, ...]]:
    """Map each trained matrix of the model's blocks to the row counts of the projections stacked in it."""
    gpt = language_model(model)
    if not isinstance(gpt, GPT):
        return {}
    return {
        each.weight: gpt.config.stacked.get(name.split(".")[-1], (each.out_features,))  # type: ignore[misc]
        for name, each in gpt.h.named_modules()
        if isinstance(each, nn.Linear) and each.weight.requires_grad
    }


def config_class(name: object) -> type[GPTConfig] | type[BigramConfig]:
    """Return the config class for a model's name.

    Raises:
        UserError: there is no such model.
    """
    if not isinstance(name, str) or name not in CONFIGS:
        raise UserError(f"model.name={name!s:.99}: no such model; {did_you_mean(f'{name!s:.99}', CONFIGS)}")
    return CONFIGS[name]


def to_dict(config: ModelConfig | HeadedConfig) -> dict[str, Any]:
    """Return name and config as a plain dict, for a checkpoint."""
    if isinstance(config, HeadedConfig):
        head = {"kind": config.head.kind, "labels": list(config.head.labels), "position": config.head.position}
        return to_dict(config.gpt) | {"head": head}
    name = next(name for name, cls in CONFIGS.items() if type(config) is cls)
    return {"name": name, **dataclasses.asdict(config)}


def from_dict(state: dict[str, Any]) -> ModelConfig:
    """Return the config that `to_dict` described.

    Raises:
        UserError: the model or one of its fields is unknown, or a value has the wrong type or is out of range.
    """
    if not isinstance(state, dict):
        raise UserError(f"a model's config is no {type(state).__name__}")
    fields = dict(state)
    cls = config_class(fields.pop("name", None))
    for field in dataclasses.fields(cls):
        kind, _, optional = str(field.type).partition(" | ")
        value = fields.get(field.name, field.default)
        if value is dataclasses.MISSING or (value is None and optional):
            continue
        wrong = not isinstance(value, FIELD_TYPES[kind]) or (isinstance(value, bool) and kind != "bool")
        if wrong or (isinstance(value, str) and len(value) > 99):
            raise UserError(f"model.{field.name}={value!r:.99}: must be of type {kind}")
        if isinstance(value, int | float) and not (
            abs(value) <= LARGEST_NUMBER or (kind == "float" and math.isfinite(value))
        ):
            raise UserError(f"model.{field.name}={value:g}: must be at most {LARGEST_NUMBER:,}")
    try:
        config = cls(**fields)
    except TypeError as error:
        raise UserError(f"this version's {cls.__name__} does not fit: {str(error)[:200]}") from error
    if isinstance(config, GPTConfig) and config.attn_width > LARGEST_NUMBER:
        raise UserError(
            f"model.head_dim={config.head_size}: {config.n_head:,} heads of this size are wider than {LARGEST_NUMBER:,}"
        )
    return config


def headed_from_dict(state: dict[str, Any]) -> HeadedConfig:
    """Return the config of a GPT with a head that `to_dict` described.

    Raises:
        UserError: as for `from_dict`; or there is no head, or it is none of ours.
    """
    if not isinstance(state, dict) or not isinstance(state.get("head"), dict):
        raise UserError("this model has no head for another task: it is a language model")
    head = state["head"]
    fields = {field.name for field in dataclasses.fields(HeadConfig)}
    if head.keys() != fields:  # no field is guessed
        raise UserError(f"the head has {', '.join(map(str, head)):.99}; this version's has {', '.join(sorted(fields))}")
    labels = head["labels"]
    if (
        not isinstance(labels, list)
        or len(labels) > LARGEST_NUMBER
        or not all(isinstance(each, str) for each in labels)
    ):
        raise UserError("head.labels: must be a list of names")
    gpt = from_dict({name: value for name, value in state.items() if name != "head"})
    if not isinstance(gpt, GPTConfig):
        raise UserError(f"model.name={state.get('name')!s:.99}: heads are for a GPT")
    return HeadedConfig(gpt, HeadConfig(head["kind"], tuple(labels), head["position"]))
