"""Converts configs and weights between gptlab and the model families of `transformers`: GPT-2, Llama and its kin.

Each family has a table of module names and one of config fields, which import and export share. Parameters that only
one side has are filled in where that does not change the function: a missing bias with zeros, a norm's scale with ones.
In this module, "our" names are gptlab's and "their" names are those of `transformers`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptlab import models
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.weights import check_shapes, check_sound, empty_model, parameters
from gptlab.system.errors import UserError


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
    """Their default values for the fields that a config may lack."""
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
    fixed=FIXED | {"norm": "layernorm", "pos": "learned", "n_kv_head": None, "window": None},
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
        "intermediate_size": "n_inner",
        "hidden_act": "mlp",
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tied",
    },
    defaults={
        "num_key_value_heads": None,
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
    defaults=LLAMA.defaults | {"sliding_window": 4096},
    fixed={k: v for k, v in LLAMA.fixed.items() if k != "window"} | {"bias": False, "qkv_bias": False},
)
QWEN2 = dataclasses.replace(
    LLAMA, architecture="Qwen2ForCausalLM", fixed=LLAMA.fixed | {"bias": False, "qkv_bias": True}
)
QWEN3 = dataclasses.replace(
    LLAMA,
    architecture="Qwen3ForCausalLM",
    names=LLAMA.names | {f"h.{{}}.attn.{x}_norm": f"{LAYER}self_attn.{x}_norm" for x in "qk"},
    fixed=LLAMA.fixed | {"bias": False, "qkv_bias": False, "qk_norm": True},
)
FAMILIES = {"gpt2": GPT2, "qwen2": QWEN2, "llama": LLAMA, "mistral": MISTRAL, "qwen3": QWEN3}

# Their fields that change the function, and the only value (besides null) that gptlab can express.
REQUIRED_VALUES = {
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "attention_multiplier": None,
    "quantization_config": None,
}
CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")  # (in, out) in GPT-2, where nn.Linear has (out, in)
BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|rotary_emb\.inv_freq$")  # their buffers, which are not weights


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
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"a damaged config of a {hf['model_type']}: {str(error)[:200]}") from error


def _config(hf: dict[str, Any], family: Family) -> GPTConfig:
    given = {name: value for name, value in hf.items() if value is not None}
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    given |= {name: rope[name] for name in ("partial_rotary_factor", "rope_theta") if name in rope}
    fields: dict[str, Any] = {own: hf.get(name, family.defaults.get(name)) for name, own in family.fields.items()}
    wrong = [f"{name} is missing" for name in family.fields if name not in given | family.defaults]
    wrong += [
        f"{name}={given[name]!s:.99} (it must be {'absent' if value is None else value})"
        for name, value in REQUIRED_VALUES.items()
        if name in given and given[name] != value
    ]
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        wrong.append(f"rope_type={kind!s:.99} (gptlab's rotary positions are not scaled)")
    if "head_dim" in given and float(given["head_dim"]) * float(fields["n_head"] or 0) != fields["n_embd"]:
        wrong.append(f"head_dim={given['head_dim']!s:.99} (it must be the width divided by the heads)")
    if not set(given.get("layer_types", ())) <= {"full_attention"}:
        wrong.append("layer_types (all layers must have full_attention)")
    activation = next((own for own, names in family.activations.items() if fields["mlp"] in names), None)
    if activation is None:
        known = [name for names in family.activations.values() for name in names]
        wrong.append(f"activation {fields['mlp']!s:.99} (gptlab has {', '.join(known)})")
    if wrong:
        raise UserError(f"this {hf['model_type']} is none of gptlab's models: {'; '.join(wrong)}")
    bias = family is GPT2 or bool(given.get("attention_bias") or given.get("mlp_bias"))
    fields |= {"bias": bias, "mlp": activation, "rope_base": float(given.get("rope_theta", 10_000.0))}
    if family is GPT2 and given.get("attn_pdrop") != fields["dropout"]:
        fields["attn_dropout"] = given.get("attn_pdrop")
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
    ours["n_kv_head"] = config.kv_heads
    result: dict[str, Any] = {"architectures": [family.architecture], "model_type": name, "dtype": "float32"}
    result |= {field: ours[own] for field, own in family.fields.items()}
    if family is GPT2:
        embeddings, attention = config.drop_rates[:2]
        return result | {"embd_pdrop": embeddings, "attn_pdrop": attention}
    if family is LLAMA:
        bias = config.bias or config.has_qkv_bias
        result |= {"attention_bias": bias, "mlp_bias": bias}
    rope = {"rope_type": "default", "rope_theta": config.rope_base}
    result |= {"rope_parameters": rope, "rope_theta": config.rope_base}  # for transformers 5 and for older versions
    return result | {"head_dim": config.n_embd // config.n_head}


def family_of(config: GPTConfig) -> str:
    """Return the `model_type` that can express a config.

    Raises:
        UserError: there is none; the message lists the fields in which the nearest one differs.
    """
    ours = dataclasses.asdict(config) | {"qkv_bias": config.has_qkv_bias}
    ours["n_kv_head"] = None if config.kv_heads == config.n_head else config.n_kv_head

    def wrong(family: Family) -> list[str]:
        fields = [
            f"model.{name}={_as_typed(ours[name])} (not {_as_typed(must)})"
            for name, must in family.fixed.items()
            if ours[name] != must
        ]
        if config.mlp not in family.activations:
            fields.append(f"model.mlp={config.mlp} (not {' or '.join(family.activations)})")
        return fields + (["model.attention=none"] if not config.has_attention else [])

    name = min(FAMILIES, key=lambda name: len(wrong(FAMILIES[name])))
    if wrong(FAMILIES[name]):
        raise UserError(
            f"transformers has no model of this shape; what parts it from {FAMILIES[name].architecture}: "
            f"{', '.join(wrong(FAMILIES[name]))}"
        )
    return name


def weights_to_hf(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Convert our weights to theirs: contiguous, sharing memory where nothing is transposed, without a tied head.

    Args:
        state: our weights by name.
        config: the model's config.

    Raises:
        UserError: `transformers` has no such model.
    """
    family = FAMILIES[family_of(config)]
    whole = dataclasses.replace(config, norm_weight=True)
    if "bias" not in family.fixed:
        whole = dataclasses.replace(whole, bias=family is GPT2 or config.bias or config.has_qkv_bias, qkv_bias=None)
    lacking = parameters(empty_model(whole))
    for name in parameters(empty_model(config)):
        del lacking[name]
    for name, parameter in lacking.items():
        fill = torch.zeros_like if name.endswith(".bias") else torch.ones_like
        state = state | {name: fill(parameter, device=state["wte.weight"].device)}
    return _split_weights(state, whole)


def weights_from_hf(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Convert their weights to ours, as views where nothing is concatenated.

    Args:
        state: the weights by name of the whole model, or of the base model if the head is tied; a bias that is missing
            in all blocks becomes zeros.
        config: our config, from `config_from_hf`.

    Raises:
        UserError: names or shapes do not fit the config; the message lists them in their names.
    """
    family = FAMILIES[family_of(config)]
    if not any(name.startswith(family.base) for name in state):
        state = {name if name.startswith("lm_head.") else family.base + name: value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not BUFFERS.search(name)}
    if config.tied:
        state.pop("lm_head.weight", None)
    check_sound(config, state)
    ours = parameters(empty_model(config))
    expected = _split_weights(ours, config)
    kinds = {re.sub(r"\d+", "{}", name) for name in state}
    for name, parameter in expected.items():
        if name.endswith(".bias") and re.sub(r"\d+", "{}", name) not in kinds:
            state[name] = torch.zeros_like(parameter, device="cpu")
    check_shapes(state, expected)
    result = {}
    for name in ours:
        parts = [state[part] for part in _their_names(name, family)]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        result[name] = value.T if family is GPT2 and CONV1D.search(name) else value
    return result


def _split_weights(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Convert our weights to theirs, where both sides have the same parameters."""
    family = FAMILIES[family_of(config)]
    D = config.n_embd // config.n_head
    result = {}
    for name in parameters(empty_model(config)):
        value = state[name].T if family is GPT2 and CONV1D.search(name) else state[name]
        names = _their_names(name, family)
        sizes = {1: [len(value)], 2: [config.hidden] * 2, 3: [config.n_embd, config.kv_heads * D, config.kv_heads * D]}
        for part, piece in zip(names, value.split(sizes[len(names)]), strict=True):
            result[part] = piece.contiguous()
    return result


def _as_typed(value: Any) -> str:
    """Return a value as the user types it on the command line."""
    return json.dumps(value).strip('"')


def _their_names(name: str, family: Family) -> list[str]:
    """Their names for our parameter: one, or several for a fused one."""
    module, kind = name.rsplit(".", 1)
    block = "".join(re.findall(r"^h\.(\d+)", module))
    base = "" if module == "lm_head" else family.base
    names = family.names[re.sub(r"^h\.\d+", "h.{}", module)].replace("{}", block)
    return [f"{base}{part}.{kind}" for part in names.split()]
