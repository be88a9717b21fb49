"""The model families of `transformers` that gptlab reads and writes, by their `model_type`."""

from __future__ import annotations

from typing import Any

from gptlab.formats.huggingface_family import Family
from gptlab.formats.huggingface_gpt import GPT2, GPT_NEO, GPT_NEOX, OPT
from gptlab.formats.huggingface_llama import GEMMA, LLAMA, MISTRAL, NANOCHAT, QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
    **{"gpt2": GPT2, "qwen2": QWEN2, "llama": LLAMA, "mistral": MISTRAL, "nanochat": NANOCHAT, "qwen3": QWEN3},
    **{"gpt_neox": GPT_NEOX, "opt": OPT, "gpt_neo": GPT_NEO, "gemma": GEMMA},
}
"""A model leaves as the first one that can express it."""

NULLABLE = {"num_key_value_heads", "head_dim", "sliding_window", "final_logit_softcapping", "attention_dropout"}
"""Their fields that may be null, besides those whose default it is."""

REQUIRED: dict[str, Any] = {"attention_multiplier": None, "quantization_config": None}
"""Fields of any config that change the function, and the only value (besides null) that gptlab can express."""
