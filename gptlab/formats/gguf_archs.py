"""Converts configs and weights between gptlab and the architectures of llama.cpp: GPT-2, Llama, Qwen2 and Qwen3.

In this module, "our" names are gptlab's and "their" names are those of GGUF files.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptlab import models
from gptlab.formats.huggingface_config import misfits
from gptlab.formats.huggingface_family import Family, unchanged
from gptlab.formats.huggingface_gpt import GPT2
from gptlab.formats.huggingface_llama import LLAMA, QWEN2, QWEN3
from gptlab.formats.huggingface_names import join_weights, split_weights, with_all_of
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.layers import arange_on
from gptlab.models.positions import geometric_periods, rotary_frequencies
from gptlab.system.errors import UserError

BLOCK = "blk.{}."
FIELDS = {  # their keys after the architecture's name, to our fields
    "context_length": "block_size",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.head_count_kv": "n_kv_head",
}
ROPE_FIELDS = {
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_base",
}
OURS = "gptlab."  # begins the keys that llama.cpp has no word for
FREQUENCIES = "rope_freqs.weight"  # (D/2,): by how much each pair of a head is slowed down
LLAMA3 = {"rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0, "rope_original_size": 8192}  # of Meta's models
TURNED = re.compile(r"\.attn_[qk]\.(weight|bias)$")  # rows in an order of their own in arch llama

_GPT2 = dataclasses.replace(
    GPT2,
    architecture="gpt2",
    base="",
    names={
        "wte": "token_embd",
        "wpe": "position_embd",
        "h.{}.ln_1": BLOCK + "attn_norm",
        "h.{}.attn.c_attn": BLOCK + "attn_qkv",
        "h.{}.attn.c_proj": BLOCK + "attn_output",
        "h.{}.ln_2": BLOCK + "ffn_norm",
        "h.{}.mlp.c_fc": BLOCK + "ffn_up",
        "h.{}.mlp.c_proj": BLOCK + "ffn_down",
        "ln_f": "output_norm",
        "lm_head": "output",
    },
    fields=FIELDS | {"attention.layer_norm_epsilon": "norm_eps"},
    defaults={"attention.head_count_kv": None},
    activations={"gelu": ("gelu",)},
    to_ours=unchanged,
    to_theirs=unchanged,
    fixed={name: value for name, value in GPT2.fixed.items() if name != "n_kv_head"} | {"attn_scale": True},
)
_LLAMA = dataclasses.replace(
    LLAMA,
    architecture="llama",
    base="",
    names={name: their for name, their in _GPT2.names.items() if name != "wpe"}
    | {"h.{}.attn.c_attn": " ".join(f"{BLOCK}attn_{x}" for x in "qkv")}
    | {"h.{}.mlp.c_fc": f"{BLOCK}ffn_gate {BLOCK}ffn_up"},
    fields=FIELDS | ROPE_FIELDS,
    defaults={"attention.head_count_kv": None, "attention.key_length": None, "rope.freq_base": 10_000.0},
    activations={"swiglu": ("silu",)},
)
_QWEN2 = dataclasses.replace(_LLAMA, architecture="qwen2", fixed=QWEN2.fixed | {"head_dim": None})
_QWEN3 = dataclasses.replace(
    _LLAMA,
    architecture="qwen3",
    names=_LLAMA.names | {f"h.{{}}.attn.{x}_norm": f"{BLOCK}attn_{x}_norm" for x in "qk"},
    fixed=QWEN3.fixed,
)
ARCHS = {family.architecture: family for family in (_GPT2, _QWEN2, _LLAMA, _QWEN3)}

# Their keys that change the function, and the only values (besides none) that gptlab can express.
REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "rope.scaling.attn_factor": (0.0, 1.0),
}


def arch_of(config: GPTConfig) -> Family:
    """Return the architecture of llama.cpp that can express a config.

    Raises:
        UserError: there is none; the message lists the fields in which the nearest one differs.
    """
    if config.window is not None and config.window >= config.block_size:
        config = dataclasses.replace(config, window=None)

    def wrong(family: Family) -> list[str]:
        found = misfits(config, family)
        if config.rope_scaling == "llama3" and family is not _LLAMA and family.fixed["pos"] == "rope":
            found.append("model.rope_scaling=llama3 (not null or linear)")
        if config.rope_scaling == "yarn" and family.fixed["pos"] == "rope":
            found.append("model.rope_scaling=yarn (not null or linear)")
        return found

    family = min(ARCHS.values(), key=lambda family: len(wrong(family)))
    if wrong(family):
        raise UserError(
            f"llama.cpp has no model of this shape; what parts it from its {family.architecture}: "
            f"{', '.join(wrong(family))}"
        )
    return family


def metadata_of(config: GPTConfig, family: Family) -> dict[str, Any]:
    """Return the values of a GGUF file's header that describe a config of a family."""
    arch = family.architecture
    ours = dataclasses.asdict(config) | {"n_inner": config.hidden, "n_kv_head": config.kv_heads}
    ours["head_dim"] = config.head_size
    found: dict[str, Any] = {"vocab_size": config.vocab_size}
    found |= {key: ours[own] for key, own in family.fields.items()}
    extra: dict[str, Any] = {}
    if config.pos == "rope":
        found |= {"attention.value_length": config.head_size, "rope.dimension_count": config.head_size}
        if config.rope_scaling == "linear":
            found |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_factor}
        if config.rope_scaling == "llama3":
            extra = {f"{OURS}{name}": getattr(config, name) for name in ("rope_factor", *LLAMA3)}
    return {f"{arch}.{key}": value for key, value in found.items()} | extra


def tensors_of(state: dict[str, Tensor], config: GPTConfig, family: Family) -> dict[str, Tensor]:
    """Convert our weights to those of a GGUF file, without a tied head.

    Args:
        state: our weights by name.
        config: the model's config.
        family: the one of `arch_of`.
    """
    whole = dataclasses.replace(config, norm_weight=True)
    if family is _GPT2:
        whole = dataclasses.replace(whole, bias=True, qkv_bias=None)
    found = split_weights(with_all_of(state, whole), whole, family)
    if family is _LLAMA:
        heads = {"q": config.n_head, "k": config.kv_heads}
        found = {name: _turned(value, name, heads) for name, value in found.items()}
    if config.rope_scaling == "llama3":
        found[FREQUENCIES] = slowed(config)
    return found


def _turned(value: Tensor, name: str, heads: dict[str, int], back: bool = False) -> Tensor:
    """Return rows of queries or keys with each pair that rotates side by side, where ours are half a head apart.

    Args:
        back: from their order to ours.
    """
    H = heads[name.split(".attn_")[1][0]] if TURNED.search(name) else 0
    if not (H and value.dim() and len(value) % (2 * H) == 0):  # the last is for `check_shapes` to tell
        return value
    pairs = value.unflatten(0, (H, -1, 2) if back else (H, 2, -1))  # (H, D/2, 2, ...) or (H, 2, D/2, ...)
    return pairs.transpose(1, 2).reshape(value.shape)


def slowed(config: GPTConfig) -> Tensor:
    """Return by how much each pair of a head is slowed down, (D/2,)."""
    numbers = arange_on(None)
    return (1.0 / geometric_periods(config.head_size, config.rope_base, numbers)) / rotary_frequencies(config, numbers)


def config_from_gguf(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> tuple[GPTConfig, Family]:
    """Return our config for a GGUF file, without Llama 3's scaling, and the file's architecture.

    Args:
        metadata: the header.
        shapes: of the tensors, by name.

    Raises:
        UserError: gptlab has no such model; the message lists all values in the way.
    """
    arch = metadata.get("general.architecture")
    family = ARCHS.get(arch) if isinstance(arch, str) else None
    if family is None:
        raise UserError(f"general.architecture={arch!s:.99}: gptlab has no such model; it reads {', '.join(ARCHS)}")
    given = {key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")}
    try:
        fields = _fields(metadata, given, family)
        fields |= {"vocab_size": (*shapes.get("token_embd.weight", ()), 0)[0], "tied": "output.weight" not in shapes}
        config = models.from_dict({"name": "gpt", **fields, **_biases(shapes, family)})
    except (TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"a damaged header of a {arch}: {str(error)[:200]}") from error
    assert isinstance(config, GPTConfig)
    return config, family


def _fields(metadata: dict[str, Any], given: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return the fields of our config of which a header tells.

    Args:
        metadata: the header.
        given: what of it is about the architecture, by the ends of the keys.
        family: the architecture.

    Raises:
        UserError: see `config_from_gguf`.
    """
    arch = family.architecture
    found = {own: given.get(key, family.defaults.get(key)) for key, own in family.fields.items()}
    wrong = [f"{arch}.{key} is missing" for key in family.fields if key not in given and key not in family.defaults]
    wrong += [
        f"{arch}.{key} is a list (all layers must have the same)"
        for key, own in family.fields.items()
        if isinstance(found[own], list)
    ]
    wrong += [
        f"{arch}.{key}={given[key]!s:.99} (it must be absent or {values[-1]})"
        for key, values in REQUIRED_VALUES.items()
        if key in given and given[key] not in values
    ]
    if metadata.get("general.type", "model") != "model":
        wrong.append(f"general.type={metadata['general.type']!s:.99} (it must be model)")
    if metadata.get("split.count", 0) not in (0, 1):
        wrong.append(f"it is one of {metadata['split.count']!s:.99} parts (llama-gguf-split --merge joins them)")
    if wrong:
        raise UserError(f"this {arch} is none of gptlab's models: {'; '.join(wrong)}")
    window = given.get("attention.sliding_window", 0)
    if 0 < window < found["block_size"]:
        wrong.append(f"{arch}.attention.sliding_window={window} (it must be absent or 0)")
    if found["n_kv_head"] == found["n_head"]:
        found["n_kv_head"] = None
    if family is not _GPT2:
        wrong += _complete_rope(found, given)
    if wrong:
        raise UserError(f"this {arch} is none of gptlab's models: {'; '.join(wrong)}")
    fixed = {name: value for name, value in family.fixed.items() if name not in ("bias", "qkv_bias")}
    found = fixed | found | {"mlp": next(iter(family.activations))}
    return {own: _shortest(value) if isinstance(value, float) else value for own, value in found.items()}


def _complete_rope(fields: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Add to our fields how positions are scaled, and return what of rotary positions gptlab cannot express."""
    head = fields["head_dim"] or fields["n_embd"] // fields["n_head"]
    wrong = [
        f"{key}={given[key]!s:.99} (it must be {head}, the size of a head)"
        for key in ("attention.value_length", "rope.dimension_count")
        if given.get(key, head) != head
    ]
    if head * fields["n_head"] == fields["n_embd"]:
        fields["head_dim"] = None
    kind = given.get("rope.scaling.type", "linear")
    factor = given.get("rope.scaling.factor", given.get("rope.scale_linear", 0.0))
    if kind not in ("none", "linear"):
        wrong.append(f"rope.scaling.type={kind!s:.99} (gptlab has none, linear, and Llama 3's {FREQUENCIES})")
    if kind == "linear" and factor not in (0.0, 1.0):
        fields |= {"rope_scaling": "linear", "rope_factor": factor}
    return wrong


def _biases(shapes: dict[str, tuple[int, ...]], family: Family) -> dict[str, bool | None]:
    """Return the fields of our config that say which layers have biases."""
    others = ("attn_output", "ffn_up", "ffn_gate", "ffn_down")
    bias = family is _GPT2 or any(f"blk.0.{name}.bias" in shapes for name in others)
    qkv_bias = family is _GPT2 or "blk.0.attn_q.bias" in shapes
    return {"bias": bias, "qkv_bias": None if qkv_bias == bias else qkv_bias}


def weights_from_gguf(
    metadata: dict[str, Any], tensors: dict[str, Tensor], config: GPTConfig, family: Family
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Convert the weights of a GGUF file to ours, and complete the config by Llama 3's scaling.

    Args:
        metadata: the header.
        tensors: the weights by their names; taken out of it.
        config, family: those of `config_from_gguf`.

    Raises:
        UserError: names or shapes do not fit the config; the message lists them in their names.
    """
    frequencies = tensors.pop(FREQUENCIES, None)
    if frequencies is not None:
        config = _llama3(metadata, frequencies, config)
    if family is _LLAMA:
        heads = {"q": config.n_head, "k": config.kv_heads}
        tensors = {name: _turned(value, name, heads, back=True) for name, value in tensors.items()}
    return config, join_weights(tensors, config, family)


def _llama3(metadata: dict[str, Any], frequencies: Tensor, config: GPTConfig) -> GPTConfig:
    """Return a config with the scaling that gives these frequencies, which name no parameters.

    Raises:
        UserError: it is none that gptlab knows.
    """
    if config.rope_scaling is not None:
        raise UserError(
            f"{FREQUENCIES} and rope.scaling both slow its positions down; gptlab has one scaling at a time"
        )
    if frequencies.shape != (config.head_size // 2,):
        raise UserError(f"{FREQUENCIES} is {list(frequencies.shape)} and must be [{config.head_size // 2}]")
    defaults = {"rope_factor": frequencies.float().max().item()} | LLAMA3
    told = {name: metadata.get(f"{OURS}{name}", value) for name, value in defaults.items()}
    told = {name: _shortest(value) if isinstance(value, float) else value for name, value in told.items()}
    scaled = models.from_dict({"name": "gpt", **dataclasses.asdict(config), **told, "rope_scaling": "llama3"})
    assert isinstance(scaled, GPTConfig)
    if not torch.allclose(slowed(scaled), frequencies.float(), rtol=1e-5):
        raise UserError(f"{FREQUENCIES} is not Llama 3's scaling, the only one of this kind that gptlab has")
    return scaled


def _shortest(value: Any) -> float:
    """Return the shortest number that is the same in fp32, in which the file holds it: 1e-05, not 9.999999747e-06."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))
