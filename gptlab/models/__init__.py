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
from typing import TYPE_CHECKING, Any

from gptlab.models.gpt_config import GPTConfig
from gptlab.models.other_configs import BigramConfig, HeadConfig, HeadedConfig
from gptlab.system.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from gptlab.models.bigram import Bigram as Bigram
    from gptlab.models.gpt import GPT as GPT
    from gptlab.models.heads import HeadedGPT as HeadedGPT
    from gptlab.models.networks import Model as Model
    from gptlab.models.networks import Network as Network
    from gptlab.models.networks import build as build
    from gptlab.models.networks import matrices as matrices

NETWORKS = ("GPT", "Bigram", "HeadedGPT", "Model", "Network", "build", "matrices")  # see `__getattr__`
ModelConfig = GPTConfig | BigramConfig

LARGEST_NUMBER = 1 << 24  # in a config: no model has more tokens, positions or anything else
FIELD_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
CONFIGS: dict[str, type[GPTConfig] | type[BigramConfig]] = {"gpt": GPTConfig, "bigram": BigramConfig}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is used: torch takes longer to import than all else that generating needs."""
    if name not in NETWORKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gptlab.models import networks

    return getattr(networks, name)


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
