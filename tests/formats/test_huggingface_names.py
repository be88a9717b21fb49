"""Configs and weights convert from and to `transformers`: same logits, same greedy text, every name once."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptlab import models
from gptlab.formats import huggingface_config, huggingface_families, huggingface_names
from gptlab.models import GPT, GPTConfig
from gptlab.models.weights import check_shapes, crop, empty_model, fill, parameters
from gptlab.system.errors import UserError
from tests.models.test_parity import GPT2, LLAMA, NEOX, YARN, D, T, V

transformers = pytest.importorskip("transformers")

# Each begins with the name of its class.
LLAMA3 = {"rope_type": "llama3", "rope_theta": 97.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 13
OPT = {"max_position_embeddings": T, "hidden_size": 60, "num_hidden_layers": 3, "num_attention_heads": 6, "ffn_dim": 53}
OPT["pad_token_id"] = None
NEO = {"max_position_embeddings": T, "hidden_size": 60, "num_layers": 3, "num_heads": 6}
NEO["attention_types"] = [[["global", "local"], 1], [["global"], 1]]
GEMMA = LLAMA | {"head_dim": D + 4, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}
THEIRS = {
    "GPT2LMHeadModel": GPT2,
    "GPT2LMHeadModel n_inner, relu": GPT2 | {"n_inner": 47, "activation_function": "relu"},
    "GPT2LMHeadModel untied, unscaled": GPT2 | {"tie_word_embeddings": False, "scale_attn_weights": False},
    "GPT2LMHeadModel eps, relu2": GPT2 | {"layer_norm_epsilon": 1e-3, "activation_function": "relu2"},
    "GPT2LMHeadModel gelu": GPT2 | {"activation_function": "gelu"},
    "LlamaForCausalLM": LLAMA | {"num_key_value_heads": None},
    "LlamaForCausalLM grouped": LLAMA,
    "LlamaForCausalLM tied": LLAMA | {"tie_word_embeddings": True},
    "LlamaForCausalLM geglu": LLAMA | {"hidden_act": "gelu_pytorch_tanh"},
    "LlamaForCausalLM attention_bias": LLAMA | {"attention_bias": True},
    "LlamaForCausalLM mlp_bias": LLAMA | {"mlp_bias": True},
    "MistralForCausalLM": LLAMA | {"sliding_window": 7, "head_dim": D},
    "MistralForCausalLM without window": LLAMA | {"sliding_window": None, "head_dim": D},
    "Qwen2ForCausalLM": LLAMA,
    "Qwen2ForCausalLM wide heads": LLAMA | {"head_dim": D + 4},
    "Qwen3ForCausalLM": LLAMA | {"head_dim": D},
    "Qwen3ForCausalLM wide heads": LLAMA | {"head_dim": D + 4, "tie_word_embeddings": True},
    "LlamaForCausalLM narrow heads, biases": LLAMA | {"head_dim": D - 4, "attention_bias": True},
    "LlamaForCausalLM llama3": LLAMA | {"rope_parameters": LLAMA3},
    "LlamaForCausalLM linear": LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 97.0}},
    "LlamaForCausalLM yarn": LLAMA | {"rope_parameters": YARN},
    "Qwen3ForCausalLM yarn of DeepSeek": LLAMA
    | {"head_dim": D, "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.3, "beta_slow": None}},
    "GPTNeoXForCausalLM": NEOX | {"max_position_embeddings": T},
    "GPTNeoXForCausalLM in turns, tied, of older versions": {k: v for k, v in NEOX.items() if k != "rope_parameters"}
    | {"use_parallel_residual": False, "tie_word_embeddings": True, "rotary_pct": 0.6, "rotary_emb_base": 31},
    "GPTNeoXForCausalLM yarn": NEOX
    | {"rope_parameters": YARN | {"partial_rotary_factor": 0.6}, "attention_bias": False, "hidden_act": "relu"},
    "OPTForCausalLM": OPT,
    "OPTForCausalLM post": OPT | {"do_layer_norm_before": False, "tie_word_embeddings": False},
    "OPTForCausalLM of Galactica": OPT
    | {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    "OPTForCausalLM without biases": OPT | {"enable_bias": False},
    "GPTNeoForCausalLM": NEO,
    "GPTNeoForCausalLM in a window": NEO | {"attention_types": [[["local"], 3]], "window_size": 7},
    "GPTNeoForCausalLM in a window for all": NEO | {"window_size": T, "tie_word_embeddings": False},
    "GemmaForCausalLM": GEMMA,
    "GemmaForCausalLM untied": GEMMA | {"tie_word_embeddings": False, "attention_bias": True, "hidden_act": "silu"},
    "GemmaForCausalLM of the first release": GEMMA | {"hidden_act": "gelu", "num_key_value_heads": 1},
    "NanoChatForCausalLM": LLAMA | {"final_logit_softcapping": 2.0},
    "NanoChatForCausalLM wide heads, without a cap": LLAMA
    | {"head_dim": D + 4, "final_logit_softcapping": None, "hidden_act": "gelu", "tie_word_embeddings": True},
}
LEAVE_AS_OTHERS = ("GPTNeoForCausalLM", "GemmaForCausalLM", "OPTForCausalLM")
SIZES = {"vocab_size": V, "block_size": T, "n_layer": 3, "n_head": 6, "n_embd": 6 * D}
ROTARY = {"norm": "rmsnorm", "pos": "rope", "mlp": "swiglu", "bias": False, "tied": False}
NEOX_LIKE = {"pos": "rope", "mlp": "gelu_exact"}
MODERN = ROTARY | {"norm_weight": False, "embed_norm": True, "qk_norm": True, "mlp": "relu2"}
OURS = {
    "GPT2LMHeadModel": {},
    "GPT2LMHeadModel without biases": {"bias": False, "mlp": "gelu_exact"},
    "GPT2LMHeadModel without biases of queries": {"qkv_bias": False, "mlp": "relu", "tied": False},
    "GPT2LMHeadModel without scales": {"norm_weight": False, "n_inner": 47, "attn_scale": False, "n_kv_head": 6},
    "LlamaForCausalLM": ROTARY,
    "LlamaForCausalLM grouped": ROTARY | {"n_kv_head": 2, "n_inner": 53, "rope_base": 97.0},
    "LlamaForCausalLM tied": ROTARY | {"tied": True, "norm_weight": False, "norm_eps": 1e-3},
    "LlamaForCausalLM biased": ROTARY | {"bias": True, "mlp": "geglu"},
    "LlamaForCausalLM without biases of queries": ROTARY | {"bias": True, "qkv_bias": False},
    "LlamaForCausalLM wide heads, llama3": ROTARY
    | {"head_dim": D + 4, "n_kv_head": 2, "rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_size": 13},
    "LlamaForCausalLM linear": ROTARY | {"rope_scaling": "linear", "rope_factor": 2.5},
    "MistralForCausalLM": ROTARY | {"window": 7, "n_kv_head": 1},
    "MistralForCausalLM for a width that Llama refuses": ROTARY | {"n_embd": 67, "head_dim": D},
    "Qwen2ForCausalLM": ROTARY | {"qkv_bias": True, "n_kv_head": 3},
    "Qwen3ForCausalLM": ROTARY | {"qk_norm": True},
    "Qwen3ForCausalLM yarn": ROTARY
    | {"qk_norm": True, "rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_size": 13}
    | {"rope_beta_slow": 0.1, "rope_beta_fast": 1.5, "rope_attention_factor": 1.2},
    "GPTNeoXForCausalLM": NEOX_LIKE,
    "GPTNeoXForCausalLM with one norm": NEOX_LIKE | {"parallel": True, "mlp": "relu2", "tied": False},
    "GPTNeoXForCausalLM with two norms": NEOX_LIKE | {"parallel": True, "parallel_norms": True, "rope_fraction": 0.4},
    "GPTNeoXForCausalLM linear": NEOX_LIKE
    | {"rope_fraction": 0.4, "norm_weight": False, "parallel": True, "bias": False}
    | {"rope_scaling": "linear", "rope_factor": 2.5},
    "OPTForCausalLM": {"norm_place": "post", "mlp": "relu", "n_inner": 53},
    "OPTForCausalLM without scales": {"norm_place": "post", "norm_weight": False, "tied": False, "bias": False},
    "NanoChatForCausalLM": MODERN | {"logit_softcap": 15.0},
    "NanoChatForCausalLM grouped": MODERN | {"n_kv_head": 2, "head_dim": D + 4, "tied": True, "rope_base": 97.0},
}


def shaken(model: Any) -> Any:
    """Randomise all parameters, so that biases and norms affect the result, too."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def theirs(name: str) -> Any:
    model_class = getattr(transformers, name.split()[0])
    tokens = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": None}
    return shaken(model_class(model_class.config_class(**tokens, **THEIRS[name])))


def ours(name: str) -> GPT:
    return shaken(GPT(GPTConfig(**(SIZES | OURS[name]))))


def imported(model: Any) -> GPT:
    hf = json.loads(model.config.to_json_string())
    config = huggingface_config.config_from_hf(hf)
    return fill(config, huggingface_names.weights_from_hf(model.state_dict(), config, hf))


def exported(model: GPT) -> Any:
    config = huggingface_config.config_to_hf(model.config)
    model_class = getattr(transformers, config["architectures"][0])
    copy = model_class(model_class.config_class(**json.loads(json.dumps(config)), bos_token_id=0, eos_token_id=None))
    state = huggingface_names.weights_to_hf(model.state_dict(), model.config)
    if "embed_out.weight" in state:  # as transformers itself writes GPT-NeoX's head
        state["lm_head.weight"] = state.pop("embed_out.weight")
    missing, unexpected = copy.load_state_dict(state, strict=False)
    assert unexpected == []
    assert missing == (["lm_head.weight"] if model.config.tied else [])
    return copy.eval()


@torch.no_grad()
def assert_same(gpt: nn.Module, model: Any) -> None:
    """Check that logits agree to 1e-5, and twenty greedy tokens exactly."""
    idx = torch.randint(V, (5, T), generator=torch.Generator().manual_seed(3))
    logits, reference = gpt(idx), model(idx).logits
    assert reference.std() > 0.5  # or the comparison would show little
    torch.testing.assert_close(logits, reference, atol=1e-5, rtol=1e-5)
    text = idx[:, :3]
    for _ in range(T - 3):
        text = torch.cat((text, gpt(text)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(text, model.generate(idx[:, :3], max_new_tokens=T - 3, do_sample=False, pad_token_id=0))


@pytest.mark.parametrize("name", THEIRS)
def test_a_model_of_transformers_is_the_same_here(name: str) -> None:
    model = theirs(name)
    assert_same(imported(model), model)


@pytest.mark.parametrize(
    "name", [name for name in THEIRS if name.startswith(LEAVE_AS_OTHERS) and name[-6:] != "window"]
)
def test_a_family_that_is_read_leaves_as_another_with_the_same_logits(name: str) -> None:
    model = theirs(name)
    other = exported(imported(model))
    kind = {"GPTN": "GPT2LMHeadModel", "Gemm": "LlamaForCausalLM", "OPTF": "GPT2LMHeadModel"}[name[:4]]
    assert type(other).__name__ == (kind if "post" not in name else "OPTForCausalLM")
    idx = torch.randint(V, (5, T), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(other(idx).logits, model(idx).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_a_model_of_ours_is_the_same_in_transformers(name: str) -> None:
    gpt = ours(name)
    model = exported(gpt)
    assert type(model).__name__ == name.split()[0]
    assert_same(gpt, model)
    assert_same(imported(model), model)


@pytest.mark.parametrize("name", [name for name in THEIRS if not name.startswith(LEAVE_AS_OTHERS) or "post" in name])
def test_names_go_there_and_back(name: str) -> None:
    model = theirs(name)
    state = model.state_dict()
    if name.startswith("OPT"):
        state["model.decoder.embed_positions.weight"][:2] = 0  # which stand for no position
    hf = json.loads(model.config.to_json_string())
    config = huggingface_config.config_from_hf(hf)
    if config.tied:
        del state["lm_head.weight"]
    if name.startswith("GPTNeoX") and not config.tied:
        state["embed_out.weight"] = state.pop("lm_head.weight")
    here = huggingface_names.weights_from_hf(state, config, hf)
    check_shapes(here, parameters(empty_model(config)))
    back = huggingface_names.weights_to_hf(here, config)
    for key in back.keys() - state.keys():  # Llama's biases come all or none
        assert not back.pop(key).any()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) and back[key].is_contiguous() for key in state)


@pytest.mark.parametrize("name", ["GPTNeoForCausalLM", "GPTNeoXForCausalLM"])
def test_buffers_are_no_weights(name: str) -> None:
    model = theirs(name)
    state, hf = model.state_dict(), model.config.to_dict()
    config = huggingface_config.config_from_hf(hf)
    for i in range(3):
        layer = f"transformer.h.{i}.attn.attention" if "X" not in name else f"gpt_neox.layers.{i}.attention"
        state |= {f"{layer}.bias": torch.ones(1, 1, T, T).bool(), f"{layer}.masked_bias": torch.tensor(-1e9)}
        state |= {f"{layer}.rotary_emb.inv_freq": torch.ones(2)}
    assert_same(fill(config, huggingface_names.weights_from_hf(state, config, hf)), model)


def test_weights_of_openai_have_no_prefix_and_no_head_but_buffers() -> None:
    model = theirs("GPT2LMHeadModel")
    state = {key.removeprefix("transformer."): value for key, value in model.state_dict().items()}
    del state["lm_head.weight"]
    for i in range(3):
        state |= {f"h.{i}.attn.bias": torch.ones(1, 1, T, T).tril(), f"h.{i}.attn.masked_bias": torch.tensor(-1e4)}
    config = huggingface_config.config_from_hf(model.config.to_dict())
    assert_same(fill(config, huggingface_names.weights_from_hf(state, config)), model)


OPENAI = {  # config.json of the first release, which lacks what later ones have
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "vocab_size": 50257,
}
OLD_LLAMA = {  # of transformers 4
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 60,
    "intermediate_size": 53,
    "max_position_embeddings": 23,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "vocab_size": 101,
}


SMOLLM2 = {  # of 135M parameters
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
UNFINISHED = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}
QWEN = OLD_LLAMA | {"model_type": "qwen2", "num_key_value_heads": 6, "use_sliding_window": True, "sliding_window": 7}


NEOX_CONFIG = NEOX | {"model_type": "gpt_neox", "rope_parameters": None}
OPT_CONFIG, NEO_CONFIG = OPT | {"model_type": "opt"}, NEO | {"model_type": "gpt_neo"}
GEMMA_CONFIG, NANOCHAT_CONFIG = (
    GEMMA | {"model_type": "gemma"},
    LLAMA | {"model_type": "nanochat", "hidden_act": "relu2"},
)


def test_configs_of_older_versions_are_read() -> None:
    assert huggingface_config.config_from_hf(OPENAI) == GPTConfig(50257, dropout=0.1)
    assert huggingface_config.config_from_hf(OPENAI | {"attn_pdrop": 0.0}) == GPTConfig(
        50257, dropout=0.1, attn_dropout=0.0
    )
    assert huggingface_config.config_from_hf({k: v for k, v in OPENAI.items() if k != "attn_pdrop"}) == GPTConfig(
        50257, dropout=0.1
    )
    expected = GPTConfig(**(SIZES | ROTARY), n_inner=53, norm_eps=1e-6, rope_base=500000.0)
    assert huggingface_config.config_from_hf(OLD_LLAMA) == expected
    mistral = OLD_LLAMA | {"model_type": "mistral", "num_key_value_heads": None}
    assert huggingface_config.config_from_hf(mistral) == dataclasses.replace(expected, qkv_bias=False, window=4096)
    assert huggingface_config.config_from_hf(OLD_LLAMA | {"n_layer": None, "rope_parameters": None}) == expected


def test_smollm2_is_a_llama() -> None:
    sizes = {"vocab_size": 49152, "block_size": 8192, "n_layer": 30, "n_head": 9, "n_kv_head": 3, "n_embd": 576}
    expected = GPTConfig(**(ROTARY | sizes | {"n_inner": 1536, "rope_base": 100_000.0, "tied": True}))
    assert huggingface_config.config_from_hf(SMOLLM2) == expected
    assert parameters(empty_model(expected))["h.29.mlp.c_fc.weight"].shape == (3072, 576)
    assert sum(weight.numel() for weight in parameters(empty_model(expected)).values()) == 134_515_008


@pytest.mark.parametrize("name", huggingface_families.FAMILIES)
def test_what_a_config_lacks_is_the_default_of_transformers(name: str) -> None:
    default = huggingface_config.config_from_hf({"model_type": name})
    grouped = "n_kv_head" in huggingface_families.FAMILIES[name].fields.values()
    default = dataclasses.replace(default, n_kv_head=default.kv_heads if grouped else None)
    assert default == huggingface_config.config_from_hf(transformers.AutoConfig.for_model(name).to_dict())


@pytest.mark.parametrize(
    ("config", "same"),
    [
        ({k: v for k, v in OPENAI.items() if k != "n_positions"} | {"n_ctx": 512}, OPENAI | {"n_positions": 512}),
        (OPENAI | {"n_ctx": 512}, OPENAI),
        (OPENAI | {"num_attention_heads": 6}, OPENAI | {"n_head": 6}),
        (OLD_LLAMA | {"rope_parameters": {"rope_theta": 7.0}}, OLD_LLAMA | {"rope_theta": 7.0}),
        (
            OLD_LLAMA | {"rope_scaling": {"type": "linear", "factor": 3}, "rope_parameters": LLAMA3},
            OLD_LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500000.0}},
        ),
        (
            OLD_LLAMA | {"rope_scaling": {k: v for k, v in LLAMA3.items() if not k.startswith("original")}},
            OLD_LLAMA | {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": T}},
        ),
        (
            OLD_LLAMA | {"rope_scaling": LLAMA3, "original_max_position_embeddings": 17},
            OLD_LLAMA | {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 17}},
        ),
        (QWEN | {"max_window_layers": 3}, QWEN | {"use_sliding_window": False}),
        (QWEN | {"max_window_layers": 0, "sliding_window": None}, QWEN | {"use_sliding_window": False}),
        (
            OLD_LLAMA | {"model_type": "mistral", "num_key_value_heads": 6, "layer_types": ["full_attention"] * 3},
            OLD_LLAMA | {"model_type": "mistral", "num_key_value_heads": 6, "sliding_window": None},
        ),
        (
            OLD_LLAMA | {"rope_parameters": YARN | {"beta_slow": 0, "beta_fast": None, "mscale": 0.7}},
            OLD_LLAMA | {"rope_parameters": YARN | {"beta_slow": 1.0, "beta_fast": 32.0}},
        ),
        (
            OLD_LLAMA | {"rope_parameters": YARN | {"mscale": 0.5, "mscale_all_dim": 0.5}},
            OLD_LLAMA | {"rope_parameters": YARN | {"attention_factor": 1.0}},
        ),
        (NEO_CONFIG | {"num_hidden_layers": 3, "num_layers": 7}, NEO_CONFIG),
        (NEOX_CONFIG, NEOX_CONFIG | {"rotary_pct": 0.25, "rotary_emb_base": 10_000}),
        (NEOX_CONFIG | {"rope_parameters": {"rope_theta": 7.0}}, NEOX_CONFIG | {"rotary_emb_base": 7.0}),
        (NEOX_CONFIG | {"rotary_pct": 1.0, "rope_theta": 7.0}, NEOX_CONFIG | {"rotary_pct": 1.0}),
    ],
)
def test_configs_say_one_thing_in_several_ways(config: dict[str, Any], same: dict[str, Any]) -> None:
    assert huggingface_config.config_from_hf(config) == huggingface_config.config_from_hf(same)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bloom"}, r"model_type=bloom: gptlab has no such model; it reads gpt2, .*llama, .*gpt_neox"),
        ({}, r"model_type=None: gptlab has no such model"),
        (
            OPENAI | {"activation_function": "silu"},
            r"activation silu \(gptlab has gelu_new, gelu_pytorch_tanh, gelu, relu, relu2\)",
        ),
        (
            OPENAI | {"scale_attn_by_inverse_layer_idx": True},
            r"scale_attn_by_inverse_layer_idx=True \(it must be False",
        ),
        (OPENAI | {"add_cross_attention": True}, r"add_cross_attention=True \(it must be False\)"),
        (OPENAI | {"n_head": 7}, r"model.n_embd=768 is not divisible by model.n_head=7"),
        (OPENAI | {"n_head": "12"}, r"model.n_head='12': must be of type int"),
        (OPENAI | {"n_head": 0}, r"model.n_head=0: must be at least 1"),
        (OLD_LLAMA | {"rope_scaling": "dynamic"}, r"a damaged config of a llama: "),
        (OLD_LLAMA | {"hidden_act": "gelu"}, r"activation gelu \(gptlab has silu, swish, gelu_new"),
        (OLD_LLAMA | {"rope_parameters": UNFINISHED}, r"rope_type=llama3 without low_freq_factor, high_freq_factor$"),
        (OLD_LLAMA | {"rope_scaling": {"type": "linear"}}, r"rope_type=linear without factor$"),
        (OLD_LLAMA | {"rope_scaling": {"type": "linear", "factor": 0}}, r"model.rope_factor=0.0: must be above 0"),
        (OLD_LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_type=dynamic \(gptlab has default"),
        (
            OLD_LLAMA | {"rope_parameters": {"rope_type": "longrope", "factor": 4.0}},
            r"rope_type=longrope \(gptlab has default, linear, llama3, yarn\)",
        ),
        (OLD_LLAMA | {"rope_parameters": YARN | {"truncate": False}}, r"models: truncate=False \(it must be True\)$"),
        (OLD_LLAMA | {"rope_parameters": YARN | {"truncate": None}}, r"models: truncate=None \(it must be True\)$"),
        (OLD_LLAMA | {"rope_parameters": {"rope_type": "yarn", "mscale": 1}}, r"rope_type=yarn without factor$"),
        (OLD_LLAMA | {"rope_parameters": {"full_attention": YARN}}, r"of their own in full_attention \(all layers"),
        (OLD_LLAMA | {"head_dim": 15}, r"model.pos=rope turns pairs, and head_dim = 15 is odd"),
        (OLD_LLAMA | {"head_dim": "16"}, r"model.head_dim='16': must be of type int|a damaged config of a llama"),
        (OLD_LLAMA | {"attention_multiplier": 0.1}, r"attention_multiplier=0.1 \(it must be absent\)"),
        (OLD_LLAMA | {"quantization_config": {"bits": 4}}, r"quantization_config=.*bits.* \(it must be absent\)"),
        (OLD_LLAMA | {"hidden_size": None}, r"this llama is none of gptlab's models: hidden_size is missing"),
        (OLD_LLAMA | {"model_type": "qwen3", "attention_bias": True}, r"attention_bias=True \(it must be False\)"),
        (QWEN | {"max_window_layers": 0}, r"layers of sliding_attention \(all must have full_attention\)"),
        (QWEN | {"max_window_layers": 2}, r"layers of full_attention and sliding_attention \(all must"),
        (
            OLD_LLAMA | {"model_type": "qwen3", "layer_types": ["sliding_attention"]},
            r"layers of sliding_attention \(all",
        ),
        (OLD_LLAMA | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, r"partial_rotary"),
        (NEOX_CONFIG | {"rotary_pct": 0.3}, r"n_embd / n_head times rope_fraction=0.3 = 3 is odd"),
        (NEOX_CONFIG | {"rotary_pct": 0.0}, r"model.rope_fraction=0.0: must be above 0 and at most 1"),
        (NEOX_CONFIG | {"use_parallel_residual": "no"}, r"model.parallel='no': must be of type bool"),
        (
            OPT_CONFIG | {"word_embed_proj_dim": 30, "_remove_final_layer_norm": True, "do_layer_norm_before": "no"},
            r"final_layer_norm=True \(it .* False\); do_layer_norm_before=no \(.*; word_embed_proj_dim=30 \(it m",
        ),
        (
            NEO_CONFIG | {"attention_types": [[["global"], 2]]},
            r"attention_types=.* say global or local of each of 3 la",
        ),
        (NEO_CONFIG | {"attention_types": [[["dense"], 3]]}, r"attention_types=.*dense.* must say global or local"),
        (
            NEO_CONFIG | {"attention_types": [[["local"], 9], [["global"], -6]]},
            r"attention_types=.* must say global or",
        ),
        (NEO_CONFIG | {"attention_types": [["local"]]}, r"a damaged config of a gpt_neo: "),
        (GEMMA_CONFIG | {"use_bidirectional_attention": True}, r"use_bidirectional_attention=True \(it must be False"),
        (GEMMA_CONFIG | {"hidden_act": "relu"}, r"activation relu \(gptlab has silu, swish, gelu_pytorch_tanh, gelu_"),
        (NANOCHAT_CONFIG | {"attention_bias": True}, r"attention_bias=True \(it must be False\)"),
        (NANOCHAT_CONFIG | {"final_logit_softcapping": 0.0}, r"model.logit_softcap=0.0: must be above 0"),
        (
            {"model_type": "llama", "hidden_act": "relu", "rope_parameters": UNFINISHED, "attention_multiplier": 2}
            | dict.fromkeys(("vocab_size", "num_hidden_layers")),
            r"vocab_size is missing; .*num_hidden_layers is missing; .*attention_multiplier=2 .*; rope_type=.*; activ",
        ),
    ],
)
def test_what_a_config_has_that_we_lack_is_named_all_at_once(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        huggingface_config.config_from_hf(config)


# What changes neither logits nor weights of a language model, or only in training, or only by rounding.
HARMLESS = {"initializer_range", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp"}
HARMLESS |= {"reorder_and_upcast_attn", "embd_pdrop", "attn_pdrop", "attention_dropout", "max_window_layers"}
HARMLESS |= {"classifier_dropout", "attention_layers", "embed_dropout", "init_std", "layerdrop", "is_decoder"}
HARMLESS |= {f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")}
READ = {"rope_parameters", "attention_bias", "mlp_bias", "layer_types", "use_sliding_window"}
BY_AMEND = {
    "gpt_neo": {"attention_types", "window_size"},
    "opt": {"do_layer_norm_before", "word_embed_proj_dim", "enable_bias"},  # a missing bias is zero
}


@pytest.mark.parametrize("name", huggingface_families.FAMILIES)
def test_every_field_of_their_configs_has_been_thought_of(name: str) -> None:
    general = transformers.PretrainedConfig().to_dict()
    fields = transformers.AutoConfig.for_model(name).to_dict().keys() - general.keys()
    family = huggingface_families.FAMILIES[name]
    known = READ | HARMLESS | BY_AMEND.get(name, set()) | family.required.keys() | family.fields.keys()
    assert fields - known - {"sliding_window"} == set()  # which Qwen has only with use_sliding_window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos": "alibi"}, r"what parts it from GPT2LMHeadModel: model.pos=alibi \(not learned\)$"),
        ({"pos": "rope", "head_bias": True}, r"GPTNeoXForCausalLM: model.head_bias=true \(not false\)$"),
        ({"parallel": True}, r"GPT2LMHeadModel: model.parallel=true \(not false\)$"),
        ({"head_bias": True, "mlp": "swiglu"}, r"model.head_bias=true \(not false\), model.mlp=swiglu \(not gelu or"),
        ({"n_kv_head": 2}, r"model.n_kv_head=2 \(not null\)"),
        ({"attention": "none"}, r"model.attention=none"),
        ({"mlp": "none"}, r"model.mlp=none \(not gelu or gelu_exact or relu or relu2\)"),
        (ROTARY | {"logit_softcap": 30.0}, r"LlamaForCausalLM: model.logit_softcap=30.0 \(not null\)$"),
        (ROTARY | {"mlp": "relu2", "parallel": True}, r"GPTNeoXForCausalLM: model.norm=rmsnorm \(not layernorm\)$"),
        (ROTARY | {"parallel": True}, r"LlamaForCausalLM: model.parallel=true \(not false\)$"),
        (ROTARY | {"rope_fraction": 0.4}, r"LlamaForCausalLM: model.rope_fraction=0.4 \(not 1.0\)$"),
        (MODERN | {"embed_norm": False}, r"NanoChatForCausalLM: model.embed_norm=false \(not true\)$"),
        (MODERN | {"norm_weight": True}, r"NanoChatForCausalLM: model.norm_weight=true \(not false\)$"),
        (ROTARY | {"window": 7, "qk_norm": True}, r"MistralForCausalLM: model.qk_norm=true|Qwen3.*: model.window=7"),
        (ROTARY | {"norm_place": "post"}, r"model.norm_place=post \(not pre\)"),
        ({"residual": False, "norm": "none"}, r"model.residual=false \(not true\), model.norm=none"),
    ],
)
def test_an_architecture_that_transformers_lacks_is_refused_with_every_reason(
    changes: dict[str, Any], message: str
) -> None:
    config = GPTConfig(**(SIZES | changes))
    for attempt in (
        huggingface_config.config_to_hf,
        lambda config: huggingface_names.weights_to_hf({}, config),
        lambda config: huggingface_names.weights_from_hf({}, config),
    ):
        with pytest.raises(UserError, match=message):
            attempt(config)


def test_a_window_in_every_other_layer_cuts_the_model_to_where_it_hides_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = theirs("GPTNeoForCausalLM")
    hf = model.config.to_dict() | {"window_size": 7}
    config = huggingface_config.config_from_hf(hf)
    assert (config.block_size, config.window) == (7, None)
    assert "others the last 7, which gptlab has not: it is cut to model.block_size=7" in caplog.text
    gpt = fill(config, huggingface_names.weights_from_hf(model.state_dict(), config, hf))
    windowed = transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(**hf)).eval()
    windowed.load_state_dict(model.state_dict())
    idx = torch.randint(V, (5, T), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(gpt(idx[:, :7]), windowed(idx).logits[:, :7], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(windowed(idx).logits, model(idx).logits, atol=1e-3)


def test_weights_that_do_not_fit_are_listed_in_their_names_with_what_and_why() -> None:
    model = theirs("LlamaForCausalLM grouped")
    config = huggingface_config.config_from_hf(model.config.to_dict())
    state = model.state_dict()
    state["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(7, 60)
    del state["model.norm.weight"]
    state["model.layers.3.input_layernorm.weight"] = torch.zeros(60)
    message = (
        r"weights that do not fit the model's config \(3\): model.layers.1.self_attn.k_proj.weight is \[7, 60\] and "
        r"must be \[20, 60\], model.norm.weight is missing, model.layers.3.input_layernorm.weight is unexpected$"
    )
    with pytest.raises(UserError, match=message):
        huggingface_names.weights_from_hf(state, config)


def test_of_many_misfits_the_first_ten_are_listed() -> None:
    expected = {f"h.{i:02}": torch.zeros(3) for i in range(13)}
    with pytest.raises(
        UserError,
        match=r"^weights that do not fit the model's config \(13\): h.00 is missing, .*, h.09 is missing, \.\.\.$",
    ) as refused:
        check_shapes({}, expected)
    assert len(re.findall("missing", str(refused.value))) == 10


def test_a_bias_that_only_some_blocks_lack_is_missing() -> None:
    model = theirs("Qwen2ForCausalLM")
    config = huggingface_config.config_from_hf(model.config.to_dict())
    state = model.state_dict()
    del state["model.layers.1.self_attn.v_proj.bias"]
    with pytest.raises(
        UserError, match=r"weights that do not fit .* \(1\): model.layers.1.self_attn.v_proj.bias is missing"
    ):
        huggingface_names.weights_from_hf(state, config)


def test_filling_a_model_draws_nothing_and_leaves_no_weight_without_numbers() -> None:
    gpt = ours("LlamaForCausalLM tied")
    before = torch.get_rng_state()
    half = {name: weight.to(torch.bfloat16) for name, weight in gpt.state_dict().items()}
    model = fill(gpt.config, half)
    assert torch.equal(torch.get_rng_state(), before)
    assert {(p.device.type, p.dtype, p.requires_grad) for p in model.parameters()} == {("cpu", torch.float32, True)}
    assert model.lm_head.weight is model.wte.weight
    assert model.num_parameters() == gpt.num_parameters()
    assert not model.training


def test_a_filled_model_is_independent_of_what_it_was_filled_with() -> None:
    gpt = ours("GPT2LMHeadModel")
    idx = torch.arange(T)[None]
    model, before = fill(gpt.config, gpt.state_dict()), gpt(idx)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.zero_()
    assert torch.equal(model(idx), before)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPT2LMHeadModel without biases of queries", "LlamaForCausalLM"])
def test_a_model_cropped_to_fewer_positions_and_tokens_has_the_same_logits_for_them(name: str) -> None:
    gpt = ours(name)
    config = dataclasses.replace(gpt.config, block_size=13, vocab_size=89, dropout=0.1)
    small = crop(gpt, config)
    assert small.config == config
    idx = torch.randint(89, (3, 13), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(small(idx), gpt(idx)[..., :89])
    assert small.h[0].attn.c_attn.weight.data_ptr() == gpt.h[0].attn.c_attn.weight.data_ptr()
    assert small.wte.weight.untyped_storage().nbytes() == 4 * 89 * 60  # and the old table can go


def test_a_model_cannot_be_cropped_to_more_than_it_has() -> None:
    gpt = ours("GPT2LMHeadModel")
    with pytest.raises(
        UserError, match=r"weights that do not fit .* \(1\): wpe.weight is \[23, 60\] and must be \[29, 60\]"
    ):
        crop(gpt, dataclasses.replace(gpt.config, block_size=29))
    with pytest.raises(UserError, match=r"h.3.attn.c_attn.weight is missing"):
        crop(gpt, dataclasses.replace(gpt.config, n_layer=4))


def test_a_bigram_table_is_filled_too() -> None:
    table = models.build(models.BigramConfig(vocab_size=7))
    state: dict[str, Tensor] = table.state_dict()
    assert torch.equal(fill(table.config, dict(state)).wte.weight, state["wte.weight"])
