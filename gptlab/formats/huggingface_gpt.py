"""The model families of `transformers` with LayerNorm: GPT-2, GPT-Neo, GPT-NeoX and OPT.

In this module, "our" names are gptlab's and "their" names are those of `transformers`.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import Any

import numpy as np

from gptlab.formats.huggingface_family import FIXED, Family, Weight, nothing_more, unchanged
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.packed import Array

log = logging.getLogger(__name__)

CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
OFFSET = 2  # OPT's first position is the third row of its table
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "gelu": ("gelu_new", "gelu_pytorch_tanh"),
    "gelu_exact": ("gelu",),
    "relu": ("relu",),
    "relu2": ("relu2",),
}


def gpt2_dropout(hf: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    if hf.get("attn_pdrop") != fields["dropout"]:
        fields["attn_dropout"] = hf.get("attn_pdrop")
    return []


def conv1d(name: str, value: Weight, config: GPTConfig) -> Weight:
    """Transpose a matrix of GPT-2, which is (in, out), where nn.Linear has (out, in)."""
    return value.T if CONV1D.search(name) else value


def gpt2_fields(config: GPTConfig) -> dict[str, Any]:
    embeddings, attention = config.drop_rates[:2]
    return {"embd_pdrop": embeddings, "attn_pdrop": attention, "n_ctx": config.block_size}  # the last for llama.cpp


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
    activations=ACTIVATIONS,
    fixed=FIXED | {"norm": "layernorm", "pos": "learned", "n_kv_head": None, "head_dim": None, "window": None},
    aliases={
        "max_position_embeddings": "n_positions",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
    },
    old_names={"n_ctx": "n_positions"},
    required={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    amend=gpt2_dropout,
    more=gpt2_fields,
    to_ours=conv1d,
    to_theirs=conv1d,
)


def neo_windows(hf: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    """Read GPT-Neo's layers, of which some see all positions and others only the last ones.

    Where both are there, the model is cut to as many positions as all layers see.
    """
    given = hf.get("attention_types") or [[["global", "local"], 12]]
    counts = [len(names) * count for names, count in given]
    kinds = {kind for names, _ in given for kind in names}
    layers, window = fields["n_layer"], hf.get("window_size", 256)
    if sum(counts) != layers or min(counts) < 0 or not kinds <= {"global", "local"}:
        return [f"attention_types={given!s:.99} (it must say global or local of each of {layers!s:.99} layers)"]
    if "local" not in kinds or window >= fields["block_size"]:
        return []
    if "global" not in kinds:
        fields["window"] = window
        return []
    log.warning(
        "some of its layers see all positions, others the last %d, which gptlab has not: it is cut to "
        "model.block_size=%d, where they are the same",
        window,
        window,
    )
    fields["block_size"] = window
    return []


GPT_NEO = dataclasses.replace(
    GPT2,
    architecture="GPTNeoForCausalLM",
    names=GPT2.names
    | {
        "h.{}.attn.c_attn": " ".join(f"h.{{}}.attn.attention.{x}_proj" for x in "qkv"),
        "h.{}.attn.c_proj": "h.{}.attn.attention.out_proj",
    },
    fields={
        "vocab_size": "vocab_size",
        "max_position_embeddings": "block_size",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "activation_function": "mlp",
        "resid_dropout": "dropout",
        "attention_dropout": "attn_dropout",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tied",
    },
    defaults={
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "num_layers": 24,
        "num_heads": 16,
        "hidden_size": 2048,
        "intermediate_size": None,
        "activation_function": "gelu_new",
        "resid_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    fixed={k: v for k, v in GPT2.fixed.items() if k != "window"} | {"attn_scale": False, "qkv_bias": False},
    aliases={"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    old_names={},
    required={},
    amend=neo_windows,
    more=nothing_more,
    to_ours=unchanged,
    to_theirs=unchanged,
    written=False,
)


def opt_fields(hf: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    before, width, narrow = hf.get("do_layer_norm_before", True), fields["n_embd"], hf.get("word_embed_proj_dim")
    fields["norm_place"] = "pre" if before else "post"
    wrong = [] if isinstance(before, bool) else [f"do_layer_norm_before={before!s:.99} (it must be true or false)"]
    if narrow not in (None, width):
        wrong.append(f"word_embed_proj_dim={narrow!s:.99} (it must be hidden_size={width!s:.99})")
    return wrong


def opt_to_ours(name: str, value: Weight, config: GPTConfig) -> Weight:
    return value[OFFSET:] if name == "wpe.weight" else value


def opt_to_theirs(name: str, value: Weight, config: GPTConfig) -> Weight:
    if name != "wpe.weight":
        return value
    import torch

    return torch.cat((torch.zeros_like(value[:1]).expand(OFFSET, -1), value))


OPT_LAYER = "decoder.layers.{}."
OPT = Family(
    architecture="OPTForCausalLM",
    base="model.",
    names={
        "wte": "decoder.embed_tokens",
        "wpe": "decoder.embed_positions",
        "h.{}.ln_1": OPT_LAYER + "self_attn_layer_norm",
        "h.{}.attn.c_attn": " ".join(f"{OPT_LAYER}self_attn.{x}_proj" for x in "qkv"),
        "h.{}.attn.c_proj": OPT_LAYER + "self_attn.out_proj",
        "h.{}.ln_2": OPT_LAYER + "final_layer_norm",
        "h.{}.mlp.c_fc": OPT_LAYER + "fc1",
        "h.{}.mlp.c_proj": OPT_LAYER + "fc2",
        "ln_f": "decoder.final_layer_norm",
        "lm_head": "lm_head",
    },
    fields={
        "vocab_size": "vocab_size",
        "max_position_embeddings": "block_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "ffn_dim": "n_inner",
        "activation_function": "mlp",
        "dropout": "dropout",
        "attention_dropout": "attn_dropout",
        "layer_norm_elementwise_affine": "norm_weight",
        "tie_word_embeddings": "tied",
    },
    defaults={
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_size": 768,
        "ffn_dim": 3072,
        "activation_function": "relu",
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
    },
    activations=ACTIVATIONS,
    fixed={k: v for k, v in GPT2.fixed.items() if k not in ("norm_place", "norm_weight")}
    | {"norm_eps": 1e-5, "attn_scale": True},
    required={"_remove_final_layer_norm": False},
    amend=opt_fields,
    more=lambda config: {"do_layer_norm_before": config.norm_place == "pre", "word_embed_proj_dim": config.n_embd},
    to_ours=opt_to_ours,
    to_theirs=opt_to_theirs,
)


def neox_norms(hf: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    fields["parallel_norms"] = fields["parallel"]
    return []


def by_head(layer: str, config: GPTConfig) -> Array | None:
    """Return GPT-NeoX's order of rows: each head's query, key and value, where we have all queries, then all keys."""
    if not layer.endswith(".c_attn"):
        return None
    rows = np.arange(3 * config.n_embd).reshape(config.n_head, 3, config.head_size)
    return rows.swapaxes(0, 1).flatten()


def neox_fields(config: GPTConfig) -> dict[str, Any]:
    return {"attention_bias": True, "rotary_pct": config.rope_fraction, "rotary_emb_base": config.rope_base}


NEOX_LAYER = "layers.{}."
GPT_NEOX = Family(
    architecture="GPTNeoXForCausalLM",
    base="gpt_neox.",
    names={
        "wte": "embed_in",
        "h.{}.ln_1": NEOX_LAYER + "input_layernorm",
        "h.{}.attn.c_attn": NEOX_LAYER + "attention.query_key_value",
        "h.{}.attn.c_proj": NEOX_LAYER + "attention.dense",
        "h.{}.ln_2": NEOX_LAYER + "post_attention_layernorm",
        "h.{}.mlp.c_fc": NEOX_LAYER + "mlp.dense_h_to_4h",
        "h.{}.mlp.c_proj": NEOX_LAYER + "mlp.dense_4h_to_h",
        "ln_f": "final_layer_norm",
        "lm_head": "lm_head",
    },
    fields={
        "vocab_size": "vocab_size",
        "max_position_embeddings": "block_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "hidden_act": "mlp",
        "hidden_dropout": "dropout",
        "attention_dropout": "attn_dropout",
        "layer_norm_eps": "norm_eps",
        "use_parallel_residual": "parallel",
        "tie_word_embeddings": "tied",
    },
    defaults={
        "vocab_size": 50432,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    },
    activations=ACTIVATIONS,
    fixed={k: v for k, v in FIXED.items() if k not in ("parallel", "parallel_norms", "rope_fraction")}
    | {"norm": "layernorm", "pos": "rope", "n_kv_head": None, "head_dim": None, "window": None, "attn_scale": True},
    amend=neox_norms,
    more=neox_fields,
    row_order=by_head,
    beside_rope={"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
    rope_defaults={"partial_rotary_factor": 0.25},
    head="embed_out",
)
