"""Converts rotary positions between gptlab's keys and the fields of a `transformers` config.

In this module, "our" names are gptlab's and "their" names are those of `transformers`.
"""

from __future__ import annotations

import math
from typing import Any

from gptlab.formats.huggingface_family import Family
from gptlab.models.gpt_config import GPTConfig

ORIGINAL_SIZE = "original_max_position_embeddings"
SCALINGS: dict[str, dict[str, str]] = {  # their rope_type, and its fields to ours
    "default": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "low_freq_factor": "rope_low_freq_factor",
        "high_freq_factor": "rope_high_freq_factor",
        ORIGINAL_SIZE: "rope_original_size",
    },
    "yarn": {
        "factor": "rope_factor",
        "beta_slow": "rope_beta_slow",
        "beta_fast": "rope_beta_fast",
        "attention_factor": "rope_attention_factor",
        ORIGINAL_SIZE: "rope_original_size",
    },
}


def rope_parameters(hf: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return what their config says of rotary positions, which stands in a dict, beside it, or in both.

    As in transformers, rope_scaling, the older name of the dict, goes before rope_parameters.

    Raises:
        AttributeError, TypeError: it is no dict.
    """
    given = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    beside = {own: hf[name] for name, own in family.beside_rope.items() if hf.get(name) is not None}
    rope = family.rope_defaults | beside
    rope |= {name: value for name, value in given.items() if value is not None or name == "truncate"}
    if hf.get(ORIGINAL_SIZE) is not None:
        rope[ORIGINAL_SIZE] = hf[ORIGINAL_SIZE]
    return rope


def scaled_rope(hf: dict[str, Any], block_size: Any, family: Family) -> tuple[dict[str, Any], list[str]]:
    """Return our fields for the rotary positions of their config, and what of it gptlab cannot express."""
    rope = {ORIGINAL_SIZE: block_size} | rope_parameters(hf, family)
    fields: dict[str, Any] = {"rope_base": float(rope.get("rope_theta", 10_000.0))}
    kind, part = str(rope.get("rope_type", rope.get("type", "default"))), rope.get("partial_rotary_factor", 1.0)
    wrong = []
    if "rope_fraction" not in family.fixed:
        fields["rope_fraction"] = float(part)
    elif part != 1:
        wrong.append(f"partial_rotary_factor={part!s:.99} (it must be 1.0)")
    names = SCALINGS.get(kind)
    if names is None:
        return fields, [*wrong, f"rope_type={kind:.99} (gptlab has {', '.join(SCALINGS)})"]
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    if nested:
        return fields, [
            *wrong,
            f"rotary positions of their own in {', '.join(nested):.99} (all layers must have the same)",
        ]
    if kind == "yarn":
        rope |= _completed_yarn(rope)
        if not rope.get("truncate", True):
            wrong.append(f"truncate={rope['truncate']} (it must be True)")
    lacking = [name for name in names if name not in rope]
    if lacking:
        return fields, [*wrong, f"rope_type={kind} without {', '.join(lacking)}"]
    for name, own in names.items():
        is_whole = own == "rope_original_size" or rope[name] is None
        fields[own] = rope[name] if is_whole else float(rope[name])
    return fields | {"rope_scaling": None if kind == "default" else kind}, wrong


def _completed_yarn(rope: dict[str, Any]) -> dict[str, Any]:
    """Return what transformers takes for the optional fields of YaRN that are missing or null."""
    found: dict[str, Any] = {"beta_fast": rope.get("beta_fast") or 32, "beta_slow": rope.get("beta_slow") or 1}
    attention, all_dims = rope.get("mscale"), rope.get("mscale_all_dim")
    found["attention_factor"] = rope.get("attention_factor")
    if found["attention_factor"] is None and attention and all_dims and "factor" in rope:
        growth = 0.1 * math.log(max(rope["factor"], 1.0))
        found["attention_factor"] = (attention * growth + 1) / (all_dims * growth + 1)
    return found


def rope_to_hf(config: GPTConfig) -> dict[str, Any]:
    """Return their config's fields for our rotary positions, for transformers 5 and for older versions."""
    kind = config.rope_scaling or "default"
    given = {name: getattr(config, own) for name, own in SCALINGS[kind].items()}
    scaling = {"rope_type": kind} | {name: value for name, value in given.items() if value is not None}
    if config.rope_fraction < 1:
        scaling["partial_rotary_factor"] = config.rope_fraction
    fields = {"rope_parameters": scaling | {"rope_theta": config.rope_base}, "rope_theta": config.rope_base}
    return fields | ({} if config.rope_scaling is None else {"rope_scaling": scaling})
