"""Converts rotary positions between gptlab's keys and the fields of a `transformers` config.

In this module, "our" names are gptlab's and "their" names are those of `transformers`.
"""

from __future__ import annotations

from typing import Any

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
}


def rope_parameters(hf: dict[str, Any]) -> dict[str, Any]:
    """Return what their config says of rotary positions, which stands in a dict, beside it, or in both.

    As in transformers, rope_scaling, the older name of the dict, goes before rope_parameters.

    Raises:
        AttributeError, TypeError: it is no dict.
    """
    given = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    beside = {name: hf[name] for name in ("rope_theta", "partial_rotary_factor") if hf.get(name) is not None}
    rope = beside | {name: value for name, value in given.items() if value is not None}
    if hf.get(ORIGINAL_SIZE) is not None:
        rope[ORIGINAL_SIZE] = hf[ORIGINAL_SIZE]
    return rope


def scaled_rope(hf: dict[str, Any], block_size: Any) -> tuple[dict[str, Any], list[str]]:
    """Return our fields for the rotary positions of their config, and what of it gptlab cannot express."""
    rope = {ORIGINAL_SIZE: block_size} | rope_parameters(hf)
    fields: dict[str, Any] = {"rope_base": float(rope.get("rope_theta", 10_000.0))}
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    names = SCALINGS.get(kind)
    if names is None:
        return fields, [f"rope_type={kind:.99} (gptlab has {', '.join(SCALINGS)})"]
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    if nested:
        return fields, [f"rotary positions of their own in {', '.join(nested):.99} (all layers must have the same)"]
    lacking = [name for name in names if name not in rope]
    if lacking:
        return fields, [f"rope_type={kind} without {', '.join(lacking)}"]
    fields |= {own: rope[name] if own == "rope_original_size" else float(rope[name]) for name, own in names.items()}
    return fields | {"rope_scaling": None if kind == "default" else kind}, []


def rope_to_hf(config: GPTConfig) -> dict[str, Any]:
    """Return their config's fields for our rotary positions, for transformers 5 and for older versions."""
    kind = config.rope_scaling or "default"
    scaling = {"rope_type": kind} | {name: getattr(config, own) for name, own in SCALINGS[kind].items()}
    fields = {"rope_parameters": scaling | {"rope_theta": config.rope_base}, "rope_theta": config.rope_base}
    return fields | ({} if config.rope_scaling is None else {"rope_scaling": scaling})
