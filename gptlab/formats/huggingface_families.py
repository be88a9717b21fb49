"""The model families of `transformers` that gptlab reads and writes: GPT-2, Llama and its kin.

Each has a table of module names and one of config fields. In this module, "our" names are gptlab's and "their" names
are those of `transformers`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


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


LAYER = "layers.{}."
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
    "logit_softcap": None,
}
GPT2 = Family(
    architecture="GPT2LMHeadModel",
    base="transformer.",
    names={
        "wte": "wte",
        "wpe": "wpe",
        "h.{}.ln_1": "h.{}.ln_1",
        "h.{}.attn.c_attn": "h.{}.attn.c_attn",
        "h.{}.attn.c_proj": "h.{}.attn.c_proj",
        "h.{}.ln_2": "h.{}.ln_2",
        "h.{}.mlp.c_fc": "h.{}.mlp.c_fc",
        "h.{}.mlp.c_proj": "h.{}.mlp.c_proj",
        "ln_f": "ln_f",
        "lm_head": "lm_head",
    },
    fields={
        "vocab_size": "vocab_size",
        "n_positions": "block_size",
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_embd": "n_embd",
        "n_inner": "n_inner",
        "activation_function": "mlp",
        "resid_pdrop": "dropout",
        "layer_norm_epsilon": "norm_eps",
        "scale_attn_weights": "attn_scale",
        "tie_word_embeddings": "tied",
    },
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
    activations={
        "gelu": ("gelu_new", "gelu_pytorch_tanh"),
        "gelu_exact": ("gelu",),
        "relu": ("relu",),
        "relu2": ("relu2",),
    },
    fixed=FIXED | {"norm": "layernorm", "pos": "learned", "n_kv_head": None, "head_dim": None, "window": None},
)
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
)
MISTRAL = dataclasses.replace(
    LLAMA,
    architecture="MistralForCausalLM",
    fields=LLAMA.fields | {"sliding_window": "window"},
    defaults=LLAMA.defaults
    | {"max_position_embeddings": 4096 * 32, "num_key_value_heads": 8, "intermediate_size": 14336}
    | {"sliding_window": 4096},
    fixed={k: v for k, v in LLAMA.fixed.items() if k != "window"} | {"bias": False, "qkv_bias": False},
)
QWEN2 = dataclasses.replace(
    LLAMA,
    architecture="Qwen2ForCausalLM",
    defaults=LLAMA.defaults
    | {"vocab_size": 151936, "max_position_embeddings": 32768, "num_key_value_heads": 32, "intermediate_size": 22016},
    fixed=LLAMA.fixed | {"bias": False, "qkv_bias": True},
)
QWEN3 = dataclasses.replace(
    QWEN2,
    architecture="Qwen3ForCausalLM",
    defaults=QWEN2.defaults | {"head_dim": 128},
    names=LLAMA.names | {f"h.{{}}.attn.{x}_norm": f"{LAYER}self_attn.{x}_norm" for x in "qk"},
    fixed=LLAMA.fixed | {"bias": False, "qkv_bias": False, "qk_norm": True},
)
FAMILIES = {"gpt2": GPT2, "qwen2": QWEN2, "llama": LLAMA, "mistral": MISTRAL, "qwen3": QWEN3}

NULLABLE = {"n_inner", "num_key_value_heads", "head_dim", "sliding_window"}
# Other names of GPT-2's fields: those that transformers prefers, and one that its older versions wrote as well.
ALIASES = {"max_position_embeddings": "n_positions", "num_hidden_layers": "n_layer"}
ALIASES |= {"num_attention_heads": "n_head", "hidden_size": "n_embd"}
OLD_ALIASES = {"n_ctx": "n_positions"}

# Their fields that change the function, and the only value (besides null) that gptlab can express.
REQUIRED_VALUES = {
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "partial_rotary_factor": 1.0,
    "attention_multiplier": None,
    "quantization_config": None,
}
