"""The model families of `transformers` with RMSNorm and rotary positions: Llama and its kin.

In this module, "our" names are gptlab's and "their" names are those of `transformers`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from gptlab.formats.huggingface_family import FIXED, Family, Weight, nothing_more
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.packed import Array

LAYER = "layers.{}."


def full_layers(hf: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    """Refuse layers with a sliding window."""
    kinds = _kinds_of_attention(hf)
    return [] if kinds in ([], ["full_attention"]) else [_of_kinds(kinds, "full_attention")]


def qwen_layers(hf: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    """Refuse layers with a sliding window: if it is used, those from max_window_layers on have one."""
    if hf.get("layer_types") or not hf.get("use_sliding_window") or not hf.get("sliding_window", 4096):
        return full_layers(hf, fields)
    layers, full = int(fields["n_layer"]), int(hf.get("max_window_layers", 28))
    kinds = ["full_attention"] * (full > 0) + ["sliding_attention"] * (full < layers)
    return [] if kinds == ["full_attention"] else [_of_kinds(kinds, "full_attention")]


def mistral_layers(hf: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    """Read whether all of Mistral's layers have a sliding window, or none has."""
    kinds = _kinds_of_attention(hf)
    if kinds == ["full_attention"]:
        fields["window"] = None
    return [] if len(kinds) < 2 else [_of_kinds(kinds, "the same")]


def _kinds_of_attention(hf: dict[str, Any]) -> list[str]:
    """Return the distinct kinds of attention in their layers, sorted; [] if the config does not speak of them."""
    return sorted(set(map(str, hf.get("layer_types") or ())))


def _of_kinds(kinds: list[str], wanted: str) -> str:
    return f"layers of {' and '.join(kinds):.99} (all must have {wanted})"


def llama_biases(config: GPTConfig) -> dict[str, Any]:
    bias = config.bias or config.has_qkv_bias
    return {"attention_bias": bias, "mlp_bias": bias}


LLAMA = Family(
    architecture="LlamaForCausalLM",
    base="model.",
    names={
        "wte": "embed_tokens",
        "h.{}.ln_1": LAYER + "input_layernorm",
        "h.{}.attn.c_attn": " ".join(f"{LAYER}self_attn.{x}_proj" for x in "qkv"),
        "h.{}.attn.c_proj": LAYER + "self_attn.o_proj",
        "h.{}.ln_2": LAYER + "post_attention_layernorm",
        "h.{}.mlp.c_fc": f"{LAYER}mlp.gate_proj {LAYER}mlp.up_proj",
        "h.{}.mlp.c_proj": LAYER + "mlp.down_proj",
        "ln_f": "norm",
        "lm_head": "lm_head",
    },
    fields={
        "vocab_size": "vocab_size",
        "max_position_embeddings": "block_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head",
        "hidden_size": "n_embd",
        "head_dim": "head_dim",
        "intermediate_size": "n_inner",
        "hidden_act": "mlp",
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tied",
    },
    defaults={
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_size": 4096,
        "head_dim": None,
        "intermediate_size": 11008,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    activations={"swiglu": ("silu", "swish"), "geglu": ("gelu_new", "gelu_pytorch_tanh")},
    fixed=FIXED | {"norm": "rmsnorm", "pos": "rope", "attn_scale": True, "window": None},
    amend=full_layers,
    more=llama_biases,
)
MISTRAL = dataclasses.replace(
    LLAMA,
    architecture="MistralForCausalLM",
    fields=LLAMA.fields | {"sliding_window": "window"},
    defaults=LLAMA.defaults
    | {"max_position_embeddings": 4096 * 32, "num_key_value_heads": 8, "intermediate_size": 14336}
    | {"sliding_window": 4096},
    fixed={k: v for k, v in LLAMA.fixed.items() if k != "window"} | {"bias": False, "qkv_bias": False},
    amend=mistral_layers,
    more=nothing_more,
)
QWEN2 = dataclasses.replace(
    LLAMA,
    architecture="Qwen2ForCausalLM",
    defaults=LLAMA.defaults
    | {"vocab_size": 151936, "max_position_embeddings": 32768, "num_key_value_heads": 32, "intermediate_size": 22016},
    fixed=LLAMA.fixed | {"bias": False, "qkv_bias": True},
    amend=qwen_layers,
    more=nothing_more,
)
QWEN3 = dataclasses.replace(
    QWEN2,
    architecture="Qwen3ForCausalLM",
    defaults=QWEN2.defaults | {"head_dim": 128},
    names=LLAMA.names | {f"h.{{}}.attn.{x}_norm": f"{LAYER}self_attn.{x}_norm" for x in "qk"},
    fixed=LLAMA.fixed | {"bias": False, "qkv_bias": False, "qk_norm": True},
    required={"attention_bias": False},
)


def gemma_to_ours(name: str, value: Weight, config: GPTConfig) -> Weight:
    """Multiply the embedding by sqrt(C), as Gemma does in each pass; a head tied to it gets that much less to read."""
    import torch

    wide, root = torch.promote_types(value.dtype, torch.float32), math.sqrt(config.n_embd)
    if name == "wte.weight":
        return value.to(wide) * root
    if ".ln_" not in f".{name}":
        return value
    scale = 1 + value.to(wide)
    return scale / root if config.tied and name == "ln_f.weight" else scale


GEMMA = dataclasses.replace(
    LLAMA,
    architecture="GemmaForCausalLM",
    defaults={
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_size": 3072,
        "head_dim": 256,
        "intermediate_size": 24576,
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    activations={"swiglu": ("silu", "swish"), "geglu": ("gelu_pytorch_tanh", "gelu_new", "gelu")},
    required={"use_bidirectional_attention": False},
    to_ours=gemma_to_ours,
    embedding_is_scaled=True,
    written=False,
)


def halves_swapped(layer: str, config: GPTConfig) -> Array | None:
    """Return NanoChat's order of rows: its queries and keys turn the other way round, as if their halves were swapped.

    Values stay as they are.
    """
    if not layer.endswith(".c_attn"):
        return None
    rows = np.arange(sum(config.stacked["c_attn"])).reshape(-1, 2, config.head_size // 2)
    turned = config.n_head + config.kv_heads
    return np.concatenate((rows[:turned, ::-1], rows[turned:])).flatten()


NANOCHAT = dataclasses.replace(
    LLAMA,
    architecture="NanoChatForCausalLM",
    names={
        "wte": "embed_tokens",
        "h.{}.attn.c_attn": LLAMA.names["h.{}.attn.c_attn"],
        "h.{}.attn.c_proj": LLAMA.names["h.{}.attn.c_proj"],
        "h.{}.mlp.c_fc": LAYER + "mlp.fc1",
        "h.{}.mlp.c_proj": LAYER + "mlp.fc2",
        "lm_head": "lm_head",
    },
    fields=LLAMA.fields | {"final_logit_softcapping": "logit_softcap"},
    defaults={
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_key_value_heads": None,
        "hidden_size": 768,
        "head_dim": None,
        "intermediate_size": 8192,
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "final_logit_softcapping": 15.0,
    },
    activations={
        "relu2": ("relu2",),
        "relu": ("relu",),
        "gelu": ("gelu_new", "gelu_pytorch_tanh"),
        "gelu_exact": ("gelu",),
    },
    fixed={k: v for k, v in LLAMA.fixed.items() if k != "logit_softcap"}
    | {"norm_weight": False, "embed_norm": True, "qk_norm": True, "bias": False, "qkv_bias": False},
    required={"attention_bias": False},
    more=nothing_more,
    row_order=halves_swapped,
)
