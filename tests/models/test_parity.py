"""Our GPT is those of `transformers`: the same logits and gradients from the same weights, without downloads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptlab.models import GPT, GPTConfig
from gptlab.models.layers import rotation_at

transformers = pytest.importorskip("transformers")

V, T, B = 101, 23, 5
D = 10  # head size where there are rotary positions
WINDOW = 7


class Family(NamedTuple):
    """A model of `transformers`, and what it is among ours."""

    theirs: dict[str, Any]
    """Fields of their config."""
    ours: dict[str, Any]
    """Fields of our config."""
    names: dict[str, str]
    """Our modules' names to theirs, joined by spaces where ours are one; {} is the number of the block."""
    convert: Callable[[str, Tensor], Tensor] = lambda name, value: value
    """Their parameter, or its gradient, in our order of axes."""
    amend: Callable[[Any, GPT], None] = lambda theirs, ours: None
    """What neither of the configs can say."""


def transposed(name: str, value: Tensor) -> Tensor:
    """OpenAI's Conv1D is (in, out), nn.Linear (out, in)."""
    return value.T if re.search(r"(c_attn|c_proj|c_fc)\.weight", name) else value


def mirrored(name: str, value: Tensor) -> Tensor:
    """NanoChat turns queries and keys the other way round: as we do once the halves of each head change places."""
    if "q_proj" not in name and "k_proj" not in name:
        return value
    return value.unflatten(0, (-1, 2, D // 2)).flip(1).flatten(0, 2)


def normed_embeddings(theirs: Any, ours: GPT) -> None:
    """NanoChat norms the embeddings, too."""
    ours.wte.register_forward_hook(lambda module, inputs, x: F.rms_norm(x, x.shape[-1:], eps=ours.config.norm_eps))


def by_kind(name: str, value: Tensor) -> Tensor:
    """GPT-NeoX has each head's query, key and value side by side; we have all queries, all keys, all values."""
    return value.unflatten(0, (6, 3, D)).transpose(0, 1).flatten(0, 2) if "query_key_value" in name else value


GPT1_NAMES = {
    "wte": "transformer.tokens_embed",
    "wpe": "transformer.positions_embed",
    "h.{}.ln_1": "transformer.h.{}.ln_1",
    "h.{}.attn.c_attn": "transformer.h.{}.attn.c_attn",
    "h.{}.attn.c_proj": "transformer.h.{}.attn.c_proj",
    "h.{}.ln_2": "transformer.h.{}.ln_2",
    "h.{}.mlp.c_fc": "transformer.h.{}.mlp.c_fc",
    "h.{}.mlp.c_proj": "transformer.h.{}.mlp.c_proj",
}
GPT2_NAMES = GPT1_NAMES | {"wte": "transformer.wte", "wpe": "transformer.wpe", "ln_f": "transformer.ln_f"}
LAYER = "model.layers.{}."
QKV = " ".join(f"{LAYER}self_attn.{x}_proj" for x in "qkv")
LLAMA_NAMES = {
    "wte": "model.embed_tokens",
    "h.{}.ln_1": LAYER + "input_layernorm",
    "h.{}.attn.c_attn": QKV,
    "h.{}.attn.q_norm": LAYER + "self_attn.q_norm",
    "h.{}.attn.k_norm": LAYER + "self_attn.k_norm",
    "h.{}.attn.c_proj": LAYER + "self_attn.o_proj",
    "h.{}.ln_2": LAYER + "post_attention_layernorm",
    "h.{}.mlp.c_fc": f"{LAYER}mlp.gate_proj {LAYER}mlp.up_proj",
    "h.{}.mlp.c_proj": LAYER + "mlp.down_proj",
    "ln_f": "model.norm",
    "lm_head": "lm_head",
}
UNGATED_NAMES = LLAMA_NAMES | {"h.{}.mlp.c_fc": LAYER + "mlp.fc1", "h.{}.mlp.c_proj": LAYER + "mlp.fc2"}
PHI_NAMES = UNGATED_NAMES | {"h.{}.attn.c_proj": LAYER + "self_attn.dense", "ln_f": "model.final_layernorm"}
NEOX_LAYER = "gpt_neox.layers.{}."
NEOX_NAMES = {
    "wte": "gpt_neox.embed_in",
    "h.{}.ln_1": NEOX_LAYER + "input_layernorm",
    "h.{}.attn.c_attn": NEOX_LAYER + "attention.query_key_value",
    "h.{}.attn.c_proj": NEOX_LAYER + "attention.dense",
    "h.{}.ln_2": NEOX_LAYER + "post_attention_layernorm",
    "h.{}.mlp.c_fc": NEOX_LAYER + "mlp.dense_h_to_4h",
    "h.{}.mlp.c_proj": NEOX_LAYER + "mlp.dense_4h_to_h",
    "ln_f": "gpt_neox.final_layer_norm",
    "lm_head": "lm_head",
}
MPT_NAMES = {
    "wte": "transformer.wte",
    "h.{}.ln_1": "transformer.blocks.{}.norm_1",
    "h.{}.attn.c_attn": "transformer.blocks.{}.attn.Wqkv",
    "h.{}.attn.c_proj": "transformer.blocks.{}.attn.out_proj",
    "h.{}.ln_2": "transformer.blocks.{}.norm_2",
    "h.{}.mlp.c_fc": "transformer.blocks.{}.ffn.up_proj",
    "h.{}.mlp.c_proj": "transformer.blocks.{}.ffn.down_proj",
    "ln_f": "transformer.norm_f",
}

GPT2 = {"n_positions": T, "n_embd": 33, "n_layer": 3, "n_head": 3}
LLAMA = {
    "max_position_embeddings": T,
    "hidden_size": 6 * D,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 53,
    "rms_norm_eps": 1e-3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 97.0},
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
OUR_LLAMA = {
    "n_embd": 6 * D,
    "n_head": 6,
    "n_kv_head": 2,
    "n_inner": 53,
    "norm": "rmsnorm",
    "norm_eps": 1e-3,
    "pos": "rope",
    "rope_base": 97.0,
    "mlp": "swiglu",
    "bias": False,
    "tied": False,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 97.0, "factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 3.0}
LLAMA3["original_max_position_embeddings"] = 19
OUR_LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_low_freq_factor": 0.5, "rope_high_freq_factor": 3.0}
OUR_LLAMA3["rope_original_size"] = 19
LINEAR = {"rope_type": "linear", "rope_theta": 97.0, "factor": 3.0}
YARN = {"rope_type": "yarn", "rope_theta": 97.0, "factor": 5.0, "original_max_position_embeddings": 19}
YARN |= {"beta_fast": 3.0, "beta_slow": 0.5}
OUR_YARN = {"rope_scaling": "yarn", "rope_factor": 5.0, "rope_original_size": 19}
OUR_YARN |= {"rope_beta_fast": 3.0, "rope_beta_slow": 0.5}
NANOCHAT = LLAMA | {"final_logit_softcapping": 2.0}
OUR_NANOCHAT = OUR_LLAMA | {"norm_weight": False, "qk_norm": True, "mlp": "relu2", "logit_softcap": 2.0}
PHI = LLAMA | {"partial_rotary_factor": 0.6, "layer_norm_eps": 1e-3}
PHI["rope_parameters"] = YARN | {"partial_rotary_factor": 0.6, "attention_factor": 1.7}
OUR_PHI = OUR_LLAMA | {"norm": "layernorm", "mlp": "gelu", "parallel": True, "bias": True, "head_bias": True}
OUR_PHI |= OUR_YARN | {"rope_fraction": 0.6, "rope_attention_factor": 1.7}
NEOX = {"hidden_size": 6 * D, "num_attention_heads": 6, "num_hidden_layers": 3, "intermediate_size": 53}
NEOX |= {"rope_parameters": {"rope_type": "default", "rope_theta": 97.0, "partial_rotary_factor": 0.4}}
OUR_NEOX = {"n_embd": 6 * D, "n_head": 6, "n_inner": 53, "pos": "rope", "rope_base": 97.0, "rope_fraction": 0.4}
OUR_NEOX |= {"mlp": "gelu_exact", "tied": False}
OUR_NEOX_PARALLEL = OUR_NEOX | {"parallel": True, "parallel_norms": True}
OUR_MPT = {"pos": "alibi", "mlp": "gelu_exact", "bias": False}

# Each begins with the name of its class in `transformers`.
FAMILIES = {
    "OpenAIGPTLMHeadModel": Family(GPT2, {"norm_place": "post"}, GPT1_NAMES, transposed),
    "GPT2LMHeadModel": Family(GPT2, {}, GPT2_NAMES, transposed),
    "GPT2LMHeadModel gelu": Family(
        GPT2 | {"activation_function": "gelu"}, {"mlp": "gelu_exact"}, GPT2_NAMES, transposed
    ),
    "LlamaForCausalLM": Family(LLAMA, OUR_LLAMA, LLAMA_NAMES),
    "LlamaForCausalLM tied": Family(LLAMA | {"tie_word_embeddings": True}, OUR_LLAMA | {"tied": True}, LLAMA_NAMES),
    "LlamaForCausalLM geglu": Family(LLAMA | {"hidden_act": "gelu_new"}, OUR_LLAMA | {"mlp": "geglu"}, LLAMA_NAMES),
    "LlamaForCausalLM scaled": Family(LLAMA | {"rope_parameters": LLAMA3}, OUR_LLAMA | OUR_LLAMA3, LLAMA_NAMES),
    "LlamaForCausalLM yarn": Family(LLAMA | {"rope_parameters": YARN}, OUR_LLAMA | OUR_YARN, LLAMA_NAMES),
    "Qwen3ForCausalLM": Family(LLAMA | {"head_dim": D}, OUR_LLAMA | {"qk_norm": True}, LLAMA_NAMES),
    "Qwen3ForCausalLM wide heads": Family(
        LLAMA | {"head_dim": D + 4}, OUR_LLAMA | {"qk_norm": True, "head_dim": D + 4}, LLAMA_NAMES
    ),
    "MistralForCausalLM narrow heads, scaled": Family(
        LLAMA | {"sliding_window": WINDOW, "head_dim": D - 4, "rope_parameters": LINEAR},
        OUR_LLAMA | {"window": WINDOW, "head_dim": D - 4, "rope_scaling": "linear", "rope_factor": 3.0},
        LLAMA_NAMES,
    ),
    "MistralForCausalLM": Family(LLAMA | {"sliding_window": WINDOW}, OUR_LLAMA | {"window": WINDOW}, LLAMA_NAMES),
    "PhiForCausalLM": Family(PHI, OUR_PHI, PHI_NAMES),
    "GPTNeoXForCausalLM": Family(NEOX, OUR_NEOX_PARALLEL, NEOX_NAMES, by_kind),
    "GPTNeoXForCausalLM in turns": Family(NEOX | {"use_parallel_residual": False}, OUR_NEOX, NEOX_NAMES, by_kind),
    "NanoChatForCausalLM": Family(NANOCHAT, OUR_NANOCHAT, UNGATED_NAMES, mirrored, normed_embeddings),
    **{
        f"MptForCausalLM {heads} heads": Family(
            {"d_model": width, "n_heads": heads, "n_layers": 3, "max_seq_len": T},
            OUR_MPT | {"n_embd": width, "n_head": heads},
            MPT_NAMES,
        )
        for width, heads in ((44, 4), (66, 6))
    },
}


def reference(name: str, implementation: str = "eager") -> Any:
    """A model of `transformers` whose biases and norms, too, show in the result."""
    torch.manual_seed(7)
    model_class = getattr(transformers, name.split()[0])
    tokens = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": 0}
    config = model_class.config_class(**tokens, **FAMILIES[name].theirs, attn_implementation=implementation)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def in_our_names(name: str, gpt: GPT, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their parameters, or their gradients, as ours: renamed, transposed, joined; none is left over."""
    family, values = FAMILIES[name], dict(values)
    result = {}
    for ours, _ in gpt.named_parameters():
        module, kind = ours.rsplit(".", 1)
        block = "".join(re.findall(r"^h\.(\d+)", module))
        theirs = family.names[re.sub(r"^h\.\d+", "h.{}", module)].replace("{}", block)
        parts = [f"{part}.{kind}" for part in theirs.split()]
        result[ours] = torch.cat([family.convert(part, values.pop(part)) for part in parts])
    assert not values
    return result


def ours(name: str, model: nn.Module, attention: str) -> GPT:
    """Our model with the weights of theirs."""
    sizes = {"vocab_size": V, "block_size": T, "n_layer": 3, "n_head": 3, "n_embd": 33}
    gpt = GPT(GPTConfig(**(sizes | FAMILIES[name].ours), attention=attention)).eval()
    with torch.no_grad():
        weights = in_our_names(name, gpt, dict(model.named_parameters()))
        for parameter_name, parameter in gpt.named_parameters():
            parameter.copy_(weights[parameter_name])
    FAMILIES[name].amend(model, gpt)
    return gpt


def logits_and_gradients(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    idx = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(3))
    out = model(idx[:, :-1])
    logits = out if isinstance(out, Tensor) else out.logits
    model.zero_grad()
    F.cross_entropy(logits.float().flatten(0, 1), idx[:, 1:].flatten()).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "manual", "per_head"])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_gradients_are_those_of_transformers(name: str, attention: str) -> None:
    theirs = reference(name)
    gpt = ours(name, theirs, attention)
    logits, gradients = logits_and_gradients(gpt)
    their_logits, their_gradients = logits_and_gradients(theirs)
    assert their_logits.std() > 0.5  # or the comparison would show little
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, in_our_names(name, gpt, their_gradients), atol=1e-5, rtol=1e-5)


FAR = {  # their fields, and ours
    "default": ({}, {}),
    "linear": ({"factor": 3.0}, {"rope_factor": 3.0}),
    "llama3": (
        {"factor": 32.0, "low_freq_factor": 0.5, "high_freq_factor": 3.0, "original_max_position_embeddings": 8192},
        OUR_LLAMA3 | {"rope_factor": 32.0, "rope_original_size": 8192},
    ),
    "yarn": (
        {"factor": 5.0, "attention_factor": 0.9, "original_max_position_embeddings": 8192},
        {"rope_factor": 5.0, "rope_attention_factor": 0.9, "rope_original_size": 8192},
    ),
    "yarn, as its paper": (
        {"factor": 16.0, "beta_fast": 20.0, "beta_slow": 2.0, "original_max_position_embeddings": 4096},
        {"rope_factor": 16.0, "rope_beta_fast": 20.0, "rope_beta_slow": 2.0, "rope_original_size": 4096},
    ),
}


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_positions_far_away_turn_as_in_transformers(name: str, fraction: float) -> None:
    kind, (theirs, ours) = name.partition(",")[0], FAR[name]
    rope = {"rope_type": kind, "rope_theta": 500_000.0, "partial_rotary_factor": fraction} | theirs
    sizes = {"hidden_size": 240, "num_attention_heads": 3, "max_position_embeddings": 131_072}
    config = transformers.GPTNeoXConfig(**sizes, rope_parameters=rope)
    t = torch.tensor([0, 1, 13, 4095, 8191, 32_767, 131_071])
    table = transformers.models.gpt_neox.modeling_gpt_neox.GPTNeoXRotaryEmbedding(config)(torch.zeros(1), t[None])
    fields = {"n_embd": 240, "n_head": 3, "pos": "rope", "rope_base": 500_000.0, "rope_fraction": fraction}
    fields |= ours | {"rope_scaling": None if kind == "default" else kind}
    rotation = rotation_at(GPTConfig(V, **fields), t)
    assert rotation is not None
    torch.testing.assert_close(rotation, torch.cat(table), atol=1e-6, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "manual"])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_bf16_is_about_as_exact_as_that_of_transformers(name: str, attention: str, autocast: bool) -> None:
    theirs = reference(name, "sdpa" if attention == "sdpa" else "eager")
    gpt = ours(name, theirs, attention)
    exact, _ = logits_and_gradients(gpt)
    errors = []
    for candidate in (gpt, theirs):
        half = candidate if autocast else candidate.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits, _ = logits_and_gradients(half)
        assert logits.dtype == torch.bfloat16
        errors.append((logits.float() - exact).abs().max().item())
    assert 0 < errors[0] < 3 * errors[1]
