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
from gptlab.formats import huggingface_names
from gptlab.models import GPT, GPTConfig
from gptlab.models.weights import check_shapes, crop, empty_model, fill, parameters
from gptlab.system.errors import UserError
from tests.models.test_parity import GPT2, LLAMA, D, T, V

transformers = pytest.importorskip("transformers")

# Each begins with the name of its class.
LLAMA3 = {"rope_type": "llama3", "rope_theta": 97.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 13
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
}
SIZES = {"vocab_size": V, "block_size": T, "n_layer": 3, "n_head": 6, "n_embd": 6 * D}
ROTARY = {"norm": "rmsnorm", "pos": "rope", "mlp": "swiglu", "bias": False, "tied": False}
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
    config = huggingface_names.config_from_hf(json.loads(model.config.to_json_string()))
    return fill(config, huggingface_names.weights_from_hf(model.state_dict(), config))


def exported(model: GPT) -> Any:
    config = huggingface_names.config_to_hf(model.config)
    model_class = getattr(transformers, config["architectures"][0])
    copy = model_class(model_class.config_class(**json.loads(json.dumps(config)), bos_token_id=0, eos_token_id=None))
    missing, unexpected = copy.load_state_dict(
        huggingface_names.weights_to_hf(model.state_dict(), model.config), strict=False
    )
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


@pytest.mark.parametrize("name", OURS)
def test_a_model_of_ours_is_the_same_in_transformers(name: str) -> None:
    gpt = ours(name)
    model = exported(gpt)
    assert type(model).__name__ == name.split()[0]
    assert_same(gpt, model)
    assert_same(imported(model), model)


@pytest.mark.parametrize("name", THEIRS)
def test_names_go_there_and_back(name: str) -> None:
    model = theirs(name)
    state = model.state_dict()
    config = huggingface_names.config_from_hf(json.loads(model.config.to_json_string()))
    if config.tied:
        del state["lm_head.weight"]
    here = huggingface_names.weights_from_hf(state, config)
    check_shapes(here, parameters(empty_model(config)))
    back = huggingface_names.weights_to_hf(here, config)
    for key in back.keys() - state.keys():  # Llama's biases come all or none
        assert not back.pop(key).any()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) and back[key].is_contiguous() for key in state)


def test_weights_of_openai_have_no_prefix_and_no_head_but_buffers() -> None:
    model = theirs("GPT2LMHeadModel")
    state = {key.removeprefix("transformer."): value for key, value in model.state_dict().items()}
    del state["lm_head.weight"]
    for i in range(3):
        state |= {f"h.{i}.attn.bias": torch.ones(1, 1, T, T).tril(), f"h.{i}.attn.masked_bias": torch.tensor(-1e4)}
    config = huggingface_names.config_from_hf(model.config.to_dict())
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


UNFINISHED = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
QWEN = OLD_LLAMA | {"model_type": "qwen2", "num_key_value_heads": 6, "use_sliding_window": True, "sliding_window": 7}


def test_configs_of_older_versions_are_read() -> None:
    assert huggingface_names.config_from_hf(OPENAI) == GPTConfig(50257, dropout=0.1)
    assert huggingface_names.config_from_hf(OPENAI | {"attn_pdrop": 0.0}) == GPTConfig(
        50257, dropout=0.1, attn_dropout=0.0
    )
    assert huggingface_names.config_from_hf({k: v for k, v in OPENAI.items() if k != "attn_pdrop"}) == GPTConfig(
        50257, dropout=0.1
    )
    expected = GPTConfig(**(SIZES | ROTARY), n_inner=53, norm_eps=1e-6, rope_base=500000.0)
    assert huggingface_names.config_from_hf(OLD_LLAMA) == expected
    mistral = OLD_LLAMA | {"model_type": "mistral", "num_key_value_heads": None}
    assert huggingface_names.config_from_hf(mistral) == dataclasses.replace(expected, qkv_bias=False, window=4096)
    assert huggingface_names.config_from_hf(OLD_LLAMA | {"n_layer": None, "rope_parameters": None}) == expected


@pytest.mark.parametrize("name", huggingface_names.FAMILIES)
def test_what_a_config_lacks_is_the_default_of_transformers(name: str) -> None:
    default = huggingface_names.config_from_hf({"model_type": name})
    default = dataclasses.replace(default, n_kv_head=None if name == "gpt2" else default.kv_heads)
    assert default == huggingface_names.config_from_hf(transformers.AutoConfig.for_model(name).to_dict())


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
    ],
)
def test_configs_say_one_thing_in_several_ways(config: dict[str, Any], same: dict[str, Any]) -> None:
    assert huggingface_names.config_from_hf(config) == huggingface_names.config_from_hf(same)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt_neox"}, r"model_type=gpt_neox: gptlab has no such model; it reads gpt2, .*llama"),
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
        (OLD_LLAMA | {"rope_parameters": YARN}, r"rope_type=yarn \(gptlab has default, linear, llama3\)"),
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
        (
            {"model_type": "llama", "hidden_act": "relu", "rope_parameters": UNFINISHED, "attention_multiplier": 2}
            | dict.fromkeys(("vocab_size", "num_hidden_layers")),
            r"vocab_size is missing; .*num_hidden_layers is missing; .*attention_multiplier=2 .*; rope_type=.*; activ",
        ),
    ],
)
def test_what_a_config_has_that_we_lack_is_named_all_at_once(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        huggingface_names.config_from_hf(config)


# What changes neither logits nor weights of a language model, or only in training, or only by rounding.
HARMLESS = {"initializer_range", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp"}
HARMLESS |= {"reorder_and_upcast_attn", "embd_pdrop", "attn_pdrop", "attention_dropout", "max_window_layers"}
HARMLESS |= {f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")}
READ = {"rope_parameters", "attention_bias", "mlp_bias", "layer_types", "use_sliding_window"}


@pytest.mark.parametrize("name", huggingface_names.FAMILIES)
def test_every_field_of_their_configs_has_been_thought_of(name: str) -> None:
    general = transformers.PretrainedConfig().to_dict()
    fields = transformers.AutoConfig.for_model(name).to_dict().keys() - general.keys()
    known = READ | HARMLESS | huggingface_names.REQUIRED_VALUES.keys() | huggingface_names.FAMILIES[name].fields.keys()
    assert fields - known - {"sliding_window"} == set()  # which Qwen has only with use_sliding_window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos": "alibi"}, r"what parts it from GPT2LMHeadModel: model.pos=alibi \(not learned\)$"),
        ({"pos": "rope"}, r"GPT2LMHeadModel: model.pos=rope \(not learned\)$"),
        ({"head_bias": True, "mlp": "swiglu"}, r"model.head_bias=true \(not false\), model.mlp=swiglu \(not gelu or"),
        ({"n_kv_head": 2}, r"model.n_kv_head=2 \(not null\)"),
        ({"attention": "none"}, r"model.attention=none"),
        ({"mlp": "none"}, r"model.mlp=none \(not gelu or gelu_exact or relu or relu2\)"),
        (ROTARY | {"logit_softcap": 30.0}, r"LlamaForCausalLM: model.logit_softcap=30.0 \(not null\)$"),
        (ROTARY | {"mlp": "relu2", "parallel": True}, r"LlamaForCausalLM: model.parallel=true .*, model.mlp=relu2"),
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
        huggingface_names.config_to_hf,
        lambda config: huggingface_names.weights_to_hf({}, config),
        lambda config: huggingface_names.weights_from_hf({}, config),
    ):
        with pytest.raises(UserError, match=message):
            attempt(config)


def test_weights_that_do_not_fit_are_listed_in_their_names_with_what_and_why() -> None:
    model = theirs("LlamaForCausalLM grouped")
    config = huggingface_names.config_from_hf(model.config.to_dict())
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
    config = huggingface_names.config_from_hf(model.config.to_dict())
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
