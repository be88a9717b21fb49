"""What a model family of `transformers` is: how its config and its weights are ours, in tables.

In this module, "our" names are gptlab's and "their" names are those of `transformers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gptlab.models.gpt_config import GPTConfig
from gptlab.models.packed import Array

Weight = Any
"""A tensor of torch, or an array of numpy."""

FIXED: dict[str, Any] = {
    "norm_place": "pre",
    "embed_norm": False,
    "head_bias": False,
    "mlp_proj": True,
    "attn_proj": True,
    "qk_norm": False,
    "residual": True,
    "conv": None,
    "parallel": False,
    "parallel_norms": False,
    "rope_fraction": 1.0,
    "logit_softcap": None,
}
"""The values of our fields that most of their configs cannot express."""


def none_wrong(hf: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    """Amend nothing; see `Family.amend`."""
    return []


def nothing_more(config: GPTConfig) -> dict[str, Any]:
    """Return no fields; see `Family.more`."""
    return {}


def unchanged(name: str, value: Weight, config: GPTConfig) -> Weight:
    """Return a parameter as it is; see `Family.to_ours`."""
    return value


@dataclass(frozen=True)
class Family:
    """A `model_type` of `transformers`."""

    architecture: str
    base: str
    """The prefix of every name except the head's; a model saved without its head lacks it."""
    names: dict[str, str]
    """Our module to theirs, or to several of theirs separated by spaces; {} is the number of the block."""
    fields: dict[str, str]
    """Their config field to ours."""
    defaults: dict[str, Any]
    """Their default values, for a config that lacks a field."""
    activations: dict[str, tuple[str, ...]]
    """Our activation to their names for it; the first one is written."""
    fixed: dict[str, Any]
    """The values of our fields that their config cannot express."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Other names of their fields, which go before these."""
    old_names: dict[str, str] = field(default_factory=dict)
    """Names that older versions wrote, after which these go."""
    required: dict[str, Any] = field(default_factory=dict)
    """Their fields that change the function, with the only value (besides null) that gptlab can express."""
    amend: Callable[[dict[str, Any], dict[str, Any]], list[str]] = none_wrong
    """Complete our fields by what their config says in other ways; returns what of it gptlab cannot express."""
    more: Callable[[GPTConfig], dict[str, Any]] = nothing_more
    """Return fields of their config that are not in `fields`."""
    row_order: Callable[[str, GPTConfig], Array | None] = lambda layer, config: None
    """For each row of our layer return which of theirs it is, (rows,) int64; None: they are in the same order.

    Where ours stacks several of theirs, none leaves its own part."""
    to_ours: Callable[[str, Weight, GPTConfig], Weight] = unchanged
    """Return our parameter for theirs, given by our name, once names and rows are ours."""
    to_theirs: Callable[[str, Weight, GPTConfig], Weight] = unchanged
    """Undo `to_ours`."""
    embedding_is_scaled: bool = False
    """Whether our embedding is a multiple of theirs."""
    beside_rope: dict[str, str] = field(
        default_factory=lambda: {name: name for name in ("rope_theta", "partial_rotary_factor")}
    )
    """Fields of the config that speak of rotary positions, to their names inside rope_parameters."""
    rope_defaults: dict[str, Any] = field(default_factory=dict)
    """What rope_parameters lacks is this."""
    head: str = "lm_head"
    """The head's module in files, which may have an older name than in the model."""
    written: bool = True
    """Whether our models leave as this family; one that does not is read only, and leaves as another."""

    @property
    def is_rotary(self) -> bool:
        return self.fixed["pos"] == "rope"

    @property
    def has_layernorm(self) -> bool:
        return self.fixed["norm"] == "layernorm"
